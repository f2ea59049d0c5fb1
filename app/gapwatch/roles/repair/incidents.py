"""Looks for mass failures, and keeps one finding of each up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from gapwatch.core.incidents import SAMPLES, incident_of, known_incident, since_of
from gapwatch.model.gap import FindingRecord
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, GapFilter, Ledger
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.book import UNRESOLVED
from gapwatch.roles.repair.watcher import FindingBook

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 2.0
OTHERS_SECONDS: Final = 10.0  # before gaps are seen that another process has stored; it looks at them itself


class IncidentWatch:
    """Any number of processes may run one: they find the same."""

    def __init__(self, pipelines: Mapping[str, PipelineSpec], ledger: Ledger, book: FindingBook, clock: Clock) -> None:
        self._pipelines = pipelines
        self._ledger = ledger
        self._book = book
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        asking = Asking(self._ledger, self._clock, seconds=OTHERS_SECONDS)
        while not stop.is_set():
            if not asking.due():
                await asking.rest(LOOK_SECONDS, stop)
                continue
            findings = await asyncio.to_thread(self._ledger.findings)
            some = (await asyncio.to_thread(self._ledger.gaps, GapFilter(states=UNRESOLVED), limit=1)).gaps
            for pipeline in self._pipelines.values():
                of_it = [record for record in findings if record.pipeline == pipeline.id]
                if some or known_incident(of_it) is not None:  # else nothing has begun, and nothing can end
                    await self.look(pipeline, of_it)
            await asking.rest(LOOK_SECONDS, stop)

    async def look(self, pipeline: PipelineSpec, findings: Sequence[FindingRecord]) -> None:
        """Raise, renew or clear the incident of one pipeline, whose open findings are given."""
        now = self._clock.now()
        known = known_incident(findings)
        since = since_of(known, now)
        burst = await asyncio.to_thread(lambda: self._ledger.gap_burst(pipeline.id, since, samples=SAMPLES))
        incident = incident_of(pipeline.id, burst, known, threshold=pipeline.incident_threshold, now=now)
        if incident is not None:
            await self._book.raise_(incident)
        elif known is not None:
            await self._book.clear(known)
