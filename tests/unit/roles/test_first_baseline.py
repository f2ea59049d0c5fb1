"""While the first baseline is stored, step by step, nobody who looks at that moment sees a hole that it covers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Finding, FindingRecord, Run, RunKind, RunState
from gapwatch.model.pipeline import Settings, TopicsSpec
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from tests.ledger_samples import gap, opening
from tests.ledger_samples import run as a_run
from tests.simulation.stores import VirtualClock, _NoStatus, spec_of_rig

SPEC = spec_of_rig()
READS = 12  # of a board, for one pipeline


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


def first_sweep(ledger: SqlLedger, clock: VirtualClock) -> list[Callable[[], Any]]:
    """Return the steps by which the first sweep's success is stored; what came before it is a hole."""
    before = clock.now()
    hole = FindingRecord(
        id="hole_1",
        pipeline=SPEC.id,
        finding=Finding.INGEST_HOLE,
        side="expected",
        feed="t",
        first_seen=before,
        last_seen=before,
        message="m",
        remedy="r",
        time_from=before - timedelta(days=1),
        time_to=before,
        is_hole=True,
    )
    ledger.raise_finding(hole)
    recording = Recording(ledger)
    dependencies = SimpleNamespace(pipelines={SPEC.id: SPEC}, ledger=recording, board=board(ledger, clock), clock=clock)
    run = Run(
        id="run_1",
        pipeline=SPEC.id,
        kind=RunKind.SWEEP,
        state=RunState.SUCCEEDED,
        requested_at=clock.now(),
        request={"range": "full", "content": True},
        requested_by="gapwatch",
    )
    RunRunner(cast(RunnerDependencies, dependencies))._settle(replace(run, started_at=clock.now(), ended_at=clock.now()), 0)
    return recording.steps


@pytest.mark.parametrize("in_hand", [0, 1])
def test_an_unverifiable_key_is_not_read_by_a_sweep_that_left_keys_to_a_backfill(ledger: SqlLedger, in_hand: int) -> None:
    clock = VirtualClock()
    ledger.add_unverifiable(SPEC.id, b"key", clock.now() - timedelta(minutes=1), "store")
    dependencies = SimpleNamespace(pipelines={SPEC.id: SPEC}, ledger=ledger, board=board(ledger, clock), clock=clock)
    swept = replace(
        a_run(),
        pipeline=SPEC.id,
        kind=RunKind.SWEEP,
        state=RunState.SUCCEEDED,
        request={"range": "full", "content": True},
        counts={"source_keys": 1, "in_hand": in_hand},
        started_at=clock.now(),
        ended_at=clock.now(),
    )
    RunRunner(cast(RunnerDependencies, dependencies))._settle(swept, 0)
    assert (ledger.unverifiable_oldest(SPEC.id) is not None) == bool(in_hand)


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
            ledger.store_gaps([opening(gap(pipeline=SPEC.id))])
            ledger.clear_finding("hole_1", at=now)

        [facts] = board(Slow(ledger, turn, rest), clock)._facts([SPEC])
        shown = (len(facts.findings), sum(facts.summary.open_by_kind.values()))
        assert shown != (0, 0), f"the sweep ended before read {turn}"
        seen.add(shown)
    assert len(seen) > 1
