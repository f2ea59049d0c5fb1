"""The comparison: answers are checked, medians taken, and who cannot run stands in the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest
from benchmarks import page, pinned, work
from benchmarks.peers import environment, roster
from benchmarks.peers.crash import KEYS, Trial
from benchmarks.peers.programs.answer import as_json, document, row
from benchmarks.peers.results import Result, Run, is_right, table

from gapwatch.embedded.cache import parse_jars

BY_NAME = {contestant.name: contestant for contestant in roster.CONTESTANTS}
PLANTED = work.Planted(missing=frozenset({1, 2}), wrong=frozenset({3, 9}))


def run(cpu: float, *, right: bool = True, peaks: Sequence[float] = (100.0,)) -> Run:
    parts = [{"events": 1_000, "cpu": cpu / len(peaks), "wall": 2.0, "peak_rss_mib": peak} for peak in peaks]
    return Run.of(parts, right=right)


@pytest.mark.parametrize(
    ("missing", "wrong", "right"),
    [
        ({1, 2}, {3, 9}, True),
        ({1, 2}, {3}, True),  # 9 was not due yet
        ({1}, {3, 9}, False),
        ({1, 2, 4}, {3, 9}, False),
        ({1, 2, 3}, {9}, False),
        ({1, 2, 9}, {3}, False),
    ],
)
def test_an_answer_is_right_only_with_exactly_the_planted_keys(missing: set[int], wrong: set[int], right: bool) -> None:
    answer = work.Planted(missing=frozenset(missing), wrong=frozenset(wrong))
    assert is_right(answer, PLANTED, undue={9}) is right


def test_the_table_shows_medians_ratios_and_who_did_not_run() -> None:
    results = [
        Result(contestant=BY_NAME["faust"], runs=[run(1.0), run(3.0), run(2.0)], trial="yes: all 10 found"),
        Result(contestant=BY_NAME["gapwatch"], runs=[run(0.1, peaks=(50.0, 70.0))]),
        Result(contestant=BY_NAME["bytewax"], runs=[run(1.0, right=False)]),
        Result(contestant=BY_NAME["flink"], reason="no network | today"),
    ]
    lines = table(results)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines[2:]}
    faust, own = cells[BY_NAME["faust"].title], cells[BY_NAME["gapwatch"].title]
    assert faust[1:3] == ["500", "1.0"]
    assert "yes: all 10 found" in faust[-1]
    assert own[1:3] == ["10,000", "20.0"]
    assert own[5] == "50 + 70"
    assert "**wrong**" in cells[BY_NAME["bytewax"].title]
    assert cells[BY_NAME["flink"].title][1] == "not run: no network / today"
    assert lines[2].startswith(f"| {BY_NAME['gapwatch'].title}")


def trial(found: set[int], read_again: int) -> Trial:
    return Trial(wanted=frozenset({3, 9}), found=frozenset(found), read=0, read_again=read_again)


def test_state_is_kept_only_where_all_was_found_without_reading_everything_again() -> None:
    assert trial({3, 9}, 0).kept
    assert trial({3, 9}, KEYS).words() == "no: everything read again"
    assert trial(set(), 0).words() == "no: 0 of 2 found, 0 invented"
    assert not trial({3, 4, 9}, 0).kept


def test_the_six_fields_of_both_sides_are_equal_but_for_the_planted_ones() -> None:
    for number in (0, 1, 96, 54_321):
        source = json.loads(work.source_record(number)[1])["after"]
        for wrong in (False, True):
            target = json.loads(json.loads(work.target_record(number, wrong=wrong)[1])["after"])
            assert (row(source) == document(target)) is not wrong
            assert (as_json(row(source)) == as_json(document(target))) is not wrong


def test_a_contestant_that_fails_says_why() -> None:
    with pytest.raises(pinned.CouldNotRunError, match="exit code 3: no such thing"):
        pinned.run([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(pinned.CouldNotRunError, match="not done after 0 s"):
        pinned.run([sys.executable, "-c", "import threading; threading.Event().wait()"], limit_seconds=0.2)
    with pytest.raises(pinned.CouldNotRunError, match="it said nothing"):
        pinned.run([sys.executable, "-c", ""])


def test_a_contestants_figures_are_its_last_line() -> None:
    code = "from benchmarks.figures import report; print('loading'); report(7, missing=[1])"
    figures = pinned.run([sys.executable, "-c", code])
    assert (figures["events"], figures["missing"]) == (7, [1])
    assert 5 < figures["peak_rss_mib"] < 200
    assert figures["cpu"] > 0


def test_everything_a_java_program_needs_is_locked() -> None:
    jars = parse_jars(environment.JARS_LOCK.read_text())
    assert {jar.group for jar in jars} == {"compiler", "flink", "kstreams"}
    assert all(len(jar.sha256) == 64 and jar.coordinates.count(":") == 4 for jar in jars)
    assert environment.jar_version("org.apache.kafka:kafka-streams")
    assert environment.jar_version("org.apache.flink:flink-streaming-java")


def test_a_command_writes_its_own_section_of_the_page_only() -> None:
    old = page.PAGE.read_text()
    for name in page.SECTIONS:
        new = page.replaced(old, name, "| new |")
        assert f"<!-- {name} -->\n| new |\n<!-- /{name} -->" in new
        assert page.replaced(new, name, "x") == page.replaced(old, name, "x")
    with pytest.raises(ValueError, match="no section"):
        page.replaced(old, "other", "")
