"""What a backfill reads once, it does not read again; and what somebody changed meanwhile is not passed over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from gapwatch.core.confirm import Cleared
from gapwatch.core.gaps import by_hand
from gapwatch.errors import StoreUnreachable
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import AuditRow, Cause, Gap, Resolution, Run, RunKind, RunState, State
from gapwatch.model.pipeline import Policy
from gapwatch.model.stream import Operation
from gapwatch.model.suspect import GivenUp, Heard
from gapwatch.ports import GapChange, Key
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.book import FRESH_MILLISECONDS, Book
from gapwatch.roles.repair.holding import TRIES, Holding
from gapwatch.roles.repair.judging import Case, Decided, KeyJudge
from gapwatch.roles.repair.reads import read_batch
from tests.ledger_samples import gap as a_gap
from tests.ledger_samples import opening
from tests.ledger_samples import run as a_run
from tests.simulation.stores import ModelReader, VirtualClock
from tests.unit.roles.test_autorepairer import AUTO, Story


class Watched:
    """A ledger that says what is asked of it, and lets somebody else in between."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.asked: list[str] = []
        self.before_store: list[Any] = []
        self.fails: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def open_gaps_for(self, pipeline: str, keys: Collection[Key]) -> Mapping[Key, Gap]:
        self.asked.append("open_gaps_for")
        return self._ledger.open_gaps_for(pipeline, keys)

    def store_gaps(self, changes: Sequence[GapChange]) -> Sequence[bool]:
        self.asked.append("store_gaps")
        if self.before_store:
            self.before_store.pop(0)()
        return self._ledger.store_gaps(changes)

    def audit(self, rows: Sequence[AuditRow], *, by: Run | None = None) -> None:
        outcomes = {row.outcome for row in rows}
        self.asked += [f"audit {outcome}" for outcome in sorted(outcomes)]
        if outcomes & self.fails:
            raise StoreUnreachable("The ledger does not answer.", store="ledger")
        self._ledger.audit(rows, by=by)


def missing(ledger: Any, *numbers: int) -> Story:
    story = Story(ledger)
    for number in numbers:
        story.rig.stranger_writes(number, None)
    story.sweep()
    return story


def somebody(ledger: SqlLedger, gap: Gap, action: str = "ack") -> None:
    now = gap.confirmed_at
    changed = by_hand(gap, action, note="mine", resolution=Resolution.MANUAL, now=now)
    assert ledger.store_gaps([GapChange(gap=changed, against=gap.revision, event="acknowledged")]) == [True]


def taken(story: Story, ledger: Any) -> Mapping[Key, Gap]:
    keys = [gap.key for gap in story.gaps()]
    return asyncio.run(Holding(ledger, story.clock).take(replace(a_run(), pipeline=story.spec.id), keys))


def agreeing(story: Story, *numbers: int) -> list[Decided]:
    keys = [story.rig.key(number) for number in numbers]
    batch = asyncio.run(read_batch(story.rig.stores, keys, story.clock))
    return [Decided(case=Case(key=key), judgement=Cleared(reason="in_agreement"), reads=batch.by_key[key]) for key in keys]


def test_gaps_taken_in_hand_are_returned_as_they_are_stored(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    story = missing(watched, 1, 2, 3)
    first = story.gaps()[0]
    somebody(ledger, first)
    watched.asked.clear()
    held = taken(story, watched)
    assert watched.asked == ["open_gaps_for", "store_gaps"]
    assert held == {gap.key: gap for gap in story.gaps()}
    assert [gap.state for gap in held.values()].count(State.REPAIRING) == 2


def test_a_gap_that_is_changed_while_it_is_taken_is_taken_as_it_is_then(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    story = missing(watched, 1, 2, 3)
    first, second, _ = story.gaps()
    watched.before_store = [lambda: somebody(ledger, first)]
    held = taken(story, watched)
    assert held == {gap.key: gap for gap in story.gaps()}
    assert (held[first.key].state, held[second.key].state) == (State.ACKNOWLEDGED, State.REPAIRING)


def test_a_gap_that_is_changed_each_time_is_held_as_it_was_left(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    story = missing(watched, 1)

    def changed() -> None:
        (gap,) = story.gaps()
        noted = structs.replace(gap, note=gap.note + "x", revision=gap.revision + 1)
        assert ledger.store_gaps([GapChange(gap=noted, against=gap.revision, event="updated")]) == [True]

    watched.before_store = [changed] * TRIES
    held = taken(story, watched)
    assert list(held.values()) == story.gaps()
    assert [gap.state for gap in held.values()] == [State.OPEN]


def test_gaps_in_hand_are_closed_without_being_read_again(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    story = missing(watched, 1, 2)
    held = taken(story, ledger)
    for number in (1, 2):
        story.rig.sink_delivers(number)
    story.book._ledger = watched
    watched.asked.clear()
    decided = agreeing(story, 1, 2)
    keys = {item.case.key for item in decided}
    assert asyncio.run(story.book.close(story.rig.stores, decided, backfilled=keys, held=held)) == keys
    assert watched.asked == ["store_gaps"]
    assert {gap.resolution for gap in story.gaps()} == {Resolution.BACKFILLED}


@pytest.mark.parametrize("newer", [True, False])
def test_a_gap_that_was_changed_since_is_closed_as_it_is_now_or_stays_open(ledger: SqlLedger, newer: bool) -> None:
    story = missing(ledger, 1, 2)
    held = taken(story, ledger)
    changed = held[story.rig.key(1)]
    somebody(ledger, changed)
    for number in (1, 2):
        story.rig.sink_delivers(number)
    closed = asyncio.run(story.book.close(story.rig.stores, agreeing(story, 1, 2), held=held, newer=newer))
    states = {gap.key: (gap.state, gap.note) for gap in story.gaps()}
    assert states[story.rig.key(2)] == (State.RESOLVED, "")
    assert states[changed.key] == (State.RESOLVED if newer else State.ACKNOWLEDGED, "mine")
    assert (changed.key in closed) is newer


def test_a_gap_that_opened_since_is_closed_too(ledger: SqlLedger) -> None:
    story = missing(ledger, 1)
    story.rig.sink_delivers(1)
    asyncio.run(story.book.close(story.rig.stores, agreeing(story, 1), held={}))
    assert [gap.state for gap in story.gaps()] == [State.RESOLVED]


def test_lesson_40_what_was_read_before_a_worker_stood_still_closes_no_gap(ledger: SqlLedger) -> None:
    """It holds an agreement, and what broke since was confirmed by another worker, in a revision that only the ledger had."""
    story = missing(ledger, 1, 2)
    story.rig.sink_delivers(1)
    decided = agreeing(story, 1)
    asyncio.run(story.clock.sleep(FRESH_MILLISECONDS / 1000 + 0.1))
    assert asyncio.run(story.book.close(story.rig.stores, decided)) == set(), "it is to be read once more"
    assert {gap.state for gap in story.gaps()} == {State.OPEN}
    fresh = agreeing(story, 1)
    assert asyncio.run(story.book.close(story.rig.stores, fresh)) == {story.rig.key(1)}


def test_where_there_is_no_gap_old_reads_are_as_good_as_new_ones(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(1, None)
    story.rig.sink_delivers(1)
    decided = agreeing(story, 1)
    asyncio.run(story.clock.sleep(60))
    assert asyncio.run(story.book.close(story.rig.stores, decided)) == {story.rig.key(1)}


def order(ledger: Watched) -> tuple[Story, Run]:
    story = missing(ledger, 1, 2)
    assert story.step() is not None
    ledger.asked.clear()
    story.rig.between = lambda what: ledger.asked.append(what) if what == "write" else None
    return story, story.carry_out()


def test_a_write_is_announced_before_and_its_outcome_is_on_record_before_the_gap_is_closed(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    _, run = order(watched)
    assert run.state is RunState.SUCCEEDED
    steps = [step for step in watched.asked if step != "open_gaps_for"]
    assert steps == ["store_gaps", "audit planned", "write", "audit written", "store_gaps"]


def test_an_outcome_that_cannot_be_stored_closes_no_gap(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    watched.fails = {"written"}
    story, run = order(watched)
    assert run.state is RunState.INCONCLUSIVE
    assert {gap.state for gap in story.gaps()} == {State.OPEN}
    outcomes = [row.outcome for row in ledger.audit_rows(run_id=run.id)]
    assert outcomes == ["planned"] * 2, "what was announced, and may have been written"


def test_an_announcement_that_cannot_be_stored_writes_nothing(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    story = missing(watched, 1, 2)
    assert story.step() is not None
    watched.fails = {"planned"}
    assert story.carry_out().state is RunState.INCONCLUSIVE
    assert story.rig.writes == []


TOO_DEEP: Any = 1
for _ in range(250):
    TOO_DEEP = [TOO_DEEP]


def test_a_row_that_could_not_be_verified_is_not_written_and_holds_up_no_other(ledger: SqlLedger) -> None:
    story = missing(ledger, 1, 2, 3)
    story.rig.source[2]["note"] = TOO_DEEP
    assert story.step() is not None
    run = story.carry_out()
    assert (run.counts["written"], run.counts["failed"]) == (2, 1)
    assert sorted(story.rig.number(item.key) for item in story.rig.writes) == [1, 3]
    states = {story.rig.number(gap.key): gap.state for gap in story.gaps()}
    assert states == {1: State.RESOLVED, 2: State.OPEN, 3: State.RESOLVED}
    (failed,) = [row for row in ledger.audit_rows(run_id=run.id) if row.outcome == "failed"]
    assert "nested deeper" in (failed.reason or "")
    assert "planned" not in {row.outcome for row in ledger.audit_rows(run_id=run.id, key=story.rig.key(2))}


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_key_that_is_nested_too_deep_leaves_a_sweep_inconclusive_and_ends_nobody(ledger: SqlLedger, side: str) -> None:
    story = missing(ledger, 1)
    (story.rig.source if side == "source" else story.rig.target)[3]["note"] = TOO_DEEP
    story.sweep()
    run = next(run for run in ledger.runs(kind=RunKind.SWEEP, limit=1))
    assert (run.state, run.counts["undecided"]) == (RunState.INCONCLUSIVE, 1)
    assert [story.rig.number(gap.key) for gap in story.gaps()] == [1]


def test_each_outcome_says_what_stood_there_and_what_stands_there_now(ledger: SqlLedger) -> None:
    """In a batch of many, with deletions among the writes."""
    story = Story(ledger, replace(AUTO, extra=Policy.AUTO), rows=400)
    rig = story.rig
    for number in range(0, 40, 2):
        rig.stranger_writes(number, None)
    for number in (1001, 1003):
        rig.stranger_writes(number, {"_id": number, "total": 1, "note": "nobody's"})
    orphans = {number: rig.mapping.canonical_target(rig.target[number]).identity.hex() for number in (1001, 1003)}
    story.sweep()
    run = story.repaired()
    written = {
        rig.number(row.key): row for row in ledger.audit_rows(run_id=run.id, limit=500) if row.key and row.outcome == "written"
    }
    assert len(written) == 22
    for number, row in written.items():
        if number in orphans:
            assert (row.before, row.after) == (orphans[number], None)
        else:
            assert (row.before, row.after) == (None, rig.mapping.canonical_source(rig.source[number]).identity.hex())


# what is due, and what is digested


def test_a_key_that_is_taken_out_and_put_back_while_it_is_read_keeps_its_new_turn(ledger: SqlLedger) -> None:
    story = missing(ledger, 1)
    judge, key = judge_of(story, story.clock), story.rig.key(1)
    judge.add(key)

    def again(what: str) -> None:
        if what == "fetch OBSERVED":
            judge.drop(key)
            judge.add(key)

    story.rig.between = again
    assert asyncio.run(judge.step()) == []
    story.rig.between = lambda what: None
    assert [case.key for case in judge.due()] == [key], "the new one has not been read at all"


def test_many_keys_are_read_as_each_of_them_alone(ledger: SqlLedger) -> None:
    story = Story(ledger, rows=60)
    for number in range(0, 60, 7):
        story.rig.stranger_writes(number, None)
    for number in range(3, 60, 7):
        story.rig.source_deletes(number)
    turn = iter(range(1_000))

    def move(what: str) -> None:
        if what == "fetch OBSERVED":
            story.rig.source_writes(next(turn) % 2 + 4)

    keys = [story.rig.key(number) for number in range(60)]
    many = asyncio.run(read_batch(story.rig.stores, keys, story.clock))
    alone = {key: asyncio.run(read_batch(story.rig.stores, [key], story.clock)).by_key[key] for key in keys}
    assert all(many.by_key[key].stands_as(alone[key]) for key in keys)
    story.rig.between = move
    moved = asyncio.run(read_batch(story.rig.stores, keys, story.clock)).by_key[keys[4]].reads
    assert moved.before.identity != moved.after.identity


def judge_of(story: Story, clock: VirtualClock, *, batch: int = 2) -> KeyJudge:
    async def stores() -> Any:
        return story.rig.stores

    delivered = Delivered(through_ms=None, age_alone=True)
    return KeyJudge(stores, grace_ms=lambda: 1_000, delivered=lambda: delivered, clock=clock, batch=batch, digests=False)


def test_the_oldest_keys_are_due_first_and_one_batch_of_them(ledger: SqlLedger) -> None:
    story = missing(ledger, 1, 2, 3, 4, 5)
    judge = judge_of(story, story.clock)
    for number in (5, 3, 1):
        judge.add(story.rig.key(number))
    assert [story.rig.number(case.key) for case in judge.due()] == [5, 3]
    assert not asyncio.run(judge.step()), "a difference waits for its grace"
    judge.add(story.rig.key(4))
    assert [story.rig.number(case.key) for case in judge.due()] == [1, 4]
    judge.drop(story.rig.key(1))
    assert [story.rig.number(case.key) for case in judge.due()] == [4]
    asyncio.run(story.clock.sleep(100))
    assert [story.rig.number(case.key) for case in judge.due()] == [4, 5], "what was never read comes before what is read again"
    assert {story.rig.number(item.case.key) for item in asyncio.run(judge.step())} <= {4, 5}
    assert len(judge) == len(judge.cases)


def test_a_key_put_back_is_due_as_it_was(ledger: SqlLedger) -> None:
    story = missing(ledger, 1)
    judge = judge_of(story, story.clock)
    judge.add(story.rig.key(1))
    asyncio.run(judge.step())
    asyncio.run(story.clock.sleep(100))
    (decided,) = asyncio.run(judge.step())
    assert len(judge) == 0
    assert judge.due() == []
    judge.again(decided)
    judge.again(decided)
    assert [case.key for case in judge.due()] == [story.rig.key(1)]


def test_only_a_row_without_a_document_may_go_without_a_digest(ledger: SqlLedger) -> None:
    story = missing(ledger, 1, 2)
    keys = [story.rig.key(number) for number in (1, 2, 3)]
    batch = asyncio.run(read_batch(story.rig.stores, keys, story.clock, digested={keys[1]}))
    whole = asyncio.run(read_batch(story.rig.stores, keys, story.clock))
    assert [bool(batch.by_key[key].reads.after.identity) for key in keys] == [False, True, True]
    for key in keys[1:]:
        assert batch.by_key[key].stands_as(whole.by_key[key])
    assert whole.by_key[keys[0]].reads.after.identity


def a_streamed_gap(ledger: SqlLedger) -> Gap:
    gap = a_gap(cause=Cause.NEVER_WRITTEN)
    assert ledger.store_gaps([opening(gap)]) == [True]
    return gap


def given_up(gap: Gap) -> Heard:
    assert gap.opened_by is not None
    assert gap.event_time is not None
    _, _, major, minor = gap.opened_by
    time = round(gap.event_time.timestamp() * 1000) + 1
    said = GivenUp(operation=Operation.DEAD_LETTERED, feed="said", partition=0, offset=3, major=major, minor=minor, time=time)
    return Heard(id="heard_1", pipeline=gap.pipeline, key=gap.key, given_up=said)


def test_an_open_gap_learns_later_why_its_write_never_came(ledger: SqlLedger) -> None:
    gap = a_streamed_gap(ledger)
    book, heard = Book(ledger, VirtualClock()), given_up(gap)
    asyncio.run(book.explain(gap.pipeline, [heard, heard]))
    known = ledger.gap(gap.id)
    assert known is not None
    assert (known.cause, known.state, known.kind, known.revision) == (Cause.DEAD_LETTERED, gap.state, gap.kind, 2)
    assert [row["side"] for row in known.evidence] == ["expected", "sink"]
    asyncio.run(book.explain(gap.pipeline, [heard]))
    assert ledger.gap(gap.id) == known
    assert [row["event"] for row in ledger.gap_history(gap.id)] == ["opened", "updated"]
    asyncio.run(book.explain(gap.pipeline, [structs.replace(heard, key=b"nobody")]))


def test_a_gap_that_somebody_changes_meanwhile_learns_it_all_the_same(ledger: SqlLedger) -> None:
    watched = Watched(ledger)
    gap = a_streamed_gap(ledger)
    watched.before_store = [lambda: somebody(ledger, gap)]
    asyncio.run(Book(watched, VirtualClock()).explain(gap.pipeline, [given_up(gap)]))
    known = ledger.gap(gap.id)
    assert known is not None
    assert (known.cause, known.state, known.note) == (Cause.DEAD_LETTERED, State.ACKNOWLEDGED, "mine")


def sweep_again(story: Story, ledger: Any) -> tuple[Mapping[str, int], dict[str, int]]:
    """Return what a sweep counted, and how many keys were read of each store by key."""
    reads: Counter[str] = Counter()
    fetch = ModelReader.fetch

    async def counted(reader: ModelReader, keys: Collection[Key]) -> Any:
        reads[reader._side.name.lower()] += len(keys)
        return await fetch(reader, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelReader, "fetch", counted)
        story.sweep()
    run = ledger.runs(pipeline=story.spec.id, kind=RunKind.SWEEP, limit=1)[0]
    assert run.state is RunState.SUCCEEDED
    return run.counts, dict(reads)


def test_what_has_an_open_gap_is_swept_with_one_look_and_what_is_in_hand_with_none(ledger: SqlLedger) -> None:
    story = missing(ledger, 1, 2, 3, 4)
    story.rig.stranger_writes(5, None)
    counts, reads = sweep_again(story, ledger)
    assert (counts["differences"], counts["missing"]) == (5, 5)
    assert reads == {"expected": 4 + 2, "observed": 4 + 2}, "the fifth is read, waited for, and read again"
    gaps = taken(story, ledger)
    assert len(gaps) == 5
    story.rig.stranger_writes(6, None)
    counts, reads = sweep_again(story, ledger)
    assert (counts["differences"], counts["in_hand"], reads) == (1, 5, {"expected": 2, "observed": 2})
    assert [gap.state for gap in story.gaps()].count(State.REPAIRING) == 5
    row = story.rig.source_writes(5)
    story.rig.stranger_writes(5, row)
    asyncio.run(Holding(ledger, story.clock).set_down(story.spec.id, list(gaps), {}))
    counts, _ = sweep_again(story, ledger)
    assert (counts["differences"], counts.get("in_hand")) == (5, None), "what a backfill left behind is judged"


def test_an_open_gap_whose_row_has_changed_is_waited_for_as_any_other(ledger: SqlLedger) -> None:
    story = missing(ledger, 1)
    story.rig.source_writes(1)  # and its sink will write it
    before = story.clock.now_ms()
    counts, reads = sweep_again(story, ledger)
    assert (counts["differences"], reads) == (1, {"expected": 2, "observed": 2})
    assert story.clock.now_ms() - before >= 1_000
