"""Reads ``gapwatch.status`` from its beginning, outside any group: every process that answers questions reads all of it."""

from __future__ import annotations

from collections.abc import Sequence

from gapwatch.kafka.clients import Partition, RawConsumer
from gapwatch.model.pipeline import TopicsSpec

RECORDS_MAX = 2_000


class StatusTopic:
    """Implements :class:`gapwatch.roles.board.StatusFeed`."""

    def __init__(self, consumer: RawConsumer, topics: TopicsSpec) -> None:
        self._consumer = consumer
        self._topics = topics
        self._ends: dict[Partition, int] = {}
        self._started = False

    async def start(self) -> None:
        starts: dict[Partition, int] = {}
        for number in await self._consumer.partitions(self._topics.status):
            at = Partition(self._topics.status, number)
            first, end = await self._consumer.log_range(at)
            starts[at] = first
            if end > first:
                self._ends[at] = end
        await self._consumer.assign(starts)
        self._started = True

    async def read(self, seconds: float) -> Sequence[bytes]:
        """Return new records; raises FeedError or StoreError when the topic cannot be read."""
        polled = await self._consumer.consume(RECORDS_MAX, seconds=min(seconds, 0.1))
        for _, fault in polled.faults:
            if not fault.retriable:
                raise fault
        values = []
        for message in polled.messages:
            at = Partition(message.topic() or "", message.partition() or 0)
            if (message.offset() or 0) + 1 >= self._ends.get(at, 0):
                self._ends.pop(at, None)
            value = message.value()
            if value is not None:
                values.append(value)
        return values

    @property
    def at_end(self) -> bool:
        return self._started and not self._ends

    async def close(self) -> None:
        await self._consumer.close()
