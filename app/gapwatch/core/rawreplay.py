"""Raw topics read again: an order that depends on the logs alone, and what an ingester would have said of them in that order.

Pure. Records of all partitions are put into slots of time by the highest append time that their own partition has shown so far. A
slot is taken once every partition has passed it or ended; inside it the order is (topic, partition, offset). After a slot the
times are said that it proves: by then every log was read up to the slot's end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gapwatch.core.batches import SectionBuilder
from gapwatch.core.envelopes import Marker, RawRecord, Refused, Truncate, heartbeat_row
from gapwatch.core.envelopes.columns import Columns as EventsRead
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.records import Message
from gapwatch.core.feeds import Check, FeedProgress, HeartbeatRows
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import FORMAT, NO_DELIVERY, Batch, Control, PipelineTimes, Section, Side

Place = tuple[str, int]  # topic, partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What was appended up to ``end`` (ms) and had not been taken yet, in order."""

    end: int
    runs: Mapping[Place, Sequence[Message]]


@dataclass(slots=True)
class _Log:
    newest: int = 0  # highest append time so far
    ended: bool = False
    held: int = 0
    slots: deque[tuple[int, list[Message]]] = field(default_factory=deque)

    def add(self, message: Message, slot_ms: int) -> None:
        self.newest = max(self.newest, message.timestamp()[1])
        number = self.newest // slot_ms
        if not self.slots or self.slots[-1][0] != number:
            self.slots.append((number, []))
        self.slots[-1][1].append(message)
        self.held += 1

    def take(self) -> list[Message]:
        _, messages = self.slots.popleft()
        self.held -= len(messages)
        return messages


class Slots:
    """Merges partitions into slots.

    Args:
        places: All partitions that will be read.
        slot_ms: Length of a slot.
    """

    def __init__(self, places: Sequence[Place], slot_ms: int) -> None:
        self._slot_ms = slot_ms
        self._logs = {place: _Log() for place in sorted(places)}

    def offer(self, place: Place, messages: Sequence[Message]) -> None:
        """Hand over the next messages of a partition, in offset order."""
        log = self._logs[place]
        for message in messages:
            log.add(message, self._slot_ms)

    def end(self, place: Place) -> None:
        """Say that nothing more will come of a partition."""
        self._logs[place].ended = True

    def wanting(self) -> set[Place]:
        """Return the partitions that have to be read on before a slot can be taken."""
        number = self._next()
        return {place for place, log in self._logs.items() if not log.ended and not _has_passed(log, number)}

    def full(self, records: int) -> set[Place]:
        """Return the partitions that need not be read on, and of which more than so many records wait."""
        return {place for place, log in self._logs.items() if log.held > records} - self.wanting()

    def take(self) -> Slot | None:
        """Return the next slot; None while a partition is wanting, or when all is taken."""
        number = self._next()
        if number is None or self.wanting():
            return None
        runs = {place: log.take() for place, log in self._logs.items() if log.slots and log.slots[0][0] == number}
        return Slot(end=(number + 1) * self._slot_ms, runs=runs)

    def _next(self) -> int | None:
        return min((log.slots[0][0] for log in self._logs.values() if log.slots), default=None)


def _has_passed(log: _Log, number: int | None) -> bool:
    return bool(log.slots) and log.slots[-1][0] != number


class Columns(Protocol):
    """Reads whole batches (:class:`~gapwatch.core.envelopes.BatchDecoder`)."""

    shape: Shape

    def decode(self, messages: Sequence[Message]) -> EventsRead: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFeed:
    """One topic of one side. ``starts``: from where its partitions are read. ``by_markers``: as :class:`FeedProgress`.

    ``by_append``: its records have no time but that of their append; what was appended up to a time was written by then.
    """

    side: Side
    topic: str
    decoder: Columns
    starts: Mapping[int, int]
    by_markers: bool = False
    by_append: bool = False
    compacted: bool = False


def time_of_loss(item: Truncate | Refused) -> int:
    """Return the time (ms) that stands for what nobody can judge: an unread record has that of its append alone."""
    return item.record.timestamp if isinstance(item, Refused) else item.event_time


class RawReader:
    """Plays the ingester for one pipeline: slots come in, records as those of ``gapwatch.events`` come out.

    Args:
        spec: The pipeline.
        fingerprint: Of its mapping.
        feeds: What is read.
        heartbeats: The topic of the source's heartbeat rows, or "".
    """

    def __init__(self, spec: PipelineSpec, fingerprint: int, feeds: Sequence[RawFeed], heartbeats: str = "") -> None:
        self.spec = spec
        self._fingerprint = fingerprint
        self._heartbeats = heartbeats
        disorder = int(spec.disorder_seconds * 1000)
        self._rows = HeartbeatRows(int(spec.settle_seconds * 1000), disorder)
        self._feeds = {feed.topic: feed for feed in feeds}
        self._progress = {
            (feed.topic, number): FeedProgress(
                topic=feed.topic,
                partition=number,
                partitions=len(feed.starts),
                epoch=1,
                position=start,
                sent=start,
                disorder_ms=disorder,
                by_markers=feed.by_markers,
                compacted=feed.compacted,
            )
            for feed in feeds
            for number, start in sorted(feed.starts.items())
        }

    def read(self, slot: Slot) -> list[Batch | Control]:
        """Return what follows from a slot: its events, then the times that are proven now."""
        sections: list[Section] = []
        for place, messages in slot.runs.items():
            if place[0] == self._heartbeats:
                self._beat(messages)
            else:
                sections += self._sections(place, messages)
        records: list[Batch | Control] = [Batch(FORMAT, sections, [])] if sections else []
        return [*records, self._control(slot.end)]

    def _sections(self, place: Place, messages: Sequence[Message]) -> list[Section]:
        feed, progress = self._feeds[place[0]], self._progress[place]
        progress.arrived(message.offset() or 0 for message in messages)
        columns = feed.decoder.decode(messages)
        for offset, item in columns.others:
            if isinstance(item, Marker):
                progress.marked(item.watermark)
            else:
                time = time_of_loss(item)
                reason = "unparsable" if isinstance(item, Refused) else "truncated"
                progress.lose(offset, offset + 1, reason, time_from=time, time_to=time)
        sections: list[Section] = []
        offset, sent = messages[0].offset() or 0, progress.sent
        while (broken := progress.follow([columns], offset)) is not None:
            progress.read_to(broken)
            sections += self._cut(feed, progress, columns, offset, broken, sent)
            progress.begin_epoch(progress.epoch + 1, broken)
            offset = sent = broken
        end = (messages[-1].offset() or 0) + 1
        progress.read_to(end)
        return sections + self._cut(feed, progress, columns, offset, end, sent)

    def _cut(self, feed: RawFeed, progress: FeedProgress, columns: EventsRead, offset: int, end: int, sent: int) -> list[Section]:
        """Return the events between two offsets as a section that begins where the one before ended."""
        (part,) = columns.dealt(1, columns.place(offset), columns.place(end))
        if part is None:
            return []
        builder = SectionBuilder(
            pipeline=self.spec.id,
            side=feed.side,
            feed=feed.topic,
            feed_partition=progress.partition,
            epoch=progress.epoch,
            mapping=self._fingerprint,
            shape=feed.decoder.shape,
        )
        builder.take(part)
        return [builder.build(sent, end)]

    def _beat(self, messages: Sequence[Message]) -> None:
        for message in messages:
            try:
                row = heartbeat_row(RawRecord.of(message))
            except RecordError:
                continue
            broken_since = self._rows.read(row) if row is not None else None
            if row is not None and broken_since is not None:
                self._lose_history(broken_since, row.event_time)

    def _lose_history(self, time_from: int, time_to: int) -> None:
        """Numbers of heartbeat rows were skipped: what was committed between may be missing from every log of the source."""
        for (topic, _), progress in self._progress.items():
            if self._feeds[topic].side is Side.EXPECTED:
                progress.lose(progress.position, progress.position, "slot_jumped", time_from=time_from, time_to=time_to)

    def _control(self, clock: int) -> Control:
        states = []
        for (topic, _), progress in self._progress.items():
            feed = self._feeds[topic]
            side = feed.side
            proven = self._rows.proven if side is Side.EXPECTED else 0
            if feed.by_append:
                proven = clock - progress.disorder_ms
            progress.check(Check(end=progress.position, clock=clock, proven=proven))
            states.append(progress.state(self.spec.id, side, delivery=NO_DELIVERY, delivery_clock=0))
            progress.lost.clear()
            progress.sent = progress.position
        times = [PipelineTimes(self.spec.id, 0, int(self.spec.grace_seconds * 1000))]
        return Control(format=FORMAT, ingester="replay", clock=clock, feeds=states, pipelines=times)
