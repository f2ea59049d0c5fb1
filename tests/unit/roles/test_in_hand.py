"""Gaps come in hand as the turn of their keys comes, a bounded number at a time, and what waits holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from gapwatch.errors import ConflictError
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Resolution, Run, RunState, State
from gapwatch.model.stream import Side
from gapwatch.ports import GapChange
from gapwatch.roles.repair import holding, in_hand
from gapwatch.roles.repair.in_hand import InHand
from tests.unit.roles.test_autorepairer import AUTO, Story
from tests.unit.roles.test_backfill_turns import missing
from tests.unit.roles.test_books import somebody

GRACE_MS = 1_000  # of a story


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take two keys at once, and hold up to four gaps of keys that wait; return how many were held, at each step."""
    monkeypatch.setattr(holding, "AT_ONCE", 2)
    monkeypatch.setattr(in_hand, "AT_ONCE", 2)
    monkeypatch.setattr(in_hand, "GAPS_MAX", 4)
    held: list[int] = []
    take_more = InHand.take_more

    async def watched(self: InHand, *more: Any) -> None:
        await take_more(self, *more)
        held.append(len(self.gaps))

    monkeypatch.setattr(InHand, "take_more", watched)
    return held


def by_twos(story: Story) -> Story:
    batch = replace(story.spec.sweep.batch, documents=2, pause_seconds=0.0)
    story.rig.spec = story.spec = replace(story.spec, sweep=replace(story.spec.sweep, batch=batch))
    return story


def moved_on(ledger: SqlLedger, *numbers: int) -> Story:
    """Documents are missing, and their rows have changed since that was proved: each of them waits for a grace of its own."""
    story = by_twos(missing(ledger, *numbers, repair=replace(AUTO, brake_ratio=1.0)))
    for number in numbers:
        story.rig.source_writes(number)
    story.clock._pace = 1
    return story


def once(story: Story, what: str, then: Callable[[], object]) -> None:
    done: list[bool] = []

    def between(now: str) -> None:
        if now == what and not done:
            done.append(True)
            then()

    story.rig.between = between


def test_gaps_are_taken_in_hand_as_their_turn_comes(ledger: SqlLedger, few: list[int]) -> None:
    story = by_twos(missing(ledger, *range(9), repair=replace(AUTO, brake_ratio=1.0)))
    states: list[State] = []
    once(story, "write", lambda: states.extend(gap.state for gap in story.gaps()))
    run = story.carry_out()
    assert (run.state, run.counts["verified"], run.counts["open_gaps_left"]) == (RunState.SUCCEEDED, 9, 0)
    assert states.count(State.REPAIRING) <= 4, "the others' turn has not come"
    assert 2 <= max(few) <= 4
    assert few[-1] <= 2, "gaps whose documents were read back right are held no longer"
    for gap in story.gaps():
        steps = [row["event"] for row in ledger.gap_history(gap.id)]
        assert (steps, gap.resolution) == (["opened", "repairing", "resolved"], Resolution.BACKFILLED)


def test_what_waits_waits_together_and_is_not_held_meanwhile(ledger: SqlLedger, few: list[int]) -> None:
    story = moved_on(ledger, *range(12))
    began = story.clock.now_ms()
    run = story.carry_out()
    assert (run.counts["verified"], run.counts["open_gaps_left"]) == (12, 0)
    assert GRACE_MS < story.clock.now_ms() - began < 2 * GRACE_MS, "one grace for all, not one for each part"
    assert max(few) <= 6
    assert {gap.resolution for gap in story.gaps()} == {Resolution.BACKFILLED}


def test_a_gap_that_changed_while_its_key_waited_is_closed_as_it_is_once_its_document_was_written(
    ledger: SqlLedger, few: list[int]
) -> None:
    story = moved_on(ledger, *range(12))
    first = min(gap.key for gap in story.gaps())
    once(story, "write", lambda: somebody(ledger, next(gap for gap in story.gaps() if gap.key == first)))
    story.carry_out()
    closed = {gap.key: gap for gap in story.gaps()}[first]
    assert (closed.state, closed.note, closed.resolution) == (State.RESOLVED, "mine", Resolution.BACKFILLED)


def test_a_gap_that_changed_while_its_key_waited_stays_open_where_nothing_was_written(ledger: SqlLedger, few: list[int]) -> None:
    """What somebody else has proved since may be newer than the reads that agree."""
    story = moved_on(ledger, *range(12))
    noted = story.rig.key(0)

    def change() -> None:
        for number in range(12):
            story.rig.sink_delivers(number)
        (gap,) = [gap for gap in story.gaps() if gap.key == noted]
        changed = structs.replace(gap, note="newer", revision=gap.revision + 1)
        assert ledger.store_gaps([GapChange(gap=changed, against=gap.revision, event="updated")]) == [True]

    seen = [0]

    def between(what: str) -> None:
        seen[0] += what == "fetch OBSERVED"
        if seen[0] == 6 and what == "fetch EXPECTED":  # the last ones are read for the first time: all the others wait
            seen[0] += 1
            change()

    story.rig.between = between
    run = story.carry_out()
    assert (run.counts["already_right"], run.counts["written"], run.counts["open_gaps_left"]) == (12, 0, 1)
    assert [gap.note for gap in story.gaps() if gap.state is not State.RESOLVED] == ["newer"]


def test_what_an_ended_holder_had_in_hand_is_set_down_also_where_its_turn_never_came(ledger: SqlLedger, few: list[int]) -> None:
    story = by_twos(missing(ledger, *range(9), repair=replace(AUTO, brake_ratio=1.0)))
    for gap in story.gaps():
        changed = structs.replace(gap, state=State.REPAIRING, revision=gap.revision + 1)
        assert ledger.store_gaps([GapChange(gap=changed, against=gap.revision, event="repairing")]) == [True]
    once(story, "write", lambda: ledger.cancel_run(running(ledger).id))
    with pytest.raises(ConflictError):
        story.carry_out()
    assert {gap.state for gap in story.gaps()} == {State.OPEN, State.RESOLVED}
    assert sum(gap.state is State.RESOLVED for gap in story.gaps()) < 9


def running(ledger: SqlLedger) -> Run:
    return next(run for run in ledger.runs() if run.state is RunState.RUNNING)


def test_all_of_a_plan_that_could_not_be_read_is_counted_and_set_down(ledger: SqlLedger, few: list[int]) -> None:
    story = by_twos(missing(ledger, *range(9), repair=replace(AUTO, brake_ratio=1.0)))
    story.rig.away.add(Side.OBSERVED)
    run = story.carry_out()
    assert (run.state, run.counts["unread"], run.counts["open_gaps_left"]) == (RunState.INCONCLUSIVE, 9, 9)
    assert {gap.state for gap in story.gaps()} == {State.OPEN}
    assert len(story.failed()) == 9, "each of them is tried again"


def test_a_gap_that_was_set_aside_is_held_under_the_revision_it_was_taken_with(ledger: SqlLedger, few: list[int]) -> None:
    """Else the ledger would let a change be closed over that came after the reads."""
    story = missing(ledger, 1)
    (gap,) = story.gaps()
    nobody: Any = None
    hand = InHand(nobody, ledger, nobody, [])
    hand._run = SimpleNamespace(pipeline=gap.pipeline)  # type: ignore[assignment]
    hand._set_aside[gap.key] = gap.id, gap.revision
    changed = structs.replace(gap, note="somebody's", revision=gap.revision + 1)
    assert ledger.store_gaps([GapChange(gap=changed, against=gap.revision, event="updated")]) == [True]
    asyncio.run(hand.judged([gap.key]))
    assert (hand.gaps[gap.key].note, hand.gaps[gap.key].revision) == ("somebody's", gap.revision)
    assert not hand._set_aside
