"""Polls what no event tells: do the stores answer, does the connector run, is its slot alive, was a table replaced.

The stores are asked several times in ``stall_after``, the rest every five seconds. What a check finds becomes a stream
finding; what it no longer finds is cleared. A check that could not be made clears nothing. Findings that can mean loss are
holes: they keep a time range and only a sweep covers them. One that lasts (a slot that is still gone) is one finding whose
hole grows with every check; it can be covered once it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from gapwatch.core.gaps import gap_id, time_of
from gapwatch.core.standing import BEGINNING
from gapwatch.errors import GapwatchError
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Hole
from gapwatch.ports import Advice, Clock, Ledger, Measure, Preflight
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.stores import StoreAnswers, StoreProvider
from gapwatch.roles.together import facts_together

log = structlog.get_logger(__name__)

POLL_SECONDS = 5.0
FINDINGS_SECONDS = 2.0  # how long what another process has raised or cleared may be overlooked
PING_SECONDS = 1.0  # how long a store's answer to one pipeline is one to all
PREFIX = "watch_"  # of the ids of findings that the watcher raised, and may clear
CHECK_SECONDS_MAX = 10.0
REPORTS_PER_STALL = 4  # reports within ``stall_after``: a slow one must not look like silence
LOSS = frozenset({Finding.SLOT_LOST, Finding.SLOT_JUMPED, Finding.HISTORY_LOST, Finding.LOG_TRUNCATED, Finding.TOPIC_RECREATED})
ENDED = frozenset({Finding.SLOT_LOST, Finding.HISTORY_LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherDependencies:
    pipelines: Mapping[str, PipelineSpec]
    ledger: Ledger
    board: Board
    stores: StoreProvider
    checks: Callable[[str], Sequence[Preflight]]
    undecided: Callable[[str], int]
    clock: Clock
    host: str
    on_finding: Callable[[str, str], None]  # pipeline, finding
    on_measure: Callable[[str, str, float | None], None] = lambda metric, of, value: None  # None: it is not known any more


class FindingBook:
    """Raises and clears stream findings in the ledger."""

    def __init__(self, ledger: Ledger, clock: Clock, on_finding: Callable[[str, str], None]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._on_finding = on_finding

    async def hole(self, hole: Hole) -> None:
        """Store a stretch of the stream that nobody can judge; returns once it is durable."""
        known = {finding.value for finding in Finding}
        now = self._clock.now()
        record = FindingRecord(
            id=hole.id,
            pipeline=hole.pipeline,
            finding=Finding(hole.reason) if hole.reason in known else Finding.INGEST_HOLE,
            side=Side(hole.side).name.lower(),
            feed=hole.feed,
            first_seen=now,
            last_seen=now,
            message=_of_hole(hole),
            remedy="A sweep covers them; it starts by itself.",
            time_from=time_of(hole.time_from),
            time_to=time_of(hole.time_to),
            is_hole=True,
        )
        await self.raise_(record)

    async def raise_(self, record: FindingRecord) -> None:
        if await asyncio.to_thread(self._ledger.raise_finding, record):
            say = log.info if record.time_from == BEGINNING else log.warning  # what the baseline covers at every first start
            say("finding_raised", pipeline=record.pipeline, finding=record.finding.value, message=record.message)
            self._on_finding(record.pipeline, record.finding.value)

    async def clear(self, record: FindingRecord) -> None:
        await asyncio.to_thread(self._ledger.clear_finding, record.id, at=self._clock.now())
        log.info("finding_cleared", pipeline=record.pipeline, finding=record.finding.value)


def _of_hole(hole: Hole) -> str:
    partition = f" partition {hole.feed_partition}" if hole.feed_partition >= 0 else ""
    if hole.time_from == 0:
        return f"writes of {hole.feed}{partition} from before it was watched cannot be judged one by one"
    return f"writes of {hole.feed}{partition} cannot be judged one by one ({hole.reason})"


class Watcher:
    def __init__(self, dependencies: WatcherDependencies, book: FindingBook) -> None:
        self._on = dependencies
        self._book = book
        self._measured: dict[str, set[tuple[str, str]]] = {}  # by pipeline: metrics, and of what
        self._facts = facts_together(dependencies.ledger, dependencies.clock)
        self._known = StoreAnswers[Sequence[FindingRecord]](dependencies.clock)
        self._pings = StoreAnswers[None](dependencies.clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Report and check every pipeline on its own: a store that hangs delays nothing of the others."""
        async with asyncio.TaskGroup() as tasks:
            for pipeline in self._on.pipelines.values():
                report_seconds = min(POLL_SECONDS, pipeline.stall_after_seconds / REPORTS_PER_STALL)
                tasks.create_task(self._report_on(stop, pipeline, report_seconds))
                tasks.create_task(self._check_on(stop, pipeline))

    async def _report_on(self, stop: asyncio.Event, pipeline: PipelineSpec, seconds: float) -> None:
        while not stop.is_set():
            await self.report(pipeline)
            await self._on.clock.sleep(seconds - self._on.clock.monotonic() % seconds)  # all at once: they ask the same stores

    async def _check_on(self, stop: asyncio.Event, pipeline: PipelineSpec) -> None:
        while not stop.is_set():
            await self.check(pipeline)
            await self._on.clock.sleep(POLL_SECONDS)

    async def report(self, pipeline: PipelineSpec) -> None:
        """Say what of one pipeline's stores could not be read; that somebody said so expires after ``stall_after``."""
        unreadable = await self._unreadable(pipeline)
        fact = {
            "at": self._on.clock.now().isoformat(),
            "undecided": self._on.undecided(pipeline.id),
            "unreadable": unreadable,
        }
        await self._facts.ask((Facts.repair(pipeline.id, self._on.host), fact))

    async def check(self, pipeline: PipelineSpec) -> None:
        """Make every check of one pipeline and store what was found."""
        found: list[FindingRecord] = []
        measures: list[Measure] = []
        checked_all = True
        for check in self._on.checks(pipeline.id):
            try:
                async with asyncio.timeout(CHECK_SECONDS_MAX):
                    said = await check.watch()
                found += [record for advice in said if (record := self._finding(pipeline, advice))]
                measures += [advice.measure for advice in said if advice.measure is not None]
            except (GapwatchError, TimeoutError) as error:
                checked_all = False
                log.warning(
                    "check_failed", pipeline=pipeline.id, check=type(check).__name__, error=str(error) or "no answer in time"
                )
        self._show(pipeline, measures, all_known=checked_all)
        await self._store(pipeline, found, clear=checked_all)

    def _show(self, pipeline: PipelineSpec, measures: Sequence[Measure], *, all_known: bool) -> None:
        """Show what was measured, of several the largest; what is measured no more is shown no more."""
        values: dict[tuple[str, str], float] = {}
        for one in measures:
            values[one.metric, one.of] = max(one.value, values.get((one.metric, one.of), 0))
        shown = self._measured.get(pipeline.id, set())
        for metric, of in shown - values.keys() if all_known else ():
            self._on.on_measure(metric, of, None)
        for (metric, of), value in values.items():
            self._on.on_measure(metric, of, value)
        self._measured[pipeline.id] = set(values) if all_known else shown | values.keys()

    async def _unreadable(self, pipeline: PipelineSpec) -> list[str]:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                stores = await self._on.stores.stores(pipeline.id)
        except (GapwatchError, TimeoutError) as error:
            log.warning("stores_unavailable", pipeline=pipeline.id, purpose="watch", error=str(error))
            return [getattr(error, "store", "") or f"of pipeline {pipeline.id}"]
        unreadable = []
        for name, reader in ((pipeline.source.store, stores.source), (pipeline.target.store, stores.target)):
            try:
                async with asyncio.timeout(CHECK_SECONDS_MAX):
                    await self._pings.ask(name, reader.ping, seconds=PING_SECONDS)
            except (GapwatchError, TimeoutError) as error:
                unreadable.append(name)
                log.warning("store_unreachable", pipeline=pipeline.id, store=name, error=str(error))
        return unreadable

    async def _findings(self, pipeline: str, *, fresh: bool) -> Sequence[FindingRecord]:
        """Return a pipeline's open findings; read for all of them together, unless one is to be written anew by what it says."""
        if fresh:
            return await asyncio.to_thread(self._on.ledger.findings, pipeline)

        async def read() -> Sequence[FindingRecord]:
            return await asyncio.to_thread(self._on.ledger.findings)

        name = str(self._on.ledger.writes())  # what was written here since is read again
        found = await self._known.ask(name, read, seconds=FINDINGS_SECONDS)
        self._known.forget_but(name)
        return [record for record in found if record.pipeline == pipeline]

    def _finding(self, pipeline: PipelineSpec, advice: Advice) -> FindingRecord | None:
        """Turn a piece of advice that names a finding into one; advice on style is for ``doctor`` only."""
        if not advice.finding or advice.level == "ok":
            return None
        finding = Finding(advice.finding)
        now = self._on.clock.now()
        side = "expected" if advice.subject.endswith("source") else "observed"
        feeds = pipeline.source.feeds if side == "expected" else (pipeline.target.feed,)
        topics = {table: topic for topic, table in pipeline.source.table_of.items()}
        feed = topics.get(advice.table, feeds[0].topic)
        identity = f"{side}/{advice.subject}" + (f"/{advice.table}" if len(feeds) > 1 else "")
        is_hole = finding in LOSS or advice.hole_to_ms > 0
        return FindingRecord(
            id=PREFIX + gap_id(pipeline.id, finding.value.encode(), identity).removeprefix("gap_"),
            pipeline=pipeline.id,
            finding=finding,
            side=side,
            feed=feed,
            first_seen=now,
            last_seen=now,
            message=advice.message,
            remedy=advice.remedy,
            time_from=self._read_through(pipeline, side) if is_hole else None,
            time_to=None if not is_hole else time_of(advice.hole_to_ms) if advice.hole_to_ms else now,
            is_hole=is_hole,
            details={"ongoing": True} if is_hole and not advice.hole_to_ms else {},
        )

    def _read_through(self, pipeline: PipelineSpec, side: str) -> datetime | None:
        """Return the side's watermark: where a loss that is noticed now can have begun at the earliest."""
        records = self._on.board.records(pipeline.id)
        marks: list[int] = [record.source_watermark if side == "expected" else record.target_watermark for record in records]
        earliest = min(marks, default=0)
        return time_of(earliest) if earliest else None

    async def _store(self, pipeline: PipelineSpec, found: Sequence[FindingRecord], *, clear: bool) -> None:
        known = {record.id: record for record in await self._findings(pipeline.id, fresh=bool(found))}
        for record in found:
            before = known.get(record.id)
            await self._book.raise_(replace(record, time_from=before.time_from) if before and before.time_from else record)
        if clear:
            current = {record.id for record in found}
            for record in known.values():
                if not record.id.startswith(PREFIX) or record.id in current:
                    continue
                if not record.is_hole:
                    await self._book.clear(record)
                elif record.ongoing:  # it is over: what was written until now may be lost, and a sweep can cover it
                    now = self._on.clock.now()
                    await self._book.raise_(replace(record, last_seen=now, time_to=now, details={"ongoing": False}))
        ended = any(record.finding in ENDED and record.side == "expected" for record in found)  # of the target, sweeps read on
        self._on.board.feed_ended(pipeline.id, ended=ended)
