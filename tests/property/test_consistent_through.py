"""Consistent-through, against the truth of a world: at every look, what it claims has been shown by the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.keys import partition_of
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Control, Operation, Side
from gapwatch.model.suspect import PartitionStatus, Suspect
from tests.property.test_matching import OFTEN, RAGGED, SEEDS
from tests.simulation.world import MAPPING, PIPELINE, START, Raw, World, pipeline


class Truth:
    """What the feeds of a world hold for partition 0, by key, in the order of the store."""

    def __init__(self, world: World) -> None:
        self.source: dict[bytes, list[Raw]] = {}
        self._shown: dict[bytes, list[tuple[int, int, Raw]]] = {}
        for (side, number), feed in world.feeds.items():
            for raw in feed.records:
                if raw.again or partition_of(raw.key, world.shape.partitions):
                    continue
                if side is Side.EXPECTED:
                    self.source.setdefault(raw.key, []).append(raw)
                else:
                    self._shown.setdefault(raw.key, []).append((number, raw.offset, raw))

    def lies(self, status: PartitionStatus) -> Iterator[str]:
        """Say what of the claim in a status record is not so."""
        through = claim(status)
        reached = {feed.feed_partition: feed.reached for feed in status.feeds if feed.side == Side.OBSERVED}
        for key in self.source.keys() | self._shown.keys():
            shown = [raw for number, offset, raw in self._shown.get(key, ()) if offset < reached.get(number, 0)]
            versions = self.source.get(key, [])
            due = [raw for raw in versions if raw.event_time < through]
            later = versions[len(due) - 1 :] if due else []
            if due and not any(explains(version, raw) for version in later for raw in shown):
                yield f"{key!r}: nothing shown yet of the write at {due[-1].event_time - START}"
            stranger = shown[-1] if shown and not any(explains(version, shown[-1]) for version in versions) else None
            if stranger is not None and stranger.event_time < through:
                yield f"{key!r}: the target shows what nothing explains since {stranger.event_time - START}"


def explains(version: Raw, shown: Raw) -> bool:
    """Whether it is the same state: values are unique in a world, and one delete is like another."""
    if Operation.DELETE in (version.operation, shown.operation):
        return version.operation == shown.operation
    return version.value == shown.value and version.operation != Operation.TOUCHED


def claim(status: PartitionStatus) -> int:
    """Return this partition's part of consistent-through; the holes of the first start are the baseline's."""
    holes = [hole.time_from for hole in status.holes if hole.time_from]
    oldest = [] if status.oldest_unsettled is None else [status.oldest_unsettled]
    return min([status.source_watermark, *oldest, *holes])


def looks(world: World, spec: PipelineSpec, shuffle: int) -> Iterator[tuple[KeyMatcher, list[object]]]:
    """Apply the world's log; yield the matcher and what it said after every record."""
    matcher = KeyMatcher(0, 2, {PIPELINE: spec}, fingerprints={PIPELINE: MAPPING}, life="0")
    for offset, (record, append_time) in enumerate(world.log(shuffle)):
        yield matcher, list(matcher.apply(record, offset, append_time))


@OFTEN
@given(SEEDS, SEEDS, st.booleans())
def test_consistent_through_claims_nothing_that_the_target_has_not_shown(seed: int, shuffle: int, delivery: bool) -> None:
    """In any interleaving, with lost, falsified, coalesced and strange writes; looked at after every single record."""
    world = World(seed, dataclasses.replace(RAGGED, delivery=delivery, swapped=0.3, strange=0.2))
    truth = Truth(world)
    for number, (matcher, _) in enumerate(looks(world, pipeline(delivery=delivery), shuffle)):
        (status,) = matcher.status("one", 0)
        assert list(truth.lies(status)) == [], f"after record {number}"


@OFTEN
@given(SEEDS, SEEDS)
def test_trap_37_in_every_interleaving_a_suspect_waits_for_both_streams(seed: int, shuffle: int) -> None:
    """The times are taken from the control records themselves: all partitions of both feeds, none by the wall clock."""
    world = World(seed, dataclasses.replace(RAGGED, swapped=0.0))
    log = world.log(shuffle)
    times: dict[tuple[int, int], tuple[int, int]] = {}
    partitions = {0: world.shape.source_partitions, 1: world.shape.target_partitions}
    raised = 0
    for (record, _), (_, said) in zip(log, looks(world, pipeline(), shuffle), strict=True):
        for state in record.feeds if isinstance(record, Control) else ():
            watermark, caught_up = times.get((state.side, state.feed_partition), (0, 0))
            times[state.side, state.feed_partition] = max(watermark, state.watermark), max(caught_up, state.caught_up)
        target = [times.get((1, number), (0, 0))[0] for number in range(partitions[1])]
        source = [times.get((0, number), (0, 0))[1] for number in range(partitions[0])]
        for suspect in said:
            if isinstance(suspect, Suspect):
                raised += 1
                assert isinstance(record, Control), "only time makes something late"
                assert min(target) > suspect.due
                assert min(source) >= suspect.due
    assert raised >= len(world.differing)


@OFTEN
@given(SEEDS, st.integers(1, 1_000))
def test_trap_38_a_replay_years_later_raises_what_the_live_run_raised(seed: int, years: int) -> None:
    """Due times are the streams': only the append times in gapwatch.events are other ones when old topics are read again."""
    world = World(seed, RAGGED)

    def said(shift: int) -> list[str]:
        matcher = KeyMatcher(0, 2, {PIPELINE: pipeline()}, fingerprints={PIPELINE: MAPPING}, life="0")
        found: list[str] = []
        for offset, (record, append_time) in enumerate(world.log()):
            found += [one.id for one in matcher.apply(record, offset, append_time + shift) if isinstance(one, Suspect)]
        return found

    assert said(0) == said(years * 31_536_000_000)


@OFTEN
@given(SEEDS, st.lists(st.integers(0, 40), max_size=4))
def test_trap_38_restores_at_any_record_forget_no_due_time(seed: int, restarts: list[int]) -> None:
    """A window that was restored from the changelog never closed: here every due time is there again after each restore."""
    world = World(seed, RAGGED)
    matcher = KeyMatcher(0, 2, {PIPELINE: pipeline()}, fingerprints={PIPELINE: MAPPING}, life="0")
    found: set[bytes] = set()
    changelog: dict[str, bytes] = {}
    for offset, (record, append_time) in enumerate(world.log()):
        found |= {one.key for one in matcher.apply(record, offset, append_time) if isinstance(one, Suspect)}
        if offset in restarts:
            for name, value in matcher.state_records():
                if value is None:
                    changelog.pop(name, None)
                else:
                    changelog[name] = value
            matcher = KeyMatcher.restore(
                0,
                2,
                {PIPELINE: pipeline()},
                fingerprints={PIPELINE: MAPPING},
                life=str(offset),
                records=changelog,
                marker=matcher.marker(),
            )
    assert found >= world.differing
