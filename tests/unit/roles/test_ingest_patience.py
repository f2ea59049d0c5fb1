"""How long an ingester collects: longer only where many partitions bring a few events each."""

from __future__ import annotations

from gapwatch.roles.ingest.role import MANY_RUNS, POLL_SECONDS, SMALL_POLL_SECONDS, SMALL_RUN, patience


def test_many_small_runs_are_collected_for_longer() -> None:
    assert patience([SMALL_RUN - 1] * MANY_RUNS) == SMALL_POLL_SECONDS


def test_full_runs_a_few_and_none_are_not() -> None:
    assert patience([SMALL_RUN] * MANY_RUNS) == POLL_SECONDS
    assert patience([1] * (MANY_RUNS - 1)) == POLL_SECONDS
    assert patience([]) == POLL_SECONDS
