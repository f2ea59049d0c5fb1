"""Reads raw topics as a group member and sends sections and control records on.

The order, for every raw partition:

1. sections with a range's events are sent to the partitions of ``gapwatch.events`` that the keys live in;
2. a control record that ends at the same offset is sent to *every* partition;
3. when all of these are acknowledged, the raw offset is committed, with the highest position beside it.

A delivery error ends the role before its next control record. What is repeated after a crash lies below what the matcher
``reached``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from confluent_kafka import Message

from gapwatch.core.batches import SectionBuilder, batches, pack
from gapwatch.core.envelopes import Event, Marker, RawRecord, Truncate, heartbeat_row
from gapwatch.core.feeds import Check, FeedProgress, HeartbeatRows, Metadata, delivery_of
from gapwatch.core.gaps import gap_id, time_of
from gapwatch.core.keys import partition_of
from gapwatch.errors import GapwatchError, HistoryLost, RecordError, StoreError
from gapwatch.kafka.clients import AckedProducer, Committed, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import TopicAdmin, TopicFacts
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.model.pipeline import MARKED, PipelineSpec, Settings
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    NO_TOPIC,
    UNKNOWN_DELIVERY,
    Control,
    FeedState,
    Operation,
    PipelineTimes,
    Section,
    Side,
)
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.ingest.bindings import Binding, bindings_of, heartbeat_topics
from gapwatch.roles.ingest.letters import dead_letter

log = structlog.get_logger(__name__)

RECORDS_PER_POLL = 2_000
POLL_SECONDS = 0.03
ENDS_SECONDS = 0.2
DELIVERY_SECONDS = 0.5
TOPICS_SECONDS = 1.0
SKEW_SECONDS = 10.0
PULSES_IN_FLIGHT_MAX = 20
HEARTBEATS_FROM_TAIL = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestDependencies:
    settings: Settings
    pipelines: Mapping[str, PipelineSpec]  # resolved
    ledger: Ledger
    producer: AckedProducer
    consumer: RawConsumer  # of the group, with partition ends
    heartbeats: RawConsumer  # of no group
    offsets: OffsetReader
    topics: TopicAdmin
    clock: Clock
    name: str
    skew_ms: Callable[[str], Awaitable[int]]
    on_unparsable: Callable[[str], None]
    on_finding: Callable[[str, str], None]


@dataclass(slots=True, kw_only=True)
class _Owned:
    """One raw partition that this ingester owns, with what waits to be sent of it."""

    progress: FeedProgress
    topic_id: str
    builders: dict[tuple[str, int, int], SectionBuilder] = field(default_factory=dict)  # pipeline, side, events partition
    delivery: dict[str, tuple[int, int]] = field(default_factory=dict)  # pipeline → position, clock
    ahead: dict[int, int] = field(default_factory=dict)  # events partition → end of the ranges sent since the last control


class IngestRole:
    def __init__(self, dependencies: IngestDependencies) -> None:
        self._on = dependencies
        self._bindings = bindings_of(dependencies.pipelines)
        stores = dependencies.settings.stores
        rows_elsewhere = {name: store.heartbeat.topic for name, store in stores.items() if store.heartbeat.topic}
        self._heartbeat_topics = heartbeat_topics(dependencies.pipelines, rows_elsewhere)
        specs = list(dependencies.pipelines.values())
        settle = max((spec.settle_seconds for spec in specs), default=1.0)
        disorder = max((spec.disorder_seconds for spec in specs), default=0.2)
        self._rows = {
            topic: HeartbeatRows(int(settle * 1000), int(disorder * 1000)) for topic in set(self._heartbeat_topics.values())
        }
        self._owned: dict[Partition, _Owned] = {}
        self._missing: set[str] = set(self._bindings)
        self._missing_seen = 0
        self._subscribed: list[str] = []
        self._skew: dict[str, int] = {}
        self._committable: dict[Partition, Committed] = {}
        self._pulses: list[tuple[list[asyncio.Future[Any]], dict[Partition, Committed]]] = []
        self._futures: list[asyncio.Future[Any]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Ingest until `stop` is set. Raises what makes going on unsafe."""
        on = self._on
        await on.producer.start()
        try:
            await self._find_topics()
            async with asyncio.TaskGroup() as tasks:
                helpers = [
                    tasks.create_task(self._read_ends(stop)),
                    tasks.create_task(self._read_heartbeats(stop)),
                    tasks.create_task(self._read_deliveries(stop)),
                    tasks.create_task(self._measure_skew(stop)),
                ]
                try:
                    await self._read(stop)
                finally:
                    for helper in helpers:
                        helper.cancel()
        finally:
            await on.consumer.close()
            await on.heartbeats.close()
            await on.producer.close()

    # the main loop

    async def _read(self, stop: asyncio.Event) -> None:
        clock = self._on.clock
        pulse = min((spec.pulse_seconds for spec in self._on.pipelines.values()), default=0.25)
        next_pulse = next_topics = 0.0
        while not stop.is_set():
            if clock.monotonic() >= next_topics:
                await self._find_topics()
                next_topics = clock.monotonic() + TOPICS_SECONDS
            if self._subscribed:
                await self._poll()
            else:
                await clock.sleep(POLL_SECONDS)
            if clock.monotonic() >= next_pulse:
                next_pulse = clock.monotonic() + pulse
                await self._pulse()
            await self._commit()
        await self._pulse()
        while self._pulses:
            await asyncio.gather(*self._pulses[-1][0])
            await self._commit()

    async def _poll(self) -> None:
        polled = await self._on.consumer.consume(RECORDS_PER_POLL, seconds=POLL_SECONDS)
        for where, fault in polled.faults:
            await self._fault(where, fault)
        for message in polled.messages:
            await self._take(message)
        for at, end in polled.ends.items():
            owned = self._owned.get(at)
            if owned is not None:
                owned.progress.read_to(end)
        if polled.messages:
            await self._send_sections(self._owned.values())

    async def _fault(self, where: Partition | None, fault: GapwatchError) -> None:
        """A log that was truncated below us is declared lost; everything else that waiting does not heal ends the role."""
        if fault.retriable:
            log.warning("raw_topic_unreadable", where=str(where), reason=str(fault))
            return
        if not isinstance(fault, HistoryLost) or where is None:
            raise fault
        raise GapwatchError(
            f"{where.topic}[{where.partition}] was truncated while it was read.", remedy="It is read anew."
        ) from fault

    async def _take(self, message: Message) -> None:
        record = _raw(message)
        owned = self._owned.get(Partition(record.topic, record.partition))
        if owned is None or record.offset < owned.progress.position:
            return
        progress = owned.progress
        for binding in self._bindings.get(record.topic, ()):
            try:
                decoded = binding.decoder.decode(record)
            except RecordError as error:
                await self._bury(binding, record, error)
                progress.lose(record.offset, record.offset + 1, record.timestamp, "unparsable")
                continue
            for item in decoded:
                if isinstance(item, Event):
                    await self._event(binding, owned, item, record)
                elif isinstance(item, Marker):
                    progress.marked(item.watermark)
                else:
                    await self._truncated(binding, item)
        progress.read_to(record.offset + 1)

    async def _event(self, binding: Binding, owned: _Owned, event: Event, record: RawRecord) -> None:
        progress = owned.progress
        if event.operation != Operation.SNAPSHOT:
            if progress.jumped(event.major, event.minor, event.event_time):
                await self._jump(binding, owned, record)
                progress.jumped(event.major, event.minor, event.event_time)
            progress.streamed(event.event_time)
        partition = partition_of(event.key, self._on.settings.topics.partitions)
        name = (binding.pipeline.id, int(binding.side), partition)
        builder = owned.builders.get(name)
        if builder is None:
            builder = owned.builders[name] = SectionBuilder(
                pipeline=binding.pipeline.id,
                side=binding.side,
                feed=record.topic,
                feed_partition=record.partition,
                epoch=progress.epoch,
                mapping=binding.fingerprint,
            )
        builder.add(event, record.offset, record.timestamp)

    async def _jump(self, binding: Binding, owned: _Owned, record: RawRecord) -> None:
        """The order of the feed is broken: finish the old epoch up to here and begin a new one."""
        await self._send_sections([owned])
        progress = owned.progress
        epoch = await asyncio.to_thread(self._on.ledger.epoch, record.topic, record.partition, owned.topic_id, record.offset)
        progress.begin_epoch(epoch, record.offset)
        owned.builders.clear()
        owned.ahead.clear()
        await self._find(binding, Finding.SLOT_JUMPED, f"{record.topic}[{record.partition}] went back at offset {record.offset}")

    async def _bury(self, binding: Binding, record: RawRecord, error: RecordError) -> None:
        key, value, headers = dead_letter(record, error, binding.pipeline.id)
        self._futures.append(await self._on.producer.send(self._on.settings.topics.dead_letters, key, value, headers=headers))
        self._on.on_unparsable(error.reason)
        log.warning(
            "record_unparsable", topic=record.topic, partition=record.partition, offset=record.offset, reason=error.reason
        )

    async def _truncated(self, binding: Binding, item: Truncate) -> None:
        await self._find(binding, Finding.TRUNCATED, "the source table was truncated", at_ms=item.event_time)

    async def _find(self, binding: Binding, finding: Finding, message: str, *, at_ms: int = 0) -> None:
        """Raise a finding that can mean loss: a hole, which only a sweep covers."""
        now = self._on.clock.now()
        start = time_of(at_ms) if at_ms else now - timedelta(seconds=binding.pipeline.stall_after_seconds)
        record = FindingRecord(
            id="ingest_" + gap_id(binding.pipeline.id, finding.value.encode(), f"{message}/{at_ms}").removeprefix("gap_"),
            pipeline=binding.pipeline.id,
            finding=finding,
            side=binding.side.name.lower(),
            feed=binding.topic,
            first_seen=now,
            last_seen=now,
            message=message,
            remedy="A sweep covers it; it starts by itself.",
            time_from=start,
            time_to=time_of(at_ms) if at_ms else now,
            is_hole=True,
        )
        if await asyncio.to_thread(self._on.ledger.raise_finding, record):
            self._on.on_finding(binding.pipeline.id, finding.value)
            log.warning("finding_raised", pipeline=binding.pipeline.id, finding=finding.value, message=message)

    # what is sent

    async def _send_sections(self, owned: Collection[_Owned]) -> None:
        """Send the collected events of these partitions; every range begins where the one before ended."""
        by_partition: dict[int, list[Section]] = {}
        ended: list[tuple[_Owned, int]] = []
        for item in owned:
            progress = item.progress
            if not any(len(builder) for builder in item.builders.values()):
                continue
            for (_, _, partition), builder in item.builders.items():
                if len(builder):
                    start = item.ahead.get(partition, progress.sent)
                    by_partition.setdefault(partition, []).append(builder.build(start, progress.position))
                    ended.append((item, partition))
        for item, partition in ended:  # afterwards: several pipelines may have sections of one partition
            item.ahead[partition] = item.progress.position
        for partition, sections in by_partition.items():
            for batch in batches(sections):
                self._futures.append(
                    await self._on.producer.send(self._on.settings.topics.events, None, pack(batch), partition=partition)
                )

    async def _pulse(self) -> None:
        """Send a control record to every partition, and remember what its acknowledgement lets us commit."""
        on = self._on
        now = on.clock.now_ms()
        feeds = [state for owned in self._owned.values() for state in self._states(owned)] + self._absent(now)
        grace = {spec.id: int(spec.grace_seconds * 1000) for spec in on.pipelines.values()}
        times = [PipelineTimes(name, self._skew.get(name, 0), grace[name]) for name in grace]
        control = pack(Control(format=FORMAT, ingester=on.name, clock=now, feeds=feeds, pipelines=times))
        for partition in range(on.settings.topics.partitions):
            self._futures.append(await on.producer.send(on.settings.topics.events, None, control, partition=partition))
        positions: dict[Partition, Committed] = {}
        for at, owned in self._owned.items():
            progress = owned.progress
            progress.lost.clear()
            progress.sent = progress.position
            owned.ahead.clear()
            major, minor = progress.highest
            metadata = Metadata(
                topic_id=owned.topic_id, epoch=progress.epoch, major=major, minor=minor, time=progress.highest_time
            )
            positions[at] = Committed(progress.position, metadata.encode())
        self._pulses.append((self._futures, positions))
        self._futures = []
        if len(self._pulses) > PULSES_IN_FLIGHT_MAX:
            await asyncio.gather(*self._pulses[0][0])

    def _states(self, owned: _Owned) -> list[FeedState]:
        states = []
        for binding in self._bindings.get(owned.progress.topic, ()):
            position, clock = self._delivery(binding, owned)
            states.append(owned.progress.state(binding.pipeline.id, binding.side, delivery=position, delivery_clock=clock))
        return states

    def _delivery(self, binding: Binding, owned: _Owned) -> tuple[int, int]:
        if binding.side is not Side.EXPECTED or not binding.pipeline.delivery.known:
            return NO_DELIVERY, 0
        return owned.delivery.get(binding.pipeline.id, (UNKNOWN_DELIVERY, 0))

    def _absent(self, now: int) -> list[FeedState]:
        """Speak for feeds whose topic does not exist: nothing was written there up to what heartbeat rows prove."""
        states: list[FeedState] = []
        for topic in sorted(self._missing):
            rows = self._rows.get(self._heartbeat_topics.get(topic, ""))
            watermark = rows.proven if rows is not None else 0
            states += [_no_topic(binding, watermark, min(now, self._missing_seen)) for binding in self._bindings[topic]]
        return states

    async def _commit(self) -> None:
        """Commit what is acknowledged by all; raises the delivery error, where there was one."""
        newest: dict[Partition, Committed] = {}
        while self._pulses and all(future.done() for future in self._pulses[0][0]):
            futures, positions = self._pulses.pop(0)
            for future in futures:
                future.result()
            newest.update(positions)
        if self._on.producer.failure is not None:
            raise self._on.producer.failure
        mine = {at: position for at, position in newest.items() if at in self._owned and self._committable.get(at) != position}
        if mine:
            self._committable.update(mine)
            await self._on.consumer.commit(mine)

    # topics and ownership

    async def _find_topics(self) -> None:
        """Subscribe to what exists of the wanted topics; the rest are feeds of zero partitions for now."""
        clock = self._on.clock.now_ms()
        facts = await self._on.topics.describe(sorted(self._bindings))
        self._missing = set(self._bindings) - set(facts)
        self._missing_seen = clock
        wanted = sorted(facts)
        if wanted and wanted != self._subscribed:
            self._subscribed = wanted
            await self._on.consumer.subscribe(wanted, self)
        for at, owned in self._owned.items():
            fact = facts.get(at.topic)
            if fact is None or fact.topic_id != owned.topic_id:
                raise GapwatchError(f"Topic {at.topic} was deleted or made anew.", remedy="It is read as a new epoch.")
            owned.progress.partitions = fact.partitions

    async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
        """Take over raw partitions: go on at the committed offset, or say what cannot be read any more."""
        facts = await self._on.topics.describe(sorted({at.topic for at in committed}))
        starts = await self._on.offsets.log_starts(list(committed))
        ends = (await self._on.offsets.log_ends(list(committed))).ends
        for at, position in committed.items():
            self._owned[at] = await self._own(at, position, facts[at.topic], starts[at], ends[at])
        log.info("partitions_assigned", partitions=[f"{at.topic}[{at.partition}]" for at in committed])
        return {at: self._owned[at].progress.position for at in committed}

    async def _own(self, at: Partition, position: Committed | None, fact: TopicFacts, start: int, end: int) -> _Owned:
        known = Metadata.decode(position.metadata) if position is not None else None
        disorder = max(int(binding.pipeline.disorder_seconds * 1000) for binding in self._bindings[at.topic])
        offset = position.offset if position is not None else start
        same_log = known is not None and known.topic_id == fact.topic_id and offset <= end
        if same_log and known is not None:
            epoch = known.epoch
        else:
            epoch = await asyncio.to_thread(self._on.ledger.epoch, at.topic, at.partition, fact.topic_id, 0)
            offset = offset if position is not None and known is None and start <= offset <= end else start
        progress = FeedProgress(
            topic=at.topic,
            partition=at.partition,
            partitions=fact.partitions,
            epoch=epoch,
            position=max(offset, start),
            sent=offset,
            disorder_ms=disorder,
            by_markers=any(binding.kind in MARKED for binding in self._bindings[at.topic]),
        )
        if same_log and known is not None:
            progress.highest, progress.highest_time = (known.major, known.minor), known.time
            if offset < start:
                progress.lose(offset, start, known.time, "log_truncated")
                for binding in self._bindings[at.topic]:
                    await self._find(
                        binding, Finding.LOG_TRUNCATED, f"{at.topic}[{at.partition}] lost offsets {offset} to {start}"
                    )
        return _Owned(progress=progress, topic_id=fact.topic_id)

    async def revoked(self, partitions: Collection[Partition], *, lost: bool) -> Mapping[Partition, Committed]:
        """Give partitions up; only what is acknowledged by all is committed, so the next owner repeats the rest."""
        log.info("partitions_revoked", partitions=[f"{at.topic}[{at.partition}]" for at in partitions], lost=lost)
        positions = {at: self._committable[at] for at in partitions if at in self._committable}
        for at in partitions:
            self._owned.pop(at, None)
            self._committable.pop(at, None)
        return {} if lost else positions

    # what runs beside it

    async def _read_ends(self, stop: asyncio.Event) -> None:
        """Fetch ends of the logs again and again; what heartbeat rows had proved before is proven once they are reached."""
        on = self._on
        while not stop.is_set():
            owned = dict(self._owned)
            proven = {topic: rows.proven for topic, rows in self._rows.items()}
            if owned:
                try:
                    found = await on.offsets.log_ends(list(owned))
                except StoreError as error:
                    log.warning("log_ends_unread", reason=str(error))
                else:
                    for at, item in owned.items():
                        time = proven.get(self._heartbeat_topics.get(at.topic, ""), 0)
                        item.progress.check(Check(end=found.ends[at], clock=found.clock, proven=time))
            await on.clock.sleep(ENDS_SECONDS)

    async def _read_heartbeats(self, stop: asyncio.Event) -> None:
        on, assigned = self._on, set[Partition]()
        while not stop.is_set():
            facts = await on.topics.describe([topic for topic in self._rows if not any(at.topic == topic for at in assigned)])
            fresh = {Partition(topic, number) for topic, fact in facts.items() for number in range(fact.partitions)}
            if fresh:
                assigned |= fresh
                starts = {}
                for at in assigned:
                    first, end = await on.heartbeats.log_range(at)
                    starts[at] = max(first, end - HEARTBEATS_FROM_TAIL)
                await on.heartbeats.assign(starts)
            if not assigned:
                await on.clock.sleep(TOPICS_SECONDS)
                continue
            until = on.clock.monotonic() + TOPICS_SECONDS
            while on.clock.monotonic() < until and not stop.is_set():
                polled = await on.heartbeats.consume(500, seconds=0.05)
                for _, fault in polled.faults:
                    if not fault.retriable:
                        raise fault
                for message in polled.messages:
                    await self._heartbeat(_raw(message))

    async def _heartbeat(self, record: RawRecord) -> None:
        try:
            row = heartbeat_row(record)
        except RecordError as error:
            log.warning("heartbeat_unparsable", topic=record.topic, offset=record.offset, reason=str(error))
            return
        if row is None or self._rows[record.topic].read(row):
            return
        for topic, rows_topic in self._heartbeat_topics.items():
            if rows_topic == record.topic:
                for binding in self._bindings[topic]:
                    message = f"heartbeat row {row.number} of {row.sender} came after a gap in their numbers"
                    await self._find(binding, Finding.SLOT_JUMPED, message)

    async def _read_deliveries(self, stop: asyncio.Event) -> None:
        on = self._on
        while not stop.is_set():
            for topic, bound in self._bindings.items():
                for binding in bound:
                    if binding.side is Side.EXPECTED and binding.pipeline.delivery.group:
                        await self._read_delivery(topic, binding)
            await on.clock.sleep(DELIVERY_SECONDS)

    async def _read_delivery(self, topic: str, binding: Binding) -> None:
        owned = {at: item for at, item in self._owned.items() if at.topic == topic}
        if not owned:
            return
        name = binding.pipeline.id
        try:
            found = await self._on.offsets.delivery(binding.pipeline.delivery.group, list(owned))
        except StoreError as error:
            log.warning("delivery_unread", pipeline=name, group=binding.pipeline.delivery.group, reason=str(error))
            for item in owned.values():
                item.delivery[name] = (UNKNOWN_DELIVERY, self._on.clock.now_ms())
            return
        for at, item in owned.items():
            item.delivery[name] = (delivery_of(found.positions.get(at), item.progress.position), found.clock)

    async def _measure_skew(self, stop: asyncio.Event) -> None:
        on = self._on
        while not stop.is_set():
            for name in on.pipelines:
                try:
                    self._skew[name] = abs(await on.skew_ms(name))
                except StoreError as error:
                    log.warning("clock_skew_unread", pipeline=name, reason=str(error))
            await on.clock.sleep(SKEW_SECONDS)


def _no_topic(binding: Binding, watermark: int, caught_up: int) -> FeedState:
    return FeedState(
        pipeline=binding.pipeline.id,
        side=int(binding.side),
        feed=binding.topic,
        feed_partition=NO_TOPIC,
        partitions=0,
        epoch=0,
        offset_from=0,
        offset_to=0,
        watermark=watermark,
        caught_up=caught_up,
        delivery=NO_DELIVERY,
        delivery_clock=0,
        lost=[],
    )


def _raw(message: Message) -> RawRecord:
    headers: Sequence[tuple[str, bytes]] = [(name, value or b"") for name, value in message.headers() or ()]
    _, timestamp = message.timestamp()
    return RawRecord(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        timestamp,
        message.key(),
        message.value(),
        headers,
    )
