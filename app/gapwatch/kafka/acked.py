"""How far indexers have come, by what the heartbeats among their acks say.

They send each to every partition of the topic, so that one partition tells all. Of one partition of a source, the newest
heartbeat that names it counts: it goes up and down with its indexer, and stands where that one is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from gapwatch.core.envelopes.search import delivered_of
from gapwatch.errors import RecordError
from gapwatch.kafka.faults import gapwatch_error
from gapwatch.kafka.options import REQUEST_SECONDS, Partition, client_options
from gapwatch.model.pipeline import Settings

log = structlog.get_logger(__name__)

TAIL_MS: Final = 10_000  # how old the oldest heartbeat is that a start looks for: there is about one a second
RECORDS_MAX: Final = 10_000  # at once
POLL_SECONDS: Final = 0.02


class AckedPositions:
    """Reads one partition of an acks topic, in no group. Raises StoreUnreachable, or StoreRefused where it may not be read."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        guarantees = {
            "client.id": f"acked-by-{topic}",
            "group.id": f"{settings.topics.prefix}.acked",  # never joined, and nothing is committed
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
        }
        try:
            self._consumer = Consumer(client_options(settings, guarantees=guarantees))
        except KafkaException as error:
            raise gapwatch_error(error, "use kafka.options") from error
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"acked-by-{topic}")
        self._reads = False
        self._known: dict[Partition, tuple[int, int]] = {}  # when it was said, and the next offset

    async def positions(self, partitions: Collection[Partition], now_ms: int) -> dict[Partition, int | None]:
        """Return the next offset of each partition, None where no heartbeat has named it yet."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._read, now_ms)
        except KafkaException as error:
            raise gapwatch_error(error, f"read the acks in {self._topic}") from error
        return {at: self._known[at][1] if at in self._known else None for at in partitions}

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._consumer.close)
        self._executor.shutdown(wait=False)

    def _read(self, now_ms: int) -> None:
        if not self._reads:
            asked = [TopicPartition(self._topic, 0, now_ms - TAIL_MS)]
            [start] = self._consumer.offsets_for_times(asked, timeout=REQUEST_SECONDS)
            if start.error is not None:
                raise KafkaException(start.error)
            self._consumer.assign([start])
            self._reads = True
        for message in self._consumer.consume(RECORDS_MAX, POLL_SECONDS):
            value, error = message.value(), message.error()
            if error is not None:
                if not error.retriable():
                    raise KafkaException(error)
            elif value is not None and b'"heartbeat"' in value:
                self._take(value)

    def _take(self, value: bytes) -> None:
        try:
            said_at, delivered = delivered_of(value)
        except RecordError as error:
            log.warning("ack_unparsable", topic=self._topic, reason=str(error))
            return
        for (topic, number), offset in delivered.items():
            at = Partition(topic, number)
            if said_at >= self._known.get(at, (0, 0))[0]:
                self._known[at] = said_at, offset
