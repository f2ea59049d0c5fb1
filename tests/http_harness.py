"""A real API server over a real ledger, with operations that the test sets: for the tests of the API and of the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gapwatch.clock import SystemClock
from gapwatch.core import gaps
from gapwatch.errors import GapwatchError, NotFoundError
from gapwatch.http.app import ApiDeps, ApiServer, ProbeDeps
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Gap, Resolution, Run, RunKind, RunState
from gapwatch.model.view import FeedView, PipelineView, Totals
from gapwatch.ports import GapChange


def now() -> datetime:
    return datetime.now(UTC)


def view(name: str = "orders", **changes: Any) -> PipelineView:
    moment = now()
    feed = FeedView(
        side="expected", topic="shop.public.orders", watermark=moment - timedelta(seconds=1), caught_up=True, lag=0, finding=None
    )
    made = PipelineView(
        id=name,
        status="HEALTHY",
        reasons=(),
        consistent_through=moment - timedelta(seconds=1),
        source_watermark=moment - timedelta(seconds=1),
        target_watermark=moment - timedelta(seconds=1),
        delivered_through=moment - timedelta(seconds=1),
        pending_keys=3,
        in_transit_keys=0,
        oldest_in_transit=None,
        oldest_unsettled=None,
        gaps_open={},
        coverage=1.0,
        feeds=(feed, replace(feed, side="observed", topic="gapwatch.feed.orders.observed")),
        findings=(),
        last_sweep=None,
        baseline=moment - timedelta(hours=1),
        totals=Totals(expected=10, settled=10),
        read_at=moment,
    )
    return replace(made, **changes)


@dataclass
class Desk:
    """Operations over the ledger. ``fails`` is raised by whatever is asked next; ``calls`` says what was asked."""

    ledger: SqlLedger
    shown: list[PipelineView] = field(default_factory=lambda: [view()])
    fails: Exception | None = None
    fresh: bool = True
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def pipeline(self, name: str) -> str:
        if name not in {shown.id for shown in self.shown}:
            raise NotFoundError(f"There is no pipeline {name!r}.", remedy="Configured: orders.")
        return name

    def _note(self, *call: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.calls.append(call)

    async def views(self) -> Sequence[PipelineView]:
        self._note("views")
        return [replace(shown, read_at=now()) if self.fresh else shown for shown in self.shown]

    async def view(self, pipeline: str) -> PipelineView:
        self.pipeline(pipeline)
        return next(shown for shown in await self.views() if shown.id == pipeline)

    async def pause(self, pipeline: str, *, actor: str, reason: str = "") -> None:
        self.pipeline(pipeline)
        self._note("pause", pipeline, actor, reason)

    async def resume(self, pipeline: str, *, actor: str) -> None:
        self.pipeline(pipeline)
        self._note("resume", pipeline, actor)

    async def key_story(self, pipeline: str, text: str) -> dict[str, Any]:
        self.pipeline(pipeline)
        self._note("key", pipeline, text)
        return {
            "schema_version": 1,
            "pipeline": pipeline,
            "key": {"id": text},
            "stores": {},
            "stream": {},
            "gaps": [],
            "audit": [],
            "verdict": "No gap.",
        }

    async def start_sweep(self, pipeline: str, request: Mapping[str, Any], *, actor: str) -> Run:
        self.pipeline(pipeline)
        self._note("sweep", pipeline, dict(request), actor)
        return self._run(RunKind.SWEEP, pipeline, dict(request), actor)

    async def start_replay(self, pipeline: str, time_from: str, time_to: str, of: str, *, actor: str) -> Run:
        self.pipeline(pipeline)
        self._note("replay", pipeline, time_from, time_to, of, actor)
        return self._run(RunKind.REPLAY, pipeline, {"from": time_from, "to": time_to, "of": of}, actor)

    async def plan_backfill(self, pipeline: str, kinds: Sequence[str], *, actor: str, mode: str = "") -> Run:
        self.pipeline(pipeline)
        self._note("plan", pipeline, list(kinds), actor, *([mode] if mode else []))
        return self._run(RunKind.BACKFILL, pipeline, {"dry_run": True}, actor, RunState.SUCCEEDED)

    async def apply_backfill(self, plan_id: str, *, actor: str) -> Run:
        self._note("apply", plan_id, actor)
        planned = self.ledger.run(plan_id)
        if planned is None:
            raise NotFoundError(f"There is no backfill plan {plan_id!r}.")
        return self._run(RunKind.BACKFILL, planned.pipeline, {"dry_run": False, "plan": plan_id}, actor)

    async def requeue_repairs(self, pipeline: str, keys: Sequence[str], *, actor: str) -> Run:
        self.pipeline(pipeline)
        self._note("requeue", pipeline, list(keys), actor)
        return self._run(RunKind.BACKFILL, pipeline, {"dry_run": False, "plan": "p"}, actor)

    async def resume_repair(self, pipeline: str, *, actor: str) -> None:
        self.pipeline(pipeline)
        self._note("resume_repair", pipeline, actor)

    async def cancel(self, run_id: str, *, actor: str) -> Run:
        self._note("cancel", run_id, actor)
        return self.ledger.cancel_run(run_id)

    async def change_gap(
        self, gap_id: str, action: str, *, actor: str, note: str = "", resolution: str = "manual", seconds: float = 3600.0
    ) -> Gap:
        self._note("gap", gap_id, action, actor, note, resolution, seconds)
        gap = self.ledger.gap(gap_id)
        if gap is None:
            raise NotFoundError(f"There is no gap {gap_id!r}.")
        changed = gaps.resolved(gap, Resolution(resolution), now(), note=note)
        self.ledger.store_gaps([GapChange(gap=changed, against=gap.revision, event="resolved", actor=actor)])
        return changed

    def _run(self, kind: RunKind, pipeline: str, request: dict[str, Any], actor: str, state: RunState = RunState.QUEUED) -> Run:
        number = len(self.ledger.runs(limit=1000)) + 1
        return self.ledger.create_run(
            Run(
                id=f"run_{number}",
                pipeline=pipeline,
                kind=kind,
                state=state,
                requested_at=now(),
                request=request,
                requested_by=actor,
            )
        )


@dataclass
class Service:
    url: str
    port: int
    ledger: SqlLedger
    desk: Desk
    parts: dict[str, str]
    server: ApiServer


@asynccontextmanager
async def service(folder: Path, *, port: int = 0) -> AsyncIterator[Service]:
    """Serve on a loopback port until the block ends."""
    ledger = open_ledger(f"sqlite:///{folder}/ledger.db")
    desk = Desk(ledger)
    parts = {"ledger": "ok", "kafka": "ok"}
    server = ApiServer(
        ApiDeps(
            operations=desk,
            ledger=ledger,
            tokens=ledger,
            probes=ProbeDeps(readiness=lambda: parts, metrics=lambda: b"gapwatch_up 1\n"),
            clock=SystemClock(),
            version="1.2.3<test>",
        )
    )
    try:
        host, bound = await server.start("127.0.0.1", port)
        yield Service(url=f"http://{host}:{bound}", port=bound, ledger=ledger, desk=desk, parts=parts, server=server)
    finally:
        await server.stop()
        ledger.close()


class BrokenError(GapwatchError):
    """An error that the API has no status of its own for."""
