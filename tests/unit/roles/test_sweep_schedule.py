"""How far a scheduled sweep looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.pipeline import Settings, SweepSpec, TopicsSpec
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.sweeps import SchedulerDependencies, SweepScheduler
from tests.simulation.stores import VirtualClock, _NoStatus, spec_of_rig

HOUR = 3600.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


def extent(ledger: SqlLedger, clock: VirtualClock, sweep: SweepSpec) -> dict[str, Any]:
    spec = replace(spec_of_rig(), sweep=sweep)
    settings = Settings(bootstrap_servers="", topics=TopicsSpec(), database="", stores={}, pipelines={spec.id: spec})
    dependencies = SchedulerDependencies(
        pipelines={spec.id: spec},
        partitions=1,
        ledger=ledger,
        board=Board(settings, ledger, _NoStatus(), clock),
        clock=clock,
        new_id=lambda: "sweep",
    )
    return SweepScheduler(dependencies).extent(spec)


def swept(ledger: SqlLedger, clock: VirtualClock, hours_ago: float) -> None:
    started = clock.now() - timedelta(hours=hours_ago)
    ledger.set_fact(Facts.swept(spec_of_rig().id), {"started_at": started.isoformat(), "run": "r", "masked": 0})


def test_without_a_lookback_every_sweep_is_a_full_one(ledger: SqlLedger) -> None:
    assert extent(ledger, VirtualClock(), SweepSpec(every_seconds=HOUR)) == {}


def test_a_lookback_is_what_is_scheduled_between_full_ones(ledger: SqlLedger) -> None:
    clock = VirtualClock()
    spec = SweepSpec(every_seconds=HOUR, lookback_seconds=48 * HOUR, full_every_seconds=24 * HOUR)
    assert extent(ledger, clock, spec) == {}, "no full one has succeeded yet"
    swept(ledger, clock, 23)
    asked = extent(ledger, clock, spec)
    assert asked["range"] == "lookback"
    assert asked["since"].startswith((clock.now() - timedelta(hours=48)).isoformat()[:19])
    swept(ledger, clock, 25)
    assert extent(ledger, clock, spec) == {}
