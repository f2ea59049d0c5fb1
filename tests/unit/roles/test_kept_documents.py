"""``target.keep``: a document of an old row may be gone. That is on record with its cause, once, and asks for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from gapwatch.core.backfill import Step, decide
from gapwatch.core.confirm import Difference
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Cause, Gap, Kind, Resolution, State
from gapwatch.ports import GapFilter
from tests.simulation.stores import Rig, VirtualClock, spec_of_rig
from tests.unit.roles.test_sweeper import ledger, swept

__all__ = ["ledger"]

NOW = VirtualClock().now()
KEEP = timedelta(days=30)
OLD, YOUNG = NOW - timedelta(days=31), NOW - timedelta(days=29)


def rig_of(**rows: Any) -> Rig:
    """Return rows (`r1`: row 1) by the time of their last write; none of them has a document."""
    spec = spec_of_rig()
    target = replace(spec.target, keep_seconds=KEEP.total_seconds())
    rig = Rig(spec=replace(spec, source=replace(spec.source, changed_at="changed"), target=target))
    for name, changed in rows.items():
        rig.source_writes(int(name[1:]), changed=changed)
        rig.sink_loses(int(name[1:]))
    return rig


def found(ledger: SqlLedger) -> dict[int, Gap]:
    return {gap.key_fields["id"]: gap for gap in ledger.gaps(GapFilter(), limit=500).gaps}


def test_m2_what_the_target_need_not_keep_is_skipped_by_policy_and_on_record_once(ledger: SqlLedger) -> None:
    rig = rig_of(r1=OLD, r2=YOUNG)
    run = swept(rig, ledger)
    assert (run.counts["differences"], run.counts["skipped_by_policy"]) == (1, 1)
    assert ledger.open_gaps_for(rig.spec.id, [rig.key(1)]) == {}
    gaps = found(ledger)
    assert {key: (gap.kind, gap.cause, gap.state, gap.resolution) for key, gap in gaps.items()} == {
        1: (Kind.MISSING, Cause.SKIPPED_BY_POLICY, State.RESOLVED, Resolution.ACCEPTED),
        2: (Kind.MISSING, Cause.UNKNOWN, State.OPEN, None),
    }
    (source,) = [row for row in gaps[1].evidence if row["side"] == "source"]
    assert source["changed_at"] == OLD.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert swept(rig, ledger).counts["skipped_by_policy"] == 1
    assert found(ledger) == gaps, "another sweep adds nothing"


def test_a_gap_whose_row_grows_too_old_is_accepted(ledger: SqlLedger) -> None:
    rig = rig_of(r1=YOUNG)
    swept(rig, ledger)
    (before,) = found(ledger).values()
    rig.source[1] = {**rig.source[1], "changed": OLD}  # two days later, as it were
    swept(rig, ledger)
    (after,) = found(ledger).values()
    assert (after.id, after.first_seen) == (before.id, before.first_seen)
    assert (before.state, after.state, after.resolution) == (State.OPEN, State.RESOLVED, Resolution.ACCEPTED)
    assert (after.cause, after.note) == (before.cause, "its document may be gone: target.keep"), "why it was missing is known"


def test_an_old_row_that_is_written_again_is_expected_again(ledger: SqlLedger) -> None:
    rig = rig_of(r1=OLD)
    swept(rig, ledger)
    rig.source_writes(1, changed=NOW)
    rig.sink_loses(1)
    assert swept(rig, ledger).counts["differences"] == 1
    assert sorted(gap.state for gap in ledger.gaps(GapFilter(), limit=500).gaps) == [State.OPEN, State.RESOLVED]


def test_what_an_old_document_holds_is_compared_all_the_same(ledger: SqlLedger) -> None:
    """Only that it is gone is explained; one that is there is to be right."""
    rig = rig_of(r1=OLD)
    rig.stranger_writes(1, {"_id": 1, "total": -1, "note": "wrong"})
    swept(rig, ledger)
    (gap,) = found(ledger).values()
    assert (gap.kind, gap.state) == (Kind.MISMATCH, State.OPEN)


@pytest.mark.parametrize(
    ("changed", "skipped"),
    [
        (OLD.replace(tzinfo=None), True),  # without a zone: UTC
        (YOUNG.replace(tzinfo=None), False),
        ((NOW - KEEP).date() - timedelta(days=1), True),
        ((NOW - KEEP).date(), False),  # that day is not over for so long
        (None, False),
        ("infinity", False),
        (12, False),
    ],
)
def test_the_age_of_a_row_is_what_its_column_proves(
    ledger: SqlLedger, changed: datetime | date | str | None, skipped: bool
) -> None:
    assert swept(rig_of(r1=changed), ledger).counts.get("skipped_by_policy", 0) == skipped


def test_without_keep_an_old_row_is_like_any_other(ledger: SqlLedger) -> None:
    rig = rig_of(r1=OLD)
    rig.spec = replace(rig.spec, target=replace(rig.spec.target, keep_seconds=None))
    rig.__post_init__()
    assert swept(rig, ledger).counts["differences"] == 1


def test_a_backfill_does_not_write_what_the_target_would_not_keep() -> None:
    skipped = Difference(kind=Kind.MISSING, cause=Cause.SKIPPED_BY_POLICY, fields=())
    decision = decide(skipped, frozenset({Kind.MISSING}), planned=Kind.MISSING)
    assert (decision.step, decision.reason) == (Step.LEAVE, "the target does not keep documents that old")
    assert OLD.tzinfo is UTC
