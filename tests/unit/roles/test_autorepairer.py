"""Automatic repair over two stores in memory and a real ledger: everything but the stores is the product."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from gapwatch.core.autorepair import OVERWRITING
from gapwatch.core.backfill import ItemOutcome
from gapwatch.core.trial import KEYS_MIN
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Gap, Kind, RepairPressure, RepairRecord, Resolution, Run, RunKind, RunState, State
from gapwatch.model.pipeline import Policy, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.ports import GapChange, GapFilter
from gapwatch.roles.board import Delivered, Facts
from gapwatch.roles.repair.autorepairer import AutoRepairDependencies, AutoRepairer
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.plans import PLAN_ACTION, plan, request_apply, requeue
from gapwatch.roles.repair.sweeps import request_sweep
from gapwatch.roles.stores import PipelineStores
from tests.simulation.stores import Rig, VirtualClock, spec_of_rig, sweeper_of

AUTO = RepairSpec(missing=Policy.AUTO, stale=Policy.AUTO, mismatch=Policy.AUTO, backoff_seconds=30.0, max_attempts=3)
ROWS = 40


class Story:
    """One pipeline of rows that were copied right, with automatic repair."""

    def __init__(self, ledger: SqlLedger, repair: RepairSpec = AUTO, rows: int = ROWS) -> None:
        self.ledger = ledger
        self.clock = VirtualClock(pace=100)
        self.rig = Rig(spec=replace(spec_of_rig(), repair=repair))
        for number in range(rows):
            self.rig.source_writes(number)
            self.rig.sink_delivers(number)
        self.spec = self.rig.spec
        self.book = Book(ledger, self.clock)
        self._ids = itertools.count()
        self.delivered = Delivered(through_ms=None, age_alone=True)
        ledger.set_fact(Facts.baseline(self.spec.id), {"started_at": "x", "ended_at": "x", "sweep_id": None})
        self.repairer = AutoRepairer(
            AutoRepairDependencies(
                pipelines={self.spec.id: self.spec},
                ledger=ledger,
                stores=self,
                clock=self.clock,
                new_id=lambda: f"id{next(self._ids)}",
            )
        )

    async def stores(self, pipeline: str) -> PipelineStores:
        return self.rig.stores

    def sweep(self) -> None:
        """Find whatever is wrong now."""
        request_sweep(self.ledger, self.spec, self.clock, f"sweep{next(self._ids)}", {})
        taken = self.ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
        assert taken is not None
        sweeper = sweeper_of(self.rig, self.ledger, self.clock, delivered=self.delivered)
        asyncio.run(sweeper.run(taken, self.rig.stores, last_full_started=None))

    def step(self) -> Run | None:
        return asyncio.run(self.repairer.step(self.spec))

    def carry_out(self, **more: Any) -> Run:
        """Do the backfill that waits; ``more``: what it depends on besides."""
        taken = self.ledger.take_run(RunKind.BACKFILL, "here", seconds=1e6)
        assert taken is not None
        dependencies = BackfillDependencies(
            ledger=self.ledger,
            book=self.book,
            clock=self.clock,
            holder="here",
            grace_ms=lambda _: 1_000,
            delivered=lambda _: self.delivered,
            on_document=lambda *_: None,
            **more,
        )
        return asyncio.run(Backfiller(dependencies).run(taken, self.rig.stores))

    def repaired(self) -> Run:
        assert self.step() is not None
        return self.carry_out()

    def gaps(self, *states: State) -> list[Gap]:
        where = GapFilter(states=tuple(state.value for state in states))
        return sorted(self.ledger.gaps(where, limit=500).gaps, key=lambda gap: gap.key)

    def failed(self) -> list[RepairRecord]:
        return list(self.ledger.repairs(self.spec.id))

    @property
    def stopped(self) -> str:
        fact = self.ledger.fact(Facts.repair_stopped(self.spec.id))
        return str(fact["reason"]) if fact else ""

    def life(self) -> list[tuple[str, str]]:
        (gap,) = self.gaps()
        return [(row["event"], row["state"]) for row in self.ledger.gap_history(gap.id)]

    def wait(self, seconds: float) -> None:
        asyncio.run(self.clock.sleep(seconds / 100))


def test_d16_a_gap_is_repaired_by_itself_and_its_life_tells_so(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    run = story.repaired()
    assert (run.state, run.counts["written"], run.counts["verified"]) == (RunState.SUCCEEDED, 1, 1)
    assert story.rig.agrees(7)
    assert [story.rig.number(item.key) for item in story.rig.writes] == [7], "only that key is written"
    assert story.life() == [("opened", "open"), ("repairing", "repairing"), ("resolved", "resolved")]
    assert story.gaps()[0].resolution is Resolution.BACKFILLED
    actors = {row.actor for row in ledger.audit_rows(run_id=run.id)}
    assert actors == {"automatic repair"}
    assert story.step() is None, "nothing is left to do"


def test_what_was_proved_a_moment_ago_needs_no_second_wait(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    before = story.clock.now_ms()
    story.repaired()
    waited = story.clock.now_ms() - before
    pauses = story.spec.sweep.batch.pause_seconds * 1000 * 100  # the clock's pace
    assert waited < pauses + 1_000, "grace did not pass once more"


def test_a_source_that_moved_on_since_the_proof_is_given_its_own_grace(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    story.rig.source_writes(7)
    story.delivered = Delivered(through_ms=story.clock.now_ms(), age_alone=False)  # deliveries stand before that write
    assert story.step() is not None
    run = story.carry_out()
    assert (run.state, run.counts.get("written", 0)) == (RunState.INCONCLUSIVE, 0)
    assert story.rig.writes == []
    assert [gap.state for gap in story.gaps()] == [State.OPEN]


def test_what_waits_for_the_mappings_trial_is_said_and_a_count_is_read_and_not_estimated(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MongoDB's own count is wrong for good after a crash: forty rows that it calls sixty would have waited for ever."""
    story = Story(ledger)

    async def wrong(_: Any) -> int:
        return 60

    monkeypatch.setattr(type(story.rig.stores.source), "estimate", wrong)
    story.rig.stranger_writes(7, {"_id": 7, "total": None, "note": "other"})
    story.sweep()
    assert story.gaps()[0].kind in OVERWRITING
    assert story.repaired().counts["written"] == 1
    assert ledger.fact(Facts.repair_waits(story.spec.id)) is None

    for number in range(ROWS, KEYS_MIN):
        story.rig.source_writes(number)
        story.rig.sink_delivers(number)
    story.rig.stranger_writes(8, {"_id": 8, "total": None, "note": "other"})
    story.sweep()
    story.wait(70.0)  # for the count to be read again
    ledger.set_fact(f"mapping/{story.spec.id}", None)
    assert story.step() is None
    assert ledger.fact(Facts.repair_waits(story.spec.id))

    story.sweep()  # of all contents: it decides the trial
    assert story.repaired().counts["written"] == 1
    assert ledger.fact(Facts.repair_waits(story.spec.id)) is None


def test_lesson_17_a_source_that_cannot_be_counted_has_nothing_overwritten_and_its_missing_rows_are_tried(
    ledger: SqlLedger,
) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, {"_id": 7, "total": None, "note": "other"})
    story.rig.stranger_writes(8, None)
    story.sweep()
    story.rig.away.add(Side.EXPECTED)
    run = story.step()
    assert run is not None
    assert [gap.kind for gap in story.gaps() if gap.id in planned(story, run)] == [Kind.MISSING]
    assert ledger.fact(Facts.repair_waits(story.spec.id)) is None, "nobody knows whether it is on trial for long"
    assert story.carry_out().counts["written"] == 0

    story.rig.away.clear()
    story.wait(60.0)
    assert story.repaired().counts["written"] == 2, "what was not counted is counted at the next look"


def planned(story: Story, run: Run) -> set[str | None]:
    return {gap_id for _, gap_id, _ in story.ledger.audited_keys(run.request["plan"], action=PLAN_ACTION)}


def test_extra_documents_stay(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    story.sweep()
    assert story.step() is None
    assert 777 in story.rig.target


def test_report_is_the_default(ledger: SqlLedger) -> None:
    story = Story(ledger, RepairSpec())
    story.rig.stranger_writes(7, None)
    story.sweep()
    assert story.step() is None
    assert [gap.state for gap in story.gaps()] == [State.OPEN]


def test_d9_extra_documents_go_by_themselves_only_where_the_policy_says_auto(ledger: SqlLedger) -> None:
    story = Story(ledger, RepairSpec(extra=Policy.AUTO))
    story.rig.stranger_writes(777, {"_id": 777, "total": 1, "note": "nobody's"})
    story.sweep()
    run = story.repaired()
    assert run.state is RunState.SUCCEEDED
    assert 777 not in story.rig.target


def test_nothing_is_deleted_by_itself_while_the_source_is_empty(ledger: SqlLedger) -> None:
    story = Story(ledger, RepairSpec(extra=Policy.AUTO), rows=0)
    story.rig.stranger_writes(7, {"_id": 7, "total": 1, "note": "the last one"})
    story.sweep()
    assert story.step() is None
    assert story.stopped == "the source is empty: nothing is deleted by itself then"
    assert 7 in story.rig.target


def test_trap_48_a_mass_failure_stops_it_until_somebody_says_that_it_may_go_on(ledger: SqlLedger) -> None:
    story = Story(ledger)
    for number in range(11):
        story.rig.stranger_writes(number, None)
    story.sweep()
    assert story.step() is None
    assert story.stopped.startswith("11 documents of about 40 to repair within an hour")
    assert story.rig.writes == []
    for number in range(5):
        story.rig.stranger_writes(number, story.rig.document(story.rig.source[number]))
    assert story.step() is None, "it stays stopped although fewer are left"
    ledger.set_fact(Facts.repair_resumed(story.spec.id), {"at": story.clock.now().isoformat()})
    ledger.set_fact(Facts.repair_stopped(story.spec.id), None)
    run = story.repaired()
    assert (run.state, run.counts["written"], run.counts["already_right"]) == (RunState.SUCCEEDED, 6, 5)
    for number in range(10):
        story.rig.stranger_writes(number, None)
    story.sweep()
    assert story.repaired().counts["written"] == 10, "what was granted is not counted again"


def test_trap_48_gaps_that_come_while_it_looks_are_counted_before_they_are_repaired(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mass failure is stored while its first gap is looked at."""
    story, counted = Story(ledger), ledger.repair_pressure

    def lose(numbers: range) -> None:
        for number in numbers:
            story.rig.stranger_writes(number, None)
        story.sweep()

    def counted_and_more(*args: Any, **more: Any) -> RepairPressure:
        monkeypatch.setattr(ledger, "repair_pressure", counted)
        pressure = counted(*args, **more)
        lose(range(1, 20))
        return pressure

    lose(range(1))
    monkeypatch.setattr(ledger, "repair_pressure", counted_and_more)
    assert story.repaired().counts["planned"] == 1
    assert story.step() is None
    assert story.stopped.startswith("20 documents of about 40 to repair within an hour")
    assert len(story.rig.writes) == 1


def test_losses_that_trickle_in_stop_it_too(ledger: SqlLedger) -> None:
    """Each run sees a few gaps only; the brake looks back on an hour."""
    story = Story(ledger)
    for first in range(0, 10, 5):
        for number in range(first, first + 5):
            story.rig.stranger_writes(number, None)
        story.sweep()
        assert story.repaired().counts["written"] == 5
    story.rig.stranger_writes(20, None)
    story.sweep()
    assert story.step() is None
    assert story.stopped.startswith("11 documents of about 40")


def test_d6_a_document_that_the_target_refuses_is_tried_again_later_and_given_up_in_the_end(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.rig.refused.add(7)
    story.sweep()
    for attempt in (1, 2, 3):
        run = story.repaired()
        assert (run.state, run.counts["failed"], run.counts["in_sync"]) == (RunState.FAILED, 1, 0)
        (record,) = story.failed()
        assert (record.attempts, record.outcome, record.reason) == (attempt, "failed", "refused")
        assert story.step() is None, "not at once"
        story.wait(200.0)
    assert record.next_at is None
    (gap,) = story.gaps()
    assert (gap.state, gap.note) == (State.OPEN, "repair refused: refused")
    assert story.life()[-2:] == [("repairing", "repairing"), ("repair_refused", "open")]
    assert ledger.repair_counts() == {(story.spec.id, True): 1}

    story.rig.refused.clear()
    story.wait(36_000.0)
    assert story.step() is None, "what was given up is not tried any more"
    ids = iter(("plan_again", "again"))
    requeue(ledger, story.spec, story.failed(), new_id=lambda: next(ids), clock=story.clock, requested_by="ada")
    assert story.carry_out().state is RunState.SUCCEEDED
    assert (story.failed(), story.gaps()[0].resolution) == ([], Resolution.BACKFILLED)


def test_lesson_17_an_outage_uses_up_no_attempt(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    story.rig.away.add(Side.OBSERVED)
    run = story.repaired()
    assert run.state is RunState.INCONCLUSIVE
    (record,) = story.failed()
    assert (record.attempts, record.outcome) == (0, "unread")
    assert [gap.state for gap in story.gaps()] == [State.OPEN]
    story.rig.away.clear()
    story.wait(60.0)
    assert story.repaired().state is RunState.SUCCEEDED
    assert story.failed() == []


def test_d17_many_failures_stop_it_although_each_run_is_small(ledger: SqlLedger) -> None:
    story = Story(ledger, rows=200)
    for number in range(12):
        story.rig.refused.add(number)
        story.rig.stranger_writes(number, None)
        story.sweep()
        if story.step() is None:
            break
        story.carry_out()
    assert number == 10
    assert story.stopped == "the repair of 10 of 10 keys failed within an hour"


def test_it_waits_for_a_baseline_and_rests_while_the_pipeline_is_paused(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    ledger.set_fact(Facts.paused(story.spec.id), {"reason": "works on the sink", "at": story.clock.now().isoformat()})
    assert story.step() is None
    ledger.set_fact(Facts.paused(story.spec.id), None)
    baseline = ledger.fact(Facts.baseline(story.spec.id))
    ledger.set_fact(Facts.baseline(story.spec.id), None)
    assert story.step() is None
    ledger.set_fact(Facts.baseline(story.spec.id), baseline)
    assert story.repaired().state is RunState.SUCCEEDED


def test_acknowledged_gaps_are_a_persons(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    (gap,) = story.gaps()
    known = structs.replace(gap, state=State.ACKNOWLEDGED, revision=gap.revision + 1)
    assert ledger.store_gaps([GapChange(gap=known, against=gap.revision, event="acknowledged")]) == [True]
    assert story.step() is None
    plan(ledger, story.spec, frozenset({Kind.MISSING}), limit=10, run_id="by_hand", clock=story.clock)
    request_apply(ledger, "by_hand", run_id="applied", clock=story.clock)
    assert story.step() is None, "one backfill at a time"
    assert story.carry_out().state is RunState.SUCCEEDED
    assert [event for event, _ in story.life()] == ["opened", "acknowledged", "resolved"]


def test_a_gap_that_an_ended_worker_had_in_hand_is_set_down(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    (gap,) = story.gaps()
    held = structs.replace(gap, state=State.REPAIRING, revision=gap.revision + 1)
    ledger.store_gaps([GapChange(gap=held, against=gap.revision, event="repairing")])
    assert story.step() is not None
    assert story.life()[-1] == ("updated", "open")


def test_d13_what_an_earlier_holder_of_the_run_wrote_is_backfilled(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its write and its verification; who takes the run over finds both sides agreeing."""
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    assert story.step() is not None

    async def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Backfiller, "_verify", die)
    with pytest.raises(KeyboardInterrupt):
        story.carry_out()
    monkeypatch.undo()
    assert [gap.state for gap in story.gaps()] == [State.OPEN]
    with ledger._db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET lease_until = 1 WHERE lease_until IS NOT NULL")
    run = story.carry_out()
    assert (run.state, run.counts["already_right"]) == (RunState.SUCCEEDED, 1)
    assert story.gaps()[0].resolution is Resolution.BACKFILLED


def test_the_note_of_a_person_is_not_overwritten(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.rig.refused.add(7)
    story.sweep()
    (gap,) = story.gaps()
    noted = structs.replace(gap, note="ask Ada", revision=gap.revision + 1)
    ledger.store_gaps([GapChange(gap=noted, against=gap.revision, event="updated")])
    story.repaired()
    assert story.gaps()[0].note == "ask Ada"
    assert story.failed()[0].outcome == ItemOutcome.FAILED


def test_records_of_what_was_resolved_otherwise_are_forgotten(ledger: SqlLedger) -> None:
    story = Story(ledger)
    story.rig.stranger_writes(7, None)
    story.rig.refused.add(7)
    story.sweep()
    story.repaired()
    (gap,) = story.gaps()
    over = structs.replace(
        gap, state=State.RESOLVED, resolution=Resolution.MANUAL, resolved_at=gap.first_seen, revision=gap.revision + 1
    )
    ledger.store_gaps([GapChange(gap=over, against=gap.revision, event="resolved")])
    story.wait(timedelta(seconds=10).total_seconds())
    assert story.step() is None
    with ledger._db.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM repairs").scalar_one() == 0
