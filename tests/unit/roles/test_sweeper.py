"""A whole sweep over two stores in memory: everything but the stores is the product."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Gap, Kind, Run, RunKind, RunState
from gapwatch.model.stream import Side
from gapwatch.ports import GapFilter
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.sweeper import Sweeper, SweeperDependencies
from gapwatch.roles.repair.sweeps import request_sweep
from tests.simulation.stores import Rig, VirtualClock, trials


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


def swept(rig: Rig, ledger: SqlLedger, **request: Any) -> Run:
    clock, run_id = VirtualClock(pace=100), f"sweep{len(ledger.runs())}"
    request_sweep(ledger, rig.spec, clock, run_id, request)
    taken = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert taken is not None
    sweeper = Sweeper(
        SweeperDependencies(
            ledger=ledger,
            book=Book(ledger, clock),
            trials=trials(rig, ledger, clock),
            clock=clock,
            holder="here",
            grace_ms=lambda _: 1_000,
            delivered=lambda _: Delivered(through_ms=None, age_alone=True),
            on_compared=lambda *_: None,
        )
    )
    return asyncio.run(sweeper.run(taken, rig.stores, last_full_started=None))


def gaps(ledger: SqlLedger) -> list[Gap]:
    return list(ledger.gaps(GapFilter(), limit=500).gaps)


def copied(count: int) -> Rig:
    rig = Rig()
    for number in range(count):
        rig.source_writes(number)
        rig.sink_delivers(number)
    return rig


def test_lesson_2_what_was_compared_is_counted_and_mismatches_apart(ledger: SqlLedger) -> None:
    """ "Checked" was the number of mismatches, so that a clean run had checked 0; another kind was not counted at all."""
    rig = copied(100)
    clean = swept(rig, ledger)
    assert (clean.counts["source_keys"], clean.counts["target_keys"], clean.counts["differences"]) == (100, 100, 0)
    for number in (1, 2, 3):
        rig.stranger_writes(number, None)
    for number in (4, 5):
        rig.stranger_writes(number, {"_id": number, "total": -1, "note": "wrong"})
    rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    dirty = swept(rig, ledger)
    assert (dirty.counts["source_keys"], dirty.counts["target_keys"]) == (100, 98)
    kinds = {kind: dirty.counts[kind] for kind in ("missing", "mismatch", "extra")}
    assert kinds == {"missing": 3, "mismatch": 2, "extra": 1}
    assert dirty.counts["differences"] == sum(kinds.values())


def test_lesson_11_equal_counts_do_not_end_a_sweep(ledger: SqlLedger) -> None:
    """One missing plus one orphan is equal: both are named, by key."""
    rig = copied(50)
    rig.stranger_writes(7, None)
    rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    run = swept(rig, ledger)
    assert run.counts["source_keys"] == run.counts["target_keys"] == 50
    assert {(gap.key_fields["id"], gap.kind) for gap in gaps(ledger)} == {(7, Kind.MISSING), (777, Kind.EXTRA)}


def test_lesson_12_stale_content_is_seen_and_orphans_are_named(ledger: SqlLedger) -> None:
    rig = copied(20)
    rig.source_writes(3)
    rig.sink_loses(3)
    rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    swept(rig, ledger, content=False)
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {777}, "by ids alone"
    swept(rig, ledger, content=True)
    assert {(gap.key_fields["id"], gap.fields) for gap in gaps(ledger)} == {(777, ()), (3, ("total", "note"))}


@pytest.mark.parametrize("side", list(Side))
def test_lesson_17_a_side_that_does_not_answer_opens_no_gap(ledger: SqlLedger, side: Side) -> None:
    """The target was down during the compare: every row was "missing", and repair began."""
    rig = copied(20)
    rig.away.add(side)
    run = swept(rig, ledger)
    assert run.state is RunState.INCONCLUSIVE
    assert gaps(ledger) == []
    rig.away.clear()
    assert swept(rig, ledger).state is RunState.SUCCEEDED, "and the failure is not remembered"


def test_lesson_17_a_target_that_goes_away_after_the_scan_opens_no_gap(ledger: SqlLedger) -> None:
    rig = copied(20)
    rig.stranger_writes(7, None)
    rig.between = lambda what: rig.away.add(Side.OBSERVED)
    run = swept(rig, ledger)
    assert run.state is RunState.INCONCLUSIVE
    assert gaps(ledger) == []


def test_a_key_that_cannot_be_read_leaves_the_sweep_inconclusive(ledger: SqlLedger) -> None:
    """One document fails for ever while the others answer: not read is not judged, and a sweep that proves nothing of it
    must not forget what is unverifiable."""
    rig = copied(20)
    for number in (7, 8):
        rig.stranger_writes(number, None)
    rig.unread.add(7)
    run = swept(rig, ledger)
    assert run.state is RunState.INCONCLUSIVE
    assert run.counts["undecided"] == 1
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {8}
    rig.unread.clear()
    assert swept(rig, ledger).state is RunState.SUCCEEDED


def test_trap_36_a_document_whose_delete_nobody_saw_is_found_by_the_sweep_after_the_hole(ledger: SqlLedger) -> None:
    """The stream has no record of the delete any more: only an orphan sweep can tell, a re-snapshot never brings it back."""
    rig = copied(10)
    rig.source_deletes(4)
    rig.sink_loses(4)
    swept(rig, ledger)
    (found,) = gaps(ledger)
    assert (found.key_fields["id"], found.kind) == (4, Kind.EXTRA)


def test_trap_47_churn_moves_and_a_real_gap_stays(ledger: SqlLedger) -> None:
    """Rows that are written and delivered all the time differ at the first look; only what stays different counts."""
    rig = copied(30)
    rig.stranger_writes(7, None)
    turn = iter(range(10**6))

    def between(_: str) -> None:
        for number in (1, 2, 3):
            if next(turn) % 2:
                rig.source_writes(number)
            else:
                rig.sink_delivers(number)

    rig.between = between
    for number in (1, 2, 3):
        rig.source_writes(number)
    swept(rig, ledger)
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {7}


def test_a_difference_that_could_not_be_stored_leaves_the_sweep_inconclusive(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else changed its gap at that moment, or resolved it: what the sweep proved is in no row, so it covers nothing."""
    rig = copied(10)
    rig.stranger_writes(4, None)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "store_gaps", lambda changes: [False] * len(changes))
        overtaken = swept(rig, ledger)
    assert (overtaken.state, overtaken.counts["undecided"]) == (RunState.INCONCLUSIVE, 1)
    assert "from" not in overtaken.cursor, "whoever takes over reads again what is in no row"
    stored = swept(rig, ledger)
    assert stored.state is RunState.SUCCEEDED
    assert "from" in stored.cursor
    assert [gap.key_fields["id"] for gap in gaps(ledger)] == [4]
