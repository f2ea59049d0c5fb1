"""One pipeline in one partition of ``gapwatch.events``: its cells, times, names, holes, and what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from gapwatch.core.buckets import DELAY_BOUNDS_MS, Cell
from gapwatch.core.duetimes import DueTimes
from gapwatch.core.keyrules import KeyRules
from gapwatch.core.keystate import (
    UNKNOWN_MAPPING,
    Comparison,
    KeyState,
    Write,
    due_of,
    event_time_of,
    partition_of,
    times_of,
    token_of,
)
from gapwatch.core.watermarks import FeedPartition, FeedTimes, Span
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.model.stream import NO_DELIVERY, UNKNOWN_DELIVERY, Section, Side
from gapwatch.model.suspect import Counters, FeedStatus, Hole, PartitionStatus

HOLES_MAX: Final = 50  # of one pipeline in one partition; older ones are joined
MINUTE_MS: Final = 60_000
SURVEY_KEYS: Final = 20_000  # above so many open keys
SURVEY_EVERY: Final = 10  # they are counted only in every tenth status
LATEST: Final = 1 << 62


class Survey:
    """What was found when all open keys were looked at; ``low`` bounds what opened since."""

    def __init__(self) -> None:
        self.oldest = LATEST
        self.oldest_in_transit = LATEST
        self.in_transit = 0
        self.raised_in_transit = 0
        self.low = LATEST
        self.age = SURVEY_EVERY


class PipelineState:
    """Everything that one partition knows of one pipeline.

    Args:
        spec: The pipeline.
        fingerprint: Of its mapping today.
        cells: Its keys, by bucket.
        times: The partition's feeds, of all pipelines.
    """

    def __init__(self, spec: PipelineSpec, fingerprint: int, cells: list[Cell], times: FeedTimes) -> None:
        self.spec = spec
        self.id = spec.id
        self.cells = cells
        self.times = times
        tolerances = [field.tolerance for field in spec.fields if field.tolerance is not None]
        self.rules = KeyRules(Comparison(spec.match, tolerances), spec.history)
        self.due = DueTimes()
        self.fingerprint = fingerprint
        self.feeds: list[str] = []  # names that writes refer to by number
        self.mappings: list[int] = []
        self.grace = int(spec.grace_seconds * 1000)
        self.skew = 0
        self.start = 0  # the source side's first watermark: what was observed before it is the baseline's
        self.late = 0
        self.holes: list[Hole] = []
        self.moved: dict[tuple[str, int], FeedPartition] = {}  # source feed partitions whose delivery changed since the last look
        self.survey = Survey()
        self.delivery_known = spec.delivery.known
        self.confirm_again = int(spec.confirm_again_seconds * 1000)
        self.stall_after = int(spec.stall_after_seconds * 1000)
        observes = spec.target.feed.kind is not FeedKind.NONE
        self.target = (spec.id, int(Side.OBSERVED), spec.target.feed.topic) if observes else self.source

    @property
    def source(self) -> tuple[str, int, str]:
        return (self.id, int(Side.EXPECTED), self.spec.source.feed.topic)

    @property
    def hold(self) -> int:
        """Return how long after its time a write is due, in milliseconds."""
        return self.grace + self.skew

    # names

    def numbers_of(self, section: Section) -> tuple[int, int]:
        """Return the numbers that stand for a section's feed and mapping; new names get theirs in the order of the stream."""
        if section.feed not in self.feeds:
            self.feeds.append(section.feed)
        if section.mapping not in self.mappings:
            self.mappings.append(section.mapping)
        return self.feeds.index(section.feed), min(self.mappings.index(section.mapping), UNKNOWN_MAPPING)

    @property
    def names(self) -> tuple[list[str], list[int]]:
        return self.feeds, self.mappings

    def learn(self, names: Sequence[Any]) -> None:
        """Take up stored names; those of a bucket that is ahead continue the marker's."""
        feeds, mappings = names
        self.feeds = max(self.feeds, list(feeds), key=len)
        self.mappings = max(self.mappings, list(mappings), key=len)

    def comparable(self, write: Write) -> bool:
        """Whether today's mapping made the write's digests."""
        return write[2] < len(self.mappings) and self.mappings[write[2]] == self.fingerprint

    # time

    def feed_of(self, write: Write) -> FeedPartition:
        return self.times.of((self.id, int(Side.EXPECTED), self.feeds[write[3]], partition_of(write)))

    def passed(self, write: Write) -> int | None:
        """Return the clock at which the sink had passed an expected write, 0 where that does not matter; None: in transit."""
        if not self.delivery_known:
            return 0
        return self.feed_of(write).passed(token_of(write)[0], times_of(write)[0])

    # holes

    def hole(self, side: int, feed: str, number: int, span: Span, partition: int) -> Hole:
        """Return the stretch as a hole, and keep it for the status. The same stretch has the same id, whoever says it."""
        where: tuple[object, ...] = (self.id, side, feed, number, span.reason)
        if span.local:
            where += (partition, span.epoch, span.offset_from, span.offset_to)
        elif span.offset_from >= 0:
            where += (span.epoch, span.offset_from, span.offset_to)
        else:
            where += (span.time_from, span.time_to // MINUTE_MS)
        hole = Hole(
            id="hole_" + xxhash.xxh3_128_hexdigest("\0".join(map(str, where)).encode()),
            pipeline=self.id,
            side=side,
            feed=feed,
            feed_partition=number,
            time_from=span.time_from,
            time_to=span.time_to,
            reason=span.reason,
        )
        self.holes = [known for known in self.holes if known.id != hole.id] + [hole]
        if len(self.holes) > HOLES_MAX:
            first, second, *rest = sorted(self.holes, key=lambda known: known.time_to)
            joined = msgspec.structs.replace(
                second, time_from=min(first.time_from, second.time_from), time_to=max(first.time_to, second.time_to)
            )
            self.holes = [joined, *rest]
        return hole

    # what is shown

    def status(self, partition: int, partitions: int, worker: str, applied: int, now_ms: int) -> PartitionStatus:
        """Return the pipeline's status record."""
        times, survey = self.times, self._survey()
        source = times.watermark(*self.source)
        feeds = self._feed_statuses()
        total = sum(len(cell.pending) for cell in self.cells)
        raised = max(0, sum(len(cell.raised) for cell in self.cells) - survey.raised_in_transit)
        unknown = self.delivery_known and any(
            feed.delivery == UNKNOWN_DELIVERY and feed.reached > 0
            for feed in feeds
            if feed.side == Side.EXPECTED and feed.partitions
        )
        oldest = min(survey.oldest, survey.low)
        in_transit = survey.oldest_in_transit
        # What came into transit since the survey is not known one by one; it is a part of what is unsettled.
        delivered = min(source, in_transit, oldest) if survey.age and self.delivery_known else min(source, in_transit)
        return PartitionStatus(
            pipeline=self.id,
            partition=partition,
            partitions=partitions,
            worker=worker,
            input_offset=applied,
            written_at=now_ms,
            source_watermark=source,
            target_watermark=times.watermark(*self.target),
            source_caught_up=times.caught_up(*self.source),
            target_caught_up=times.caught_up(*self.target),
            delivered_through=0 if unknown else delivered,
            oldest_unsettled=oldest if total and oldest != LATEST else None,
            oldest_in_transit=in_transit if in_transit != LATEST else None,
            pending=max(0, total - raised - survey.in_transit),
            in_transit=survey.in_transit,
            raised=raised,
            counters=self.counters(),
            feeds=feeds,
            holes=[*self.holes, *(cell.hole for cell in self.cells if cell.hole is not None)],
            delays_ms=self._delays(),
            delivery_unknown=unknown,
        )

    def _feed_statuses(self) -> list[FeedStatus]:
        return [
            FeedStatus(
                side=key[1],
                feed=key[2],
                feed_partition=key[3],
                partitions=feed.partitions,
                epoch=feed.epoch,
                reached=feed.reached,
                watermark=feed.watermark,
                caught_up=feed.caught_up,
                delivery=feed.delivery if key[1] == Side.EXPECTED else NO_DELIVERY,
            )
            for side in Side
            for key, feed in self.times.side(self.id, side)
        ]

    def counters(self) -> Counters:
        """Return the sums over all buckets, and of what is counted by feed."""
        total = Counters()
        for cell in self.cells:
            for name in Counters.__struct_fields__:
                value = getattr(cell.counters, name)
                if isinstance(value, dict):
                    into: dict[str, int] = getattr(total, name)
                    for label, count in value.items():
                        into[label] = into.get(label, 0) + count
                else:
                    setattr(total, name, getattr(total, name) + value)
        total.late += self.late
        total.repeated += sum(feed.repeated for side in Side for _, feed in self.times.side(self.id, side))
        return total

    def _delays(self) -> list[tuple[int, int]]:
        sums = [sum(column) for column in zip(*(cell.delays for cell in self.cells), strict=True)]
        found = [(bound, count) for bound, count in zip((*DELAY_BOUNDS_MS, -1), sums, strict=True) if count]
        return sorted(found)

    def open_writes(self) -> int:
        """Return how many expected writes are in no class yet: pending, in transit or raised."""
        return sum(len(held.writes) if isinstance(held, KeyState) else 1 for cell in self.cells for held in cell.pending.values())

    def _survey(self) -> Survey:
        """Look at all open keys; where there are very many, only now and then: an old bound holds time back, no more."""
        survey = self.survey
        survey.age += 1
        if survey.age < SURVEY_EVERY and sum(len(cell.pending) for cell in self.cells) > SURVEY_KEYS:
            return survey
        survey = self.survey = Survey()
        survey.age = 0
        positions: dict[bytes, tuple[int, int]] = {}
        for cell in self.cells:
            for held in cell.pending.values():
                self._look_at(survey, held, positions)
        return survey

    def _look_at(self, survey: Survey, held: bytes | KeyState, positions: dict[bytes, tuple[int, int]]) -> None:
        if isinstance(held, KeyState):
            if not held.writes and held.expected is None and (not self.start or held.oldest_time < self.start):
                return  # the baseline's
            opening, raised, expected = held.opening, bool(held.raised), bool(held.writes)
            event_time = event_time_of(opening)
            if held.floor:
                event_time = min(event_time, max(held.floor, self.start))  # what was before the start is the baseline's
        else:
            opening, raised, expected = held, False, True
            event_time = event_time_of(held)
        if event_time < survey.oldest:
            survey.oldest = event_time
        if not expected or not self.delivery_known:
            return
        writes = held.writes if isinstance(held, KeyState) else (held,)
        if not self._is_in_transit(writes[-1], positions):
            return  # then no older one is
        if self._is_in_transit(opening, positions):
            survey.in_transit += 1
            survey.raised_in_transit += raised
        oldest = next(write for write in writes if self._is_in_transit(write, positions))
        survey.oldest_in_transit = min(survey.oldest_in_transit, event_time_of(oldest))

    def _is_in_transit(self, write: Write, positions: dict[bytes, tuple[int, int]]) -> bool:
        """Whether the sink has not reached it. ``positions`` keeps what was found by feed partition."""
        where = write[3:4] + write[6:8]
        known = positions.get(where)
        if known is None:
            feed = self.feed_of(write)
            known = positions[where] = (LATEST if feed.delivery == NO_DELIVERY else feed.position, feed.gone_below)
        return times_of(write)[0] >= known[0] and token_of(write)[0] >= known[1]

    # state

    def pack(self) -> dict[str, Any]:
        """Return what the commit marker holds of the pipeline."""
        return {
            "grace": self.grace,
            "skew": self.skew,
            "start": self.start,
            "late": self.late,
            "holes": self.holes,
            "names": self.names,
        }

    def unpack(self, packed: Mapping[str, Any]) -> None:
        self.grace, self.skew, self.start, self.late = packed["grace"], packed["skew"], packed["start"], packed["late"]
        self.holes = msgspec.convert(packed["holes"], list[Hole])
        self.learn(packed["names"])

    def schedule_all(self, cells: Sequence[Cell]) -> None:
        """Queue every open key of some cells, after a restore or to leave stale entries behind."""
        for cell in cells:
            for key, held in cell.pending.items():
                if isinstance(held, KeyState):
                    if held.raised:
                        self.due.raise_again(key, held.raised + self.confirm_again)
                        continue
                    self.due.add(key, held.due)
                else:
                    self.due.add(key, due_of(held))
