"""One incident for a mass failure: many gaps at once are one thing to look at. Every gap keeps its own row."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from gapwatch.core.gaps import gap_id, rfc3339
from gapwatch.core.reports import plain
from gapwatch.model.gap import Finding, FindingRecord, GapBurst
from gapwatch.model.view import PipelineView

WINDOW: Final = timedelta(hours=1)  # gaps that open within it are a burst
SAMPLES: Final = 10
OVER: Final = 0.1  # an incident is over when no more than this share of the threshold is left of it
REMEDY: Final = "Look at what they have in common before repairing: the sink, its rights, the mapping, a restored backup."


def since_of(known: FindingRecord | None, now: datetime) -> datetime:
    """Return from when on gaps count: from the start of the incident that is known, else within the window."""
    return known.time_from if known is not None and known.time_from is not None else now - WINDOW


def known_incident(findings: Sequence[FindingRecord]) -> FindingRecord | None:
    """Return the incident among a pipeline's open findings."""
    return next((record for record in findings if record.finding is Finding.INCIDENT), None)


def incident_of(
    pipeline: str, burst: GapBurst, known: FindingRecord | None, *, threshold: int, now: datetime
) -> FindingRecord | None:
    """Return the incident as it stands now; None where there is none, or none any more.

    Args:
        pipeline: Its id.
        burst: The open gaps first seen since :func:`since_of`.
        known: The incident that is known, if any.
        threshold: The pipeline's `incident_threshold`.
        now: An aware time.
    """
    if burst.count < threshold and (known is None or burst.count <= threshold * OVER):
        return None
    begun = known.time_from if known is not None and known.time_from is not None else burst.since or now
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(burst.by_kind.items(), key=lambda item: -item[1]))
    return FindingRecord(
        id=known.id if known is not None else "incident_" + gap_id(pipeline, b"", rfc3339(begun) or "").removeprefix("gap_"),
        pipeline=pipeline,
        finding=Finding.INCIDENT,
        side="observed",
        feed="",
        first_seen=known.first_seen if known is not None else now,
        last_seen=now,
        message=f"{burst.count:,} gaps at once ({kinds}) since {begun:%Y-%m-%d %H:%M:%S} UTC.",
        remedy=REMEDY,
        time_from=begun,
        details={"gaps": burst.count, "by_kind": dict(burst.by_kind), "samples": [plain(dict(one)) for one in burst.samples]},
    )


def gaps_of_incident(view: PipelineView) -> int:
    """Return how many open gaps the pipeline's incident has; 0 where there is none."""
    known: Any = known_incident(view.findings)
    return int(known.details.get("gaps", 0)) if known is not None else 0
