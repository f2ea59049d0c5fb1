"""Where groups and logs stand, each with our clock of that read."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from gapwatch.errors import StoreUnreachable
from gapwatch.kafka.faults import STORE, gapwatch_error
from gapwatch.kafka.options import REQUEST_SECONDS, Partition, admin_client
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Clock

# librdkafka's admin client asks with the leaders that it once learnt, and is refused for ever after a broker's restart.
_STALE: Final = frozenset(
    {
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPositions:
    """A group's committed positions. ``clock`` (ms) is ours *after* the answer: a position had been passed by then.

    A partition without a committed offset has None; so has each one when the group does not exist.
    """

    group: str
    positions: Mapping[Partition, int | None]
    clock: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnds:
    """Ends of logs (next offsets of committed records). ``clock`` (ms) is ours *before* the question was asked: whatever was
    appended by then lies below the end."""

    ends: Mapping[Partition, int]
    clock: int


class OffsetReader:
    """Reads positions through the admin interface; it joins no group.

    All methods raise StoreUnreachable when the brokers do not answer within 20 s, StoreRefused when a right or topic is missing.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._admin: AdminClient = admin_client(settings)
        self._clock = clock
        self._leaders_known = False

    async def delivery(self, group: str, partitions: Collection[Partition]) -> GroupPositions:
        """Return where ``group`` stands in ``partitions``."""
        wanted = [TopicPartition(p.topic, p.partition) for p in partitions]
        asked = self._admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=REQUEST_SECONDS
        )
        try:
            answer = await asyncio.wrap_future(asked[group])
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return GroupPositions(group=group, positions=dict.fromkeys(partitions), clock=self._clock.now_ms())
            raise gapwatch_error(error, f"read the positions of group {group}") from error
        positions: dict[Partition, int | None] = dict.fromkeys(partitions)
        for at in answer.topic_partitions or ():
            if at.error is not None:
                raise gapwatch_error(at.error, f"read the position of group {group} in {at.topic}[{at.partition}]")
            positions[Partition(at.topic, at.partition)] = at.offset if at.offset >= 0 else None
        return GroupPositions(group=group, positions=positions, clock=self._clock.now_ms())

    async def log_ends(self, partitions: Collection[Partition]) -> LogEnds:
        """Return the end of each partition's log (read committed)."""
        clock = self._clock.now_ms()
        return LogEnds(ends=await self._offsets(partitions, OffsetSpec.latest()), clock=clock)

    async def log_starts(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        """Return the first offset that each partition's log still holds."""
        return await self._offsets(partitions, OffsetSpec.earliest())

    async def _offsets(self, partitions: Collection[Partition], spec: OffsetSpec) -> dict[Partition, int]:
        if not partitions:
            return {}
        if not self._leaders_known:
            await self._find_leaders({at.topic for at in partitions})
        try:
            return await self._ask(partitions, spec)
        except KafkaException as error:
            if error.args[0].code() not in _STALE:
                self._leaders_known = False
                raise gapwatch_error(error, "read the ends of logs") from error
        self._admin = admin_client(self._settings)
        try:
            return await self._ask(partitions, spec)
        except KafkaException as error:
            self._leaders_known = False
            raise gapwatch_error(error, "read the ends of logs") from error

    async def _find_leaders(self, topics: Collection[str]) -> None:
        """Raise StoreUnreachable while a partition has no leader: librdkafka crashes when it has to wait for one by itself."""
        asked = self._admin.describe_topics(TopicCollection(sorted(topics)), request_timeout=REQUEST_SECONDS)
        for topic, future in asked.items():
            try:
                described = await asyncio.wrap_future(future)
            except KafkaException as error:
                raise gapwatch_error(error, f"find the leaders of {topic}") from error
            if any(partition.leader is None or partition.leader.id < 0 for partition in described.partitions):
                raise StoreUnreachable(f"Topic {topic} has partitions without a leader.", store=STORE, remedy="Wait for it.")
        self._leaders_known = True

    async def _ask(self, partitions: Collection[Partition], spec: OffsetSpec) -> dict[Partition, int]:
        asked = self._admin.list_offsets(
            {TopicPartition(p.topic, p.partition): spec for p in partitions},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=REQUEST_SECONDS,
        )
        return {Partition(at.topic, at.partition): (await asyncio.wrap_future(future)).offset for at, future in asked.items()}
