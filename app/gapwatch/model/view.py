"""What a pipeline looks like from outside: the record of API, CLI, page and metrics (``product.md`` 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from gapwatch.model.gap import FindingRecord, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedView:
    """One feed of one side, over all its partitions. ``lag`` counts raw records not yet read; None: not known."""

    side: str
    topic: str
    watermark: datetime | None
    caught_up: bool
    lag: int | None
    finding: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over all partitions since the state began, plus what is unsettled now."""

    expected: int = 0
    observed: int = 0
    settled: int = 0
    superseded: int = 0
    gap: int = 0
    cleared: int = 0
    masked: int = 0  # of the settled ones, and not proven by a content sweep since: some field was in no event
    unverifiable: dict[str, int] = field(default_factory=dict)
    late: int = 0
    raised: int = 0
    forgotten: int = 0  # keys that made room for others
    snapshot_reads: dict[str, int] = field(default_factory=dict)
    delays_ms: dict[int, int] = field(default_factory=dict)  # bucket upper bound (-1: above all) → count


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineView:
    """``consistent_through`` None: undefined (no baseline, or something was never read). ``reasons`` say why the status is so."""

    id: str
    status: str
    reasons: tuple[str, ...]
    consistent_through: datetime | None
    source_watermark: datetime | None
    target_watermark: datetime | None
    delivered_through: datetime | None
    pending_keys: int
    in_transit_keys: int
    oldest_in_transit: datetime | None
    oldest_unsettled: datetime | None
    gaps_open: dict[str, int]
    coverage: float | None
    feeds: tuple[FeedView, ...]
    findings: tuple[FindingRecord, ...]
    last_sweep: Run | None
    baseline: datetime | None
    totals: Totals
    read_at: datetime
    grace_seconds: float | None = None  # in force; None: not known
    match: str = "digest"  # what coverage is of: digest | version | presence
    not_proven: str | None = None  # what coverage says nothing about, by `match`; None: every mapped field is compared
