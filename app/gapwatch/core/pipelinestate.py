"""One pipeline in one partition of ``gapwatch.events``: its keys, times, names, holes, and what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from gapwatch.core.cells import DELAY_BOUNDS_MS, Cell
from gapwatch.core.coverage import LastHour, closed_of
from gapwatch.core.duetimes import DueTimes
from gapwatch.core.holes import bounded
from gapwatch.core.keyrules import KeyRules
from gapwatch.core.keystate import (
    UNKNOWN_MAPPING,
    Comparison,
    Held,
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
from gapwatch.model.stream import NO_DELIVERY, UNKNOWN_DELIVERY, PackedSection, Side
from gapwatch.model.suspect import Closed, Counters, FeedStatus, GivenUp, Hole, PartitionStatus

STATE_FORMAT: Final = 6  # of what is stored of a partition
# 3: keys that the target alone has shown were in the long form. 4: no key had ids of the target. 5: keys that were updated were
# in the long form. Others are not read.
READABLE_FORMATS: Final = (3, 4, 5, 6)
HOLES_MAX: Final = 50  # of one pipeline in one partition; beyond, old ones are joined
MINUTE_MS: Final = 60_000
SURVEY_KEYS: Final = 20_000  # above so many open keys
SURVEY_EVERY: Final = 10  # they are counted only in every tenth status
LATEST: Final = 1 << 62
STALE_ENTRIES_MAX: Final = 100_000  # due times of settled keys, beside twice the open keys, before they are swept out


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
        cell: Its keys.
        times: The partition's feeds, of all pipelines.
    """

    def __init__(self, spec: PipelineSpec, fingerprint: int, cell: Cell, times: FeedTimes) -> None:
        self.spec = spec
        self.id = spec.id
        self.cell = cell
        self.times = times
        tolerances = [field.tolerance for field in spec.fields if field.tolerance is not None]
        self.rules = KeyRules(Comparison(spec.match, tolerances), spec.history, tables=len(spec.source.feeds))
        self.due = DueTimes()
        self.fingerprint = fingerprint
        self.feeds: list[str] = []  # names that writes refer to by number
        self.mappings: list[int] = []
        self.grace = int(spec.grace_seconds * 1000)
        self.skew = 0
        self.start = 0  # the source side's first watermark: what was observed before it is the baseline's
        self.late = 0
        self.hour = LastHour()
        self.holes: list[Hole] = []
        self.early: dict[bytes, GivenUp] = {}  # what the sink said of writes that the source's feed did not show yet
        self.moved: dict[tuple[str, int], FeedPartition] = {}  # source feed partitions whose delivery changed since the last look
        self.survey = Survey()
        self.delivery_known = spec.delivery.known
        self.confirm_again = int(spec.confirm_again_seconds * 1000)
        self.stall_after = int(spec.stall_after_seconds * 1000)
        observes = spec.target.feed.kind is not FeedKind.NONE
        self.source = (spec.id, int(Side.EXPECTED), tuple(feed.topic for feed in spec.source.feeds))
        self.target = (spec.id, int(Side.OBSERVED), (spec.target.feed.topic,)) if observes else self.source

    @property
    def hold(self) -> int:
        """Return how long after its time a write is due, in milliseconds."""
        return self.grace + self.skew

    # names

    def numbers_of(self, section: PackedSection) -> tuple[int, int]:
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
        """Take up stored names."""
        feeds, mappings = names
        self.feeds, self.mappings = list(feeds), list(mappings)

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
        self.holes = bounded(self.holes, HOLES_MAX)
        return hole

    # what is shown

    def status(self, partition: int, partitions: int, worker: str, applied: int, now_ms: int) -> PartitionStatus:
        """Return the pipeline's status record."""
        times, survey = self.times, self._survey()
        source = times.watermark(*self.source)
        feeds = self._feed_statuses()
        total = self.cell.rows.open
        raised = max(0, len(self.cell.raised) - survey.raised_in_transit)
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
            holes=[*self.holes, *([self.cell.hole] if self.cell.hole is not None else [])],
            delays_ms=self._delays(),
            delivery_unknown=unknown,
            last_hour=self.hour.closed(self.closed()),
            state_format=STATE_FORMAT,
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
            for side, (_, _, topics) in ((Side.EXPECTED, self.source), (Side.OBSERVED, self.target))
            for key, feed in self.times.side(self.id, side)
            if (key[2] in topics or not any(topics)) and not feed.is_gone
        ]

    def counters(self) -> Counters:
        """Return what was counted of keys and of feeds."""
        known = self.cell.counters
        repeated = sum(feed.repeated for side in Side for _, feed in self.times.side(self.id, side))
        return msgspec.structs.replace(
            known,
            late=known.late + self.late,
            repeated=known.repeated + repeated,
            unverifiable=dict(known.unverifiable),
            snapshot_reads=dict(known.snapshot_reads),
        )

    def closed(self) -> Closed:
        """Return how many expected writes are closed, since the state began."""
        return closed_of(self.cell.counters)

    def _delays(self) -> list[tuple[int, int]]:
        return sorted((bound, count) for bound, count in zip((*DELAY_BOUNDS_MS, -1), self.cell.delays, strict=True) if count)

    def open_writes(self) -> int:
        """Return how many expected writes are in no class yet: pending, in transit or raised."""
        rows = self.cell.rows
        long = sum(len(held.writes) if isinstance(held, KeyState) else 1 for _, held in rows.open_long())
        return len(rows.open_rows()) + long

    def waiting(self, time_from: int, time_to: int) -> int:
        """Return how many keys have an open write with an event time in ``[time_from, time_to)``."""
        rows = self.cell.rows
        times = rows.event_times(rows.open_rows())
        short = int(np.count_nonzero((times >= time_from) & (times < time_to)))
        alone = self._alone_times()
        short += int(np.count_nonzero((alone >= time_from) & (alone < time_to)))
        return short + sum(self._is_open_within(held, time_from, time_to) for _, held in rows.open_long())

    def _alone_times(self) -> npt.NDArray[np.int64]:
        """Return the event times of the keys with one observed write, of which nothing is expected; not the baseline's."""
        rows = self.cell.rows
        times = rows.event_times(rows.alone_rows())
        return times[times >= self.start] if self.start else times[:0]

    def _is_open_within(self, held: Held, time_from: int, time_to: int) -> bool:
        if not isinstance(held, KeyState):
            return time_from <= event_time_of(held) < time_to
        if self._is_left_to_the_baseline(held):
            return False
        return any(time_from <= event_time_of(write) < time_to for write in (*held.writes, held.opening))

    def _is_left_to_the_baseline(self, held: KeyState) -> bool:
        return not held.writes and held.expected is None and (not self.start or held.oldest_time < self.start)

    def shown_at(self, key: bytes) -> int | None:
        """Return the event time of the target's newest write of a key, where it shows what was expected last; else None."""
        state = self.cell.state(key)
        if state.open or state.expected is None or state.observed is None:
            return None
        if state.ids is not None and len(state.ids.live) > 1:
            return None  # a duplicate that was judged
        return event_time_of(state.observed) if self.rules.comparison.satisfies(state.expected, state.observed) else None

    def _survey(self) -> Survey:
        """Look at all open keys; where there are very many, only now and then: an old bound holds time back, no more."""
        survey = self.survey
        survey.age += 1
        if survey.age < SURVEY_EVERY and self.cell.rows.open > SURVEY_KEYS:
            return survey
        survey = self.survey = Survey()
        survey.age = 0
        if not self.cell.rows.open:  # as nearly always where nobody writes: then looking is most of what a status costs
            return survey
        self._look_at_rows(survey)
        for _, held in self.cell.rows.open_long():
            self._look_at(survey, held)
        return survey

    def _look_at_rows(self, survey: Survey) -> None:
        rows = self.cell.rows
        survey.oldest = int(self._alone_times().min(initial=LATEST))
        found = rows.open_rows()
        if not len(found):
            return
        times = rows.event_times(found)
        survey.oldest = min(survey.oldest, int(times.min()))
        if not self.delivery_known:
            return
        writes = rows.writes.take(found)
        for key, feed in self.times.side(self.id, Side.EXPECTED):
            if feed.delivery == NO_DELIVERY or key[2] not in self.feeds:
                continue
            here = (writes["feed"] == self.feeds.index(key[2])) & (writes["number"] == key[3])
            here &= (writes["offset"] >= feed.position) & (writes["epoch"] >= feed.gone_below)
            count = int(np.count_nonzero(here))
            if count:
                survey.in_transit += count
                survey.oldest_in_transit = min(survey.oldest_in_transit, int(times[here].min()))

    def _look_at(self, survey: Survey, held: Held) -> None:
        if isinstance(held, KeyState):
            if self._is_left_to_the_baseline(held):
                return
            opening, raised, expected = (held.writes or (held.opening,))[0], bool(held.raised), bool(held.writes)
            time = held.unsettled_time
            if held.floor:
                time = min(time, max(held.floor, self.start))  # what was before the start is the baseline's
        else:
            opening, raised, expected = held, False, True
            time = event_time_of(held)
        survey.oldest = min(survey.oldest, time)
        if not expected or not self.delivery_known:
            return
        writes = held.writes if isinstance(held, KeyState) else (held,)
        if not self._is_in_transit(writes[-1]):
            return  # then no older one is
        if self._is_in_transit(opening):
            survey.in_transit += 1
            survey.raised_in_transit += raised
        oldest = next(write for write in writes if self._is_in_transit(write))
        survey.oldest_in_transit = min(survey.oldest_in_transit, event_time_of(oldest))

    def _is_in_transit(self, write: Write) -> bool:
        """Whether the sink has not reached it."""
        feed = self.feed_of(write)
        position = LATEST if feed.delivery == NO_DELIVERY else feed.position
        return times_of(write)[0] >= position and token_of(write)[0] >= feed.gone_below

    # state

    def pack(self) -> dict[str, Any]:
        """Return what the commit marker holds of the pipeline."""
        return {
            "grace": self.grace,
            "skew": self.skew,
            "start": self.start,
            "late": self.late,
            "hour": self.hour.pack(),
            "holes": self.holes,
            "early": list(self.early.items()),
            "names": self.names,
            "keys": self.cell.pack(),
        }

    def unpack(self, packed: Mapping[str, Any], records: Mapping[str, bytes]) -> None:
        self.grace, self.skew, self.start, self.late = packed["grace"], packed["skew"], packed["start"], packed["late"]
        self.holes = msgspec.convert(packed["holes"], list[Hole])
        self.hour.unpack(packed.get("hour", []))  # a version that did not count by the hour left none
        self.early = {key: msgspec.convert(given_up, GivenUp) for key, given_up in packed.get("early", ())}
        self.learn(packed["names"])
        self.cell.unpack(packed["keys"], records)
        self.schedule_long()

    def schedule_long(self) -> None:
        """Queue every open key that has a long form: the rows know their own due times."""
        for key, held in self.cell.rows.open_long():
            if isinstance(held, KeyState) and held.raised:
                self.due.raise_again(key, held.raised + self.confirm_again)
            else:
                self.due.add(key, held.due if isinstance(held, KeyState) else due_of(held))

    def leave_stale_behind(self) -> None:
        """Queue everything anew when most of what is queued belongs to keys that are settled."""
        if self.due.entries > STALE_ENTRIES_MAX and self.due.entries > 2 * self.cell.rows.open:
            self.due.clear()
            self.cell.rows.count()
            self.schedule_long()
