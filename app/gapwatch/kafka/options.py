"""What every client of Kafka is built with, and the small types that they share."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import weakref
from collections.abc import Collection, Mapping
from queue import SimpleQueue
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


class Admin:
    """librdkafka's admin client, ended where it may be, and told of what went wrong.

    Its answers arrive in a thread of its own that runs Python, so that the collector may run there. A client that lies in garbage
    then is ended in its own thread, and for that librdkafka aborts the process. Here a thread made for it ends all of them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._client = AdminClient(dict(options))
        _begin_to_bury()
        weakref.finalize(self, _ENDED.put, self._client).atexit = False

    def __getattr__(self, name: str) -> Any:
        self._client.poll(0)  # hands errors to `error_cb`; those that nobody takes are kept, megabytes an hour
        return getattr(self._client, name)


_ENDED: Final[SimpleQueue[AdminClient]] = SimpleQueue()  # may be put into from within the collector
_BURYING: Final = threading.Lock()
_buried_by: threading.Thread | None = None


def _begin_to_bury() -> None:
    global _buried_by
    with _BURYING:
        if _buried_by is None:
            _buried_by = threading.Thread(target=_bury, name="kafka-admin-end", daemon=True)
            _buried_by.start()


def _bury() -> None:
    while True:
        _ENDED.get()  # the last that holds it lets it go here


def admin_client(settings: Settings) -> Admin:
    """Return an admin client; raise StoreRefused when an option is not librdkafka's."""
    try:
        return Admin(client_options(settings))
    except KafkaException as error:
        raise gapwatch_error(error, "use kafka.options") from error


async def answered(future: Any, doing: str) -> Any:
    """Wait for one of the admin client's futures; raise our error instead of librdkafka's."""
    try:
        return await asyncio.wrap_future(future)
    except KafkaException as error:
        raise gapwatch_error(error, doing) from error


async def all_answered(futures: Collection[Any]) -> None:
    """Return once each of the admin client's futures is done; the loop is woken by the last of them alone."""
    loop, count = asyncio.get_running_loop(), itertools.count(1)
    answered = loop.create_future()

    def tell() -> None:
        if not answered.done():  # nobody waits any more
            answered.set_result(None)

    def note(_: Any) -> None:
        if next(count) == len(futures):
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell)

    for future in futures:
        future.add_done_callback(note)
    if futures:
        await answered


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
