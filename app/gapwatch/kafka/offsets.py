"""Where groups and logs stand, each with our clock of that read."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from gapwatch.kafka.acked import AckedPositions
from gapwatch.kafka.faults import gapwatch_error
from gapwatch.kafka.options import REQUEST_SECONDS, Admin, Partition, admin_client, all_answered, client_options
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Clock

ELECTION_SECONDS: Final = 0.2
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
    """Reads positions and ends of logs; it joins no group.

    All methods raise StoreUnreachable when the brokers do not answer within 20 s, StoreRefused when a right or topic is missing.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._admin: Admin = admin_client(settings)
        self._clock = clock
        self._groups: dict[str, _GroupReader] = {}
        self._acked: dict[str, AckedPositions] = {}

    async def delivery(self, group: str, partitions: Collection[Partition]) -> GroupPositions:
        """Return where ``group`` stands in ``partitions``."""
        if group not in self._groups:
            self._groups[group] = _GroupReader(self._settings, group)
        found = await self._groups[group].positions(partitions)
        return GroupPositions(group=group, positions=found, clock=self._clock.now_ms())

    async def acked(self, topic: str, partitions: Collection[Partition]) -> GroupPositions:
        """Return where the indexers that acknowledge into ``topic`` stand in ``partitions``."""
        if topic not in self._acked:
            self._acked[topic] = AckedPositions(self._settings, topic)
        found = await self._acked[topic].positions(partitions, self._clock.now_ms())
        return GroupPositions(group=topic, positions=found, clock=self._clock.now_ms())

    async def close(self) -> None:
        while self._groups:
            await self._groups.popitem()[1].close()
        while self._acked:
            await self._acked.popitem()[1].close()

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
        until = self._clock.monotonic() + REQUEST_SECONDS
        while True:
            admin = self._admin
            try:
                return await _list_offsets(admin, partitions, spec)
            except KafkaException as error:
                if error.args[0].code() not in _STALE or self._clock.monotonic() > until:
                    raise gapwatch_error(error, "read the ends of logs") from error
            if admin is self._admin:
                self._admin = admin_client(self._settings)
            await self._clock.sleep(ELECTION_SECONDS)


async def _list_offsets(admin: Admin, partitions: Collection[Partition], spec: OffsetSpec) -> dict[Partition, int]:
    """Ask, holding the client until all is answered: one that is let go of earlier takes its open questions with it."""
    asked = admin.list_offsets(
        {TopicPartition(p.topic, p.partition): spec for p in partitions},
        isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=REQUEST_SECONDS,
    )
    await all_answered(asked.values())
    return {Partition(at.topic, at.partition): future.result().offset for at, future in asked.items()}


class _GroupReader:
    """Reads what a group committed, as a client of that group that never joins it.

    Not through the admin client: in librdkafka 2.16 its ListConsumerGroupOffsets ends the whole process with SIGSEGV when the
    broker answers NOT_COORDINATOR (``rd_kafka_handle_OffsetFetch`` asks for the coordinator anew through the consumer that an
    admin client does not have), which every broker does for a moment when groups move.
    """

    def __init__(self, settings: Settings, group: str) -> None:
        self._group = group
        guarantees = {
            "client.id": f"positions-of-{group}",
            "group.id": group,
            "enable.auto.commit": False,
            "isolation.level": "read_uncommitted",  # do not wait for the transactions in which sinks commit
            "allow.auto.create.topics": False,
        }
        try:
            self._consumer = Consumer(client_options(settings, guarantees=guarantees))
        except KafkaException as error:
            raise gapwatch_error(error, "use kafka.options") from error
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"positions-of-{group}")

    async def positions(self, partitions: Collection[Partition]) -> dict[Partition, int | None]:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._ask, partitions)
        except KafkaException as error:
            raise gapwatch_error(error, f"read the positions of group {self._group}") from error
        positions: dict[Partition, int | None] = {}
        for at in found:
            if at.error is not None:
                raise gapwatch_error(at.error, f"read the position of group {self._group} in {at.topic}[{at.partition}]")
            positions[Partition(at.topic, at.partition)] = at.offset if at.offset >= 0 else None
        return positions

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._consumer.close)
        self._executor.shutdown(wait=False)

    def _ask(self, partitions: Collection[Partition]) -> list[TopicPartition]:
        self._consumer.poll(0)  # nothing is subscribed: this only lets `error_cb` run
        found: list[TopicPartition] = self._consumer.committed(
            [TopicPartition(*at) for at in partitions], timeout=REQUEST_SECONDS
        )
        return found
