"""Kafka with the semantics of its logs: what is appended stays, an acknowledgement may get lost, groups change hands.

``Wire`` stands for librdkafka's producer under our own ``AckedProducer``; ``Member`` for ``RawConsumer``; ``Admin`` for
``TopicAdmin`` and ``OffsetReader``. When a record lands, is acknowledged or fails is up to the driver.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash
from confluent_kafka import TIMESTAMP_CREATE_TIME, KafkaError

from gapwatch.kafka.clients import AckedProducer, Committed, Partition, Polled, Rebalance
from gapwatch.kafka.offsets import GroupPositions, LogEnds
from gapwatch.kafka.producer import IN_FLIGHT_RECORDS_MAX
from gapwatch.kafka.topics import TopicFacts
from gapwatch.model.pipeline import Settings
from tests.simulation.kafka import Record
from tests.simulation.loop import ProcessClock, Time

Report = Callable[[Any, Any], None]
NOBODY = Settings(bootstrap_servers="none")


@dataclass
class Sent:
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    time: int
    report: Report


class Cluster:
    """Logs and groups. ``on_append`` and ``on_commit`` are told of everything that becomes durable, at that moment."""

    def __init__(self, topics: Mapping[str, int], time: Time, rng: random.Random) -> None:
        self.time = time
        self.random = rng
        self.topics = dict(topics)
        self.logs = {Partition(name, number): list[Record]() for name, count in topics.items() for number in range(count)}
        self.groups: dict[str, Group] = {}
        self.on_append: list[Callable[[Record, str], None]] = []
        self.on_commit: list[Callable[[str, Partition, Committed], None]] = []
        self.unheard = 0  # acknowledgements that got lost
        self.appended = xxhash.xxh3_128()

    def append(
        self,
        at: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        *,
        time: int = 0,
        kind: int = TIMESTAMP_CREATE_TIME,
        author: str = "",
    ) -> Record:
        log = self.logs[at]
        record = Record(at, len(log), key, value, headers, time or self.time.now_ms, kind)
        log.append(record)
        self.appended.update(repr(record).encode())
        for tell in self.on_append:
            tell(record, author)
        return record

    def group(self, name: str) -> Group:
        if name not in self.groups:
            self.groups[name] = Group(name, self)
        return self.groups[name]


class Wire:
    """One producer's records on their way. Order per partition is kept, but for what has failed: later ones pass it."""

    def __init__(self, cluster: Cluster, author: str) -> None:
        self._cluster = cluster
        self._author = author
        self.waiting: dict[Partition, list[Sent]] = {}
        self.unheard: list[tuple[Sent, Record]] = []  # appended, and the acknowledgement got lost: it comes with the retry
        self.cut = False
        self.frozen = False  # the process hears nothing; what it had handed over is on its way all the same

    def produce(
        self,
        topic: str,
        *,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        headers: Sequence[tuple[str, bytes]] | None,
        timestamp: int,
        on_delivery: Report,
    ) -> None:
        count = self._cluster.topics[topic]
        number = partition if partition >= 0 else xxhash.xxh32_intdigest(key or b"") % count
        self.waiting.setdefault(Partition(topic, number), []).append(Sent(key, value, headers or (), timestamp, on_delivery))

    @property
    def busy(self) -> bool:
        return bool(self.unheard) or any(self.waiting.values())

    def deliver(self, *, calm: bool = False) -> None:
        """The brokers take some of what is under way, or all of it, and mostly say so."""
        rng = self._cluster.random
        if not self.frozen:
            for sent, record in self.unheard:
                sent.report(None, record)
            self.unheard = []
        for at, waiting in self.waiting.items():
            count = len(waiting) if calm or rng.random() < 0.5 else rng.randrange(len(waiting) + 1)
            for sent in waiting[:count]:
                self._land(at, sent, heard=not self.frozen and (calm or rng.random() < 0.9))
            del waiting[:count]

    def _land(self, at: Partition, sent: Sent, *, heard: bool) -> None:
        record = self._cluster.append(at, sent.key, sent.value, sent.headers, time=sent.time, author=self._author)
        if heard:
            sent.report(None, record)
        else:
            self.unheard.append((sent, record))
            self._cluster.unheard += 1

    def fail(self) -> bool:
        """One record times out: it never landed, or it did and nobody heard of it. Return whether there was any."""
        rng = self._cluster.random
        if self.frozen:
            return False
        error = KafkaError(KafkaError._MSG_TIMED_OUT)
        if self.unheard and rng.random() < 0.3:
            sent, record = self.unheard.pop(0)
            sent.report(error, record)
            return True
        busy = [(at, waiting) for at, waiting in self.waiting.items() if waiting]
        if not busy:
            return False
        at, waiting = rng.choice(busy)
        waiting.pop(0).report(error, Record(at, -1, None, None, (), 0))
        return True

    def cut_off(self) -> None:
        """The process ends: of what is under way some lands, without anybody hearing of it."""
        for at, waiting in self.waiting.items():
            for sent in waiting[: self._cluster.random.randrange(len(waiting) + 1)]:
                self._cluster.append(at, sent.key, sent.value, sent.headers, time=sent.time, author=self._author)
        self.waiting.clear()
        self.unheard.clear()
        self.cut = True


class WiredProducer(AckedProducer):
    """Our producer itself, on a wire in place of librdkafka and its thread."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(NOBODY, client_id=name, in_flight_max=IN_FLIGHT_RECORDS_MAX)
        self.wire = Wire(cluster, name)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._producer = self.wire

    async def close(self) -> None:
        if not self.wire.cut:
            self.wire.cut_off()
        self._producer = None


@dataclass
class Group:
    """A consumer group: members meet, each gets its partitions, and a generation lasts until somebody comes or goes."""

    name: str
    cluster: Cluster
    members: dict[str, Member] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    assignment: dict[Partition, str] = field(default_factory=dict)
    committed: dict[Partition, Committed] = field(default_factory=dict)
    generation: int = 0
    meeting: bool = False

    def meet(self) -> None:
        """Begin a rebalance."""
        self.meeting = True
        self.joined.clear()

    def join(self, member: Member) -> None:
        self.members[member.name] = member
        self.meet()

    def leave(self, name: str) -> None:
        if self.members.pop(name, None) is not None:
            self.meet()

    def arrived(self, member: Member) -> None:
        self.joined.add(member.name)
        if self.joined >= self.members.keys():
            self._begin()

    def _begin(self) -> None:
        rng, names = self.cluster.random, sorted(self.members)
        self.generation += 1
        self.meeting = False
        wanted = {topic for member in self.members.values() for topic in member.topics}
        partitions = [at for at in self.cluster.logs if at.topic in wanted]
        self.assignment = {at: rng.choice(names) for at in partitions}

    def commit(self, positions: Mapping[Partition, Committed]) -> None:
        self.committed.update(positions)
        for at, position in positions.items():
            for tell in self.cluster.on_commit:
                tell(self.name, at, position)


class Member:
    """Stands for ``RawConsumer``. Rebalances happen while it consumes; ``dead``: its process has ended without a word."""

    def __init__(self, cluster: Cluster, name: str, clock: ProcessClock, *, group: str | None = None) -> None:
        self._cluster = cluster
        self._clock = clock
        self._group = cluster.group(group) if group is not None else None
        self._rebalance: Rebalance | None = None
        self._positions: dict[Partition, int] = {}
        self._generation = -1
        self.name = name
        self.topics: Sequence[str] = ()
        self.dead = False

    @property
    def owns(self) -> bool:
        """Whether the group counts on this member."""
        return self._group is not None and self.name in self._group.members and not self.dead

    async def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        assert self._group is not None
        self.topics, self._rebalance = topics, rebalance
        self._group.join(self)

    async def assign(self, starts: Mapping[Partition, int]) -> None:
        self._positions = dict(starts)

    async def log_range(self, at: Partition) -> tuple[int, int]:
        return 0, len(self._cluster.logs[at])

    async def consume(self, limit: int, *, seconds: float = 0.1) -> Polled:
        await self._clock.sleep(seconds)
        if self._group is not None:
            await self._follow(self._group)
        runs: dict[Partition, Any] = {}
        ends: dict[Partition, int] = {}
        for at, position in self._positions.items():
            log = self._cluster.logs[at]
            found = log[position : position + limit]
            if found and self._cluster.random.random() < 0.3:
                found = found[: self._cluster.random.randrange(len(found)) + 1]
            self._positions[at] = position + len(found)
            if found:
                runs[at] = found
            if self._positions[at] == len(log):
                ends[at] = len(log)
        return Polled(runs=runs, ends=ends)

    async def _follow(self, group: Group) -> None:
        rebalance = self._rebalance
        if rebalance is None:
            return
        if self.name not in group.members:  # the group went on without us
            await self._give_up(rebalance, lost=True)
            group.join(self)
        if group.meeting and self.name not in group.joined:
            group_commit = await self._give_up(rebalance, lost=False)
            group.commit(group_commit)
            group.arrived(self)
        if not group.meeting and self._generation != group.generation:
            mine = {at: group.committed.get(at) for at, name in group.assignment.items() if name == self.name}
            self._generation = group.generation
            starts = await rebalance.assigned(mine)
            self._positions = {at: max(0, start) for at, start in starts.items()}

    async def _give_up(self, rebalance: Rebalance, *, lost: bool) -> Mapping[Partition, Committed]:
        mine, self._positions = tuple(self._positions), {}
        return await rebalance.revoked(mine, lost=lost) if mine else {}

    async def commit(self, positions: Mapping[Partition, Committed]) -> bool:
        return self.commit_now(positions)

    def commit_now(self, positions: Mapping[Partition, Committed]) -> bool:
        """Commit for as long as the group's generation lasts, which is until every member has met the others."""
        assert self._group is not None
        if not self.owns or self._generation != self._group.generation:
            return False
        self._group.commit(positions)
        return True

    async def close(self) -> None:
        if self.dead or self._group is None:
            return
        if self.owns and self._rebalance is not None:
            given = await self._give_up(self._rebalance, lost=False)
            if self._generation == self._group.generation:
                self._group.commit(given)
        self._group.leave(self.name)
        self.dead = True

    def leave_silently(self) -> None:
        """The group does not hear of it any more and goes on without it."""
        assert self._group is not None
        self._group.leave(self.name)

    def die(self) -> None:
        self.dead = True
        if self._group is not None:
            self._group.leave(self.name)


class Admin:
    """Topics, ends of logs, and how far the sink's group has come."""

    def __init__(self, cluster: Cluster, delivered: Callable[[Partition], int | None]) -> None:
        self._cluster = cluster
        self._delivered = delivered

    async def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        known = self._cluster.topics
        return {name: TopicFacts(topic_id=f"id of {name}", partitions=known[name]) for name in names if name in known}

    async def compacted(self, names: Sequence[str]) -> frozenset[str]:
        return frozenset()

    async def log_starts(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, 0)

    async def log_ends(self, partitions: Collection[Partition]) -> LogEnds:
        return LogEnds(ends={at: len(self._cluster.logs[at]) for at in partitions}, clock=self._cluster.time.now_ms)

    async def delivery(self, group: str, partitions: Collection[Partition]) -> GroupPositions:
        found = {at: self._delivered(at) for at in partitions}
        return GroupPositions(group=group, positions=found, clock=self._cluster.time.now_ms)

    async def close(self) -> None: ...
