"""What the metrics show of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from gapwatch.metrics import Snapshot
from gapwatch.model.gap import Run, RunKind, RunState
from gapwatch.ports import Ledger
from gapwatch.roles.board import Facts

SCHEDULED: Final = ("full", "lookback")  # ranges of sweeps that a schedule asks for
ENDED: Final = (RunState.SUCCEEDED, RunState.INCONCLUSIVE, RunState.FAILED, RunState.CANCELLED, RunState.ABORTED)
FIRST_LOOK: Final = 20
ALL_RUNS: Final = 10_000  # more than are kept


def snapshot(ledger: Ledger, views: Sequence[Any]) -> Snapshot:
    """Return what is counted and known of these pipelines. Raises StoreError."""
    sweeps, before = list[Run](), list[Run]()
    stopped = ledger.facts(Facts.repair_stopped(""))
    succeeded: dict[str, datetime] = {}
    oldest: dict[str, datetime] = {}
    for view in views:
        newest: Run | None = view.last_sweep
        if newest is not None:
            sweeps.append(newest)
            if newest.ended_at is None:
                before += ledger.runs(pipeline=view.id, kind=RunKind.SWEEP, states=ENDED, limit=1)
            good = _success(newest) or last_success(ledger, view.id)
            if good is not None:
                succeeded[view.id] = good
        alerting = ledger.gap_summary(view.id).oldest_alerting if any(view.gaps_open.values()) else None
        if alerting is not None:
            oldest[view.id] = alerting
    return Snapshot(
        views=views,
        detected=ledger.gap_counts(),
        resolved=ledger.resolution_counts(),
        sweeps=sweeps,
        sweeps_before=before,
        last_success=succeeded,
        oldest_open=oldest,
        repairs=ledger.repair_counts(),
        stopped={view.id for view in views if stopped.get(Facts.repair_stopped(view.id))},
    )


def last_success(ledger: Ledger, pipeline: str) -> datetime | None:
    """Return when the last sweep ended that read all it had to, of everything or of what changed; not one of some keys.

    However many have failed since, or looked at some keys only: then the ledger is asked for all that it keeps.
    """
    for limit in (FIRST_LOOK, ALL_RUNS):
        runs = ledger.runs(pipeline=pipeline, kind=RunKind.SWEEP, states=[RunState.SUCCEEDED], limit=limit)
        ended = next((at for run in runs if (at := _success(run)) is not None), None)
        if ended is not None or len(runs) < limit:
            return ended
    return None


def _success(run: Run) -> datetime | None:
    """Return when a sweep ended, where it read all it had to, of everything or of what changed."""
    wide = run.state is RunState.SUCCEEDED and run.request.get("range", "full") in SCHEDULED
    return run.ended_at if wide else None
