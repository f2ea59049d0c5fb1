"""What a backfill may write, and how its run is called in the end."""

from __future__ import annotations

import pytest

from gapwatch.core.backfill import ItemOutcome, Step, Tally, decide, fits, permitted
from gapwatch.core.confirm import Cleared, Difference, Superseded, Unverifiable
from gapwatch.model.gap import Cause, Kind, RunState
from gapwatch.model.pipeline import BatchSpec, Policy, RepairSpec

ALL = frozenset(Kind)


def difference(kind: Kind) -> Difference:
    return Difference(kind=kind, cause=Cause.UNKNOWN, fields=())


@pytest.mark.parametrize("kind", [Kind.MISSING, Kind.STALE, Kind.MISMATCH])
def test_proved_differences_of_the_planned_kinds_are_written(kind: Kind) -> None:
    assert decide(difference(kind), frozenset({kind}), planned=kind).step is Step.WRITE


def test_stale_and_mismatch_cannot_be_told_apart_by_reads_alone() -> None:
    assert decide(difference(Kind.MISMATCH), frozenset({Kind.STALE}), planned=Kind.STALE).step is Step.WRITE
    assert decide(difference(Kind.MISMATCH), frozenset({Kind.MISSING}), planned=Kind.MISSING).step is Step.LEAVE


@pytest.mark.parametrize("kind", [Kind.EXTRA, Kind.UNDELETED])
def test_documents_are_deleted_by_policy_only(kind: Kind) -> None:
    writes = frozenset({Kind.MISSING, Kind.STALE, Kind.MISMATCH})
    assert decide(difference(kind), writes, planned=kind).outcome is ItemOutcome.VANISHED
    assert decide(difference(kind), writes | {kind}, planned=kind).step is Step.DELETE
    left = decide(difference(kind), writes | {kind}, planned=Kind.MISSING)
    assert (left.step, left.outcome) == (Step.LEAVE, ItemOutcome.VANISHED), "it was planned as missing: nobody asked to delete it"
    assert kind not in permitted(RepairSpec())
    assert kind in permitted(RepairSpec(extra=Policy.DELETE, undeleted=Policy.DELETE))


@pytest.mark.parametrize(
    ("judgement", "outcome"),
    [
        (Cleared(reason="in_agreement"), ItemOutcome.ALREADY_RIGHT),
        (Superseded(), ItemOutcome.MOVED_ON),
        (Unverifiable(reason="no answer"), ItemOutcome.UNREAD),
        (Difference(kind=Kind.DUPLICATE, cause=Cause.UNKNOWN, fields=()), ItemOutcome.REFUSED),
    ],
)
def test_everything_else_is_left_and_named(judgement: object, outcome: ItemOutcome) -> None:
    decision = decide(judgement, ALL, planned=Kind.MISSING)  # type: ignore[arg-type]
    assert (decision.step, decision.outcome) == (Step.LEAVE, outcome)


def test_trap_42_a_batch_is_full_by_count_or_by_bytes() -> None:
    limits = BatchSpec(documents=4, bytes=100)
    assert fits(3, 90, 10, limits)
    assert not fits(3, 90, 11, limits)
    assert not fits(4, 4, 1, limits)


def test_a_document_larger_than_a_batch_goes_alone() -> None:
    limits = BatchSpec(documents=9, bytes=100)
    assert fits(0, 0, 500, limits)
    assert not fits(1, 1, 500, limits)
    assert not fits(1, 500, 1, limits)


def test_lesson_5_refused_items_are_never_in_sync() -> None:
    tally = Tally(planned=100)
    for number in range(97):
        tally.add(ItemOutcome.WRITTEN, key=bytes([number]))
    for number in range(97, 100):
        tally.add(ItemOutcome.FAILED, "document too large", key=bytes([number]))
    tally.verified(97)
    counts = tally.as_counts(open_gaps=3)
    assert (counts["written"], counts["failed"], counts["in_sync"]) == (97, 3, 0)
    state, error = tally.ended(stopped=False)
    assert state is RunState.FAILED
    assert error == "3 documents failed. Most often: document too large"


def test_lesson_6_the_error_rate_stops_a_run_after_ten_items_and_not_before() -> None:
    tally = Tally(planned=100)
    for number in range(9):
        tally.add(ItemOutcome.FAILED if number < 4 else ItemOutcome.WRITTEN, "refused", key=bytes([number]))
    assert not tally.error_rate_exceeded(0.2)
    tally.add(ItemOutcome.WRITTEN, key=b"tenth")
    assert tally.error_rate_exceeded(0.2)
    state, error = tally.ended(stopped=True)
    assert state is RunState.ABORTED
    assert error is not None
    assert "4 of the first 10" in error
