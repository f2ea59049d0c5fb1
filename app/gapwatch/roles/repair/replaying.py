"""Reads old records again for ``core/replay``: which offsets, up to where, and how far it has come.

Every reading has a consumer of its own, assigned and of no group: it commits nothing, and nobody else's reading changes by it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from gapwatch.core.batches import read
from gapwatch.core.gaps import rfc3339, time_of
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.rawreplay import RawFeed, RawReader, Slots
from gapwatch.core.replay import EVER, LEAD_GRACES, Found, Replay, Stretch, as_asked, joined
from gapwatch.errors import HistoryLost, NotFoundError, RecordError, StoreUnreachable, UsageError
from gapwatch.kafka.clients import Partition, Polled, RawConsumer
from gapwatch.kafka.topics import TopicAdmin, TopicFacts
from gapwatch.model.pipeline import MARKED, PipelineSpec, Settings
from gapwatch.model.stream import Control, PackedBatch, Side
from gapwatch.ports import Clock
from gapwatch.roles.ingest.bindings import bindings_of, heartbeat_topics, republished_topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from confluent_kafka import Message

RECORDS_PER_READ: Final = 1_000
READ_SECONDS: Final = 0.5
SILENCE_SECONDS: Final = 60.0  # without a record, or the end of a log
HELD_MAX: Final = 50_000  # raw records of a partition that wait for the others; it is not read on meanwhile
EVENTS, RAW = "events", "raw"
OFFSETS: Final = re.compile(r"[0-9]{1,9}:[0-9]{1,18}(,[0-9]{1,9}:[0-9]{1,18})*", re.ASCII)

OnProgress = Callable[[float, Mapping[str, int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to read again, and how to judge it.

    ``time_from``/``time_to``: milliseconds, by event time. ``offsets_from``/``offsets_to``: instead of them, records of
    ``gapwatch.events`` by partition. ``of``: events | raw. ``grace_ms`` and ``tolerances`` are a what-if. ``keys_max``: as
    :class:`Replay`.
    """

    time_from: int = 0
    time_to: int = 0
    offsets_from: Mapping[int, int] = field(default_factory=dict)
    offsets_to: Mapping[int, int] = field(default_factory=dict)
    of: str = EVENTS
    grace_ms: int | None = None
    tolerances: Mapping[str, Decimal] = field(default_factory=dict)
    keys_max: int = 0

    @property
    def by_offsets(self) -> bool:
        return bool(self.offsets_from or self.offsets_to)


def question_of(from_text: str, to_text: str, of: str = EVENTS) -> Question:
    """Read a range as a person writes it: two times in RFC 3339, or two lists of offsets, ``PARTITION:OFFSET,…``.

    Raises UsageError where it is neither.
    """
    by_offsets = [OFFSETS.fullmatch(text) is not None for text in (from_text, to_text)]
    if all(by_offsets):
        return Question(offsets_from=_offsets(from_text), offsets_to=_offsets(to_text), of=of)
    if any(by_offsets):
        raise UsageError("One end of the range is a time, the other offsets.", remedy="Give two times, or offsets for both.")
    return Question(time_from=_time(from_text, "--from"), time_to=_time(to_text, "--to"), of=of)


def _offsets(text: str) -> dict[int, int]:
    pairs = [part.split(":") for part in text.split(",")]
    found = {int(number): int(offset) for number, offset in pairs}
    if len(found) < len(pairs):
        raise UsageError(f"{text!r} names a partition twice.", remedy="Give one offset for each partition.")
    return found


def _time(text: str, option: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise UsageError(
            f"{option} must be a time in RFC 3339 with its zone, or offsets, and not {text!r}.",
            remedy="Write 2026-11-24T10:00:00Z, or PARTITION:OFFSET,PARTITION:OFFSET.",
        )
    return round(time.timestamp() * 1000)


def check(question: Question, now_ms: int) -> None:
    """Raise UsageError where a question has no answer, whatever the topics hold."""
    if question.of not in (EVENTS, RAW):
        raise UsageError(f"{question.of!r} cannot be replayed.", remedy=f"Use --of {EVENTS} or --of {RAW}.")
    if question.grace_ms is not None and question.grace_ms <= 0:
        raise UsageError("A grace of zero makes every write late.", remedy="Write it like 30s.")
    if question.by_offsets:
        if question.of == RAW:
            raise UsageError("Offsets choose records of the events topic.", remedy="Give times, or leave --of raw out.")
        if question.offsets_from.keys() != question.offsets_to.keys():
            raise UsageError("--from and --to name different partitions.", remedy="Give both offsets of each partition.")
        for number, start in question.offsets_from.items():
            _check_order(start, question.offsets_to[number], f"{number}:{start}", f"{number}:{question.offsets_to[number]}")
        return
    begin, end, now = (rfc3339(time_of(time)) for time in (question.time_from, question.time_to, now_ms))
    _check_order(question.time_from, question.time_to, begin, end)
    if question.time_to > now_ms:
        raise UsageError(f"--to ({end}) lies in the future: it is {now}.", remedy="Ask for what has been written.")


def _check_order(start: int, end: int, start_text: str, end_text: str) -> None:
    if start > end:
        raise UsageError(f"--from ({start_text}) lies after --to ({end_text}).", remedy="Give the earlier one first.")
    if start == end:
        raise UsageError(f"The range is empty: --from and --to are both {start_text}.", remedy="--to is not a part of it.")


@dataclass(slots=True, kw_only=True)
class _Span:
    """What is read of one partition. ``log_start``: of the log as it is now; ``likely_end``: where reading will likely end."""

    start: int
    end: int
    log_start: int
    likely_end: int


class ReplayReader:
    """Answers questions about one configuration's topics. ``consumer`` makes a new one, of no group, for every question.

    Raises UsageError for what cannot be asked, NotFoundError for a topic that does not exist, HistoryLost where the range is no
    longer in a log, StoreError and FeedError where Kafka cannot be read.
    """

    def __init__(self, settings: Settings, consumer: Callable[[], RawConsumer], topics: TopicAdmin, clock: Clock) -> None:
        self._settings = settings
        self._consumer = consumer
        self._topics = topics
        self._clock = clock

    async def answer(self, question: Question, pipeline: PipelineSpec, on_progress: OnProgress) -> Found:
        """Read what the question asks for of a resolved pipeline; return what it says."""
        check(question, self._clock.now_ms())
        spec = as_asked(pipeline, grace_ms=question.grace_ms, tolerances=question.tolerances, recompiled=question.of == RAW)
        lead_in = LEAD_GRACES * int(pipeline.grace_seconds * 1000)
        until = question.time_to + LEAD_GRACES * int(max(pipeline.grace_seconds, spec.grace_seconds) * 1000)
        async with self._reading() as reading:
            if question.of == RAW:
                return await self._raw(reading, question, spec, lead_in, until, on_progress)
            return await self._events(reading, question, spec, lead_in, until, on_progress)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[_Reading]:
        consumer = self._consumer()
        try:
            yield _Reading(consumer, self._clock)
        finally:
            await consumer.close()

    async def _facts(self, topics: Sequence[str], pipeline: str) -> Mapping[str, TopicFacts]:
        facts = await self._topics.describe(topics)
        for topic in topics:
            if topic not in facts:
                raise NotFoundError(f"There is no topic {topic}.", remedy=f"Nothing of {pipeline} was recorded: start it first.")
        return facts

    # canonical sections

    async def _events(
        self, reading: _Reading, question: Question, spec: PipelineSpec, lead_in: int, until: int, on_progress: OnProgress
    ) -> Found:
        topic = self._settings.topics.events
        count = (await self._facts([topic], spec.id))[topic].partitions
        places = [Partition(topic, number) for number in range(count)]
        if question.by_offsets:
            spans = await reading.by_offsets(places, question)
            stretch, until = Stretch(), EVER
        else:
            spans = await reading.by_times(places, question.time_from - lead_in, until)
            await reading.check_begin(spans, question.time_from, lead_in, from_the_start=True)
            stretch = Stretch(time_from=question.time_from, time_to=question.time_to)
        fingerprint = CompiledMapping(spec).fingerprint
        replays = {
            at: Replay(
                spec,
                fingerprint,
                stretch,
                partition=at.partition,
                partitions=count,
                grace_ms=question.grace_ms,
                until=until,
                whole=span.start == span.log_start == 0,
                keys_max=question.keys_max,
            )
            for at, span in spans.items()
        }

        def take(at: Partition, messages: Sequence[Message]) -> bool:
            replay = replays[at]
            for message in messages:
                replay.take(_record(message.value()), message.offset() or 0, message.timestamp()[1])
                if replay.finished:
                    return True
            return False

        await reading.run(spans, take, on_progress)
        return joined(replay.found() for replay in replays.values())

    # raw topics

    async def _raw(
        self, reading: _Reading, question: Question, spec: PipelineSpec, lead_in: int, until: int, on_progress: OnProgress
    ) -> Found:
        passed_over = republished_topics(self._settings.pipelines)
        bindings = [binding for bound in bindings_of({spec.id: spec}, republished=passed_over).values() for binding in bound]
        if Side.OBSERVED not in {binding.side for binding in bindings}:
            raise UsageError(f"The target of {spec.id} has no feed: its writes are in no topic.", remedy="Start a sweep instead.")
        topics = [binding.topic for binding in bindings]
        facts = await self._facts(topics, spec.id)
        compacted = await self._topics.compacted(topics)
        beats = self._heartbeats(spec)
        known = await self._topics.describe([beats] if beats else [])
        places = [Partition(topic, number) for topic in topics for number in range(facts[topic].partitions)]
        spans = await reading.by_times(places, question.time_from - lead_in, until)
        await reading.check_begin(spans, question.time_from, lead_in, from_the_start=False)
        feeds = [
            RawFeed(
                side=binding.side,
                topic=binding.topic,
                decoder=binding.decoder,
                starts={at.partition: span.start for at, span in spans.items() if at.topic == binding.topic},
                by_markers=binding.kind in MARKED,
                compacted=binding.topic in compacted,
            )
            for binding in bindings
        ]
        sources = {feed.topic for feed in spec.source.feeds}
        whole = all(span.start == span.log_start == 0 for at, span in spans.items() if at.topic in sources)
        if known:
            rows = [Partition(beats, number) for number in range(known[beats].partitions)]
            spans |= await reading.by_times(rows, question.time_from - lead_in, until)
        replay = Replay(
            spec,
            bindings[0].fingerprint,
            Stretch(time_from=question.time_from, time_to=question.time_to),
            until=until,
            whole=whole,
            keys_max=question.keys_max,
        )
        await _Merging(reading, RawReader(spec, bindings[0].fingerprint, feeds, beats), replay, spans).run(on_progress)
        return joined([replay.found()])

    def _heartbeats(self, spec: PipelineSpec) -> str:
        elsewhere = {name: store.heartbeat.topic for name, store in self._settings.stores.items() if store.heartbeat.topic}
        return heartbeat_topics({spec.id: spec}, elsewhere).get(spec.source.feeds[0].topic, "")


def _record(value: bytes | None) -> PackedBatch | Control | None:
    try:
        return read(value or b"")
    except RecordError:
        return None


class _Reading:
    """One question's consumer."""

    def __init__(self, consumer: RawConsumer, clock: Clock) -> None:
        self.consumer = consumer
        self._clock = clock
        self._heard = clock.monotonic()
        self._positions: dict[Partition, int] = {}

    async def by_offsets(self, places: Sequence[Partition], question: Question) -> dict[Partition, _Span]:
        """Return what the question's offsets say; they must be in the logs."""
        spans: dict[Partition, _Span] = {}
        for number, start in sorted(question.offsets_from.items()):
            if number not in {at.partition for at in places}:
                raise UsageError(f"{places[0].topic} has no partition {number}.", remedy=f"It has {len(places)}, from 0 on.")
            at, end = Partition(places[0].topic, number), question.offsets_to[number]
            low, high = await self.consumer.log_range(at)
            if start < low:
                raise HistoryLost(
                    f"Offset {start} of {at.topic}[{number}] is no longer there: the log begins at {low}.",
                    remedy=f"Ask from {number}:{low} on.",
                )
            if end > high:
                raise UsageError(
                    f"{at.topic}[{number}] ends at offset {high}, before {end}.", remedy=f"Ask up to {number}:{high}."
                )
            spans[at] = _Span(start=start, end=end, log_start=low, likely_end=end)
        return spans

    async def by_times(self, places: Sequence[Partition], since: int, until: int) -> dict[Partition, _Span]:
        """Return, per partition, what was appended since then, up to the log's end now."""
        ranges = {at: await self.consumer.log_range(at) for at in places}
        starts = await self.consumer.offsets_at(places, max(0, since))
        ends = await self.consumer.offsets_at(places, until)
        return {
            at: _Span(
                start=max(low, high if (start := starts[at]) is None else start),
                end=high,
                log_start=low,
                likely_end=high if (end := ends[at]) is None else end,
            )
            for at, (low, high) in ranges.items()
        }

    async def check_begin(self, spans: Mapping[Partition, _Span], time_from: int, lead_in: int, *, from_the_start: bool) -> None:
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

    async def _first(self, at: Partition, span: _Span) -> int | None:
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
        spans: Mapping[Partition, _Span],
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

    async def begin(self, spans: Mapping[Partition, _Span]) -> None:
        self._positions = {at: span.start for at, span in spans.items()}
        self._heard = self._clock.monotonic()
        await self.consumer.assign(self._positions)

    def within(self, at: Partition, span: _Span, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages before the span's end, and note how far the partition was read."""
        self._positions[at] = (messages[-1].offset() or 0) + 1
        return messages if self._positions[at] <= span.end else [one for one in messages if (one.offset() or 0) < span.end]

    def ended(self, at: Partition, span: _Span) -> bool:
        return self._positions.get(at, span.end) >= span.end

    def read_so_far(self, spans: Mapping[Partition, _Span]) -> int:
        return sum(self._positions[at] - spans[at].start for at in self._positions)

    def share(self, spans: Mapping[Partition, _Span]) -> float:
        """Return about how much of it is read."""
        total = sum(span.likely_end - span.start for span in spans.values())
        done = sum(min(self._positions[at], spans[at].likely_end) - spans[at].start for at in self._positions)
        return min(1.0, done / total) if total else 1.0


class _Merging:
    """Reads raw partitions side by side, and hands them over slot by slot."""

    def __init__(self, reading: _Reading, reader: RawReader, replay: Replay, spans: Mapping[Partition, _Span]) -> None:
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
