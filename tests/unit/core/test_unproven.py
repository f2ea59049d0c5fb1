"""Which sweep leaves a pipeline UNKNOWN, until which other one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gapwatch.core.unproven import unproven
from gapwatch.model.gap import Run, RunKind, RunState

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
FULL: dict[str, Any] = {"range": "full", "content": True}
KEYS: dict[str, Any] = {"range": "keys", "content": True, "keys": ["01"]}


def sweep(state: RunState, /, **request: Any) -> Run:
    return Run(
        id=f"{state}-{request}",
        pipeline="orders",
        kind=RunKind.SWEEP,
        state=state,
        requested_at=datetime(2026, 1, 1, tzinfo=UTC),
        request=request,
    )


INCONCLUSIVE, FAILED, SUCCEEDED = RunState.INCONCLUSIVE, RunState.FAILED, RunState.SUCCEEDED


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING, RunState.CANCELLED, SUCCEEDED])
def test_lesson_1_what_was_not_read_is_not_known_while_another_sweep_of_other_keys_comes_or_goes(state: RunState) -> None:
    """An inconclusive sweep was forgotten as soon as the next one had been asked for, whatever became of that."""
    left = sweep(INCONCLUSIVE, **FULL)
    assert unproven([sweep(state, **KEYS), left]) is left
    assert (unproven([sweep(state, **FULL), left]) is None) == (state is SUCCEEDED)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (FULL, FULL),
        ({**FULL, "content": False}, FULL),
        (KEYS, FULL),
        (KEYS, KEYS),
        ({"range": "lookback", "since": LATE}, {"range": "lookback", "since": EARLY}),
        ({"range": "range", "from": 1, "to": 9}, {"range": "range", "from": 1, "to": 9}),
        ({"content": True}, FULL),
    ],
)
def test_one_that_looks_as_far_makes_it_good(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    assert unproven([sweep(SUCCEEDED, **later), sweep(INCONCLUSIVE, **earlier)]) is None


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (FULL, {**FULL, "content": False}),
        (FULL, {"range": "lookback", "since": EARLY, "content": True}),
        (KEYS, {**KEYS, "keys": ["02"]}),
        ({"range": "lookback", "since": EARLY}, {"range": "lookback", "since": LATE}),
        ({"range": "range", "from": 1, "to": 9}, {"range": "range", "from": 1, "to": 8}),
    ],
)
def test_one_that_looks_less_far_does_not(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    left = sweep(INCONCLUSIVE, **earlier)
    assert unproven([sweep(SUCCEEDED, **later), left]) is left


def test_an_older_one_counts_although_a_newer_one_was_made_good() -> None:
    left = sweep(INCONCLUSIVE, **FULL)
    assert unproven([sweep(SUCCEEDED, **KEYS), sweep(INCONCLUSIVE, **KEYS), left]) is left


def test_a_sweep_of_everything_that_failed_has_looked_at_nothing() -> None:
    assert unproven([sweep(FAILED, **FULL)]) is not None
    assert unproven([sweep(FAILED, **KEYS)]) is None, "it was wrongly asked for"
    assert unproven([]) is None
