"""The contract of ports.Ledger, on SQLite and on a real Postgres."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import text

from gapwatch.errors import ConflictError, NotFoundError, UsageError
from gapwatch.ledger import Limit, Retention, SqlLedger
from gapwatch.ledger.gaps import BYTES_AT_ONCE_MAX, CHANGES_AT_ONCE_MAX, CHANGES_MAX, _transactions
from gapwatch.model.gap import (
    Cause,
    Detector,
    Finding,
    Gap,
    GapBurst,
    GapName,
    GapSummary,
    Kind,
    RepairPressure,
    RepairRecord,
    Resolution,
    Run,
    RunKind,
    RunState,
    State,
    SweepPart,
)
from gapwatch.ports import GapChange, GapFilter, Lease, Ledger
from tests.ledger_samples import T0, at, audit_row, change, finding, gap, opening, run

pytestmark = pytest.mark.integration
Opener = Callable[[str], SqlLedger]


def as_port(ledger: SqlLedger) -> Ledger:
    """mypy proves here that the class implements the port."""
    return ledger


def expire_leases(ledger: SqlLedger) -> None:
    """Move every lease into the past, as the database's clock would by itself."""
    with ledger._db.engine.begin() as connection:
        connection.execute(text("UPDATE leases SET expires_us = 1"))
        for table in ("runs", "sweep_parts"):
            connection.execute(text(f"UPDATE {table} SET lease_until = 1 WHERE lease_until IS NOT NULL"))


# repairs


def record(number: int, **changes: Any) -> RepairRecord:
    made = RepairRecord(
        gap_id=gap(number).id,
        pipeline="orders",
        attempts=1,
        tries=1,
        outcome="failed",
        reason="document failed validation",
        first_at=at(100 + number),
        last_at=at(100 + number),
        next_at=at(130),
        run_id="run_1",
    )
    return replace(made, **changes)


def numbers(gaps: Sequence[Gap]) -> list[int]:
    return [one.key_fields["id"] for one in gaps]


def test_what_may_be_repaired_is_open_of_these_kinds_and_does_not_wait(ledger: SqlLedger) -> None:
    states = {4: State.ACKNOWLEDGED, 5: State.SNOOZED, 6: State.REPAIRING}
    made = [gap(number, state=states.get(number, State.OPEN)) for number in range(1, 8)]
    made += [gap(8, kind=Kind.EXTRA), gap(9, pipeline="other")]
    ledger.store_gaps([opening(one) for one in made])
    ledger.store_repairs([record(1), record(2, next_at=None), record(3, next_at=at(120))])
    kinds = frozenset({Kind.MISSING, Kind.STALE})
    assert numbers(as_port(ledger).repairable("orders", kinds, now=at(125), limit=10)) == [3, 6, 7]
    assert numbers(ledger.repairable("orders", kinds, now=at(130), limit=2)) == [1, 3]
    assert numbers(ledger.repairable("orders", [Kind.EXTRA], now=at(125), limit=10)) == [8]
    assert ledger.repair_counts() == {("orders", False): 2, ("orders", True): 1}


def test_pressure_counts_what_waits_and_what_one_actor_did(ledger: SqlLedger) -> None:
    over: dict[str, Any] = {"state": State.RESOLVED, "resolution": Resolution.BACKFILLED, "resolved_at": at(300)}
    ledger.store_gaps([opening(gap(number)) for number in range(1, 6)])
    ledger.store_gaps([opening(gap(number, **over)) for number in range(6, 9)])
    ledger.store_repairs([record(1, next_at=None), record(2)])
    mine: dict[str, Any] = {"action": "w", "actor": "auto"}
    rows = [audit_row(10 * n + again, key=gap(n).key, gap_id=gap(n).id, **mine) for n in (3, 6, 7, 8) for again in range(2)]
    rows += [audit_row(90, key=gap(2).key, gap_id=gap(2).id, outcome="failed", **mine)]
    rows += [audit_row(91, gap_id=gap(8).id, action="w", actor="ada"), audit_row(92, outcome="failed", action="x", actor="auto")]
    ledger.audit(rows)
    where: dict[str, Any] = {"kinds": [Kind.MISSING], **mine}
    assert ledger.repair_pressure("orders", confirmed_since=None, done_since=at(0), **where) == RepairPressure(
        waiting=4, handled=5, failed=1, written=3
    )
    assert ledger.repair_pressure("orders", confirmed_since=at(5), done_since=at(75), **where) == RepairPressure(
        waiting=2, handled=2, failed=1, written=1
    )


def test_a_failed_repair_is_kept_once_with_its_newest_reason_and_goes_with_its_gap(ledger: SqlLedger) -> None:
    over: dict[str, Any] = {"state": State.RESOLVED, "resolution": Resolution.MANUAL, "resolved_at": at(300)}
    ledger.store_gaps([opening(gap(number)) for number in (1, 2)])
    ledger.store_repairs([record(1), record(2)])
    ledger.store_repairs([record(1, attempts=2, reason="too large", last_at=at(200), next_at=None)])
    first, second = ledger.repairs("orders")
    assert first == record(1, attempts=2, reason="too large", last_at=at(200), next_at=None, gap=gap(1))
    assert second == record(2, gap=gap(2))
    assert [one.gap_id for one in ledger.repairs(given_up=True)] == [gap(1).id]
    assert [one.gap_id for one in ledger.repairs(given_up=False)] == [gap(2).id]
    assert [one.gap_id for one in ledger.repairs(gap_ids=[gap(2).id, "gap_unknown"])] == [gap(2).id]
    assert ledger.repairs("other") == []
    ledger.store_gaps([change(gap(1), "resolved", **over)])
    assert [one.gap_id for one in ledger.repairs("orders")] == [gap(2).id]
    ledger.forget_resolved_repairs("orders")
    ledger.forget_repairs([gap(2).id])
    ledger.store_gaps([change(gap(1, revision=2), "reopened")])
    assert ledger.repairs("orders") == [], "one that opens again begins anew"
    ledger.store_repairs([record(1)])
    ledger.store_gaps([change(gap(1, revision=3), "resolved", **over)])
    assert ledger.prune(Retention(gaps=Limit(age=timedelta(seconds=1))), now=at(1_000))["gaps"] == 1


# gaps


def test_a_gap_comes_back_exactly_as_it_was_stored(ledger: SqlLedger) -> None:
    stored = gap(
        key=bytes(range(256)) * 20,  # longer than what a Postgres index row may hold
        key_fields={"id": 2**70, "name": "nul \x00 and ünïcode"},
        fields=("total", "placed"),
        evidence=({"side": "expected", "offset": 2**63 - 1, "values": {"total": "1e23", "text": "\x00"}},),
        held_since=at(-5),
        note="who knows",
    )
    assert ledger.store_gaps([opening(stored)]) == [True]
    assert as_port(ledger).gap(stored.id) == stored
    assert ledger.open_gaps_for("orders", [stored.key, b"other"]) == {stored.key: stored}
    assert ledger.gap("gap_unknown") is None


def test_text_that_a_database_cannot_hold_is_shown_by_a_sign(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap(target_id="a\x00b", note="lone \ud800"))])
    stored = ledger.gap(gap().id)
    assert stored is not None
    assert stored.target_id == "a\u2400b"
    assert stored.note == "lone ?"


def test_gap_row_life_row_and_outbox_row_are_stored_together(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap())])
    ledger.store_gaps([change(gap(), "acknowledged", actor="ada", state=State.ACKNOWLEDGED, note="known")])
    history = ledger.gap_history(gap().id)
    assert [(row["event"], row["actor"], row["revision"], row["state"]) for row in history] == [
        ("opened", "gapwatch", 1, "open"),
        ("acknowledged", "ada", 2, "acknowledged"),
    ]
    events = [json.loads(row.payload) for row in ledger.outbox(10)]
    assert [(event["type"], event["id"]) for event in events] == [
        ("gapwatch.gap.opened.v1", f"{gap().id}/1"),
        ("gapwatch.gap.acknowledged.v1", f"{gap().id}/2"),
    ]
    assert [row.key for row in ledger.outbox(10)] == [gap().id] * 2


def test_a_change_against_an_overtaken_revision_is_refused_alone(ledger: SqlLedger) -> None:
    first, second = gap(1), gap(2)
    ledger.store_gaps([opening(first), opening(second)])
    ledger.store_gaps([change(first, "acknowledged", state=State.ACKNOWLEDGED)])
    late = change(first, "resolved", state=State.RESOLVED, resolution=Resolution.MANUAL, resolved_at=at(9))
    fine = change(second, "resolved", state=State.RESOLVED, resolution=Resolution.LATE_ARRIVAL, resolved_at=at(9))
    assert ledger.store_gaps([late, fine]) == [False, True]
    kept = ledger.gap(first.id)
    assert kept is not None
    assert kept.state is State.ACKNOWLEDGED
    assert len(ledger.outbox(10)) == 4, "a refused change tells nobody"
    assert len(ledger.gap_history(first.id)) == 2


def test_a_change_of_a_gap_that_is_not_there_is_refused(ledger: SqlLedger) -> None:
    assert ledger.store_gaps([change(gap(), "updated")]) == [False]
    assert ledger.outbox(10) == []


def test_a_key_has_at_most_one_open_gap(ledger: SqlLedger) -> None:
    first, rival = gap(1), structs.replace(gap(2), key=gap(1).key)
    assert ledger.store_gaps([opening(first), opening(rival)]) == [True, False]
    resolved = change(first, "resolved", state=State.RESOLVED, resolution=Resolution.LATE_ARRIVAL, resolved_at=at(9))
    assert ledger.store_gaps([resolved]) == [True]
    assert ledger.store_gaps([opening(rival)]) == [True], "a resolved one makes room"
    again = change(resolved.gap, "reopened", state=State.OPEN, resolution=None, resolved_at=None)
    assert ledger.store_gaps([again]) == [False], "and cannot open beside the new one"
    assert ledger.store_gaps([opening(structs.replace(gap(3), key=first.key, pipeline="others"))]) == [True], "per pipeline"


def test_trap_5_storing_the_same_opening_again_changes_nothing(ledger: SqlLedger) -> None:
    assert ledger.store_gaps([opening(gap())]) == [True]
    assert ledger.store_gaps([opening(gap())]) == [False]
    assert ledger.gap_counts() == {("orders", "missing", "stream"): 1}
    assert len(ledger.outbox(10)) == 1


def test_lesson_31_many_writers_open_one_gap_once(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(4)]
    barrier = threading.Barrier(len(ledgers))

    def open_all(number: int) -> int:
        barrier.wait(timeout=90)
        # each worker has gap ids of its own for the same keys, and an order of its own
        changes = [opening(structs.replace(gap(key * 10 + number), key=gap(key).key)) for key in range(1, 41)]
        ordered = changes if number % 2 else changes[::-1]
        return sum(ledgers[number].store_gaps(ordered))

    with ThreadPoolExecutor(len(ledgers)) as pool:
        opened_by = list(pool.map(open_all, range(len(ledgers))))
    assert sum(opened_by) == 40
    assert ledgers[0].count_gaps(GapFilter(pipeline="orders")) == 40
    assert sum(ledgers[0].gap_counts().values()) == 40
    assert ledgers[0].outbox_size() == 40


def test_many_writers_change_one_gap_one_at_a_time(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(4)]
    ledgers[0].store_gaps([opening(gap())])

    def touch(ledger: SqlLedger) -> int:
        stood = 0
        for _ in range(10):
            current = ledger.gap(gap().id)
            assert current is not None
            stood += ledger.store_gaps([change(current, "updated", occurrences=current.occurrences + 1)])[0]
        return stood

    with ThreadPoolExecutor(len(ledgers)) as pool:
        stood = sum(pool.map(touch, ledgers))
    final = ledgers[0].gap(gap().id)
    assert final is not None
    assert final.revision == stood + 1
    assert final.occurrences == stood + 1
    assert [row["revision"] for row in ledgers[0].gap_history(gap().id)] == list(range(1, stood + 2))


def test_more_changes_than_one_transaction_holds(ledger: SqlLedger) -> None:
    count = CHANGES_AT_ONCE_MAX + 100
    changes = [opening(gap(number)) for number in range(1, count + 1)]
    assert ledger.store_gaps(changes) == [True] * count
    assert ledger.open_gaps_for("orders", [item.gap.key for item in changes]) == {item.gap.key: item.gap for item in changes}
    assert ledger.gaps_by_id([item.gap.id for item in changes]) == {item.gap.id: item.gap for item in changes}
    assert ledger.outbox_size() == count
    assert ledger.gap_counts() == {("orders", "missing", "stream"): count}


def rows_of(ledger: SqlLedger) -> list[tuple[Any, ...]]:
    """All that the ledger holds of gaps, but for the times at which it was stored."""
    queries = (
        "SELECT * FROM gaps ORDER BY id",
        "SELECT gap_id, event, actor, revision, kind, cause, state, resolution, note FROM gap_life ORDER BY gap_id, revision",
        "SELECT key FROM outbox ORDER BY key",
        "SELECT * FROM gap_totals ORDER BY what, label",
    )
    with ledger._db.engine.connect() as connection:
        return [tuple(row) for query in queries for row in connection.execute(text(query))]


FULL: dict[str, Any] = {
    "target_id": "a\x00b",
    "note": "lone \ud800",
    "fields": ("a", "b"),
    "held_since": at(1),
    "key_fields": {"id": "ü"},
}


def test_many_changes_are_stored_as_each_of_them_alone(ledger_url: str, opened: Opener) -> None:
    """By one statement, or each by its own because one of them is refused: the rows are the same."""
    ledger = opened(ledger_url)
    many = [gap(number, **FULL) for number in range(1, 6)]
    for at_once in (True, False):
        made = many if at_once else [structs.replace(one, id=f"x{one.id}", pipeline="others") for one in many]
        steps: list[list[GapChange]] = [
            [opening(one) for one in made],
            [change(one, "updated", kind=Kind.MISMATCH, event_time=None, opened_by=None) for one in made],
        ]
        steps.append([moved(step.gap, "repairing", state=State.REPAIRING) for step in steps[-1]])
        steps.append(
            [
                moved(step.gap, "resolved", state=State.RESOLVED, resolution=Resolution.BACKFILLED, resolved_at=at(9))
                for step in steps[-1]
            ]
        )
        for step in steps:
            if at_once:
                assert ledger.store_gaps(step) == [True] * len(step)
            else:
                assert [ledger.store_gaps([one, refused()]) for one in step] == [[True, False]] * len(step)
    rows = [str(row) for row in rows_of(ledger)]
    assert [row for row in rows if "others" not in row and "xgap" not in row] == [
        row.replace("xgap", "gap").replace("others", "orders") for row in rows if "others" in row or "xgap" in row
    ]


def moved(before: Gap, event: str, **changes: Any) -> GapChange:
    return structs.replace(change(before, event, **changes), state_only=True)


def refused() -> GapChange:
    return change(gap(999), "updated")


@pytest.mark.parametrize("state_only", [False, True])
@pytest.mark.parametrize("other", ["overtaken", "resolved", "unknown"])
def test_one_refused_change_holds_up_no_other(ledger: SqlLedger, state_only: bool, other: str) -> None:
    many = [gap(number) for number in range(1, 5)]
    ledger.store_gaps([opening(one) for one in (many[:-1] if other == "unknown" else many)])
    if other == "overtaken":
        ledger.store_gaps([change(many[-1], "updated")])
    elif other == "resolved":
        ledger.store_gaps([change(many[-1], "resolved", state=State.RESOLVED, resolution=Resolution.MANUAL, resolved_at=at(9))])
    steps = [structs.replace(change(one, "repairing", state=State.REPAIRING), state_only=state_only) for one in many]
    told = ledger.outbox_size()
    assert ledger.store_gaps(steps) == [True, True, True, False]
    assert ledger.outbox_size() == told + 3
    assert [ledger.gap(one.id) for one in many[:-1]] == [step.gap for step in steps[:-1]]


def test_one_refused_change_of_very_many_holds_up_no_other(ledger: SqlLedger) -> None:
    """More than are looked at singly in one transaction: what each of them became is told in their order."""
    many = [gap(number) for number in range(1, 3 * CHANGES_MAX)]
    ledger.store_gaps([opening(one) for one in many])
    overtaken = {5, CHANGES_MAX, 2 * CHANGES_MAX + 1}
    ledger.store_gaps([change(many[at], "updated") for at in overtaken])
    told = ledger.outbox_size()
    stood = ledger.store_gaps([change(one, "repairing", state=State.REPAIRING) for one in many])
    assert [at for at, stands in enumerate(stood) if not stands] == sorted(overtaken)
    assert ledger.outbox_size() == told + len(many) - len(overtaken)


def test_a_transaction_is_no_heavier_than_its_limit() -> None:
    shown = [{"side": "source", "values": {"a": "x" * (BYTES_AT_ONCE_MAX // 3), "n": 5}}]
    changes = [opening(gap(number, evidence=shown)) for number in range(1, 8)]
    assert [len(part) for part in _transactions(changes)] == [2, 2, 2, 1]
    alone = opening(gap(9, evidence=[{"side": "source", "values": {"a": "x" * 2 * BYTES_AT_ONCE_MAX}}]))
    assert [len(part) for part in _transactions([alone, alone])] == [1, 1]
    light = [opening(gap(number)) for number in range(CHANGES_AT_ONCE_MAX + 1)]
    assert [len(part) for part in _transactions(light)] == [CHANGES_AT_ONCE_MAX, 1]
    assert list(_transactions([])) == []


def test_of_two_changes_of_one_gap_the_second_rests_on_the_first(ledger: SqlLedger) -> None:
    first = opening(gap(1))
    second = change(first.gap, "acknowledged", state=State.ACKNOWLEDGED)
    assert ledger.store_gaps([first, opening(gap(2)), second]) == [True] * 3
    assert ledger.gap(gap(1).id) == second.gap
    assert [row["event"] for row in ledger.gap_history(gap(1).id)] == ["opened", "acknowledged"]


def test_an_audit_row_comes_back_as_it_was_stored(ledger: SqlLedger) -> None:
    rows = [
        audit_row(1, key=None, key_fields=None, run_id=None, gap_id=None, after=None, reason="lone \ud800"),
        audit_row(2, key_fields={"id": "ü\x00"}, before="b", reason="c"),
    ]
    ledger.audit(rows)
    ledger.audit(rows)
    assert ledger.audit_rows() == [rows[1], structs.replace(rows[0], reason="lone ?")]


def test_paging_keeps_its_place_while_gaps_come_and_go(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap(number)) for number in range(1, 26)])
    same_moment = [structs.replace(gap(number), first_seen=at(100)) for number in range(30, 40)]
    ledger.store_gaps([opening(item) for item in same_moment])
    seen: list[str] = []
    page = ledger.gaps(GapFilter(pipeline="orders"), limit=4)
    while len(seen) < 100:
        seen += [item.id for item in page.gaps]
        ledger.store_gaps([opening(structs.replace(gap(1000 + len(seen)), first_seen=at(500)))])  # newer than everything
        known = ledger.gap(seen[-1])
        assert known is not None
        ledger.store_gaps([change(known, "resolved", state=State.RESOLVED, resolution=Resolution.MANUAL, resolved_at=at(1))])
        if page.next_cursor is None:
            break
        page = ledger.gaps(GapFilter(pipeline="orders"), limit=4, cursor=page.next_cursor)
    assert len(seen) == len(set(seen)) == 35
    assert set(seen) == {gap(number).id for number in [*range(1, 26), *range(30, 40)]}


def test_the_last_page_has_no_cursor_and_a_wrong_cursor_is_refused(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap(number)) for number in range(1, 5)])
    assert ledger.gaps(GapFilter(), limit=4).next_cursor is None
    assert ledger.gaps(GapFilter(), limit=3).next_cursor is not None
    for wrong in ("", "x", "!!!", "W10", "WzEsMl0", "é"):
        with pytest.raises(UsageError, match="cursor"):
            ledger.gaps(GapFilter(), cursor=wrong)
    with pytest.raises(UsageError):
        ledger.gaps(GapFilter(), limit=0)


def test_every_filter_narrows(ledger: SqlLedger) -> None:
    rows = [
        gap(1),
        gap(2, kind=Kind.STALE),
        gap(3, state=State.ACKNOWLEDGED),
        gap(4, pipeline="others"),
        gap(5, confirmed_at=at(1000)),
    ]
    ledger.store_gaps([opening(row) for row in rows])

    def found(**where: Any) -> list[int]:
        return sorted(item.key_fields["id"] for item in ledger.gaps(GapFilter(**where)).gaps)

    assert found() == [1, 2, 3, 4, 5]
    assert found(pipeline="others") == [4]
    assert found(kinds=("stale",)) == [2]
    assert found(kinds=(Kind.STALE, Kind.MISSING), pipeline="orders") == [1, 2, 3, 5]
    assert found(states=("acknowledged",)) == [3]
    assert found(causes=("unknown",)) == []
    assert found(since=at(1000)) == [5]
    assert found(key=gap(2).key) == [2]


def test_lesson_3_counts_are_not_cut_by_a_limit(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap(number)) for number in range(1, 251)])
    assert len(ledger.gaps(GapFilter(pipeline="orders"), limit=100).gaps) == 100
    assert ledger.count_gaps(GapFilter(pipeline="orders")) == 250
    assert ledger.gap_summary("orders").open_by_kind == {"missing": 250}
    assert ledger.counts_by_state("orders")[State.OPEN] == 250


def test_the_summary_of_a_pipeline_without_gaps(ledger: SqlLedger) -> None:
    assert ledger.gap_summary("orders") == GapSummary()


def test_the_summary_says_what_holds_consistent_through(ledger: SqlLedger) -> None:
    rows = [
        gap(1, kind=Kind.EXTRA, event_time=None, held_since=at(-100), state=State.SNOOZED),
        gap(2, state=State.REPAIRING, confirmed_at=at(40)),
        gap(3, state=State.ACKNOWLEDGED, confirmed_at=at(5)),
        gap(4, confirmed_at=at(50)),
        gap(5, event_time=at(-900), pipeline="others"),
    ]
    ledger.store_gaps([opening(row) for row in rows])
    assert ledger.gap_summary("orders") == GapSummary(
        open_by_kind={"missing": 3, "extra": 1}, alerting=2, oldest_alerting=at(40), holding_since=at(-100)
    )
    done: dict[str, Any] = {"state": State.RESOLVED, "resolution": Resolution.ACCEPTED, "resolved_at": at(60)}
    ledger.store_gaps([change(rows[0], "resolved", **done)])
    assert ledger.gap_summary("orders").holding_since == at(2), "an accepted gap no longer holds"
    names = ("none", "orders", "others")
    assert ledger.gap_summaries(names) == {name: ledger.gap_summary(name) for name in names}
    assert ledger.gap_summary("none") == GapSummary()
    ledger.store_gaps([opening(gap(6, event_time=None, held_since=None))])
    summary = ledger.gap_summary("orders")
    assert summary.holding_unknown
    assert summary.holding_since == at(2)
    ledger.store_gaps([opening(gap(7, event_time=at(30), held_since=at(1)))])
    assert ledger.gap_summary("orders").holding_since == at(1), "the target was wrong before the write that opened it"


def test_what_is_on_record_only_was_not_detected_and_nobody_accepted_it(ledger: SqlLedger) -> None:
    row = gap(1, first_seen=at(10), cause=Cause.SKIPPED_BY_POLICY)
    done = structs.replace(row, state=State.RESOLVED, resolution=Resolution.ACCEPTED, resolved_at=at(60), revision=1)
    told = GapChange(gap=done, against=None, event="resolved")
    assert [*ledger.store_gaps([told]), *ledger.store_gaps([told])] == [True, False]
    assert ledger.gap_counts() == {}
    assert ledger.resolution_counts() == {("orders", "accepted"): 1}
    assert ledger.accepted_gaps(["orders"], at(0))["orders"] == 0
    assert [found.cause for found in ledger.gaps(GapFilter()).gaps] == [Cause.SKIPPED_BY_POLICY]


def test_accepted_gaps_are_counted_by_when_the_stream_found_them(ledger: SqlLedger) -> None:
    rows = [gap(1, first_seen=at(10)), gap(2, first_seen=at(10)), gap(3, first_seen=at(-10)), gap(4, first_seen=at(10))]
    rows += [gap(5, first_seen=at(10), detector=Detector.SWEEP), gap(6, first_seen=at(10), pipeline="others")]
    ledger.store_gaps([opening(row) for row in rows])
    done: dict[str, Any] = {"state": State.RESOLVED, "resolved_at": at(60)}
    ledger.store_gaps([change(row, "resolved", resolution=Resolution.ACCEPTED, **done) for row in rows if row.id != rows[3].id])
    ledger.store_gaps([change(rows[3], "resolved", resolution=Resolution.MANUAL, **done)])
    assert ledger.accepted_gaps(["orders"], at(0))["orders"] == 2
    assert ledger.accepted_gaps(["orders", "others", "none"], at(-20)) == {"orders": 3, "others": 1, "none": 0}


def test_m18_a_burst_counts_what_is_open_since_and_shows_the_first_of_it(ledger: SqlLedger) -> None:
    rows = [gap(number, first_seen=at(number)) for number in range(1, 13)]
    rows += [gap(20, kind=Kind.STALE, first_seen=at(30)), gap(21, pipeline="others", first_seen=at(31))]
    ledger.store_gaps([opening(row) for row in rows])
    done: dict[str, Any] = {"state": State.RESOLVED, "resolution": Resolution.LATE_ARRIVAL, "resolved_at": at(60)}
    ledger.store_gaps([change(rows[5], "resolved", **done)])
    found = ledger.gap_burst("orders", at(3), samples=4)
    assert found.by_kind == {"missing": 9, "stale": 1}
    assert (found.count, found.since) == (10, at(3))
    assert [one["gap"] for one in found.samples] == [rows[number].id for number in (2, 3, 4, 6)]
    assert found.samples[0]["key"] == rows[2].key_fields
    assert ledger.gap_burst("orders", at(1000), samples=4) == GapBurst()


def test_totals_count_each_opening_and_each_resolution_once(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap(1)), opening(gap(2, kind=Kind.STALE))])
    done: dict[str, Any] = {"state": State.RESOLVED, "resolution": Resolution.BACKFILLED, "resolved_at": at(60)}
    closing = change(gap(1), "resolved", **done)
    assert ledger.store_gaps([closing, closing]) == [True, False]
    noted = change(closing.gap, "updated", note="after the fact")
    ledger.store_gaps([noted])
    assert ledger.resolution_counts() == {("orders", "backfilled"): 1}
    ledger.store_gaps([change(noted.gap, "reopened", state=State.OPEN, resolution=None, resolved_at=None)])
    assert ledger.gap_counts() == {("orders", "missing", "stream"): 2, ("orders", "stale", "stream"): 1}


def test_lesson_24_the_outbox_keeps_order_and_forgets_only_what_is_done(ledger: SqlLedger) -> None:
    ledger.store_gaps([opening(gap(1))])
    ledger.store_gaps([change(gap(1), "updated", note="one")])
    ledger.store_gaps([opening(gap(2))])
    rows = ledger.outbox(2)
    assert [json.loads(row.payload)["id"] for row in rows] == [f"{gap(1).id}/1", f"{gap(1).id}/2"]
    ledger.outbox_done([row.id for row in rows])
    ledger.outbox_done([row.id for row in rows])
    assert [row.key for row in ledger.outbox(10)] == [gap(2).id]
    last = ledger.outbox(10)[0].id
    ledger.outbox_done([last])
    ledger.store_gaps([opening(gap(3))])
    assert ledger.outbox(10)[0].id > last, "numbers are never given twice"


# findings and unverifiable keys


def test_a_finding_is_new_once_and_then_refreshed(ledger: SqlLedger) -> None:
    assert ledger.raise_finding(finding(time_from=at(5), time_to=at(6)))
    assert not ledger.raise_finding(finding(last_seen=at(50), message="still", time_from=at(3), time_to=at(9)))
    assert not ledger.raise_finding(finding(last_seen=at(20), message="", time_from=at(4)))
    assert ledger.findings("orders") == [finding(last_seen=at(50), message="still", time_from=at(3), time_to=at(9))]
    assert ledger.findings("others") == []


def test_a_cleared_finding_is_kept_and_opens_again(ledger: SqlLedger) -> None:
    ledger.raise_finding(finding())
    ledger.clear_finding("finding_1", at=at(60))
    ledger.clear_finding("finding_1", at=at(99))
    ledger.clear_finding("unknown", at=at(99))
    assert ledger.findings() == []
    assert [record.cleared_at for record in ledger.findings(open_only=False)] == [at(60)]
    assert ledger.raise_finding(finding(first_seen=at(70), last_seen=at(70)))
    assert [record.first_seen for record in ledger.findings("orders")] == [at(70)]
    assert len(ledger.findings(open_only=False)) == 2


def test_a_hole_that_a_sweep_covered_stays_covered_when_it_is_told_again(ledger: SqlLedger) -> None:
    hole = finding(finding=Finding.INGEST_HOLE, is_hole=True, time_from=at(1), time_to=at(10))
    assert ledger.raise_finding(hole)
    ledger.clear_finding(hole.id, at=at(20), covered_by="run_1")
    assert not ledger.raise_finding(hole), "the suspects topic may tell it twice"
    assert ledger.findings("orders") == []
    assert ledger.raise_finding(replace(hole, time_to=at(11))), "but what goes beyond the covered range is new"
    assert [record.covered_by for record in ledger.findings(open_only=False)] == ["run_1", None]


def test_findings_of_other_feeds_and_sides_are_others(ledger: SqlLedger) -> None:
    assert ledger.raise_finding(finding())
    assert ledger.raise_finding(finding(side="observed"))
    assert ledger.raise_finding(finding(feed="other"))
    assert ledger.raise_finding(finding(pipeline="others"))
    assert len(ledger.findings("orders")) == 3


def test_unverifiable_keys_hold_from_their_oldest_and_are_cleared_by_their_newest_write(ledger: SqlLedger) -> None:
    assert ledger.unverifiable_oldest("orders") is None
    ledger.add_unverifiable("orders", b"a", at(10), "store")
    ledger.add_unverifiable("orders", b"a", at(50), "store")
    ledger.add_unverifiable("orders", b"b", at(20), "store")
    ledger.add_unverifiable("others", b"c", at(1), "store")
    assert ledger.unverifiable_oldest("orders") == at(10)
    assert ledger.clear_unverifiable("orders", before=at(30)) == 1
    assert ledger.unverifiable_oldest("orders") == at(10), "the sweep of 30 did not see the write of 50"
    assert ledger.clear_unverifiable("orders", before=at(51)) == 1
    assert ledger.unverifiable_oldest("orders") is None
    assert ledger.unverifiable_oldest("others") == at(1)
    assert ledger.oldest_unverifiable(["orders", "others"]) == {"others": at(1)}


# runs


def test_lesson_39_a_second_run_of_one_pipeline_and_kind_is_refused_with_the_running_id(ledger: SqlLedger) -> None:
    ledger.create_run(run(1))
    with pytest.raises(ConflictError) as refused:
        ledger.create_run(run(2))
    assert refused.value.running_id == "run_1"
    ledger.create_run(run(3, kind=RunKind.BACKFILL))
    ledger.create_run(run(4, pipeline="others"))
    taken = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert taken is not None
    with pytest.raises(ConflictError):
        ledger.create_run(run(5))
    ledger.update_run(replace(taken, state=RunState.SUCCEEDED, ended_at=at(9)), holder="a")
    assert ledger.create_run(run(6)).id == "run_6"


def test_f3_of_many_at_once_one_run_is_created(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(6)]
    barrier = threading.Barrier(len(ledgers))

    def create(number: int) -> str | None:
        barrier.wait(timeout=90)
        try:
            return ledgers[number].create_run(run(number)).id
        except ConflictError:
            return None

    with ThreadPoolExecutor(len(ledgers)) as pool:
        created = [name for name in pool.map(create, range(len(ledgers))) if name]
    assert len(created) == 1
    assert [item.id for item in ledgers[0].runs()] == created


def test_a_run_comes_back_as_it_was_stored(ledger: SqlLedger) -> None:
    stored = run(counts={"missing": 3}, cursor={"after": "ff"}, requested_by="ada", progress=0.5, started_at=at(3), error="no")
    ledger.create_run(stored)
    assert ledger.run("run_1") == stored
    assert ledger.run("run_2") is None


def test_lesson_8_what_was_found_and_done_is_there_after_a_restart(ledger_url: str, opened: Opener) -> None:
    """Reports were lost on restart. Another process sees the run with its counts, its gaps with their lives, findings, audit."""
    done = run(counts={"missing": 3}, state=RunState.SUCCEEDED, started_at=at(2), ended_at=at(9), progress=1.0)
    before = opened(ledger_url)
    before.create_run(done)
    before.store_gaps([opening(gap(1))])
    before.store_gaps([change(gap(1), "acknowledged", actor="ada", state=State.ACKNOWLEDGED)])
    before.raise_finding(finding())
    before.audit([audit_row(1)])

    def told(ledger: SqlLedger) -> list[Any]:
        one = gap(1).id
        return [ledger.runs(), ledger.gap(one), ledger.gap_history(one), ledger.findings("orders"), ledger.audit_rows()]

    said = told(before)
    assert said[0] == [done]
    assert all(said)
    before.close()
    assert told(opened(ledger_url)) == said


def test_runs_are_listed_newest_first_by_what_is_asked(ledger: SqlLedger) -> None:
    for number in range(1, 6):
        ledger.create_run(run(number, state=RunState.SUCCEEDED))
    ledger.create_run(run(6))
    ledger.create_run(run(7, kind=RunKind.CHECK, pipeline="others"))
    assert [item.id for item in ledger.runs(limit=3)] == ["run_7", "run_6", "run_5"]
    assert [item.id for item in ledger.runs(pipeline="orders", kind=RunKind.SWEEP, states=[RunState.QUEUED])] == ["run_6"]


def test_the_oldest_queued_run_is_taken_first_and_only_once(ledger: SqlLedger) -> None:
    ledger.create_run(run(2))
    ledger.create_run(run(1, pipeline="others"))
    first, second = (ledger.take_run(RunKind.SWEEP, "a", seconds=60) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == ("run_1", "run_2")
    assert first.state is RunState.RUNNING
    assert first.started_at is not None
    assert ledger.take_run(RunKind.SWEEP, "a", seconds=60) is None


def test_many_workers_take_each_run_once(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(4)]
    for number in range(20):
        ledgers[0].create_run(run(number, pipeline=f"p{number}"))

    def take_all(number: int) -> list[str]:
        taken = []
        while (mine := ledgers[number].take_run(RunKind.SWEEP, f"w{number}", seconds=60)) is not None:
            taken.append(mine.id)
        return taken

    with ThreadPoolExecutor(len(ledgers)) as pool:
        taken = [name for names in pool.map(take_all, range(len(ledgers))) for name in names]
    # SKIP LOCKED may show an empty queue to one worker while another one holds the last rows, never a row to two
    assert len(taken) == len(set(taken))
    while (mine := ledgers[0].take_run(RunKind.SWEEP, "last", seconds=60)) is not None:
        taken.append(mine.id)
    assert sorted(taken) == sorted(f"run_{number}" for number in range(20))


def test_f4_a_frozen_holder_loses_its_run_and_its_late_writes_are_refused(ledger: SqlLedger) -> None:
    ledger.create_run(run())
    frozen = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert frozen is not None
    expire_leases(ledger)
    taken = ledger.take_run(RunKind.SWEEP, "b", seconds=60)
    assert taken is not None
    assert taken.id == frozen.id
    assert taken.started_at == frozen.started_at, "a resumed run began when it began"
    with pytest.raises(ConflictError, match="no longer held"):
        ledger.update_run(replace(frozen, state=RunState.SUCCEEDED), holder="a")
    with pytest.raises(ConflictError, match="taken by another holder"):
        ledger.audit([audit_row(1)], by=frozen)
    assert ledger.audit_rows(run_id="run_1") == []
    ledger.audit([audit_row(1)], by=taken)
    ledger.update_run(replace(taken, progress=0.5), holder="b")
    stored = ledger.run("run_1")
    assert stored is not None
    assert stored.progress == 0.5


def test_f4_what_a_holder_took_twice_is_told_apart_by_its_number(ledger: SqlLedger) -> None:
    ledger.create_run(run())
    first = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    expire_leases(ledger)
    second = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert first is not None
    assert second is not None
    assert second.fencing == first.fencing + 1
    with pytest.raises(ConflictError, match="no longer held"):
        ledger.update_run(first, holder="a")
    ledger.update_run(second, holder="a")


def test_f4_a_frozen_holder_whose_run_was_cancelled_is_refused(ledger: SqlLedger) -> None:
    ledger.create_run(run())
    frozen = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert frozen is not None
    expire_leases(ledger)
    assert ledger.cancel_run("run_1").state is RunState.CANCELLED
    with pytest.raises(ConflictError):
        ledger.audit([audit_row(1)], by=frozen)
    with pytest.raises(ConflictError):
        ledger.update_run(frozen, holder="a")


def test_an_update_renews_the_lease(ledger: SqlLedger) -> None:
    ledger.create_run(run())
    held = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert held is not None
    expire_leases(ledger)
    ledger.update_run(replace(held, progress=0.1), holder="a")  # nobody took it meanwhile
    assert ledger.take_run(RunKind.SWEEP, "b", seconds=60) is None


def test_an_ended_run_stays_as_it_ended(ledger: SqlLedger) -> None:
    ledger.create_run(run())
    held = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert held is not None
    ended = replace(held, state=RunState.INCONCLUSIVE, ended_at=at(99), error="a page failed")
    ledger.update_run(ended, holder="a")
    assert ledger.run("run_1") == ended
    with pytest.raises(ConflictError):
        ledger.update_run(replace(ended, state=RunState.SUCCEEDED))
    with pytest.raises(NotFoundError):
        ledger.update_run(run(99))


def test_cancelling(ledger: SqlLedger) -> None:
    ledger.create_run(run(1))
    assert ledger.cancel_run("run_1").state is RunState.CANCELLED
    ledger.create_run(run(2))
    held = ledger.take_run(RunKind.SWEEP, "a", seconds=60)
    assert held is not None
    asked = ledger.cancel_run("run_2")
    assert (asked.state, asked.cancel_requested) == (RunState.RUNNING, True)
    ledger.update_run(replace(held, progress=0.2), holder="a")
    stored = ledger.run("run_2")
    assert stored is not None
    assert stored.cancel_requested, "a holder that had not seen it does not wipe it out"
    expire_leases(ledger)
    assert ledger.cancel_run("run_2").state is RunState.CANCELLED, "its holder is gone: nobody else would end it"
    assert ledger.cancel_run("run_2").state is RunState.CANCELLED
    with pytest.raises(NotFoundError):
        ledger.cancel_run("run_3")


# parts of a sweep that workers share


def parts_of(run_id: str, count: int = 3) -> list[SweepPart]:
    ends = [None, *(bytes([number, 0, 0xFF]) for number in range(1, count)), None]
    return [SweepPart(run_id=run_id, number=at + 1, lower=ends[at], upper=ends[at + 1]) for at in range(count)]


@pytest.fixture
def split(ledger: SqlLedger) -> Run:
    """A running sweep of three parts, held by "owner"."""
    ledger.create_run(run(1))
    held = ledger.take_run(RunKind.SWEEP, "owner", seconds=60)
    assert held is not None
    ledger.split_run(held.id, parts_of(held.id), holder="owner")
    return held


def test_parts_come_back_as_they_were_stored(ledger: SqlLedger, split: Run) -> None:
    assert ledger.parts(split.id) == parts_of(split.id)
    assert ledger.parts("run_2") == []
    taken = ledger.take_part("a", ["orders"], seconds=60)
    assert taken is not None
    assert (taken[0].id, taken[1].number, taken[1].state) == (split.id, 1, RunState.RUNNING)
    counted = replace(taken[1], counts={"source_keys": 7}, cursor={"from": "ff"}, error="no")
    ledger.update_part(counted, holder="a")
    assert ledger.parts(split.id)[0] == counted


def test_a_run_is_split_once_and_by_its_holder(ledger: SqlLedger, split: Run) -> None:
    with pytest.raises(ConflictError, match="split already"):
        ledger.split_run(split.id, parts_of(split.id), holder="owner")
    ledger.create_run(run(2, pipeline="others"))
    with pytest.raises(ConflictError, match="no longer held"):
        ledger.split_run("run_2", parts_of("run_2"), holder="owner")
    assert len(ledger.parts(split.id)) == 3
    assert ledger.parts("run_2") == []


def test_many_workers_take_each_part_once(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(4)]
    ledgers[0].create_run(run(1))
    assert ledgers[0].take_run(RunKind.SWEEP, "owner", seconds=60) is not None
    ledgers[0].split_run("run_1", parts_of("run_1", 20), holder="owner")

    def take_all(number: int) -> list[int]:
        taken = []
        while (mine := ledgers[number].take_part(f"w{number}", ["orders"], seconds=60)) is not None:
            taken.append(mine[1].number)
        return taken

    with ThreadPoolExecutor(len(ledgers)) as pool:
        taken = [number for numbers in pool.map(take_all, range(len(ledgers))) for number in numbers]
    while (last := ledgers[0].take_part("last", ["orders"], seconds=60)) is not None:
        taken.append(last[1].number)
    assert sorted(taken) == list(range(1, 21))


def test_f4_a_frozen_holder_loses_its_part_and_its_late_writes_are_refused(ledger: SqlLedger, split: Run) -> None:
    frozen = ledger.take_part("a", ["orders"], seconds=60)
    assert frozen is not None
    ledger.update_part(replace(frozen[1], cursor={"from": "aa"}), holder="a")
    expire_leases(ledger)
    taken = ledger.take_part("b", ["orders"], seconds=60)
    assert taken is not None
    assert (taken[1].number, taken[1].cursor) == (frozen[1].number, {"from": "aa"}), "it goes on where the other one was"
    with pytest.raises(ConflictError, match="no longer held"):
        ledger.update_part(replace(frozen[1], state=RunState.SUCCEEDED), holder="a")
    expire_leases(ledger)
    again = ledger.take_part("b", ["orders"], seconds=60)
    assert again is not None
    with pytest.raises(ConflictError, match="no longer held"):
        ledger.update_part(taken[1], holder="b")  # under one name, and an older number
    taken = again
    ledger.update_part(replace(taken[1], state=RunState.SUCCEEDED), holder="b")
    with pytest.raises(ConflictError, match="no longer held"):
        ledger.update_part(taken[1], holder="b")
    assert [part.state for part in ledger.parts(split.id)] == [RunState.SUCCEEDED, RunState.QUEUED, RunState.QUEUED]


def test_an_update_renews_the_lease_of_a_part(ledger: SqlLedger, split: Run) -> None:
    numbers = []
    while (taken := ledger.take_part("a", ["orders"], seconds=60)) is not None:
        numbers.append(taken[1].number)
        held = taken[1]
    expire_leases(ledger)
    ledger.update_part(held, holder="a")
    again = []
    while (taken := ledger.take_part("b", ["orders"], seconds=60)) is not None:
        again.append(taken[1].number)
    assert (numbers, again) == ([1, 2, 3], [1, 2])


@pytest.mark.parametrize("why", ["cancelled", "ended", "another pipeline's"])
def test_of_a_sweep_that_is_none_of_ours_no_part_is_taken_or_changed(ledger: SqlLedger, split: Run, why: str) -> None:
    taken = ledger.take_part("a", ["orders"], seconds=60)
    assert taken is not None
    if why == "cancelled":
        ledger.cancel_run(split.id)
    elif why == "ended":
        ledger.update_run(replace(split, state=RunState.INCONCLUSIVE), holder="owner")
    assert ledger.take_part("b", ["others"] if why.startswith("another") else ["orders"], seconds=60) is None
    if not why.startswith("another"):
        with pytest.raises(ConflictError, match="over, or was cancelled"):
            ledger.update_part(taken[1], holder="a")


def test_parts_go_with_their_run(ledger: SqlLedger, split: Run) -> None:
    ledger.update_run(replace(split, state=RunState.SUCCEEDED, ended_at=at(9)), holder="owner")
    assert ledger.prune(Retention(runs=Limit(count=0)), now=at(10))["runs"] == 1
    assert ledger.parts(split.id) == []


# audit


def test_h8_audit_rows_are_appended_once_and_found(ledger: SqlLedger) -> None:
    rows = [audit_row(number) for number in range(1, 601)]
    ledger.audit(rows)
    ledger.audit([structs.replace(rows[0], outcome="failed"), audit_row(601, run_id="run_2", key=None, key_fields=None)])
    ledger.audit([])
    assert ledger.audit_rows(key=b"k1") == [rows[0]], "what was written is never changed"
    assert [row.id for row in ledger.audit_rows(limit=2)] == ["audit_601", "audit_600"]
    assert len(ledger.audit_rows(run_id="run_1", limit=1000)) == 600
    assert ledger.audit_rows(pipeline="others") == []


def test_keys_of_a_run_are_read_without_their_rows(ledger: SqlLedger) -> None:
    rows = [audit_row(1), audit_row(2, outcome="planned", action="backfill_plan", reason="missing"), audit_row(3, gap_id=None)]
    ledger.audit([*rows, audit_row(4, key=None, key_fields=None), audit_row(5, run_id="run_2")])
    assert ledger.audited_keys("run_1") == [(b"k3", None, ""), (b"k2", "gap_1", "missing"), (b"k1", "gap_1", "")]
    assert ledger.audited_keys("run_1", action="backfill_plan") == [(b"k2", "gap_1", "missing")]
    assert ledger.audited_keys("run_1", outcome="written") == [(b"k3", None, ""), (b"k1", "gap_1", "")]
    assert ledger.audited_keys("run_3") == []


def test_a_change_of_state_of_many_gaps_stands_for_each_by_itself(ledger: SqlLedger) -> None:
    """They are one statement; one that was overtaken takes no other one with it."""
    made = [gap(number) for number in range(1, 703)]
    assert all(ledger.store_gaps([opening(one) for one in made]))
    assert ledger.store_gaps([change(made[3], "updated", note="by hand")]) == [True]
    taken = [
        structs.replace(change(one, "repairing", state=State.REPAIRING, note=f"note {number % 3}"), state_only=True)
        for number, one in enumerate(made)
    ]
    stood = [True] * len(made)
    stood[3] = False
    assert ledger.store_gaps(taken[:150]) == stood[:150]
    assert ledger.store_gaps(taken[150:]) == stood[150:]
    found = ledger.open_gaps_for("orders", [one.key for one in made])
    assert all(found[one.gap.key] == one.gap for number, one in enumerate(taken) if number != 3)
    assert (found[made[3].key].state, found[made[3].key].note) == (State.OPEN, "by hand")


def test_names_of_gaps_come_in_the_pages_of_the_gaps(ledger: SqlLedger) -> None:
    made = [gap(number, first_seen=at(number // 3), kind=Kind.STALE if number % 2 else Kind.MISSING) for number in range(1, 26)]
    assert all(ledger.store_gaps([opening(one) for one in made]))
    where, cursor, pages = GapFilter(pipeline="orders", states=("open",), kinds=("stale",)), None, 0
    while True:
        page = ledger.gaps(where, limit=5, cursor=cursor)
        names, following = ledger.gap_names(where, limit=5, cursor=cursor)
        assert list(names) == [GapName(one.id, one.key, one.key_fields, one.kind) for one in page.gaps]
        assert following == page.next_cursor
        cursor, pages = following, pages + 1
        if cursor is None:
            break
    assert pages == 3
    with pytest.raises(UsageError):
        ledger.gap_names(where, limit=0)


def test_the_life_of_gaps_that_change_together_is_each_ones_own(ledger: SqlLedger) -> None:
    """Changes of one sort and changes of different sorts are told by different statements; nobody sees which."""
    many = [gap(number, note=f"note {number}") for number in range(1, 6)]
    ledger.store_gaps([opening(one) for one in many])
    alike = [change(one, "acknowledged", actor="ada", state=State.ACKNOWLEDGED) for one in many]
    assert ledger.store_gaps(alike) == [True] * 5
    others = [change(one.gap, "resolved" if at_ % 2 else "updated", actor=f"a{at_}") for at_, one in enumerate(alike)]
    assert ledger.store_gaps(others) == [True] * 5
    twice = [change(others[0].gap, "updated", note="one"), change(change(others[0].gap, "updated").gap, "updated", note="two")]
    assert ledger.store_gaps(twice) == [True, True]
    for number, one in enumerate(many):
        told = [(row["event"], row["actor"], row["revision"], row["note"]) for row in ledger.gap_history(one.id)]
        assert told[:3] == [
            ("opened", "gapwatch", 1, one.note),
            ("acknowledged", "ada", 2, one.note),
            ("resolved" if number % 2 else "updated", f"a{number}", 3, one.note),
        ]
    assert [row["note"] for row in ledger.gap_history(many[0].id)][3:] == ["one", "two"]


# epochs, facts, leases


def test_epochs_are_numbered_once_for_all(ledger: SqlLedger) -> None:
    assert ledger.epoch("feed", 0, "topic-a", 0) == 1
    assert ledger.epoch("feed", 0, "topic-a", 500) == 2
    assert ledger.epoch("feed", 1, "topic-a", 500) == 1
    assert ledger.epoch("feed", 0, "topic-b", 500) == 3
    assert ledger.epoch("feed", 0, "topic-a", 0) == 1


def test_a_new_epoch_is_above_the_one_that_is_in_use(ledger: SqlLedger) -> None:
    """A ledger that was restored from a backup has not heard of the last epochs; whoever asks has."""
    assert ledger.epoch("feed", 0, "topic", 0) == 1
    assert ledger.epoch("feed", 0, "topic", 900, after=4) == 5
    assert ledger.epoch("feed", 0, "topic", 900, after=7) == 5, "a known one keeps its number"
    assert ledger.epoch("feed", 0, "topic", 950, after=2) == 6


def test_the_newest_epoch_of_a_topic(ledger: SqlLedger) -> None:
    assert ledger.newest_epoch("feed", 0, "topic-a") == 1, "the one that begins with its log"
    assert ledger.epoch("feed", 0, "topic-a", 500) == 2
    assert ledger.epoch("feed", 1, "topic-a", 700) == 1
    assert ledger.newest_epoch("feed", 0, "topic-a") == 2
    assert ledger.newest_epoch("feed", 0, "topic-b") == 3
    assert ledger.newest_epoch("feed", 0, "topic-a") == 2


def test_all_workers_agree_on_an_epoch(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(4)]
    barrier = threading.Barrier(len(ledgers))

    def ask(number: int) -> dict[int, int]:
        barrier.wait(timeout=90)
        offsets = range(8) if number % 2 else range(7, -1, -1)
        return {offset: ledgers[number].epoch("feed", 0, "topic", offset) for offset in offsets}

    with ThreadPoolExecutor(len(ledgers)) as pool:
        answers = list(pool.map(ask, range(len(ledgers))))
    assert all(answer == answers[0] for answer in answers)
    assert sorted(answers[0].values()) == list(range(1, 9))


def test_facts(ledger: SqlLedger) -> None:
    assert ledger.fact("resume/a") is None
    ledger.set_fact("resume/a", {"token": "x", "n": 2**70})
    ledger.set_fact("resume/a", {"token": "y"})
    ledger.set_fact("resume/A", 1)
    ledger.set_fact("resume%", 2)
    ledger.set_fact("other", [])
    assert ledger.fact("resume/a") == {"token": "y"}
    assert ledger.facts("resume/") == {"resume/a": {"token": "y"}, "resume/A": 1}
    assert ledger.facts("resume%") == {"resume%": 2}
    ledger.set_fact("resume/a", None)
    assert ledger.fact("resume/a") is None
    assert set(ledger.facts()) == {"resume/A", "resume%", "other"}


def test_several_facts_are_stored_at_once(ledger: SqlLedger) -> None:
    ledger.set_fact("a", 1)
    ledger.set_facts({"a": 2, "b": {"n": 3}})
    ledger.set_facts({})
    assert ledger.facts() == {"a": 2, "b": {"n": 3}}


def test_several_leases_are_renewed_at_once_and_those_that_were_lost_are_not(ledger: SqlLedger) -> None:
    held = [lease for name in "abc" if (lease := ledger.take_lease(name, "me", seconds=60)) is not None]
    ledger.release_lease(held[0])
    assert ledger.take_lease("a", "you", seconds=60)
    renewed = {lease.name: lease for lease in ledger.renew_leases(held, seconds=120)}
    assert set(renewed) == {"b", "c"}
    assert renewed["b"].expires_at > held[1].expires_at
    assert renewed["b"].fencing == held[1].fencing
    expire_leases(ledger)
    assert ledger.renew_leases(held, seconds=120) == [], "an expired one may be somebody else's by now"


def test_the_last_run_of_each_pipeline(ledger: SqlLedger) -> None:
    for number, (pipeline, kind) in enumerate(
        [("orders", RunKind.SWEEP), ("users", RunKind.SWEEP), ("orders", RunKind.SWEEP), ("orders", RunKind.BACKFILL)]
    ):
        ledger.create_run(run(number, pipeline=pipeline, kind=kind, state=RunState.SUCCEEDED))
    last = ledger.last_runs(RunKind.SWEEP, ["orders", "users", "nobody"])
    assert {name: found.id for name, found in last.items()} == {"orders": "run_2", "users": "run_1"}
    assert last["orders"] == ledger.runs(pipeline="orders", kind=RunKind.SWEEP, limit=1)[0]
    assert ledger.last_runs(RunKind.SWEEP, [f"p{number}" for number in range(250)]) == {}
    assert ledger.last_runs(RunKind.SWEEP, []) == {}


def test_lesson_40_a_lease_has_one_holder_and_a_fencing_number_that_rises(ledger: SqlLedger) -> None:
    first = ledger.take_lease("capture/orders", "a", seconds=60)
    assert first is not None
    assert first.fencing == 1
    assert ledger.take_lease("capture/orders", "b", seconds=60) is None
    assert ledger.take_lease("capture/orders", "a", seconds=60) is None
    renewed = ledger.renew_lease(first, seconds=120)
    assert renewed is not None
    assert renewed.fencing == first.fencing
    assert renewed.expires_at > first.expires_at
    expire_leases(ledger)
    assert not ledger.holds(renewed)
    assert ledger.renew_lease(renewed, seconds=60) is None, "an expired lease cannot be renewed"
    second = ledger.take_lease("capture/orders", "b", seconds=60)
    assert second is not None
    assert second.fencing == 2
    ledger.release_lease(renewed)  # the frozen holder wakes: it lets nothing go that is not its own
    assert ledger.holds(second)
    ledger.release_lease(second)
    third = ledger.take_lease("capture/orders", "a", seconds=60)
    assert third is not None
    assert third.fencing == 3, "letting go forgets nothing"


def test_lesson_40_of_many_at_once_one_gets_the_lease(ledger_url: str, opened: Opener) -> None:
    ledgers = [opened(ledger_url) for _ in range(6)]
    barrier = threading.Barrier(len(ledgers))

    def take(number: int) -> bool:
        barrier.wait(timeout=90)
        return ledgers[number].take_lease("watch", f"w{number}", seconds=60) is not None

    with ThreadPoolExecutor(len(ledgers)) as pool:
        assert sum(pool.map(take, range(len(ledgers)))) == 1


def test_lesson_40_a_fact_under_a_lease_is_refused_once_the_lease_was_taken_anew(ledger: SqlLedger) -> None:
    """A resume token that a frozen holder stores late would take the newer holder's back."""
    first = ledger.take_lease("capture/orders", "a", seconds=60)
    assert first is not None
    ledger.set_fact("resume/orders", {"token": "1"}, under=first)
    expire_leases(ledger)
    ledger.set_fact("resume/orders", {"token": "2"}, under=first)  # nobody else has written it meanwhile
    second = ledger.take_lease("capture/orders", "b", seconds=60)
    assert second is not None
    for late in ({"token": "3"}, {"lost": "history"}, None):
        with pytest.raises(ConflictError, match="capture/orders"):
            ledger.set_fact("resume/orders", late, under=first)
    assert ledger.fact("resume/orders") == {"token": "2"}
    ledger.set_fact("resume/orders", {"token": "4"}, under=second)
    expire_leases(ledger)
    third = ledger.take_lease("capture/orders", "b", seconds=60)  # the same process, in a later life of its lease
    assert third is not None
    with pytest.raises(ConflictError):
        ledger.set_fact("resume/orders", {"token": "5"}, under=second)
    assert ledger.fact("resume/orders") == {"token": "4"}


def test_of_facts_that_are_stored_together_those_of_a_lost_lease_are_refused(ledger: SqlLedger) -> None:
    held = [ledger.take_lease(f"capture/{name}", "a", seconds=60) for name in "xyz"]
    leases = [lease for lease in held if lease is not None]
    ledger.set_fact("resume/y", {"token": "0"})
    ledger.release_lease(leases[1])
    assert ledger.take_lease("capture/y", "b", seconds=60)
    before = ledger.writes()
    stored = ledger.set_facts_under(
        [(f"resume/{name}", {"token": "1"}, lease) for name, lease in zip("xyz", leases, strict=True)]
    )
    assert stored == [True, False, True]
    named = ledger.facts("resume/x", "resume/z", "none/")
    assert set(named) == {"resume/x", "resume/z"}
    assert ledger.facts("resume/") == {"resume/x": {"token": "1"}, "resume/y": {"token": "0"}, "resume/z": {"token": "1"}}
    assert ledger.writes() == before


def test_lesson_40_a_lease_is_taken_before_a_late_fact_or_after_it(ledger_url: str, opened: Opener) -> None:
    """Never in between: then its new holder would not have read what was stored."""
    ours, theirs = opened(ledger_url), opened(ledger_url)
    for round_ in range(20):
        lease = ours.take_lease("capture/orders", "a", seconds=60)
        assert lease is not None
        expire_leases(ours)
        barrier = threading.Barrier(2)

        def store(lease: Lease = lease, number: int = round_, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(timeout=90)
            try:
                ours.set_fact("resume/orders", number, under=lease)
            except ConflictError:
                return False
            return True

        def take(barrier: threading.Barrier = barrier) -> Any:
            barrier.wait(timeout=90)
            assert theirs.take_lease("capture/orders", "b", seconds=60) is not None
            return theirs.fact("resume/orders")

        with ThreadPoolExecutor(2) as pool:
            stored, read = pool.submit(store), pool.submit(take)
            assert (read.result() == round_) == stored.result()
        expire_leases(ours)


def test_leases_follow_the_clock_of_the_database(ledger: SqlLedger) -> None:
    def now() -> float:
        with ledger._db.engine.connect() as connection:
            return ledger._db.now_us(connection) / 1e6

    before = now()
    lease = ledger.take_lease("watch", "a", seconds=30)
    assert lease is not None
    assert before - 0.001 <= lease.expires_at.timestamp() - 30 <= now() + 0.001


# tokens


def test_a_token_opens_by_its_secret_until_it_is_revoked(ledger: SqlLedger) -> None:
    assert not ledger.has_tokens()
    record, secret = ledger.create_token("ci", ["repair", "read"], created_by="ada")
    assert record.scopes == ("read", "repair")
    assert ledger.has_tokens()
    assert ledger.token_by_secret(secret) == record
    assert ledger.token_by_secret(secret + "x") is None
    assert ledger.token_by_secret("") is None
    assert ledger.tokens() == [record]
    assert ledger.revoke_token(record.id).revoked_at is not None
    assert ledger.token_by_secret(secret) is None
    assert not ledger.has_tokens()
    with pytest.raises(NotFoundError):
        ledger.revoke_token("tok_unknown")


def test_h3_the_secret_of_a_token_is_stored_nowhere(ledger: SqlLedger) -> None:
    _, secret = ledger.create_token("ci", ["read"], created_by="ada")
    with ledger._db.engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM tokens")).all())
    assert secret not in stored
    assert secret.removeprefix("gwt_") not in stored


def test_an_expired_token_opens_nothing(ledger: SqlLedger) -> None:
    _, secret = ledger.create_token("old", ["read"], created_by="ada", expires_at=T0 - timedelta(days=9999))
    assert ledger.token_by_secret(secret) is None
    assert not ledger.has_tokens()


def test_a_secret_made_elsewhere_is_adopted_once_and_never_widened(ledger: SqlLedger) -> None:
    given = "0123456789abcdef" * 4
    record, secret = ledger.create_token("ops", ["admin"], created_by="setup", secret=given)
    assert secret == given
    assert ledger.token_by_secret(given) == record
    assert ledger.create_token("ops again", ["admin"], created_by="setup", secret=given) == (record, given)
    assert ledger.tokens() == [record]
    with pytest.raises(UsageError, match="other scopes"):
        ledger.create_token("ops", ["read"], created_by="setup", secret=given)
    ledger.revoke_token(record.id)
    with pytest.raises(UsageError, match="revoked"):
        ledger.create_token("ops", ["admin"], created_by="setup", secret=given)
    for short in ("x" * 31, "x" * 20 + " " + "x" * 20, "ä" * 40):
        with pytest.raises(UsageError):
            ledger.create_token("ops", ["admin"], created_by="setup", secret=short)


def test_wrong_tokens_are_refused(ledger: SqlLedger) -> None:
    for name, scopes in (("ci", ["root"]), ("ci", []), (" ", ["read"]), ("x" * 101, ["read"])):
        with pytest.raises(UsageError):
            ledger.create_token(name, scopes, created_by="ada")


# retention


def test_f9_lesson_43_retention_by_age_deletes_what_ended_long_ago_and_nothing_open(ledger: SqlLedger) -> None:
    now = at(40 * 86400)
    old, young = now - timedelta(days=31), now - timedelta(days=29)
    done: dict[str, Any] = {"state": State.RESOLVED, "resolution": Resolution.MANUAL}
    ledger.store_gaps([opening(gap(1)), opening(gap(2)), opening(gap(3))])
    ledger.store_gaps(
        [change(gap(1), "resolved", **done, resolved_at=old), change(gap(2), "resolved", **done, resolved_at=young)]
    )
    ledger.raise_finding(finding(1))
    ledger.raise_finding(finding(2))
    ledger.clear_finding("finding_1", at=old)
    ledger.create_run(run(1, state=RunState.FAILED, ended_at=old))
    ledger.create_run(run(2, state=RunState.FAILED, ended_at=young))
    ledger.create_run(run(3, requested_at=old))
    ledger.audit([audit_row(1, at=old), audit_row(2, at=young)])
    month = Limit(age=timedelta(days=30))
    pruned = ledger.prune(Retention(gaps=month, findings=month, runs=month, audit=month), now=now)
    assert pruned == {"gaps": 1, "findings": 1, "runs": 1, "audit": 1}
    assert ledger.gap(gap(1).id) is None
    assert ledger.gap_history(gap(1).id) == []
    assert {item.id for item in ledger.gaps(GapFilter()).gaps} == {gap(2).id, gap(3).id}
    assert {item.id for item in ledger.runs()} == {"run_2", "run_3"}
    assert [item.id for item in ledger.findings(open_only=False)] == ["finding_2"]
    assert [item.id for item in ledger.audit_rows()] == ["audit_2"]
    assert ledger.outbox_size() == 5, "what was not published yet goes nowhere"
    assert ledger.resolution_counts() == {("orders", "manual"): 2}, "counters do not go back"


def test_retention_by_count_keeps_the_newest_of_each_pipeline(ledger: SqlLedger) -> None:
    for number in range(1, 8):
        ledger.create_run(run(number, state=RunState.SUCCEEDED, ended_at=at(number)))
    ledger.create_run(run(8, pipeline="others", state=RunState.SUCCEEDED, ended_at=at(0)))
    none = Limit()
    pruned = ledger.prune(Retention(gaps=none, findings=none, runs=Limit(count=3), audit=none), now=at(100))
    assert pruned["runs"] == 4
    assert {item.id for item in ledger.runs()} == {"run_5", "run_6", "run_7", "run_8"}


def test_retention_deletes_more_than_one_transaction_holds(ledger: SqlLedger) -> None:
    ledger.audit([audit_row(number) for number in range(1, 1302)])
    pruned = ledger.prune(Retention(audit=Limit(count=1)), now=at(2000))
    assert pruned["audit"] == 1300
    assert [row.id for row in ledger.audit_rows()] == ["audit_1301"]
