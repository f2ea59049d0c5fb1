"""An open gap says what is wrong now: what was missing and came wrongly is a mismatch. What was resolved is left alone."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from msgspec import structs

from gapwatch.core.gaps import by_hand, found_again
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Cause, Kind, Resolution, State
from gapwatch.ports import GapChange
from gapwatch.roles.repair.judging import KeyJudge
from gapwatch.roles.repair.rechecker import Rechecker, RecheckerDependencies
from tests.ledger_samples import gap as a_gap
from tests.unit.roles.test_autorepairer import Story

GRACE_MS = 1_000


class Rechecked(Story):
    """A story whose open gaps are read again."""

    def __init__(self, ledger: SqlLedger) -> None:
        super().__init__(ledger)

        async def stores() -> Any:
            return self.rig.stores

        self.judge = KeyJudge(stores, grace_ms=lambda: GRACE_MS, delivered=lambda: self.delivered, clock=self.clock)
        self.rechecker = Rechecker(
            RecheckerDependencies(
                pipelines={self.spec.id: self.spec},
                ledger=ledger,
                book=self.book,
                stores=cast(Any, self),
                judges={self.spec.id: self.judge},
                clock=self.clock,
            )
        )

    def look(self, times: int = 1) -> None:
        """Read open gaps as often, a second apart."""
        for _ in range(times):
            asyncio.run(self.rechecker.step(self.spec.id))
            self.wait(1)


def test_a_document_that_was_missing_and_came_wrongly_is_a_mismatch(ledger: SqlLedger) -> None:
    story = Rechecked(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    (missing,) = story.gaps()
    assert (missing.kind, missing.fields) == (Kind.MISSING, ())
    row = story.rig.source_writes(7)
    story.rig.stranger_writes(7, {**row, "note": None})  # an update that left out what it had not changed
    story.look()
    assert story.gaps() == [missing], "what was just written may be on its way"
    story.look(3)
    (wrong,) = story.gaps()
    assert (wrong.id, wrong.kind, wrong.fields, wrong.state) == (missing.id, Kind.MISMATCH, ("note",), State.OPEN)
    assert (wrong.detector, wrong.first_seen, wrong.occurrences) == (missing.detector, missing.first_seen, 1)
    assert [entry["event"] for entry in ledger.gap_history(wrong.id)] == ["opened", "updated"]
    story.look(5)
    assert story.gaps() == [wrong], "it is said once"
    story.rig.stranger_writes(7, None)
    story.look(3)
    (missing,) = story.gaps()
    assert (missing.kind, missing.fields) == (Kind.MISSING, ())
    story.rig.stranger_writes(7, row)
    story.look()
    assert [gap.state for gap in story.gaps()] == [State.RESOLVED]


def test_lesson_40_a_gap_that_was_changed_after_it_was_read_stays_open_until_it_is_read_again(ledger: SqlLedger) -> None:
    """Another worker may have seen that the document broke once more."""
    story = Rechecked(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    story.rig.stranger_writes(7, story.rig.source_writes(7))
    (gap,) = story.gaps()
    changed = structs.replace(gap, note="seen by another", revision=gap.revision + 1)

    def once(what: str) -> None:
        story.rig.between = lambda what: None
        assert ledger.store_gaps([GapChange(gap=changed, against=gap.revision, event="updated")]) == [True]

    story.rig.between = once
    story.look()
    assert story.gaps() == [changed]
    story.look()
    assert [one.state for one in story.gaps()] == [State.RESOLVED]


def test_a_gap_that_somebody_resolved_is_not_opened_again(ledger: SqlLedger) -> None:
    story = Rechecked(ledger)
    story.rig.stranger_writes(7, None)
    story.sweep()
    row = story.rig.source_writes(7)
    story.rig.stranger_writes(7, {**row, "note": None})
    story.look()
    (gap,) = story.gaps()
    assert len(story.judge.cases) == 1
    done = by_hand(gap, "resolve", note="known", resolution=Resolution.ACCEPTED, now=gap.confirmed_at)
    assert ledger.store_gaps([GapChange(gap=done, against=gap.revision, event="resolved")]) == [True]
    story.look(5)
    assert story.gaps() == [done]
    assert not story.judge.cases


def test_what_the_stream_showed_stays_in_evidence() -> None:
    known, found = a_gap(), a_gap()
    shown = {"side": "expected", "topic": "orders", "partition": 1, "offset": 7}
    reads = [{"side": side, "position": position} for side, position in (("source", "8"), ("target", "9"))]
    known_by = (shown, {"side": "source", "position": "7"})
    before = structs.replace(known, kind=Kind.MISSING, evidence=known_by, opened_by=(0, 1, 2, 3))
    latest = structs.replace(found, kind=Kind.MISMATCH, evidence=tuple(reads), opened_by=None, cause=Cause.UNKNOWN)
    after = found_again(before, latest)
    assert after.evidence == (shown, *reads)
    assert (after.kind, after.opened_by, after.cause) == (Kind.MISMATCH, before.opened_by, before.cause)
