"""When gaps are repaired without being asked, and when that stops."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gapwatch.core.autorepair import allowed_on_trial, automatic, brake, next_attempt
from gapwatch.core.backfill import permitted
from gapwatch.model.gap import Kind, RepairPressure
from gapwatch.model.pipeline import Policy, RepairSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = RepairSpec(missing=Policy.AUTO, stale=Policy.AUTO, max_documents_per_run=1_000, brake_ratio=0.2)


def test_only_what_the_policy_calls_automatic_is() -> None:
    assert automatic(RepairSpec()) == frozenset()
    assert automatic(SPEC) == {Kind.MISSING, Kind.STALE}
    assert automatic(RepairSpec(extra=Policy.DELETE)) == frozenset(), "`delete` is for a person's backfill"
    assert automatic(RepairSpec(extra=Policy.AUTO)) == {Kind.EXTRA}
    assert Kind.EXTRA in permitted(RepairSpec(extra=Policy.AUTO))


def test_nothing_is_overwritten_by_a_mapping_on_trial() -> None:
    kinds = frozenset({Kind.MISSING, Kind.STALE, Kind.MISMATCH})
    assert allowed_on_trial(kinds, rows=50) == {Kind.MISSING}
    assert allowed_on_trial(kinds, rows=49) == kinds, "too few keys for a trial: the brakes have to do"


@pytest.mark.parametrize(
    ("pressure", "size", "said"),
    [
        (RepairPressure(waiting=10), 0, ""),
        (RepairPressure(waiting=11), 0, "a number that is not known"),
        (RepairPressure(waiting=4, written=7), 50, "11 documents of about 50"),
        (RepairPressure(waiting=11), 55, ""),
        (RepairPressure(waiting=900, written=100), 1_000_000, ""),
        (
            RepairPressure(waiting=900, written=101),
            1_000_000,
            "1001 documents to repair within an hour are more than max_documents",
        ),
        (RepairPressure(handled=9, failed=9), 1_000, ""),
        (RepairPressure(handled=10, failed=2), 1_000, ""),
        (RepairPressure(handled=10, failed=3), 1_000, "3 of 10 keys failed"),
    ],
)
def test_trap_48_too_many_too_large_a_share_and_too_many_failures_stop_it(pressure: RepairPressure, size: int, said: str) -> None:
    reason = brake(SPEC, pressure, size=size)
    assert said in reason
    assert bool(reason) == bool(said)


def test_lesson_27_what_fails_for_ever_is_given_up_and_until_then_waits_longer_each_time() -> None:
    pauses = []
    for attempt in range(1, 5):
        due = next_attempt(SPEC, gap_id="gap_1", attempts=attempt, tries=attempt, at=NOW)
        assert due is not None
        pauses.append((due - NOW).total_seconds())
    assert [round(pause / pauses[0]) for pause in pauses] == [1, 2, 4, 8]
    assert 22.5 <= pauses[0] <= 37.5, "30 s, a quarter more or less"
    assert next_attempt(SPEC, gap_id="gap_1", attempts=5, tries=5, at=NOW) is None


def test_what_says_nothing_of_the_document_is_no_attempt() -> None:
    due = next_attempt(SPEC, gap_id="gap_1", attempts=0, tries=1_000, at=NOW)
    assert due is not None
    assert due - NOW <= timedelta(minutes=75), "an hour, a quarter more at most"
