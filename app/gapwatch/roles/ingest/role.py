"""Reads raw topics as a group member and sends sections and control records on (``outlet`` has the order of that).

A delivery error ends the role before its next control record. What is repeated after a crash lies below what the matcher
``reached``.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from gapwatch.errors import GapwatchError, HistoryLost
from gapwatch.kafka.clients import Partition
from gapwatch.roles.collecting import collect_seldom
from gapwatch.roles.ingest.beside import TOPICS_SECONDS, Beside
from gapwatch.roles.ingest.intake import Intake
from gapwatch.roles.ingest.outlet import Outlet
from gapwatch.roles.ingest.ownership import Ownership
from gapwatch.roles.ingest.parts import IngestDependencies as IngestDependencies
from gapwatch.roles.ingest.parts import Shared

log = structlog.get_logger(__name__)

RECORDS_PER_POLL: Final = 5_000  # some 15 ms of work for one turn of the event loop
COLLECT_SECONDS: Final = 0.25  # at most: nothing is judged before the next control record, and few large sections cost less
POLL_SECONDS: Final = 0.08  # while no topic is there yet


class IngestRole:
    def __init__(self, dependencies: IngestDependencies) -> None:
        self._on = dependencies
        self._shared = Shared(dependencies)
        self._outlet = Outlet(self._shared)
        self._intake = Intake(self._shared, self._outlet)
        self._ownership = Ownership(self._shared, self._outlet)
        self._beside = Beside(self._shared)
        self._idle = False

    async def run(self, stop: asyncio.Event) -> None:
        """Ingest until `stop` is set. Raises what makes going on unsafe."""
        collect_seldom()
        on = self._on
        await on.producer.start()
        try:
            await self._ownership.find_topics()
            async with asyncio.TaskGroup() as tasks:
                helpers = self._beside.start(tasks, stop)
                try:
                    await self._read(stop)
                finally:
                    for helper in helpers:
                        helper.cancel()
        finally:
            await on.consumer.close()
            await on.heartbeats.close()
            await on.offsets.close()
            await on.producer.close()

    async def _read(self, stop: asyncio.Event) -> None:
        clock = self._on.clock
        pulse = min((spec.pulse_seconds for spec in self._on.pipelines.values()), default=0.25)
        next_pulse, next_topics = clock.monotonic(), 0.0
        while not stop.is_set():
            if clock.monotonic() >= next_topics:
                await self._ownership.find_topics()
                next_topics = clock.monotonic() + self._shared.paced(TOPICS_SECONDS)
            if self._ownership.subscribed:
                await self._poll(max(min(next_pulse, next_topics) - clock.monotonic(), 0.0))
            else:
                await clock.sleep(POLL_SECONDS)
            next_pulse = min(next_pulse, clock.monotonic() + self._shared.paced(pulse))  # who stirs does not wait for a slow one
            if clock.monotonic() >= next_pulse:
                # Counted from when it was due: who works for longer than a pulse waits for nothing, and is not left behind.
                next_pulse = max(next_pulse + self._shared.paced(pulse), clock.monotonic())
                await self._outlet.pulse()
            await self._outlet.commit()
        await self._outlet.finish()

    async def _poll(self, idle_seconds: float) -> None:
        """Read and pass on what arrives; while nothing does, wait for the first message, at most so long."""
        limit, seconds = (1, idle_seconds) if self._idle else (RECORDS_PER_POLL, min(idle_seconds, COLLECT_SECONDS))
        polled = await self._on.consumer.consume(limit, seconds=seconds)
        self._idle = not polled.runs
        for where, fault in polled.faults:
            self._fault(where, fault)
        for at, messages in polled.runs.items():
            await self._intake.take(at, messages)
        for at, end in polled.ends.items():
            owned = self._shared.owned.get(at)
            if owned is not None:
                owned.progress.read_to(end)
        if polled.runs:
            await self._outlet.send_sections(self._shared.owned.values())

    def _fault(self, where: Partition | None, fault: GapwatchError) -> None:
        """What waiting heals is logged; a log that was truncated below us is read anew, everything else ends the role."""
        if fault.retriable:
            log.warning("raw_topic_unreadable", where=str(where), reason=str(fault))
            return
        if not isinstance(fault, HistoryLost) or where is None:
            raise fault
        raise GapwatchError(
            f"{where.topic}[{where.partition}] was truncated while it was read.", remedy="It is read anew."
        ) from fault
