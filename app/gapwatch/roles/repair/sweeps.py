"""Which sweeps are due.

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
import xxhash

from gapwatch.core.cron import last_due, longest_pause_seconds
from gapwatch.core.gaps import rfc3339
from gapwatch.core.maintenance import quiet_at
from gapwatch.core.standing import begun, uncovered_holes_within
from gapwatch.core.sweep import Scope
from gapwatch.core.unproven import WIDE
from gapwatch.errors import ConflictError, UsageError
from gapwatch.model.gap import Finding, FindingRecord, Run, RunKind, RunState
from gapwatch.model.pipeline import FeedKind, Match, PipelineSpec
from gapwatch.model.suspect import PartitionStatus
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.book import held_since, hold_from
from gapwatch.roles.repair.leisure import WITHIN, within_seconds
from gapwatch.roles.sweeps_left import SweepsLeft

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
OTHERS_SECONDS = 2.0  # before it is seen what another process has stored, or what time makes due
HOLE_SPACING_SECONDS = 15.0  # a feed that stays broken makes a new hole all the time
ONGOING_SPACING_SECONDS = 60.0  # between sweeps for a hole that still grows, or that prove nothing, at least …
ONGOING_SPACING_FACTOR = 10  # … and so many times as long as the last one took: a tenth of the time goes to them, no more
# A sweep and a replay renew their leases every second; a backfill between batches, each of which may wait for its stores.
LEASE_SECONDS = {RunKind.SWEEP: 20.0, RunKind.BACKFILL: 60.0, RunKind.REPLAY: 20.0}
RETRY_SECONDS = 10.0  # after a sweep that was inconclusive
SUSPECT_RETRY_SECONDS = 600.0  # … because the mapping looks wrong: somebody has to correct it first
AGAIN = "inconclusive"  # an earlier one: its pipeline is UNKNOWN until another one has looked at the same
RECENT = 100
JITTER_SECONDS_MAX = 60.0
JITTER_SHARE = 0.1  # of the interval
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
    """Queue a sweep. Raises ConflictError, with its id, when one of the pipeline is queued or running: that one hurries then."""
    content = request.get("content", pipeline.match is not Match.PRESENCE)
    run = Run(
        id=run_id,
        pipeline=pipeline.id,
        kind=RunKind.SWEEP,
        state=RunState.QUEUED,
        requested_at=clock.now(),
        request={"range": "full", **request, "content": content},
        requested_by=requested_by,
    )
    try:
        return ledger.create_run(run)
    except ConflictError as error:
        if WITHIN not in run.request:
            hurry(ledger, pipeline.id, error.running_id)
        raise


def hurry(ledger: Ledger, pipeline: str, run_id: str | None) -> None:
    """Have a sweep that takes its time end as soon as its load allows; one that does not is left alone."""
    run = ledger.run(run_id) if run_id else None
    if run is not None and run.state in ACTIVE and WITHIN in run.request and ledger.fact(Facts.hurry(pipeline)) != run.id:
        ledger.set_fact(Facts.hurry(pipeline), run.id)
        log.info("sweep_hurries", pipeline=pipeline, run=run.id)


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


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of all pipelines, read at once; the facts first: a baseline is stored after the holes it covers."""

    facts: Mapping[str, Any]
    findings: Sequence[FindingRecord]
    last: Mapping[str, Run] | None = None  # the last sweep of each pipeline, read after both; None: to be asked for

    @classmethod
    def of(cls, ledger: Ledger) -> Known:
        named = (Facts.swept, Facts.baseline, Facts.quiet, Facts.paused)
        return cls(ledger.facts(*(name("") for name in named)), ledger.findings())

    def of_pipeline(self, pipeline: str) -> Sequence[FindingRecord]:
        return [record for record in self.findings if record.pipeline == pipeline]


class SweepScheduler:
    """Asks for the sweeps that nobody has to ask for. Any number of processes may run one: the ledger admits one run."""

    def __init__(self, dependencies: SchedulerDependencies) -> None:
        self._on = dependencies
        self._started = dependencies.clock.now()
        self._left = SweepsLeft(dependencies.ledger)

    async def run(self, stop: asyncio.Event) -> None:
        asking = Asking(self._on.ledger, self._on.clock, seconds=OTHERS_SECONDS)
        while not stop.is_set():
            if not self._on.board.read_through:
                await self._on.clock.sleep(TICK_SECONDS)
                continue
            if asking.due():
                await self.tick()
            await asking.rest(TICK_SECONDS, stop)

    async def tick(self) -> None:
        """Ask for the sweeps that are due now."""
        for pipeline, reason in (await asyncio.to_thread(self._look)).items():
            await self._ask(self._on.pipelines[pipeline], reason)

    def _look(self) -> Mapping[str, str]:
        """Return the pipelines that want a sweep now, and why."""
        known = Known.of(self._on.ledger)
        last = self._on.ledger.last_runs(RunKind.SWEEP, list(self._on.pipelines))
        known = replace(known, last=last)
        wanted = {name: self._wanted(spec, self._on.board.records(name), known) for name, spec in self._on.pipelines.items()}
        return {name: reason for name, reason in wanted.items() if reason}

    async def _ask(self, pipeline: PipelineSpec, reason: str) -> None:
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
            within = within_seconds(pipeline.sweep, self._on.clock)
            return self.extent(pipeline) | ({WITHIN: within} if within else {})
        left = self._left.of(pipeline.id, self._last(pipeline.id)) if reason == AGAIN else None
        return {name: value for name, value in left.request.items() if name != WITHIN} if left is not None else {}

    def _wanted(self, pipeline: PipelineSpec, records: list[PartitionStatus], known: Known | None = None) -> str:
        """Return why a sweep is due now, or an empty string. What is known is read before the last run: never newer than it."""
        ledger, now = self._on.ledger, self._on.clock.now()
        known = known or Known.of(ledger)
        if self._is_quiet(pipeline, known, now):
            return ""
        last = self._last(pipeline.id) if known.last is None else known.last.get(pipeline.id)
        swept = known.facts.get(Facts.swept(pipeline.id))
        if last is not None and last.state in ACTIVE:
            if WITHIN in last.request and self._is_waited_for(records, known.of_pipeline(pipeline.id), swept, now):
                hurry(ledger, pipeline.id, last.id)
            return ""
        if last is not None and _is_being_settled(pipeline, last, swept, now):
            return ""
        if last is not None and last.state is not RunState.SUCCEEDED:
            ended = last.ended_at or last.requested_at
            suspect = any(record.finding is Finding.MAPPING_SUSPECT for record in known.of_pipeline(pipeline.id))
            pause = SUSPECT_RETRY_SECONDS if suspect else RETRY_SECONDS
            if now - ended < timedelta(seconds=pause):
                return ""
        if not _have_start_positions(pipeline, records, self._on.partitions):
            return ""
        over_by = now - skew_of(pipeline)
        findings = self._uncovered(known.of_pipeline(pipeline.id), swept, now)
        over = [record for record in findings if not record.ongoing]
        if known.facts.get(Facts.baseline(pipeline.id)) is None:
            if pipeline.baseline == "assume":
                set_baseline(ledger, pipeline.id, started=now, ended=now, run_id=None)
                return ""
            return "baseline" if not uncovered_holes_within(records, over, over_by) else ""  # which it would not cover
        covered = datetime.fromisoformat(swept["started_at"]) if swept else None
        waited = last is None or last.ended_at is None or now - last.ended_at >= timedelta(seconds=HOLE_SPACING_SECONDS)
        if uncovered_holes_within(records, over, covered, ended_before=over_by):
            return "hole" if waited else ""
        ongoing = [record for record in findings if record.ongoing]
        if waited and uncovered_holes_within((), ongoing, covered, ended_before=over_by) and self._looks_again(ongoing, now):
            return "hole"
        if any(record.finding is Finding.MAPPING_CHANGED for record in findings):
            return Finding.MAPPING_CHANGED.value
        if self._scheduled(pipeline, last, now):
            return "schedule"
        left = self._left.of(pipeline.id, last)
        unwanted = last is not None and last.state is RunState.CANCELLED
        return AGAIN if left is not None and not unwanted and _may_go_on(left, now) else ""

    def _is_waited_for(
        self,
        records: Sequence[PartitionStatus],
        findings: Sequence[FindingRecord],
        swept: Mapping[str, Any] | None,
        now: datetime,
    ) -> bool:
        """Whether something that a sweep ends has come up: a hole that is over, or another mapping."""
        covered = datetime.fromisoformat(swept["started_at"]) if swept else None
        over = [record for record in findings if not record.ongoing]
        if uncovered_holes_within(records, over, covered, ended_before=now):
            return True
        return any(record.finding is Finding.MAPPING_CHANGED for record in findings)

    def _uncovered(
        self, findings: Sequence[FindingRecord], swept: Mapping[str, Any] | None, now: datetime
    ) -> Sequence[FindingRecord]:
        """Return what is left once the holes are cleared that the last sweep covered, although they were stored after its end."""
        if not swept:
            return findings
        ledger, covered = self._on.ledger, datetime.fromisoformat(swept["started_at"])
        before = datetime.fromisoformat(swept["before"]) if "before" in swept else None
        late = [one for one in findings if ended_before(one, covered)]
        since = held_since(map(begun, late), before)
        if since is not None and not hold_from(ledger, late[0].pipeline, since):
            return findings  # gaps change all the time: later
        for record in late:
            ledger.clear_finding(record.id, at=now, covered_by=swept["run"], through=covered)
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

    def _is_quiet(self, pipeline: PipelineSpec, known: Known, now: datetime) -> bool:
        """Whether the pipeline is left alone now: what runs is ended, and once that is over, a sweep is asked for."""
        ledger, was_quiet = self._on.ledger, known.facts.get(Facts.quiet(pipeline.id)) is not None
        quiet = quiet_at(pipeline.maintenance, known.facts.get(Facts.paused(pipeline.id)), now)
        if quiet is None:
            return was_quiet and not sweep_after_quiet(ledger, pipeline, self._on.clock, self._on.new_id())
        cancel_active(ledger, pipeline.id)
        if not was_quiet:
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
        late = jitter(pipeline, last.id)
        if spec.cron:  # also where nobody ran at the time
            return last.requested_at < last_due(spec.cron, now - late)
        return now - last.requested_at >= timedelta(seconds=spec.every_seconds or 0) + late


def jitter(pipeline: PipelineSpec, last: str) -> timedelta:
    """Return how much later than is due a sweep begins, so that those of many pipelines do not all begin at once.

    Another part of a tenth of the interval, and of a minute, after each `last` one: the same in every process.
    """
    spec = pipeline.sweep
    most = min(JITTER_SECONDS_MAX, JITTER_SHARE * (spec.every_seconds or longest_pause_seconds(spec.cron)))
    return timedelta(seconds=most * (xxhash.xxh3_64_intdigest(f"{pipeline.id}/{last}".encode()) % 1_000) / 1_000)


def _is_being_settled(pipeline: PipelineSpec, last: Run, swept: Mapping[str, Any] | None, now: datetime) -> bool:
    """Whether what a sweep of everything has proved is only just being stored: the baseline among it."""
    if last.state is not RunState.SUCCEEDED or not proves_all(pipeline, last):
        return False
    if swept and swept["run"] == last.id:
        return False
    return last.ended_at is not None and now - last.ended_at < timedelta(seconds=LEASE_SECONDS[RunKind.SWEEP])


def proves_all(pipeline: PipelineSpec, run: Run) -> bool:
    """Whether a sweep, once it has succeeded, says that everything is as the gaps say."""
    compares = run.request.get("content") or pipeline.match is Match.PRESENCE
    return bool(compares) and run.request.get("range", "full") == "full"


def _may_go_on(last: Run, now: datetime) -> bool:
    """Whether one more sweep, after many of the same kind, would leave the stores alone for most of the time."""
    if last.ended_at is None:
        return False
    took = last.ended_at - (last.started_at or last.requested_at)
    factor = 1 if WITHIN in last.request else ONGOING_SPACING_FACTOR  # it left them alone for most of the time itself
    return now - last.ended_at >= max(timedelta(seconds=ONGOING_SPACING_SECONDS), factor * took)


def skew_of(pipeline: PipelineSpec) -> timedelta:
    """Return by how much clocks may differ: what ended less long ago, on another one, may not have ended yet."""
    return timedelta(seconds=pipeline.clock_skew_max_seconds)


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


def set_baseline(ledger: Ledger, pipeline: str, *, started: datetime, ended: datetime, run_id: str | None) -> None:
    fact = {"started_at": started.isoformat(), "ended_at": ended.isoformat(), "sweep_id": run_id}
    ledger.set_fact(Facts.baseline(pipeline), fact)
    log.info("baseline_set", pipeline=pipeline, started_at=rfc3339(started), sweep=run_id)


async def refuse_cancelled(ledger: Ledger, run_id: str) -> None:
    """Raise ConflictError where somebody asked for the run's end."""
    current = await asyncio.to_thread(ledger.run, run_id)
    if current is None or current.cancel_requested:
        raise ConflictError("The sweep was cancelled.", running_id=run_id)
