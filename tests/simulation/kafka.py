"""Kafka as the roles see it, in memory, with a crash at any of its calls: what was handed over may be durable, or not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import TIMESTAMP_CREATE_TIME

from gapwatch.errors import ConflictError, GapwatchError
from gapwatch.kafka.clients import Committed, Delivered, Partition, Polled, Rebalance
from gapwatch.kafka.fenced import Outgoing, Waiting
from gapwatch.kafka.offsets import GroupPositions, LogEnds
from gapwatch.kafka.topics import TopicFacts
from gapwatch.ports import Clock
from tests.simulation.worker import Crash


class Record(NamedTuple):
    """One record of a log; it answers like librdkafka's message."""

    at: Partition
    number: int
    record_key: bytes | None
    record_value: bytes | None
    record_headers: Sequence[tuple[str, bytes]]
    time: int
    kind: int = TIMESTAMP_CREATE_TIME  # of time

    def topic(self) -> str:
        return self.at.topic

    def partition(self) -> int:
        return self.at.partition

    def offset(self) -> int:
        return self.number

    def key(self) -> bytes | None:
        return self.record_key

    def value(self) -> bytes | None:
        return self.record_value

    def headers(self) -> list[tuple[str, bytes]]:
        return list(self.record_headers)

    def timestamp(self) -> tuple[int, int]:
        return self.kind, self.time


class Broker:
    """Logs and committed offsets: what outlives every process. ``calls_left``: how many calls a process has before it dies."""

    def __init__(self, partitions: Mapping[str, int], clock: Clock, *, seed: int = 0) -> None:
        self.clock = clock
        self.random = random.Random(seed)
        self.logs = {Partition(topic, number): list[Record]() for topic, count in partitions.items() for number in range(count)}
        self.partitions = dict(partitions)
        self.committed: dict[Partition, Committed] = {}
        self.writers: dict[str, object] = {}  # by transactional id: who took over last
        self.calls = 0
        self.calls_left: int | None = None

    def call(self) -> None:
        """Count one call; raises Crash when it was one too many."""
        self.calls += 1
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Crash

    def append(
        self, at: Partition, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = (), time: int = 0
    ) -> Record:
        log = self.logs[at]
        log.append(Record(at, len(log), key, value, headers, time or self.clock.now_ms()))
        return log[-1]

    def log(self, topic: str) -> list[Record]:
        return [record for at, log in self.logs.items() if at.topic == topic for record in log]


class Producer:
    """Stands for ``AckedProducer``: order per partition is kept; when a record is acknowledged is anybody's guess."""

    failure: GapwatchError | None = None

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: dict[Partition, list[tuple[asyncio.Future[Delivered], Any]]] = {}
        self._scheduled = False

    async def start(self) -> None: ...

    async def close(self) -> None:
        """The process ends: of what is under way some is durable, without anybody hearing of it."""
        for at, waiting in self._waiting.items():
            for _, record in waiting[: self._broker.random.randrange(len(waiting) + 1)]:
                self._broker.append(at, *record)
            for future, _ in waiting:
                future.cancel()
        self._waiting.clear()

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
        timestamp: int = 0,
    ) -> asyncio.Future[Delivered]:
        self._broker.call()
        future: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        at = Partition(topic, max(0, partition))
        self._waiting.setdefault(at, []).append((future, (key, value, headers)))
        self._schedule()
        return future

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        for at, waiting in self._waiting.items():
            count = self._broker.random.randrange(len(waiting) + 1)
            for future, record in waiting[:count]:
                stored = self._broker.append(at, *record)
                if not future.done():
                    future.set_result(Delivered(at.topic, at.partition, stored.number))
            del waiting[:count]
        if any(self._waiting.values()):
            self._schedule()


class FeedProducer:
    """Stands for ``FencedProducer``: a batch is there as a whole or not at all, and the last one that took over may write."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self._name = name

    async def take_over(self, waiting: Waiting) -> None:
        self._broker.call()
        self._broker.writers[self._name] = self

    async def write(self, records: Sequence[Outgoing], waiting: Waiting) -> None:
        self._broker.call()
        if self._broker.writers[self._name] is not self:
            raise ConflictError("Kafka refused a write: another process has taken over.")
        for one in records:
            self._broker.append(Partition(one.topic, one.partition), one.key, one.value, one.headers)
        self._broker.call()

    async def close(self) -> None: ...


class Consumer:
    """Stands for ``RawConsumer``, alone in its group. ``stop`` is set when everything was read and committed."""

    def __init__(self, broker: Broker, stop: asyncio.Event) -> None:
        self._broker = broker
        self._stop = stop
        self._wanted: Sequence[str] = ()
        self._rebalance: Rebalance | None = None
        self._positions: dict[Partition, int] = {}
        self._idle = 0

    async def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        self._wanted, self._rebalance, self._positions = topics, rebalance, {}

    async def assign(self, starts: Mapping[Partition, int]) -> None:
        self._positions = dict(starts)

    async def log_range(self, at: Partition) -> tuple[int, int]:
        return 0, len(self._broker.logs[at])

    async def consume(self, limit: int, *, seconds: float = 0.1) -> Polled:
        broker = self._broker
        broker.call()
        await broker.clock.sleep(seconds)
        if self._rebalance is not None and not self._positions:
            mine = [at for at in broker.logs if at.topic in self._wanted]
            self._positions = dict(await self._rebalance.assigned({at: broker.committed.get(at) for at in mine}))
        runs: dict[Partition, Any] = {}
        ends: dict[Partition, int] = {}
        for at, position in self._positions.items():
            found = broker.logs[at][position : position + broker.random.randrange(3)]
            self._positions[at] = position + len(found)
            if found:
                runs[at] = found
            if self._positions[at] == len(broker.logs[at]):
                ends[at] = self._positions[at]
        committed = all(broker.committed.get(at, Committed(0)).offset == end for at, end in self._positions.items())
        self._idle = self._idle + 1 if committed and len(ends) == len(self._positions) else 0
        if self._idle > 3:
            self._stop.set()
        return Polled(runs=runs, ends=ends)

    async def commit(self, positions: Mapping[Partition, Committed]) -> None:
        self._broker.call()
        self._broker.committed.update(positions)
        self._broker.call()

    async def close(self) -> None: ...


class Admin:
    """Stands for ``TopicAdmin`` and ``OffsetReader``."""

    def __init__(self, broker: Broker, *, compacted: Collection[str] = ()) -> None:
        self._broker = broker
        self._compacted = frozenset(compacted)

    async def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        known = self._broker.partitions
        return {name: TopicFacts(topic_id=f"id of {name}", partitions=known[name]) for name in names if name in known}

    async def compacted(self, names: Sequence[str]) -> frozenset[str]:
        return self._compacted

    async def log_starts(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, 0)

    async def log_ends(self, partitions: Collection[Partition]) -> LogEnds:
        clock = self._broker.clock.now_ms()
        return LogEnds(ends={at: len(self._broker.logs[at]) for at in partitions}, clock=clock)

    async def delivery(self, group: str, partitions: Collection[Partition]) -> GroupPositions:
        return GroupPositions(group=group, positions=dict.fromkeys(partitions), clock=self._broker.clock.now_ms())

    async def close(self) -> None: ...
