"""One question's consumer: which records are read, up to where, and how far it has come.

It is assigned and of no group: it commits nothing, and nobody else's reading changes by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gapwatch.core.gaps import rfc3339, time_of
from gapwatch.core.rawreplay import RawReader, Slots
from gapwatch.core.replay import EVER, Replay
from gapwatch.errors import HistoryLost, StoreUnreachable, UsageError
from gapwatch.kafka.clients import Partition, Polled, RawConsumer
from gapwatch.ports import Clock

if TYPE_CHECKING:
    from confluent_kafka import Message

RECORDS_PER_READ: Final = 1_000
READ_SECONDS: Final = 0.5
SILENCE_SECONDS: Final = 60.0  # without a record, or the end of a log
HELD_MAX: Final = 50_000  # raw records of a partition that wait for the others; it is not read on meanwhile
SILENT_MS: Final = 1_000  # without a record of a log into which somebody writes four times a second
LAST_WORDS_MS: Final = 15_000  # of all who wrote into it before it fell silent

OnProgress = Callable[[float, Mapping[str, int]], None]


@dataclass(slots=True, kw_only=True)
class Span:
    """What is read of one partition. ``log_start``: of the log as it is now; ``likely_end``: where reading will likely end."""

    start: int
    end: int
    log_start: int
    likely_end: int


class Rereading:
    """One question's consumer."""

    def __init__(self, consumer: RawConsumer, clock: Clock) -> None:
        self.consumer = consumer
        self._clock = clock
        self._heard = clock.monotonic()
        self._positions: dict[Partition, int] = {}

    async def by_offsets(self, ranges: Mapping[Partition, range], partitions: Mapping[str, int]) -> dict[Partition, Span]:
        """Return what is read of ranges of offsets; they must be in the logs. ``partitions``: how many each topic has."""
        spans: dict[Partition, Span] = {}
        for at, wanted in sorted(ranges.items()):
            if at.partition >= partitions[at.topic]:
                raise UsageError(
                    f"{at.topic} has no partition {at.partition}.", remedy=f"It has {partitions[at.topic]}, from 0 on."
                )
            low, high = await self.consumer.log_range(at)
            if wanted.start < low:
                raise HistoryLost(
                    f"Offset {wanted.start} of {at.topic}[{at.partition}] is no longer there: the log begins at {low}.",
                    remedy=f"Ask from {at.partition}:{low} on.",
                )
            if wanted.stop > high:
                raise UsageError(
                    f"{at.topic}[{at.partition}] ends at offset {high}, before {wanted.stop}.",
                    remedy=f"Ask up to {at.partition}:{high}.",
                )
            spans[at] = Span(start=wanted.start, end=wanted.stop, log_start=low, likely_end=wanted.stop)
        return spans

    async def by_times(self, places: Sequence[Partition], since: int, until: int) -> dict[Partition, Span]:
        """Return, per partition, what was appended since then, up to the log's end now.

        Where logs begin is asked last: of what retention removes meanwhile the search would say that it was never there.
        """
        highs = {at: (await self.consumer.log_range(at))[1] for at in places}
        starts = await self.consumer.offsets_at(places, max(0, since))
        ends = await self.consumer.offsets_at(places, until)
        lows = {at: (await self.consumer.log_range(at))[0] for at in places}
        spans = {}
        for at, high in highs.items():
            start, end = (high if found is None else found for found in (starts[at], ends[at]))
            start = max(lows[at], start)
            spans[at] = Span(start=start, end=high, log_start=lows[at], likely_end=max(start, end))
        return spans

    async def check_begin(self, spans: Mapping[Partition, Span], time_from: int, lead_in: int, *, from_the_start: bool) -> None:
        """Raise HistoryLost where the logs begin after what is to be read of them.

        ``from_the_start``: a log that never held anything earlier does not answer for the time before it, either.
        """
        begins: dict[Partition, int] = {}
        for at, span in spans.items():
            if span.start > span.log_start or (span.log_start == 0 and not from_the_start):
                continue
            first = await self._first(at, span)
            allowed = time_from if span.log_start == 0 else time_from - lead_in
            if first is None or first > allowed:
                begins[at] = EVER if first is None else first + (0 if span.log_start == 0 else lead_in)
        if not begins:
            return
        at, begin = max(begins.items(), key=lambda item: item[1])
        where = f"{at.topic}[{at.partition}]"
        if begin == EVER:
            raise HistoryLost(f"{where} holds nothing.", remedy="There is nothing to replay: start the service, or a sweep.")
        raise HistoryLost(
            f"The range is not in {where} (any more): what it holds answers for writes from {rfc3339(time_of(begin))} on.",
            remedy="Ask from then on; a sweep compares what is older.",
        )

    async def begin_of(self, spans: Mapping[Partition, Span]) -> int:
        """Return the append time at which the first of these logs begins; 0: before what is read of it, EVER: all are empty."""
        begins = EVER
        for at, span in spans.items():
            first = await self._first(at, span) if span.start == span.log_start else 0
            begins = min(begins, EVER if first is None else first)
        return begins

    async def reach_back(self, spans: Mapping[Partition, Span], since: int) -> None:
        """Where nobody wrote just before a span, begin it with what was said last before: what goes on then is no beginning."""
        before = {at: span.start - 1 for at, span in spans.items() if span.start > span.log_start}
        for at, time in (await self._times_at(before)).items():
            if since - time > SILENT_MS:
                (start,) = (await self.consumer.offsets_at([at], max(0, time - LAST_WORDS_MS))).values()
                spans[at].start = min(spans[at].start, max(spans[at].log_start, before[at] if start is None else start))

    async def _times_at(self, offsets: Mapping[Partition, int]) -> dict[Partition, int]:
        """Return the append times of the records there, or of those that come next; a log may end before."""
        found: dict[Partition, int] = {}
        left = set(offsets)
        if left:
            await self.consumer.assign(offsets)
            self._heard = self._clock.monotonic()
        while left:
            polled = await self.poll()
            for at, messages in polled.runs.items():
                found.setdefault(at, int(messages[0].timestamp()[1]))
            left -= polled.runs.keys() | polled.ends.keys()
        return found

    async def _first(self, at: Partition, span: Span) -> int | None:
        """Return the append time of a log's first record; None where it holds none."""
        if span.log_start >= span.end:
            return None
        await self.consumer.assign({at: span.log_start})
        self._heard = self._clock.monotonic()
        while True:
            polled = await self.poll(1)
            for message in polled.messages:
                return int(message.timestamp()[1])
            if at in polled.ends:
                return None

    async def poll(self, limit: int = RECORDS_PER_READ) -> Polled:
        """Return what comes next. Raises what waiting does not heal, and StoreUnreachable after a minute without anything."""
        polled = await self.consumer.consume(limit, seconds=READ_SECONDS)
        for _, fault in polled.faults:
            if not fault.retriable:
                raise fault
        if polled.runs or polled.ends:
            self._heard = self._clock.monotonic()
        elif self._clock.monotonic() - self._heard > SILENCE_SECONDS:
            raise StoreUnreachable(f"Kafka sent nothing for {SILENCE_SECONDS:.0f} s.", store="kafka", remedy="Try again.")
        return polled

    async def run(
        self,
        spans: Mapping[Partition, Span],
        take: Callable[[Partition, Sequence[Message]], bool],
        on_progress: OnProgress,
    ) -> None:
        """Read every partition until `take` has enough of it, or to its end."""
        left = {at: span for at, span in spans.items() if span.start < span.end}
        await self.begin(left)
        while left:
            polled = await self.poll()
            for at, messages in polled.runs.items():
                if at in left:
                    enough = await asyncio.to_thread(take, at, self.within(at, spans[at], messages))
                    if enough or self._positions[at] >= spans[at].end:
                        del left[at]
                        await self.consumer.pause([at])
            for at in polled.ends.keys() & left.keys():
                del left[at]  # what is left of it are marks of transactions
            on_progress(self.share(spans), {"records": self.read_so_far(spans)})

    async def begin(self, spans: Mapping[Partition, Span]) -> None:
        self._positions = {at: span.start for at, span in spans.items()}
        self._heard = self._clock.monotonic()
        await self.consumer.assign(self._positions)

    def within(self, at: Partition, span: Span, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages before the span's end, and note how far the partition was read."""
        self._positions[at] = (messages[-1].offset() or 0) + 1
        return messages if self._positions[at] <= span.end else [one for one in messages if (one.offset() or 0) < span.end]

    def ended(self, at: Partition, span: Span) -> bool:
        return self._positions.get(at, span.end) >= span.end

    def read_so_far(self, spans: Mapping[Partition, Span]) -> int:
        return sum(self._positions[at] - spans[at].start for at in self._positions)

    def share(self, spans: Mapping[Partition, Span]) -> float:
        """Return about how much of it is read."""
        total = sum(span.likely_end - span.start for span in spans.values())
        done = sum(min(self._positions[at], spans[at].likely_end) - spans[at].start for at in self._positions)
        return min(1.0, done / total) if total else 1.0


class Merging:
    """Reads raw partitions side by side, and hands them over slot by slot."""

    def __init__(self, reading: Rereading, reader: RawReader, replay: Replay, spans: Mapping[Partition, Span]) -> None:
        self._reading = reading
        self._reader = reader
        self._replay = replay
        self._spans = spans
        self._slots = Slots(list(spans), int(reader.spec.pulse_seconds * 1000))
        self._paused: set[Partition] = set()
        self._number = 0

    async def run(self, on_progress: OnProgress) -> None:
        reading, spans = self._reading, self._spans
        for at, span in spans.items():
            if span.start >= span.end:
                self._slots.end(at)
        await reading.begin({at: span for at, span in spans.items() if span.start < span.end})
        while await asyncio.to_thread(self._drain):
            await self._balance()
            polled = await reading.poll()
            for at, messages in polled.runs.items():
                self._slots.offer(at, reading.within(at, spans[at], messages))
                if reading.ended(at, spans[at]):
                    self._slots.end(at)
                    await self._pause({at})
            for at in polled.ends:
                self._slots.end(at)
            on_progress(reading.share(spans), {"records": reading.read_so_far(spans)})

    def _drain(self) -> bool:
        """Take every slot that is whole; False when nothing more has to be read."""
        while (slot := self._slots.take()) is not None:
            for record in self._reader.read(slot):
                self._replay.take(record, self._number, slot.end)
                self._number += 1
            if self._replay.finished:
                return False
        return bool(self._slots.wanting())

    async def _balance(self) -> None:
        full = {Partition(*place) for place in self._slots.full(HELD_MAX)}
        wanting = {Partition(*place) for place in self._slots.wanting()}
        await self._pause(full - self._paused)
        again = self._paused & wanting
        if again:
            self._paused -= again
            await self._reading.consumer.resume(again)

    async def _pause(self, places: set[Partition]) -> None:
        if places:
            self._paused |= places
            await self._reading.consumer.pause(places)
