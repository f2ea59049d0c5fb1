"""What three reads prove."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gapwatch.core.confirm import (
    READS_MAX,
    RETURNS_MAX,
    Cleared,
    Difference,
    Presence,
    Progress,
    Reading,
    Reads,
    Retry,
    Superseded,
    Unverifiable,
    WaitAndReadAgain,
    equals_identity,
    judge,
    last_covered,
    satisfied,
)
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.gap import Cause, Kind
from gapwatch.model.pipeline import FieldType, Match
from gapwatch.model.stream import Operation, Outcome, Side
from gapwatch.model.suspect import Reason, Seen, Suspect
from gapwatch.ports import StoredRecord
from gapwatch.roles.repair.reads import source_reading, target_reading
from tests.unit.core.samples import field, pipeline

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
AT: dict[str, Any] = {"started_ms": 1_000, "proven_ms": 1_020, "ended_ms": 1_040}
ABSENT = Reading(presence=Presence.ABSENT)
UNREAD = Reading(presence=Presence.UNREAD, reason="no answer")


def present(identity: bytes, revision: str | None = "7", **more: Any) -> Reading:
    return Reading(presence=Presence.PRESENT, identity=identity, revision=revision, target_ids=("1",), **more)


def reads(before: Reading, target: Reading, after: Reading | None = None) -> Reads:
    after = before if after is None else after
    both = target.presence is Presence.PRESENT and after.presence is Presence.PRESENT
    differing = ("total",) if both and target.identity != after.identity else ()
    return Reads(before=before, target=target, after=after, differing=differing, **AT)


def seen(side: Side, digest: bytes, *, operation: Operation = Operation.UPSERT, major: int = 5) -> Seen:
    return Seen(
        side=side,
        feed="shop.public.orders",
        partition=0,
        offset=major,
        epoch=1,
        major=major,
        minor=0,
        operation=operation,
        event_time=900,
        digest=digest,
    )


def suspect(
    opening: Seen, *, newest: Seen | None = None, older: tuple[bytes, ...] = (), reason: str = Reason.UNSATISFIED
) -> Suspect:
    expected = newest if newest is not None else (opening if opening.side == Side.EXPECTED else None)
    return Suspect(
        id="s",
        pipeline="orders",
        partition=0,
        key=b"k",
        reason=reason,
        opening=opening,
        newest_expected=expected,
        newest_observed=opening if opening.side == Side.OBSERVED else None,
        older=list(older),
        due=950,
        source_watermark=1_000,
        target_watermark=1_000,
    )


def judged(about: Suspect | None, what: Reads, progress: Progress | None = None, **more: Any) -> Any:
    return judge(about, what, progress or Progress(), Match.DIGEST, **more)


LATE = suspect(seen(Side.EXPECTED, A))


def test_a_write_that_is_still_absent_is_missing() -> None:
    verdict = judged(LATE, reads(present(A), ABSENT))
    assert isinstance(verdict, Difference)
    assert (verdict.kind, verdict.cause) == (Kind.MISSING, Cause.NEVER_WRITTEN)


def test_a_write_that_arrived_meanwhile_is_cleared() -> None:
    assert judged(LATE, reads(present(A), present(A))) == Cleared(reason="late_arrival")


def test_an_older_version_at_the_target_is_stale() -> None:
    verdict = judged(suspect(seen(Side.EXPECTED, A), older=(B,)), reads(present(A), present(B)))
    assert isinstance(verdict, Difference)
    assert (verdict.kind, verdict.fields) == (Kind.STALE, ("total",))


def test_an_unknown_value_at_the_target_is_a_mismatch() -> None:
    verdict = judged(LATE, reads(present(A), present(C)))
    assert isinstance(verdict, Difference)
    assert verdict.kind is Kind.MISMATCH


def test_the_placeholder_at_the_target_is_named_as_overwritten() -> None:
    verdict = judged(LATE, reads(present(A), present(C, placeholder=True)))
    assert isinstance(verdict, Difference)
    assert verdict.cause is Cause.OVERWRITTEN


def test_a_deleted_row_whose_document_stayed_is_undeleted() -> None:
    """At its second reading: the simulation found one that had come back and was gone once more, with that delete in transit."""
    about = suspect(seen(Side.EXPECTED, b"", operation=Operation.DELETE))
    first = judged(about, reads(ABSENT, present(A)))
    assert isinstance(first, WaitAndReadAgain), "the row may have come back and gone once more, and that delete is on its way"
    verdict = judged(about, reads(ABSENT, present(A)), first.progress, proven_by_wait=True)
    assert isinstance(verdict, Difference)
    assert verdict.kind is Kind.UNDELETED


def test_a_delete_of_what_never_was_there_is_cleared_and_named() -> None:
    opening = seen(Side.EXPECTED, b"", operation=Operation.DELETE)
    assert judged(suspect(opening), reads(ABSENT, ABSENT)) == Cleared(reason="never_present")


def test_a_document_without_a_row_is_extra() -> None:
    about = suspect(seen(Side.OBSERVED, C), reason=Reason.UNEXPLAINED)
    first = judged(about, reads(ABSENT, present(C)))
    assert isinstance(first, WaitAndReadAgain), "its row may have been deleted a moment ago, and the delete is on its way"
    verdict = judged(about, reads(ABSENT, present(C)), first.progress, proven_by_wait=True)
    assert isinstance(verdict, Difference)
    assert (verdict.kind, verdict.cause) == (Kind.EXTRA, Cause.OUT_OF_BAND)


def test_a_document_that_came_back_after_its_delete_is_resurrected() -> None:
    gone = seen(Side.EXPECTED, b"", operation=Operation.DELETE)
    back = seen(Side.OBSERVED, A, major=9)
    about = suspect(back, newest=gone, reason=Reason.REGRESSED)
    first = judged(about, reads(ABSENT, present(A)))
    verdict = judged(about, reads(ABSENT, present(A)), first.progress, proven_by_wait=True)
    assert isinstance(verdict, Difference)
    assert (verdict.kind, verdict.cause) == (Kind.UNDELETED, Cause.RESURRECTED)


def test_several_documents_of_one_key_are_a_duplicate() -> None:
    several = Reading(presence=Presence.SEVERAL, target_ids=("1", "2"))
    verdict = judged(LATE, reads(present(A), several))
    assert isinstance(verdict, Difference)
    assert (verdict.kind, verdict.target_ids) == (Kind.DUPLICATE, ("1", "2"))


@pytest.mark.parametrize("which", ["before", "target", "after"])
def test_lesson_17_an_unread_side_proves_nothing(which: str) -> None:
    sides = {"before": present(A), "target": ABSENT, "after": present(A), which: UNREAD}
    verdict = judged(LATE, reads(sides["before"], sides["target"], sides["after"]))
    assert isinstance(verdict, Retry)


def test_an_outage_never_makes_a_key_unverifiable_but_ten_failures_of_its_own_do() -> None:
    progress = Progress()
    for _ in range(50):
        verdict = judged(LATE, reads(present(A), UNREAD), progress, others_were_read=False)
        assert isinstance(verdict, Retry)
        progress = verdict.progress
    for _ in range(READS_MAX - 1):
        verdict = judged(LATE, reads(present(A), UNREAD), progress)
        assert isinstance(verdict, Retry)
        progress = verdict.progress
    assert judged(LATE, reads(present(A), UNREAD), progress) == Unverifiable(reason="no answer")


def test_a_difference_whose_reads_are_old_is_read_again_and_an_agreement_stands() -> None:
    """While the stores were asked a row may have come and gone, and be on its way."""
    verdict = judged(LATE, reads(present(A), ABSENT), is_old=True)
    assert isinstance(verdict, Retry)
    assert isinstance(judged(LATE, reads(present(A), ABSENT), verdict.progress), Difference)
    assert isinstance(judged(LATE, reads(present(A), present(A)), is_old=True), Cleared)
    tenth = judged(LATE, reads(present(A), ABSENT), Progress(failures=READS_MAX - 1), is_old=True)
    assert isinstance(tenth, Unverifiable)


@pytest.mark.parametrize(
    ("outcome", "closes"), [(Outcome.GAP, 9), (Outcome.CLEARED, 9), (Outcome.SUPERSEDED, 5), (Outcome.UNVERIFIABLE, 5)]
)
def test_a_verdict_closes_what_the_stream_had_shown_before_the_reads(outcome: Outcome, closes: int) -> None:
    """A key that is written often and never arrives is one judgement, not one for each of its writes."""
    opening = msgspec.structs.replace(seen(Side.EXPECTED, A), major=5)
    newest = msgspec.structs.replace(seen(Side.EXPECTED, C), major=9)
    assert last_covered(suspect(opening, newest=newest), outcome).major == closes
    odd = msgspec.structs.replace(seen(Side.OBSERVED, A), major=5)
    assert last_covered(suspect(odd, newest=newest), outcome) == odd


def test_a_source_that_changed_between_its_two_reads_proves_nothing() -> None:
    verdict = judged(LATE, reads(present(A, "7"), ABSENT, present(A, "8")))
    assert isinstance(verdict, WaitAndReadAgain)
    assert verdict.since_ms == 1_040, "what the last read shows may have been written just before it"


def test_a_source_with_a_younger_write_than_the_suspect_gets_its_own_grace() -> None:
    verdict = judged(LATE, reads(present(C), ABSENT))
    assert isinstance(verdict, WaitAndReadAgain)
    again = judged(LATE, reads(present(C), ABSENT), verdict.progress, proven_by_wait=True)
    assert isinstance(again, Difference)
    assert again.cause is Cause.LOST_IN_STREAM  # the stream never showed C


def test_a_difference_without_a_suspect_needs_the_wait() -> None:
    first = judged(None, reads(present(A), ABSENT))
    assert isinstance(first, WaitAndReadAgain)
    assert isinstance(judged(None, reads(present(A), ABSENT), first.progress), WaitAndReadAgain)
    assert isinstance(judged(None, reads(present(A), ABSENT), first.progress, proven_by_wait=True), Difference)


def test_a_source_that_never_stands_still_is_superseded_after_ten_reads() -> None:
    progress = Progress()
    for number in range(READS_MAX - 1):
        verdict = judged(LATE, reads(present(A, str(number)), ABSENT, present(A, str(number + 100))), progress)
        assert isinstance(verdict, WaitAndReadAgain)
        progress = verdict.progress
    assert judged(LATE, reads(present(A, "0"), ABSENT, present(A, "1")), progress) == Superseded()


def test_a_row_that_came_back_and_went_again_while_it_was_waited_for_gets_its_own_grace() -> None:
    """Absent, and absent again: only the document tells of the row in between, whose delete is on its way."""
    first = judged(LATE, reads(ABSENT, present(A)))
    assert isinstance(first, WaitAndReadAgain)
    again = judged(LATE, reads(ABSENT, present(B, "8")), first.progress, proven_by_wait=True)
    assert isinstance(again, WaitAndReadAgain)
    assert isinstance(judged(LATE, reads(ABSENT, present(B, "8")), again.progress, proven_by_wait=True), Difference)


def test_what_somebody_keeps_writing_without_a_row_is_found_all_the_same() -> None:
    progress, waits = Progress(), 0
    for number in range(READS_MAX):
        verdict = judged(None, reads(ABSENT, present(A, str(number))), progress, proven_by_wait=True)
        if isinstance(verdict, Difference):
            break
        assert isinstance(verdict, WaitAndReadAgain)
        progress, waits = verdict.progress, waits + 1
    else:
        raise AssertionError("it was never found")
    assert waits == RETURNS_MAX


def test_masked_parts_of_an_event_say_nothing() -> None:
    assert equals_identity(A + bytes(16), A + B)
    assert not equals_identity(A + C, A + B)
    assert not equals_identity(b"", A)


# ── what is expected now ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_trap_7_a_row_that_was_deleted_while_its_suspect_waited_is_not_missed() -> None:
    """Retry queues report a MISS for it: they look for what was expected when it was enqueued."""
    assert isinstance(judged(LATE, reads(ABSENT, ABSENT)), Cleared)


def test_trap_7_a_row_that_was_deleted_meanwhile_is_judged_as_deleted() -> None:
    """The document that stayed is one too many, never a missing or stale one; and the delete gets its own grace first."""
    first = judged(LATE, reads(ABSENT, present(A)))
    assert isinstance(first, WaitAndReadAgain)
    proved = judged(LATE, reads(ABSENT, present(A)), first.progress, proven_by_wait=True)
    assert isinstance(proved, Difference)
    assert proved.kind is Kind.UNDELETED


def test_trap_7_a_row_that_was_written_anew_is_compared_with_what_it_is_now() -> None:
    """The suspected version A is history: the target is right when it shows C, and wrong when it shows A."""
    assert isinstance(judged(LATE, reads(present(C), present(C))), Cleared)
    first = judged(LATE, reads(present(C, "8"), present(A)))
    assert isinstance(first, WaitAndReadAgain)
    proved = judged(LATE, reads(present(C, "8"), present(A)), first.progress, proven_by_wait=True)
    assert isinstance(proved, Difference)


@pytest.mark.parametrize("row", ["wrote", "deleted"])
def test_trap_7_what_was_learnt_is_void_when_the_source_changes_during_the_wait(row: str) -> None:
    first = judged(LATE, reads(present(C, "8"), present(B)))
    now = present(C, "9") if row == "wrote" else ABSENT
    again = judged(LATE, reads(now, present(B)), first.progress, proven_by_wait=True)
    assert isinstance(again, WaitAndReadAgain)
    assert again.progress.baseline == now


# ── a younger write is never taken for the suspected one ──────────────────────────────────────────────────────────────────────


def test_a_younger_write_of_a_masked_field_gets_its_own_grace() -> None:
    """The event showed A and no large field; since then just that field was written: the target has all that is suspected."""
    about = suspect(seen(Side.EXPECTED, A + bytes(16)))
    what = reads(present(A + C), present(A + B))
    assert isinstance(judged(about, what), WaitAndReadAgain)
    missing = judged(about, reads(present(A + C), ABSENT))
    assert isinstance(missing, Difference), "without any document the suspected write is missing, whatever came after it"
    stale = judged(about, reads(present(A + C), present(B + B)))
    assert isinstance(stale, Difference)


def test_a_younger_write_of_a_toleranced_field_gets_its_own_grace() -> None:
    """Toleranced values are in no identity: both sides may show the suspected one and differ in what was written since."""
    what = Reads(
        before=present(A),
        target=present(A),
        after=present(A),
        differing=("total",),
        **AT,
    )
    first = judged(LATE, what)
    assert isinstance(first, WaitAndReadAgain)
    proved = judged(LATE, what, first.progress, proven_by_wait=True)
    assert isinstance(proved, Difference)
    assert proved.fields == ("total",)


def test_a_source_that_cannot_date_its_rows_proves_nothing_without_a_wait() -> None:
    """Neither xmin nor a version: it may have been written and written back between the reads."""
    undated = present(A, None)
    first = judged(LATE, reads(undated, present(B, None)))
    assert isinstance(first, WaitAndReadAgain)
    proved = judged(LATE, reads(undated, present(B, None)), first.progress, proven_by_wait=True)
    assert isinstance(proved, Difference)


def by_version(source: int, target: int | None, about: Suspect, progress: Progress | None = None, **more: Any) -> Any:
    there = ABSENT if target is None else present(A, version=target)
    return judge(about, reads(present(A, version=source), there), progress or Progress(), Match.VERSION, **more)


def versioned(number: int) -> Suspect:
    return suspect(msgspec.structs.replace(seen(Side.EXPECTED, A), version=number))


def test_by_version_equal_versions_agree_and_others_are_named() -> None:
    assert isinstance(by_version(5, 5, versioned(5)), Cleared)
    for target, kind in ((4, Kind.STALE), (6, Kind.AHEAD), (None, Kind.MISSING)):
        verdict = by_version(5, target, versioned(5))
        assert isinstance(verdict, Difference)
        assert verdict.kind is kind


def test_by_version_two_that_have_none_are_compared_by_their_fields() -> None:
    """Null at the source, and at a target that shows just that row: it was a gap of no field that nothing could close."""
    waited: dict[str, Any] = {"proven_by_wait": True}
    for there, fields in ((A, None), (B, ("total",))):
        progress = Progress(baseline=present(A), waiting_since_ms=1)
        verdict = judge(None, reads(present(A), present(there)), progress, Match.VERSION, **waited)
        if fields is None:
            assert isinstance(verdict, Cleared)
        else:
            assert isinstance(verdict, Difference)
            assert (verdict.kind, verdict.fields) == (Kind.MISMATCH, fields)
    progress = Progress(baseline=present(A), waiting_since_ms=1)
    assert isinstance(judge(None, reads(present(A), present(A, version=3)), progress, Match.VERSION, **waited), Difference)


def test_by_version_a_younger_write_with_the_same_fields_gets_its_own_grace() -> None:
    """The mapped fields tell nothing there: version 6 is on its way, and looks like the suspected version 5."""
    first = by_version(6, 5, versioned(5))
    assert isinstance(first, WaitAndReadAgain)
    proved = by_version(6, 5, versioned(5), first.progress, proven_by_wait=True)
    assert isinstance(proved, Difference)
    assert proved.kind is Kind.STALE


def test_reads_hold_the_version_of_both_sides() -> None:
    mapping = CompiledMapping(pipeline(field("total", FieldType.INT), match=Match.VERSION, version="rev"))
    row = StoredRecord(key=b"k", fields={"id": 1, "total": 3, "rev": 7}, revision="x")
    source, _ = source_reading(mapping, row)
    target, _ = target_reading(mapping, StoredRecord(key=b"k", fields={"_id": 1, "total": 3, "rev": 6}))
    assert (source.version, target.version) == (7, 6)


@pytest.mark.parametrize("match", list(Match))
def test_what_was_not_read_agrees_with_nothing(match: Match) -> None:
    """Neither side has a field that differs then: that must not count as agreement."""
    exempt = Reading(presence=Presence.EXEMPT)
    for source, target in ((present(A), UNREAD), (UNREAD, present(A)), (UNREAD, UNREAD), (exempt, UNREAD), (UNREAD, exempt)):
        assert not satisfied(reads(source, target), match)
