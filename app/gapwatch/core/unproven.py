"""Which sweep left something unread that no later one has looked at: its pipeline is UNKNOWN until one has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from gapwatch.model.gap import Run, RunState

FULL: Final = "full"
WIDE: Final = (FULL, "lookback")  # what a schedule asks for; sweeps of keys and ranges are asked for by somebody
EXTENT: Final = ("from", "to", "keys")  # of a request, what says how far a sweep of keys or of a range looks


def unproven(sweeps: Sequence[Run]) -> Run | None:
    """Return the newest sweep that did not read all that it was asked for, and that none after it has made good.

    One that was cancelled proves nothing either way. One of keys or of a range that failed was wrongly asked for, and said so;
    one of everything that failed has looked at nothing.

    Args:
        sweeps: One pipeline's, the newest first.
    """
    proved: list[Mapping[str, Any]] = []
    for run in sweeps:
        if run.state is RunState.SUCCEEDED:
            proved.append(run.request)
        elif _is_short(run) and not any(_looks_as_far(one, run.request) for one in proved):
            return run
    return None


def _is_short(run: Run) -> bool:
    return run.state is RunState.INCONCLUSIVE or (run.state is RunState.FAILED and _range(run.request) in WIDE)


def _looks_as_far(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether a sweep looks at everything, and in as much detail, that another one was asked for."""
    if earlier.get("content") and not later.get("content"):
        return False
    if _range(later) == FULL:
        return True
    if _range(later) != _range(earlier):
        return False
    if "since" in earlier:
        return datetime.fromisoformat(later["since"]) <= datetime.fromisoformat(earlier["since"])
    return all(later.get(name) == earlier.get(name) for name in EXTENT)


def _range(request: Mapping[str, Any]) -> str:
    return str(request.get("range", FULL))
