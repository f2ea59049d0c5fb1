"""The invariants of matching (``design.md`` 0), over worlds of any seed: compared with the truth, or with an undisturbed run."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.checkpoint import Stage
from gapwatch.core.keystate import event_time_of
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.stream import Side
from gapwatch.model.suspect import PartitionStatus
from tests.property.often import often
from tests.simulation.worker import Crash, Durable, Worker, keys_of, shown, suspects, undisturbed
from tests.simulation.world import PIPELINE, Shape, World, pipeline

SEEDS = st.integers(0, 1 << 32)
OFTEN = often(100)
RAGGED = Shape(lost=0.15, falsified=0.1, coalesced=0.1, strange=0.05, touched=0.05, repeats=0.2, reemitted=0.2)


def raised_keys(matcher: KeyMatcher) -> set[bytes]:
    return matcher._pipelines[PIPELINE].cell.raised


def content(write: bytes | None) -> tuple[object, ...]:
    """Return a write without the number that stands for its feed: numbers are given in the order of the stream."""
    return (write[:3], write[4:]) if write is not None else ()


def conserved(matcher: KeyMatcher, status: PartitionStatus) -> bool:
    counters = status.counters
    classes = counters.settled + counters.superseded + counters.gap + counters.cleared + sum(counters.unverifiable.values())
    return counters.expected == classes + matcher.open_writes(PIPELINE)


@OFTEN
@given(SEEDS, st.booleans(), st.integers(1, 5_000))
def test_invariant_2_a_sink_that_loses_nothing_is_never_suspected(seed: int, delivery: bool, lag: int) -> None:
    """Lag, redelivery, reordering and overlapping ingesters raise nothing; without a delivery position lag stays below grace."""
    lag = lag * 5 if delivery else min(lag, 1_500)
    world = World(seed, Shape(lag=max(10, lag), delivery=delivery, repeats=0.2, reemitted=0.2, swapped=0.3, writes=60))
    spec = pipeline(delivery=delivery)
    matcher, durable = undisturbed(spec, world.log(), partitions=2)
    assert suspects(durable) == {}
    assert shown(matcher).pending == shown(matcher).in_transit == 0
    assert conserved(matcher, shown(matcher))


@OFTEN
@given(SEEDS, st.booleans())
def test_invariant_3_every_difference_is_raised_and_every_write_is_in_one_class(seed: int, delivery: bool) -> None:
    world = World(seed, dataclasses.replace(RAGGED, delivery=delivery, swapped=0.3))
    matcher, durable = undisturbed(pipeline(delivery=delivery), world.log(), partitions=2)
    assert raised_keys(matcher) == world.differing
    assert set(suspects(durable).values()) >= world.differing
    status = shown(matcher)
    assert conserved(matcher, status)
    assert status.raised == len(world.differing)
    assert status.pending == status.in_transit == 0


@OFTEN
@given(SEEDS, SEEDS)
def test_invariant_5_the_same_events_in_another_order_end_alike(seed: int, other: int) -> None:
    """Other interleavings, batch boundaries, redeliveries and overlaps: the same keys are open, the same writes are newest."""
    world = World(seed, dataclasses.replace(RAGGED, swapped=0.3))
    one, _ = undisturbed(pipeline(), world.log(0), partitions=2)
    two, _ = undisturbed(pipeline(), world.log(other), partitions=2)
    assert raised_keys(one) == raised_keys(two) == world.differing
    first, second = keys_of(one), keys_of(two)
    assert first.keys() == second.keys()
    for key, (where, _, expected, observed, *_) in first.items():
        other_where, _, other_expected, other_observed, *_ = second[key]
        assert where == other_where
        assert (content(expected), content(observed)) == (content(other_expected), content(other_observed))
    assert shown(one).counters.expected == shown(two).counters.expected
    assert shown(one).counters.observed == shown(two).counters.observed


@OFTEN
@given(SEEDS)
def test_invariant_8_the_same_records_say_the_same_byte_for_byte(seed: int) -> None:
    world = World(seed, RAGGED)
    log = world.log()
    one, first = undisturbed(pipeline(), log, partitions=2)
    two, second = undisturbed(pipeline(), log, partitions=2)
    assert list(first.said.items()) == list(second.said.items())
    assert keys_of(one) == keys_of(two)
    assert shown(one) == shown(two)


@OFTEN
@given(
    SEEDS,
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(Stage)), min_size=1, max_size=5),
    st.booleans(),
)
def test_invariants_3_and_8_a_crash_anywhere_changes_nothing(
    seed: int, every: int, crashes: list[tuple[int, Stage]], delivery: bool
) -> None:
    """Workers die in their checkpoints, torn ones included, and others take over: state, counters and suspects stay the same."""
    world = World(seed, dataclasses.replace(RAGGED, delivery=delivery, swapped=0.2))
    log, spec = world.log(), pipeline(delivery=delivery)
    calm, expected = undisturbed(spec, log, partitions=2)
    durable = Durable()
    for number, (after, stage) in enumerate(crashes):
        acknowledged = durable.acknowledged
        worker = Worker(spec, durable, partitions=2, seed=seed + number)
        assert worker.matcher.applied + 1 >= acknowledged
        try:
            worker.run(log, every=every, crash_after=after, crash_at=stage)
        except Crash:
            assert durable.acknowledged <= len(log)
    last = Worker(spec, durable, partitions=2)
    last.run(log, every=every)
    assert keys_of(last.matcher) == keys_of(calm)
    assert shown(last.matcher) == shown(calm)
    assert suspects(durable) == suspects(expected)
    assert durable.said.keys() == expected.said.keys()


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("seed", range(4))
def test_invariant_4_trap_14_crash_after_every_single_checkpoint(stage: Stage, seed: int) -> None:
    """One crash in each checkpoint of a run, in the same stage; what was acknowledged is always contained in the state."""
    world = World(seed, RAGGED)
    log, spec = world.log(), pipeline()
    calm, expected = undisturbed(spec, log, partitions=2)
    durable = Durable()
    for life in range(len(log)):
        worker = Worker(spec, durable, partitions=2, seed=life)
        assert worker.matcher.applied + 1 >= durable.acknowledged
        try:
            worker.run(log, every=3, crash_after=1, crash_at=stage)
        except Crash:
            continue
        break
    else:
        pytest.fail("the workers never came to the end")
    assert keys_of(worker.matcher) == keys_of(calm)
    assert shown(worker.matcher) == shown(calm)
    assert suspects(durable) == suspects(expected)


@OFTEN
@given(SEEDS)
def test_invariant_1_a_partition_that_never_spoke_is_unknown_and_raises_nothing(seed: int) -> None:
    world = World(seed, dataclasses.replace(RAGGED, mute=True))
    matcher, durable = undisturbed(pipeline(), world.log(), partitions=2)
    status = shown(matcher)
    assert suspects(durable) == {}
    assert status.source_watermark == status.source_caught_up == 0
    assert status.target_watermark > 0
    assert {feed.feed_partition for feed in status.feeds if feed.side == Side.EXPECTED} == {1}


@OFTEN
@given(SEEDS, st.integers(1, 20))
def test_the_oldest_unsettled_time_is_never_later_than_the_oldest_open_key(seed: int, every: int) -> None:
    world = World(seed, RAGGED)
    matcher = KeyMatcher(0, 2, {PIPELINE: pipeline()}, fingerprints={PIPELINE: 7}, life="one")
    for offset, (record, append_time) in enumerate(world.log()):
        matcher.apply(record, offset, append_time)
        if offset % every == 0:
            status = shown(matcher)
            rows = matcher._pipelines[PIPELINE].cell.rows
            times = [
                held.oldest_time if not isinstance(held, bytes) else event_time_of(held)
                for held in map(rows.open_held, rows.at)
                if held is not None
                if isinstance(held, bytes) or held.expected is not None or held.oldest_time >= matcher._pipelines[PIPELINE].start
            ]
            assert status.oldest_unsettled == min(times, default=None)
