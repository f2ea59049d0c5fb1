"""When gaps are repaired without being asked, when that stops, and when a failed one is tried again (``design.md`` 9).

Pure. ``roles/repair/autorepairer.py`` counts, asks, and queues a backfill like a person's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import xxhash

from gapwatch.core.backfill import ERROR_RATE_AFTER, ItemOutcome
from gapwatch.core.trial import KEYS_MIN
from gapwatch.model.gap import Kind, RepairPressure
from gapwatch.model.pipeline import Policy, RepairSpec

ACTOR: Final = "automatic repair"  # who asks for automatic repairs, in runs and in the audit
WINDOW: Final = timedelta(hours=1)  # what the brakes look back on
FEW: Final = 10  # so many documents are no mass failure, however small the dataset
BACKOFF_MAX: Final = timedelta(hours=1)
OVERWRITING: Final = frozenset({Kind.STALE, Kind.MISMATCH})
DONE: Final = frozenset({ItemOutcome.WRITTEN, ItemOutcome.ALREADY_RIGHT})


def automatic(spec: RepairSpec) -> frozenset[Kind]:
    """Return the kinds that are repaired without being asked; ``extra`` and ``undeleted`` documents are then deleted."""
    named = (Kind.MISSING, Kind.STALE, Kind.MISMATCH, Kind.EXTRA, Kind.UNDELETED)
    return frozenset(kind for kind in named if getattr(spec, kind.value) is Policy.AUTO)


def allowed_on_trial(kinds: frozenset[Kind], *, rows: int) -> frozenset[Kind]:
    """Return the kinds that may be repaired while the mapping is on trial: it overwrites nothing.

    Args:
        kinds: Those that are repaired without being asked.
        rows: How many keys the source has, as counted, and not by an estimate: one that is too large would keep a dataset of
            too few keys for a trial from being repaired for ever. Such a one is left to the brakes.
    """
    return kinds if rows < KEYS_MIN else kinds - OVERWRITING


def brake(spec: RepairSpec, pressure: RepairPressure, *, size: int) -> str:
    """Return why automatic repair has to stop, or an empty string.

    Args:
        spec: The pipeline's limits.
        pressure: What waits now, and what was done within :data:`WINDOW`, or since somebody said that it may go on.
        size: About how many records the dataset has; 0 where nobody knows, and then few are already many.
    """
    many = pressure.waiting + pressure.written
    if many > spec.max_documents_per_run:
        return f"{many} documents to repair within an hour are more than max_documents_per_run ({spec.max_documents_per_run})"
    if many > max(FEW, spec.brake_ratio * size):
        share = f"about {size}" if size else "a number that is not known"
        return f"{many} documents of {share} to repair within an hour are a larger share than brake_ratio ({spec.brake_ratio:g})"
    if pressure.handled >= ERROR_RATE_AFTER and pressure.failed > spec.brake_ratio * pressure.handled:
        return f"the repair of {pressure.failed} of {pressure.handled} keys failed within an hour"
    return ""


def remedy(pipeline: str) -> str:
    return f"Find out why, then `gapwatch backfill resume {pipeline}`; until then `gapwatch backfill plan` and `apply` repair."


def waiting(pipeline: str) -> str:
    """Return what is said of gaps that :func:`allowed_on_trial` leaves."""
    return (
        "automatic repair overwrites nothing yet: the mapping is on trial. "
        f"`gapwatch sweep start {pipeline}` compares all, and decides it; `gapwatch backfill plan` and `apply` repair now"
    )


def next_attempt(spec: RepairSpec, *, gap_id: str, attempts: int, tries: int, at: datetime) -> datetime | None:
    """Return when a gap is tried again, with doubling pauses that differ from key to key; None: it is given up.

    Args:
        spec: The pipeline's limits.
        gap_id: What makes the pause its own.
        attempts: How often the document itself failed.
        tries: How often anything kept it from being repaired, at least 1.
        at: When that was, last.
    """
    if attempts >= spec.max_attempts:
        return None
    pause = min(BACKOFF_MAX, timedelta(seconds=spec.backoff_seconds) * (1 << min(tries - 1, 16)))
    fraction = int(xxhash.xxh3_64_intdigest(gap_id.encode())) % 1000 / 2000
    return at + pause * (0.75 + fraction)
