"""Builds every object from the settings. No logic: the only place that knows connectors, ledger, Kafka and HTTP at once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gapwatch import __version__
from gapwatch.clock import SystemClock
from gapwatch.config import load
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.resolve import resolve
from gapwatch.errors import GapwatchError, StoreError, StoreRefused, StoreUnreachable, UsageError
from gapwatch.http.app import ApiDeps, ApiServer, ProbeDeps, ProbeServer
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.probe import KafkaProbe
from gapwatch.kafka.topics import TopicAdmin, ensure_topics
from gapwatch.ledger import SqlLedger, is_new, open_ledger
from gapwatch.logs import set_up_logs
from gapwatch.metrics import Metrics, Snapshot
from gapwatch.model.gap import RunKind, RunState
from gapwatch.model.pipeline import CAPTURED, FeedKind, FieldSpec, PipelineSpec, Settings
from gapwatch.ports import Advice, Clock, Preflight
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.capture.role import Beat, CaptureDependencies, CaptureRole, Stream
from gapwatch.roles.desk import Desk, DeskDependencies
from gapwatch.roles.examiner import examine_pipelines
from gapwatch.roles.ingest.role import IngestDependencies, IngestRole
from gapwatch.roles.keylog import KeyLog
from gapwatch.roles.repair.kafka_io import GapPublisher, SuspectInbox, VerdictPublisher
from gapwatch.roles.repair.role import RepairDependencies, RepairRole
from gapwatch.roles.status_feed import StatusTopic
from gapwatch.roles.stores import PipelineStores
from gapwatch.roles.supervisor import Supervised, Supervisor, Task, child_process
from gapwatch_connectors.debezium import ConnectorPreflight, ConnectRest
from gapwatch_connectors.registry import connector_of

log = structlog.get_logger(__name__)

METRICS_SECONDS = 2.0
LAG_SECONDS = 2.0
STATUS_SECONDS = 1.0
RESOLVE_SECONDS = 2.0


def new_id() -> str:
    return uuid.uuid4().hex


def host() -> str:
    return socket.gethostname()


class Stores:
    """Implements :class:`gapwatch.roles.stores.StoreProvider`: connections are made and mappings resolved at first use."""

    def __init__(self, settings: Settings, ledger: SqlLedger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._made: dict[str, PipelineStores] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def stores(self, pipeline: str) -> PipelineStores:
        async with self._locks.setdefault(pipeline, asyncio.Lock()):
            if pipeline not in self._made:
                self._made[pipeline] = await self._make(self._settings.pipelines[pipeline])
            return self._made[pipeline]

    async def _make(self, spec: PipelineSpec) -> PipelineStores:
        resolved = await resolved_pipeline(self._settings, self._ledger, spec)
        source_store = self._settings.stores[spec.source.store]
        target_store = self._settings.stores[spec.target.store]
        source, target = connector_of(source_store.type), connector_of(target_store.type)
        return PipelineStores(
            spec=resolved,
            mapping=CompiledMapping(resolved),
            codec=KeyCodec(resolved.source.key),
            source=source.source_reader(resolved, source_store.url),
            target=target.target_reader(resolved, target_store.url),
            writer=target.target_writer(resolved, target_store.url),
        )

    async def close(self) -> None:
        for made in self._made.values():
            for part in (made.source, made.target, made.writer):
                await part.close()
        self._made.clear()


async def resolved_pipeline(settings: Settings, ledger: SqlLedger, spec: PipelineSpec) -> PipelineSpec:
    """Return the pipeline with its types from the source's catalogue; from what is stored of it while the source is away."""
    store = settings.stores[spec.source.store]
    fact = f"resolved/{spec.id}"
    reader = connector_of(store.type).source_reader(spec, store.url)
    try:
        info = await reader.describe()
        config = await _connector_config(settings, spec)
        resolved = resolve(spec, info, config)
        stored = {"fields": msgspec.to_builtins(resolved.fields), "feed": msgspec.to_builtins(resolved.source.feed)}
        await asyncio.to_thread(ledger.set_fact, fact, stored)
        return resolved
    except StoreError as error:
        if not error.retriable:
            raise
        known: Any = await asyncio.to_thread(ledger.fact, fact)
        if known is None:
            raise
        fields = msgspec.convert(known["fields"], tuple[FieldSpec, ...], strict=False)
        if [field.target for field in fields] != [field.target for field in spec.fields]:
            raise
        feed = msgspec.convert(known["feed"], type(spec.source.feed), strict=False)
        return replace(spec, fields=fields, source=replace(spec.source, feed=feed))
    finally:
        await reader.close()


async def _connector_config(settings: Settings, spec: PipelineSpec) -> Mapping[str, str] | None:
    if not settings.connect_url or spec.source.feed.kind is not FeedKind.DEBEZIUM:
        return None
    try:
        connector = await ConnectRest(settings.connect_url).source_of(spec.source.feed.topic)
    except StoreError:
        return None
    return connector.config if connector is not None else None


async def resolved_settings(settings: Settings, ledger: SqlLedger, clock: Clock) -> Settings:
    """Return the settings with resolved pipelines; waits while a source that was never described does not answer."""
    resolved: dict[str, PipelineSpec] = {}
    enabled = {name: spec for name, spec in settings.pipelines.items() if spec.enabled}
    while len(resolved) < len(enabled):
        for name, spec in enabled.items():
            if name in resolved:
                continue
            try:
                resolved[name] = await resolved_pipeline(settings, ledger, spec)
            except StoreError as error:
                if not error.retriable:
                    raise
                log.warning("source_not_described", pipeline=name, reason=str(error))
        if resolved:
            break  # the others are taken up at the next start of the role
        await clock.sleep(RESOLVE_SECONDS)
    return replace(settings, pipelines=resolved)


class Parts:
    """What the roles of one process share."""

    def __init__(self, settings: Settings, role: str) -> None:
        self.settings = settings
        self.role = role
        self.clock = SystemClock()
        self.ledger = open_ledger(settings.database)
        self.metrics = Metrics(__version__, sorted(settings.pipelines))
        self.stores = Stores(settings, self.ledger)
        self.name = f"{role}-{host()}-{os.getpid()}"
        self._preflights: dict[str, Sequence[Preflight]] = {}

    async def close(self) -> None:
        await self.stores.close()
        for checks in self._preflights.values():
            for check in checks:
                await check.close()
        self.ledger.close()

    def producer(self, purpose: str) -> AckedProducer:
        return AckedProducer(self.settings, client_id=f"{purpose}-{self.name}")

    def consumer(self, purpose: str, group: str | None = None, **options: Any) -> RawConsumer:
        return RawConsumer(self.settings, client_id=f"{purpose}-{self.name}", group=group, options=options)

    def count_finding(self, pipeline: str, finding: str) -> None:
        self.metrics.stream_findings.labels(pipeline=pipeline, finding=finding).inc()

    # roles, each built anew for every start

    async def capture(self, stop: asyncio.Event) -> None:
        settings, sender = self.settings, new_id()[:8]
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
            if source.heartbeat.auto:
                connector = connector_of(source.type)
                if connector.heartbeat_writer(source.name, source.url, sender) is not None:
                    beats[source.name] = Beat(
                        store=source.name,
                        every_seconds=source.heartbeat.every_seconds,
                        open=partial(_heartbeat, connector, source.name, source.url),
                    )
        facts = await TopicAdmin(settings).describe([stream.topic for stream in streams])
        role = CaptureRole(
            CaptureDependencies(
                settings=settings,
                ledger=self.ledger,
                producer=self.producer("capture"),
                partitions={topic: fact.partitions for topic, fact in facts.items()},
                streams=streams,
                beats=list(beats.values()),
                clock=self.clock,
                holder=f"{self.name}/{sender}",
                on_finding=self.count_finding,
            )
        )
        await role.run(stop)

    async def ingest(self, stop: asyncio.Event) -> None:
        await ensure_topics(self.settings)
        settings = await resolved_settings(self.settings, self.ledger, self.clock)
        role = IngestRole(
            IngestDependencies(
                settings=settings,
                pipelines=settings.pipelines,
                ledger=self.ledger,
                producer=self.producer("ingest"),
                consumer=self.consumer("ingest", f"{settings.topics.prefix}.ingest", **{"enable.partition.eof": True}),
                heartbeats=self.consumer("heartbeats"),
                offsets=OffsetReader(settings, self.clock),
                topics=TopicAdmin(settings),
                clock=self.clock,
                name=self.name,
                skew_ms=self._skew_ms,
                on_unparsable=lambda reason: self.metrics.unparsable.labels(reason=reason).inc(),
                on_finding=self.count_finding,
            )
        )
        await role.run(stop)

    async def match(self, stop: asyncio.Event) -> None:
        from gapwatch.roles.match.role import MatchRole

        settings = await resolved_settings(self.settings, self.ledger, self.clock)
        fingerprints = {name: CompiledMapping(spec).fingerprint for name, spec in settings.pipelines.items()}
        await MatchRole(settings, fingerprints, self.clock, stop=stop).run()

    async def repair(self, stop: asyncio.Event) -> None:
        settings = self.settings
        await ensure_topics(settings)
        producer = self.producer("repair")
        await producer.start()
        inbox = SuspectInbox(self.consumer("suspects", f"{settings.topics.prefix}.repair"), settings.topics)
        status = StatusTopic(self.consumer("status-repair"), settings.topics)
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
                    checks=self._checks(),
                    metrics=self.metrics,
                    clock=self.clock,
                    host=host(),
                    new_id=new_id,
                )
            )
            await role.run(stop)
        finally:
            await inbox.close()
            await status.close()
            await producer.close()

    async def api(self, stop: asyncio.Event, readiness: Callable[[], Mapping[str, str]]) -> None:
        """Answer from the start: while Kafka does not, ``/readyz`` says so, and every pipeline is UNKNOWN."""
        settings = self.settings
        status = StatusTopic(self.consumer("status-api"), settings.topics)
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
                tasks.create_task(self._read_lags(lags, stop))
        finally:
            await server.stop()
            await status.close()

    async def _read_status(self, status: StatusTopic, board: Board, stop: asyncio.Event) -> None:
        """Read the status topic as soon as Kafka answers."""
        while not stop.is_set():
            try:
                await ensure_topics(self.settings)
                await status.start()
                break
            except StoreUnreachable as error:
                log.warning("status_unread", reason=str(error))
                await self.clock.sleep(STATUS_SECONDS)
        await board.run(stop)

    def _api_deps(self, board: Board, readiness: Callable[[], Mapping[str, str]]) -> ApiDeps:
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
            probes=ProbeDeps(readiness=readiness, metrics=self.metrics.exposition),
            clock=self.clock,
            version=__version__,
        )

    async def _show_metrics(self, board: Board, stop: asyncio.Event) -> None:
        while not stop.is_set():
            views = await board.views()
            self.metrics.show(await asyncio.to_thread(self._snapshot, views))
            await self.clock.sleep(METRICS_SECONDS)

    def _snapshot(self, views: Sequence[Any]) -> Snapshot:
        ledger = self.ledger
        sweeps, succeeded, oldest = [], {}, {}
        for view in views:
            runs = ledger.runs(pipeline=view.id, kind=RunKind.SWEEP, limit=20)
            sweeps += list(runs[:1])
            good = next((run for run in runs if run.state is RunState.SUCCEEDED and run.ended_at), None)
            if good is not None and good.ended_at is not None:
                succeeded[view.id] = good.ended_at
            alerting = ledger.gap_summary(view.id).oldest_alerting
            if alerting is not None:
                oldest[view.id] = alerting
        return Snapshot(
            views=views,
            detected=ledger.gap_counts(),
            resolved=ledger.resolution_counts(),
            sweeps=sweeps,
            last_success=succeeded,
            oldest_open=oldest,
        )

    async def _read_lags(self, lags: dict[tuple[str, str], int], stop: asyncio.Event) -> None:
        """Keep how many raw records ingest has not yet read, per pipeline and topic; nothing is shown that is not known."""
        offsets, topics = OffsetReader(self.settings, self.clock), TopicAdmin(self.settings)
        group = f"{self.settings.topics.prefix}.ingest"
        while not stop.is_set():
            found: dict[tuple[str, str], int] = {}
            try:
                for spec in self.settings.pipelines.values():
                    names = [feed.topic for feed in (spec.source.feed, spec.target.feed) if feed.topic]
                    for topic, fact in (await topics.describe(names)).items():
                        partitions = [Partition(topic, number) for number in range(fact.partitions)]
                        ends = (await offsets.log_ends(partitions)).ends
                        positions = (await offsets.delivery(group, partitions)).positions
                        found[spec.id, topic] = sum(max(0, ends[at] - (positions[at] or 0)) for at in partitions)
            except GapwatchError as error:
                log.warning("lags_unread", reason=str(error))
                found = {}
            lags.clear()
            lags.update(found)
            await self.clock.sleep(LAG_SECONDS)

    async def _skew_ms(self, pipeline: str) -> int:
        """Return the larger of both stores' clock offsets, in milliseconds."""
        stores = await self.stores.stores(pipeline)
        return max(abs(await stores.source.clock_offset_ms()), abs(await stores.target.clock_offset_ms()))

    def _checks(self) -> Callable[[str], Sequence[Preflight]]:
        made = self._preflights

        def of(pipeline: str) -> Sequence[Preflight]:
            if pipeline not in made:
                made[pipeline] = preflights(self.settings, self.settings.pipelines[pipeline])
            return made[pipeline]

        return of


async def _start(server: ApiServer, host: str, port: int) -> None:
    try:
        await server.start(host, port)
    except OSError as error:
        remedy = "Choose another address in api.listen, or end what listens there."
        raise UsageError(f"The API cannot listen on {host}:{port}: {error.strerror or error}.", remedy=remedy) from error


def _heartbeat(connector: Any, store: str, url: str) -> Any:
    """Open a heartbeat writer with a sender of its own: its numbers begin at 1."""
    return connector.heartbeat_writer(store, url, new_id()[:8])


def preflights(settings: Settings, spec: PipelineSpec, position: bytes | None = None) -> list[Preflight]:
    """Return every check of one pipeline: source, target (can its feed go on at `position`?), connectors."""
    source, target = settings.stores[spec.source.store], settings.stores[spec.target.store]
    checks: list[Preflight] = [
        connector_of(source.type).source_preflight(spec, source.url),
        connector_of(target.type).target_preflight(spec, target.url, position),
    ]
    if settings.connect_url:
        checks.append(ConnectorPreflight(spec, settings.connect_url))
    return checks


# running


def serve(config: Path | None, role: str) -> int:
    """Run one role, or all of them, until SIGTERM or Ctrl-C; return the exit code."""
    settings = load(config, os.environ)
    set_up_logs()
    return asyncio.run(_serve(settings, config, role))


async def _serve(settings: Settings, config: Path | None, role: str) -> int:
    parts = Parts(settings, role)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(
        tasks=(),
        clock=parts.clock,
        on_up=lambda name, up: parts.metrics.up.labels(role=name).set(int(up)),
        on_failure=lambda name: parts.metrics.role_failures.labels(role=name).inc(),
    )
    probe = KafkaProbe(settings, parts.clock)
    probing = asyncio.create_task(probe.run(stop))

    def readiness() -> Mapping[str, str]:
        return {**supervisor.readiness(), "kafka": "failed: nobody asks it any more" if probing.done() else probe.state}

    supervisor.tasks = _tasks(parts, readiness, config, role)
    log.info("starting", role=role, version=__version__, pipelines=sorted(settings.pipelines))
    probes = ProbeServer(ProbeDeps(readiness=readiness, metrics=parts.metrics.exposition))
    try:
        if settings.probes_port:
            await _listen(probes, settings.probes_host, settings.probes_port)
        await supervisor.run(stop)
    finally:
        probing.cancel()
        await probes.stop()
        await parts.close()
    return 0


async def _listen(probes: ProbeServer, host: str, port: int) -> None:
    try:
        await probes.start(host, port)
    except OSError as error:
        raise UsageError(
            f"The probes cannot listen on {host}:{port}: {error.strerror or error}.",
            remedy="Give each process of one machine an address of its own: GAPWATCH_PROBES__LISTEN.",
        ) from error
    log.info("probes_listen", address=f"{host}:{port}")


def _tasks(parts: Parts, readiness: Callable[[], Mapping[str, str]], config: Path | None, role: str) -> list[Supervised]:
    """Return what this process runs; Faust shares its event loop with nobody, so with ``all`` match is a child process."""
    chosen = ["--config", str(config)] if config is not None else []
    made: dict[str, Callable[[], Task]] = {
        "capture": lambda: parts.capture,
        "ingest": lambda: parts.ingest,
        "match": lambda: child_process("match", [*chosen, "run", "--role", "match"]) if role == "all" else parts.match,
        "repair": lambda: parts.repair,
        "api": lambda: partial(_with, parts.api, readiness),
    }
    names = list(made) if role == "all" else [role]
    return [Supervised(name=name, make=made[name]) for name in names]


async def _with(
    run: Callable[[asyncio.Event, Callable[[], Mapping[str, str]]], Coroutine[Any, Any, None]],
    readiness: Callable[[], Mapping[str, str]],
    stop: asyncio.Event,
) -> None:
    await run(stop, readiness)


@contextmanager
def local_service(settings: Settings) -> Iterator[str]:
    """Serve the API inside this process, on a free loopback port, for one command; yields its address."""
    import threading

    started: list[str] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        parts = Parts(settings, "cli")
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        status = StatusTopic(parts.consumer("status-cli"), settings.topics)
        board = Board(settings, parts.ledger, status, parts.clock)
        server = ApiServer(parts._api_deps(board, dict))
        try:
            await status.start()
            while not board.read_through:
                for value in await status.read(0.2):
                    board.take(value)
            _, port = await server.start("127.0.0.1", 0)
            started.append(f"http://127.0.0.1:{port}")
            ready.set()
            await stop.wait()
        finally:
            await server.stop()
            await status.close()
            await parts.close()

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failed.append(error)
        finally:
            ready.set()

    worker = threading.Thread(target=thread, name="local-service")
    worker.start()
    ready.wait()
    try:
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        if loops:
            loop, stop = loops[0]
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)
        worker.join()


def examine(settings: Settings) -> Sequence[Advice]:
    """Return all advice of all preflights, and of our own topics; what could not be asked has the level ``unknown``."""
    return asyncio.run(_examine(settings))


async def _examine(settings: Settings) -> Sequence[Advice]:
    advice: list[Advice] = []
    positions: Mapping[str, Any] = {}
    try:
        positions = await asyncio.to_thread(_positions, settings.database)
    except GapwatchError as error:
        level = "error" if isinstance(error, StoreRefused) else "unknown"
        advice.append(Advice(level=level, subject="database", message=error.message, remedy=error.remedy))
    checks: dict[str, Sequence[Preflight]] = {}
    for name, spec in settings.pipelines.items():
        if spec.enabled:
            token = positions.get(Facts.resume(spec.target.feed.topic), {}).get("token")
            checks[name] = preflights(settings, spec, token.encode() if token else None)
    try:
        return [*advice, *await examine_pipelines(settings, checks, TopicAdmin(settings))]
    finally:
        for check in chain.from_iterable(checks.values()):
            await check.close()


def _positions(database: str) -> Mapping[str, Any]:
    """Return where every change stream was read to; before the first start there is nothing."""
    if is_new(database):
        return {}
    ledger = open_ledger(database)
    try:
        return ledger.facts(Facts.resume(""))
    finally:
        ledger.close()


def validate_live(settings: Settings) -> Sequence[Advice]:
    """Read up to 100 keys on both sides of every pipeline and compare them under the mapping (M23)."""
    from gapwatch.roles.examiner import compare_live

    async def run() -> Sequence[Advice]:
        ledger = open_ledger("sqlite:///:memory:")
        stores = Stores(settings, ledger)
        made: dict[str, Callable[[], Awaitable[PipelineStores]]] = {
            name: partial(stores.stores, name) for name, spec in settings.pipelines.items() if spec.enabled
        }
        try:
            return [*await _examine(settings), *await compare_live(made)]
        finally:
            await stores.close()
            ledger.close()

    return asyncio.run(run())
