"""While the first baseline is stored, step by step, nobody who looks at that moment sees a hole that it covers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs

from gapwatch.core.standing import BEGINNING
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Resolution, Run, RunKind, RunState, State
from gapwatch.model.pipeline import Settings, TopicsSpec
from gapwatch.model.suspect import Hole
from gapwatch.ports import GapChange
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.book import hold_from
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from gapwatch.roles.repair.sweeps import set_baseline
from tests.ledger_samples import gap as a_gap
from tests.ledger_samples import hole as a_hole
from tests.ledger_samples import opening
from tests.simulation.stores import VirtualClock, _NoStatus, spec_of_rig
from tests.unit.core.test_standing import record

SPEC = spec_of_rig()
READS = 13  # of a board, for one pipeline


class Recording:
    """A ledger that only notes what is written."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.steps: list[Callable[[], Any]] = []
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if name in ("set_fact", "clear_finding", "clear_unverifiable"):
            return lambda *args, **more: self.steps.append(partial(found, *args, **more))
        return found


class Slow:
    """A ledger whose `turn`-th read comes after somebody else has written everything that is left."""

    def __init__(self, ledger: SqlLedger, turn: int, meanwhile: Callable[[], None]) -> None:
        self._ledger, self.left, self._meanwhile = ledger, turn, meanwhile

    def __getattr__(self, name: str) -> Any:
        def read(*args: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self._meanwhile()
            return getattr(self._ledger, name)(*args, **more)

        return read


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[[], SqlLedger]]:
    opened: list[SqlLedger] = []
    open_ledger(f"sqlite:///{tmp_path}/empty.db").close()

    def make() -> SqlLedger:
        file = tmp_path / f"{len(opened)}.db"
        shutil.copy(tmp_path / "empty.db", file)
        opened.append(open_ledger(f"sqlite:///{file}"))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


def board(ledger: Any, clock: VirtualClock) -> Board:
    settings = Settings(bootstrap_servers="", topics=TopicsSpec(), database="", stores={}, pipelines={SPEC.id: SPEC})
    return Board(settings, ledger, _NoStatus(), clock)


@pytest.mark.parametrize("seconds", [-1.0, SPEC.clock_skew_max_seconds + 1])
def test_a_report_of_a_clock_that_is_far_ahead_proves_nothing_and_what_it_says_counts(ledger: SqlLedger, seconds: float) -> None:
    clock = VirtualClock()
    said = {"at": (clock.now() + timedelta(seconds=seconds)).isoformat(), "undecided": 3, "unreadable": ["shop"]}
    ledger.set_fact(Facts.repair(SPEC.id, "process"), said)
    [facts] = board(ledger, clock)._facts([SPEC])
    assert (facts.repair_seen is not None) == (seconds < 0)
    assert (facts.undecided, facts.unreadable_stores) == (3, ("shop",))


def test_lesson_1_a_sweep_that_left_something_unread_counts_until_another_one_has_looked_as_far(ledger: SqlLedger) -> None:
    clock = VirtualClock()
    shown, seen = board(ledger, clock), []
    for name, state, request in (
        ("a", RunState.INCONCLUSIVE, {"range": "full", "content": True}),
        ("b", RunState.SUCCEEDED, {"range": "keys", "content": True, "keys": ["01"]}),
        ("c", RunState.SUCCEEDED, {"range": "full", "content": True}),
    ):
        run = replace(a_sweep(clock), id=name, state=RunState.QUEUED, request=request, started_at=None, ended_at=None)
        ledger.create_run(run)
        taken = ledger.take_run(RunKind.SWEEP, "here", seconds=60)
        assert taken is not None
        ledger.update_run(replace(taken, state=state, ended_at=clock.now()), holder="here")
        [facts] = shown._facts([SPEC])
        seen.append(facts.unproven.id if facts.unproven else None)
    assert seen == ["a", "a", None]


def first_sweep(ledger: SqlLedger, clock: VirtualClock) -> list[Callable[[], Any]]:
    """Return the steps by which the first sweep's success is stored; what came before it is a hole."""
    before = clock.now()
    ledger.raise_finding(a_hole(before - timedelta(days=1), before, pipeline=SPEC.id))
    recording = Recording(ledger)
    dependencies = SimpleNamespace(pipelines={SPEC.id: SPEC}, ledger=recording, board=board(ledger, clock), clock=clock)
    RunRunner(cast(RunnerDependencies, dependencies))._settle(a_sweep(clock), 0)
    return recording.steps


def a_sweep(clock: VirtualClock) -> Run:
    """Return a sweep of everything that has succeeded, and began and ended later than clocks may differ."""
    clock._ms += round(SPEC.clock_skew_max_seconds * 1_000) + 1
    return Run(
        id="run_1",
        pipeline=SPEC.id,
        kind=RunKind.SWEEP,
        state=RunState.SUCCEEDED,
        requested_at=clock.now(),
        request={"range": "full", "content": True},
        requested_by="gapwatch",
        started_at=clock.now(),
        ended_at=clock.now(),
    )


@pytest.mark.parametrize("seconds", [SPEC.clock_skew_max_seconds - 0.1, SPEC.clock_skew_max_seconds + 0.1])
def test_a_hole_that_ended_on_another_clock_may_not_have_ended_when_the_sweep_began(ledger: SqlLedger, seconds: float) -> None:
    """The ledger's clock was ahead of the ingester's: the sweep had read a key before the write that was lost in the hole."""
    clock = VirtualClock()
    run = a_sweep(clock)
    assert run.started_at is not None
    ledger.raise_finding(a_hole(BEGINNING, run.started_at - timedelta(seconds=seconds), pipeline=SPEC.id))
    dependencies = SimpleNamespace(
        pipelines={SPEC.id: SPEC}, ledger=ledger, board=SimpleNamespace(records=lambda _: ()), clock=clock
    )
    RunRunner(cast(RunnerDependencies, dependencies))._settle(run, 0)
    open_ones = [finding for finding in ledger.findings(SPEC.id) if finding.cleared_at is None]
    assert bool(open_ones) == (seconds < SPEC.clock_skew_max_seconds)
    assert (ledger.fact(Facts.baseline(SPEC.id)) is not None) == (seconds > SPEC.clock_skew_max_seconds)


@pytest.mark.parametrize("in_hand", [0, 1])
def test_an_unverifiable_key_is_not_read_by_a_sweep_that_left_keys_to_a_backfill(ledger: SqlLedger, in_hand: int) -> None:
    clock = VirtualClock()
    ledger.add_unverifiable(SPEC.id, b"key", clock.now() - timedelta(minutes=1), "store")
    dependencies = SimpleNamespace(pipelines={SPEC.id: SPEC}, ledger=ledger, board=board(ledger, clock), clock=clock)
    swept = replace(a_sweep(clock), counts={"source_keys": 1, "in_hand": in_hand})
    RunRunner(cast(RunnerDependencies, dependencies))._settle(swept, 0)
    assert (ledger.unverifiable_oldest(SPEC.id) is not None) == bool(in_hand)


def test_an_open_gap_of_a_key_that_may_have_lost_more_in_a_hole_holds_the_time_of_the_hole(ledger: SqlLedger) -> None:
    """The sweep reads that its key differs, and cannot tell of how many writes."""
    clock = VirtualClock()
    now = clock.now()
    late = now + timedelta(seconds=3)
    times = {"later": late, "earlier": now - timedelta(days=2), "unknown": None, "over": late}
    gaps = {
        name: structs.replace(a_gap(), id=name, pipeline=SPEC.id, key=name.encode(), event_time=time)
        for name, time in times.items()
    }
    gaps["over"] = structs.replace(gaps["over"], state=State.RESOLVED, resolution=Resolution.BACKFILLED, resolved_at=now)
    ledger.store_gaps([GapChange(gap=gap, against=None, event="opened") for gap in gaps.values()])
    for step in first_sweep(ledger, clock):
        step()
    found = ledger.gaps_by_id(list(gaps))
    assert {name for name, gap in found.items() if gap.held_since is not None} == {"later"}
    hole = timedelta(days=1)
    assert now - hole <= (found["later"].held_since or now) < now - hole + timedelta(seconds=1)
    assert found["later"].event_time == times["later"]
    revisions = {name: gap.revision for name, gap in found.items()}
    assert hold_from(ledger, SPEC.id, found["later"].held_since or now)
    assert {name: gap.revision for name, gap in ledger.gaps_by_id(list(gaps)).items()} == revisions, "it says so once"


def test_a_hole_stays_uncovered_while_its_time_cannot_be_stored(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    gap = structs.replace(a_gap(), pipeline=SPEC.id, event_time=clock.now() + timedelta(seconds=3))
    ledger.store_gaps([GapChange(gap=gap, against=None, event="opened")])
    overtaken = [True] * 3
    stored = ledger.store_gaps

    def store(changes: Sequence[GapChange]) -> Sequence[bool]:
        if overtaken and overtaken.pop():
            return [False] * len(changes)
        return stored(changes)

    monkeypatch.setattr(ledger, "store_gaps", store)
    assert hold_from(ledger, SPEC.id, clock.now() - timedelta(days=1)), "somebody changed it at the same moment, three times"
    overtaken += [True] * 100
    assert not hold_from(ledger, SPEC.id, clock.now() - timedelta(days=2))


def test_no_hole_is_shown_while_the_baseline_that_covers_it_is_stored(made: Callable[[], SqlLedger]) -> None:
    steps = len(first_sweep(made(), VirtualClock()))
    assert steps >= 4
    for done in range(steps + 1):
        for turn in range(1, READS + 1):
            ledger, clock = made(), VirtualClock()
            writing = first_sweep(ledger, clock)
            for step in writing[:done]:
                step()

            def rest(left: list[Callable[[], Any]] = writing[done:]) -> None:
                for step in left:
                    step()

            slow = Slow(ledger, turn, rest)
            [facts] = board(slow, clock)._facts([SPEC])
            assert turn - READS <= slow.left <= turn - 1, "there are as many reads as are tried here, or fewer"
            covered = facts.last_full_sweep_started is not None and facts.findings == []
            assert facts.baseline is None or covered, f"after {done} steps, and the rest before read {turn}"
    assert ledger.fact(Facts.baseline(SPEC.id)) is not None


def test_what_a_sweep_found_is_never_missed_as_a_hole_and_as_a_gap(made: Callable[[], SqlLedger]) -> None:
    """Gaps are stored first, the hole is cleared behind them: whoever reads meanwhile sees the one, the other, or both."""
    seen = set()
    for turn in range(1, READS + 1):
        ledger, clock = made(), VirtualClock()
        first_sweep(ledger, clock)

        def rest(ledger: SqlLedger = ledger, clock: VirtualClock = clock) -> None:
            now = clock.now()
            ledger.store_gaps([opening(a_gap(pipeline=SPEC.id))])
            ledger.clear_finding("hole_1", at=now)

        [facts] = board(Slow(ledger, turn, rest), clock)._facts([SPEC])
        shown = (len(facts.findings), sum(facts.summary.open_by_kind.values()))
        assert shown != (0, 0), f"the sweep ended before read {turn}"
        seen.add(shown)
    assert len(seen) > 1


@pytest.mark.parametrize(
    "known",
    [
        "nothing",
        "a sweep before it",
        "somebody's word",
        "a sweep inside it",
        "an unverifiable key",
        "a hole that only the matcher told of",
    ],
)
def test_what_a_sweep_covers_is_held_from_where_it_can_have_been_lost(ledger: SqlLedger, known: str) -> None:
    """The key of an open gap may have lost an earlier write: in what was never watched, too, or among what nobody could read."""
    clock = VirtualClock()
    now, hour = clock.now(), timedelta(hours=1)
    statuses, spec = [], SPEC
    if known == "a sweep inside it":  # which may have passed over the key, as it changed all the time
        ledger.set_fact(Facts.swept(SPEC.id), {"started_at": (now - hour).isoformat(), "run": "r", "masked": 0})
    if known == "somebody's word":
        spec = replace(SPEC, baseline="assume")
        set_baseline(ledger, SPEC.id, started=now - 4 * hour, ended=now - 4 * hour, run_id=None)
    if known == "a sweep before it":
        ledger.set_fact(Facts.swept(SPEC.id), {"started_at": (now - 3 * hour).isoformat(), "run": "r", "masked": 0})
    if known == "an unverifiable key":
        ledger.add_unverifiable(SPEC.id, b"key", now - 2 * hour, "store")
    elif known == "a hole that only the matcher told of":
        times = {"time_from": int((now - 2 * hour).timestamp() * 1000), "time_to": int((now - hour).timestamp() * 1000)}
        hole = Hole(id="h", pipeline=SPEC.id, side=0, feed="t", feed_partition=0, reason="missing", **times)
        statuses = [record(0, holes=[hole])]
    else:
        begun = now - 2 * hour if known == "a sweep inside it" else BEGINNING
        ledger.raise_finding(a_hole(begun, now, pipeline=SPEC.id))
    gap = structs.replace(a_gap(), pipeline=SPEC.id, event_time=now - timedelta(minutes=1))
    ledger.store_gaps([GapChange(gap=gap, against=None, event="opened")])
    of_board = SimpleNamespace(records=lambda _: statuses)
    dependencies = SimpleNamespace(pipelines={SPEC.id: spec}, ledger=ledger, board=of_board, clock=clock)
    RunRunner(cast(RunnerDependencies, dependencies))._settle(a_sweep(clock), 0)
    held = ledger.gaps_by_id([gap.id])[gap.id].held_since
    proved = {"nothing": BEGINNING, "a sweep before it": now - 3 * hour, "somebody's word": now - 4 * hour}
    assert held == proved.get(known, now - 2 * hour)
    assert ledger.findings(SPEC.id) == []
    assert ledger.unverifiable_oldest(SPEC.id) is None
    fact = ledger.fact(Facts.swept(SPEC.id)) or {}
    assert ("before" in fact) == (known in ("a sweep before it", "a sweep inside it", "somebody's word"))
