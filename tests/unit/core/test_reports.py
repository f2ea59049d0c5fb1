"""The records of product.md 3: every field is there, empty ones as null, times in RFC 3339, nothing but JSON types."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from gapwatch.core.reports import (
    audit_record,
    encode,
    finding_record,
    gap_event,
    gap_event_bytes,
    gap_record,
    key_text,
    pace_of,
    pipeline_record,
    plain,
    rfc3339,
    run_record,
)
from gapwatch.model.gap import AuditRow, Cause, Finding, Kind, Resolution, State
from gapwatch.model.view import FeedView, PipelineView, Totals
from tests.ledger_samples import T0, at, finding, gap, run


def test_a_gap_with_nothing_in_it_has_every_field() -> None:
    record = gap_record(gap(target_id=None, event_time=None, evidence=()))
    assert record == {
        "schema_version": 1,
        "id": f"gap_{1:032x}",
        "pipeline": "orders",
        "key": {"id": 1},
        "key_text": "1",
        "target_id": None,
        "tables": [],
        "kind": "missing",
        "cause": "never_written",
        "state": "open",
        "detector": "stream",
        "event_time": None,
        "first_seen": "2026-11-24T10:00:02.123456Z",
        "confirmed_at": "2026-11-24T10:00:02.123456Z",
        "resolved_at": None,
        "resolution": None,
        "fields": [],
        "occurrences": 1,
        "evidence": [],
        "note": None,
        "held_since": None,
        "revision": 1,
    }


def test_a_full_gap() -> None:
    record = gap_record(
        gap(
            kind=Kind.MISMATCH,
            cause=Cause.OVERWRITTEN,
            state=State.RESOLVED,
            resolution=Resolution.BACKFILLED,
            resolved_at=at(60),
            fields=("total",),
            note="n",
        )
    )
    assert (record["kind"], record["cause"], record["state"], record["resolution"]) == (
        "mismatch",
        "overwritten",
        "resolved",
        "backfilled",
    )
    assert record["resolved_at"] == "2026-11-24T10:01:00.123456Z"
    assert record["fields"] == ["total"]
    assert record["evidence"][0]["topic"] == "shop.public.orders"


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (None, None),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.006Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 1, tzinfo=UTC), "2026-01-02T03:04:05.000001Z"),
    ],
)
def test_times_are_rfc3339_in_utc_and_lose_nothing(time: datetime | None, text: str | None) -> None:
    assert rfc3339(time) == text
    if text is not None:
        assert datetime.fromisoformat(text) == time


def test_a_naive_time_is_an_error_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        rfc3339(datetime(2026, 1, 2))  # noqa: DTZ001


def test_values_of_any_type_become_json_and_lose_nothing() -> None:
    value = {
        "int": 2**70,
        "decimal": Decimal("1E+23"),
        "nan": float("nan"),
        "infinity": float("-inf"),
        "uuid": UUID(int=1),
        "bytes": b"\x00\xff",
        "time": T0,
        "enum": Kind.STALE,
        "set": {2, 1},
        "tuple": (1, None, True, 0.5),
        3: "number as a name",
    }
    shown = plain(value)
    assert shown == {
        "int": 2**70,
        "decimal": "1E+23",
        "nan": "nan",
        "infinity": "-inf",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "bytes": "00ff",
        "time": "2026-11-24T10:00:00.123456Z",
        "enum": "stale",
        "set": [1, 2],
        "tuple": [1, None, True, 0.5],
        "3": "number as a name",
    }
    assert json.loads(encode(shown)) == shown


def test_a_key_is_shown_exactly_as_text() -> None:
    assert key_text({"id": 2**53 + 1}) == "9007199254740993"
    assert key_text({"id": "a,b"}) == "a,b"
    assert key_text({"id": UUID(int=7)}) == "00000000-0000-0000-0000-000000000007"
    assert key_text({"order_id": 1, "line": "ü"}) == "1,ü"


def test_a_run() -> None:
    assert run_record(run(counts={"missing": 2}, progress=0.25, started_at=at(3))) == {
        "id": "run_1",
        "pipeline": "orders",
        "kind": "sweep",
        "state": "queued",
        "requested_at": "2026-11-24T10:00:01.123456Z",
        "requested_by": None,
        "started_at": "2026-11-24T10:00:03.123456Z",
        "ended_at": None,
        "progress": 0.25,
        "rate": None,
        "eta": None,
        "counts": {"missing": 2},
        "error": None,
        "request": {"content": True},
        "cancel_requested": False,
    }


def test_a_run_says_how_fast_it_is_and_when_it_will_have_ended_as_far_as_that_can_be_told() -> None:
    under_way = run(counts={"source_keys": 300, "target_keys": 290, "missing": 2}, progress=0.25, started_at=at(0))
    assert pace_of(under_way, at(10)) == (30.0, at(40))
    assert pace_of(replace(under_way, progress=None), at(10)) == (30.0, None), "nobody knows how much there is"
    assert pace_of(replace(under_way, ended_at=at(20)), at(1_000)) == (15.0, None), "of what has ended, over its own time"
    assert pace_of(replace(under_way, started_at=None), at(10)) == (None, None)
    assert pace_of(replace(under_way, counts={"records": 7}), at(0)) == (None, None)
    assert run_record(under_way, at(10))["eta"] == rfc3339(at(40))


def test_a_finding() -> None:
    assert finding_record(finding(finding=Finding.SLOT_LOST, is_hole=True, time_from=at(0), details={"slot": "s"})) == {
        "id": "finding_1",
        "pipeline": "orders",
        "finding": "slot_lost",
        "side": "expected",
        "feed": "shop.public.orders",
        "first_seen": "2026-11-24T10:00:01.123456Z",
        "last_seen": "2026-11-24T10:00:01.123456Z",
        "cleared_at": None,
        "message": "task 0 is FAILED",
        "remedy": None,
        "time_from": "2026-11-24T10:00:00.123456Z",
        "time_to": None,
        "is_hole": True,
        "covered_by": None,
        "details": {"slot": "s"},
    }


def test_a_pipeline() -> None:
    view = PipelineView(
        id="orders",
        status="ERROR",
        reasons=("1 open gaps",),
        consistent_through=None,
        source_watermark=at(1),
        target_watermark=None,
        delivered_through=None,
        pending_keys=3,
        in_transit_keys=2,
        oldest_in_transit=at(0),
        oldest_unsettled=None,
        gaps_open={"missing": 1},
        coverage=None,
        feeds=(FeedView(side="expected", topic="t", watermark=at(1), caught_up=True, lag=None, finding=None),),
        findings=(finding(),),
        last_sweep=run(),
        baseline=None,
        totals=Totals(expected=10, unverifiable={"store": 1}),
        read_at=at(2),
    )
    record = pipeline_record(view)
    contract = {
        "id",
        "status",
        "consistent_through",
        "source_watermark",
        "target_watermark",
        "pending_keys",
        "in_transit_keys",
        "oldest_in_transit",
        "gaps_open",
        "coverage",
        "feeds",
        "findings",
        "last_sweep",
    }
    assert contract <= set(record)
    assert record["feeds"] == [
        {
            "side": "expected",
            "topic": "t",
            "watermark": "2026-11-24T10:00:01.123456Z",
            "caught_up": True,
            "lag": None,
            "finding": None,
        }
    ]
    assert record["consistent_through"] is None
    assert record["last_sweep"]["id"] == "run_1"
    assert record["totals"]["unverifiable"] == {"store": 1}
    assert json.loads(encode(record)) == record


def test_an_audit_row_shows_no_canonical_bytes() -> None:
    row = AuditRow(
        id="a",
        at=at(1),
        actor="ada",
        action="gap_ack",
        pipeline="orders",
        key=b"\x01",
        key_fields={"id": 1},
        run_id=None,
        gap_id="g",
        outcome="done",
    )
    record = audit_record(row)
    assert record["key"] == {"id": 1}
    assert record["reason"] is None
    assert json.loads(encode(record)) == record


def test_a_change_of_a_gap_is_a_cloudevent() -> None:
    one = gap(pipeline="shop/orders ü")
    event = gap_event(one, "opened", at(5))
    assert {name: value for name, value in event.items() if name != "data"} == {
        "specversion": "1.0",
        "id": f"{one.id}/1",
        "source": "/gapwatch/pipelines/shop%2Forders%20%C3%BC",
        "type": "gapwatch.gap.opened.v1",
        "subject": one.id,
        "time": "2026-11-24T10:00:05.123456Z",
        "datacontenttype": "application/json",
    }
    assert event["data"] == gap_record(one)
    assert json.loads(encode(event)) == event


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_fields": {"id": 'a\u2028\x00"\\ü€😀'}, "note": "\x7f\n"},
        {"key_fields": {"id": "lone \ud800"}},
        {"key_fields": {"id": 10**40, "no": -(2**63) - 1}},
        {"key_fields": {"id": 1e16, "share": 1.5e-7}},
        {"evidence": ({"side": "source", "share": 1e22}, {"values": {"a": [Decimal("1.50"), None], 3: b"\x00"}})},
        {"evidence": ({"side": "source", "tables": ["a", "b"], "read": "present", "time": T0},)},
        {"state": State.RESOLVED, "resolution": Resolution.BACKFILLED, "resolved_at": at(9), "fields": ("a", "b.c")},
    ],
)
def test_a_change_is_published_byte_for_byte_as_its_record(changes: dict[str, Any]) -> None:
    one = gap(**changes)
    assert gap_event_bytes(one, "updated", at(5)) == encode(gap_event(one, "updated", at(5)))


def test_an_unknown_event_is_an_error_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        gap_event(gap(), "vanished", at(5))
