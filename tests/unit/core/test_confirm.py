"""What three reads prove."""

from __future__ import annotations

from typing import Any

import pytest

from gapwatch.core.confirm import (
    READS_MAX,
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
)
from gapwatch.model.gap import Cause, Kind
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Side
from gapwatch.model.suspect import Reason, Seen, Suspect

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
ABSENT = Reading(presence=Presence.ABSENT)
UNREAD = Reading(presence=Presence.UNREAD, reason="no answer")


def present(identity: bytes, revision: str | None = "7", **more: Any) -> Reading:
    return Reading(presence=Presence.PRESENT, identity=identity, revision=revision, target_ids=("1",), **more)


def reads(before: Reading, target: Reading, after: Reading | None = None) -> Reads:
    after = before if after is None else after
    both = target.presence is Presence.PRESENT and after.presence is Presence.PRESENT
    differing = ("total",) if both and target.identity != after.identity else ()
    return Reads(before=before, target=target, after=after, differing=differing, started_ms=1_000)


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
    opening = seen(Side.EXPECTED, b"", operation=Operation.DELETE)
    verdict = judged(suspect(opening), reads(ABSENT, present(A)))
    assert isinstance(verdict, Difference)
    assert verdict.kind is Kind.UNDELETED


def test_a_delete_of_what_never_was_there_is_cleared_and_named() -> None:
    opening = seen(Side.EXPECTED, b"", operation=Operation.DELETE)
    assert judged(suspect(opening), reads(ABSENT, ABSENT)) == Cleared(reason="never_present")


def test_a_document_without_a_row_is_extra() -> None:
    verdict = judged(suspect(seen(Side.OBSERVED, C), reason=Reason.UNEXPLAINED), reads(ABSENT, present(C)))
    assert isinstance(verdict, Difference)
    assert (verdict.kind, verdict.cause) == (Kind.EXTRA, Cause.OUT_OF_BAND)


def test_a_document_that_came_back_after_its_delete_is_resurrected() -> None:
    gone = seen(Side.EXPECTED, b"", operation=Operation.DELETE)
    back = seen(Side.OBSERVED, A, major=9)
    verdict = judged(suspect(back, newest=gone, reason=Reason.REGRESSED), reads(ABSENT, present(A)))
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


def test_a_source_that_changed_between_its_two_reads_proves_nothing() -> None:
    verdict = judged(LATE, reads(present(A, "7"), ABSENT, present(A, "8")))
    assert isinstance(verdict, WaitAndReadAgain)
    assert verdict.since_ms == 1_000


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


def test_masked_parts_of_an_event_say_nothing() -> None:
    assert equals_identity(A + bytes(16), A + B)
    assert not equals_identity(A + C, A + B)
    assert not equals_identity(b"", A)
