"""Runs roles: one, all of them, or the API alone inside a command."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gapwatch import __version__
from gapwatch.config import load
from gapwatch.errors import UsageError
from gapwatch.kafka.probe import KafkaProbe
from gapwatch.logs import set_up_logs
from gapwatch.model.pipeline import Settings
from gapwatch.parent import end_with_parent
from gapwatch.roles.board import Board
from gapwatch.roles.status_feed import StatusTopic
from gapwatch.roles.supervisor import DRAIN_SECONDS, Supervised, Supervisor, Task, child_process, to_parent
from gapwatch.wiring.parts import Parts

if TYPE_CHECKING:
    from gapwatch.http.app import ProbeServer

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 2.0  # after the drain: closing waits for clients, which wait for brokers that may be away
SAYING_SECONDS = 1.0  # for a last line, which a full pipe may hold up


def serve(config: Path | None, role: str) -> int:
    """Run one role, or all of them, until SIGTERM or Ctrl-C; return the exit code."""
    end_with_parent()
    settings = load(config, os.environ)
    set_up_logs()
    faulthandler.enable()  # where a client's native code ends the process, the log says in which call
    return asyncio.run(_serve(settings, config, role))


async def _serve(settings: Settings, config: Path | None, role: str) -> int:
    parts = Parts(settings, role)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _begin_to_end, stop)
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

    def waits_for(name: str, what: str) -> None:
        supervisor.waits_for(name, what)
        to_parent(what)

    parts.waits_for = waits_for
    supervisor.tasks = _tasks(parts, readiness, config, role)
    log.info("starting", role=role, version=__version__, pipelines=sorted(settings.pipelines))
    try:
        async with _probes(settings, readiness, parts.exposition):
            await supervisor.run(stop)
    finally:
        probing.cancel()
        await parts.close()
    return 0


@asynccontextmanager
async def _probes(
    settings: Settings, readiness: Callable[[], Mapping[str, str]], metrics: Callable[[], bytes]
) -> AsyncIterator[None]:
    """Answer probes, where the configuration says so: a process without them needs no HTTP server, which is ten megabytes."""
    if not settings.probes_port:
        yield
        return
    from gapwatch.http.app import ProbeDeps, ProbeServer

    probes = ProbeServer(ProbeDeps(readiness=readiness, metrics=metrics))
    try:
        await _listen(probes, settings.probes_host, settings.probes_port)
        yield
    finally:
        await probes.stop()


def _begin_to_end(stop: asyncio.Event) -> None:
    """Set `stop`, and see to it that the process ends in time, whatever still waits for a store in a thread.

    A process may end at any moment without losing anything: what was not acknowledged is read again by the next owner.
    """
    if not stop.is_set():
        stop.set()
        leaving = threading.Timer(DRAIN_SECONDS + CLOSE_SECONDS, _leave)
        at_last = threading.Timer(DRAIN_SECONDS + CLOSE_SECONDS + SAYING_SECONDS, os._exit, (0,))  # nobody reads what we say
        for timer in (leaving, at_last):
            timer.daemon = True
            timer.start()


def _leave() -> None:
    try:
        log.warning("closing_cut_short", seconds=DRAIN_SECONDS + CLOSE_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


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
        "match": lambda: (
            child_process(
                "match", [*chosen, "run", "--role", "match"], partial(parts.waits_for, "match"), parts.resolved_for_match
            )
            if role == "all"
            else parts.match
        ),
        "repair": lambda: parts.repair,
        "api": lambda: partial(_with, parts.api, readiness),
    }
    names = list(made) if role == "all" else [role]
    return [Supervised(name=name, make=made[name], says=True) for name in names]


async def _with(
    run: Callable[[asyncio.Event, Callable[[], Mapping[str, str]]], Coroutine[Any, Any, None]],
    readiness: Callable[[], Mapping[str, str]],
    stop: asyncio.Event,
) -> None:
    await run(stop, readiness)


@contextmanager
def local_service(settings: Settings) -> Iterator[str]:
    """Serve the API inside this process, on a free loopback port, for one command; yields its address."""
    from gapwatch.http.app import ApiServer

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
