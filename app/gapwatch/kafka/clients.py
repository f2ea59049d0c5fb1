"""Producers and consumers for the asyncio roles, on librdkafka: nothing is lost silently, nothing resets silently.

Blocking calls run in a thread that belongs to the client; callbacks return to the event loop that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from gapwatch.errors import GapwatchError, HistoryLost, ProtocolError, StoreError
from gapwatch.kafka.faults import gapwatch_error, is_membership_lost
from gapwatch.kafka.fetching import Fetched, fetching_for
from gapwatch.kafka.options import REQUEST_SECONDS, Committed, Partition, client_options
from gapwatch.kafka.producer import AckedProducer, Delivered
from gapwatch.kafka.schema_registry import SchemaRegistry
from gapwatch.model.pipeline import Settings

__all__ = ["AckedProducer", "Committed", "Delivered", "Partition", "Polled", "RawConsumer", "Rebalance", "history_lost"]

log = structlog.get_logger(__name__)

WAITING_MAX: Final = 10_000  # messages that wait for the schema registry beside one call's; then the role begins anew
CLOSE_SECONDS: Final = 10.0  # to leave the group and hand partitions back; later the group expels the client by itself
_LEFT_AT_ONCE: Final = 1_000  # messages, which nobody reads any more
_HAND_BACK_POLLS: Final = 50
_HAND_BACK_SECONDS: Final = 0.1
T = TypeVar("T")

_CONSUMER_DEFAULTS: Final[Mapping[str, Any]] = {
    "partition.assignment.strategy": "range",
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 1_000,
    "fetch.wait.max.ms": 250,  # of a broker that has nothing; what arrives is sent at once
    "fetch.queue.backoff.ms": 20,  # by default a full queue is looked at again after a second: the wall clock stalls
    "queued.max.messages.kbytes": 16_384,
    "topic.metadata.refresh.interval.ms": 30_000,
}


class Rebalance(Protocol):
    """What a group member does when partitions come and go. Both run before the group goes on, so they should be quick."""

    async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
        """Return from which offset each partition shall be read (each key of ``committed``; None: nothing was committed)."""

    async def revoked(self, partitions: Collection[Partition], *, lost: bool) -> Mapping[Partition, Committed]:
        """Stop working on the partitions and return what to commit for them. When ``lost``, nothing may be committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What one ``consume`` brought. ``runs``: messages by partition, in offset order.

    ``faults``: partitions (None: the client) that cannot be read on, and why. ``ends``: partitions whose end was reached, with
    the offset there; only with ``enable.partition.eof``.
    """

    runs: Mapping[Partition, Sequence[Message]] = field(default_factory=dict)
    faults: Sequence[tuple[Partition | None, GapwatchError]] = ()
    ends: Mapping[Partition, int] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """All messages, partition after partition."""
        return [message for run in self.runs.values() for message in run]


class RawConsumer:
    """A consumer that commits only what it is told to, reads only committed transactions, and never resets an offset by itself.

    ``group`` None: it can only ``assign``. One thread serves all its calls in order, so no call may be made from ``Rebalance``
    methods (they return what they want instead). With ``native``, the compiled module fetches for a group's member (see
    ``kafka/fetching.py``). With ``registry``, keys and values whose schemas lie there arrive as JSON; while
    it does not answer, what was fetched waits.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        client_id: str,
        group: str | None = None,
        options: Mapping[str, Any] | None = None,
        registry: SchemaRegistry | None = None,
        native: Any = None,
    ) -> None:
        guarantees = {
            "client.id": client_id,
            "group.id": group or f"{settings.topics.prefix}.ungrouped",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
        }
        self._group = group
        self._name = client_id
        self._registry = registry
        self._waiting: list[Message] = []  # for the schema registry
        wanted = client_options(settings, defaults={**_CONSUMER_DEFAULTS, **(options or {})}, guarantees=guarantees)
        try:
            # Whose values the registry's schemas make readable are Python's to read; what is assigned by hand may be so anew.
            self._consumer, self._fetching = fetching_for(native if registry is None and group else None, wanted, Consumer)
        except KafkaException as error:
            raise gapwatch_error(error, "use kafka.options") from error
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"kafka-consumer-{client_id}")
        self._closed = False
        self._assigned = False  # through the group
        self._rebalance_failure: BaseException | None = None

    async def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        """Join the group. Assignments arrive while ``consume`` is called."""
        if self._group is None:
            raise ProtocolError("A consumer without a group cannot subscribe.")
        loop = asyncio.get_running_loop()

        def ask(awaitable: Awaitable[T]) -> T:
            async def wait() -> T:
                return await awaitable

            return asyncio.run_coroutine_threadsafe(wait(), loop).result()

        def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self._assigned = True

            def act() -> None:
                self._let_go(_keys(partitions))
                committed = _committed(consumer.committed(partitions, timeout=REQUEST_SECONDS)) if partitions else {}
                starts = ask(rebalance.assigned(committed))
                if self._fetching is not None:
                    self._fetching.forward(committed)
                consumer.assign([TopicPartition(at.topic, at.partition, starts[at]) for at in committed])

            self._guarded(act)

        def on_revoke(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self._let_go(_keys(partitions))
            self._guarded(lambda: self._commit_now(consumer, ask(rebalance.revoked(_keys(partitions), lost=False))))
            consumer.unassign()
            self._assigned = False

        def on_lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self._let_go(_keys(partitions))
            self._guarded(lambda: ask(rebalance.revoked(_keys(partitions), lost=True)))
            consumer.unassign()
            self._assigned = False

        handlers: dict[str, Any] = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        await self._call(lambda: self._consumer.subscribe(list(topics), **handlers))

    async def assign(self, starts: Mapping[Partition, int]) -> None:
        """Read exactly these partitions, each from its offset (absolute), outside any group."""

        def act() -> None:
            self._waiting.clear()
            self._consumer.assign([TopicPartition(p.topic, p.partition, at) for p, at in starts.items()])

        await self._call(act)

    async def consume(self, limit: int, *, seconds: float = 0.1) -> Polled:
        """Return up to ``limit`` messages that arrived within ``seconds``, and the partitions that cannot be read on."""
        fetched, unread = await self._call(lambda: self._fetch(limit, seconds))
        if self._rebalance_failure is not None:
            failure, self._rebalance_failure = self._rebalance_failure, None
            raise failure
        runs: dict[Partition, list[Message]] = {}
        run: list[Message] = []
        at: tuple[Any, Any] = (None, None)
        faults: list[tuple[Partition | None, GapwatchError]] = [] if unread is None else [(None, unread)]
        ends: dict[Partition, int] = {}
        for message in fetched.others:
            error, topic = message.error(), message.topic()
            if error is None:
                here = (topic, message.partition())
                if here != at:
                    at, run = here, runs.setdefault(Partition(*here), [])
                run.append(message)
                continue
            if error.code() == KafkaError._PARTITION_EOF and topic is not None:
                ends[Partition(topic, message.partition() or 0)] = message.offset() or 0
                continue
            where = Partition(topic, message.partition() or 0) if topic is not None and (message.partition() or 0) >= 0 else None
            faults.append((where, gapwatch_error(error, f"read {where.topic}[{where.partition}]" if where else "read")))
        return Polled(runs={**runs, **fetched.runs}, faults=faults + fetched.faults, ends={**ends, **fetched.ends})

    async def seek(self, partition: Partition, offset: int) -> None:
        def act() -> None:
            self._let_go([partition])
            self._consumer.seek(TopicPartition(partition.topic, partition.partition, offset))

        await self._call(act)

    def _fetch(self, limit: int, seconds: float) -> tuple[Fetched, GapwatchError | None]:
        """Return the next messages, readable, and what keeps the others, which wait in their order, from being so."""
        if self._fetching is not None:
            return self._fetching.fetch(limit, seconds), None
        if self._registry is None:
            return Fetched(others=self._consumer.consume(limit, timeout=seconds)), None
        # Asked in any case, so that the group hears of us. What a rebalance meanwhile lets go must not come back: hence no `+=`.
        fetched = self._consumer.consume(1 if self._waiting else limit, timeout=seconds)
        self._waiting.extend(fetched)
        waiting, self._waiting = self._waiting, []
        ready: list[Any] = []
        for place, message in enumerate(waiting):
            try:
                ready.append(message if message.error() is not None else self._registry.readable(message))
            except StoreError as error:
                if len(waiting) > limit + WAITING_MAX:
                    raise
                self._waiting = waiting[place:]
                return Fetched(others=ready), error
        return Fetched(others=ready), None

    def _let_go(self, partitions: Collection[Partition]) -> None:
        """Forget what waits of partitions whose position changes: it will be fetched again, here or elsewhere."""
        self._waiting = [message for message in self._waiting if Partition(*_place(message)) not in partitions]

    async def pause(self, partitions: Collection[Partition]) -> None:
        await self._call(lambda: self._consumer.pause([TopicPartition(p.topic, p.partition) for p in partitions]))

    async def resume(self, partitions: Collection[Partition]) -> None:
        await self._call(lambda: self._consumer.resume([TopicPartition(p.topic, p.partition) for p in partitions]))

    async def commit(self, positions: Mapping[Partition, Committed]) -> bool:
        """Commit and wait for the answer. False: the group went on without us, so the positions are not ours any more."""
        return await self._call(lambda: self._commit_now(self._consumer, positions))

    async def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, Committed | None]:
        """Return this group's positions; None where nothing was committed."""
        wanted = [TopicPartition(p.topic, p.partition) for p in partitions]
        return await self._call(lambda: _committed(self._consumer.committed(wanted, timeout=REQUEST_SECONDS)))

    async def partitions(self, topic: str) -> tuple[int, ...]:
        """Return the partition numbers of a topic; StoreRefused when it does not exist."""

        def ask() -> tuple[int, ...]:
            described = self._consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
            if described.error is not None:
                raise gapwatch_error(described.error, f"find topic {topic}")
            return tuple(sorted(described.partitions))

        return await self._call(ask)

    async def log_range(self, partition: Partition) -> tuple[int, int]:
        """Return ``[start, end)`` of what the log holds now: end is the next offset that a committed record will get."""
        where = TopicPartition(partition.topic, partition.partition)
        low, high = await self._call(lambda: self._consumer.get_watermark_offsets(where, timeout=REQUEST_SECONDS, cached=False))
        return int(low), int(high)

    async def offsets_at(self, partitions: Collection[Partition], timestamp: int) -> Mapping[Partition, int | None]:
        """Return per partition the first offset at or after ``timestamp`` (ms); None: there is none."""
        wanted = [TopicPartition(p.topic, p.partition, timestamp) for p in partitions]
        found = await self._call(lambda: self._consumer.offsets_for_times(wanted, timeout=REQUEST_SECONDS))
        return {Partition(at.topic, at.partition): at.offset if at.offset >= 0 else None for at in found}

    async def close(self) -> None:
        """Leave the group (``revoked`` is called for what is still assigned) and free everything."""
        if self._closed:
            return
        self._closed = True
        left = self._leave()
        self._executor.shutdown(wait=False)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await left
        except TimeoutError:
            log.warning("kafka_consumer_abandoned", client=self._name, group=self._group, seconds=CLOSE_SECONDS)

    def _leave(self) -> asyncio.Future[None]:
        """Close the client in a thread that no exit waits for: rarely, librdkafka does not come back from it.

        Once begun it goes on, whoever stops waiting.
        """
        loop = asyncio.get_running_loop()
        left: asyncio.Future[None] = loop.create_future()
        under_way = self._executor.submit(lambda: None)  # what was asked before ends first

        def tell(error: Exception | None) -> None:
            if left.done():
                return
            if error is None:
                left.set_result(None)
            else:
                left.set_exception(error)

        def leave() -> None:
            error = None
            try:
                under_way.result()
                if self._fetching is not None:
                    self._fetching.close()
                try:
                    if self._group is not None:
                        self._hand_back()
                finally:  # whatever became of that
                    self._consumer.close()
            except Exception as raised:  # noqa: BLE001 - raised again where it is waited for
                error = raised
            # The module's fetcher holds the client, whose callbacks hold us: no collector sees through that.
            self._fetching = None
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, error)

        threading.Thread(target=leave, name=f"close-{self._name}", daemon=True).start()
        return left

    def _hand_back(self) -> None:
        """Give up what the group assigned, while what is asked in that callback is still answered.

        Closed while a rebalance waits for its callback, librdkafka 2.16 may end the group under it: what is committed is refused,
        and ``unassign`` waits for ever, with the interpreter's lock in its hand, or the process is aborted.
        """
        self._consumer.unsubscribe()
        self._consumer.consume(_LEFT_AT_ONCE, timeout=0)
        for _ in range(_HAND_BACK_POLLS):
            if not self._assigned:
                break
            self._consumer.consume(_LEFT_AT_ONCE, timeout=_HAND_BACK_SECONDS)

    async def _call(self, call: Callable[[], T]) -> T:
        if self._closed:
            raise ProtocolError(f"The consumer {self._name} is closed.")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except KafkaException as error:
            raise gapwatch_error(error, "read") from error

    def _guarded(self, act: Callable[[], Any]) -> None:
        """Keep what a rebalance raised for ``consume``: librdkafka would lose it between its callbacks."""
        try:
            act()
        except KafkaException as error:
            self._rebalance_failure = gapwatch_error(error, "take over partitions")
        except BaseException as error:  # noqa: BLE001 - raised by the next consume()
            self._rebalance_failure = error

    def _commit_now(self, consumer: Consumer, positions: Mapping[Partition, Committed]) -> bool:
        if not positions:
            return True
        offsets = [TopicPartition(p.topic, p.partition, at.offset, at.metadata or "") for p, at in positions.items()]
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            if isinstance(error.args[0], KafkaError) and is_membership_lost(error.args[0]):
                log.info("kafka_commit_overtaken", group=self._group, error=error.args[0].name())
                return False
            raise
        for answer in answers or ():
            if answer.error is not None:
                if is_membership_lost(answer.error):
                    return False
                raise gapwatch_error(answer.error, f"commit {answer.topic}[{answer.partition}]")
        return True


def _place(message: Message) -> tuple[str, int]:
    return message.topic() or "", message.partition() or 0


def _keys(partitions: Sequence[TopicPartition]) -> tuple[Partition, ...]:
    return tuple(Partition(at.topic, at.partition) for at in partitions)


def _committed(found: Sequence[TopicPartition]) -> dict[Partition, Committed | None]:
    """Return positions; an error of one partition is an error, never "nothing committed"."""
    positions: dict[Partition, Committed | None] = {}
    for at in found:
        if at.error is not None:
            raise gapwatch_error(at.error, f"read the group's position in {at.topic}[{at.partition}]")
        positions[Partition(at.topic, at.partition)] = Committed(at.offset, at.metadata or "") if at.offset >= 0 else None
    return positions


def history_lost(partition: Partition, offset: int, start: int, end: int) -> HistoryLost:
    """Return the error for a position outside ``[start, end]`` of the log."""
    where = f"{partition.topic}[{partition.partition}]"
    return HistoryLost(f"{where}: position {offset} lies outside the log, which holds {start} to {end}.")
