"""Coverage looks back on an hour of the stream's own time, and no further."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.coverage import STEP_MS, STEPS, LastHour, closed_of, ratio, together
from gapwatch.model.stream import Outcome
from gapwatch.model.suspect import Closed, Counters
from tests.simulation.bench import Bench

HOUR_MS = 3_600_000


@given(st.lists(st.tuples(st.integers(0, HOUR_MS), st.integers(0, 20)), max_size=60))
def test_it_counts_at_least_an_hour_and_at_most_one_step_more(steps: list[tuple[int, int]]) -> None:
    """Time goes on by so many milliseconds, and then so many writes are closed."""
    hour, now, total, when = LastHour(), 0, 0, list[tuple[int, int]]()
    for passed, closed in steps:
        now += passed
        hour.pass_to(now // STEP_MS, lambda: Closed(settled=total))  # noqa: B023 - it is called at once
        total += closed
        when.append((now, closed))
        found = hour.closed(Closed(settled=total)).settled
        assert found >= sum(count for time, count in when if time > now - HOUR_MS)
        assert found <= sum(count for time, count in when if time >= now - HOUR_MS - STEP_MS)
        assert len(hour.marks) <= STEPS + 1


def test_time_that_goes_back_changes_nothing() -> None:
    hour = LastHour()
    hour.pass_to(20, lambda: Closed(settled=5))
    hour.pass_to(19, lambda: Closed(settled=9))
    assert hour.closed(Closed(settled=9)).settled == 4


def test_what_nobody_could_verify_is_forgotten_after_an_hour_also_across_a_restart() -> None:
    bench = Bench()
    bench.expect(1, 100, key=b"lost")
    for number in range(9):
        bench.expect(2, 110, key=b"row-%d" % number)
        bench.observe(2, 120, key=b"row-%d" % number)
    bench.streams(100_000)
    [suspect] = bench.suspects
    bench.verdict(suspect, Outcome.UNVERIFIABLE)
    assert share(bench) == pytest.approx(0.9)
    bench._append += HOUR_MS // 2
    bench.streams(200_000)
    bench.restart()
    assert share(bench) == pytest.approx(0.9)
    bench._append += HOUR_MS // 2 + STEP_MS
    bench.streams(300_000)
    assert share(bench) is None, "nothing was closed within the hour"
    bench.expect(3, 300_100)
    bench.observe(3, 300_200)
    assert share(bench) == 1
    assert bench.status.counters.unverifiable == {"not_read": 1}, "the totals forget nothing"


def share(bench: Bench) -> float | None:
    assert bench.status.last_hour is not None
    return ratio(bench.status.last_hour, masked=0, accepted=0)


def test_accepted_gaps_are_in_neither_and_masked_writes_are_not_proven() -> None:
    closed = Closed(settled=6, superseded=1, gap=2, masked=3, unverifiable=1)
    assert ratio(closed, masked=0, accepted=0) == pytest.approx(9 / 10)
    assert ratio(closed, masked=0, accepted=2) == pytest.approx(7 / 8)
    assert ratio(closed, masked=2, accepted=0) == pytest.approx(7 / 10)
    assert ratio(closed, masked=99, accepted=99) == pytest.approx(4 / 8)
    assert ratio(Closed(gap=1), masked=0, accepted=1) is None


def test_partitions_are_added_up() -> None:
    counters = Counters(settled=1, cleared=2, superseded=3, gap=4, masked=1, unverifiable={"a": 5, "b": 6})
    one = closed_of(counters)
    assert one == Closed(settled=3, superseded=3, gap=4, masked=1, unverifiable=11)
    assert together([one, one]) == Closed(settled=6, superseded=6, gap=8, masked=2, unverifiable=22)
    assert together([]) == Closed()
