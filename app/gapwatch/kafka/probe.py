"""Does Kafka answer? Asked every second, for ``/readyz``."""

from __future__ import annotations

import asyncio
from typing import Final

from confluent_kafka import KafkaException

from gapwatch.kafka.faults import gapwatch_error
from gapwatch.kafka.options import admin_client
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Clock

READY: Final = "ok"
PROBE_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 3.0


class KafkaProbe:
    """``state`` is "ok" while the brokers answer, else why not; before the first answer they are not ready."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._admin = admin_client(settings)
        self._clock = clock
        self.state = "not asked yet"

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.state = await self._ask()
            await self._clock.sleep(PROBE_SECONDS)

    async def _ask(self) -> str:
        try:
            await asyncio.wrap_future(self._admin.describe_cluster(request_timeout=ANSWER_SECONDS))
        except KafkaException as error:
            return f"failed: {gapwatch_error(error, 'ask the brokers')}"
        return READY
