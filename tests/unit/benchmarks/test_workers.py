"""Rows 4 and 14: what two workers did together, what a replay's answer must be, and which section of the page a row is in."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from benchmarks import answers, page, pinned, replayed, work, workers
from benchmarks.__main__ import FAMILIES

from gapwatch.config import parse
from gapwatch.model.suspect import Counters, PartitionStatus

KEYS = 20_000
PLANTED = work.plant(KEYS)
ALL = PLANTED.missing | PLANTED.wrong
LAST = max(ALL)  # not due when the streams stop


def team(cpu: float, *, started: float = 0.0) -> workers.Team:
    return workers.Team(events=1_000, cpu=cpu, started=started, peak_rss_mib=100)


def status(partition: int, worker: str) -> PartitionStatus:
    return PartitionStatus(
        pipeline="orders",
        partition=partition,
        partitions=work.EVENTS_PARTITIONS,
        worker=worker,
        input_offset=-1,
        written_at=0,
        source_watermark=0,
        target_watermark=0,
        source_caught_up=0,
        target_caught_up=0,
        delivered_through=0,
        oldest_unsettled=None,
        oldest_in_transit=None,
        pending=0,
        in_transit=0,
        raised=0,
        counters=Counters(),
        feeds=[],
        holes=[],
    )


def found(
    keys: set[int], *, verdict: str = "open", expected: int = KEYS, holes: int = 0, complete: bool = True
) -> dict[str, Any]:
    return {
        "read": {"expected": expected, "observed": work.records(KEYS) - KEYS},
        "named": [{"key": {"id": key}, "verdict": verdict} for key in keys],
        "holes": [{}] * holes,
        "complete": complete,
    }


@pytest.mark.parametrize(
    ("suspects", "said"),
    [
        (ALL, ""),
        (ALL - {LAST}, ""),
        (ALL - {500}, "1 missed, 0 invented"),
        (ALL | {1, 2}, "0 missed, 2 invented"),
    ],
)
def test_an_answer_is_exactly_what_was_planted_and_was_due(suspects: frozenset[int], said: str) -> None:
    assert answers.fault(suspects, PLANTED, KEYS) == said


def test_a_wrong_answer_ends_the_run() -> None:
    answers.check(ALL, PLANTED, KEYS)
    with pytest.raises(SystemExit, match="wrong answer: 0 missed, 1 invented"):
        answers.check(ALL | {1}, PLANTED, KEYS)


def test_a_team_used_what_both_used() -> None:
    figures = [{"cpu": 2.0, "peak_rss_mib": 50}, {"cpu": 3.0, "peak_rss_mib": 70}]
    both = workers.Team.of(figures, [0.5, 0.5], 1_000)
    assert (both.cpu, both.started, both.peak_rss_mib) == (5.0, 1.0, 120)
    assert (both.per_cpu_second, both.per_cpu_second_at_work) == (200, 250)


def test_row_4_compares_medians_of_two_with_medians_of_one() -> None:
    rows = workers.rows(
        {
            (workers.INGESTERS, 1): [team(1.0), team(9.0), team(2.0)],
            (workers.INGESTERS, 2): [team(2.0), team(2.5), team(0.1)],
            (workers.MATCHERS, 1): [team(2.0, started=1.0)],
            (workers.MATCHERS, 2): [team(3.0, started=2.0)],
        }
    )
    assert [(row["name"], round(row["ratio"], 2), row["met"]) for row in rows] == [
        ("two ingesters", 1.0, True),
        ("two ingesters, once both have joined", 1.0, True),
        ("two matchers", 0.67, False),
        ("two matchers, once both have joined", 1.0, True),
    ]
    assert {row["row"] for row in rows} == {4}


def test_the_work_begins_when_as_many_workers_as_asked_for_share_it_evenly() -> None:
    def newest(*names: str) -> dict[int, PartitionStatus]:
        return {number: status(number, name) for number, name in enumerate(names)}

    assert workers.is_shared(newest("a", "b", "a", "b"), 2)
    assert workers.is_shared(newest("a", "a", "a", "a"), 1)
    assert not workers.is_shared(newest("a", "a", "a", "a"), 2)
    assert not workers.is_shared(newest("a", "a", "a", "b"), 2)
    assert not workers.is_shared(newest("a", "b"), 2)


def test_teams_of_one_role_have_topics_and_groups_of_their_own() -> None:
    names = [workers.prefix_of(role, count) for role in workers.ROLES for count in (1, 2)]
    assert len(set(names)) == len(names)
    assert names[0] == work.PREFIX


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (found(set(ALL)), ""),
        (found({1}, verdict="late"), "writes are late"),
        (found({1}, verdict="unknown"), "writes are unknown"),
        (found({1}, expected=7), f"7 and {work.records(KEYS) - KEYS} writes were read"),
        (found({1}, holes=1), "stretches are missing"),
        (found({1}, complete=False), "stretches are missing"),
    ],
)
def test_a_replay_answers_for_the_whole_work_or_not_at_all(answer: dict[str, Any], said: str) -> None:
    assert replayed.shortfall(answer, KEYS) == said
    assert replayed.named(found({1, 2})) == {1, 2}


def test_row_14_is_the_replay_in_units_of_the_limit() -> None:
    raw, replay = ({"events": 100, "cpu": cpu, "peak_rss_mib": 10} for cpu in (1.0, 2.0))
    (row,) = replayed.rows([(raw, replay)])
    assert (row["row"], row["value"], row["ratio"], row["met"]) == (14, 50, 0.5, True)


def test_the_command_reads_the_pipeline_that_ingest_had() -> None:
    """What the file leaves out is what a service stores of the source's types."""
    written = parse(replayed.config("localhost:9092", "sqlite:///x.db"), {})
    mine, its = work.settings("localhost:9092", "sqlite:///x.db").pipelines["orders"], written.pipelines["orders"]
    assert written.topics == work.settings("", "").topics
    assert its.target == mine.target
    assert its.source == mine.source
    assert [(one.target, one.source) for one in its.fields] == [(one.target, one.source) for one in mine.fields]
    assert (its.grace_seconds, its.baseline, its.delivery) == (mine.grace_seconds, mine.baseline, mine.delivery)


def test_several_contestants_end_together_and_one_that_fails_ends_the_waiting() -> None:
    code = "from benchmarks.figures import report; report({})"
    with (
        pinned.Running([sys.executable, "-c", code.format(1)]) as one,
        pinned.Running([sys.executable, "-c", code.format(2)], place=1) as other,
    ):
        assert [figures["events"] for figures in pinned.wait([one, other])] == [1, 2]
    with (
        pinned.Running([sys.executable, "-c", "import sys; sys.exit('gone')"]) as one,
        pinned.Running([sys.executable, "-c", "import threading; threading.Event().wait()"], place=1) as other,
    ):
        assert other.cpu_seconds() >= 0
        with pytest.raises(pinned.CouldNotRunError, match="gone"):
            pinned.wait([one, other])


def test_every_row_is_in_one_section_of_the_page() -> None:
    rows = [row for family in FAMILIES.values() for row in family.rows]
    assert len(set(rows)) == len(rows)
    assert set(FAMILIES) <= set(page.SECTIONS)
