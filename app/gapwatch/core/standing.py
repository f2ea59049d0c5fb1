"""How a pipeline stands: status, consistent-through and coverage, from status records and the ledger.

Pure. The reader of ``gapwatch.status`` keeps, per pipeline and partition, the record with the highest input offset; the ledger's
facts are read *after* them, so that a verdict is never seen on neither side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gapwatch.core.autorepair import remedy, waiting
from gapwatch.core.coverage import closed_of, ratio, together
from gapwatch.core.maintenance import Quiet
from gapwatch.model.gap import Finding, FindingRecord, GapSummary, Run, RunState, Severity
from gapwatch.model.pipeline import Match, PipelineSpec
from gapwatch.model.stream import NO_TOPIC, UNKNOWN_DELIVERY, Side
from gapwatch.model.suspect import FeedStatus, Hole, PartitionStatus
from gapwatch.model.view import FeedView, PipelineView, Totals

ERROR_FINDINGS = frozenset({Finding.CONNECTOR_FAILED, Finding.SCHEMA_CHANGED, Finding.MAPPING_SUSPECT, Finding.REPLICA_IDENTITY})
CRITICAL_FINDINGS = frozenset({Finding.SLOT_LOST, Finding.HISTORY_LOST})
UNKNOWN_FINDINGS = frozenset({Finding.DELIVERY_UNKNOWN})
NOT_PROVEN = {
    Match.VERSION: "contents: only the version column is compared, so that a wrong field under the right version is not seen",
    Match.PRESENCE: "contents: only that a document is there is compared, so that an update which never arrived is not seen",
}
_SHORT = {RunState.INCONCLUSIVE: "inconclusive", RunState.FAILED: "not carried out"}
BEGINNING = datetime.fromtimestamp(0, UTC)  # of what nobody knows the beginning of
BEFORE_ALL = BEGINNING - timedelta(seconds=1)  # … and of which no sweep that is still known proves how far it can reach back


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The sweep (or the operator's word) that everything before it is judged. ``started_at`` precedes its first read."""

    started_at: datetime
    ended_at: datetime
    sweep_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFacts:
    """What the ledger says of one pipeline. ``last_full_sweep_started``: of the last one that succeeded and compared content."""

    summary: GapSummary
    findings: Sequence[FindingRecord]
    baseline: Baseline | None
    last_full_sweep_started: datetime | None
    last_sweep: Run | None
    unverifiable_oldest: datetime | None
    masked_swept: int = 0  # masked settled writes that the last full content sweep read in full
    unproven: Run | None = None  # the sweep that left something unread which none has looked at since
    undecided: int = 0  # suspects whose stores could not be read
    quiet: Quiet | None = None  # while it is paused, or in a maintenance window
    unreadable_stores: Sequence[str] = ()
    unlooked: Sequence[str] = ()  # why checks could not look, and may not for a while
    repair_stopped: str = ""  # why automatic repair stopped
    repair_waits: bool = False  # gaps wait for the mapping's trial before they are repaired by themselves
    given_up: int = 0  # open gaps whose repair is not tried any more
    accepted: int = 0  # gaps of the last hour's writes that somebody accepted
    grace_ms: int | None = None  # in force; None: the declared one
    repair_seen: datetime | None = None  # when role repair last said what it could not read


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    severity: Severity
    reason: str


def standing(
    pipeline: PipelineSpec, partitions: int, statuses: Sequence[PartitionStatus], facts: LedgerFacts, now: datetime
) -> PipelineView:
    """Return the pipeline's view at `now`.

    Args:
        pipeline: Its resolved configuration.
        partitions: How many partitions ``gapwatch.events`` has; a missing status record makes the pipeline UNKNOWN.
        statuses: The newest record of each partition.
        facts: What the ledger says, read after the statuses.
        now: The reader's clock, aware.
    """
    records = {record.partition: record for record in statuses}
    complete = all(number in records for number in range(partitions))
    holes = uncovered_holes(records.values(), facts)
    totals = _totals(records.values(), facts.masked_swept)
    closed = together(record.last_hour or closed_of(record.counters) for record in records.values())
    masked = min(totals.masked, closed.masked)
    old = any(now - from_ms(record.written_at) > timedelta(seconds=pipeline.stall_after_seconds) for record in statuses)
    known = complete and not old  # else it would be of another hour, or of some of the keys
    coverage = ratio(closed, masked=masked, accepted=facts.accepted) if known else None
    judged = list(_judge(pipeline, partitions, records, facts, holes, coverage, masked, now))
    worst = max(judged, key=lambda item: item.severity, default=_Judged(severity=Severity.HEALTHY, reason=""))
    if facts.quiet is not None:
        worst = _Judged(severity=Severity.SKIPPED, reason=facts.quiet.reason)
        judged = [worst]
    source = _least(record.source_watermark for record in records.values()) if complete else None
    target = _least(record.target_watermark for record in records.values()) if complete else None
    return PipelineView(
        id=pipeline.id,
        status=worst.severity.name,
        reasons=tuple(item.reason for item in sorted(judged, key=lambda item: -item.severity) if item.reason),
        consistent_through=_consistent_through(records, complete, facts, holes, now),
        source_watermark=source,
        target_watermark=target,
        delivered_through=_least(record.delivered_through for record in records.values()) if complete else None,
        pending_keys=sum(record.pending for record in records.values()),
        in_transit_keys=sum(record.in_transit for record in records.values()),
        oldest_in_transit=_oldest(record.oldest_in_transit for record in records.values()),
        oldest_unsettled=_oldest(record.oldest_unsettled for record in records.values()),
        gaps_open=dict(facts.summary.open_by_kind),
        coverage=coverage,
        feeds=tuple(feeds_of(pipeline, records.values(), facts.findings, now)),
        findings=tuple(facts.findings),
        last_sweep=facts.last_sweep,
        baseline=facts.baseline.ended_at if facts.baseline else None,
        totals=totals,
        read_at=now,
        grace_seconds=pipeline.grace_seconds if facts.grace_ms is None else facts.grace_ms / 1000,
        match=pipeline.match.value,
        not_proven=NOT_PROVEN.get(pipeline.match),
    )


def from_ms(milliseconds: int) -> datetime:
    """Return the aware UTC time of milliseconds since the epoch."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def uncovered_holes(records: Iterable[PartitionStatus], facts: LedgerFacts) -> list[datetime]:
    """Return the start times of all holes that no succeeded full sweep covers; a sweep covers what ended before it began.

    One that is on record counts until it is cleared: before that, gaps have to hold what they may have lost in it.
    """
    said = uncovered_holes_within(records, (), facts.last_full_sweep_started)
    return said + uncovered_holes_within((), facts.findings, None)


def uncovered_holes_within(
    records: Iterable[PartitionStatus],
    findings: Iterable[FindingRecord],
    covered: datetime | None,
    *,
    ended_before: datetime | None = None,
) -> list[datetime]:
    """Return the start times of holes that ended at or after `covered` (None: of all), and before `ended_before` where given."""
    spans = [(_begun(hole, covered), from_ms(hole.time_to)) for record in records for hole in record.holes]
    spans += [
        (begun(finding), finding.time_to or finding.last_seen)
        for finding in findings
        if finding.is_hole and finding.cleared_at is None
    ]
    return [start for start, end in spans if (covered is None or end >= covered) and (ended_before is None or end < ended_before)]


def _begun(hole: Hole, covered: datetime | None) -> datetime:
    """Return when a hole of the matcher's began.

    Of several without a beginning that are one by now, each is held from the sweep before it. Where one of them had ended when
    the last sweep began, that was an earlier sweep than the one before this hole, and nobody knows it any more.
    """
    if hole.first_to and covered is not None and from_ms(hole.first_to) < covered:
        return BEFORE_ALL
    return from_ms(hole.time_from)


def begun(finding: FindingRecord) -> datetime:
    """Return when a hole began: when it was seen, where nobody knows it any better."""
    return finding.time_from or finding.first_seen


def _judge(
    pipeline: PipelineSpec,
    partitions: int,
    records: Mapping[int, PartitionStatus],
    facts: LedgerFacts,
    holes: Sequence[datetime],
    coverage: float | None,
    masked: int,
    now: datetime,
) -> list[_Judged]:
    judged = _judge_gaps(pipeline, facts, now) + _judge_findings(facts, now)
    judged += _judge_repair(pipeline, facts)
    judged += _judge_freshness(pipeline, partitions, records, now)
    baseline_known = facts.baseline is not None or pipeline.baseline == "assume"
    if not baseline_known:
        judged.append(_Judged(severity=Severity.UNKNOWN, reason="no baseline yet: a content sweep has to finish first"))
    elif holes:
        judged.append(
            _Judged(severity=Severity.CRITICAL, reason=f"{len(holes)} uncovered holes in the stream; a sweep has to cover them")
        )
    if facts.undecided:
        judged.append(_Judged(severity=Severity.UNKNOWN, reason=f"{facts.undecided} suspects could not be read at a store"))
    for store in facts.unreadable_stores:
        judged.append(_unknown(f"store {store} does not answer"))
    for why in facts.unlooked:
        judged.append(_unknown(f"not checked: {why}"))
    if facts.repair_seen is None or now - facts.repair_seen > timedelta(seconds=pipeline.stall_after_seconds):
        judged.append(_unknown("role repair has not reported: nobody confirms suspects"))
    if facts.unproven is not None:
        judged.append(_unknown(f"a sweep was {_SHORT[facts.unproven.state]}, and none has looked at as much since"))
    if coverage is not None and coverage < pipeline.coverage_target:
        because = f"; {masked} writes had fields that no event carried: sweep the content" if masked else ""
        reason = f"coverage {coverage:.4f} is below {pipeline.coverage_target}{because}"
        judged.append(_Judged(severity=Severity.WARNING, reason=reason))
    if lagging_since(records.values(), now, pipeline.lag_limit) is not None:
        judged.append(_Judged(severity=Severity.WARNING, reason="sink_lagging: a write has been in transit for too long"))
    return judged


def lagging_since(records: Iterable[PartitionStatus], now: datetime, limit_seconds: float) -> datetime | None:
    """Return when the oldest write in transit was committed, where that is longer ago than the limit."""
    oldest = _oldest(record.oldest_in_transit for record in records)
    return oldest if oldest is not None and now - oldest > timedelta(seconds=limit_seconds) else None


def _judge_gaps(pipeline: PipelineSpec, facts: LedgerFacts, now: datetime) -> list[_Judged]:
    summary = facts.summary
    total = sum(summary.open_by_kind.values())
    if summary.alerting:
        late = summary.oldest_alerting is not None and now - summary.oldest_alerting > timedelta(seconds=pipeline.slo_seconds)
        severity = Severity.CRITICAL if late else Severity.ERROR
        return [_Judged(severity=severity, reason=f"{summary.alerting} open gaps" + (", older than the SLO" if late else ""))]
    if total:
        return [_Judged(severity=Severity.WARNING, reason=f"{total} acknowledged or snoozed gaps")]
    return []


def _judge_repair(pipeline: PipelineSpec, facts: LedgerFacts) -> list[_Judged]:
    judged = []
    if facts.repair_stopped:
        reason = f"automatic repair has stopped: {facts.repair_stopped}. {remedy(pipeline.id)}"
        judged.append(_Judged(severity=Severity.WARNING, reason=reason))
    elif facts.repair_waits and facts.summary.alerting:
        judged.append(_Judged(severity=Severity.WARNING, reason=waiting(pipeline.id)))
    if facts.given_up:
        reason = f"the repair of {facts.given_up} gaps was given up: see `gapwatch backfill failed {pipeline.id}`"
        judged.append(_Judged(severity=Severity.WARNING, reason=reason))
    return judged


def _judge_findings(facts: LedgerFacts, now: datetime) -> list[_Judged]:
    judged = []
    for finding in facts.findings:
        if finding.cleared_at is not None:
            continue
        if finding.finding in CRITICAL_FINDINGS:
            severity = Severity.CRITICAL
        elif finding.finding in ERROR_FINDINGS:
            severity = Severity.ERROR
        elif finding.finding in UNKNOWN_FINDINGS:
            severity = Severity.UNKNOWN
        else:
            severity = Severity.WARNING
        judged.append(_Judged(severity=severity, reason=f"{finding.finding.value}: {finding.message}".rstrip(": ")))
    return judged


def _judge_freshness(
    pipeline: PipelineSpec, partitions: int, records: Mapping[int, PartitionStatus], now: datetime
) -> list[_Judged]:
    """Apply the rule of freshness: what is older than ``stall_after`` by the reader's clock is UNKNOWN, whatever is alive.

    So is what lies ahead of that clock: a time that a wrong clock made would stay fresh for as long as it is wrong.
    """
    missing = [number for number in range(partitions) if number not in records]
    if missing:
        return [
            _unknown(f"no status record of partition {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
        ]
    limit, ahead = timedelta(seconds=pipeline.stall_after_seconds), timedelta(seconds=pipeline.clock_skew_max_seconds)
    observed_feed = pipeline.target.feed.kind.value != "none"
    judged = []
    checks: dict[str, Callable[[PartitionStatus], int]] = {
        "status record": lambda record: record.written_at,
        "source watermark": lambda record: record.source_watermark,
        "source feed's end": lambda record: record.source_caught_up,
    }
    if observed_feed:
        checks["target watermark"] = lambda record: record.target_watermark
        checks["target feed's end"] = lambda record: record.target_caught_up
    for what, of in checks.items():
        oldest = min(of(record) for record in records.values())
        if oldest == 0:
            judged.append(_unknown(f"the {what} is not known yet"))
        elif now - from_ms(oldest) > limit:
            judged.append(_unknown(f"the {what} is {(now - from_ms(oldest)).total_seconds():.0f} s old"))
        elif from_ms(oldest) - now > ahead:
            judged.append(_unknown(f"the {what} is {(from_ms(oldest) - now).total_seconds():.0f} s ahead of this clock"))
    if any(record.delivery_unknown for record in records.values()):
        judged.append(_unknown("delivery_unknown: nobody says how far the sink has come"))
    return judged


def _unknown(reason: str) -> _Judged:
    return _Judged(severity=Severity.UNKNOWN, reason=reason)


def _consistent_through(
    records: Mapping[int, PartitionStatus], complete: bool, facts: LedgerFacts, holes: Sequence[datetime], now: datetime
) -> datetime | None:
    """Return the time up to which every write committed at the source is proven at the target; None: undefined."""
    if facts.baseline is None or not complete:
        return None
    bounds = [now, *([facts.quiet.since] if facts.quiet else [])]
    for record in records.values():
        if record.source_watermark == 0:
            return None
        bounds.append(from_ms(record.source_watermark))
        if record.oldest_unsettled is not None:
            bounds.append(from_ms(record.oldest_unsettled))
    summary = facts.summary
    bounds += [time for time in (summary.holding_since, facts.unverifiable_oldest) if time is not None]
    if summary.holding_unknown:
        return None
    bounds += holes
    least = min(bounds)
    return least if least > BEGINNING else None


def _totals(records: Iterable[PartitionStatus], masked_swept: int) -> Totals:
    unverifiable: dict[str, int] = {}
    snapshot_reads: dict[str, int] = {}
    delays: dict[int, int] = {}
    counted = ("expected", "observed", "settled", "superseded", "gap", "cleared", "masked", "late", "raised", "forgotten")
    sums = dict.fromkeys(counted, 0)
    for record in records:
        for name in sums:
            sums[name] += getattr(record.counters, name)
        for into, counts in ((unverifiable, record.counters.unverifiable), (snapshot_reads, record.counters.snapshot_reads)):
            for label, count in counts.items():
                into[label] = into.get(label, 0) + count
        for bound, count in record.delays_ms:
            delays[bound] = delays.get(bound, 0) + count
    sums["masked"] = max(0, sums["masked"] - masked_swept)
    return Totals(**sums, unverifiable=unverifiable, snapshot_reads=snapshot_reads, delays_ms=delays)


def feeds_of(
    pipeline: PipelineSpec, records: Iterable[PartitionStatus], findings: Sequence[FindingRecord], now: datetime
) -> list[FeedView]:
    """Fold all partitions' feed states into one row per feed."""
    by_feed: dict[tuple[int, str], list[FeedStatus]] = {}
    for record in records:
        for feed in record.feeds:
            by_feed.setdefault((feed.side, feed.feed), []).append(feed)
    rows = []
    limit = timedelta(seconds=pipeline.stall_after_seconds)
    for (side, topic), said in sorted(by_feed.items()):
        name = Side(side).name.lower()
        states = [state for state in said if state.feed_partition != NO_TOPIC] or said  # what was said before there was a topic
        caught_up = min(state.caught_up for state in states)
        finding = next((item.finding.value for item in findings if item.feed == topic and item.cleared_at is None), None)
        fresh = caught_up > 0 and now - from_ms(caught_up) <= limit
        if finding is None and any(state.delivery == UNKNOWN_DELIVERY for state in states):
            finding = Finding.DELIVERY_UNKNOWN.value
        elif finding is None and not fresh:
            finding = Finding.FEED_STALLED.value
        rows.append(
            FeedView(
                side=name,
                topic=topic,
                watermark=_least(state.watermark for state in states),
                caught_up=fresh,
                lag=None,
                finding=finding,
            )
        )
    return rows


def _least(times: Iterable[int]) -> datetime | None:
    """Return the least of millisecond times; None when there is none or one is not known (0)."""
    values = list(times)
    least = min(values, default=0)
    return from_ms(least) if least else None


def _oldest(times: Iterable[int | None]) -> datetime | None:
    values = [value for value in times if value is not None]
    return from_ms(min(values)) if values else None
