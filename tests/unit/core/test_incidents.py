"""One incident for a mass failure: when it begins, what it says, when it is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gapwatch.core.incidents import WINDOW, gaps_of_incident, incident_of, known_incident, since_of
from gapwatch.model.gap import FindingRecord, GapBurst
from tests.http_harness import view

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
BEGAN = NOW - timedelta(minutes=3)


def burst(count: int) -> GapBurst:
    samples = [{"gap": f"gap_{number}", "kind": "missing", "key": {"id": number}} for number in range(min(count, 10))]
    return GapBurst(by_kind={"missing": count - 1, "stale": 1} if count else {}, since=BEGAN if count else None, samples=samples)


def judged(count: int, known: FindingRecord | None = None) -> FindingRecord | None:
    return incident_of("orders", burst(count), known, threshold=1_000, now=NOW)


def test_m18_many_gaps_at_once_are_one_incident_with_count_and_samples() -> None:
    assert judged(999) is None
    found = judged(50_000)
    assert found is not None
    assert found.message == "50,000 gaps at once (missing 49,999, stale 1) since 2026-11-27 11:57:00 UTC."
    assert found.details["gaps"] == 50_000
    assert [one["key"] for one in found.details["samples"]] == [{"id": number} for number in range(10)]
    assert gaps_of_incident(view(findings=(found,))) == 50_000
    assert known_incident([found]) is found
    assert gaps_of_incident(view(findings=())) == 0


def test_it_stays_the_same_one_until_little_is_left_of_it() -> None:
    first = judged(1_000)
    assert first is not None
    assert since_of(None, NOW) == NOW - WINDOW
    assert since_of(first, NOW + 10 * WINDOW) == BEGAN, "what it began with counts as long as it lasts"
    for left in (60_000, 500, 101):
        later = judged(left, first)
        assert later is not None
        assert (later.id, later.first_seen, later.time_from) == (first.id, first.first_seen, BEGAN)
    assert judged(100, first) is None
    assert judged(0, first) is None


def test_another_one_later_is_another_one() -> None:
    first, later = judged(1_000), incident_of("orders", replace(burst(2_000), since=NOW), None, threshold=1_000, now=NOW)
    assert first is not None
    assert later is not None
    assert first.id != later.id
