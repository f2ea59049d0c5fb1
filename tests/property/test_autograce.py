"""A grace that is measured: within its bounds, never too short for what was seen, and it settles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.autograce import (
    ABOVE,
    FACTOR,
    READINGS_MAX,
    WINDOW_MS,
    WRITES_MIN,
    DelayReading,
    DelayWindow,
    GraceBounds,
    percentile,
    settled,
)
from gapwatch.core.cells import DELAY_BOUNDS_MS

COUNTS = st.dictionaries(st.sampled_from([*DELAY_BOUNDS_MS, ABOVE]), st.integers(0, 100_000))
BOUNDS = st.tuples(st.integers(1, 600_000), st.integers(1, 600_000)).map(
    lambda ends: GraceBounds(least=min(ends), most=max(ends))
)
SECOND = 1_000


@given(counts=COUNTS, late=st.integers(0, 1_000), grace=st.integers(1, 1_000_000), bounds=BOUNDS)
def test_m9_the_grace_is_always_within_its_bounds(counts: dict[int, int], late: int, grace: int, bounds: GraceBounds) -> None:
    assert bounds.least <= settled(grace, DelayReading(at_ms=0, delays=counts, late=late), bounds) <= bounds.most


@given(counts=COUNTS, late=st.integers(0, 1_000))
def test_m9_at_most_one_write_in_a_thousand_is_slower_than_the_percentile(counts: dict[int, int], late: int) -> None:
    counted = DelayReading(at_ms=0, delays=counts, late=late)
    total = sum(counts.values()) + late
    slowest = percentile(counted)
    if slowest is None:
        assert total < WRITES_MIN
        return
    slower = late + sum(count for bound, count in counts.items() if slowest != ABOVE and (bound == ABOVE or bound > slowest))
    if slowest != ABOVE:
        assert 1_000 * slower <= total
        below = max((bound for bound in DELAY_BOUNDS_MS if bound < slowest), default=0)
        above_that = late + sum(count for bound, count in counts.items() if bound == ABOVE or bound > below)
        assert 1_000 * above_that > total or below == 0, "and it is the least of which that is true"


@given(counts=COUNTS, late=st.integers(0, 1_000), start=st.integers(1, 1_000_000), bounds=BOUNDS)
def test_m9_the_same_delays_settle_it_wherever_it_began(
    counts: dict[int, int], late: int, start: int, bounds: GraceBounds
) -> None:
    counted = DelayReading(at_ms=0, delays=counts, late=late)
    grace, seen = bounds.hold(start), []
    for _ in range(100):
        grace = settled(grace, counted, bounds)
        seen.append(grace)
    slowest = percentile(counted)
    wanted = {None: bounds.hold(start), ABOVE: bounds.most}.get(slowest, bounds.hold(FACTOR * (slowest or 0)))
    assert grace == wanted
    assert seen == sorted(seen) or seen == sorted(seen, reverse=True), "without going to and fro"


@given(steps=st.lists(st.tuples(st.integers(0, 600_000), st.sampled_from(DELAY_BOUNDS_MS), st.integers(0, 50)), max_size=300))
def test_m9_a_window_counts_what_came_in_its_time_and_keeps_few_readings(steps: list[tuple[int, int, int]]) -> None:
    window, at, counts = DelayWindow(), 0, dict.fromkeys(DELAY_BOUNDS_MS, 0)
    history = []
    for passed, bound, count in steps:
        at += passed
        counts[bound] += count
        found = window.add(DelayReading(at_ms=at, delays=dict(counts)))
        history.append((at, sum(counts.values())))
        assert all(number >= 0 for number in found.delays.values())
        recent = sum(counts.values()) - max((total for time, total in history if time <= at - WINDOW_MS), default=0)
        assert sum(found.delays.values()) <= sum(counts.values())
        assert sum(found.delays.values()) >= min(recent, sum(counts.values()) - history[0][1]) or passed > WINDOW_MS
    assert len(window._kept) <= READINGS_MAX


def test_m9_a_count_that_went_back_begins_the_window_anew() -> None:
    window = DelayWindow()
    window.add(DelayReading(at_ms=0, delays={50: 10_000}))
    assert window.add(DelayReading(at_ms=SECOND, delays={50: 12_000}, late=3)).delays == {50: 2_000}
    again = window.add(DelayReading(at_ms=2 * SECOND, delays={50: 40}, late=3))
    assert (again.delays, again.late) == ({50: 0}, 0)
    assert percentile(again) is None


def test_m9_late_arrivals_make_a_short_grace_longer() -> None:
    """Delays above the grace are never measured: the suspect was cleared before. Without counting these it would never grow."""
    bounds = GraceBounds(least=1_000, most=60_000)
    fast = {500: 10_000}
    assert settled(1_500, DelayReading(at_ms=0, delays=fast, late=10), bounds) == 1_500, "one in a thousand is allowed"
    assert settled(1_500, DelayReading(at_ms=0, delays=fast, late=11), bounds) == 3_000
