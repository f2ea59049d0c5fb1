"""A matcher of one partition and two feeds of one partition each, told one write at a time: for stories of a single key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gapwatch.core.batches import NO_VERSION
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Lost,
    Operation,
    Outcome,
    PipelineTimes,
    Section,
    Side,
    VerdictSection,
)
from gapwatch.model.suspect import Hole, PartitionStatus, Said, Suspect
from tests.simulation.world import GRACE_MS, MAPPING, PIPELINE, START, TOPICS, digest, pipeline

KEY = b"key-42"
PLAIN = (Operation.UPSERT, Operation.SNAPSHOT, Operation.LOOKED_UP)


class Bench:
    """Times are milliseconds after START. ``said``: everything the matcher said, oldest first."""

    def __init__(self, spec: PipelineSpec | None = None) -> None:
        self.spec = spec or pipeline()
        self.lives = 0
        self.matcher = KeyMatcher(0, 1, {PIPELINE: self.spec}, fingerprints={PIPELINE: MAPPING}, life="0")
        self.said: list[Said] = []
        self.delivery = NO_DELIVERY
        self._next = {Side.EXPECTED: 0, Side.OBSERVED: 0}
        self._sent = {Side.EXPECTED: 0, Side.OBSERVED: 0}
        self._changelog: dict[str, bytes] = {}
        self._append = START
        self._offset = 0
        self.streams(0)

    # what happens

    def expect(self, value: int | None, at: int, **more: Any) -> list[Said]:
        """The source writes `value` (None: deletes) at `at`."""
        return self._write(Side.EXPECTED, value, at, **more)

    def observe(self, value: int | None, at: int, **more: Any) -> list[Said]:
        return self._write(Side.OBSERVED, value, at, **more)

    def _write(self, side: Side, value: int | None, at: int, **more: Any) -> list[Said]:
        return self.apply(Batch(FORMAT, [self.section(side, value, at, **more)], []))

    def section(
        self,
        side: Side,
        value: int | None,
        at: int,
        *,
        key: bytes = KEY,
        operation: Operation = Operation.UPSERT,
        place: int | None = None,
        minor: int = 0,
        masks: Sequence[int | None] | None = None,
        version: int | None = None,
        offset: int | None = None,
        target_id: bytes | None = None,
    ) -> Section:
        """Return the section of one event; ``place`` is its order (its raw offset unless said), ``offset`` a repeated one's."""
        if offset is None:
            offset = self._next[side]
            self._next[side] += 1
        operation = Operation.DELETE if value is None and operation is Operation.UPSERT else operation
        content = operation in PLAIN and value is not None
        return Section(
            pipeline=PIPELINE,
            side=int(side),
            feed=TOPICS[side],
            feed_partition=0,
            epoch=1,
            mapping=MAPPING,
            offset_from=offset,
            offset_to=offset + 1,
            keys=[key],
            operations=bytes([operation]),
            offsets=[offset],
            majors=[offset if place is None else place],
            minors=[minor],
            event_times=[START + at],
            append_times=[START + at],
            digests=[digest(value) if content and value is not None else b""],
            masks=None if masks is None else [tuple(b"" if mask is None else digest(mask) for mask in masks)],
            versions=None if version is None else [NO_VERSION if version < 0 else version],
            target_ids=None if target_id is None else [target_id],
        )

    def streams(self, to: int, *, source: int | None = None, target: int | None = None, lost: Sequence[Lost] = ()) -> Any:
        """Both feeds are read up to `to` (or as said); return what the matcher says to that."""
        states = [
            self.state(Side.EXPECTED, to if source is None else source, lost=lost),
            self.state(Side.OBSERVED, to if target is None else target),
        ]
        return self.apply(Control(FORMAT, "one", START + to, states, [PipelineTimes(PIPELINE, 0, GRACE_MS)]))

    def pass_over(self, side: Side, count: int) -> None:
        """The next `count` raw offsets of a feed hold nothing that anybody sends."""
        self._next[side] += count

    def state(self, side: Side, to: int, *, lost: Sequence[Lost] = ()) -> FeedState:
        known = side is Side.EXPECTED and self.delivery != NO_DELIVERY
        sent, self._sent[side] = self._sent[side], self._next[side]
        return FeedState(
            pipeline=PIPELINE,
            side=int(side),
            feed=TOPICS[side],
            feed_partition=0,
            partitions=1,
            epoch=1,
            offset_from=sent,
            offset_to=self._next[side],
            watermark=START + to,
            caught_up=START + to,
            delivery=self.delivery if known else NO_DELIVERY,
            delivery_clock=START + to if known else 0,
            lost=list(lost),
        )

    def verdict(self, suspect: Suspect, outcome: Outcome) -> None:
        opening = suspect.opening
        token = (opening.epoch, opening.major, opening.minor)
        section = VerdictSection(PIPELINE, [suspect.key], bytes([opening.side]), [token], bytes([outcome]))
        self.apply(Batch(FORMAT, [], [section]))

    def apply(self, record: Batch | Control | None, *, skip: int = 0) -> list[Said]:
        self._append += 10
        self._offset += skip
        said = self.matcher.apply(record, self._offset, self._append)
        self._offset += 1
        self.said += said
        return said

    def restart(self) -> list[Said]:
        """A worker takes over from a complete checkpoint; return what it raises again."""
        self.lives += 1
        for name, payload in self.matcher.state_records():
            if payload is None:
                self._changelog.pop(name, None)
            else:
                self._changelog[name] = payload
        self.matcher = KeyMatcher.restore(
            0,
            1,
            {PIPELINE: self.spec},
            fingerprints={PIPELINE: MAPPING},
            records=self._changelog,
            marker=self.matcher.marker(),
            life=str(self.lives),
        )
        return self.matcher.advance()

    # what is known

    @property
    def status(self) -> PartitionStatus:
        (status,) = self.matcher.status("one", START)
        return status

    @property
    def unsettled(self) -> int | None:
        """Return from when on something is unsettled, after START."""
        oldest = self.status.oldest_unsettled
        return None if oldest is None else oldest - START

    @property
    def suspects(self) -> list[Suspect]:
        return [one for one in self.said if isinstance(one, Suspect)]

    @property
    def holes(self) -> list[Hole]:
        """Return the holes that were said, but for those of the first start."""
        return [one for one in self.said if isinstance(one, Hole) and one.time_from]


def only(said: Sequence[Said]) -> Suspect:
    (one,) = said
    assert isinstance(one, Suspect)
    return one
