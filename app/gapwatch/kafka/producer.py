"""The producer of the asyncio roles: nothing is lost silently, nothing overtakes what was lost."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gapwatch.errors import GapwatchError, ProtocolError, StoreRefused
from gapwatch.kafka.faults import gapwatch_error
from gapwatch.kafka.options import ErrorLog, client_options
from gapwatch.model.pipeline import Settings

log = structlog.get_logger(__name__)

IN_FLIGHT_RECORDS_MAX: Final = 20_000
IN_FLIGHT_KIBIBYTES_MAX: Final = 128 * 1024
CALLBACKS_MAX: Final = 20  # that may raise while a producer is closed
POLL_SECONDS: Final = 0.2  # how long a stopping producer thread may still sit in librdkafka
COPIED_BYTES_MAX: Final = 8 * 1024 * 1024  # of a record that holds what somebody else wrote: a captured change, a dead letter
CONTENT_BYTES_MAX: Final = COPIED_BYTES_MAX - 64 * 1024  # of its key and value; the rest is for headers and Kafka's own frame
PRODUCER_DEFAULTS: Final[Mapping[str, Any]] = {"compression.type": "lz4", "linger.ms": 2, "message.max.bytes": COPIED_BYTES_MAX}


class Delivered(NamedTuple):
    """Where an acknowledged record lies."""

    topic: str
    partition: int
    offset: int


class AckedProducer:
    """An idempotent producer: a record is acknowledged by all in-sync replicas, or the producer has failed.

    A delivery error is final: everything after it could overtake what was lost, so the producer refuses further records and
    raises that error to its owner, who must end. Without ``delivery_seconds`` delivery has no time-out: while the brokers
    are away, records wait, and ``send`` waits once ``in_flight_max`` are under way.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        client_id: str,
        in_flight_max: int = IN_FLIGHT_RECORDS_MAX,
        delivery_seconds: float | None = None,
    ) -> None:
        self._settings = settings
        self._delivery_ms = 0 if delivery_seconds is None else int(delivery_seconds * 1000)
        self._client_id = client_id
        self._in_flight_max = in_flight_max
        self._error_log = ErrorLog(client_id)
        self._in_flight = 0
        self._failure: GapwatchError | None = None
        self._reports: deque[tuple[asyncio.Future[Delivered], KafkaError | None, Delivered]] = deque()
        self._scheduled = False
        self._stopping = threading.Event()
        self._changed: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None

    @property
    def failure(self) -> GapwatchError | None:
        """The error that ended this producer, if one did."""
        return self._failure

    @property
    def in_flight(self) -> int:
        """Records handed over and not yet acknowledged."""
        return self._in_flight

    async def start(self) -> None:
        """Connect in the background; raise StoreRefused when an option is wrong."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        try:
            self._producer = Producer(client_options(self._settings, defaults=PRODUCER_DEFAULTS, guarantees=self._guarantees()))
        except KafkaException as error:
            raise gapwatch_error(error, "use kafka.options") from error
        self._thread = threading.Thread(target=self._poll, name=f"kafka-producer-{self._client_id}", daemon=True)
        self._thread.start()

    def _guarantees(self) -> dict[str, Any]:
        return {
            "client.id": self._client_id,
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": self._delivery_ms,
            "queue.buffering.max.messages": self._in_flight_max + 1,
            "queue.buffering.max.kbytes": IN_FLIGHT_KIBIBYTES_MAX,
            "error_cb": self._on_client_error,
        }

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
        timestamp: int = 0,
    ) -> asyncio.Future[Delivered]:
        """Hand a record over and return the future of its acknowledgement; wait while too many are under way.

        Awaiting the future raises the delivery error, which is the producer's end as well. Order per partition is call order.
        ``timestamp`` is milliseconds since the epoch, 0: now. Raises StoreRefused for a record that is too large.
        """
        while True:
            await self._room()
            future: asyncio.Future[Delivered] = self._loop.create_future()
            try:
                self._ready.produce(
                    topic,
                    value=value,
                    key=key,
                    partition=partition,
                    headers=list(headers) or None,
                    timestamp=timestamp,
                    on_delivery=partial(self._on_delivery, future),
                )
            except BufferError:  # the bound in bytes
                self._changed.clear()
                await self._wait_for_change()
                continue
            except KafkaException as error:
                raise gapwatch_error(error, f"send to {topic}") from error
            self._in_flight += 1
            return future

    async def flush(self) -> None:
        """Return when everything sent so far is acknowledged; raise the error of what was not."""
        while self._in_flight and self._failure is None:
            self._changed.clear()
            await self._wait_for_change()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stop without waiting for acknowledgements (``flush`` first). Futures under way are cancelled."""
        if self._producer is None or self._thread is None:
            return
        producer, self._producer = self._producer, None
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._purge, producer)
        self._drain()

    @property
    def _ready(self) -> Producer:
        if self._producer is None:
            raise ProtocolError("A record was sent through a producer that is not started, or closed.")
        return self._producer

    async def _room(self) -> None:
        while self._failure is None and self._in_flight >= self._in_flight_max:
            self._changed.clear()
            await self._wait_for_change()
        if self._failure is not None:
            raise self._failure

    async def _wait_for_change(self) -> None:
        if self._producer is None:
            raise ProtocolError("The producer was closed while records were under way.")
        await self._changed.wait()

    def _poll(self) -> None:
        while not self._stopping.is_set():
            producer = self._producer
            if producer is None:
                return
            try:
                producer.poll(POLL_SECONDS)
            except Exception as error:  # noqa: BLE001 - of a callback; whoever waits for acknowledgements must learn of it
                failure = ProtocolError(f"The thread that serves Kafka's answers failed: {type(error).__name__}.")
                self._wake(partial(self._fail, failure))

    def _purge(self, producer: Producer) -> None:
        producer.purge(in_queue=True, in_flight=True)
        for _ in range(CALLBACKS_MAX):  # one that raises keeps the answers behind it from being served
            try:
                producer.flush(5)
                return
            except Exception as error:  # noqa: BLE001 - of a callback, and of no account any more
                log.warning("kafka_producer_callback_failed", client=self._client_id, error=type(error).__name__)

    def _on_delivery(self, future: asyncio.Future[Delivered], error: KafkaError | None, message: Message) -> None:
        """Called in the poll thread: collect, and wake the loop once for many."""
        self._reports.append((future, error, Delivered(message.topic() or "", message.partition() or 0, message.offset() or 0)))
        if not self._scheduled:
            self._scheduled = True
            self._wake(self._drain)

    def _on_client_error(self, error: KafkaError) -> None:
        """Called in the poll thread. Delivery reports tell of lost records; this tells of what can never succeed."""
        refused = gapwatch_error(error, "produce")
        if isinstance(refused, (StoreRefused, ProtocolError)):
            self._wake(lambda: self._fail(refused))
        else:
            self._error_log(error)

    def _wake(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop has ended: nobody waits any more
            self._stopping.set()

    def _drain(self) -> None:
        self._scheduled = False
        while self._reports:
            future, error, delivered = self._reports.popleft()
            self._in_flight -= 1
            if error is None:
                if not future.done():
                    future.set_result(delivered)
                continue
            if error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
                future.cancel()
                continue
            failure = gapwatch_error(error, f"deliver to {delivered.topic}")
            self._fail(failure)
            if not future.done():
                future.set_exception(failure)
                future.exception()  # the owner may learn it from flush() or the next send() instead
        self._changed.set()

    def _fail(self, failure: GapwatchError) -> None:
        if self._failure is None:
            log.error("kafka_producer_failed", client=self._client_id, error=str(failure))
            self._failure = failure
        self._changed.set()
