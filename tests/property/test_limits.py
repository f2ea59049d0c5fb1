"""Invariant 7 of ``design.md`` 0: everything is bounded, and what a limit costs is counted, a hole, or a lower coverage."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core import watermarks
from gapwatch.core.coverage import closed_of, ratio
from gapwatch.core.keystate import KeyState
from gapwatch.core.matching import KeyMatcher
from gapwatch.core.pipelinestate import HOLES_MAX
from gapwatch.core.watermarks import STEPS_MAX
from gapwatch.model.suspect import Counters, Hole, PartitionStatus
from tests.property.test_consistent_through import Truth, claim, looks
from tests.property.test_matching import OFTEN, RAGGED, SEEDS, conserved
from tests.simulation.bench import Bench
from tests.simulation.world import GRACE_MS, PIPELINE, START, Shape, World, pipeline

CELLS = 2  # partitions of `looks`: a pipeline's limits are shared out among them
CROWDED: Shape = replace(RAGGED, keys=30, writes=90, swapped=0.3, strange=0.1)


def covered(holes: list[Hole], time: int) -> bool:
    return any(hole.time_from <= time <= hole.time_to for hole in holes if hole.time_from)


def share(status: PartitionStatus) -> float | None:
    return ratio(closed_of(status.counters), masked=0, accepted=0)


def check_sizes(matcher: KeyMatcher, history: int, waiting_max: int) -> None:
    state = matcher._pipelines[PIPELINE]
    rows, limits = state.cell.rows, state.cell.limits
    assert rows.open <= limits.pending
    assert len(state.cell.raised) <= limits.raised
    assert rows.settled <= limits.settled
    for held in rows.long.values():
        if isinstance(held, KeyState):
            assert max(len(held.writes), len(held.older), len(held.shown)) <= history
    for feed in matcher._times.feeds.values():
        assert feed.waiting_events <= waiting_max
        assert len(feed.steps) <= STEPS_MAX
    assert len(state.holes) <= HOLES_MAX


@OFTEN
@given(SEEDS, SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(0, 6))
def test_invariant_7_every_limit_is_kept_and_what_it_costs_is_said(
    seed: int, shuffle: int, pending: int, raised: int, settled: int, history: int, reorder: int
) -> None:
    """Pending keys, raised keys, settled keys, versions of a key, and what waits for its turn: all at their limits at once."""
    world = World(seed, CROWDED)
    truth = Truth(world)
    spec = pipeline(
        pending_keys_max=pending * CELLS, suspects_max=raised * CELLS, settled_keys_max=settled * CELLS, history=history
    )
    before: tuple[set[bytes], Counters] = (set(), Counters())
    with mock.patch.object(watermarks, "REORDER_EVENTS_MAX", reorder):
        for matcher, _ in looks(world, spec, shuffle):
            (status,) = matcher.status("one", 0)
            check_sizes(matcher, history, reorder)
            assert conserved(matcher, status)
            assert list(truth.lies(status)) == []
            before = check_counted(matcher, status, before)
    holes = [hole for hole in status.holes if hole.time_from]
    rows = matcher._pipelines[PIPELINE].cell.rows
    known = {key for key in rows.at if rows.held(key)[1]}
    for key in world.differing - known:
        times = [raw.event_time for raw in [*truth.source.get(key, ()), *(shown for *_, shown in truth._shown.get(key, ()))]]
        assert any(covered(holes, time) for time in times), f"{key!r} is neither known nor in a hole"
    if status.counters.unverifiable:
        assert holes
        lower = share(status)
        assert lower is not None
        assert lower < 1
        assert claim(status) <= min(hole.time_from for hole in holes)


def check_counted(
    matcher: KeyMatcher, status: PartitionStatus, before: tuple[set[bytes], Counters]
) -> tuple[set[bytes], Counters]:
    """Nothing that was known a record ago is unknown now without having been counted."""
    known = set(matcher._pipelines[PIPELINE].cell.rows.at)
    were, earlier = before
    now = status.counters
    counted = now.forgotten - earlier.forgotten
    counted += now.unverifiable.get("overflow", 0) - earlier.unverifiable.get("overflow", 0)
    assert len(were - known) <= counted
    return known, now


@OFTEN
@given(st.integers(1, 4), st.integers(5, 40))
def test_invariant_7_pending_keys_above_their_limit_become_a_hole(limit: int, keys: int) -> None:
    bench = Bench(pipeline(pending_keys_max=limit))
    for number in range(keys):
        bench.expect(number, 100 + number, key=b"row-%d" % number)
    status = bench.status
    over = max(0, keys - limit)
    assert status.pending == keys - over
    assert status.counters.unverifiable.get("overflow", 0) == over
    assert all(covered(bench.holes, START + 100 + number) for number in range(limit, keys))
    if over:
        assert bench.holes, "said, and so stored, before the key is let go for good"
        assert {hole.reason for hole in bench.holes} == {"pending_keys_max"}
        assert min(hole.time_from for hole in status.holes if hole.time_from) <= START + 100 + limit


@OFTEN
@given(st.integers(1, 4), st.integers(5, 40))
def test_invariant_7_raised_keys_above_their_limit_become_a_hole(limit: int, keys: int) -> None:
    bench = Bench(pipeline(suspects_max=limit))
    for number in range(keys):
        bench.expect(number, 100 + number, key=b"row-%d" % number)
    bench.streams(10 * GRACE_MS)
    assert len(bench.suspects) == bench.status.raised == min(limit, keys)
    assert bench.status.counters.unverifiable["overflow"] == keys - limit
    assert {hole.reason for hole in bench.holes} == {"suspects_max"}
    left = {b"row-%d" % number for number in range(keys)} - {one.key for one in bench.suspects}
    assert all(covered(bench.holes, START + 100 + int(key[4:])) for key in left)
    assert (share(bench.status) or 0) == 0, "nothing of it was proven"


@OFTEN
@given(st.integers(2, 8), st.integers(3, 60))
def test_invariant_7_versions_above_their_limit_are_superseded_and_the_oldest_keeps_its_age(history: int, versions: int) -> None:
    bench = Bench(pipeline(history=history))
    for number in range(versions):
        bench.expect(number, 100 + number)
    over = max(0, versions - history)
    assert bench.status.counters.superseded == over
    assert bench.unsettled == 100
    (suspect,) = bench.streams(100 + GRACE_MS + 1)
    assert getattr(suspect, "due", 0) == START + 100 + GRACE_MS
    bench.observe(0, 5_000)
    if over:
        assert bench.unsettled == 101, "the first of those that were let go, until the newest is there"
    bench.observe(versions - 1, 5_001)
    assert bench.unsettled is None


@OFTEN
@given(st.integers(1, 4), st.integers(5, 40))
def test_invariant_7_a_settled_key_that_made_room_costs_a_read_and_never_a_verdict(limit: int, keys: int) -> None:
    """Forgotten, then overwritten by a stranger: it is found as if it had been remembered."""
    bench = Bench(pipeline(settled_keys_max=limit))
    for number in range(keys):
        bench.expect(number, 100 + number, key=b"row-%d" % number)
        bench.observe(number, 110 + number, key=b"row-%d" % number)
    assert bench.status.counters.forgotten == keys - limit
    assert share(bench.status) == 1, "what was settled stays proven"
    bench.observe(-1 % (1 << 64), 5_000, key=b"row-0")
    (suspect,) = bench.streams(5_000 + 10 * GRACE_MS)
    assert getattr(suspect, "key", b"") == b"row-0"
