"""Matching and confirming as one: suspects are judged by reading both stores of a world at that moment, verdicts come back.

No false red: a gap is opened only where the target will never show the judged state. No false green: in the end every
difference is a gap, and at no look does consistent-through claim what the target had not shown by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.batches import NO_VERSION
from gapwatch.core.confirm import (
    Cleared,
    Difference,
    Presence,
    Progress,
    Reading,
    Reads,
    Superseded,
    WaitAndReadAgain,
    judge,
    satisfied,
)
from gapwatch.core.keys import partition_of
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.gap import Kind
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import FORMAT, Batch, Control, Operation, Outcome, Section, Side, VerdictSection
from gapwatch.model.suspect import PartitionStatus, Said, Suspect
from tests.property.test_consistent_through import claim, explains
from tests.property.test_matching import OFTEN, RAGGED, SEEDS, conserved
from tests.simulation.world import GRACE_MS, MAPPING, PIPELINE, START, Raw, World, digest, pipeline


@dataclass
class Case:
    suspect: Suspect
    progress: Progress = field(default_factory=Progress)
    not_before: int = 0
    waits_for: int = 0


class Stores:
    """Both stores of a world, at any time."""

    def __init__(self, world: World) -> None:
        self.logs: dict[Side, dict[bytes, list[Raw]]] = {Side.EXPECTED: {}, Side.OBSERVED: {}}
        self.partitions: dict[tuple[Side, bytes], int] = {}
        for (side, number), feed in world.feeds.items():
            for raw in feed.records:
                self.partitions[side, raw.key] = number
                if not raw.again and partition_of(raw.key, world.shape.partitions) == 0:
                    self.logs[side].setdefault(raw.key, []).append(raw)

    @property
    def keys(self) -> set[bytes]:
        return {*self.logs[Side.EXPECTED], *self.logs[Side.OBSERVED]}

    def upto(self, side: Side, key: bytes, time: int) -> list[Raw]:
        return [raw for raw in self.logs[side].get(key, ()) if raw.event_time <= time]

    def read(self, side: Side, key: bytes, time: int) -> Reading:
        log = self.upto(side, key, time)
        if not log or log[-1].operation == Operation.DELETE:
            return Reading(presence=Presence.ABSENT)
        identity = digest(log[-1].value % (1 << 64))
        return Reading(presence=Presence.PRESENT, identity=identity, revision=f"{side}/{log[-1].major}", version=log[-1].value)

    def reads(self, key: bytes, time: int) -> Reads:
        source, target = self.read(Side.EXPECTED, key, time), self.read(Side.OBSERVED, key, time)
        both = source.presence is target.presence is Presence.PRESENT
        differing = ("v",) if both and source.identity != target.identity else ()
        return Reads(
            before=source, target=target, after=source, differing=differing, started_ms=time, proven_ms=time, ended_ms=time
        )

    def lies(self, through: int, time: int, status: PartitionStatus) -> Iterator[str]:
        """Say which writes before `through` the target has not shown by `time`, and what nothing explains of what was read."""
        reached = {feed.feed_partition: feed.reached for feed in status.feeds if feed.side == Side.OBSERVED}
        for key in self.keys:
            versions = self.logs[Side.EXPECTED].get(key, [])
            part = reached.get(self.partitions.get((Side.OBSERVED, key), 0), 0)
            shown = [raw for raw in self.logs[Side.OBSERVED].get(key, ()) if raw.event_time <= time or raw.offset < part]
            due = [raw for raw in versions if raw.event_time < through]
            later = versions[len(due) - 1 :] if due else []
            until = shown[0].event_time if shown else time  # there was no document before
            absent = any(version.operation == Operation.DELETE and version.event_time < until for version in later)
            if due and not absent and not any(agree(version, raw) for version in later for raw in shown):
                yield f"{key!r}: nothing was shown of the write at {due[-1].event_time - START}"
            read = [raw for raw in shown if raw.offset < part]
            moved = not read or read[-1] is not shown[-1]  # what the target shows now is not read yet
            stranger = None if moved or any(agree(version, read[-1]) for version in versions) else read[-1]
            if stranger is not None and stranger.event_time < through and not self._gone(versions, stranger, time):
                yield f"{key!r}: nothing explains what is shown since {stranger.event_time - START}"

    def _gone(self, versions: list[Raw], stranger: Raw, time: int) -> bool:
        """Whether it shows no document, and the source has none either: whoever deleted it."""
        now = [raw for raw in versions if raw.event_time <= time]
        return stranger.operation == Operation.DELETE and (not now or now[-1].operation == Operation.DELETE)


def agree(version: Raw, shown: Raw) -> bool:
    """By content: a write that the stream only calls "changed" has its content in the store all the same."""
    plain = version._replace(operation=int(Operation.UPSERT)) if version.operation == Operation.TOUCHED else version
    return explains(plain, shown)


def _versioned(section: Section, values: Mapping[bytes, int]) -> Section:
    """Return the section with a version column: a world's values rise with every write of the source."""
    versions = [values[content] if content else NO_VERSION for content in section.digests]
    return msgspec.structs.replace(section, versions=versions)


def _times(record: Batch | Control) -> list[int]:
    """Return times that have passed when the record is read."""
    if isinstance(record, Control):
        return [record.clock]
    return [0, *(time for section in record.sections for time in section.append_times)]


class Loop:
    def __init__(self, world: World, *, delivery: bool, restarts: frozenset[int] = frozenset(), **limits: Any) -> None:
        self.world, self.stores = world, Stores(world)
        self.spec = pipeline(delivery=delivery, confirm_again_seconds=3_600.0, **limits)
        self.restarts = restarts
        self._changelog: dict[str, bytes] = {}
        self.matcher = KeyMatcher(0, 2, {PIPELINE: self.spec}, fingerprints={PIPELINE: MAPPING}, life="0")
        self.cases: dict[bytes, Case] = {}
        self.gaps: dict[bytes, int] = {}  # open gaps, with the time from which each holds consistent-through
        self.ever: set[bytes] = set()
        self.clock = START
        self._offset = 0
        self._append = START

    def run(self, shuffle: int) -> Iterator[PartitionStatus]:
        """Apply the log, and after each record read what is due; yield the status after every step."""
        raws = [raw for logs in self.stores.logs.values() for log in logs.values() for raw in log]
        values = {digest(raw.value % (1 << 64)): raw.value for raw in raws}
        for record, append_time in self.world.log(shuffle):
            if self.spec.match is Match.VERSION and isinstance(record, Batch):
                record = Batch(FORMAT, [_versioned(section, values) for section in record.sections], record.verdicts)
            self._apply(record, append_time)
            self.clock = max(self.clock, *_times(record))
            yield from self._confirm()
        for _ in range(30):
            self.clock += GRACE_MS
            self._apply(self.world.control(self.clock), append_time)  # time goes on, nothing else
            yield from self._confirm()

    def _apply(self, record: Batch | Control, append_time: int) -> None:
        self._append = max(self._append, append_time)
        found = list(self.matcher.apply(record, self._offset, self._append))
        if self._offset in self.restarts:
            found += self._restart()
        for said in found:
            if isinstance(said, Suspect):
                case = self.cases.setdefault(said.key, Case(said))
                case.suspect = said
        self._offset += 1

    def _restart(self) -> Sequence[Said]:
        """Another worker takes over, and another confirmer: what was under judgement is forgotten, and raised again."""
        for name, value in self.matcher.state_records():
            if value is None:
                self._changelog.pop(name, None)
            else:
                self._changelog[name] = value
        self.matcher = KeyMatcher.restore(
            0,
            2,
            {PIPELINE: self.spec},
            fingerprints={PIPELINE: MAPPING},
            life=str(self._offset),
            records=self._changelog,
            marker=self.matcher.marker(),
        )
        self.cases.clear()
        return self.matcher.advance()

    def _confirm(self) -> Iterator[PartitionStatus]:
        for key in [key for key in self.gaps if satisfied(self.stores.reads(key, self.clock), self.spec.match)]:
            del self.gaps[key]  # the re-reading of open gaps
        (status,) = self.matcher.status("one", 0)
        yield status
        for key, case in list(self.cases.items()):
            passed = not self.spec.delivery.known or status.delivered_through > case.waits_for
            if case.not_before <= self.clock and (not case.waits_for or passed):
                self._judge(key, case)
                (status,) = self.matcher.status("one", 0)
                yield status

    def _judge(self, key: bytes, case: Case) -> None:
        reads = self.stores.reads(key, self.clock)
        said = judge(case.suspect, reads, case.progress, self.spec.match, proven_by_wait=case.waits_for > 0)
        if isinstance(said, WaitAndReadAgain):
            case.progress, case.waits_for = said.progress, said.since_ms
            case.not_before = said.since_ms + GRACE_MS
            return
        del self.cases[key]
        if isinstance(said, Difference):
            if said.kind is not Kind.AHEAD:  # no lag explains a version that the source has not made, whatever comes after it
                self._no_false_red(key)
            opening = case.suspect.opening
            self.gaps[key] = min(self.gaps.get(key, opening.event_time), case.suspect.since or opening.event_time)
            self.ever.add(key)
        outcome = {Difference: Outcome.GAP, Cleared: Outcome.CLEARED, Superseded: Outcome.SUPERSEDED}[type(said)]
        opening = case.suspect.opening
        token = (opening.epoch, opening.major, opening.minor)
        verdict = VerdictSection(PIPELINE, [key], bytes([opening.side]), [token], bytes([outcome]))
        self._apply(Batch(FORMAT, [], [verdict]), self._append)

    def _no_false_red(self, key: bytes) -> None:
        source = self.stores.upto(Side.EXPECTED, key, self.clock)
        yet_to_come = [raw for raw in self.stores.logs[Side.OBSERVED].get(key, ()) if raw.event_time > self.clock]
        if source:
            assert not any(agree(source[-1], raw) for raw in yet_to_come), f"{key!r} was on its way"


@OFTEN
@given(
    SEEDS,
    SEEDS,
    st.booleans(),
    st.integers(50, 1_500),
    st.integers(2, 64),
    st.integers(1, 10),
    st.frozensets(st.integers(0, 150), max_size=4),
    st.sampled_from([Match.DIGEST, Match.VERSION]),
)
def test_invariants_1_and_2_suspects_that_are_judged_by_reading_end_as_the_truth(
    seed: int, shuffle: int, delivery: bool, lag: int, history: int, settled: int, restarts: frozenset[int], match: Match
) -> None:
    """With versions and settled keys that are forgotten, and with workers and confirmers that are replaced."""
    shape = dataclasses.replace(RAGGED, delivery=delivery, swapped=0.3, strange=0.15, lag=lag * 10 if delivery else lag)
    world = World(seed, shape)
    loop = Loop(world, delivery=delivery, restarts=restarts, history=history, settled_keys_max=settled * 8, match=match)
    for status in loop.run(shuffle):
        through = min([claim(status), *loop.gaps.values()])
        if match is Match.DIGEST:  # by version, whatever is newer shows what is older: the end alone can tell
            assert list(loop.stores.lies(through, loop.clock, status)) == []
        assert conserved(loop.matcher, status)
    differing = {key for key in loop.stores.keys if not satisfied(loop.stores.reads(key, loop.clock), match)}
    assert set(loop.gaps) == differing
    assert loop.cases == {}
    assert status.raised == status.pending == status.in_transit == 0
