"""The producer of a captured feed: whole batches, each a transaction, and of all who hold its id only the last one may write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from gapwatch.check_ports import Advice
from gapwatch.errors import ConflictError, GapwatchError, ProtocolError, StoreRefused, StoreUnreachable
from gapwatch.kafka.faults import STORE, gapwatch_error
from gapwatch.kafka.options import ErrorLog, client_options
from gapwatch.kafka.producer import IN_FLIGHT_KIBIBYTES_MAX, IN_FLIGHT_RECORDS_MAX, PRODUCER_DEFAULTS
from gapwatch.model.pipeline import Settings

log = structlog.get_logger(__name__)

TRANSACTION_SECONDS: Final = 30.0  # then the broker ends one whose owner is silent; until then nobody reads behind it
ATTEMPT_SECONDS: Final = 2.0  # how long one call may wait, before the lease is looked after
CLOSE_SECONDS: Final = 5.0
EXAMINE_SECONDS: Final = 10.0
ROOM_SECONDS: Final = 0.1
T = TypeVar("T")
Waiting = Callable[[], Awaitable[None]]
_FENCED: Final = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})


class Outgoing(NamedTuple):
    """One record to be written. ``value`` None: a tombstone, or a marker where ``key`` is None as well."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class FencedProducer:
    """A transactional producer that begins by shutting out whoever used its id before.

    One task uses it; its calls run in one thread of its own, in order. ``waiting`` is awaited again and again while Kafka does
    not answer: it keeps the caller's lease, and what it raises ends the call. After any error the producer is of no more use:
    close it. Nothing of a batch that was not committed is ever read.

    Raises ConflictError once another producer took over, StoreRefused where a right is missing, else StoreUnreachable.
    """

    def __init__(self, settings: Settings, *, transactional_id: str, client_id: str) -> None:
        self._id = transactional_id
        self._error_log = ErrorLog(client_id)
        self._fenced = False
        self._is_open = False  # a transaction
        self._closed = False
        guarantees = {
            "client.id": client_id,
            "transactional.id": transactional_id,
            "enable.idempotence": True,
            "acks": "all",
            "transaction.timeout.ms": int(TRANSACTION_SECONDS * 1000),
            "message.timeout.ms": int(TRANSACTION_SECONDS * 1000),
            "queue.buffering.max.messages": IN_FLIGHT_RECORDS_MAX,
            "queue.buffering.max.kbytes": IN_FLIGHT_KIBIBYTES_MAX,
            "error_cb": self._on_client_error,
        }
        try:
            self._producer = Producer(client_options(settings, defaults=PRODUCER_DEFAULTS, guarantees=guarantees))
        except KafkaException as error:
            raise gapwatch_error(error, "use kafka.options") from error
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"kafka-{client_id}")

    async def take_over(self, waiting: Waiting) -> None:
        """Shut out every older producer of this id; what it had not committed is undone."""
        while not await self._call(lambda: self._answered(self._producer.init_transactions), "take a transactional id"):
            await waiting()

    async def write(self, records: Sequence[Outgoing], waiting: Waiting) -> None:
        """Write all of them, or none; return once they are committed."""
        left = list(reversed(records))
        await self._call(self._producer.begin_transaction, "begin a transaction")
        self._is_open = True
        while not await self._call(lambda: self._hand_over(left), "write"):
            await waiting()
        while not await self._call(lambda: self._answered(self._producer.commit_transaction), "commit"):
            await waiting()
        self._is_open = False

    async def close(self) -> None:
        """Undo what is not committed, as far as Kafka answers, and free everything."""
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._end)
        finally:
            self._executor.shutdown(wait=False)

    def _end(self) -> None:
        try:
            if self._is_open and not self._fenced:
                self._producer.abort_transaction(CLOSE_SECONDS)
        except KafkaException as error:  # whoever comes next undoes it by taking over, or the broker by its time-out
            log.info("transaction_left_open", transactional_id=self._id, reason=str(error))
        finally:
            self._producer.purge(in_queue=True, in_flight=True)
            self._producer.close(CLOSE_SECONDS)

    def _hand_over(self, left: list[Outgoing]) -> bool:
        """Take records off the end of `left`; False: there is no room for the rest yet."""
        waited = 0.0
        while left:
            one = left[-1]
            try:
                self._producer.produce(
                    one.topic, value=one.value, key=one.key, partition=one.partition, headers=list(one.headers) or None
                )
            except BufferError:
                if waited >= ATTEMPT_SECONDS:
                    return False
                self._producer.poll(ROOM_SECONDS)
                waited += ROOM_SECONDS
                continue
            left.pop()
        return True

    def _answered(self, call: Callable[[float], Any]) -> bool:
        """Whether a call that may be repeated came to its end in time."""
        try:
            call(ATTEMPT_SECONDS)
        except KafkaException as error:
            if error.args[0].retriable() and not self._fenced:
                return False
            raise
        return True

    async def _call(self, call: Callable[[], T], doing: str) -> T:
        if self._closed:
            raise ProtocolError(f"The producer {self._id} is closed.")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except KafkaException as error:
            raise self._fault(error, doing) from error

    def _fault(self, error: KafkaException, doing: str) -> GapwatchError:
        fault = error.args[0]
        if self._fenced or fault.code() in _FENCED:
            self._fenced = True
            log.warning("producer_fenced", transactional_id=self._id, error=fault.name())
            return ConflictError(f"Kafka refused a write of {self._id}: another process has taken over.")
        told = gapwatch_error(KafkaError(fault.code(), fault.str()), doing)  # fatal or not: a new one begins anew
        if isinstance(told, (StoreRefused, StoreUnreachable)):
            return told
        return StoreUnreachable(told.message, store=STORE, remedy="It is tried again.")

    def _on_client_error(self, error: KafkaError) -> None:
        if error.code() in _FENCED:
            self._fenced = True
        else:
            self._error_log(error)


async def examine_transactions(settings: Settings) -> Sequence[Advice]:
    """Say whether Kafka lets this user have transactional ids, by an id that no feed has; for `doctor`."""
    left = int(EXAMINE_SECONDS / ATTEMPT_SECONDS)

    async def waiting() -> None:
        nonlocal left
        left -= 1
        if not left:
            remedy = "Where there are fewer than three brokers, set transaction.state.log.replication.factor and .min.isr to 1."
            raise StoreUnreachable("No broker answers for transactions.", store=STORE, remedy=remedy)

    producer = FencedProducer(settings, transactional_id=settings.topics.transactional_id("doctor"), client_id="doctor")
    try:
        await producer.take_over(waiting)
    except StoreRefused as error:
        return [Advice(level="error", subject="kafka", message=error.message, remedy=error.remedy)]
    except StoreUnreachable as error:
        return [Advice(level="unknown", subject="kafka", message=error.message, remedy=error.remedy)]
    finally:
        await producer.close()
    return []
