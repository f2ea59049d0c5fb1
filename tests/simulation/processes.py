"""The processes of a simulation: the real roles, each on a clock, a wire and group memberships of its own.

``ingest`` and ``repair`` are the roles as they are. Of ``match`` everything is real but Faust: its consumer, and the few lines
that hand records on. A process can be woken, frozen, killed without a word, or end by its own error; its successor is a new one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gapwatch.core.batches import read
from gapwatch.errors import GapwatchError
from gapwatch.kafka.clients import Committed, Partition
from gapwatch.kafka.faust_safety import StateTable
from gapwatch.kafka.topics import match_app_id, state_topic
from gapwatch.model.pipeline import Settings
from gapwatch.model.suspect import Said
from gapwatch.roles.board import Board
from gapwatch.roles.ingest.role import IngestDependencies, IngestRole
from gapwatch.roles.match.checkpointer import Checkpointer
from gapwatch.roles.match.held import Held, Restorer
from gapwatch.roles.match.journal import rank_of
from gapwatch.roles.match.outlet import Outlet
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.confirmer import Confirmer, ConfirmerDependencies
from gapwatch.roles.repair.judging import KeyJudge
from gapwatch.roles.repair.kafka_io import SuspectInbox, VerdictPublisher
from gapwatch.roles.repair.rechecker import Rechecker, RecheckerDependencies
from gapwatch.roles.repair.trials import MappingTrials
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import PipelineStores
from tests.simulation.cluster import Admin, Cluster, Member, WiredProducer
from tests.simulation.ledger import ModelLedger
from tests.simulation.loop import Loop, ProcessClock
from tests.simulation.shop import GRACE_MS, PIPELINE, Shop

CHECKPOINT_MS = 500
COMMIT_SECONDS = 0.5


@dataclass
class Surroundings:
    """What outlives every process."""

    loop: Loop
    cluster: Cluster
    shop: Shop
    ledger: ModelLedger
    settings: Settings
    torn: set[int] = field(default_factory=set)
    on_said: Callable[[int, int, Said], None] = lambda partition, offset, said: None


class Process(ABC):
    """One life of a process. ``error``: what it ended with, where it ended by itself."""

    role = ""

    def __init__(self, around: Surroundings, number: int) -> None:
        self.around = around
        self.name = f"{self.role}-{number}"
        self.clock = ProcessClock(around.cluster.time, around.loop)
        self.producer = WiredProducer(around.cluster, self.name)
        self.frozen = False
        self.error: BaseException | None = None
        self.members: list[Member] = []
        self._stop = asyncio.Event()
        self._task = around.loop.create_task(self._live())
        around.loop.turn()

    def member(self, group: str | None = None) -> Member:
        self.members.append(Member(self.around.cluster, self.name, self.clock, group=group))
        return self.members[-1]

    @abstractmethod
    async def run(self) -> None:
        """Live until the process ends."""

    async def _live(self) -> None:
        try:
            await self.run()
        except* GapwatchError as errors:
            self.error = errors
            await self.producer.close()
            for member in self.members:
                member.die()

    @property
    def alive(self) -> bool:
        return not self._task.done()

    def wake(self) -> None:
        """Let it go on until everything in it waits again. Raises what it ended with, if that is none of our errors."""
        if not self.frozen:
            self.clock.wake()
            self.around.loop.turn()
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    def freeze(self) -> None:
        self.frozen = self.producer.wire.frozen = True

    def thaw(self) -> None:
        self.frozen = self.producer.wire.frozen = False

    def expel(self) -> None:
        """Its session timed out: the groups go on without it."""
        for member in self.members:
            if member.owns:
                member.leave_silently()

    def kill(self) -> None:
        """Kill it without a word: some of what is under way lands."""
        self.producer.wire.cut_off()
        for member in self.members:
            member.die()
        self._task.cancel()
        self.around.loop.turn()


# ── ingest ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ingester(Process):
    role = "ingest"

    async def run(self) -> None:
        around, admin = self.around, admin_of(self.around)

        async def skew(_: str) -> int:
            return 0

        await IngestRole(
            IngestDependencies(
                settings=around.settings,
                pipelines=around.settings.pipelines,
                ledger=around.ledger,  # type: ignore[arg-type]
                producer=self.producer,
                consumer=self.member("gapwatch.ingest"),  # type: ignore[arg-type]
                heartbeats=self.member(),  # type: ignore[arg-type]
                offsets=admin,  # type: ignore[arg-type]
                topics=admin,  # type: ignore[arg-type]
                clock=self.clock,
                name=self.name,
                skew_ms=skew,
                on_unparsable=lambda _: None,
                on_finding=lambda *_: None,
            )
        ).run(self._stop)


def admin_of(around: Surroundings) -> Admin:
    return Admin(around.cluster, lambda at: around.shop.committed.get(at))


# ── match ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Table:
    """Stands for ``StateTable`` after a recovery: what its changelog holds, the highest rank of a name first."""

    put = StateTable.put
    barrier = StateTable.barrier

    def __init__(self, around: Surroundings, producer: WiredProducer) -> None:
        self._around = around
        self._producer = producer
        self._unacknowledged: list[Any] = []

    async def send(self, partition: int, key: bytes, value: bytes | None) -> Any:
        return await self._producer.send(state_topic(self._around.settings), key, value, partition=partition)

    def records(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        found: dict[bytes, bytes] = {}
        for record in self._around.cluster.logs[Partition(state_topic(self._around.settings), partition)]:
            key, value = record.record_key or b"", record.record_value
            if value is None:
                found.pop(key, None)
            elif key not in found or rank_of(value) >= rank_of(found[key]):
                found[key] = value
        return iter(found.items())


class Event:
    """Stands for Faust's event: acknowledged, its offset may be committed at any moment, so it is at once."""

    def __init__(self, matcher: Matcher, partition: int, offset: int) -> None:
        self._matcher, self._partition, self._offset = matcher, partition, offset

    def ack(self) -> None:
        self._matcher.acknowledge(self._partition, self._offset + 1)


class Matcher(Process):
    """``said``: of each partition, the offset after which something was said, and its id; until it is given up."""

    role = "match"

    def __init__(self, around: Surroundings, number: int) -> None:
        self.held: dict[int, Held] = {}
        self.said: dict[int, list[tuple[int, str]]] = {}
        super().__init__(around, number)

    async def run(self) -> None:
        around = self.around
        settings = around.settings
        consumer, table, admin = self.member(match_app_id(settings)), Table(around, self.producer), admin_of(around)
        fingerprints = {PIPELINE: around.shop.mapping.fingerprint}
        await self.producer.start()
        self._restorer = Restorer(settings, fingerprints, table, admin, torn=around.torn)  # type: ignore[arg-type]
        await self._restorer.identify(admin)  # type: ignore[arg-type]
        self._checkpointer = Checkpointer(
            self.held,
            table,  # type: ignore[arg-type]
            Outlet(self.producer, settings.topics),
            self.clock,
            worker=self.name,
            topic_id=lambda: self._restorer.topic_id,
            owns=lambda: consumer.owns,
        )
        await consumer.subscribe([settings.topics.events], self)
        due = 0
        while True:
            polled = await consumer.consume(500, seconds=0.02)
            for at, messages in polled.runs.items():
                for message in messages:
                    self._take(self.held[at.partition], message)
            if self.held and self.clock.now_ms() >= due:
                due = self.clock.now_ms() + CHECKPOINT_MS
                await self._checkpointer.run()
            elif any(held.said for held in self.held.values()):
                await self._checkpointer.say()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being made durable."""
        return self._checkpointer._lock.locked()

    def _take(self, held: Held, message: Any) -> None:
        assert message.number == held.expected
        event = Event(self, held.partition, message.number)
        before = len(held.said)
        held.apply(read(message.record_value or b""), message.number, message.time, event)
        self._note(held, before)

    def _note(self, held: Held, before: int = 0) -> None:
        spoken = self.said.setdefault(held.partition, [])
        for one in held.said[before:]:
            spoken.append((held.applied, one.id))
            self.around.on_said(held.partition, held.applied, one)

    def acknowledge(self, partition: int, offset: int) -> None:
        self.members[0].commit_now({Partition(self.around.settings.topics.events, partition): Committed(offset)})

    async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
        held = await self._restorer.restore([at.partition for at in committed])
        self.held.update(held)
        self.said.clear()
        for one in held.values():
            self._note(one)
        return {at: self.held[at.partition].expected for at in committed}

    async def revoked(self, partitions: Collection[Partition], *, lost: bool) -> Mapping[Partition, Committed]:
        try:
            if not lost:
                await self._checkpointer.run(everything=True)
        except GapwatchError:
            pass  # what was not made durable is read again by the next owner
        self.held.clear()
        return {}


# ── repair ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class StatusFeed:
    """Reads ``gapwatch.status`` from its beginning."""

    at_end = True

    def __init__(self, member: Member, starts: Mapping[Partition, int]) -> None:
        self._member = member
        self._starts: Mapping[Partition, int] | None = starts

    async def read(self, seconds: float) -> Sequence[bytes]:
        if self._starts is not None:
            await self._member.assign(self._starts)
            self._starts = None
        polled = await self._member.consume(500, seconds=seconds)
        return [message.value() or b"" for message in polled.messages]


class Repairer(Process):
    """Confirming and the re-reading of open gaps."""

    role = "repair"

    async def run(self) -> None:
        around, clock, ledger = self.around, self.clock, self.around.ledger
        settings, stores = around.settings, around.shop.stores(clock)

        async def open_stores(_: str = "") -> PipelineStores:
            return stores

        await self.producer.start()
        inbox = SuspectInbox(self.member("gapwatch.repair"), settings.topics)  # type: ignore[arg-type]
        await inbox.start()
        feed = StatusFeed(self.member(), {Partition(settings.topics.status, 0): 0})
        board = Board(settings, ledger, feed, clock)  # type: ignore[arg-type]
        findings = FindingBook(ledger, clock, lambda *_: None)  # type: ignore[arg-type]
        book = Book(ledger, clock)  # type: ignore[arg-type]
        provider = Provider(stores)
        self.judge, rejudge = (
            KeyJudge(open_stores, grace_ms=lambda: GRACE_MS, delivered=partial(board.delivered, PIPELINE), clock=clock)
            for _ in range(2)
        )
        confirmer = Confirmer(
            ConfirmerDependencies(
                ledger=ledger,  # type: ignore[arg-type]
                inbox=inbox,
                verdicts=VerdictPublisher(self.producer, settings.topics),
                judges={PIPELINE: self.judge},
                stores=open_stores,
                book=book,
                clock=clock,
                trials=MappingTrials(ledger, board, findings, provider, clock),  # type: ignore[arg-type]
                on_hole=findings.hole,
                on_cleared=lambda *_: None,
                on_detected=lambda *_: None,
            )
        )
        rechecker = Rechecker(
            RecheckerDependencies(
                pipelines=settings.pipelines,
                ledger=ledger,  # type: ignore[arg-type]
                book=book,
                stores=provider,
                judges={PIPELINE: rejudge},
                clock=clock,
            )
        )
        works: tuple[Coroutine[Any, Any, None], ...] = (
            confirmer.run(self._stop),
            board.run(self._stop),
            rechecker.run(self._stop),
            self._commit(inbox),
        )
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)

    async def _commit(self, inbox: SuspectInbox) -> None:
        while True:
            await self.clock.sleep(COMMIT_SECONDS)
            await inbox.commit()


class Provider:
    """Hands out one pipeline's stores."""

    def __init__(self, stores: PipelineStores) -> None:
        self._stores = stores

    async def stores(self, pipeline: str) -> PipelineStores:
        return self._stores
