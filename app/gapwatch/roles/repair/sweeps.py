"""Which sweeps are due, who carries them out, and what a succeeded one settles.

A sweep is asked for by a person, by the schedule, by the first start (baseline) and by every hole in the stream. One of a
pipeline runs at a time, on any number of workers: the ledger hands it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from gapwatch.core.cron import last_due
from gapwatch.core.gaps import rfc3339
from gapwatch.core.maintenance import quiet_at
from gapwatch.core.standing import uncovered_holes_within
from gapwatch.core.sweep import Scope
from gapwatch.errors import ConflictError, FeedError, NotFoundError, StoreError, UsageError
from gapwatch.model.gap import Finding, FindingRecord, Run, RunKind, RunState, SweepPart
from gapwatch.model.pipeline import FeedKind, Match, PipelineSpec
from gapwatch.model.suspect import PartitionStatus
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.replayer import Replayer
from gapwatch.roles.repair.split import SplitSweep, other_mapping
from gapwatch.roles.repair.sweeper import Sweeper
from gapwatch.roles.stores import StoreProvider

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
HOLE_SPACING_SECONDS = 15.0  # a feed that stays broken makes a new hole all the time
ONGOING_SPACING_SECONDS = 60.0  # between sweeps for a hole that still grows, or that prove nothing, at least …
ONGOING_SPACING_FACTOR = 10  # … and so many times as long as the last one took: a tenth of the time goes to them, no more
# A sweep and a replay renew their leases every second; a backfill between batches, each of which may wait for its stores.
LEASE_SECONDS = {RunKind.SWEEP: 20.0, RunKind.BACKFILL: 60.0, RunKind.REPLAY: 20.0}
RUNS_AT_ONCE = 4  # of a kind in one process
TAKE_SECONDS = 0.25
RETRY_SECONDS = 10.0  # after a sweep that was inconclusive
SUSPECT_RETRY_SECONDS = 600.0  # … because the mapping looks wrong: somebody has to correct it first
WIDE = ("full", "lookback")  # what a schedule asks for; sweeps of keys and ranges are asked for by somebody
AGAIN = "inconclusive"  # the last one: its pipeline is UNKNOWN until another one has looked at the same
RECENT = 100
ACTIVE = (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerDependencies:
    pipelines: Mapping[str, PipelineSpec]
    partitions: int
    ledger: Ledger
    board: Board
    clock: Clock
    new_id: Callable[[], str]


def request_sweep(
    ledger: Ledger, pipeline: PipelineSpec, clock: Clock, run_id: str, request: Mapping[str, Any], requested_by: str = ""
) -> Run:
    """Queue a sweep. Raises ConflictError, with the running id, when one of the pipeline is queued or running."""
    content = request.get("content", pipeline.match is not Match.PRESENCE)
    return ledger.create_run(
        Run(
            id=run_id,
            pipeline=pipeline.id,
            kind=RunKind.SWEEP,
            state=RunState.QUEUED,
            requested_at=clock.now(),
            request={"range": "full", **request, "content": content},
            requested_by=requested_by,
        )
    )


def remember_quiet(ledger: Ledger, pipeline: str, since: datetime) -> None:
    """Remember that a pipeline is left alone since a time, or earlier: a sweep has to follow, see :func:`sweep_after_quiet`."""
    known = ledger.fact(Facts.quiet(pipeline))
    earliest = min(since, datetime.fromisoformat(known["since"])) if known else since
    ledger.set_fact(Facts.quiet(pipeline), {"since": earliest.isoformat()})


def sweep_after_quiet(ledger: Ledger, pipeline: PipelineSpec, clock: Clock, run_id: str, requested_by: str = "gapwatch") -> bool:
    """Queue the sweep that is due after a quiet time: of what changed since its start; of everything where no column says so.

    Returns False while another one is under way: it stays due.
    """
    known = ledger.fact(Facts.quiet(pipeline.id))
    if known is None:
        return True
    asked: dict[str, Any] = {"reason": "resumed"}
    if pipeline.source.changed_at:
        since = datetime.fromisoformat(known["since"]) - timedelta(seconds=pipeline.grace_seconds)
        asked |= {"range": "lookback", "since": since.isoformat()}
    try:
        request_sweep(ledger, pipeline, clock, run_id, asked, requested_by)
    except ConflictError:
        return False
    ledger.set_fact(Facts.quiet(pipeline.id), None)
    log.info("pipeline_resumed", pipeline=pipeline.id)
    return True


def cancel_active(ledger: Ledger, pipeline: str) -> None:
    """End every sweep, backfill and replay of a pipeline that waits or runs."""
    for run in ledger.runs(pipeline=pipeline, states=ACTIVE):
        if not run.cancel_requested:
            ledger.cancel_run(run.id)


def refuse_quiet(ledger: Ledger, pipeline: PipelineSpec, now: datetime) -> None:
    """Raise UsageError while a pipeline is paused or in a maintenance window: nothing is opened or repaired then."""
    quiet = quiet_at(pipeline.maintenance, ledger.fact(Facts.paused(pipeline.id)), now)
    if quiet is not None:
        raise UsageError(
            f"Pipeline {pipeline.id} is left alone now: {quiet.reason}.",
            remedy=f"`gapwatch pipelines resume {pipeline.id}`, or wait for the window's end.",
        )


class SweepScheduler:
    """Asks for the sweeps that nobody has to ask for. Any number of processes may run one: the ledger admits one run."""

    def __init__(self, dependencies: SchedulerDependencies) -> None:
        self._on = dependencies
        self._started = dependencies.clock.now()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._on.board.read_through:
                for pipeline in self._on.pipelines.values():
                    await self._tick(pipeline)
            await self._on.clock.sleep(TICK_SECONDS)

    async def _tick(self, pipeline: PipelineSpec) -> None:
        records = self._on.board.records(pipeline.id)
        reason = await asyncio.to_thread(self._wanted, pipeline, records)
        if not reason:
            return
        request = {**await asyncio.to_thread(self._asked, pipeline, reason), "reason": reason}
        try:
            run = await asyncio.to_thread(
                request_sweep, self._on.ledger, pipeline, self._on.clock, self._on.new_id(), request, "gapwatch"
            )
        except ConflictError:
            return  # somebody asked at the same moment
        log.info("sweep_requested", pipeline=pipeline.id, run=run.id, reason=reason)

    def _last(self, pipeline: str) -> Run | None:
        return next(iter(self._on.ledger.runs(pipeline=pipeline, kind=RunKind.SWEEP, limit=1)), None)

    def _asked(self, pipeline: PipelineSpec, reason: str) -> dict[str, Any]:
        """Return how far a sweep for this reason looks."""
        if reason == "schedule":
            return self.extent(pipeline)
        last = self._last(pipeline.id) if reason == AGAIN else None
        return dict(last.request) if last is not None else {}

    def _wanted(self, pipeline: PipelineSpec, records: list[PartitionStatus]) -> str:
        """Return why a sweep is due now, or an empty string."""
        ledger, now = self._on.ledger, self._on.clock.now()
        if self._is_quiet(pipeline, now):
            return ""
        last = self._last(pipeline.id)
        if last is not None and (last.state in ACTIVE or self._is_being_settled(pipeline, last, now)):
            return ""
        if last is not None and last.state is not RunState.SUCCEEDED:
            ended = last.ended_at or last.requested_at
            pause = SUSPECT_RETRY_SECONDS if mapping_is_suspect(ledger, pipeline.id) else RETRY_SECONDS
            if now - ended < timedelta(seconds=pause):
                return ""
        if not _have_start_positions(pipeline, records, self._on.partitions):
            return ""
        if ledger.fact(Facts.baseline(pipeline.id)) is None:
            if pipeline.baseline == "assume":
                _set_baseline(ledger, pipeline.id, started=now, ended=now, run_id=None)
                return ""
            return "baseline"
        swept = ledger.fact(Facts.swept(pipeline.id))
        covered = datetime.fromisoformat(swept["started_at"]) if swept else None
        findings = self._uncovered(ledger.findings(pipeline.id), covered, swept["run"] if swept else "", now)
        over = [record for record in findings if not record.ongoing]
        waited = last is None or last.ended_at is None or now - last.ended_at >= timedelta(seconds=HOLE_SPACING_SECONDS)
        if uncovered_holes_within(records, over, covered, ended_before=now):
            return "hole" if waited else ""
        ongoing = [record for record in findings if record.ongoing]
        if waited and uncovered_holes_within((), ongoing, covered, ended_before=now) and self._looks_again(ongoing, now):
            return "hole"
        if any(record.finding is Finding.MAPPING_CHANGED for record in findings):
            return Finding.MAPPING_CHANGED.value
        if self._scheduled(pipeline, last, now):
            return "schedule"
        return AGAIN if last is not None and last.state is RunState.INCONCLUSIVE and _may_go_on(last, now) else ""

    def _is_being_settled(self, pipeline: PipelineSpec, last: Run, now: datetime) -> bool:
        """Whether what a sweep of everything has proved is only just being stored: the baseline among it."""
        if last.state is not RunState.SUCCEEDED or not _proves_all(pipeline, last):
            return False
        swept = self._on.ledger.fact(Facts.swept(last.pipeline))
        if swept and swept["run"] == last.id:
            return False
        return last.ended_at is not None and now - last.ended_at < timedelta(seconds=LEASE_SECONDS[RunKind.SWEEP])

    def _uncovered(
        self, findings: Sequence[FindingRecord], covered: datetime | None, run: str, now: datetime
    ) -> Sequence[FindingRecord]:
        """Return what is left once the holes are cleared that the last sweep covered, although they were stored after its end."""
        late = [one for one in findings if covered is not None and ended_before(one, covered)]
        for record in late:
            self._on.ledger.clear_finding(record.id, at=now, covered_by=run, through=covered)
        return [one for one in findings if one not in late]

    def _looks_again(self, ongoing: Sequence[FindingRecord], now: datetime) -> bool:
        """Whether to sweep while holes grow: at once for a new one, then now and then. Their end asks for one by itself."""
        recent = self._on.ledger.runs(pipeline=ongoing[0].pipeline, kind=RunKind.SWEEP, limit=RECENT)
        full = (run for run in recent if run.state is RunState.SUCCEEDED and run.request.get("range", "full") == "full")
        last = next(full, None)
        if last is None or last.started_at is None or last.ended_at is None:
            return True
        if any(record.first_seen >= last.started_at for record in ongoing):
            return True
        return _may_go_on(last, now)

    def _is_quiet(self, pipeline: PipelineSpec, now: datetime) -> bool:
        """Whether the pipeline is left alone now: what runs is ended, and once that is over, a sweep is asked for."""
        ledger = self._on.ledger
        quiet = quiet_at(pipeline.maintenance, ledger.fact(Facts.paused(pipeline.id)), now)
        if quiet is None:
            return not sweep_after_quiet(ledger, pipeline, self._on.clock, self._on.new_id())
        cancel_active(ledger, pipeline.id)
        if ledger.fact(Facts.quiet(pipeline.id)) is None:
            remember_quiet(ledger, pipeline.id, quiet.since)
            log.info("pipeline_quiet", pipeline=pipeline.id, reason=quiet.reason)
        return True

    def extent(self, pipeline: PipelineSpec) -> dict[str, Any]:
        """Return how far a scheduled sweep looks: back as far as is configured, at everything once in a while."""
        spec, now = pipeline.sweep, self._on.clock.now()
        if spec.lookback_seconds is None:
            return {}
        swept = self._on.ledger.fact(Facts.swept(pipeline.id))
        full_every = timedelta(seconds=spec.full_every_seconds) if spec.full_every_seconds else None
        if full_every is not None and (not swept or now - datetime.fromisoformat(swept["started_at"]) >= full_every):
            return {}
        since = now - timedelta(seconds=spec.lookback_seconds)
        return {"range": Scope.LOOKBACK.value, "since": since.isoformat()}

    def _scheduled(self, pipeline: PipelineSpec, last: Run | None, now: datetime) -> bool:
        spec = pipeline.sweep
        if (spec.every_seconds is None and not spec.cron) or now - self._started < timedelta(seconds=spec.start_delay_seconds):
            return False
        if last is not None and last.request.get("range", "full") not in WIDE:  # one that was asked for postpones none
            recent = self._on.ledger.runs(pipeline=pipeline.id, kind=RunKind.SWEEP, limit=RECENT)
            last = next((run for run in recent if run.request.get("range", "full") in WIDE), None)
        if last is None:
            return True
        if spec.cron:  # also where nobody ran at the time
            return last.requested_at < last_due(spec.cron, now)
        return now - last.requested_at >= timedelta(seconds=spec.every_seconds or 0)


def _proves_all(pipeline: PipelineSpec, run: Run) -> bool:
    """Whether a sweep, once it has succeeded, says that everything is as the gaps say."""
    compares = run.request.get("content") or pipeline.match is Match.PRESENCE
    return bool(compares) and run.request.get("range", "full") == "full"


def _may_go_on(last: Run, now: datetime) -> bool:
    """Whether one more sweep, after many of the same kind, would leave the stores alone for most of the time."""
    if last.ended_at is None:
        return False
    took = last.ended_at - (last.started_at or last.requested_at)
    return now - last.ended_at >= max(timedelta(seconds=ONGOING_SPACING_SECONDS), ONGOING_SPACING_FACTOR * took)


def ended_before(finding: FindingRecord, started: datetime) -> bool:
    """Whether a sweep of everything that started then covers the hole."""
    return finding.is_hole and not finding.ongoing and (finding.time_to or finding.last_seen) < started


def mapping_is_suspect(ledger: Ledger, pipeline: str) -> bool:
    return any(record.finding is Finding.MAPPING_SUSPECT for record in ledger.findings(pipeline))


def refuse_suspect_mapping(ledger: Ledger, pipeline: str) -> None:
    """Raise UsageError while the mapping looks wrong: what a repair wrote by it would be wrong as well."""
    for record in ledger.findings(pipeline):
        if record.finding is Finding.MAPPING_SUSPECT:
            raise UsageError(f"Pipeline {pipeline} is not repaired now. {record.message}", remedy=record.remedy)


def _have_start_positions(pipeline: PipelineSpec, records: list[PartitionStatus], partitions: int) -> bool:
    """Whether every partition of both sides' feeds has spoken in every partition of ``gapwatch.events``."""
    if len({record.partition for record in records}) < partitions:
        return False
    observed = pipeline.target.feed.kind is not FeedKind.NONE
    return all(record.source_watermark and (record.target_watermark or not observed) for record in records)


def _set_baseline(ledger: Ledger, pipeline: str, *, started: datetime, ended: datetime, run_id: str | None) -> None:
    fact = {"started_at": started.isoformat(), "ended_at": ended.isoformat(), "sweep_id": run_id}
    ledger.set_fact(Facts.baseline(pipeline), fact)
    log.info("baseline_set", pipeline=pipeline, started_at=rfc3339(started), sweep=run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerDependencies:
    """``stores`` by what they are asked for; ``sweeper`` and its like make one that holds its run under the given name."""

    pipelines: Mapping[str, PipelineSpec]
    ledger: Ledger
    board: Board
    stores: Mapping[RunKind, StoreProvider]
    sweeper: Callable[[str], Sweeper]
    split: Callable[[str], SplitSweep]
    backfiller: Callable[[str], Backfiller]
    replayer: Callable[[str], Replayer]
    clock: Clock
    holder: str


class RunRunner:
    """Takes queued sweeps, backfills and replays from the ledger and carries them out, a few of each kind at a time.

    A run may wait for hours for a sink that stands still; those of other pipelines must not wait behind it.
    """

    def __init__(self, dependencies: RunnerDependencies) -> None:
        self._on = dependencies

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            for kind in LEASE_SECONDS:
                tasks.create_task(self._take(kind, stop))
            tasks.create_task(self._share(stop))

    async def _take(self, kind: RunKind, stop: asyncio.Event) -> None:
        on = self._on
        free = [f"{on.holder}/{kind.value}{number}" for number in range(RUNS_AT_ONCE)]
        running: dict[asyncio.Task[None], str] = {}
        try:
            while not stop.is_set():
                for task in [task for task in running if task.done()]:
                    free.append(running.pop(task))
                    task.result()
                run = await asyncio.to_thread(on.ledger.take_run, kind, free[-1], seconds=LEASE_SECONDS[kind]) if free else None
                if run is None:
                    await on.clock.sleep(TAKE_SECONDS)
                    continue
                holder = free.pop()
                running[asyncio.create_task(self._carry_out(run, holder))] = holder
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _share(self, stop: asyncio.Event) -> None:
        """Take parts of sweeps that workers share, one at a time: more would only take turns on one core."""
        on, holder = self._on, f"{self._on.holder}/part"
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                taken = await asyncio.to_thread(
                    on.ledger.take_part, holder, list(on.pipelines), seconds=LEASE_SECONDS[RunKind.SWEEP]
                )
                if taken is None:
                    await on.clock.sleep(TAKE_SECONDS)
                    continue
                part = asyncio.create_task(self._part(*taken, holder))
                try:
                    await asyncio.wait({part, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    part.cancel()
                    await asyncio.gather(part, return_exceptions=True)
                if not part.cancelled():
                    part.result()
        finally:
            stopping.cancel()

    async def _part(self, run: Run, part: SweepPart, holder: str) -> None:
        on = self._on
        try:
            try:
                stores = await on.stores[RunKind.SWEEP].stores(run.pipeline)
                if reason := other_mapping(run, stores):
                    raise UsageError(reason)
                await on.sweeper(holder).part(run, part, stores, last_full_started=await self._covered(run.pipeline))
            except (StoreError, FeedError, UsageError) as error:
                failed = replace(part, state=RunState.INCONCLUSIVE, error=error.message)
                await asyncio.to_thread(on.ledger.update_part, failed, holder=holder)
        except ConflictError as error:
            log.warning("sweep_part_given_up", run=run.id, part=part.number, pipeline=run.pipeline, reason=error.message)

    async def _covered(self, pipeline: str) -> datetime | None:
        """Return when the last completed sweep of everything began."""
        swept = await asyncio.to_thread(self._on.ledger.fact, Facts.swept(pipeline))
        return datetime.fromisoformat(swept["started_at"]) if swept else None

    async def _carry_out(self, run: Run, holder: str) -> None:
        try:
            await self._run(run, holder)
        except ConflictError as error:
            log.warning("run_given_up", run=run.id, kind=run.kind.value, pipeline=run.pipeline, reason=error.message)
            await self._end(run, holder, RunState.CANCELLED, error.message)
        except (UsageError, NotFoundError) as error:
            await self._end(run, holder, RunState.FAILED, str(error))
        except (StoreError, FeedError) as error:
            await self._end(run, holder, RunState.INCONCLUSIVE, error.message)

    async def _run(self, run: Run, holder: str) -> None:
        on = self._on
        if run.pipeline not in on.pipelines:
            await self._end(run, holder, RunState.FAILED, f"There is no pipeline {run.pipeline!r} in this configuration.")
            return
        await asyncio.to_thread(refuse_quiet, on.ledger, on.pipelines[run.pipeline], on.clock.now())
        stores = await on.stores[run.kind].stores(run.pipeline)
        if run.kind is RunKind.BACKFILL:
            await asyncio.to_thread(refuse_suspect_mapping, on.ledger, run.pipeline)
            await on.backfiller(holder).run(run, stores)
            return
        covered = await self._covered(run.pipeline)
        if run.kind is RunKind.REPLAY:
            await asyncio.to_thread(refuse_suspect_mapping, on.ledger, run.pipeline)
            await on.replayer(holder).run(run, stores, last_full_started=covered)
            return
        masked = sum(record.counters.masked for record in on.board.records(run.pipeline))  # before anything is read
        if not run.cursor:
            run = replace(run, cursor={"masked": masked})
        split = on.split(holder)
        if await split.takes(run, stores):
            ended = await split.carry_out(run, stores)
        else:
            ended = await on.sweeper(holder).run(run, stores, last_full_started=covered)
        if ended.state is RunState.SUCCEEDED and ended.request.get("range") == "full":
            await asyncio.to_thread(self._settle, ended, int(ended.cursor.get("masked", 0)))

    async def _end(self, run: Run, holder: str, state: RunState, error: str) -> None:
        ended = replace(run, state=state, error=error, ended_at=self._on.clock.now())
        try:
            await asyncio.to_thread(self._on.ledger.update_run, ended, holder=holder)
        except ConflictError:
            return  # somebody else holds it by now: it is theirs to end

    def _settle(self, run: Run, masked: int) -> None:
        """Store what a succeeded sweep of the whole range proves.

        Holes that ended before it, unverifiable keys, the baseline, and the first `masked` writes that events showed in part.
        """
        on, started, ended = self._on, run.started_at, run.ended_at
        assert started is not None
        assert ended is not None
        pipeline = on.pipelines[run.pipeline]
        if not _proves_all(pipeline, run):
            return
        records = on.board.records(run.pipeline)
        findings = on.ledger.findings(run.pipeline)
        hole_since = uncovered_holes_within(records, findings, started, ended_before=ended)
        on.ledger.clear_unverifiable(run.pipeline, before=started)
        for finding in findings:
            if ended_before(finding, started) or (finding.finding is Finding.MAPPING_CHANGED and finding.last_seen < started):
                on.ledger.clear_finding(finding.id, at=ended, covered_by=run.id, through=started)
        on.ledger.set_fact(Facts.swept(run.pipeline), {"started_at": started.isoformat(), "run": run.id, "masked": masked})
        if on.ledger.fact(Facts.baseline(run.pipeline)) is None and not hole_since:  # last: what it covers is covered by then
            _set_baseline(on.ledger, run.pipeline, started=started, ended=ended, run_id=run.id)
