"""``match: presence`` and ``match: version``: what satisfies a write, what is found all the same, and what neither proves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gapwatch.core.standing import standing
from gapwatch.model.pipeline import Match
from gapwatch.model.suspect import Reason
from tests.simulation.bench import Bench, only
from tests.simulation.world import GRACE_MS, START, pipeline
from tests.unit.core.samples import pipeline as sample
from tests.unit.core.test_standing import FACTS, NOW, record

LATE = GRACE_MS + 1


def by(match: Match) -> Bench:
    return Bench(pipeline(match=match))


def test_by_presence_any_live_document_satisfies_every_write_but_a_delete() -> None:
    bench = by(Match.PRESENCE)
    bench.expect(1, 100)
    bench.expect(2, 110)
    bench.observe(99, 120)  # what it holds is not looked at
    assert bench.unsettled is None
    assert (bench.status.counters.settled, bench.status.counters.superseded) == (1, 1)
    bench.expect(None, 5_000)
    bench.observe(3, 5_010)  # it lives on
    suspect = only(bench.streams(5_000 + LATE))
    assert (suspect.opening.event_time, suspect.reason) == (START + 5_000, Reason.UNSATISFIED)
    bench.observe(None, 12_000)
    assert bench.unsettled is None


def test_by_presence_a_document_that_never_came_or_went_by_itself_is_found() -> None:
    bench = by(Match.PRESENCE)
    bench.expect(1, 100, key=b"never")
    assert only(bench.streams(100 + LATE)).key == b"never"
    bench.expect(1, 10_000, key=b"gone")
    bench.observe(1, 10_010, key=b"gone")
    bench.observe(None, 20_000, key=b"gone")
    assert only(bench.streams(20_000 + LATE)).key == b"gone"


def test_by_presence_a_document_of_no_row_is_unexplained() -> None:
    bench = by(Match.PRESENCE)
    bench.streams(50)
    bench.observe(1, 100)
    assert only(bench.streams(100 + LATE)).reason == Reason.UNEXPLAINED


def test_by_version_an_equal_or_newer_one_satisfies_and_an_older_one_does_not() -> None:
    bench = by(Match.VERSION)
    bench.expect(1, 100, version=5)
    bench.expect(2, 110, version=6)
    bench.observe(77, 120, version=5)  # its contents are not looked at
    assert bench.unsettled == 110
    bench.observe(78, 130, version=6)
    assert not bench.unsettled
    bench.observe(1, 5_000, version=4)
    assert only(bench.streams(5_000 + LATE)).reason == Reason.REGRESSED


def test_by_version_a_target_above_the_newest_expected_one_is_ahead_once_the_source_is_read_past_it() -> None:
    bench = by(Match.VERSION)
    bench.expect(5, 100, version=5)
    bench.observe(5, 110, version=5)
    bench.observe(9, 5_000, version=9)
    assert bench.streams(5_000 + LATE, source=4_000) == []  # the source may explain it yet
    suspect = only(bench.streams(5_000 + 2 * LATE))
    assert suspect.reason == Reason.UNEXPLAINED


def test_by_version_a_target_that_ran_ahead_is_explained_by_the_write_that_follows() -> None:
    bench = by(Match.VERSION)
    bench.expect(5, 100, version=5)
    bench.observe(9, 110, version=9)
    bench.expect(9, 150, version=9)
    assert bench.streams(150 + 5 * LATE) == []
    assert bench.unsettled is None


@pytest.mark.parametrize("match", list(Match))
def test_coverage_says_what_it_does_not_prove(match: Match) -> None:
    view = standing(replace(sample(), match=match), 2, [record(0), record(1)], FACTS, NOW)
    assert view.match == match.value
    assert (view.not_proven is None) is (match is Match.DIGEST)
