"""Invariant 6 of ``design.md`` 0 on the real backfill: whoever else writes, repair never makes anything worse.

Everything but the stores is the product: judging, deciding, writing, reading back, correcting, auditing, booking, the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gapwatch.cli.exits import DIFFERENCES
from gapwatch.cli.runs import exit_code
from gapwatch.core.backfill import WRITE_ACTION, ItemOutcome, permitted
from gapwatch.core.gaps import gap_id, rfc3339
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Cause, Detector, Gap, Kind, Resolution, Run, RunKind, RunState, State
from gapwatch.model.pipeline import BatchSpec, FeedKind, FeedSpec, FieldType, Policy, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.ports import GapChange, StoredRecord, WriteItem
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.plans import plan, request_apply
from tests.property.often import often
from tests.simulation.stores import PLACEHOLDER, ModelReader, ModelWriter, Rig, VirtualClock, spec_of_rig
from tests.unit.core import samples

GRACE_MS = 1_000
NUMBERS = range(5)
_RUNS = itertools.count(1)
OFTEN = often(60)
DELETING_SPEC = replace(spec_of_rig(), repair=RepairSpec(extra=Policy.DELETE, undeleted=Policy.DELETE, brake_ratio=1.0))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlLedger]:
    opened = open_ledger(f"sqlite:///{tmp_path_factory.mktemp('backfill')}/ledger.db")
    yield opened
    opened.close()


@dataclass
class Ended:
    """A run that ended, and what it left in the ledger."""

    run: Run
    rig: Rig
    ledger: SqlLedger

    @property
    def audited(self) -> dict[int, list[str]]:
        """Return the outcomes that the audit names, by row, oldest first."""
        rows = self.ledger.audit_rows(run_id=self.run.id, limit=10_000)
        found: dict[int, list[str]] = {}
        for row in sorted(rows, key=lambda row: row.at):
            if row.key is not None and row.action == WRITE_ACTION:
                found.setdefault(self.rig.number(row.key), []).append(row.outcome)
        return found

    def gap(self, number: int) -> Gap:
        found = self.ledger.gap(gap_id(self.run.pipeline, self.rig.key(number), f"story {self.run.request['plan']}"))
        assert found is not None
        return found


def repaired(rig: Rig, ledger: SqlLedger, *, proved: bool = False) -> Ended:
    """Open a gap for every row of the rig, plan, apply and let the run end.

    ``proved``: each gap comes with the proof of its difference: which write of the source's row it was shown for.
    """
    clock, name = VirtualClock(pace=100), f"run{next(_RUNS)}"
    rig.spec = replace(rig.spec, id=name)  # a pipeline of its own: stories share the ledger's file
    numbers = sorted({*rig.source, *rig.target, *NUMBERS})
    gaps = [_gap(rig, number, f"{name}_plan", clock, proved=proved) for number in numbers]
    assert all(ledger.store_gaps([GapChange(gap=gap, against=None, event="opened") for gap in gaps]))
    plan(ledger, rig.spec, permitted(rig.spec.repair), limit=100, run_id=f"{name}_plan", clock=clock)
    request_apply(ledger, f"{name}_plan", run_id=name, clock=clock)
    taken = ledger.take_run(RunKind.BACKFILL, "here", seconds=1e6)
    assert taken is not None
    backfiller = Backfiller(
        BackfillDependencies(
            ledger=ledger,
            book=Book(ledger, clock),
            clock=clock,
            holder="here",
            grace_ms=lambda _: GRACE_MS,
            delivered=lambda _: Delivered(through_ms=None, age_alone=True),
            on_document=lambda *_: None,
        )
    )
    audited: Counter[int] = Counter()

    def on_write(item: WriteItem) -> None:
        number = rig.number(item.key)
        audited[number] += 1
        rows = ledger.audit_rows(run_id=name, key=item.key, limit=1_000)
        intents = sum(row.action == WRITE_ACTION and row.outcome == ItemOutcome.PLANNED.value for row in rows)
        assert intents >= audited[number], "a write without an audit row before it"
        _never_worse(rig, item)

    rig.on_write = on_write
    ended = asyncio.run(backfiller.run(taken, rig.stores))
    return Ended(run=ended, rig=rig, ledger=ledger)


def _never_worse(rig: Rig, item: WriteItem) -> None:
    number = rig.number(item.key)
    versions = [row["total"] for row in rig.history.get(number, ()) if row is not None]
    there = rig.target.get(number)
    if item.document is None:
        assert number not in rig.source or number in rig.unseen, "a document deleted whose row was there when it was read last"
        return
    row = dict(item.document)
    whole = [rig.document(known) for known in rig.history[number] if known is not None]
    assert row in whole, "a document that is none of the source row's states: defaulted or partial"
    assert row.keys() == {"_id", "total", "note"}
    assert PLACEHOLDER not in row.values()
    guard = item.replaces.raw if isinstance(item.replaces, StoredRecord) else None
    if there is not None and there == guard and there["total"] in versions:
        assert there["total"] <= row["total"], "an older version over a newer one"


def _gap(rig: Rig, number: int, plan_id: str, clock: VirtualClock, *, proved: bool) -> Gap:
    kind = Kind.MISSING if number not in rig.target else Kind.MISMATCH if number in rig.source else Kind.EXTRA
    key, now = rig.key(number), clock.now()
    row = {"side": "source", "read": "present", "position": rig.revision(number), "time": rfc3339(now)}
    evidence = (row,) if proved and number in rig.source else ()
    return Gap(
        id=gap_id(rig.spec.id, key, f"story {plan_id}"),
        pipeline=rig.spec.id,
        key=key,
        key_fields={"id": number},
        target_id=str(number),
        kind=kind,
        cause=Cause.UNKNOWN,
        state=State.OPEN,
        detector=Detector.SWEEP,
        event_time=None,
        held_since=now,
        first_seen=now,
        confirmed_at=now,
        evidence=evidence,
    )


# ── the property ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

ACTS = ("write", "delete", "deliver", "lose", "falsify", "remove", "strip", "mask", "double")


def act(rig: Rig, what: str, number: int) -> None:
    """One thing that somebody else does to one row."""
    if what == "write":
        rig.source_writes(number)
    elif what == "delete":
        rig.source_deletes(number)
    elif what == "deliver":
        rig.sink_delivers(number)
    elif what == "lose":
        rig.sink_loses(number)
    elif what == "falsify":
        rig.stranger_writes(number, {"_id": number, "total": -next(rig.values), "note": "a stranger's"})
    elif what == "remove":
        rig.stranger_writes(number, None)
    elif what == "strip" and number in rig.source:
        del rig.source_writes(number)["note"]  # a reader that does not show the column
    elif what == "mask":
        rig.source_writes(number, note=PLACEHOLDER)
    elif what == "double":  # a second table has the key as well, or no more
        rig.twice ^= {number}


acts = st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from(NUMBERS)), max_size=12)
moments = st.dictionaries(st.integers(0, 30), acts, max_size=8)


@OFTEN
@given(acts, moments, st.sets(st.sampled_from(NUMBERS), max_size=1), st.sets(st.sampled_from(NUMBERS), max_size=1), st.booleans())
def test_invariant_6_repair_never_makes_it_worse(
    ledger: SqlLedger, before: list[Any], during: dict[int, list[Any]], refused: set[int], unread: set[int], proved: bool
) -> None:
    rig = Rig(spec=DELETING_SPEC)
    for number in NUMBERS[:3]:
        rig.source_writes(number)
    for what, number in before:
        act(rig, what, number)
    rig.refused, rig.unread = refused, unread
    step = itertools.count()

    def between(_: str) -> None:
        for what, number in during.get(next(step), ()):
            act(rig, what, number)

    rig.between = between
    ended = repaired(rig, ledger, proved=proved)
    assert_never_worse(ended)


def assert_never_worse(ended: Ended) -> None:
    rig, counts, audited = ended.rig, ended.run.counts, ended.audited
    touched = {rig.number(item.key) for item in rig.writes}
    assert touched <= audited.keys()
    unproved = {ItemOutcome.UNREAD.value, ItemOutcome.FAILED.value}
    for number, left in rig.ours.items():
        if number in rig.unseen:
            continue  # the source moved on after the last read: the stream's
        row = rig.source.get(number)
        if left != (None if row is None else rig.document(row)):
            assert audited[number][-1] in unproved, f"row {number} was left wrong without a word: {audited[number]}"
    proved = {number for number in touched if number in rig.agreed}
    assert counts["verified"] <= len(proved), "counted before it was read back"
    assert counts["written"] + counts["vanished"] >= counts["verified"] >= counts["written"]
    for number in NUMBERS:
        gap = ended.gap(number)
        if gap.resolution is Resolution.BACKFILLED:
            assert number in proved
    unhappy = counts.get("failed", 0) + counts.get("unread", 0)
    assert (ended.run.state is RunState.SUCCEEDED) == (not unhappy)
    if counts["in_sync"]:
        assert not unhappy
        assert counts["open_gaps_left"] == 0


# ── what happened elsewhere ───────────────────────────────────────────────────────────────────────────────────────────────────


def at_write(rig: Rig, *acts_then: Any, after: int = 0) -> None:
    """Let the world act just before the first write, or so many calls of a store after it."""
    left: list[int] = []

    def between(what: str) -> None:
        if not left and what.startswith("write"):
            left.append(after + 1)
        if left:
            left[0] -= 1
            if left[0] == 0:
                for one in acts_then:
                    one()

    rig.between = between


def test_lesson_6_a_run_that_the_error_rate_aborted_is_no_success(ledger: SqlLedger) -> None:
    """It returned success. Half of what is tried is refused: the rest is left as it was, and the exit code says so as well."""
    spec = spec_of_rig()
    rig = Rig(spec=replace(spec, sweep=replace(spec.sweep, batch=BatchSpec(documents=10, pause_seconds=0))))
    for number in range(25):
        rig.source_writes(number)
    rig.refused = set(range(0, 25, 2))
    ended = repaired(rig, ledger)
    counts = ended.run.counts
    assert ended.run.state is RunState.ABORTED
    assert str(ended.run.error).startswith("Stopped: 5 of the first 10 documents failed.")
    assert (counts["written"], counts["failed"], counts["in_sync"], counts["open_gaps_left"]) == (5, 5, 0, 20)
    assert len(ended.audited) == 10, "the others were not touched"
    assert exit_code({"kind": "backfill", "state": ended.run.state.value, "counts": counts}) == DIFFERENCES


def test_lesson_20_a_field_that_was_never_written_refuses_the_item(ledger: SqlLedger) -> None:
    """The retry read a name that the writer never wrote, got the default 0.0, and overwrote the real amount."""
    rig = Rig()
    rig.source_writes(1)
    del rig.source[1]["total"]
    rig.stranger_writes(1, {"_id": 1, "total": 430, "note": "the real amount"})
    ended = repaired(rig, ledger)
    assert rig.writes == []
    assert rig.target[1]["total"] == 430
    assert ended.audited[1] == [ItemOutcome.FAILED.value]
    assert ended.run.state is RunState.FAILED
    assert ended.gap(1).state is State.OPEN


@pytest.mark.parametrize("value", [PLACEHOLDER, PLACEHOLDER.encode()])
def test_lesson_21_a_masked_value_is_never_written(ledger: SqlLedger, value: Any) -> None:
    rig = Rig()
    rig.source_writes(1, note=value)
    ended = repaired(rig, ledger)
    assert (rig.writes, rig.target) == ([], {})
    assert ended.audited[1] == [ItemOutcome.FAILED.value]


def test_lesson_21_null_is_a_value_and_not_a_default(ledger: SqlLedger) -> None:
    """A default of 100.00 overwrote 430.00: what is null at the source is null at the target, and a number stays that number."""
    rig = Rig()
    rig.source_writes(1, total=430)
    rig.source_writes(2, total=None)
    rig.stranger_writes(1, {"_id": 1, "total": 100, "note": "default"})
    repaired(rig, ledger)
    assert rig.target == {number: rig.document(rig.source[number]) for number in (1, 2)}
    assert (rig.target[1]["total"], rig.target[2]["total"]) == (430, None)


def test_lesson_21_one_refused_item_keeps_no_other_from_being_repaired(ledger: SqlLedger) -> None:
    rig = Rig(spec=DELETING_SPEC)
    rig.source_writes(1, note=PLACEHOLDER)
    rig.source_writes(2)
    ended = repaired(rig, ledger)
    assert (ended.run.counts["written"], ended.run.counts["failed"], ended.run.counts["in_sync"]) == (1, 1, 0)
    assert rig.agrees(2)


def test_lesson_22_what_is_missing_altogether_is_repaired(ledger: SqlLedger) -> None:
    """ "Auto-repair of missing" returned false whenever the parent was missing: nothing of the row is at the target."""
    rig = Rig()
    rig.source_writes(1)
    ended = repaired(rig, ledger)
    assert rig.agrees(1)
    assert ended.gap(1).resolution is Resolution.BACKFILLED


def test_lesson_23_a_write_that_changes_nothing_is_no_failed_repair(ledger: SqlLedger) -> None:
    """Between judging and writing the sink delivered the very same state: nothing failed, nothing is tried again."""
    rig = Rig()
    rig.source_writes(1)
    at_write(rig, lambda: rig.sink_delivers(1))
    ended = repaired(rig, ledger)
    assert rig.writes == []
    assert (ended.run.counts["failed"], ended.run.counts["already_newer"]) == (0, 1)
    assert ended.run.state is RunState.SUCCEEDED


def test_lesson_23_a_row_that_is_right_by_now_is_no_write_and_no_failure(ledger: SqlLedger) -> None:
    rig = Rig()
    rig.source_writes(1)
    rig.sink_delivers(1)
    ended = repaired(rig, ledger)
    assert (ended.run.counts["already_right"], ended.run.counts["failed"], len(rig.writes)) == (len(NUMBERS), 0, 0)
    assert ended.gap(1).resolution is Resolution.LATE_ARRIVAL
    assert ended.run.counts["in_sync"] == 1


def test_lesson_15_the_status_of_a_write_proves_nothing(ledger: SqlLedger) -> None:
    """The store says "written" and holds something else (a rollback): only reading back is a proof."""
    rig = Rig()
    rig.source_writes(1)
    at_write(rig, lambda: rig.stranger_writes(1, None), after=1)
    ended = repaired(rig, ledger)
    assert len(rig.writes) == 1
    assert (ended.run.counts["written"], ended.run.counts["verified"]) == (0, 0)
    assert ended.gap(1).state is State.OPEN
    assert ended.run.counts["in_sync"] == 0


def test_lesson_15_a_write_that_cannot_be_read_back_is_not_counted(ledger: SqlLedger) -> None:
    rig = Rig()
    rig.source_writes(1)
    at_write(rig, lambda: rig.away.add(Side.OBSERVED), after=1)
    ended = repaired(rig, ledger)
    assert (ended.run.counts["written"], ended.run.counts["verified"], ended.run.counts["unread"]) == (0, 0, 1)
    assert ended.run.state is RunState.INCONCLUSIVE
    assert ended.gap(1).state is State.OPEN


def test_lesson_17_nothing_is_written_while_the_target_does_not_answer(ledger: SqlLedger) -> None:
    rig = Rig()
    rig.source_writes(1)
    rig.away.add(Side.OBSERVED)
    ended = repaired(rig, ledger)
    assert rig.writes == []
    assert ended.run.state is RunState.INCONCLUSIVE


def test_a_row_that_goes_while_it_is_written_takes_its_document_along(ledger: SqlLedger) -> None:
    rig = Rig()
    rig.source_writes(1)
    at_write(rig, lambda: rig.source_deletes(1))
    ended = repaired(rig, ledger)
    assert (len(rig.writes), rig.target) == (2, {})
    assert ended.run.counts["vanished"] >= 1


def test_a_row_that_comes_back_while_its_document_is_deleted_gets_it_back(ledger: SqlLedger) -> None:
    """The same row is inserted again and delivered before the delete: the guard sees just the document that it read."""
    rig = Rig(spec=DELETING_SPEC)
    row = rig.source_writes(1)
    rig.sink_delivers(1)
    rig.source_deletes(1)
    rig.sink_loses(1)
    at_write(rig, lambda: rig.source_writes(1, total=row["total"], note=row["note"]), lambda: rig.sink_delivers(1))
    ended = repaired(rig, ledger)
    assert rig.agrees(1), "deleted, and its row is there"
    assert ended.audited[1][-1] == ItemOutcome.WRITTEN.value


def test_a_key_that_a_second_table_holds_by_now_keeps_its_document(ledger: SqlLedger) -> None:
    """Which of the rows the document is of, nobody knows: it was taken for a row that is gone, and the document deleted."""
    rig = Rig()
    row = rig.source_writes(1)
    rig.stranger_writes(1, {"_id": 1, "total": -5, "note": "stale"})
    at_write(rig, lambda: rig.twice.add(1))
    ended = repaired(rig, ledger)
    assert (len(rig.writes), rig.target) == (1, {1: rig.document(row)})
    assert ended.audited[1][-1] == ItemOutcome.UNREAD.value
    assert (ended.run.state, ended.gap(1).state) == (RunState.INCONCLUSIVE, State.OPEN)


def test_a_row_that_comes_back_and_goes_while_its_deletion_is_read_back_is_read_once_more(ledger: SqlLedger) -> None:
    rig = Rig(spec=DELETING_SPEC)
    rig.stranger_writes(1, {"_id": 1, "total": -1, "note": "too much"})
    calls: list[str] = []

    def between(what: str) -> None:
        if calls or what.startswith("write"):
            calls.append(what)
        if len(calls) == 2:  # the first read after the write: of the source
            rig.source_writes(1)
        elif len(calls) == 4:  # the second one
            rig.source_deletes(1)

    rig.between = between
    ended = repaired(rig, ledger)
    assert (len(rig.writes), rig.target) == (1, {})
    assert ended.run.state is RunState.SUCCEEDED
    assert ended.gap(1).resolution is Resolution.BACKFILLED


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("nan")], {"a": [float("nan")]}])
def test_a_document_with_nan_does_not_outlive_its_row(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Read back, it is not equal to what was written, and still ours."""
    fields = (samples.field("total", FieldType.INT), samples.field("note", FieldType.INFERRED))
    rig = Rig(spec=samples.pipeline(*fields, source_feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic="of.documents")))
    monkeypatch.setattr(ModelReader, "_read", decoded_anew(ModelReader._read))
    monkeypatch.setattr(ModelWriter, "document", lambda _, key, row, fields: rig.document(dict(row.fields)))
    rig.source_writes(1, note=value)
    at_write(rig, lambda: rig.source_deletes(1))
    ended = repaired(rig, ledger)
    assert (len(rig.writes), rig.target) == (2, {})
    assert ended.run.counts["vanished"] >= 1


def decoded_anew(read: Callable[..., Any]) -> Callable[..., Any]:
    """Have every read of the target return values of its own, as a driver does: no NaN is another one, in whatever list."""

    def anew(reader: ModelReader, number: int, key: bytes) -> Any:
        found = read(reader, number, key)
        if reader._side is Side.EXPECTED or not isinstance(found, StoredRecord):
            return found
        return structs.replace(found, fields=pickle.loads(pickle.dumps(found.fields)))

    return anew


def test_a_correction_that_the_target_refuses_is_not_called_newer(ledger: SqlLedger) -> None:
    """Our document outlives its row, because the target refuses the delete: that is said, and the gap stays open."""
    rig = Rig()
    rig.source_writes(1)
    writing: list[bool] = []

    def between(what: str) -> None:
        if writing:
            rig.refused = {1}
        elif what.startswith("write"):
            writing.append(True)
            rig.source_deletes(1)

    rig.between = between
    ended = repaired(rig, ledger)
    assert rig.target
    assert ended.audited[1][-1] == ItemOutcome.UNREAD.value
    assert ended.run.state is RunState.INCONCLUSIVE
    assert ended.gap(1).state is State.OPEN


def test_lesson_5_what_the_target_refused_is_neither_synced_nor_in_sync(ledger: SqlLedger) -> None:
    """`in sync: true` came back although items of the bulk had failed; "synced" counted documents sent, not accepted."""
    rig = Rig()
    for number in NUMBERS:
        rig.source_writes(number)
    rig.refused = {1, 3}
    ended = repaired(rig, ledger)
    counts = ended.run.counts
    assert (counts["written"], counts["verified"], counts["failed"], counts["in_sync"]) == (3, 3, 2, 0)
    assert ended.run.state is not RunState.SUCCEEDED
    assert {number for number in NUMBERS if ended.gap(number).state is State.OPEN} == {1, 3}
