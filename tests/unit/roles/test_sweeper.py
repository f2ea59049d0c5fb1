"""A whole sweep over two stores in memory: everything but the stores is the product."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from gapwatch.core.sweep import PLACE, Mark, Place
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Gap, Kind, Run, RunKind, RunState
from gapwatch.model.stream import Side
from gapwatch.ports import GapFilter, ScanChunk
from gapwatch.roles.repair import keyfeed, scanning, sweeper
from gapwatch.roles.repair.sweeps import request_sweep
from tests.simulation.stores import ModelReader, Rig, VirtualClock, spec_of_rig, sweeper_of


def swept(rig: Rig, ledger: SqlLedger, *, cursor: Any = None, **request: Any) -> Run:
    clock, run_id = VirtualClock(pace=100), f"sweep{len(ledger.runs())}"
    request_sweep(ledger, rig.spec, clock, run_id, request)
    taken = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert taken is not None
    taken = replace(taken, cursor=cursor or {})
    worker = sweeper_of(rig, ledger, clock)
    return asyncio.run(worker.run(taken, rig.stores, last_full_started=None))


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


@pytest.mark.parametrize("in_order", [True, False])
def test_what_a_store_does_not_answer_is_not_asked_for_key_by_key(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    """One rejected page, and every key behind it was looked up in the very store that was overloaded."""

    scan = ModelReader.scan

    async def broken(self: ModelReader, **asked: Any) -> AsyncIterator[ScanChunk]:
        async with aclosing(scan(self, **asked)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk
                if self._side is Side.OBSERVED:
                    yield ScanChunk(records=[], cursor=None, identity="one", complete=False, reason="rejected")
                    return

    monkeypatch.setattr(ModelReader, "scan", broken)
    monkeypatch.setattr(scanning, "RECORDS_PER_CHUNK", 100)
    rig, fetched = copied(3_000), list[str]()
    rig.ordered = in_order
    rig.stranger_writes(0, None)
    rig.between = fetched.append
    assert swept(rig, ledger).state is RunState.INCONCLUSIVE
    assert len(gaps(ledger)) == in_order, "of what both sides had shown by then"
    assert len(fetched) <= 6


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
    assert PLACE not in overtaken.cursor, "whoever takes over reads again what is in no row"
    stored = swept(rig, ledger)
    assert stored.state is RunState.SUCCEEDED
    assert PLACE in stored.cursor
    assert [gap.key_fields["id"] for gap in gaps(ledger)] == [4]


def test_no_mark_passes_what_is_still_being_booked(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are judged on while the last ones are stored: a worker that takes over must not begin behind those."""
    monkeypatch.setattr(scanning, "KEYS_PER_CHUNK", 100)
    monkeypatch.setattr(sweeper, "KEYS_PER_READ", 100)
    rig, lost, clock = copied(2_000), range(0, 2_000, 20), VirtualClock(pace=100)
    for number in lost:
        rig.stranger_writes(number, None)
    keys = {rig.key(number) for number in lost}
    store_gaps, update_run = ledger.store_gaps, ledger.update_run
    marks, passed = set[bytes](), set[bytes]()

    def passes(what: str) -> None:
        clock._ms += 600  # so that what was judged is reported every now and then

    def slowly(changes: Any) -> Any:
        time.sleep(0.05)
        return store_gaps(changes)

    def noted(run: Run, **more: Any) -> None:
        if (place := Place.unpack(run.cursor)) is not None:
            marks.add(place.mark.key)
            booked = ledger.open_gaps_for(run.pipeline, keys)
            passed.update(key for key in keys if key < place.mark.key and key not in booked and key not in place.left)
        update_run(run, **more)

    rig.between = passes
    monkeypatch.setattr(ledger, "store_gaps", slowly)
    monkeypatch.setattr(ledger, "update_run", noted)
    request_sweep(ledger, rig.spec, clock, "sweep0", {"content": False})
    taken = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert taken is not None
    run = asyncio.run(sweeper_of(rig, ledger, clock).run(taken, rig.stores, last_full_started=None))
    assert (run.state, run.counts["differences"], len(gaps(ledger))) == (RunState.SUCCEEDED, 100, 100)
    assert len(marks) > 1
    assert not passed


def hexed(rig: Rig, *numbers: int) -> list[str]:
    return [rig.key(number).hex() for number in numbers]


def test_a_sweep_of_named_keys_reads_no_other(ledger: SqlLedger) -> None:
    rig = copied(20)
    for number in (3, 7):
        rig.stranger_writes(number, None)
    rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    run = swept(rig, ledger, range="keys", keys=hexed(rig, 3, 4, 777, 888))
    assert run.state is RunState.SUCCEEDED
    assert {(gap.key_fields["id"], gap.kind) for gap in gaps(ledger)} == {(3, Kind.MISSING), (777, Kind.EXTRA)}
    counts = {name: run.counts[name] for name in ("keys", "source_keys", "target_keys", "differences")}
    assert counts == {"keys": 4, "source_keys": 2, "target_keys": 2, "differences": 2}, "what was compared is counted"


def test_a_range_is_half_open_and_may_lack_an_end(ledger: SqlLedger) -> None:
    rig = copied(40)
    for number in (9, 10, 19, 20, 39):
        rig.stranger_writes(number, None)
    (ten,), (twenty,) = hexed(rig, 10), hexed(rig, 20)
    run = swept(rig, ledger, **{"range": "range", "from": ten, "to": twenty})
    assert (run.state, run.counts["source_keys"], run.counts["target_keys"]) == (RunState.SUCCEEDED, 10, 8)
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {10, 19}
    swept(rig, ledger, **{"range": "range", "from": twenty, "to": None}, content=False)
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {10, 19, 20, 39}
    swept(rig, ledger, **{"range": "range", "from": None, "to": ten})
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {9, 10, 19, 20, 39}


def test_an_empty_range_is_read_twice_and_then_believed(ledger: SqlLedger) -> None:
    rig = copied(10)
    (start,), (end,) = hexed(rig, 100), hexed(rig, 200)
    assert swept(rig, ledger, **{"range": "range", "from": start, "to": end}).state is RunState.SUCCEEDED
    rig.away.add(Side.OBSERVED)
    assert swept(rig, ledger, **{"range": "range", "from": start, "to": end}).state is RunState.INCONCLUSIVE


def test_d12_a_lookback_finds_what_changed_since_and_nothing_older(ledger: SqlLedger) -> None:
    rig = copied(20)
    now = VirtualClock().now()
    for number, hours in ((3, 47), (4, 49), (5, 1)):
        rig.changed[Side.EXPECTED][number] = now - timedelta(hours=hours)
    for number in (3, 4):
        rig.stranger_writes(number, None)
    since = (now - timedelta(hours=48)).isoformat()
    run = swept(rig, ledger, range="lookback", since=since)
    assert (run.state, run.counts["keys"], run.counts["missing"]) == (RunState.SUCCEEDED, 2, 1)
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {3}
    swept(rig, ledger)
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {3, 4}, "the full audit finds both"


def test_a_lookback_sees_what_was_put_into_the_target_where_its_time_is_named(ledger: SqlLedger) -> None:
    rig = Rig(spec=replace(spec_of_rig(), target=replace(spec_of_rig().target, changed_at="at")))
    rig.source_writes(1)
    rig.sink_delivers(1)
    now = VirtualClock().now()
    rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    rig.changed = {Side.EXPECTED: {1: now}, Side.OBSERVED: {777: now}}
    run = swept(rig, ledger, range="lookback", since=(now - timedelta(hours=1)).isoformat())
    assert (run.state, run.counts["keys"]) == (RunState.SUCCEEDED, 2)
    assert {(gap.key_fields["id"], gap.kind) for gap in gaps(ledger)} == {(777, Kind.EXTRA)}


def test_d13_a_sweep_by_key_goes_on_behind_what_was_judged(ledger: SqlLedger) -> None:
    rig = copied(4_500)
    now = VirtualClock().now()
    rig.changed[Side.EXPECTED] = dict.fromkeys(range(4_500), now)
    rig.stranger_writes(10, None)
    rig.stranger_writes(4_400, None)
    whole = swept(rig, ledger, range="lookback", since=(now - timedelta(hours=1)).isoformat())
    assert whole.counts["keys"] == 4_500
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {10, 4_400}
    request = {"range": "lookback", "since": (now - timedelta(hours=1)).isoformat()}
    taken = swept(rig, ledger, cursor={"step": {"side": "expected", "at": 3_999}, "masked": 0}, **request)
    assert (taken.state, taken.counts["keys"], taken.cursor["masked"]) == (RunState.SUCCEEDED, 500, 0)


class _KilledError(Exception):
    """The worker is gone."""


class _Dying:
    """A ledger whose worker is killed right after it has stored so many reports of its run."""

    def __init__(self, ledger: SqlLedger, reports: int) -> None:
        self._ledger = ledger
        self._left = reports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def update_run(self, run: Run, *, holder: str) -> None:
        self._ledger.update_run(run, holder=holder)
        self._left -= 1
        if self._left == 0 and run.state is RunState.RUNNING:
            raise _KilledError


def _killed_again_and_again(rig: Rig, ledger: SqlLedger, every: int, **request: Any) -> tuple[Run, list[str]]:
    """Sweep with workers that all are killed, until one comes to the end; return the run, and where each began."""
    clock, began = VirtualClock(pace=100), []

    def passes(what: str) -> None:
        clock._ms += 600  # so that what was judged is reported every now and then

    rig.between = passes
    request_sweep(ledger, rig.spec, clock, "sweep0", request)
    taken = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert taken is not None
    run, reports = taken, every
    while True:
        began.append(str(run.cursor.get(PLACE, run.cursor.get("step", ""))))
        worker = sweeper_of(rig, cast(SqlLedger, _Dying(ledger, reports)), clock)
        try:
            return asyncio.run(worker.run(run, rig.stores, last_full_started=None)), began
        except _KilledError:
            reports += 1  # where hardly anything is done between two reports, the last one has to come to the end
        stored = ledger.run("sweep0")
        assert stored is not None
        run = stored


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("request_of", [{"content": True}, {"content": False}, {"range": "lookback"}], ids=str)
def test_d13_killed_again_and_again_a_sweep_goes_on_and_counts_each_key_once(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, every: int, request_of: dict[str, Any]
) -> None:
    """The first one, too, whose mismatches the trial of the mapping holds back until it has seen enough."""
    monkeypatch.setattr(scanning, "RECORDS_PER_CHUNK", 100)
    monkeypatch.setattr(scanning, "KEYS_PER_CHUNK", 100)
    monkeypatch.setattr(keyfeed, "KEYS_AT_ONCE", 100)
    monkeypatch.setattr(sweeper, "KEYS_PER_READ", 100)
    rig = copied(3_000)
    now = VirtualClock().now()
    rig.changed[Side.EXPECTED] = dict.fromkeys(range(3_000), now)
    lost, wrong = set(range(1_007, 3_000, 90)), set(range(1_003, 3_000, 40)) - set(range(1_007, 3_000, 90))
    for number in lost:
        rig.stranger_writes(number, None)
    for number in wrong:
        rig.stranger_writes(number, {"_id": number, "total": -1, "note": "wrong"})
    if "range" in request_of:
        request_of = request_of | {"since": (now - timedelta(hours=1)).isoformat()}
    run, began = _killed_again_and_again(rig, ledger, every, **request_of)
    assert run.state is RunState.SUCCEEDED
    by_content = request_of.get("content", True)
    assert {gap.key_fields["id"] for gap in ledger.gaps(GapFilter(), limit=500).gaps} == lost | (wrong if by_content else set())
    kinds = {"missing": len(lost), "mismatch": len(wrong) if by_content else 0}
    assert {kind: run.counts.get(kind, 0) for kind in kinds} == kinds
    assert run.counts["differences"] == sum(kinds.values())
    assert (run.counts["source_keys"], run.counts["target_keys"]) == (3_000, 3_000 - len(lost))
    assert len(set(began)) > 1, "each goes on where the one before it had come to"


@pytest.mark.parametrize("side", list(Side))
def test_lesson_17_a_lookback_over_a_side_that_does_not_answer_is_inconclusive(ledger: SqlLedger, side: Side) -> None:
    rig = copied(5)
    now = VirtualClock().now()
    rig.changed[Side.EXPECTED][3] = now
    rig.away.add(side)
    run = swept(rig, ledger, range="lookback", since=(now - timedelta(hours=1)).isoformat())
    assert run.state is RunState.INCONCLUSIVE
    assert gaps(ledger) == []


class _Noting:
    """A ledger that keeps what was stored of a run, and lets its holder die at the first of it that names no place to go on from
    any more."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.cursors: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def update_run(self, run: Run, *, holder: str) -> None:
        self._ledger.update_run(run, holder=holder)
        self.cursors.append(run.cursor)
        if len(self.cursors) > 1 and PLACE in self.cursors[-2] and PLACE not in run.cursor:
            raise _KilledError


@pytest.mark.parametrize("content", [True, False])
def test_d13_a_side_out_of_order_is_read_anew_by_whoever_goes_on_and_counted_once(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, content: bool
) -> None:
    """An orphan that came behind the mark was dropped by the worker that went on from there, and what was found counted twice."""
    monkeypatch.setattr(scanning, "RECORDS_PER_CHUNK", 100)
    monkeypatch.setattr(scanning, "KEYS_PER_CHUNK", 100)
    monkeypatch.setattr(sweeper, "KEYS_PER_READ", 100)
    rig = copied(3_000)
    lost, orphans = set(range(7, 3_000, 90)), {5, 1_005}
    for number in lost:
        rig.stranger_writes(number, None)
    for number in orphans:
        rig.source_deletes(number)
    rig.misplaced = frozenset(orphans)
    clock = VirtualClock(pace=100)
    request_sweep(ledger, rig.spec, clock, "sweep0", {"content": content})
    run = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert run is not None
    noting = _Noting(ledger)
    with pytest.raises(_KilledError):
        asyncio.run(sweeper_of(rig, cast(SqlLedger, noting), clock).run(run, rig.stores, last_full_started=None))
    stored = ledger.run("sweep0")
    assert stored is not None
    assert "counted" not in stored.cursor
    ended = asyncio.run(sweeper_of(rig, ledger, clock).run(stored, rig.stores, last_full_started=None))
    again = swept(rig, ledger, content=content)
    for one in (ended, again):
        assert one.state is RunState.SUCCEEDED
        assert PLACE not in one.cursor, "nobody goes on from a mark that proves nothing"
        assert one.counts["differences"] == len(lost) + len(orphans)
        assert one.counts["missing"] == len(lost)
        assert (one.counts["source_keys"], one.counts["target_keys"]) == (3_000 - len(orphans), 3_000 - len(lost))
    found = {gap.key_fields["id"]: gap.kind for gap in ledger.gaps(GapFilter(), limit=500).gaps}
    assert set(found) == lost | orphans


def test_d13_a_mark_is_not_gone_on_from_where_keys_do_not_come_in_order_any_more(ledger: SqlLedger) -> None:
    rig = copied(100)
    rig.stranger_writes(7, None)
    rig.ordered = False
    mark, mapping = Mark(key=rig.key(50), counts=(50, 49)), rig.mapping.fingerprint
    place = Place(mark=mark, identities={}, mapping=mapping, counted={"missing": 1})
    run = swept(rig, ledger, cursor={**place.pack(), "masked": 3}, content=False)
    assert run.state is RunState.SUCCEEDED
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == {7}
    assert (run.counts["source_keys"], run.counts["target_keys"], run.counts["missing"]) == (100, 99, 1)
    assert run.cursor["masked"] == 3


@pytest.mark.parametrize("same", [True, False], ids=["the same mapping", "another mapping"])
def test_a_sweep_goes_on_only_by_the_mapping_that_compared_what_lies_behind_it(ledger: SqlLedger, same: bool) -> None:
    """What another mapping had compared was called compared by this one, and counted for it in its trial."""
    rig = copied(100)
    for number in (7, 70):
        rig.stranger_writes(number, None)
    mapping = rig.mapping.fingerprint + (0 if same else 1)
    place = Place(mark=Mark(key=rig.key(50), counts=(50, 49)), identities={}, mapping=mapping)
    run = swept(rig, ledger, cursor=place.pack())
    assert run.state is RunState.SUCCEEDED
    assert {gap.key_fields["id"] for gap in gaps(ledger)} == ({70} if same else {7, 70})
    assert (run.counts["source_keys"], run.counts["target_keys"]) == (100, 98)
