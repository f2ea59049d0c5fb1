"""Gaps, runs and findings as the tests of the ledger, of the records and of the API use them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import structs

from gapwatch.model.gap import AuditRow, Cause, Detector, Finding, FindingRecord, Gap, Kind, Run, RunKind, RunState, State
from gapwatch.ports import GapChange

T0 = datetime(2026, 11, 24, 10, 0, 0, 123456, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def gap(number: int = 1, **changes: Any) -> Gap:
    made = Gap(
        id=f"gap_{number:032x}",
        pipeline="orders",
        key=b"\x01" + number.to_bytes(8, "big"),
        key_fields={"id": number},
        target_id=str(number),
        kind=Kind.MISSING,
        cause=Cause.NEVER_WRITTEN,
        state=State.OPEN,
        detector=Detector.STREAM,
        event_time=at(number),
        first_seen=at(number + 1),
        confirmed_at=at(number + 1),
        evidence=({"side": "expected", "topic": "shop.public.orders", "partition": 0, "offset": number},),
        opened_by=(0, 1, number, 0),
    )
    return structs.replace(made, **changes)


def opening(one: Gap) -> GapChange:
    return GapChange(gap=one, against=None, event="opened")


def change(before: Gap, event: str, actor: str = "gapwatch", **changes: Any) -> GapChange:
    return GapChange(
        gap=structs.replace(before, revision=before.revision + 1, **changes), against=before.revision, event=event, actor=actor
    )


def run(number: int = 1, **changes: Any) -> Run:
    made = Run(
        id=f"run_{number}",
        pipeline="orders",
        kind=RunKind.SWEEP,
        state=RunState.QUEUED,
        requested_at=at(number),
        request={"content": True},
    )
    return replace(made, **changes)


def finding(number: int = 1, **changes: Any) -> FindingRecord:
    made = FindingRecord(
        id=f"finding_{number}",
        pipeline="orders",
        finding=Finding.CONNECTOR_FAILED,
        side="expected",
        feed="shop.public.orders",
        first_seen=at(number),
        last_seen=at(number),
        message="task 0 is FAILED",
    )
    return replace(made, **changes)


def hole(time_from: datetime, time_to: datetime, **changes: Any) -> FindingRecord:
    """Return a stretch of the stream that nobody can judge, seen when it ended."""
    made = finding(
        id="hole_1",
        finding=Finding.INGEST_HOLE,
        feed="t",
        first_seen=time_to,
        last_seen=time_to,
        message="m",
        remedy="r",
        time_from=time_from,
        time_to=time_to,
        is_hole=True,
    )
    return replace(made, **changes)


def audit_row(number: int, **changes: Any) -> AuditRow:
    row = AuditRow(
        id=f"audit_{number}",
        at=at(number),
        actor="ada",
        action="backfill_write",
        pipeline="orders",
        key=b"k%d" % number,
        key_fields={"id": number},
        run_id="run_1",
        gap_id="gap_1",
        outcome="written",
        before=None,
        after="ff" * 16,
    )
    return structs.replace(row, **changes)
