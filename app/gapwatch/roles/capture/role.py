"""Reads change streams into feed topics, and sends heartbeats.

One process reads a feed at a time, under a lease; taking it over goes in this order:

1. the lease is taken, which gives it a higher number;
2. Kafka shuts out whoever wrote this feed before, and undoes what that one had not committed;
3. the lease is renewed: so whoever takes it later comes later at step 2 as well;
4. the resume token is read, and the stream is opened.

Then for every batch: the events, and behind them the watermark for every partition of the feed topic, are one transaction, or
several where they are large; when the last one is committed, the resume token is stored under the lease's number. A process that
was frozen anywhere in between can neither write events nor store its token. A restart from the stored token repeats some events,
which their positions tell; it loses none. No watermark is written before the first token is stored: without one a stream begins
from now, and what was promised would be passed over. While a store takes its time for a batch, the lease is renewed.

A batch without events is a watermark alone, and written without a transaction. It says that all before its time lies before it
in its partition, which was committed by then: that stays true however late it is written, and whoever wrote the topic meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog
import xxhash

from gapwatch.core.gaps import gap_id, time_of
from gapwatch.errors import ConflictError, GapwatchError, HistoryLost, StoreError, StoreUnreachable
from gapwatch.feed_ports import NO_KEY, ChangeEvent, FeedReader, HeartbeatWriter, RestingReader, StreamBatch
from gapwatch.kafka.clients import AckedProducer
from gapwatch.kafka.fenced import FencedProducer, Outgoing
from gapwatch.kafka.producer import CONTENT_BYTES_MAX
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.model.pipeline import PipelineSpec, Settings
from gapwatch.ports import Clock, Lease, Ledger
from gapwatch.roles.stirring import Stirring
from gapwatch.roles.together import Together, renewals_together, tokens_together

log = structlog.get_logger(__name__)
T = TypeVar("T")

LEASE_SECONDS = 10.0
RENEW_SECONDS = 2.0
RETRY_SECONDS = 1.0
FAILED_SECONDS = 10.0  # after what nobody foresaw, which may come again at once
_NOTHING: Mapping[str, Any] = {}
TOKEN_SECONDS = 5.0  # how often the position of a quiet stream is stored
RECOUNT_SECONDS = 30.0
TRANSACTION_BYTES = 8 * 1024 * 1024  # of events in one transaction: it has to be written within its time-out on a slow line, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One feed that capture reads: its pipeline, its topic, how to open it."""

    pipeline: PipelineSpec
    topic: str
    open: Callable[[], FeedReader]
    side: str = "observed"

    @property
    def store(self) -> str:
        return self.pipeline.target.store if self.side == "observed" else self.pipeline.source.store


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One store that gets heartbeats; of a MongoDB store, one database."""

    store: str
    database: str = ""
    every_seconds: float
    open: Callable[[], HeartbeatWriter]

    @property
    def lease(self) -> str:
        return f"heartbeat/{self.store}" + (f"/{self.database}" if self.database else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureDependencies:
    settings: Settings
    ledger: Ledger
    producer: AckedProducer  # of watermarks alone
    feed_producer: Callable[[str], FencedProducer]  # makes that of one feed topic
    partitions: Mapping[str, int]  # feed topic → partitions, as the role begins …
    count: Callable[[], Awaitable[Mapping[str, int]]]  # … and as they are later: somebody may add some
    streams: Sequence[Stream]
    beats: Sequence[Beat]
    clock: Clock
    holder: str
    on_finding: Callable[[str, str], None]
    on_requests: Callable[[str, str, str, int], None]  # store, purpose, pipeline, how many
    stirring: Stirring | None = None  # of a process that sees all feeds


class CaptureRole:
    def __init__(self, dependencies: CaptureDependencies) -> None:
        self._on = dependencies
        self._renewals = renewals_together(dependencies.ledger, dependencies.clock, seconds=LEASE_SECONDS)
        self._tokens = tokens_together(dependencies.ledger, dependencies.clock)

    async def run(self, stop: asyncio.Event) -> None:
        await self._on.producer.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream in self._on.streams:
                    tasks.create_task(self._keep(f"capture/{stream.topic}", stop, partial(self._read, stream, stop)))
                if self._on.streams:
                    tasks.create_task(self._recount(stop))
                for beat in self._on.beats:
                    tasks.create_task(self._keep(beat.lease, stop, partial(self._beat, beat, stop)))
        finally:
            await self._on.producer.close()

    async def _keep(self, name: str, stop: asyncio.Event, work: Callable[[_Held], Awaitable[None]]) -> None:
        """Do `work` whenever the lease is ours; a store that does not answer is tried again.

        A failed producer of watermarks never works again: the role ends, and its supervisor starts it anew with another one.
        """
        while not stop.is_set():
            lease = await asyncio.to_thread(self._on.ledger.take_lease, name, self._on.holder, seconds=LEASE_SECONDS)
            if lease is None:
                await self._on.clock.sleep(RETRY_SECONDS)
                continue
            held = _Held(self._on.clock, self._renewals, lease)
            try:
                await work(held)
            except ConflictError as error:
                log.warning("lease_lost", lease=name, reason=error.message)
            except StoreError as error:
                log.warning("capture_interrupted", lease=name, reason=str(error))
                if self._on.producer.failure is not None:
                    raise
                await self._on.clock.sleep(RETRY_SECONDS)
            except GapwatchError:
                raise
            except Exception as error:  # a bug that one feed meets: the others go on, and its pipeline is UNKNOWN by its age
                log.error("capture_failed", lease=name, exc_info=error)
                await self._on.clock.sleep(FAILED_SECONDS)
            finally:
                await asyncio.to_thread(self._on.ledger.release_lease, held.lease)

    # change streams

    async def _recount(self, stop: asyncio.Event) -> None:
        """End the role where partitions were added: begun anew, it tells them the time. Until then their pipeline is UNKNOWN."""
        while not await _stopped(stop, RECOUNT_SECONDS):
            try:
                found = await self._on.count()
            except StoreError as error:
                log.warning("partitions_not_counted", reason=str(error))
                continue
            for topic, before in self._on.partitions.items():
                if found.get(topic, 0) > before:
                    raise StoreUnreachable(f"Topic {topic} has {found[topic]} partitions; it had {before}.", store="kafka")

    async def _read(self, stream: Stream, stop: asyncio.Event, held: _Held) -> None:
        producer = self._on.feed_producer(stream.topic)
        try:
            await producer.take_over(held.renew)
            await held.renew(at_once=True)
            await self._follow(stream, producer, stop, held)
        finally:
            await producer.close()

    def _woken(self, pipeline: str, reader: FeedReader) -> Callable[[], None]:
        """Have a reader rest longer, where this process sees what happens on the other side; to be called at its end."""
        if self._on.stirring is None or not isinstance(reader, RestingReader):
            return lambda: None
        reader.may_rest()
        return self._on.stirring.waking(pipeline, reader.wake)

    async def _follow(self, stream: Stream, producer: FencedProducer, stop: asyncio.Event, held: _Held) -> None:
        fact = f"resume/{stream.topic}"
        stored = await self._stored(fact)
        proven, lost = int(stored.get("watermark", 0)), str(stored.get("lost", ""))
        reader = stream.open()
        left = self._woken(stream.pipeline.id, reader)
        try:
            token = stored["token"].encode() if "token" in stored else None
            async with aclosing(reader.open(token)) as batches:  # type: ignore[type-var]
                watermark, kept, placed = 0, -1, token is not None
                while (batch := await held.during(_next(batches))) is not None:
                    self._on.on_requests(stream.store, "capture", stream.pipeline.id, batch.requests)
                    if lost:  # the hole ends where reading has begun, not where it ended
                        await held.renew(at_once=True)
                        await self._lost(stream, f"{lost} Reading began anew.", since_ms=proven)
                        lost = ""
                    if not placed:  # whoever began once more would begin from now, behind a time that was told already
                        batch = replace(batch, watermark=0)
                    await self._send(stream, batch, producer, held, after=watermark)
                    watermark = max(watermark, batch.watermark)
                    turn = int(self._on.clock.monotonic() / TOKEN_SECONDS)
                    if batch.events or turn != kept:
                        kept, position = turn, _position(batch, max(proven, watermark))
                        at_once = batch.events or not placed
                        await (self._store if at_once else self._store_together)(fact, position, held)
                        placed = True
                    await held.renew()
                    if stop.is_set():
                        return
        except HistoryLost as error:
            proven = int((await self._stored(fact)).get("watermark", 0))
            await self._store(fact, {"lost": error.message, "watermark": proven}, held)  # first: whoever was overtaken ends here
            await self._lost(stream, error.message, since_ms=proven)
        finally:
            left()
            await reader.close()

    async def _stored(self, fact: str) -> Mapping[str, Any]:
        return await asyncio.to_thread(self._on.ledger.fact, fact) or _NOTHING

    async def _store(self, fact: str, value: Mapping[str, Any], held: _Held) -> None:
        """Raises ConflictError when somebody else has taken the lease."""
        await asyncio.to_thread(self._on.ledger.set_fact, fact, value, under=held.lease)

    async def _store_together(self, fact: str, value: Mapping[str, Any], held: _Held) -> None:
        """Do as :meth:`_store`, with others that come about now: where there is nothing to hurry for."""
        if not await self._tokens.ask((fact, value, held.lease)):
            raise ConflictError(f"The lease {held.lease.name} was taken by another.")

    async def _send(self, stream: Stream, batch: StreamBatch, producer: FencedProducer, held: _Held, *, after: int) -> None:
        topic, count = stream.topic, self._on.partitions[stream.topic]
        marks: list[Outgoing] = []
        if batch.watermark > after:
            headers = [("gapwatch-watermark", str(batch.watermark).encode())]
            marks = [Outgoing(topic, partition, None, None, headers) for partition in range(count)]
        if batch.events:
            *portions, last = _portions(_outgoing(topic, count, event) for event in batch.events)
            for portion in portions:
                await producer.write(portion, held.renew)
                await held.renew()
            await producer.write([*last, *marks], held.renew)
            return
        send = self._on.producer.send
        await asyncio.gather(*[await send(topic, None, None, headers=one.headers, partition=one.partition) for one in marks])

    async def _lost(self, stream: Stream, why: str, *, since_ms: int) -> None:
        """The stream cannot be resumed: what came in between is a hole, which a sweep covers; reading begins anew from now.

        It begins at the last watermark that was sent (0: not known, so at the beginning).
        """
        now = self._on.clock.now()
        record = FindingRecord(
            id="capture_" + gap_id(stream.pipeline.id, stream.topic.encode(), now.isoformat()).removeprefix("gap_"),
            pipeline=stream.pipeline.id,
            finding=Finding.HISTORY_LOST,
            side=stream.side,
            feed=stream.topic,
            first_seen=now,
            last_seen=now,
            message=why,
            remedy="A sweep covers it; it starts by itself.",
            time_from=time_of(since_ms),
            time_to=now,
            is_hole=True,
        )
        if await asyncio.to_thread(self._on.ledger.raise_finding, record):
            self._on.on_finding(stream.pipeline.id, Finding.HISTORY_LOST.value)
            log.error("history_lost", pipeline=stream.pipeline.id, feed=stream.topic, reason=why)

    # heartbeats

    async def _beat(self, beat: Beat, stop: asyncio.Event, held: _Held) -> None:
        writer, number = beat.open(), 0
        try:
            while not stop.is_set():
                number += 1
                self._on.on_requests(beat.store, "heartbeat", "", 1)
                await writer.beat(number)
                await held.renew()
                await self._on.clock.sleep(beat.every_seconds)
        finally:
            await writer.close()


def _outgoing(topic: str, partitions: int, event: ChangeEvent) -> Outgoing:
    """Return the record of a change. One that is larger than Kafka takes goes without its content: its key is read instead."""
    if len(event.key) + len(event.value) > CONTENT_BYTES_MAX:
        log.warning("change_too_large", feed=topic, bytes=len(event.key) + len(event.value))
        event = replace(event.touched(), key=event.key if len(event.key) <= CONTENT_BYTES_MAX else NO_KEY)
    return Outgoing(topic, xxhash.xxh3_64_intdigest(event.key) % partitions, event.key, event.value or None, event.headers)


def _portions(records: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Cut records, in their order, into lists of so many bytes at most; one that is larger by itself is alone."""
    portion, size = list[Outgoing](), 0
    for one in records:
        length = len(one.key or b"") + len(one.value or b"") + sum(len(name) + len(value) for name, value in one.headers)
        if portion and size + length > TRANSACTION_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(one)
        size += length
    if portion:
        yield portion


def _position(batch: StreamBatch, watermark: int) -> dict[str, Any]:
    return {"token": batch.token.decode(), "watermark": watermark}


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Return whether it is set: after so long, or once it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def _next(batches: AsyncIterator[StreamBatch]) -> StreamBatch | None:
    return await anext(batches, None)


class _Held:
    """A lease that is renewed every two seconds while its work goes on."""

    def __init__(self, clock: Clock, renewals: Together[Lease, Lease | None], lease: Lease) -> None:
        self._clock = clock
        self._renewals = renewals
        self.lease = lease
        self._renewed = self._turn()

    async def renew(self, *, at_once: bool = False) -> None:
        """Raises ConflictError when it has expired, or somebody else holds it by now."""
        turn = self._turn()
        if not at_once and turn == self._renewed:
            return
        renewed = await self._renewals.ask(self.lease)
        if renewed is None:
            raise ConflictError(f"The lease {self.lease.name} was lost.")
        self.lease = renewed
        self._renewed = turn

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what some work returns, however long it takes. It ends with the lease: then ConflictError is raised."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=RENEW_SECONDS))[0]:
                await self.renew()
            return task.result()
        finally:
            task.cancel()  # where it is not done
            await asyncio.gather(task, return_exceptions=True)

    def _turn(self) -> int:
        """Return a number that is the same for all leases, so that they are renewed together."""
        return int(self._clock.monotonic() / RENEW_SECONDS)
