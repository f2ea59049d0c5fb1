"""Which sweep of a pipeline left something unread, looked up anew only when there is another last one, or it has ended."""

from __future__ import annotations

from typing import Final

from gapwatch.core.unproven import unproven
from gapwatch.model.gap import Run, RunKind, RunState
from gapwatch.ports import Ledger

LOOKED_AT: Final = 200  # the newest sweeps of a pipeline: what none of so many has made good is forgotten


class SweepsLeft:
    """One ledger's, for whoever asks again and again."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[str, tuple[str, RunState, Run | None]] = {}

    def of(self, pipeline: str, last: Run | None) -> Run | None:
        """Return the sweep that leaves the pipeline UNKNOWN, if there is one. ``last``: the newest, just read from the ledger."""
        if last is None:
            return None
        known = self._known.get(pipeline)
        if known is None or known[:2] != (last.id, last.state):
            recent = self._ledger.runs(pipeline=pipeline, kind=RunKind.SWEEP, limit=LOOKED_AT)
            known = self._known[pipeline] = (last.id, last.state, unproven(recent))
        return known[2]
