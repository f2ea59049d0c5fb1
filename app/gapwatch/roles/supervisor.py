"""Keeps roles running: one that fails is started anew with back-off, and the others do not notice.

The only place where every exception is caught. A failure is logged with its reason, counted, and shown by
``/readyz?verbose``; it is never hidden, because what a dead role no longer says turns the pipelines UNKNOWN by its age.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from gapwatch.errors import GapwatchError
from gapwatch.parent import tied_to_us
from gapwatch.ports import Clock

log = structlog.get_logger(__name__)

PIPE = "_GAPWATCH_WAITS_PIPE"  # in a child's environment: the pipe through which it says what it waits for
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
HEALTHY_AFTER_SECONDS = 60.0  # a role that ran this long starts over with the first pause
TERMINATE_SECONDS = 14.0
DRAIN_SECONDS = 15.0  # what is not acknowledged by then is read again by the next owner

Task = Callable[[asyncio.Event], Awaitable[None]]


@dataclass(slots=True)
class Health:
    """``state``: starting | running | failed | stopped; ``reason`` of the last failure.

    ``waits_for``: what a running one has to have before it can work, and does not have yet.
    """

    state: str = "starting"
    waits_for: str = ""
    reason: str = ""
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """A named task. ``make`` builds it anew for every start, so that nothing of a failed one is used again.

    ``says``: it calls :meth:`Supervisor.waits_for`, and is not ready before it has said that it waits for nothing.
    """

    name: str
    make: Callable[[], Task]
    says: bool = False


@dataclass(slots=True, kw_only=True)
class Supervisor:
    tasks: Sequence[Supervised]
    clock: Clock
    on_up: Callable[[str, bool], None]
    on_failure: Callable[[str], None]
    health: dict[str, Health] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event) -> None:
        """Run every task until `stop` is set, then let all of them end; one that cannot in time is cancelled."""
        for task in self.tasks:
            self.health[task.name] = Health()
        kept = {asyncio.create_task(self._keep(task, stop), name=task.name) for task in self.tasks}
        await stop.wait()
        _, late = await asyncio.wait(kept, timeout=DRAIN_SECONDS)
        for one in late:
            log.warning("role_not_drained", role=one.get_name(), seconds=DRAIN_SECONDS)
            one.cancel()
        await asyncio.wait(kept)

    def readiness(self) -> Mapping[str, str]:
        """Return "ok", or why not, for every task."""
        return {name: _shown(health) for name, health in self.health.items()}

    def waits_for(self, name: str, what: str) -> None:
        """Take a task's word for what it has to have and does not have yet; "": it has everything, and works."""
        if name in self.health:
            self.health[name].waits_for = what

    async def _keep(self, task: Supervised, stop: asyncio.Event) -> None:
        health, pause = self.health[task.name], BACKOFF_SECONDS
        while not stop.is_set():
            started = self.clock.monotonic()
            health.state, health.waits_for = "running", "what it needs" if task.says else ""
            self.on_up(task.name, True)
            try:
                await task.make()(stop)
                reason = "it ended by itself"
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                reason = "it was cancelled from within"  # e.g. by a client that closed: no reason for the others to end
                log.error("role_failed", role=task.name, reason=reason)
            except Exception as error:
                reason = _reason(error)
                log.error("role_failed", role=task.name, reason=reason, exc_info=not isinstance(error, GapwatchError))
            finally:
                self.on_up(task.name, False)
            if stop.is_set():
                break
            health.state, health.reason, health.failures = "failed", reason, health.failures + 1
            self.on_failure(task.name)
            if self.clock.monotonic() - started > HEALTHY_AFTER_SECONDS:
                pause = BACKOFF_SECONDS
            await _pause(stop, pause)
            pause = min(BACKOFF_SECONDS_MAX, pause * 2)
        health.state = "stopped"


def _shown(health: Health) -> str:
    if health.state != "running":
        return f"{health.state}: {health.reason}".rstrip(": ")
    if not health.waits_for:
        return "ok"
    return f"waits for {health.waits_for}" + (f"; it failed before: {health.reason}" if health.reason else "")


def _is_cancelled() -> bool:
    """Whether somebody asked this very task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _reason(error: BaseException) -> str:
    """Return one sentence; of a group of errors, the first one's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, GapwatchError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def child_process(
    name: str, arguments: Sequence[str], waits_for: Callable[[str], None], told: Callable[[], Awaitable[Mapping[str, str]]]
) -> Task:
    """Return a task that runs Gapwatch once more, as a child process: for roles that must not share an event loop.

    Args:
        name: For the log.
        arguments: What follows ``python -m gapwatch``.
        waits_for: Is called with what the child says that it waits for, through a pipe, see :func:`to_parent`.
        told: Returns what the child finds in its environment besides, before each start.
    """

    async def run(stop: asyncio.Event) -> None:
        more = await told()
        with _heard(waits_for) as pipe:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gapwatch", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                env={
                    **os.environ,
                    **tied_to_us(),
                    **more,
                    PIPE: str(pipe),
                    "GAPWATCH_PROBES__LISTEN": "",
                },  # that address is the parent's
                pass_fds=(pipe,),
            )
            await kept(process, stop)

    async def kept(process: asyncio.subprocess.Process, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        ending = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({stopping, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                process.send_signal(signal.SIGTERM)
                await asyncio.wait({ending}, timeout=TERMINATE_SECONDS)
        finally:
            stopping.cancel()
            if not ending.done():
                process.kill()
            code = await ending
        if not stop.is_set():
            raise GapwatchError(f"Process {name} ended with code {code}.", remedy="Its own log lines say why.")

    return run


@contextmanager
def _heard(waits_for: Callable[[str], None]) -> Iterator[int]:
    """Hear what a child says, line by line, through the pipe whose end is yielded."""
    loop, (ours, theirs) = asyncio.get_running_loop(), os.pipe()
    os.set_blocking(theirs, False)  # a parent that does not listen holds nobody up
    rest = b""

    def read() -> None:
        nonlocal rest
        some = os.read(ours, 4_096)
        if not some:
            loop.remove_reader(ours)
        *lines, rest = (rest + some).split(b"\n")
        for line in lines:
            waits_for(line.decode())

    loop.add_reader(ours, read)
    try:
        yield theirs
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


def to_parent(what: str) -> None:
    """Say to the process that started this one, if it listens, what we wait for."""
    pipe = os.environ.get(PIPE)
    if pipe is not None:
        with suppress(OSError):  # nobody listens any more
            os.write(int(pipe), f"{' '.join(what.split())}\n".encode())
