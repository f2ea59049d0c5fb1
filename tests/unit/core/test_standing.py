"""How a pipeline stands: never better than what was read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gapwatch.core.standing import Baseline, LedgerFacts, standing
from gapwatch.model.gap import Finding, FindingRecord, GapSummary
from gapwatch.model.pipeline import (
    DeliverySpec,
    FeedKind,
    FeedSpec,
    KeyColumn,
    KeyType,
    PipelineSpec,
    SourceSpec,
    TargetSpec,
)
from gapwatch.model.suspect import Counters, Hole, PartitionStatus
from gapwatch.model.view import PipelineView

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
KEY = (KeyColumn(path="id", type=KeyType.INT),)
PIPELINE = PipelineSpec(
    id="orders",
    source=SourceSpec(store="shop", table="public.orders", key=KEY, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="s")),
    target=TargetSpec(store="catalog", collection="c.o", key=KEY, feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic="t")),
    fields=(),
    delivery=DeliverySpec(group="g"),
)
FACTS = LedgerFacts(
    summary=GapSummary(),
    findings=(),
    baseline=Baseline(started_at=NOW - timedelta(hours=1), ended_at=NOW - timedelta(minutes=59), sweep_id="r"),
    last_full_sweep_started=NOW - timedelta(hours=1),
    last_sweep=None,
    unverifiable_oldest=None,
    repair_seen=NOW,
)


def record(partition: int, **changes: Any) -> PartitionStatus:
    fields: dict[str, Any] = {
        "pipeline": "orders",
        "partition": partition,
        "partitions": 2,
        "worker": "w",
        "input_offset": 10,
        "written_at": NOW_MS - 500,
        "source_watermark": NOW_MS - 1_000,
        "target_watermark": NOW_MS - 900,
        "source_caught_up": NOW_MS - 300,
        "target_caught_up": NOW_MS - 300,
        "delivered_through": NOW_MS - 1_000,
        "oldest_unsettled": None,
        "oldest_in_transit": None,
        "pending": 0,
        "in_transit": 0,
        "raised": 0,
        "counters": Counters(expected=5, settled=5),
        "feeds": [],
        "holes": [],
    }
    return PartitionStatus(**{**fields, **changes})


def view(*records: PartitionStatus, facts: LedgerFacts = FACTS) -> PipelineView:
    return standing(PIPELINE, 2, records or (record(0), record(1)), facts, NOW)


def at(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def test_all_read_and_nothing_open_is_healthy() -> None:
    healthy = view()
    assert healthy.status == "HEALTHY"
    assert healthy.consistent_through == at(NOW_MS - 1_000)


def test_a_partition_without_a_status_record_is_unknown() -> None:
    missing = view(record(0))
    assert missing.status == "UNKNOWN"
    assert missing.consistent_through is None


@pytest.mark.parametrize("field", ["written_at", "source_watermark", "target_watermark", "source_caught_up", "target_caught_up"])
def test_every_status_expires(field: str) -> None:
    stale = view(record(0), record(1, **{field: NOW_MS - 31_000}))
    assert stale.status == "UNKNOWN"
    never = view(record(0), record(1, **{field: 0}))
    assert never.status == "UNKNOWN"


def test_a_silent_repair_role_is_unknown() -> None:
    assert view(facts=replace(FACTS, repair_seen=NOW - timedelta(seconds=31))).status == "UNKNOWN"
    assert view(facts=replace(FACTS, repair_seen=None)).status == "UNKNOWN"


def test_without_a_baseline_nothing_is_claimed() -> None:
    young = view(facts=replace(FACTS, baseline=None, last_full_sweep_started=None))
    assert young.status == "UNKNOWN"
    assert young.consistent_through is None


def test_m1_the_oldest_unsettled_write_of_any_partition_holds_consistent_through() -> None:
    held = view(record(0, oldest_unsettled=NOW_MS - 20_000, pending=1), record(1))
    assert held.consistent_through == at(NOW_MS - 20_000)
    assert held.status == "HEALTHY"


def test_m1_an_open_gap_holds_consistent_through_at_its_write() -> None:
    since = NOW - timedelta(minutes=5)
    summary = GapSummary(open_by_kind={"missing": 1}, alerting=1, oldest_alerting=NOW - timedelta(minutes=4), holding_since=since)
    held = view(facts=replace(FACTS, summary=summary))
    assert (held.status, held.consistent_through) == ("ERROR", since)


def test_a_gap_older_than_the_slo_is_critical() -> None:
    summary = GapSummary(open_by_kind={"missing": 1}, alerting=1, oldest_alerting=NOW - timedelta(minutes=16), holding_since=NOW)
    assert view(facts=replace(FACTS, summary=summary)).status == "CRITICAL"


def test_a_gap_of_unknown_age_makes_consistent_through_undefined() -> None:
    summary = GapSummary(open_by_kind={"extra": 1}, alerting=1, oldest_alerting=NOW, holding_unknown=True)
    assert view(facts=replace(FACTS, summary=summary)).consistent_through is None


def test_an_uncovered_hole_is_critical_and_a_sweep_that_began_after_it_covers_it() -> None:
    ended = NOW_MS - 30_000
    hole = Hole(
        id="h",
        pipeline="orders",
        side=0,
        feed="s",
        feed_partition=0,
        time_from=ended - 5_000,
        time_to=ended,
        reason="ingest_hole",
    )
    torn = view(record(0, holes=[hole]), record(1))
    assert (torn.status, torn.consistent_through) == ("CRITICAL", at(ended - 5_000))
    covered = replace(FACTS, last_full_sweep_started=at(ended) + timedelta(milliseconds=1))
    assert view(record(0, holes=[hole]), record(1), facts=covered).status == "HEALTHY"
    began_inside = replace(FACTS, last_full_sweep_started=at(ended - 1_000))
    assert view(record(0, holes=[hole]), record(1), facts=began_inside).status == "CRITICAL"


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (Finding.CONNECTOR_FAILED, "ERROR"),
        (Finding.SCHEMA_CHANGED, "ERROR"),
        (Finding.SLOT_LOST, "CRITICAL"),
        (Finding.HISTORY_LOST, "CRITICAL"),
        (Finding.DELIVERY_UNKNOWN, "UNKNOWN"),
        (Finding.CLOCK_SKEW, "WARNING"),
    ],
)
def test_findings_count_as_the_contract_says(finding: Finding, status: str) -> None:
    found = FindingRecord(id="f", pipeline="orders", finding=finding, side="expected", feed="s", first_seen=NOW, last_seen=NOW)
    assert view(facts=replace(FACTS, findings=[found])).status == status
    assert view(facts=replace(FACTS, findings=[replace(found, cleared_at=NOW)])).status == "HEALTHY"


def test_m19_lag_is_a_warning_and_never_a_gap() -> None:
    lagging = view(
        record(0, oldest_in_transit=NOW_MS - 61_000, oldest_unsettled=NOW_MS - 61_000, in_transit=9),
        record(1),
    )
    assert (lagging.status, lagging.in_transit_keys, sum(lagging.gaps_open.values())) == ("WARNING", 9, 0)
    assert lagging.consistent_through == at(NOW_MS - 61_000)


def test_low_coverage_is_shown() -> None:
    counters = Counters(expected=100, settled=90, unverifiable={"masked": 10})
    poor = view(record(0, counters=counters), record(1))
    assert poor.status == "WARNING"
    assert poor.coverage == pytest.approx(95 / 105)


def test_a_paused_pipeline_is_skipped_explicitly() -> None:
    assert view(facts=replace(FACTS, paused="maintenance")).status == "SKIPPED"


def test_what_could_not_be_read_is_unknown() -> None:
    assert view(facts=replace(FACTS, undecided=2)).status == "UNKNOWN"
    assert view(facts=replace(FACTS, unreadable_stores=("catalog",))).status == "UNKNOWN"
