"""What a repair, a sweep or a hole rests on may change while it waits for its turn: nothing is booked or written by old reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import bson
import pytest
from bson import ObjectId

from gapwatch.core.backfill import Step, decide
from gapwatch.core.confirm import Difference, Progress, judge
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import ConflictError
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Cause, Detector, Kind, RunKind, RunState, State
from gapwatch.model.pipeline import FieldType, KeyColumn, KeyType, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Suspect
from gapwatch.ports import ABSENT, Key, StoredRecord, WriteItem
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller, _still_ours
from gapwatch.roles.repair.judging import Case, Decided, KeyJudge
from gapwatch.roles.repair.reads import read_batch
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.mongodb.connection import OPTIONS
from gapwatch_connectors.mongodb.documents import build
from gapwatch_connectors.mongodb.keys import DocumentKeys
from tests.ledger_samples import hole as a_hole
from tests.simulation.stores import ModelReader, Rig, VirtualClock
from tests.unit.core.samples import field, pipeline, unsatisfied
from tests.unit.roles.test_autorepairer import AUTO, Story

GRACE_MS = 5_000


class Slow(Story):
    """Gaps of keys 0..n, proved one after the other; deliveries pass one proof every 0.8 s: keys are judged one by one."""

    def __init__(self, ledger: SqlLedger, numbers: range, repair: RepairSpec = AUTO) -> None:
        super().__init__(ledger, replace(repair, brake_ratio=1.0), rows=200)
        self.clock._pace = 1
        for number in numbers:
            self.rig.stranger_writes(number, None)
            self.sweep()
        self.began = self.clock.now_ms()
        self.proofs = sorted(gap.confirmed_at.timestamp() * 1000 for gap in self.gaps())

    def delivered_now(self, _: str) -> Delivered:
        """One proof more is passed every 0.8 s, as with a sink that is some seconds behind and status once a second or so."""
        passed = 1 + int((self.clock.now_ms() - self.began) / 800)
        through = self.proofs[passed - 1] if passed <= len(self.proofs) else self.clock.now_ms() - 800
        return Delivered(through_ms=int(through) + 1, age_alone=False)

    def carry_out_with(self, world: Callable[[], Any]) -> Any:
        taken = self.ledger.take_run(RunKind.BACKFILL, "here", seconds=1e6)
        assert taken is not None
        backfiller = Backfiller(
            BackfillDependencies(
                ledger=self.ledger,
                book=self.book,
                clock=self.clock,
                holder="here",
                grace_ms=lambda _: GRACE_MS,
                delivered=self.delivered_now,
                on_document=lambda *_: None,
            )
        )

        async def both() -> Any:
            task = asyncio.create_task(world())
            try:
                return await backfiller.run(taken, self.rig.stores)
            finally:
                await task

        return asyncio.run(both())

    async def until(self, seconds: float) -> None:
        while self.clock.now_ms() < self.began + seconds * 1000:  # noqa: ASYNC110 - the clock is a virtual one
            await asyncio.sleep(0.001)


def suspect_of(story: Story, number: int) -> Suspect:
    digest = story.rig.mapping.canonical_source(story.rig.source[number]).identity
    return unsatisfied(story.rig.key(number), digest=digest, event_time=story.clock.now_ms(), pipeline=story.spec.id)


def test_an_agreement_read_long_ago_resolves_no_gap_that_was_confirmed_since(ledger: SqlLedger) -> None:
    """Key 0 agrees when read (late arrival). While its batch gathers, a newer write of it is lost and confirmed as a gap."""
    story = Slow(ledger, range(10))
    story.rig.stranger_writes(0, story.rig.document(story.rig.source[0]))  # it arrived late, by itself
    assert story.step() is not None
    confirmed: list[int] = []

    async def world() -> None:
        await story.until(0.3)  # key 0 has been judged: it agrees
        story.rig.source_writes(0)  # a newer write …
        story.rig.sink_loses(0)  # … which the sink loses
        await story.until(0.3 + GRACE_MS / 1000 + 0.5)  # grace has passed: the stream raises it, and it is confirmed
        suspect = suspect_of(story, 0)
        reads = (await read_batch(story.rig.stores, [suspect.key], story.clock)).by_key[suspect.key]
        judgement = judge(suspect, reads.reads, Progress(), story.spec.match)
        assert isinstance(judgement, Difference)
        decided = Decided(case=Case(key=suspect.key, suspect=suspect), judgement=judgement, reads=reads)
        while not await story.book.open(story.rig.stores, [decided], Detector.STREAM):  # noqa: ASYNC110 - the repair changed it
            await asyncio.sleep(0)
        confirmed.append(story.clock.now_ms())  # now the verdict `gap` goes out, and the key leaves the matcher's state

    story.carry_out_with(world)
    assert confirmed
    assert not story.rig.agrees(0)
    mine = [(gap.state, gap.resolution) for gap in story.gaps() if story.rig.number(gap.key) == 0]
    assert any(state is not State.RESOLVED for state, _ in mine), f"the target is wrong, and the gap is {mine}"


def test_what_is_written_was_read_a_moment_ago(ledger: SqlLedger) -> None:
    """The row goes, and the sink has passed its delete, seconds before the repair inserts its document."""
    story = Slow(ledger, range(10))
    assert story.step() is not None
    gone: list[int] = []
    late: list[int] = []

    async def world() -> None:
        await story.until(0.3)  # key 0 has been judged: missing
        story.rig.source_deletes(0)
        while story.rig.sink.get(0):
            story.rig.sink_delivers(0)
        gone.append(story.clock.now_ms())

    def on_write(item: WriteItem) -> None:
        if story.rig.number(item.key) == 0 and item.document is not None and gone:
            late.append(story.clock.now_ms() - gone[0])

    story.rig.on_write = on_write
    story.carry_out_with(world)
    assert not late, f"a row that was gone for {late[0]} ms, and whose delete was delivered, was written"


def test_a_document_that_was_written_for_a_row_that_had_gone_does_not_stay(ledger: SqlLedger) -> None:
    """… and the target answers no more until the run has ended: every later run leaves our document there."""
    story = Slow(ledger, range(10))
    assert story.step() is not None

    async def world() -> None:
        await story.until(0.3)
        story.rig.source_deletes(0)
        while story.rig.sink.get(0):
            story.rig.sink_delivers(0)

    def between(what: str) -> None:
        if story.rig.writes:
            story.rig.away.add(Side.OBSERVED)

    story.rig.between = between
    story.carry_out_with(world)
    story.rig.between = lambda what: None
    story.rig.away.clear()
    story.delivered = Delivered(through_ms=None, age_alone=True)
    story.clock._pace = 100
    for _ in range(5):
        story.wait(8_000)
        if story.step() is not None:
            story.carry_out()
    assert 0 not in story.rig.source
    assert 0 not in story.rig.target, "our own document outlives its row, for good"


def test_what_we_wrote_is_known_again_where_the_key_is_not_the_id() -> None:
    columns = (KeyColumn(path="order_id", type=KeyType.INT),)
    keys, key = DocumentKeys(columns), KeyCodec(columns).encode([1])
    row = StoredRecord(key=key, fields={"id": 1, "total": 5}, revision="1")
    document = build(keys, key, row, [field("total", FieldType.INT)], "__debezium_unavailable_value")
    # what MongoWriter inserts (an upsert makes the _id), as MongoReader reads it back
    there = bson.decode(bson.encode({"_id": ObjectId(), **document}), OPTIONS)
    item = WriteItem(key=key, document=document, replaces=ABSENT)
    read = StoredRecord(key=key, fields=there, target_id=str(there["_id"]), raw=there)
    mapping = CompiledMapping(pipeline(field("total", FieldType.INT)))
    assert _still_ours(mapping, item, read) is not None, "our own write is taken for somebody else's: it is never taken back"


def test_a_repair_that_never_reads_back_right_is_given_up(ledger: SqlLedger) -> None:
    """The target changes what is written to it (an ingest pipeline, a trigger): the repair can never come off."""
    story = Story(ledger)
    story.rig.stranger_writes(7, {"_id": 7, "total": -1, "note": "wrong"})
    story.sweep()

    def between(what: str) -> None:
        if what == "fetch OBSERVED" and 7 in story.rig.target:
            story.rig.target[7] = story.rig.target[7] | {"note": "CHANGED BY THE TARGET"}

    story.rig.between = between
    for _ in range(30):
        if story.step() is not None:
            story.carry_out()
        story.wait(36_000)
    (record,) = story.failed()
    assert record.next_at is None, f"{record.tries} tries, {record.attempts} attempts, {len(story.rig.writes)} writes: no end"


def test_a_mismatch_that_the_trial_held_back_is_no_gap_once_it_agrees(ledger: SqlLedger) -> None:
    story = Story(ledger, RepairSpec(), rows=100)
    rig = story.rig
    rig.stranger_writes(7, {"_id": 7, "total": -1, "note": "wrong"})
    rig.stranger_writes(8, None)  # a second key keeps the sweep busy for a while: its row changes in the first few reads
    seen = {"rounds": 0}

    def between(what: str) -> None:
        if what != "fetch OBSERVED":
            return
        seen["rounds"] += 1
        if seen["rounds"] in (2, 3, 4):
            rig.source_writes(8)
        if seen["rounds"] == 4:  # key 7 was judged in round 2, and is held; now it is put right
            rig.stranger_writes(7, rig.document(rig.source[7]))

    rig.between = between
    story.sweep()
    assert seen["rounds"] >= 4
    assert rig.agrees(7)
    opened = [gap.key for gap in story.gaps() if rig.number(gap.key) == 7]
    assert not opened, "a gap was opened for a key that agreed when it was booked"


def test_what_may_be_written_depends_on_the_key_and_not_on_its_company() -> None:
    """missing: auto, stale: auto, mismatch: report. A missing document came back different."""
    now = Difference(kind=Kind.MISMATCH, cause=Cause.UNKNOWN, fields=("total",))
    alone = decide(now, frozenset({Kind.MISSING}), planned=Kind.MISSING)
    in_company = decide(now, frozenset({Kind.MISSING, Kind.STALE}), planned=Kind.MISSING)
    assert (alone.step, in_company.step) == (Step.LEAVE, Step.LEAVE)


def test_a_hole_that_grew_while_a_sweep_was_settled_stays(ledger: SqlLedger) -> None:
    clock = VirtualClock()
    one, two, three = clock.now(), clock.now(), clock.now()
    hole = a_hole(one, one)
    ledger.raise_finding(hole)
    started = two
    (read,) = ledger.findings("orders")  # as RunRunner._settle reads them
    grown = replace(hole, time_to=three, last_seen=three)
    ledger.raise_finding(grown)  # a confirmer, or the watcher
    assert (read.time_to or read.last_seen) < started
    ledger.clear_finding(read.id, at=three, covered_by="sweep", through=started)
    ledger.raise_finding(grown)  # repeated
    assert ledger.findings("orders"), "nobody has read what the hole grew by, and it is forgotten"


@pytest.mark.parametrize(("taken_over", "left"), [(True, State.REPAIRING), (False, State.OPEN)])
def test_whoever_has_lost_a_run_leaves_its_gaps_to_the_next_holder(ledger: SqlLedger, taken_over: bool, left: State) -> None:
    """A cancelled run sets its gaps down; one that somebody else has taken over does not."""
    story = Slow(ledger, range(3))
    assert story.step() is not None
    (run,) = ledger.runs(pipeline=story.spec.id, kind=RunKind.BACKFILL, states=[RunState.QUEUED])

    async def world() -> None:
        await story.until(0.3)
        if taken_over:
            with ledger._db.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE runs SET holder = 'there' WHERE holder = 'here'")
        else:
            ledger.cancel_run(run.id)

    with pytest.raises(ConflictError):
        story.carry_out_with(world)
    assert {gap.state for gap in story.gaps()} == {left}


async def test_fewer_keys_are_read_at_once_where_many_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 ms a key: a hundred at once were too old to prove anything, ten times, and a hundred gaps were unverifiable."""
    rig, clock, sizes = Rig(), VirtualClock(), list[int]()
    for number in range(100):
        rig.source_writes(number)
    fetch = ModelReader.fetch

    async def slow(reader: ModelReader, keys: Collection[Key]) -> Any:
        clock._ms += 60 * len(keys)  # each of the three reads
        sizes.append(len(keys))
        return await fetch(reader, keys)

    async def stores() -> PipelineStores:
        return rig.stores

    monkeypatch.setattr(ModelReader, "fetch", slow)
    delivered = Delivered(through_ms=None, age_alone=True)
    judge = KeyJudge(stores, grace_ms=lambda: 1_000, delivered=lambda: delivered, clock=clock)
    for number in range(100):
        judge.add(rig.key(number))
    decided: list[Decided] = []
    while len(judge):
        decided += await judge.step()
        await clock.sleep(0.1)
    assert {type(item.judgement) for item in decided} == {Difference}
    assert (max(sizes), sizes[-1]) == (100, 25), "three reads of 25 take 4.5 s"
    monkeypatch.setattr(ModelReader, "fetch", fetch)  # the store is well again
    at_once = []
    for _ in range(3):
        for number in range(200):
            judge.add(rig.key(number))
        at_once.append(len(judge.due()))
        await judge.step()
    assert at_once == [25, 50, 100]
