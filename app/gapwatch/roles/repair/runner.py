"""Who carries out sweeps, backfills and replays, and what a sweep that succeeded settles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import structlog

from gapwatch.core.standing import begun, uncovered_holes_within
from gapwatch.errors import ConflictError, FeedError, NotFoundError, StoreError, UsageError
from gapwatch.jointly import Jointly
from gapwatch.model.gap import Finding, Run, RunKind, RunState, SweepPart
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import held_since, hold_from
from gapwatch.roles.repair.mappings import is_in_force
from gapwatch.roles.repair.replayer import Replayer
from gapwatch.roles.repair.scanning import refuse_keyless
from gapwatch.roles.repair.split import SplitSweep, other_mapping
from gapwatch.roles.repair.sweeper import Sweeper
from gapwatch.roles.repair.sweeps import (
    ACTIVE,
    LEASE_SECONDS,
    ended_before,
    proves_all,
    refuse_quiet,
    refuse_suspect_mapping,
    set_baseline,
    skew_of,
)
from gapwatch.roles.stores import StoreProvider

log = structlog.get_logger(__name__)

RUNS_AT_ONCE = 4  # of a kind in one process
TAKE_SECONDS = 0.25
FAILED = "It failed ({}); the log says where."
OTHERS_SECONDS = 2.0  # before a run is seen that another process has queued, or whose holder is gone


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
        active = Jointly[None, bool](self._any_active, self._on.clock)
        async with asyncio.TaskGroup() as tasks:
            for kind in LEASE_SECONDS:
                tasks.create_task(self._take(kind, stop, active))
            tasks.create_task(self._share(stop, active))

    async def _any_active(self, _: Sequence[None] = ()) -> bool:
        """Whether any run is queued or under way: where none is, there is nothing to take, and a read says it for all kinds."""
        return bool(await asyncio.to_thread(partial(self._on.ledger.runs, states=ACTIVE, limit=1)))

    async def _take(self, kind: RunKind, stop: asyncio.Event, active: Jointly[None, bool]) -> None:
        on = self._on
        free = [f"{on.holder}/{kind.value}{number}" for number in range(RUNS_AT_ONCE)]
        running: dict[asyncio.Task[None], str] = {}
        asking = Asking(on.ledger, on.clock, seconds=OTHERS_SECONDS)
        try:
            while not stop.is_set():
                for task in [task for task in running if task.done()]:
                    free.append(running.pop(task))
                    task.result()
                run = None
                if free and asking.due() and await active.ask(None, self._any_active):
                    run = await asyncio.to_thread(on.ledger.take_run, kind, free[-1], seconds=LEASE_SECONDS[kind])
                if run is None:
                    await (on.clock.sleep(TAKE_SECONDS) if running else asking.rest(TAKE_SECONDS, stop))  # its end is looked for
                    continue
                asking.again()
                holder = free.pop()
                running[asyncio.create_task(self._carry_out(run, holder))] = holder
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _share(self, stop: asyncio.Event, active: Jointly[None, bool]) -> None:
        """Take parts of sweeps that workers share, one at a time: more would only take turns on one core."""
        on, holder = self._on, f"{self._on.holder}/part"
        stopping = asyncio.create_task(stop.wait())
        asking = Asking(on.ledger, on.clock, seconds=OTHERS_SECONDS)
        try:
            while not stop.is_set():
                taken = None
                if asking.due() and await active.ask(None, self._any_active):
                    taken = await asyncio.to_thread(
                        on.ledger.take_part, holder, list(on.pipelines), seconds=LEASE_SECONDS[RunKind.SWEEP]
                    )
                if taken is None:
                    await asking.rest(TAKE_SECONDS, stop)
                    continue
                asking.again()
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
            except ConflictError:
                raise
            except Exception as error:
                log.error("sweep_part_failed", run=run.id, part=part.number, pipeline=run.pipeline, exc_info=error)
                failed = replace(part, state=RunState.INCONCLUSIVE, error=FAILED.format(type(error).__name__))
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
        except Exception as error:  # a bug: it ends this run, and not the role, which would take it again and again
            log.error("run_failed", run=run.id, kind=run.kind.value, pipeline=run.pipeline, exc_info=error)
            await self._end(run, holder, RunState.INCONCLUSIVE, FAILED.format(type(error).__name__))

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
        await refuse_keyless(stores)
        masked = sum(record.counters.masked for record in on.board.records(run.pipeline))  # before anything is read
        if not run.cursor:
            run = replace(run, cursor={"masked": masked})
        split = on.split(holder)
        if await split.takes(run, stores):
            ended = await split.carry_out(run, stores)
        else:
            ended = await on.sweeper(holder).run(run, stores, last_full_started=covered)
        if ended.state is not RunState.SUCCEEDED or ended.request.get("range") != "full":
            return
        if not await asyncio.to_thread(is_in_force, on.ledger, stores.mapping):
            log.warning("sweep_proves_nothing", pipeline=run.pipeline, run=run.id, reason="another mapping is in force by now")
        else:
            await asyncio.to_thread(self._settle, ended, int(ended.cursor.get("masked", 0)))

    async def _end(self, run: Run, holder: str, state: RunState, error: str) -> None:
        ended = replace(run, state=state, error=error, ended_at=self._on.clock.now())
        try:
            await asyncio.to_thread(self._on.ledger.update_run, ended, holder=holder)
        except ConflictError:
            return  # somebody else holds it by now: it is theirs to end

    def _settle(self, run: Run, masked: int) -> None:
        """Store what a succeeded sweep of the whole range proves.

        Holes that ended before it, unverifiable keys, the baseline, and the first `masked` writes that events showed in part. It
        counts from as much before its start as clocks may differ: a hole's end is on the clock of whoever read the stream.
        """
        on, ended = self._on, run.ended_at
        assert run.started_at is not None
        assert ended is not None
        pipeline = on.pipelines[run.pipeline]
        started = run.started_at - skew_of(pipeline)
        if not proves_all(pipeline, run):
            return
        records = on.board.records(run.pipeline)
        findings = on.ledger.findings(run.pipeline)
        hole_since = uncovered_holes_within(records, findings, started, ended_before=ended)
        swept = on.ledger.fact(Facts.swept(run.pipeline))
        before = datetime.fromisoformat(swept["started_at"]) if swept else None
        proved = before or self._assumed(run.pipeline)
        covered = [finding for finding in findings if ended_before(finding, started)]
        lost = [*map(begun, covered), *uncovered_holes_within(records, (), before, ended_before=started)]
        left = bool(run.counts.get("in_hand"))  # to a backfill: one of them may be unverifiable, and nobody has read it yet
        unverifiable = None if left else on.ledger.unverifiable_oldest(run.pipeline)
        lost += [unverifiable] if unverifiable is not None else []
        since = held_since(lost, proved)
        if since is not None and not hold_from(on.ledger, run.pipeline, since):
            log.warning("holes_not_covered", pipeline=run.pipeline, run=run.id, reason="gaps change all the time")
            return
        if not left:
            on.ledger.clear_unverifiable(run.pipeline, before=started)
        for finding in findings:
            if finding in covered or (finding.finding is Finding.MAPPING_CHANGED and finding.last_seen < run.started_at):
                on.ledger.clear_finding(finding.id, at=ended, covered_by=run.id, through=started)
        earlier = {"before": proved.isoformat()} if proved is not None else {}
        now = {"started_at": started.isoformat(), "run": run.id, "masked": masked, **earlier}
        on.ledger.set_fact(Facts.swept(run.pipeline), now)
        if on.ledger.fact(Facts.baseline(run.pipeline)) is None and not hole_since:  # last: what it covers is covered by then
            set_baseline(on.ledger, run.pipeline, started=started, ended=ended, run_id=run.id)

    def _assumed(self, pipeline: str) -> datetime | None:
        """Return up to when somebody said that all is well, where nobody has swept yet."""
        baseline = self._on.ledger.fact(Facts.baseline(pipeline))
        return datetime.fromisoformat(baseline["started_at"]) if baseline else None
