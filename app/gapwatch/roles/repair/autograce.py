"""Follows the delay that the status records measure and stores the grace for pipelines with ``grace: auto``.

The ledger keeps it; ingest sends it on in its control records, so that every matcher and every replay uses the one in force then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from gapwatch.core.autograce import DelayReading, DelayWindow, GraceBounds, settled
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board, Facts, grace_ms

log = structlog.get_logger(__name__)

TICK_SECONDS = 5.0
FALL_SECONDS = 60.0  # it falls once a minute at most: a quiet minute is no reason to trust the next
LATE = "late_arrival"


class AutoGrace:
    def __init__(
        self, pipelines: Mapping[str, PipelineSpec], partitions: int, ledger: Ledger, board: Board, clock: Clock, host: str
    ) -> None:
        self._pipelines = {name: spec for name, spec in pipelines.items() if spec.grace_least_seconds is not None}
        self._partitions = partitions
        self._ledger = ledger
        self._board = board
        self._clock = clock
        self._host = host
        self._windows = {name: DelayWindow() for name in self._pipelines}
        self._late = dict.fromkeys(self._pipelines, 0)
        self._fell: dict[str, float] = {}
        self._grace: dict[str, int] = {}

    def cleared(self, pipeline: str, reason: str) -> None:
        """Note that a suspect was cleared; one that had merely arrived late says that the grace is short."""
        if reason == LATE and pipeline in self._late:
            self._late[pipeline] += 1

    def grace_ms(self, spec: PipelineSpec) -> int:
        """Return the grace in force; the largest one until it is known."""
        return self._grace.get(spec.id, int(spec.grace_seconds * 1000))

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._board.read_through:
                for spec in self._pipelines.values():
                    await asyncio.to_thread(self.step, spec)
            await self._clock.sleep(TICK_SECONDS)

    def step(self, spec: PipelineSpec) -> int:
        """Look at what was measured; store and return the grace from now on, in milliseconds."""
        before = grace_ms(self._ledger, spec)
        self._grace[spec.id] = before
        records = self._board.records(spec.id)
        if len(records) < self._partitions:
            return before
        delays: dict[int, int] = {}
        for record in records:
            for bound, count in record.delays_ms:
                delays[bound] = delays.get(bound, 0) + count
        reading = DelayReading(at_ms=self._clock.now_ms(), delays=delays, late=self._all_late(spec.id))
        assert spec.grace_least_seconds is not None
        bounds = GraceBounds(least=int(spec.grace_least_seconds * 1000), most=int(spec.grace_seconds * 1000))
        grace = settled(before, self._windows[spec.id].add(reading), bounds)
        if grace < before and self._clock.monotonic() - self._fell.get(spec.id, float("-inf")) < FALL_SECONDS:
            return before
        if grace != before:
            self._store(spec.id, before, grace)
        return grace

    def _store(self, pipeline: str, before: int, grace: int) -> None:
        if grace < before:
            self._fell[pipeline] = self._clock.monotonic()
        self._ledger.set_fact(Facts.grace(pipeline), {"ms": grace, "at": self._clock.now().isoformat()})
        self._grace[pipeline] = grace
        log.info("grace_changed", pipeline=pipeline, before_ms=before, grace_ms=grace)

    def _all_late(self, pipeline: str) -> int:
        """Add what was cleared here since the last look to the ledger's count; return that of all hosts."""
        name = Facts.late(pipeline, self._host)
        new, self._late[pipeline] = self._late[pipeline], 0
        if new:
            self._ledger.set_fact(name, int(self._ledger.fact(name) or 0) + new)
        return sum(int(count) for count in self._ledger.facts(Facts.late(pipeline)).values())
