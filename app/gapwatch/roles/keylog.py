"""Reads the tail of one key's partition of ``gapwatch.events``: what ``match`` was told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gapwatch.core.batches import unpack
from gapwatch.core.keys import partition_of
from gapwatch.core.keytrace import KeyTrace
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.kafka.clients import Partition, RawConsumer
from gapwatch.model.pipeline import TopicsSpec
from gapwatch.ports import Clock, Key

LOOKBACK_SECONDS = 3_600
RECORDS_MAX = 50_000
RECORDS_PER_READ = 1_000
SECONDS_MAX = 15.0


class KeyLog:
    """``consumer`` makes a new one, of no group, for every question."""

    def __init__(self, consumer: Callable[[], RawConsumer], topics: TopicsSpec, clock: Clock) -> None:
        self._consumer = consumer
        self._topics = topics
        self._clock = clock

    async def trace(self, mapping: CompiledMapping, key: Key) -> KeyTrace:
        """Return what the last hour told of a key of the mapping's pipeline (of the last 50,000 records at most).

        Raises StoreError, FeedError or TimeoutError where it cannot be read.
        """
        trace = KeyTrace(mapping.pipeline.id, key, mapping.pipeline.match, mapping.values_agree)
        at = Partition(self._topics.events, partition_of(key, self._topics.partitions))
        consumer = self._consumer()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await self._read(consumer, at, trace)
        finally:
            await consumer.close()
        return trace

    async def _read(self, consumer: RawConsumer, at: Partition, trace: KeyTrace) -> None:
        start, end = await consumer.log_range(at)
        since = (await consumer.offsets_at([at], self._clock.now_ms() - LOOKBACK_SECONDS * 1000))[at]
        offset = max(start, end - RECORDS_MAX, end if since is None else since)
        await consumer.assign({at: offset})
        while offset < end:
            polled = await consumer.consume(RECORDS_PER_READ, seconds=0.5)
            for _, fault in polled.faults:
                if not fault.retriable:
                    raise fault
            for message in polled.messages:
                offset = (message.offset() or 0) + 1
                try:
                    trace.take(unpack(message.value() or b""), message.timestamp()[1])
                except RecordError:
                    continue  # match takes an unreadable record for an empty one, too
