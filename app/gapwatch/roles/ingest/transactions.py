"""Reads a transaction topic, and once more the topics of its watched tables, outside the group; one ingester of all does it.

The order: what was read is judged, what lacks events is a hole in the ledger, and only then the position moves, under the
lease's number: whoever was frozen and lost the lease puts nothing back. A position that is not there any more is kept as lost
until reading has begun anew: what came in between was not counted, and is a hole. What keeps it from reading ends nothing
else of ingest. It is in the ledger for as long as it lasts, where the watcher finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import structlog

from gapwatch.core.transactions import Incomplete, Place, TransactionCheck
from gapwatch.errors import ConflictError, GapwatchError, HistoryLost, StoreRefused
from gapwatch.kafka.clients import Partition, Polled, RawConsumer
from gapwatch.model.gap import Finding
from gapwatch.model.stream import Side
from gapwatch.ports import Lease
from gapwatch.roles.board import Facts
from gapwatch.roles.ingest.bindings import Binding
from gapwatch.roles.ingest.parts import Shared

log = structlog.get_logger(__name__)

LEASE_SECONDS: Final = 15.0
WAIT_SECONDS: Final = 3.0  # before somebody else's lease is asked for again
REFUSED_SECONDS: Final = 15.0  # before a topic is asked for again that may not be read
STORE_SECONDS: Final = 2.0
TOPICS_SECONDS: Final = 2.0
RECORDS_PER_POLL: Final = 5_000
POLL_SECONDS: Final = 0.25


class Transactions:
    """Checks the transactions of one topic while it holds the lease.

    Args:
        shared: What the rooms of the role share.
        topic: Debezium's transaction topic.
        consumer: Makes a consumer of no group.
    """

    def __init__(self, shared: Shared, topic: str, consumer: Callable[[], RawConsumer]) -> None:
        self._shared = shared
        self._on = shared.on
        self._topic = topic
        self._consumer = consumer
        self._tables = tables_of(shared, topic)
        self._ticks = {shared.heartbeat_topics[name] for name in self._tables if name in shared.heartbeat_topics}
        self._left_out: set[str] = set()  # of the ticks: those that may not be read
        specs = [spec for spec in self._on.pipelines.values() if spec.source.transactions == topic]
        self._settle = max(spec.settle_seconds for spec in specs)

    async def run(self, stop: asyncio.Event) -> None:
        on, name = self._on, f"transactions/{self._topic}"
        while not stop.is_set():
            lease = await asyncio.to_thread(on.ledger.take_lease, name, on.name, seconds=LEASE_SECONDS)
            if lease is None:
                await on.clock.sleep(WAIT_SECONDS)
                continue
            try:
                await self._hold(lease, stop)
            except ConflictError as error:
                log.warning("lease_lost", lease=name, reason=error.message)
            except GapwatchError as error:
                if not (error.retriable or isinstance(error, StoreRefused)):
                    raise
                log.warning("transactions_unread", topic=self._topic, reason=str(error))
                await self._say({"why": error.message, "remedy": error.remedy})
                await on.clock.sleep(WAIT_SECONDS if error.retriable else REFUSED_SECONDS)
            finally:
                await asyncio.to_thread(on.ledger.release_lease, lease)

    async def _say(self, unread: Mapping[str, str] | None) -> None:
        """Keep why it could not be read, None: it can be."""
        await asyncio.to_thread(self._on.ledger.set_fact, Facts.transactions_unread(self._topic), unread)

    async def _keep(self, position: Mapping[str, Any], lease: Lease) -> None:
        """Raises ConflictError when somebody else has taken the lease."""
        await asyncio.to_thread(self._on.ledger.set_fact, Facts.transactions(self._topic), position, under=lease)

    async def _hold(self, lease: Lease, stop: asyncio.Event) -> None:
        check = TransactionCheck(self._topic, self._tables, int(self._settle * 1000))
        consumer = self._consumer()
        try:
            await self._check(check, lease, consumer, stop)
        except HistoryLost as error:
            log.warning("transactions_begin_anew", topic=self._topic, reason=str(error))
            await self._keep({"topics": [], "lost": error.message, "through": check.through_ms}, lease)
        finally:
            await consumer.close()

    async def _check(self, check: TransactionCheck, lease: Lease, consumer: RawConsumer, stop: asyncio.Event) -> None:
        """Check until the lease is lost."""
        on = self._on
        read = await self._begin(check, consumer)
        ends: dict[Place, int] | None = None
        clock = next_store = next_topics = 0.0
        read_through = False
        held: Lease | None = lease
        while held is not None and not stop.is_set():
            if on.clock.monotonic() >= next_topics:
                await self._join(check, read, consumer)
                next_topics = on.clock.monotonic() + TOPICS_SECONDS
            await self._take(
                check, read, consumer, await consumer.consume(RECORDS_PER_POLL, seconds=POLL_SECONDS) if read else Polled()
            )
            if ends is None and check.due():
                clock, ends = check.clock, await self._log_ends(read)
            if ends is not None and all(read.get(place, end) >= end for place, end in ends.items()):
                await self._judge(check, int(clock))
                ends = None
            if on.clock.monotonic() >= next_store:
                if next_store and not read_through:  # for so long: a refusal would have come
                    await self._say(None)
                    read_through = True
                next_store = on.clock.monotonic() + STORE_SECONDS
                await self._keep(check.position(), held)
                held = await asyncio.to_thread(on.ledger.renew_lease, held, seconds=LEASE_SECONDS)
            if not read:
                await on.clock.sleep(POLL_SECONDS)

    async def _begin(self, check: TransactionCheck, consumer: RawConsumer) -> dict[Place, int]:
        """Go on where the last reader stood; else begin with the transactions that begin from now on."""
        on = self._on
        known = await asyncio.to_thread(on.ledger.fact, Facts.transactions(self._topic))
        starts = check.resume(known) if known is not None else None
        if starts is None:
            starts = await self._ends(consumer, self._tables)
            await on.clock.sleep(self._settle)  # so that a begin that is read lies before events that are
            starts |= await self._ends(consumer, [self._topic])
            if known is not None and "lost" in known:
                await self._uncounted(known["lost"], since_ms=check.through_ms)
            check.through_ms = on.clock.now_ms()
        starts = {place: offset for place, offset in starts.items() if place[0] not in self._ticks}  # those are read from now on
        for place, offset in starts.items():
            low, high = await consumer.log_range(Partition(*place))
            if not low <= offset <= high:
                raise HistoryLost(f"Offset {offset} of {place[0]}[{place[1]}] is not there any more.")
        check.begin(starts)
        for tick in sorted(self._ticks - self._left_out):
            try:
                starts |= await self._ends(consumer, [tick])
            except StoreRefused as error:
                self._leave_out(tick, error)
        await consumer.assign({Partition(*place): offset for place, offset in starts.items()})
        return starts

    async def _uncounted(self, why: str, *, since_ms: int) -> None:
        """Nobody counts the transactions since then: whatever of their events is missing, a sweep has to find it."""
        for topic, table in self._tables.items():
            for binding in self._bindings(topic):
                sentence = f"transactions that wrote to {table} were not counted: {why} Counting began anew."
                await self._shared.find(binding, Finding.INGEST_HOLE, sentence, since_ms=since_ms)

    async def _log_ends(self, places: Iterable[Place]) -> dict[Place, int]:
        found = await self._on.offsets.log_ends([Partition(*place) for place in places])
        return {(at.topic, at.partition): end for at, end in found.ends.items()}

    async def _ends(self, consumer: RawConsumer, topics: Iterable[str]) -> dict[Place, int]:
        facts = await self._on.topics.describe(sorted(topics))
        places = [(topic, number) for topic, fact in facts.items() for number in range(fact.partitions)]
        return {place: (await consumer.log_range(Partition(*place)))[1] for place in places}

    async def _join(self, check: TransactionCheck, read: dict[Place, int], consumer: RawConsumer) -> None:
        """Read topics and partitions that were made since, from their beginning."""
        facts = {**await self._on.topics.describe(sorted({self._topic, *self._tables}))}
        for tick in sorted(self._ticks - self._left_out):
            try:
                facts |= await self._on.topics.describe([tick])
            except StoreRefused as error:
                self._leave_out(tick, error)
        fresh = {(topic, number): 0 for topic, fact in facts.items() for number in range(fact.partitions)}
        fresh = {place: offset for place, offset in fresh.items() if place not in read}
        if fresh:
            check.begin({place: offset for place, offset in fresh.items() if place[0] not in self._ticks})
            read |= fresh
            await consumer.assign({Partition(*place): offset for place, offset in read.items()})

    def _leave_out(self, tick: str, fault: StoreRefused) -> None:
        """Go on without a topic of heartbeats that may not be read: the other records are the clock."""
        self._left_out.add(tick)
        log.warning("heartbeats_refused", topic=tick, reason=str(fault))

    async def _take(self, check: TransactionCheck, read: dict[Place, int], consumer: RawConsumer, polled: Polled) -> None:
        for where, fault in polled.faults:
            if isinstance(fault, StoreRefused) and where is not None and where.topic in self._ticks:
                if where.topic not in self._left_out:
                    self._leave_out(where.topic, fault)
                    for place in [place for place in read if place[0] == where.topic]:
                        del read[place]
                    await consumer.assign({Partition(*place): offset for place, offset in read.items()})
                continue
            if not fault.retriable:
                raise fault
            log.warning("transactions_unreadable", where=str(where), reason=str(fault))
        for at, messages in polled.runs.items():
            place = (at.topic, at.partition)
            for message in messages:
                _, appended = message.timestamp()
                check.take(place, message.offset() or 0, appended, message.value())
            read[place] = (messages[-1].offset() or 0) + 1
        for at, end in polled.ends.items():  # control records are no messages
            read[at.topic, at.partition] = max(read[at.topic, at.partition], end)

    async def _judge(self, check: TransactionCheck, clock: int) -> None:
        judged = check.judge(clock)
        for one in judged.incomplete:
            await self._find(one)
        for outcome, count in (
            ("complete", judged.complete),
            ("incomplete", len({one.id for one in judged.incomplete})),
            ("unchecked", judged.unchecked),
        ):
            self._on.on_transactions(outcome, count)

    async def _find(self, one: Incomplete) -> None:
        for binding in self._bindings(one.topic):
            await self._shared.find(binding, Finding.INGEST_HOLE, one.sentence(), at_ms=one.time)

    def _bindings(self, topic: str) -> Sequence[Binding]:
        """Return the bindings of a table's topic to pipelines whose transactions these are."""
        bound = self._shared.bindings.get(topic, ())
        return [one for one in bound if one.side is Side.EXPECTED and one.pipeline.source.transactions == self._topic]


def tables_of(shared: Shared, topic: str) -> Mapping[str, str]:
    """Return the watched tables, by their topics, whose transactions a topic tells."""
    specs = [spec for spec in shared.on.pipelines.values() if spec.source.transactions == topic]
    return {one.source.feed.topic: one.source.table for spec in specs for one in spec.by_table()}


def checks_of(shared: Shared, consumer: Callable[[], RawConsumer]) -> list[Transactions]:
    topics = sorted({spec.source.transactions for spec in shared.on.pipelines.values() if spec.source.transactions})
    return [Transactions(shared, topic, consumer) for topic in topics]
