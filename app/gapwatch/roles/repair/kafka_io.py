"""The role's Kafka side: suspects come in, verdicts and published gaps go out."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import msgspec

from gapwatch.core.batches import pack
from gapwatch.errors import HistoryLost, ProtocolError
from gapwatch.kafka.clients import AckedProducer, Committed, Partition, RawConsumer
from gapwatch.model.pipeline import TopicsSpec
from gapwatch.model.stream import FORMAT, Batch, VerdictSection
from gapwatch.model.suspect import Said
from gapwatch.ports import OutboxRow
from gapwatch.roles.repair.confirmer import Raised, Verdict

COMMIT_EVERY = 200  # finished suspects
TOGETHER_SECONDS = 0.05  # what comes so soon after a first suspect is read with it
UNDONE_MAX = 50_000  # suspects under judgement, above which no more are read


class SuspectInbox:
    """Reads ``gapwatch.suspects`` as a group member; a partition's offset moves up to the first suspect that is not done."""

    def __init__(self, consumer: RawConsumer, topics: TopicsSpec) -> None:
        self._consumer = consumer
        self._topics = topics
        self._open: dict[Partition, dict[int, None]] = {}
        self._next: dict[Partition, int] = {}
        self._finished = 0
        self._still = False  # the last read brought nothing

    async def start(self) -> None:
        await self._consumer.subscribe([self._topics.suspects], self)

    async def take(self, limit: int, seconds: float) -> Sequence[Raised]:
        """Return new suspects; raises FeedError or StoreError when the topic cannot be read."""
        if sum(len(offsets) for offsets in self._open.values()) > UNDONE_MAX:
            await asyncio.sleep(seconds)
            return ()
        wanted, patience = (1, seconds) if self._still else (limit, min(seconds, TOGETHER_SECONDS))
        polled = await self._consumer.consume(wanted, seconds=patience)
        self._still = not polled.runs
        for where, fault in polled.faults:
            if not fault.retriable and not (isinstance(fault, HistoryLost) and where is None):
                raise fault
        raised = []
        for message in polled.messages:
            topic, number, offset, value = message.topic(), message.partition(), message.offset(), message.value()
            if topic is None or number is None or offset is None:
                raise ProtocolError("A record of the suspects topic has no place.")
            at = Partition(topic, number)
            self._next[at] = offset + 1
            if value is None:
                continue
            self._open.setdefault(at, {})[offset] = None
            raised.append(Raised(partition=number, offset=offset, record=_read(value, f"{at.topic}[{number}]", offset)))
        return raised

    async def done(self, raised: Sequence[Raised]) -> None:
        for item in raised:
            at = Partition(self._topics.suspects, item.partition)
            self._open.get(at, {}).pop(item.offset, None)
        self._finished += len(raised)
        if self._finished >= COMMIT_EVERY:
            await self.commit()

    async def commit(self) -> None:
        """Commit what is done. Losing a commit repeats suspects, which is harmless."""
        self._finished = 0
        await self._consumer.commit(self._positions(self._next))

    async def close(self) -> None:
        await self._consumer.close()

    def _positions(self, partitions: Collection[Partition]) -> dict[Partition, Committed]:
        return {at: Committed(min(self._open.get(at) or [self._next[at]])) for at in partitions if at in self._next}

    async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
        """Start where the group stands, or (nothing is lost by reading twice) at the beginning of the log."""
        return {at: position.offset if position else BEGINNING for at, position in committed.items()}

    async def revoked(self, partitions: Collection[Partition], *, lost: bool) -> Mapping[Partition, Committed]:
        positions = {} if lost else self._positions(partitions)
        for at in partitions:
            self._open.pop(at, None)
            self._next.pop(at, None)
        return positions


BEGINNING = -2  # librdkafka's name for the start of the log


def _read(value: bytes, where: str, offset: int) -> Said:
    try:
        said: Said = msgspec.json.decode(value, type=Said)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            f"The record at offset {offset} of {where} is none that this version reads: {error}.",
            remedy="Where a newer Gapwatch wrote it, upgrade role repair first; it begins there again.",
        ) from error
    return said


class VerdictPublisher:
    """Sends verdicts as sections to the partitions that their keys live in."""

    def __init__(self, producer: AckedProducer, topics: TopicsSpec) -> None:
        self._producer = producer
        self._topics = topics

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        by_partition: dict[int, dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
        for verdict in verdicts:
            by_partition[verdict.partition][verdict.pipeline].append(verdict)
        futures = []
        for partition, by_pipeline in by_partition.items():
            sections = [_section(pipeline, group) for pipeline, group in by_pipeline.items()]
            value = pack(Batch(format=FORMAT, sections=[], verdicts=sections))
            futures.append(await self._producer.send(self._topics.events, None, value, partition=partition))
        await asyncio.gather(*futures)


def _section(pipeline: str, verdicts: Sequence[Verdict]) -> VerdictSection:
    return VerdictSection(
        pipeline=pipeline,
        keys=[verdict.key for verdict in verdicts],
        sides=bytes(verdict.side for verdict in verdicts),
        tokens=[verdict.token for verdict in verdicts],
        outcomes=bytes(int(verdict.outcome) for verdict in verdicts),
    )


class GapPublisher:
    """Sends the outbox to ``gapwatch.gaps``, keyed by gap id."""

    def __init__(self, producer: AckedProducer, topics: TopicsSpec) -> None:
        self._producer = producer
        self._topics = topics

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        futures = [await self._producer.send(self._topics.gaps, row.key.encode(), row.payload) for row in rows]
        await asyncio.gather(*futures)
