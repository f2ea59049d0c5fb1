"""A process that takes a planned backfill and stops itself (SIGSTOP) right after its row "about to write" was stored.

Run as ``python -m tests.contract.frozen_holder URL SECONDS``; prints, as JSON, what it wrote to its target and how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from gapwatch.clock import SystemClock
from gapwatch.errors import ConflictError
from gapwatch.ledger import open_ledger
from gapwatch.model.gap import AuditRow, Run, RunKind
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from tests.ledger_samples import audit_row
from tests.unit.roles.test_backfill_turns import missing


class Freezing:
    """A ledger that freezes this process once, between the check and the write."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self._frozen = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def audit(self, rows: Sequence[AuditRow], *, by: Run | None = None) -> None:
        self._ledger.audit(rows, by=by)
        if by is not None and any(row.reason == "about to write" for row in rows) and not self._frozen:
            self._frozen = True
            os.kill(os.getpid(), signal.SIGSTOP)


def main(url: str, seconds: float) -> None:
    ledger = open_ledger(url)
    story = missing(ledger, 7)
    run = ledger.take_run(RunKind.BACKFILL, "frozen", seconds=seconds)
    assert run is not None
    freezing: Any = Freezing(ledger)
    backfiller = Backfiller(
        BackfillDependencies(
            ledger=freezing,
            book=story.book,
            clock=SystemClock(),
            holder="frozen",
            grace_ms=lambda _: 1,
            delivered=lambda _: story.delivered,
            on_document=lambda *_: None,
            lease_seconds=seconds,
        )
    )
    try:
        ended = asyncio.run(backfiller.run(run, story.rig.stores)).state.value
    except ConflictError as error:
        ended = error.message
    try:
        ledger.audit([audit_row(1, run_id=None)], by=run)
        late = "stored"
    except ConflictError:
        late = "refused"
    print(json.dumps({"writes": len(story.rig.writes), "ended": ended, "late": late, "run": run.id}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
