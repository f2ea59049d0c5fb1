"""Role ``match``: keeps a worker running; one that failed is followed by a new one, with nothing of the old."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

import structlog

from gapwatch.arenas import return_large_blocks
from gapwatch.core.compiledrows import RowsModule
from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.kafka.faust_safety import assert_faust_version
from gapwatch.kafka.topics import ensure_topics
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Clock
from gapwatch.roles.collecting import collect_seldom
from gapwatch.roles.match.settings import MatchTuning
from gapwatch.roles.match.worker import MatchWorker

log = structlog.get_logger(__name__)

HUNG_EXIT_CODE = 70


def worker_name() -> str:
    """Return a name for this process in status records and logs."""
    return f"match-{socket.gethostname()}-{os.getpid()}"


class MatchRole:
    """Runs in a process of its own: Faust shares its event loop with nobody.

    Args:
        fingerprints: pipeline id → fingerprint of its mapping now (``core/mapping``); older ones in the state are not comparable.
        waits_for: Is called with what it has to have before it can match, and does not have; with "" while it has.
        exit_hung: Ends the process at once; called when Faust does not stop, since its threads could otherwise still write.
        native: The compiled hot path, where there is one.
    """

    def __init__(
        self,
        settings: Settings,
        fingerprints: Mapping[str, int],
        clock: Clock,
        *,
        stop: asyncio.Event,
        tuning: MatchTuning | None = None,
        name: str | None = None,
        waits_for: Callable[[str], None] = lambda what: None,
        exit_hung: Callable[[int], None] = os._exit,
        native: RowsModule | None = None,
    ) -> None:
        self._native = native
        self._waits_for = waits_for
        self._settings = settings
        self._fingerprints = fingerprints
        self._clock = clock
        self._stop = stop
        self._tuning = tuning or MatchTuning()
        self._name = name or worker_name()
        self._exit_hung = exit_hung
        self._worker: MatchWorker | None = None

    @property
    def partitions(self) -> tuple[int, ...]:
        """The partitions that this process matches now."""
        return self._worker.partitions if self._worker is not None else ()

    async def run(self) -> None:
        """Match until the stop event is set. Raises StoreRefused and ConfigError; everything else is tried again."""
        assert_faust_version()
        collect_seldom()
        return_large_blocks()
        tuning, torn = self._tuning, set[int]()
        pause = tuning.restart_seconds
        while not self._stop.is_set():
            began = self._clock.monotonic()
            try:
                await ensure_topics(self._settings)
                self._waits_for("")
                await self._one_life(torn)
            except StoreRefused:
                raise
            except Exception as error:
                known = isinstance(error, GapwatchError)
                reason = str(error) if known else repr(error)
                log.error("match_worker_failed", worker=self._name, reason=reason, exc_info=not known)
                self._waits_for(f"a worker that runs: {reason}")
            if self._stop.is_set():
                return
            if self._clock.monotonic() - began > tuning.healthy_seconds:
                pause = tuning.restart_seconds
                torn.clear()
            await self._pause(pause)
            pause = min(2 * pause, tuning.restart_seconds_max)

    async def _one_life(self, torn: set[int]) -> None:
        worker = MatchWorker(
            self._settings,
            self._fingerprints,
            self._clock,
            tuning=self._tuning,
            name=self._name,
            torn=torn,
            give_up=self._give_up,
            native=self._native,
        )
        self._worker = worker
        try:
            await worker.run(self._stop)
        finally:
            self._worker = None
            if worker.hung:
                self._give_up()

    def _give_up(self) -> None:
        """End the process; from whichever thread."""
        log.critical("match_worker_hung", worker=self._name)
        self._exit_hung(HUNG_EXIT_CODE)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
