"""What every client of Kafka is built with, and the small types that they share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from gapwatch.kafka.faults import gapwatch_error
from gapwatch.model.pipeline import Settings

log = structlog.get_logger(__name__)

REQUEST_SECONDS: Final = 20.0


class Partition(NamedTuple):
    topic: str
    partition: int


class Committed(NamedTuple):
    """A group's position: the next offset to read, and what its owner noted beside it."""

    offset: int
    metadata: str = ""


def client_options(
    settings: Settings, *, defaults: Mapping[str, Any] | None = None, guarantees: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return librdkafka's configuration: our defaults, above them the user's options, above them what carries a guarantee."""
    return {
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2_000,
        "log.connection.close": False,
        "log_level": 2,  # errors reach `error_cb`; librdkafka would print them on stderr as well
        **(defaults or {}),
        **settings.kafka_options,
        "bootstrap.servers": settings.bootstrap_servers,
        "error_cb": ErrorLog((guarantees or {}).get("client.id", "admin")),
        **(guarantees or {}),
    }


def admin_client(settings: Settings) -> AdminClient:
    """Return an admin client; raise StoreRefused when an option is not librdkafka's."""
    try:
        return AdminClient(client_options(settings))
    except KafkaException as error:
        raise gapwatch_error(error, "use kafka.options") from error


async def answered(future: Any, doing: str) -> Any:
    """Wait for one of the admin client's futures; raise our error instead of librdkafka's."""
    try:
        return await asyncio.wrap_future(future)
    except KafkaException as error:
        raise gapwatch_error(error, doing) from error


class ErrorLog:
    """Logs a client's errors: of each kind the first, the tenth, the hundredth …; librdkafka tells of each attempt."""

    def __init__(self, client: str) -> None:
        self._client = client
        self._counts: dict[str, int] = {}

    def __call__(self, error: KafkaError) -> None:
        name = error.name()
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if str(count).strip("0") == "1":
            log.warning("kafka_client_error", client=self._client, error=name, detail=error.str(), count=count)
