"""Plans of backfills: lists of keys whose gaps are open, never of documents. Nothing here touches a store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from gapwatch.core.backfill import ItemOutcome, permitted, plan_counts
from gapwatch.errors import NotFoundError, UsageError
from gapwatch.model.gap import AuditRow, Gap, GapName, Kind, RepairRecord, Run, RunKind, RunState, State
from gapwatch.model.pipeline import PipelineSpec, RepairMode
from gapwatch.ports import Clock, GapFilter, Key, Ledger

PLAN_ACTION = "backfill_plan"
STATES = (State.OPEN.value, State.ACKNOWLEDGED.value, State.REPAIRING.value)
PAGE = 1_000
STORED_AT_ONCE = 5_000


def plan(
    ledger: Ledger,
    spec: PipelineSpec,
    kinds: frozenset[Kind],
    *,
    limit: int,
    run_id: str,
    clock: Clock,
    requested_by: str = "",
    keys: Collection[Key] | None = None,
    mode: RepairMode | None = None,
) -> Run:
    """Store a plan: which open gaps (of these keys, where they are given) an apply would write. Touches no store.

    Raises UsageError when a kind was asked for that a backfill never writes, or a mode (None: the usual one) that is not allowed.
    """
    pipeline, mode = spec.id, mode or spec.repair.modes[0]
    if mode not in spec.repair.modes:
        raise UsageError(
            f"A backfill of {pipeline} does not use mode {mode.value}.",
            remedy=f"Name it in the pipeline's repair.modes: [{', '.join([*spec.repair.modes, mode])}].",
        )
    refused = sorted(kind.value for kind in kinds - permitted(spec.repair))
    if refused:
        raise UsageError(
            f"A backfill of {pipeline} does not touch gaps of kind {', '.join(refused)}.",
            remedy="They are reported only; extra and undeleted documents are deleted where `repair` says `delete` or `auto`.",
        )
    found: dict[Kind, int] = {}
    chosen: list[GapName] = []
    cursor: str | None = None
    while True:
        page, cursor = ledger.gap_names(GapFilter(pipeline=pipeline, states=STATES), limit=PAGE, cursor=cursor)
        for gap in page:
            if keys is not None and gap.key not in keys:
                continue
            found[gap.kind] = found.get(gap.kind, 0) + 1
            if gap.kind in kinds and len(chosen) < limit:
                chosen.append(gap)
        if cursor is None:
            break
    asked = {kind: count for kind, count in found.items() if kind in kinds}
    counts = plan_counts(asked, limit=limit) | {"left_out": sum(found.values()) - sum(asked.values())}
    more = {"mode": mode.value}
    return _store(ledger, pipeline, chosen, kinds, counts, run_id=run_id, clock=clock, requested_by=requested_by, more=more)


def plan_of(
    ledger: Ledger,
    spec: PipelineSpec,
    gaps: Sequence[Gap],
    *,
    run_id: str,
    clock: Clock,
    requested_by: str,
    more: Mapping[str, Any] | None = None,
) -> Run:
    """Store a plan for just these gaps; ``more`` is what its request says besides. Kinds are not checked: the caller chose."""
    kinds = frozenset(gap.kind for gap in gaps)
    counts = plan_counts({kind: sum(gap.kind is kind for gap in gaps) for kind in kinds}, limit=len(gaps))
    asked = {"mode": spec.repair.modes[0].value, **(more or {})}
    chosen = [GapName(gap.id, gap.key, gap.key_fields, gap.kind) for gap in gaps]
    return _store(ledger, spec.id, chosen, kinds, counts, run_id=run_id, clock=clock, requested_by=requested_by, more=asked)


def _store(
    ledger: Ledger,
    pipeline: str,
    chosen: Sequence[GapName],
    kinds: Collection[Kind],
    counts: dict[str, int],
    *,
    run_id: str,
    clock: Clock,
    requested_by: str,
    more: Mapping[str, Any],
) -> Run:
    now = clock.now()
    run = ledger.create_run(
        Run(
            id=run_id,
            pipeline=pipeline,
            kind=RunKind.BACKFILL,
            state=RunState.SUCCEEDED,
            requested_at=now,
            started_at=now,
            ended_at=now,
            progress=1.0,
            counts=counts,
            request={"dry_run": True, "kinds": sorted(kind.value for kind in kinds), **more},
            requested_by=requested_by,
        )
    )
    for start in range(0, len(chosen), STORED_AT_ONCE):
        some = chosen[start : start + STORED_AT_ONCE]
        at = clock.now()
        ledger.audit([_planned(run, one, number, at) for number, one in enumerate(some, start)])
    return run


def request_apply(
    ledger: Ledger,
    plan_id: str,
    *,
    run_id: str,
    clock: Clock,
    requested_by: str = "",
) -> Run:
    """Queue the application of a plan. Raises NotFoundError for an unknown plan, ConflictError while another one runs."""
    planned = ledger.run(plan_id)
    if planned is None or planned.kind is not RunKind.BACKFILL or not planned.request.get("dry_run"):
        raise NotFoundError(f"There is no backfill plan {plan_id!r}.", remedy="Make one with `gapwatch backfill plan PIPELINE`.")
    return ledger.create_run(
        Run(
            id=run_id,
            pipeline=planned.pipeline,
            kind=RunKind.BACKFILL,
            state=RunState.QUEUED,
            requested_at=clock.now(),
            request={**planned.request, "dry_run": False, "plan": plan_id},
            requested_by=requested_by,
        )
    )


def requeue(
    ledger: Ledger,
    spec: PipelineSpec,
    records: Sequence[RepairRecord],
    *,
    new_id: Callable[[], str],
    clock: Clock,
    requested_by: str,
) -> Run:
    """Queue a backfill of just these gaps, whose repair did not come off; their attempts begin anew.

    Raises UsageError where there is none, or where one is of a kind that the pipeline does not repair; ConflictError while
    another backfill of the pipeline runs.
    """
    gaps = [record.gap for record in records if record.gap is not None]
    if not gaps:
        raise UsageError(f"There is nothing of {spec.id} to queue again.", remedy="See `gapwatch backfill failed`.")
    refused = sorted({gap.kind.value for gap in gaps if gap.kind not in permitted(spec.repair)})
    if refused:
        raise UsageError(
            f"A backfill of {spec.id} does not touch gaps of kind {', '.join(refused)}.",
            remedy="They are reported only; extra and undeleted documents are deleted where `repair` says `delete` or `auto`.",
        )
    planned = plan_of(ledger, spec, gaps, run_id=new_id(), clock=clock, requested_by=requested_by)
    run = request_apply(ledger, planned.id, run_id=new_id(), clock=clock, requested_by=requested_by)
    ledger.forget_repairs([gap.id for gap in gaps])
    return run


def _planned(run: Run, gap: GapName, number: int, at: datetime) -> AuditRow:
    return AuditRow(
        id=f"{run.id}/{number}",
        at=at,
        actor=run.requested_by or "gapwatch",
        action=PLAN_ACTION,
        pipeline=run.pipeline,
        key=gap.key,
        key_fields=gap.key_fields,
        run_id=run.id,
        gap_id=gap.id,
        outcome=ItemOutcome.PLANNED.value,
        reason=gap.kind.value,
    )
