"""Reads ``gapwatch.status`` from its beginning, outside any group: every process that answers questions reads all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from confluent_kafka import Message

from gapwatch.errors import FeedError
from gapwatch.kafka.clients import Partition, RawConsumer
from gapwatch.model.pipeline import TopicsSpec

RECORDS_MAX = 2_000
TOGETHER_SECONDS = 0.1  # what comes so soon after a first record is read with it


class Record(NamedTuple):
    key: bytes
    value: bytes


class StatusTopic:
    """Implements :class:`gapwatch.roles.board.StatusFeed`."""

    def __init__(self, consumer: RawConsumer, topics: TopicsSpec) -> None:
        self._consumer = consumer
        self._topics = topics
        self._ends: dict[Partition, int] = {}
        self._started = False
        self._still = False  # the last read brought nothing

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
        """Return the values of new records; see :meth:`records`."""
        return [record.value for record in await self.records(seconds)]

    async def records(self, seconds: float) -> Sequence[Record]:
        """Return new records; raises FeedError or StoreError when the topic cannot be read."""
        messages: list[Message] = []
        if self._still:  # wait for the first one, however long the others take
            messages = await self._consume(1, seconds)
        if messages or not self._still:
            messages += await self._consume(RECORDS_MAX, min(seconds, TOGETHER_SECONDS))
        self._still = not messages
        records = []
        for message in messages:
            at = Partition(message.topic() or "", message.partition() or 0)
            if (message.offset() or 0) + 1 >= self._ends.get(at, 0):
                self._ends.pop(at, None)
            value = message.value()
            if value is not None:
                records.append(Record(message.key() or b"", value))
        return records

    async def _consume(self, limit: int, seconds: float) -> list[Message]:
        polled = await self._consumer.consume(limit, seconds=seconds)
        for _, fault in polled.faults:
            if not fault.retriable:
                raise fault
        return polled.messages

    @property
    def at_end(self) -> bool:
        return self._started and not self._ends

    async def close(self) -> None:
        await self._consumer.close()


class StatusReader:
    """One reader of the topic for all boards of a process. ``opened``: makes a new one, of which nothing was asked yet.

    Whoever comes later is given the newest record of every key first. A reader that fails ends all of its views; a view that is
    cancelled leaves the others alone.
    """

    def __init__(self, opened: Callable[[], StatusTopic]) -> None:
        self._opened = opened
        self._topic: StatusTopic | None = None
        self._newest: dict[bytes, bytes] = {}
        self._views: list[StatusView] = []
        self._coming = asyncio.Lock()
        self._step: asyncio.Task[None] | None = None

    def view(self) -> StatusView:
        """Return a view of its own for one board."""
        return StatusView(self)

    async def join(self, view: StatusView) -> None:
        """Give a view what is known, and what comes from now on."""
        async with self._coming:
            if self._topic is None:
                topic = self._opened()
                try:
                    await topic.start()
                except BaseException:
                    await topic.close()
                    raise
                self._topic = topic
            view.waiting = list(self._newest.values())
            self._views.append(view)

    async def leave(self, view: StatusView) -> None:
        """Forget a view; the last one closes the reader."""
        async with self._coming:
            if view in self._views:
                self._views.remove(view)
                if not self._views:
                    await self._end()

    async def feed(self, view: StatusView, seconds: float) -> None:
        """Read on for all views; two that wait wait together. Raises FeedError or StoreError when the topic cannot be read."""
        if view not in self._views:
            raise FeedError("The reader of the status topic has failed.", remedy="It is started anew.")
        if self._step is None or self._step.done():
            self._step = asyncio.create_task(self._read(seconds))
            self._step.add_done_callback(_looked_at)
        await asyncio.shield(self._step)

    def is_at_end(self, view: StatusView) -> bool:
        return view in self._views and self._topic is not None and self._topic.at_end and not view.waiting

    async def _read(self, seconds: float) -> None:
        topic = self._topic
        assert topic is not None
        try:
            records = await topic.records(seconds)
        except BaseException:
            if topic is self._topic:
                self._views.clear()
                await self._end()
            raise
        if topic is not self._topic:  # all had left meanwhile, and whoever came since has a reader of his own
            return
        self._newest.update(records)
        for view in self._views:
            view.waiting += [record.value for record in records]

    async def _end(self) -> None:
        topic, self._topic = self._topic, None
        self._newest.clear()
        if topic is not None:
            await topic.close()


def _looked_at(step: asyncio.Task[None]) -> None:
    """Nobody may be left who waits for it; then its failure is nobody's."""
    if not step.cancelled():
        step.exception()


class StatusView:
    """Implements :class:`gapwatch.roles.board.StatusFeed` for one board of a process with several."""

    def __init__(self, reader: StatusReader) -> None:
        self._reader = reader
        self.waiting: list[bytes] = []

    async def start(self) -> None:
        await self._reader.join(self)

    async def read(self, seconds: float) -> Sequence[bytes]:
        """Return new records; raises FeedError or StoreError when the topic cannot be read."""
        if not self.waiting:
            await self._reader.feed(self, seconds)
        values, self.waiting = self.waiting, []
        return values

    @property
    def at_end(self) -> bool:
        return self._reader.is_at_end(self)

    async def close(self) -> None:
        await self._reader.leave(self)
