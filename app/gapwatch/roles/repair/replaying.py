"""Reads old records again for ``core/replay``: of the canonical sections, or of the feeds' own topics.

Every question has a consumer of its own (``rereading``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from gapwatch.core.batches import read
from gapwatch.core.envelopes import Marker
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.rawreplay import RawFeed, RawReader, time_of_loss
from gapwatch.core.replay import EVER, LEAD_GRACES, Found, Replay, Room, Stretch, as_asked, joined
from gapwatch.errors import NotFoundError, RecordError, UsageError
from gapwatch.kafka.clients import Partition, RawConsumer
from gapwatch.kafka.topics import TopicAdmin, TopicFacts
from gapwatch.model.pipeline import MARKED, FeedKind, PipelineSpec, Settings
from gapwatch.model.stream import Control, PackedBatch, Side
from gapwatch.model.suspect import Hole
from gapwatch.ports import Clock
from gapwatch.roles.ingest.bindings import Binding, bindings_of, heartbeat_topics, republished_topics
from gapwatch.roles.repair.questions import RAW, Question, check, chosen_by
from gapwatch.roles.repair.rereading import Merging, OnProgress, Rereading, Span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from confluent_kafka import Message


class _Graces(NamedTuple):
    """How much is read before a range of times, and after it, in milliseconds."""

    lead_in: int
    lead_out: int


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
        if pipeline.target.feed.kind is FeedKind.NONE and (question.of == RAW or not question.keys_max):
            raise UsageError(
                f"The target of {pipeline.id} has no feed: its writes are in no topic.",
                remedy="Reconcile the range of events, or start a sweep: they read both stores.",
            )
        spec = as_asked(pipeline, grace_ms=question.grace_ms, tolerances=question.tolerances, recompiled=question.of == RAW)
        longest = max(pipeline.grace_seconds, spec.grace_seconds)
        lead_in, lead_out = (LEAD_GRACES * int(seconds * 1000) for seconds in (pipeline.grace_seconds, longest))
        skew = int(pipeline.clock_skew_max_seconds * 1000)  # a log is searched by Kafka's clock, and writes have the store's
        graces = _Graces(lead_in + skew, lead_out)
        async with self._reading() as reading:
            read_again = self._raw if question.of == RAW else self._events
            return await read_again(reading, question, spec, graces, on_progress)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Rereading]:
        consumer = self._consumer()
        try:
            yield Rereading(consumer, self._clock)
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
        self, reading: Rereading, question: Question, spec: PipelineSpec, graces: _Graces, on_progress: OnProgress
    ) -> Found:
        topic = self._settings.topics.events
        count = (await self._facts([topic], spec.id))[topic].partitions
        places = [Partition(topic, number) for number in range(count)]
        if question.by_offsets:
            ends = question.offsets_to
            ranges = {Partition(topic, place[1]): range(start, ends[place]) for place, start in question.offsets_from.items()}
            spans = await reading.by_offsets(ranges, {topic: count})
            stretch, until = Stretch(), EVER
        else:
            until = question.time_to + graces.lead_out
            spans = await reading.by_times(places, question.time_from - graces.lead_in, until)
            await reading.check_begin(spans, question.time_from, graces.lead_in, from_the_start=True)
            await reading.reach_back(spans, question.time_from - graces.lead_in)
            stretch = Stretch(time_from=question.time_from, time_to=question.time_to)
        fingerprint, room = CompiledMapping(spec).fingerprint, Room()
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
                led_in=not question.by_offsets,
                keys_max=question.keys_max,
                room=room,
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
        return await asyncio.to_thread(lambda: joined(replay.found() for replay in replays.values()))

    # raw topics

    async def _raw(self, reading: Rereading, question: Question, spec: PipelineSpec, graces: _Graces, show: OnProgress) -> Found:
        bindings = self._bindings(spec)
        if spec.grace_least_seconds is not None and question.grace_ms is None and not question.keys_max:
            raise UsageError(
                f"Raw topics do not say which grace was in force, and that of {spec.id} is auto.", remedy="Give one: --grace 30s."
            )
        topics = [binding.topic for binding in bindings]
        facts = await self._facts(topics, spec.id)
        sources = [feed.topic for feed in spec.source.feeds]
        chosen: Mapping[Partition, Span] = {}
        stretch = Stretch(time_from=question.time_from, time_to=question.time_to)
        if question.by_offsets:
            partitions = {topic: fact.partitions for topic, fact in facts.items()}
            chosen = await reading.by_offsets(chosen_by(question, spec.id, sources, topics), partitions)
            stretch = await self._stretch(spec, chosen)
        until = stretch.time_to + graces.lead_out
        places = [Partition(topic, number) for topic in topics for number in range(facts[topic].partitions)]
        spans = await reading.by_times(places, stretch.time_from - graces.lead_in, until)
        for at, span in chosen.items():  # records are in there whatever their producer's clock said
            spans[at].start = min(spans[at].start, span.start)
        await reading.check_begin(spans, stretch.time_from, graces.lead_in, from_the_start=False)
        compacted = await self._topics.compacted(topics)
        feeds = [
            RawFeed(
                side=binding.side,
                topic=binding.topic,
                decoder=binding.decoder,
                starts={at.partition: span.start for at, span in spans.items() if at.topic == binding.topic},
                by_markers=binding.kind in MARKED,
                by_append=binding.by_append,
                compacted=binding.topic in compacted,
            )
            for binding in bindings
        ]
        whole = all(span.start == span.log_start == 0 for at, span in spans.items() if at.topic in sources)
        beats = self._heartbeats(spec)
        known = await self._topics.describe([beats] if beats else [])
        if known:
            rows = [Partition(beats, number) for number in range(known[beats].partitions)]
            spans |= await reading.by_times(rows, stretch.time_from - graces.lead_in, until)
        unknown = [] if question.by_offsets else await _not_yet_recorded(reading, spec, stretch, spans)
        fingerprint = bindings[0].fingerprint
        replay = Replay(spec, fingerprint, stretch, until=until, whole=whole, keys_max=question.keys_max)
        await Merging(reading, RawReader(spec, fingerprint, feeds, beats), replay, spans).run(show)
        return await asyncio.to_thread(lambda: joined([replay.found(), Found(holes=unknown)]))

    def _bindings(self, spec: PipelineSpec) -> list[Binding]:
        passed_over = republished_topics(self._settings.pipelines)
        return [binding for bound in bindings_of({spec.id: spec}, republished=passed_over).values() for binding in bound]

    async def _stretch(self, spec: PipelineSpec, chosen: Mapping[Partition, Span]) -> Stretch:
        """Read the chosen records alone, to learn when their writes were committed; what nobody can judge has a time as well.

        Decoders and consumer are of its own: these remember what they read, that keeps partitions paused whose end it read.
        """
        decoders = {binding.topic: binding.decoder for binding in self._bindings(spec)}
        least, most = EVER, 0

        def take(at: Partition, messages: Sequence[Message]) -> bool:
            nonlocal least, most
            columns = decoders[at.topic].decode(messages)
            lost = [time_of_loss(item) for _, item in columns.others if not isinstance(item, Marker)]
            times = [*columns.event_times, *lost] or [message.timestamp()[1] for message in messages]
            least, most = min([least, *times]), max([most, *times])
            return False

        async with self._reading() as reading:
            await reading.run(chosen, take, lambda share, counts: None)
        if least > most:
            raise UsageError("There is no record between these offsets.", remedy="Ask for a longer range.")
        records = {(at.topic, at.partition): range(span.start, span.end) for at, span in chosen.items()}
        return Stretch(time_from=least, time_to=most + 1, records=records)

    def _heartbeats(self, spec: PipelineSpec) -> str:
        return heartbeat_topics({spec.id: spec}, self._settings.stores).get(spec.source.feeds[0].topic, "")


async def _not_yet_recorded(
    reading: Rereading, spec: PipelineSpec, stretch: Stretch, spans: Mapping[Partition, Span]
) -> list[Hole]:
    """Return what nobody can judge as a topic of the source began later: its table had no write before, or nobody captured it."""
    holes = []
    for topic in (feed.topic for feed in spec.source.feeds):
        of_topic = {at: span for at, span in spans.items() if at.topic == topic}
        begins = await reading.begin_of(of_topic)
        if begins <= stretch.time_from:
            continue
        holes += [
            Hole(
                id=f"before {at.topic}/{at.partition}",
                pipeline=spec.id,
                side=int(Side.EXPECTED),
                feed=at.topic,
                feed_partition=at.partition,
                time_from=stretch.time_from,
                time_to=min(begins, stretch.time_to),
                reason="ingest_hole",
            )
            for at in of_topic
        ]
    return holes


def _record(value: bytes | None) -> PackedBatch | Control | None:
    try:
        return read(value or b"")
    except RecordError:
        return None
