"""How a pipeline stands: never better than what was read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.maintenance import Quiet
from gapwatch.core.standing import BEGINNING, Baseline, LedgerFacts, standing
from gapwatch.model.gap import Finding, FindingRecord, GapSummary, RunKind, RunState
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
from gapwatch.model.stream import NO_DELIVERY, NO_TOPIC, Outcome, Side
from gapwatch.model.suspect import Closed, Counters, FeedStatus, Hole, PartitionStatus
from gapwatch.model.view import PipelineView
from tests.ledger_samples import hole as hole_on_record
from tests.ledger_samples import run
from tests.simulation.bench import Bench
from tests.simulation.world import START

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


def test_gaps_that_automatic_repair_leaves_for_now_say_so() -> None:
    gaps = GapSummary(open_by_kind={"stale": 1}, alerting=1, oldest_alerting=NOW, holding_since=NOW)

    def said(**facts: Any) -> list[str]:
        view = standing(PIPELINE, 2, [record(0), record(1)], replace(FACTS, **facts), NOW)
        return [reason for reason in view.reasons if "automatic repair" in reason]

    (reason,) = said(summary=gaps, repair_waits=True)
    assert "the mapping is on trial. `gapwatch sweep start orders`" in reason
    assert said(summary=gaps) == said(repair_waits=True) == []
    (stopped,) = said(summary=gaps, repair_waits=True, repair_stopped="too much is wrong")
    assert "has stopped: too much is wrong" in stopped


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


def test_a_hole_on_record_counts_until_it_is_cleared() -> None:
    """A sweep that began after its end covers it only once open gaps hold what they may have lost in it."""
    begun, ended = NOW - timedelta(hours=3), NOW - timedelta(hours=2)
    one = hole_on_record(begun, ended)
    stored_late = replace(FACTS, findings=[one])
    assert (view(facts=stored_late).status, view(facts=stored_late).consistent_through) == ("CRITICAL", begun)
    cleared = replace(FACTS, findings=[replace(one, cleared_at=NOW)])
    assert view(facts=cleared).status == "HEALTHY"


def test_a_gap_that_may_be_as_old_as_the_data_leaves_consistent_through_undefined() -> None:
    known = replace(FACTS, summary=GapSummary(open_by_kind={"missing": 1}, holding_since=NOW - timedelta(days=1)))
    assert view(facts=known).consistent_through == NOW - timedelta(days=1)
    unknown = replace(FACTS, summary=GapSummary(open_by_kind={"missing": 1}, holding_since=BEGINNING))
    assert view(facts=unknown).consistent_through is None


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


def test_coverage_expires_with_the_status_records() -> None:
    """It was 1.0 for as long as role match was away (that of an hour long past), and where a partition had not been read."""
    old = NOW_MS - 5 * 3_600_000
    assert view(record(0), record(1)).coverage == 1
    assert view(record(0, written_at=old), record(1, written_at=old)).coverage is None
    assert view(record(0), record(1, written_at=old)).coverage is None
    assert view(record(0)).coverage is None


def test_coverage_is_that_of_the_last_hour_where_the_matchers_say_so() -> None:
    counters = Counters(expected=100, settled=90, unverifiable={"not_read": 10})
    hour = Closed(settled=9, gap=1)
    assert view(record(0, counters=counters, last_hour=hour), record(1, last_hour=Closed())).coverage == 1
    accepted = view(record(0, counters=counters, last_hour=hour), record(1), facts=replace(FACTS, accepted=1))
    assert (accepted.coverage, accepted.status) == (1, "HEALTHY")
    idle = view(record(0, counters=counters, last_hour=Closed()), record(1, last_hour=Closed()))
    assert (idle.coverage, idle.status) == (None, "HEALTHY")
    poor = Closed(settled=9, unverifiable=1)
    assert view(record(0, last_hour=poor), record(1, last_hour=Closed())).status == "WARNING"


def test_masked_writes_of_the_last_hour_are_named_until_a_sweep_has_read_them() -> None:
    counters = Counters(expected=100, settled=100, masked=30)
    records = record(0, counters=counters, last_hour=Closed(settled=50, masked=20)), record(1, last_hour=Closed())
    seen = view(*records)
    assert seen.coverage == pytest.approx(30 / 50)
    assert any("20 writes had fields that no event carried" in reason for reason in seen.reasons)
    assert view(*records, facts=replace(FACTS, masked_swept=15)).coverage == pytest.approx(35 / 50)
    assert view(*records, facts=replace(FACTS, masked_swept=30)).coverage == 1


def test_a_paused_pipeline_is_skipped_explicitly() -> None:
    quiet = Quiet(reason="a move of the target", since=NOW - timedelta(minutes=5))
    skipped = view(facts=replace(FACTS, quiet=quiet))
    assert (skipped.status, skipped.reasons) == ("SKIPPED", ("a move of the target",))
    assert skipped.consistent_through == quiet.since, "it stands while nobody judges"


def test_what_could_not_be_read_is_unknown() -> None:
    assert view(facts=replace(FACTS, undecided=2)).status == "UNKNOWN"
    assert view(facts=replace(FACTS, unreadable_stores=("catalog",))).status == "UNKNOWN"


@pytest.mark.parametrize("field", ["written_at", "source_watermark", "target_watermark", "source_caught_up", "target_caught_up"])
def test_a_time_ahead_of_the_readers_clock_is_not_fresh(field: str) -> None:
    """A clock that was a day ahead made it: it would look fresh for a day, whatever stands still meanwhile."""
    ahead = NOW_MS + 86_400_000
    wrong = view(record(0, **{field: ahead}), record(1, **{field: ahead}))
    assert wrong.status == "UNKNOWN"
    assert wrong.consistent_through is not None
    assert wrong.consistent_through <= NOW
    assert view(record(0, **{field: NOW_MS + 1_000}), record(1, **{field: NOW_MS + 1_000})).status == "HEALTHY"


# ── failed checks that looked healthy ─────────────────────────────────────────────────────────────────────────────────────────


def everything_unread() -> dict[str, Any]:
    """Return, by name, one thing each that was not read or that failed."""
    old = NOW - timedelta(minutes=5)
    inconclusive = run(kind=RunKind.SWEEP, state=RunState.INCONCLUSIVE, started_at=old, ended_at=old)
    return {
        "no baseline": replace(FACTS, baseline=None),
        "store": replace(FACTS, unreadable_stores=("catalog",)),
        "a check": replace(FACTS, unlooked=("Kafka Connect does not answer.",)),
        "suspects": replace(FACTS, undecided=1),
        "role repair": replace(FACTS, repair_seen=None),
        "sweep": replace(FACTS, last_sweep=inconclusive, unproven=inconclusive),
    }


@pytest.mark.parametrize("what", sorted(everything_unread()))
def test_lesson_1_one_failed_check_among_many_good_ones_is_never_healthy(what: str) -> None:
    """The overall status ignored ERROR; a check that panicked left its block empty and was skipped."""
    seen = view(facts=everything_unread()[what])
    assert seen.status == "UNKNOWN"
    assert seen.reasons, "and it says which"


def test_lesson_1_a_run_in_which_everything_failed_names_everything() -> None:
    failed = replace(
        FACTS, baseline=None, unreadable_stores=("shop", "catalog"), undecided=3, repair_seen=None, last_full_sweep_started=None
    )
    seen = view(
        record(0, written_at=0, source_watermark=0, target_watermark=0, source_caught_up=0, target_caught_up=0), facts=failed
    )
    assert seen.status == "UNKNOWN"
    assert len(seen.reasons) >= 5
    assert seen.consistent_through is None


def test_lesson_1_an_error_is_not_outvoted_by_what_is_healthy_or_unknown() -> None:
    error = FindingRecord(
        id="f", pipeline="orders", finding=Finding.SCHEMA_CHANGED, side="expected", feed="s", first_seen=NOW, last_seen=NOW
    )
    assert view(facts=replace(FACTS, findings=[error])).status == "ERROR"
    assert view(facts=replace(FACTS, findings=[error], undecided=1)).status == "ERROR"
    gap = GapSummary(open_by_kind={"missing": 1}, alerting=1, oldest_alerting=NOW, holding_since=NOW)
    assert view(facts=replace(FACTS, summary=gap, unreadable_stores=("catalog",))).status == "ERROR"


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_lesson_4_the_rate_counts_every_closed_write_and_not_the_matched_ones_only(
    settled: int, cleared: int, superseded: int, gap: int, overflow: int, not_read: int
) -> None:
    """Match rate counted only items that were in matches, so it was always about 100 %."""
    counters = Counters(
        expected=settled + cleared + superseded + gap + overflow + not_read,
        settled=settled,
        cleared=cleared,
        superseded=superseded,
        gap=gap,
        unverifiable={"overflow": overflow, "not_read": not_read},
    )
    seen = view(record(0, counters=counters), record(1, counters=Counters()))
    if not counters.expected:
        assert (seen.coverage, seen.status) == (None, "HEALTHY")
        return
    proven = settled + cleared + superseded + gap
    assert seen.coverage == pytest.approx(proven / counters.expected)
    assert (seen.status == "HEALTHY") == (proven / counters.expected >= PIPELINE.coverage_target)


def test_lesson_4_writes_that_nothing_answered_are_part_of_the_rate() -> None:
    """Told through matching itself: of ten writes three are lost, and of two of these a store could not be read."""
    bench = Bench()
    for number in range(10):
        bench.expect(number, 100 + number, key=b"row-%d" % number)
        if number >= 3:
            bench.observe(number, 200 + number, key=b"row-%d" % number)
    bench.streams(100_000)
    outcomes = [Outcome.GAP, Outcome.UNVERIFIABLE, Outcome.UNVERIFIABLE]
    for suspect, outcome in zip(bench.suspects, outcomes, strict=True):
        bench.verdict(suspect, outcome)
    counters = bench.status.counters
    assert (counters.expected, counters.settled, counters.gap, counters.unverifiable) == (10, 7, 1, {"not_read": 2})
    assert view(record(0, counters=counters), record(1, counters=Counters())).coverage == pytest.approx(0.8)


def test_lesson_19_an_idle_pipeline_with_heartbeats_stays_healthy() -> None:
    """No write for a day. Lag was "time since the last event"; here time is what heartbeats proved a second ago."""
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 150)
    day = 86_400_000
    for moment in range(1_000, day, 600_000):
        assert bench.streams(moment) == []
    bench.streams(day)
    idle = msgspec.structs.replace(bench.status, partitions=1, written_at=START + day)
    now = at(START + day + 900)
    facts = replace(
        FACTS,
        baseline=Baseline(started_at=at(START), ended_at=at(START), sweep_id="r"),
        last_full_sweep_started=at(START + 100_000),
        repair_seen=now,
    )
    seen = standing(replace(PIPELINE, delivery=DeliverySpec()), 1, [idle], facts, now)
    assert (seen.status, seen.reasons) == ("HEALTHY", ())
    assert seen.consistent_through == at(START + day)
    assert [(feed.caught_up, feed.finding) for feed in seen.feeds] == [(True, None), (True, None)]


def test_lesson_19_silence_without_heartbeats_is_unknown_and_neither_healthy_nor_a_gap() -> None:
    bench = Bench()
    bench.streams(1_000)
    now = at(START + 40_000)
    facts = replace(FACTS, last_full_sweep_started=at(START + 100_000), repair_seen=now)
    silent = msgspec.structs.replace(bench.status, partitions=1, written_at=START + 40_000)
    seen = standing(replace(PIPELINE, delivery=DeliverySpec()), 1, [silent], facts, now)
    assert seen.status == "UNKNOWN"
    assert sum(seen.gaps_open.values()) == 0
    assert {feed.finding for feed in seen.feeds} == {"feed_stalled"}


def test_once_a_feed_has_a_topic_its_partitions_alone_speak_for_it() -> None:
    """A table without writes has no topic. What was said of that, long ago, made a feed that is read to its end look stalled."""

    def feed(partition: int, at_ms: int) -> FeedStatus:
        return FeedStatus(
            side=int(Side.EXPECTED),
            feed="shop.public.orders",
            feed_partition=partition,
            partitions=0 if partition == NO_TOPIC else 1,
            epoch=0,
            reached=0,
            watermark=at_ms,
            caught_up=at_ms,
            delivery=NO_DELIVERY,
        )

    [seen] = view(record(0, feeds=[feed(NO_TOPIC, NOW_MS - 300_000), feed(0, NOW_MS)]), record(1)).feeds
    assert (seen.caught_up, seen.finding, seen.watermark) == (True, None, at(NOW_MS))
    [seen] = view(record(0, feeds=[feed(NO_TOPIC, NOW_MS)]), record(1)).feeds
    assert (seen.caught_up, seen.finding) == (True, None), "it is empty, and somebody looks at it"
    [seen] = view(record(0, feeds=[feed(NO_TOPIC, NOW_MS - 300_000)]), record(1)).feeds
    assert seen.finding == "feed_stalled"
