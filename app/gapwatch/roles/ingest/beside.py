"""What runs beside the main loop: ends of logs, heartbeat rows, delivery positions and the stores' clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from confluent_kafka import TIMESTAMP_CREATE_TIME

from gapwatch.core.envelopes import RawRecord, heartbeat_row
from gapwatch.core.feeds import Check, delivery_of
from gapwatch.errors import RecordError, StoreError, StoreRefused
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.offsets import GroupPositions
from gapwatch.kafka.topics import TopicFacts
from gapwatch.model.gap import Finding
from gapwatch.model.pipeline import DeliverySpec
from gapwatch.model.stream import UNKNOWN_DELIVERY, Side
from gapwatch.roles.board import grace_ms
from gapwatch.roles.ingest.parts import Shared
from gapwatch.roles.ingest.transactions import checks_of

log = structlog.get_logger(__name__)

ENDS_SECONDS: Final = 0.2
DELIVERY_SECONDS: Final = 0.5
TOPICS_SECONDS: Final = 1.0
SKEW_SECONDS: Final = 10.0
HEARTBEAT_SECONDS: Final = 0.5
HEARTBEATS_PER_POLL: Final = 500
HEARTBEATS_FROM_TAIL: Final = 50


class Beside:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._on = shared.on
        self._heartbeats: dict[Partition, int] = {}  # what is read of them next
        self._refused: set[str] = set()  # topics of heartbeats that we may not ask about …
        self._unreadable: set[str] = set()  # … or not read

    def start(self, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> list[asyncio.Task[None]]:
        """Start them all; they end with `stop`, and may be cancelled."""
        checks = checks_of(self._shared, self._on.transactions) if self._on.transactions is not None else []
        works = [self._read_ends, self._read_heartbeats, self._read_deliveries, self._measure_skew, self._read_grace]
        works += [check.run for check in checks]
        return [tasks.create_task(work(stop)) for work in works]

    async def _read_ends(self, stop: asyncio.Event) -> None:
        """Fetch ends of the logs again and again; what heartbeat rows had proved before is proven once they are reached."""
        on, shared = self._on, self._shared
        while not stop.is_set():
            owned = dict(shared.owned)
            proven = {topic: rows.proven for topic, rows in shared.rows.items()}
            if owned:
                try:
                    found = await on.offsets.log_ends(list(owned))
                except StoreError as error:
                    log.warning("log_ends_unread", reason=str(error))
                else:
                    for at, item in owned.items():
                        topic = shared.heartbeat_topics.get(at.topic, "")
                        time = item.end.proven(found.ends[at], found.clock, proven.get(topic, 0))
                        if at.topic in shared.by_append:  # what had been appended by then was read; it has no other time
                            time = found.clock - item.progress.disorder_ms
                        item.progress.check(Check(end=found.ends[at], clock=found.clock, proven=time))
                        if topic in shared.rows:
                            item.progress.marked(item.follower.proven(item.progress.created, shared.rows[topic]))
            await shared.pause(ENDS_SECONDS)

    async def _read_heartbeats(self, stop: asyncio.Event) -> None:
        on, assigned = self._on, self._heartbeats
        while not stop.is_set():
            known = {at.topic for at in assigned} | self._unreadable
            topics = [topic for topic in self._shared.rows if topic not in known]
            facts = await self._described(topics)
            fresh = [Partition(topic, number) for topic, fact in facts.items() for number in range(fact.partitions)]
            if fresh:
                for at in fresh:
                    first, end = await on.heartbeats.log_range(at)
                    assigned[at] = max(first, end - HEARTBEATS_FROM_TAIL)
                await on.heartbeats.assign(dict(assigned))  # the others go on where they were: a row passed over would look lost
            if not assigned:
                await on.clock.sleep(TOPICS_SECONDS)
                continue
            until = on.clock.monotonic() + TOPICS_SECONDS
            while on.clock.monotonic() < until and not stop.is_set():
                if await self._poll_heartbeats(1, HEARTBEAT_SECONDS):  # one comes a second, as a rule …
                    await self._poll_heartbeats(HEARTBEATS_PER_POLL, 0.0)  # … and all that has come with it

    async def _described(self, topics: Sequence[str]) -> Mapping[str, TopicFacts]:
        """Describe topics of heartbeats; one that we may not ask about proves nothing, and stops nothing."""
        try:
            return await self._on.topics.describe(topics)
        except StoreError as error:
            if error.retriable:
                raise
            if len(topics) == 1:
                if topics[0] not in self._refused:
                    log.warning("heartbeats_refused", topic=topics[0], reason=str(error))
                self._refused.update(topics)
                return {}
        found: dict[str, TopicFacts] = {}
        for topic in topics:
            found |= await self._described([topic])
        return found

    async def _poll_heartbeats(self, limit: int, seconds: float) -> bool:
        """Take up to so many rows; False when none came."""
        polled = await self._on.heartbeats.consume(limit, seconds=seconds)
        for where, fault in polled.faults:
            if isinstance(fault, StoreRefused) and where is not None:
                await self._leave_out(where.topic, fault)
            elif not fault.retriable:
                raise fault
        for message in polled.messages:
            record = RawRecord.of(message)
            self._heartbeats[Partition(record.topic, record.partition)] = record.offset + 1
            await self._heartbeat(record, created=message.timestamp()[0] == TIMESTAMP_CREATE_TIME)
        return bool(polled.runs)

    async def _leave_out(self, topic: str, fault: StoreRefused) -> None:
        """Go on without a topic that we may see and not read: its feeds have the time of their records."""
        if topic in self._unreadable:
            return
        log.warning("heartbeats_refused", topic=topic, reason=str(fault))
        self._unreadable.add(topic)
        for at in [at for at in self._heartbeats if at.topic == topic]:
            del self._heartbeats[at]
        await self._on.heartbeats.assign(dict(self._heartbeats))

    async def _heartbeat(self, record: RawRecord, *, created: bool) -> None:
        shared = self._shared
        try:
            row = heartbeat_row(record)
        except RecordError as error:
            log.warning("heartbeat_unparsable", topic=record.topic, offset=record.offset, reason=str(error))
            return
        broken_since = shared.rows[record.topic].read(row, created=created) if row is not None else None
        if row is None or broken_since is None:
            return
        for topic, rows_topic in shared.heartbeat_topics.items():
            if rows_topic == record.topic:
                for binding in shared.bindings[topic]:
                    message = f"heartbeat row {row.number} of {row.sender} came after a gap in their numbers"
                    await shared.find(binding, Finding.SLOT_JUMPED, message, since_ms=broken_since)

    async def _read_deliveries(self, stop: asyncio.Event) -> None:
        groups = _delivered_by(self._shared)
        while not stop.is_set():
            for delivery, pipelines in groups.items():
                await self._read_delivery(delivery, pipelines)
            await self._shared.pause(DELIVERY_SECONDS)

    async def _read_delivery(self, delivery: DeliverySpec, pipelines: Mapping[str, Sequence[str]]) -> None:
        """Ask once for all topics that a sink reads; one that we may not ask about says nothing of the others."""
        owned = {at: item for at, item in self._shared.owned.items() if at.topic in pipelines}
        if not owned:
            return
        try:
            found = await self._positions(delivery, list(owned))
        except StoreError as error:
            if len(pipelines) > 1 and not error.retriable:
                for topic, names in pipelines.items():
                    await self._read_delivery(delivery, {topic: names})
                return
            log.warning("delivery_unread", by=delivery.group or delivery.acks_topic, topics=sorted(pipelines), reason=str(error))
            for at, item in owned.items():
                item.delivery |= dict.fromkeys(pipelines[at.topic], (UNKNOWN_DELIVERY, self._on.clock.now_ms()))
            return
        for at, item in owned.items():
            position = delivery_of(found.positions.get(at), item.progress.position)
            item.delivery |= dict.fromkeys(pipelines[at.topic], (position, found.clock))

    async def _positions(self, delivery: DeliverySpec, partitions: Sequence[Partition]) -> GroupPositions:
        if delivery.acks_topic:
            return await self._on.offsets.acked(delivery.acks_topic, partitions)
        return await self._on.offsets.delivery(delivery.group, partitions)

    async def _read_grace(self, stop: asyncio.Event) -> None:
        """Keep the grace in force of pipelines whose grace is measured; while the ledger is away, the last one that is known."""
        on = self._on
        measured = [spec for spec in on.pipelines.values() if spec.grace_least_seconds is not None]
        while measured and not stop.is_set():
            for spec in measured:
                try:
                    self._shared.grace[spec.id] = await asyncio.to_thread(grace_ms, on.ledger, spec)
                except StoreError as error:
                    log.warning("grace_unread", pipeline=spec.id, reason=str(error))
            await on.clock.sleep(SKEW_SECONDS)

    async def _measure_skew(self, stop: asyncio.Event) -> None:
        on = self._on
        while not stop.is_set():
            for name in on.pipelines:
                try:
                    self._shared.skew[name] = abs(await on.skew_ms(name))
                except StoreError as error:
                    log.warning("clock_skew_unread", pipeline=name, reason=str(error))
            await on.clock.sleep(SKEW_SECONDS)


def _delivered_by(shared: Shared) -> dict[DeliverySpec, dict[str, list[str]]]:
    """Return, by who says how far a sink has come and by raw topic, the pipelines whose delivery it is."""
    groups: dict[DeliverySpec, dict[str, list[str]]] = {}
    for topic, bound in shared.bindings.items():
        for binding in bound:
            if binding.side is Side.EXPECTED and binding.pipeline.delivery.known:
                names = groups.setdefault(binding.pipeline.delivery, {}).setdefault(topic, [])
                names.append(binding.pipeline.id)
    return groups
