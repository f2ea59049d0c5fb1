"""Role ``repair``, put together: confirm suspects, re-read open gaps, sweep, backfill, publish, watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gapwatch.check_ports import Preflight
from gapwatch.metrics import Metrics
from gapwatch.model.gap import RunKind
from gapwatch.model.pipeline import RepairMode, Settings
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board
from gapwatch.roles.collecting import collect_seldom
from gapwatch.roles.repair.autograce import AutoGrace
from gapwatch.roles.repair.autorepairer import AutoRepairDependencies, AutoRepairer
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.confirmer import Confirmer, ConfirmerDependencies, Inbox, VerdictSink
from gapwatch.roles.repair.counted import CountedStores
from gapwatch.roles.repair.incidents import IncidentWatch
from gapwatch.roles.repair.judging import KeyJudge
from gapwatch.roles.repair.mappings import MappingWatch
from gapwatch.roles.repair.outbox import OutboxPublisher, OutboxSink
from gapwatch.roles.repair.quiet import QuietTimes
from gapwatch.roles.repair.rechecker import Rechecker, RecheckerDependencies
from gapwatch.roles.repair.replayer import Answer, Replayer, ReplayerDependencies
from gapwatch.roles.repair.resending import Resender
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from gapwatch.roles.repair.snoozes import SnoozeWatch
from gapwatch.roles.repair.split import SplitDependencies, SplitSweep
from gapwatch.roles.repair.sweep_work import SweeperDependencies
from gapwatch.roles.repair.sweeper import Sweeper
from gapwatch.roles.repair.sweeps import LEASE_SECONDS, SchedulerDependencies, SweepScheduler
from gapwatch.roles.repair.trials import MappingTrials
from gapwatch.roles.repair.watcher import FindingBook, Watcher, WatcherDependencies
from gapwatch.roles.stores import PipelineStores, StoreProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairDependencies:
    settings: Settings
    ledger: Ledger
    board: Board
    stores: StoreProvider
    inbox: Inbox
    verdicts: VerdictSink
    gaps: OutboxSink
    checks: Callable[[str], Sequence[Preflight]]
    replay: Answer
    resender: Callable[[PipelineStores, RepairMode], Resender]
    metrics: Metrics
    clock: Clock
    host: str
    process: str  # a name that no other process has, and that stays when the role is started anew
    new_id: Callable[[], str]


class RepairRole:
    """Runs every task of the role until `stop` is set; one that fails ends the role, and the supervisor starts it anew."""

    def __init__(self, dependencies: RepairDependencies) -> None:
        self._on = dependencies
        on = dependencies
        self._holder = f"{on.host}/{on.new_id()}"
        self._book = Book(on.ledger, on.clock)
        self._quiet = QuietTimes(on.settings.pipelines, on.ledger, on.clock)
        partitions = on.settings.topics.partitions
        self._auto_grace = AutoGrace(on.settings.pipelines, partitions, on.ledger, on.board, on.clock, on.host)
        self._findings = FindingBook(on.ledger, on.clock, self._count_finding)
        self._trials = MappingTrials(on.ledger, on.board, self._findings, self._stores("trial"), on.clock)
        self._judges = {name: self._judge(name, "confirm") for name in on.settings.pipelines}

    async def run(self, stop: asyncio.Event) -> None:
        collect_seldom()
        async with asyncio.TaskGroup() as tasks:
            beginning = tasks.create_task(self._trials.begin(self._on.settings.pipelines))
            for part in self._parts():
                tasks.create_task(part(stop))
            await stop.wait()
            beginning.cancel()

    @property
    def judges(self) -> Mapping[str, KeyJudge]:
        return self._judges

    def _parts(self) -> Sequence[Callable[[asyncio.Event], Coroutine[None, None, None]]]:
        on, pipelines = self._on, self._on.settings.pipelines
        return (
            on.board.run,
            self._confirmer().run,
            Rechecker(
                RecheckerDependencies(
                    pipelines=pipelines,
                    ledger=on.ledger,
                    book=self._book,
                    stores=self._stores("recheck"),
                    judges={name: self._judge(name, "recheck") for name in pipelines},
                    clock=on.clock,
                    is_quiet=self._quiet.is_quiet,
                )
            ).run,
            OutboxPublisher(on.ledger, on.gaps, on.clock).run,
            MappingWatch(pipelines, on.ledger, on.stores, on.clock, self._findings).run,
            SweepScheduler(
                SchedulerDependencies(
                    pipelines=pipelines,
                    partitions=on.settings.topics.partitions,
                    ledger=on.ledger,
                    board=on.board,
                    clock=on.clock,
                    new_id=on.new_id,
                )
            ).run,
            AutoRepairer(
                AutoRepairDependencies(
                    pipelines=pipelines, ledger=on.ledger, stores=self._stores("backfill"), clock=on.clock, new_id=on.new_id
                )
            ).run,
            self._auto_grace.run,
            self._runner().run,
            self._watcher().run,
            IncidentWatch(pipelines, on.ledger, self._findings, on.clock).run,
            SnoozeWatch(pipelines, on.ledger, on.clock, self._quiet.is_quiet).run,
        )

    def _judge(self, pipeline: str, purpose: str) -> KeyJudge:
        on = self._on
        return KeyJudge(
            partial(self._stores(purpose).stores, pipeline),
            grace_ms=partial(self._grace_ms, pipeline),
            delivered=partial(on.board.delivered, pipeline),
            clock=on.clock,
        )

    def _stores(self, purpose: str) -> StoreProvider:
        """Return the stores, with every request counted under its purpose."""
        return CountedStores(self._on.stores, purpose, self._on.metrics.count_requests)

    def _grace_ms(self, pipeline: str) -> int:
        return self._auto_grace.grace_ms(self._on.settings.pipelines[pipeline])

    def _cleared(self, pipeline: str, reason: str) -> None:
        self._on.metrics.suspects_cleared.labels(pipeline=pipeline, reason=reason).inc()
        self._auto_grace.cleared(pipeline, reason)

    def _confirmer(self) -> Confirmer:
        on = self._on
        return Confirmer(
            ConfirmerDependencies(
                ledger=on.ledger,
                inbox=on.inbox,
                verdicts=on.verdicts,
                judges=self._judges,
                stores=on.stores.stores,
                book=self._book,
                clock=on.clock,
                trials=self._trials,
                on_hole=self._findings.hole,
                on_cleared=self._cleared,
                on_detected=lambda pipeline, seconds: on.metrics.detection_delay.labels(pipeline=pipeline).observe(seconds),
                is_quiet=self._quiet.is_quiet,
            )
        )

    def _runner(self) -> RunRunner:
        on = self._on
        sweeping = SweeperDependencies(
            ledger=on.ledger,
            book=self._book,
            trials=self._trials,
            clock=on.clock,
            holder=self._holder,
            grace_ms=self._grace_ms,
            delivered=on.board.delivered,
            on_compared=lambda pipeline, side, keys: on.metrics.sweep_keys.labels(pipeline=pipeline, side=side).inc(keys),
        )
        filling = BackfillDependencies(
            ledger=on.ledger,
            book=self._book,
            clock=on.clock,
            holder=self._holder,
            grace_ms=self._grace_ms,
            delivered=on.board.delivered,
            on_document=lambda pipeline, outcome: on.metrics.backfill_documents.labels(pipeline=pipeline, outcome=outcome).inc(),
            resender=on.resender,
            lease_seconds=LEASE_SECONDS[RunKind.BACKFILL],
        )

        def replayer(holder: str) -> Replayer:
            return Replayer(
                ReplayerDependencies(
                    ledger=on.ledger,
                    answer=on.replay,
                    sweeper=Sweeper(replace(sweeping, holder=holder)),
                    clock=on.clock,
                    holder=holder,
                    new_id=on.new_id,
                )
            )

        return RunRunner(
            RunnerDependencies(
                pipelines=on.settings.pipelines,
                ledger=on.ledger,
                board=on.board,
                stores={kind: self._stores(kind.value) for kind in LEASE_SECONDS},
                sweeper=lambda holder: Sweeper(replace(sweeping, holder=holder)),
                split=lambda holder: SplitSweep(
                    SplitDependencies(ledger=on.ledger, trials=self._trials, clock=on.clock, holder=holder)
                ),
                backfiller=lambda holder: Backfiller(replace(filling, holder=holder)),
                replayer=replayer,
                clock=on.clock,
                holder=self._holder,
            )
        )

    def _watcher(self) -> Watcher:
        on = self._on
        dependencies = WatcherDependencies(
            pipelines=on.settings.pipelines,
            ledger=on.ledger,
            board=on.board,
            stores=self._stores("watch"),
            checks=on.checks,
            undecided=lambda pipeline: self._judges[pipeline].undecided,
            clock=on.clock,
            process=on.process,
            on_finding=self._count_finding,
            on_measure=self._on.metrics.measured,
        )
        return Watcher(dependencies, self._findings)

    def _count_finding(self, pipeline: str, finding: str) -> None:
        self._on.metrics.stream_findings.labels(pipeline=pipeline, finding=finding).inc()
