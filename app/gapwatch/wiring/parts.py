"""The parts of one process: what every role is made of."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from gapwatch import __version__, native
from gapwatch.check_ports import Preflight
from gapwatch.clock import SystemClock
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import GapwatchError, StoreError, StoreUnreachable, UsageError
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.schema_registry import SchemaRegistry
from gapwatch.kafka.topics import TopicAdmin, ensure_topics
from gapwatch.ledger import open_ledger
from gapwatch.metrics import Metrics, unread
from gapwatch.model.pipeline import CAPTURED, FeedKind, Settings, StoreType
from gapwatch.roles.board import Board
from gapwatch.roles.status_feed import StatusReader, StatusTopic, StatusView
from gapwatch.roles.stirring import Stirring
from gapwatch.roles.stores import StoreAnswers
from gapwatch.wiring.measured import snapshot
from gapwatch.wiring.stores import Stores, host, new_id, resolved_settings, stored_settings
from gapwatch_connectors.registry import connector_of

if TYPE_CHECKING:
    from gapwatch.http.app import ApiDeps, ApiServer
    from gapwatch.kafka.fenced import FencedProducer
    from gapwatch.roles.repair.replaying import ReplayReader
    from gapwatch.wiring.resending import Resenders

log = structlog.get_logger(__name__)

SHOWN_SECONDS = 2.0  # between two looks at what is counted, while somebody reads it …
UNSEEN_SECONDS = 30.0  # … and while nobody has for a while
UNSEEN_AFTER_SECONDS = 60.0
STATUS_SECONDS = 1.0
# what roles wait for
BROKERS = "the brokers"
SOURCES = "the ledger, and a source's catalogue"
# A broker answers once it has so much, or after so long: ingest collects for longer, and many small answers cost more than what
# is in them.
TOGETHER = {"fetch.min.bytes": 256 * 1024, "fetch.wait.max.ms": 120}
RESOLVED = "_GAPWATCH_RESOLVED"  # in a child's environment: names of the pipelines whose types its parent has just stored
SKEW_SHARED_SECONDS = 5.0  # how long a store's clock, measured for one pipeline, is measured for all


class Parts:
    """What the roles of one process share. A role's modules are imported with it: a process of one role needs no other's."""

    def __init__(self, settings: Settings, role: str) -> None:
        self.settings = settings
        self.role = role
        self.clock = SystemClock()
        self.ledger = open_ledger(settings.database)
        self.metrics = Metrics(__version__, sorted(settings.pipelines), monotonic=self.clock.monotonic)
        self.stores = Stores(settings, self.ledger)
        self.name = f"{role}-{host()}-{os.getpid()}"
        self.process = f"{self.name}-{new_id()[:8]}"  # containers may share a host's name, and each has a process 1
        self.waits_for: Callable[[str, str], None] = lambda role, what: None  # "": it has all that it needs, and works
        self._status = StatusReader(lambda: StatusTopic(self.consumer("status"), settings.topics))
        self._offsets = StoreAnswers[int](self.clock)
        self._stirring = Stirring()
        self._scraped_at = self.clock.monotonic()
        self._registry = SchemaRegistry(settings.schema_registry, self.clock) if settings.schema_registry else None
        self._hot_path = native.find(os.environ)
        self._hot_path_told = False

    async def close(self) -> None:
        await self.stores.close()
        self.ledger.close()
        if self._registry is not None:
            self._registry.close()

    def producer(self, purpose: str) -> AckedProducer:
        return AckedProducer(self.settings, client_id=f"{purpose}-{self.name}")

    def consumer(self, purpose: str, group: str | None = None, *, native: Any = None, **options: Any) -> RawConsumer:
        name = f"{purpose}-{self.name}"
        return RawConsumer(self.settings, client_id=name, group=group, options=options, registry=self._registry, native=native)

    def _resenders(self) -> Resenders:
        from gapwatch.wiring.resending import Resenders

        def consumer() -> RawConsumer:
            return RawConsumer(self.settings, client_id=f"resend-{self.name}")

        registry = self._registry
        readable = (lambda message: message) if registry is None else registry.readable
        return Resenders(self.settings, consumer, lambda: self.producer("resend"), readable, self.clock)

    def replay_reader(self) -> ReplayReader:
        from gapwatch.roles.repair.replaying import ReplayReader

        def opened() -> RawConsumer:
            return self.consumer("replay", None, **{"enable.partition.eof": True})

        return ReplayReader(self.settings, opened, TopicAdmin(self.settings), self.clock)

    def count_finding(self, pipeline: str, finding: str) -> None:
        self.metrics.stream_findings.labels(pipeline=pipeline, finding=finding).inc()

    def _feed_producer(self, topic: str) -> FencedProducer:
        from gapwatch.kafka.fenced import FencedProducer

        transactional_id = self.settings.topics.transactional_id(topic)
        return FencedProducer(self.settings, transactional_id=transactional_id, client_id=f"{topic}-{self.name}")

    # roles, each built anew for every start

    async def capture(self, stop: asyncio.Event) -> None:
        from gapwatch.roles.capture.role import Beat, CaptureDependencies, CaptureRole, Stream

        settings, sender = self.settings, new_id()[:8]
        self.waits_for("capture", BROKERS)
        await ensure_topics(settings)
        streams, beats = [], {}
        for spec in settings.pipelines.values():
            if not spec.enabled:
                continue
            target, source = settings.stores[spec.target.store], settings.stores[spec.source.store]
            if spec.target.feed.kind in CAPTURED:
                opened = partial(connector_of(target.type).feed_reader, spec, target.url)
                streams.append(Stream(pipeline=spec, topic=spec.target.feed.topic, open=opened))
            if spec.source.feed.kind in CAPTURED:
                opened = partial(connector_of(source.type).source_feed_reader, spec, source.url)
                streams.append(Stream(pipeline=spec, topic=spec.source.feed.topic, open=opened, side="expected"))
            followed = [(source, "")]
            if spec.target.feed.kind is FeedKind.DEBEZIUM:
                in_mongodb = target.type is StoreType.MONGODB
                followed.append((target, spec.target.collection.partition(".")[0] if in_mongodb else ""))
            for store, database in followed:
                connector = connector_of(store.type)
                if store.heartbeat.auto and connector.heartbeat_writer(store.name, store.url, sender, database) is not None:
                    beats[store.name, database] = Beat(
                        store=store.name,
                        database=database,
                        every_seconds=store.heartbeat.every_seconds,
                        open=partial(_heartbeat, connector, store.name, store.url, database),
                    )
        topics, names = TopicAdmin(settings), [stream.topic for stream in streams]

        async def count() -> Mapping[str, int]:
            return {topic: fact.partitions for topic, fact in (await topics.describe(names)).items()}

        role = CaptureRole(
            CaptureDependencies(
                settings=settings,
                ledger=self.ledger,
                producer=self.producer("capture"),
                feed_producer=self._feed_producer,
                partitions=await count(),
                count=count,
                streams=streams,
                beats=list(beats.values()),
                clock=self.clock,
                holder=f"{self.name}/{sender}",
                on_finding=self.count_finding,
                on_requests=self.metrics.count_requests,
                stirring=self._stirring if self.role == "all" else None,
            )
        )
        self.waits_for("capture", "")
        await role.run(stop)

    def _tell_hot_path(self) -> None:
        """Say once which hot path ingest takes; warn where there is a module that cannot be used."""
        if not self._hot_path_told:
            self._hot_path_told = True
            say = log.warning if self._hot_path.misfit else log.info
            say("hot_path", used=self._hot_path.name, reason=self._hot_path.reason)

    async def ingest(self, stop: asyncio.Event) -> None:
        from gapwatch.roles.ingest.role import IngestDependencies, IngestRole

        self._tell_hot_path()
        self.waits_for("ingest", BROKERS)
        await ensure_topics(self.settings)
        self.waits_for("ingest", SOURCES)
        settings = await resolved_settings(self.settings, self.ledger, self.clock)
        native, ends = self._hot_path.module, {"enable.partition.eof": True}
        role = IngestRole(
            IngestDependencies(
                settings=settings,
                pipelines=settings.pipelines,
                ledger=self.ledger,
                producer=self.producer("ingest"),
                consumer=self.consumer("ingest", f"{settings.topics.prefix}.ingest", native=native, **ends, **TOGETHER),
                heartbeats=self.consumer("heartbeats"),
                offsets=OffsetReader(settings, self.clock),
                topics=TopicAdmin(settings),
                clock=self.clock,
                name=self.name,
                skew_ms=self._skew_ms,
                on_unparsable=lambda reason: self.metrics.unparsable.labels(reason=reason).inc(),
                on_finding=self.count_finding,
                transactions=lambda: self.consumer("transactions", None, **ends),
                on_transactions=lambda outcome, count: self.metrics.transactions.labels(outcome=outcome).inc(count),
                native=native,
                on_stir=self._stirring.stir,
            )
        )
        self.waits_for("ingest", "")
        await role.run(stop)

    async def resolved_for_match(self) -> Mapping[str, str]:
        """Resolve the pipelines for a child that plays match: with that, it needs no driver of a store."""
        self.waits_for("match", SOURCES)
        settings = await resolved_settings(self.settings, self.ledger, self.clock)
        return {RESOLVED: json.dumps(list(settings.pipelines))}

    async def match(self, stop: asyncio.Event) -> None:
        from gapwatch.roles.match.role import MatchRole

        self.waits_for("match", SOURCES)
        told = os.environ.get(RESOLVED)
        settings = await stored_settings(self.settings, self.ledger, json.loads(told)) if told else None
        settings = settings or await resolved_settings(self.settings, self.ledger, self.clock)
        self.waits_for("match", BROKERS)
        fingerprints = {name: CompiledMapping(spec).fingerprint for name, spec in settings.pipelines.items()}
        waits_for, native = partial(self.waits_for, "match"), self._hot_path.module
        await MatchRole(settings, fingerprints, self.clock, stop=stop, waits_for=waits_for, native=native).run()

    async def repair(self, stop: asyncio.Event) -> None:
        from gapwatch.roles.repair.kafka_io import GapPublisher, SuspectInbox, VerdictPublisher
        from gapwatch.roles.repair.role import RepairDependencies, RepairRole

        settings = self.settings
        self.waits_for("repair", BROKERS)
        await ensure_topics(settings)
        producer = self.producer("repair")
        await producer.start()
        inbox = SuspectInbox(self.consumer("suspects", f"{settings.topics.prefix}.repair"), settings.topics)
        status = self._status.view()
        checks: dict[str, Sequence[Preflight]] = {}
        try:
            await inbox.start()
            await status.start()
            board = Board(settings, self.ledger, status, self.clock)
            role = RepairRole(
                RepairDependencies(
                    settings=settings,
                    ledger=self.ledger,
                    board=board,
                    stores=self.stores,
                    inbox=inbox,
                    verdicts=VerdictPublisher(producer, settings.topics),
                    gaps=GapPublisher(producer, settings.topics),
                    checks=self._checks(board, checks),
                    replay=self.replay_reader().answer,
                    resender=self._resenders(),
                    metrics=self.metrics,
                    clock=self.clock,
                    host=host(),
                    process=self.process,
                    new_id=new_id,
                )
            )
            self.waits_for("repair", "")
            await role.run(stop)
        finally:
            for check in (check for of_pipeline in checks.values() for check in of_pipeline):
                await check.close()
            await inbox.close()
            await status.close()
            await producer.close()

    async def api(self, stop: asyncio.Event, readiness: Callable[[], Mapping[str, str]]) -> None:
        """Answer from the start: while Kafka does not, ``/readyz`` says so, and every pipeline is UNKNOWN."""
        from gapwatch.http.app import ApiServer

        settings = self.settings
        status = self._status.view()
        lags: dict[tuple[str, str], int] = {}
        board = Board(settings, self.ledger, status, self.clock, lags=lambda: lags)
        server = ApiServer(self._api_deps(board, readiness))
        self.metrics.configure(spec for spec in settings.pipelines.values() if spec.enabled)
        try:
            await _start(server, settings.listen_host, settings.listen_port)
            log.info("api_listens", address=f"{settings.listen_host}:{settings.listen_port}")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._show_metrics(board, stop))
                tasks.create_task(self._read_status(status, board, stop))
                tasks.create_task(self._read_lags(board, lags, stop))
        finally:
            await server.stop()
            await status.close()

    async def _read_status(self, status: StatusView, board: Board, stop: asyncio.Event) -> None:
        """Read the status topic as soon as Kafka answers."""
        self.waits_for("api", BROKERS)
        while not stop.is_set():
            try:
                await ensure_topics(self.settings)
                await status.start()
                break
            except StoreUnreachable as error:
                log.warning("status_unread", reason=str(error))
                await self.clock.sleep(STATUS_SECONDS)
        self.waits_for("api", "")
        await board.run(stop)

    def _api_deps(self, board: Board, readiness: Callable[[], Mapping[str, str]]) -> ApiDeps:
        from gapwatch.http.app import ApiDeps, ProbeDeps
        from gapwatch.roles.desk import Desk, DeskDependencies
        from gapwatch.roles.keylog import KeyLog

        desk = Desk(
            DeskDependencies(
                settings=self.settings,
                ledger=self.ledger,
                board=board,
                stores=self.stores,
                stream=KeyLog(partial(self.consumer, "key"), self.settings.topics, self.clock),
                clock=self.clock,
                new_id=new_id,
            )
        )
        return ApiDeps(
            operations=desk,
            ledger=self.ledger,
            tokens=self.ledger,
            probes=ProbeDeps(readiness=readiness, metrics=self.exposition),
            clock=self.clock,
            version=__version__,
        )

    async def _show_metrics(self, board: Board, stop: asyncio.Event) -> None:
        while not stop.is_set():
            begun = self.clock.monotonic()
            try:
                views = await board.measured()
                self.metrics.show(await asyncio.to_thread(snapshot, self.ledger, views), read_at=begun)
            except StoreError as error:
                log.warning("metrics_unread", reason=str(error))
                self.metrics.show(unread(self.metrics.snapshot))
            await self._pause(board, stop)

    async def _pause(self, board: Board, stop: asyncio.Event) -> None:
        """Wait before metrics and lags are read again: shorter while they are read from here, too."""
        until = self.clock.monotonic() + UNSEEN_SECONDS
        await self.clock.sleep(SHOWN_SECONDS)
        while (now := self.clock.monotonic()) < until and not stop.is_set():
            if now - max(board.looked_at, self._scraped_at) <= UNSEEN_AFTER_SECONDS:
                return
            await self.clock.sleep(SHOWN_SECONDS)

    def exposition(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        self._scraped_at = self.clock.monotonic()
        return self.metrics.exposition()

    async def _read_lags(self, board: Board, lags: dict[tuple[str, str], int], stop: asyncio.Event) -> None:
        """Keep how many raw records ingest has not yet read, per pipeline and topic; nothing is shown that is not known."""
        offsets, topics = OffsetReader(self.settings, self.clock), TopicAdmin(self.settings)
        try:
            while not stop.is_set():
                found: dict[tuple[str, str], int] = {}
                try:
                    found = await self._lags(offsets, topics)
                except GapwatchError as error:
                    log.warning("lags_unread", reason=str(error))
                lags.clear()
                lags.update(found)
                await self._pause(board, stop)
        finally:
            await offsets.close()

    async def _lags(self, offsets: OffsetReader, topics: TopicAdmin) -> dict[tuple[str, str], int]:
        """Ask once for the topics of all pipelines."""
        pipelines = self.settings.pipelines.values()
        read = [(spec.id, feed.topic) for spec in pipelines for feed in (*spec.source.feeds, spec.target.feed) if feed.topic]
        facts = await topics.describe(sorted({topic for _, topic in read}))
        partitions = [Partition(topic, number) for topic, fact in facts.items() for number in range(fact.partitions)]
        if not partitions:
            return {}
        ends = (await offsets.log_ends(partitions)).ends
        positions = (await offsets.delivery(f"{self.settings.topics.prefix}.ingest", partitions)).positions
        lags = dict.fromkeys(facts, 0)
        for at in partitions:
            lags[at.topic] += max(0, ends[at] - (positions[at] or 0))
        return {(pipeline, topic): lags[topic] for pipeline, topic in read if topic in lags}

    async def _skew_ms(self, pipeline: str) -> int:
        """Return the larger of both stores' clock offsets, in milliseconds."""
        stores, spec = await self.stores.stores(pipeline), self.settings.pipelines[pipeline]
        sides = ((spec.source.store, stores.source), (spec.target.store, stores.target))
        return max([abs(await self._offsets.ask(name, one.clock_offset_ms, seconds=SKEW_SHARED_SECONDS)) for name, one in sides])

    def _checks(self, board: Board, made: dict[str, Sequence[Preflight]]) -> Callable[[str], Sequence[Preflight]]:
        from gapwatch.wiring.watching import Watching

        watching = Watching(self.settings, self.ledger, board, self.stores, self.clock)

        def of(pipeline: str) -> Sequence[Preflight]:
            if pipeline not in made:
                spec = self.settings.pipelines[pipeline]
                made[pipeline] = watching.checks(spec)
            return made[pipeline]

        return of


async def _start(server: ApiServer, host: str, port: int) -> None:
    try:
        await server.start(host, port)
    except OSError as error:
        remedy = "Choose another address in api.listen, or end what listens there."
        raise UsageError(f"The API cannot listen on {host}:{port}: {error.strerror or error}.", remedy=remedy) from error


def _heartbeat(connector: Any, store: str, url: str, database: str) -> Any:
    """Open a heartbeat writer with a sender of its own: its numbers begin at 1."""
    return connector.heartbeat_writer(store, url, new_id()[:8], database)
