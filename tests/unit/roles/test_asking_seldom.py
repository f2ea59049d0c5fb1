"""Pollers that look at every pipeline leave the ledger alone while nothing is written."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.clock import SystemClock
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Finding
from gapwatch.roles.repair import incidents, sweeps
from gapwatch.roles.repair.autorepairer import TIDY_OTHERS_SECONDS, TIDY_SECONDS, AutoRepairer
from gapwatch.roles.repair.incidents import IncidentWatch
from gapwatch.roles.repair.sweeps import SchedulerDependencies, SweepScheduler
from gapwatch.roles.repair.watcher import FindingBook
from tests.ledger_samples import finding, gap, opening
from tests.simulation.shop import spec_of
from tests.simulation.stores import VirtualClock
from tests.unit.roles.test_asking import Watched, until


async def test_incidents_are_looked_for_after_gaps_were_stored(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incidents, "OTHERS_SECONDS", 1_000)
    monkeypatch.setattr(incidents, "LOOK_SECONDS", 0.02)
    stop, watched, spec = asyncio.Event(), Watched(ledger), spec_of()
    watch = IncidentWatch({spec.id: spec}, cast(Any, watched), cast(Any, None), SystemClock())
    running = asyncio.create_task(watch.run(stop))
    await until(lambda: watched.asked["gaps"] == 1)
    await asyncio.sleep(0.1)
    assert (watched.asked["gaps"], watched.asked["gap_burst"]) == (1, 0), "without a gap there is no burst of any pipeline"
    ledger.store_gaps([opening(gap(1))])
    await until(lambda: watched.asked["gap_burst"] == 1)
    stop.set()
    await running


async def test_an_incident_ends_though_no_gap_is_left(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no gap is open no burst is looked for, and whose incident would stand for ever then?"""
    monkeypatch.setattr(incidents, "LOOK_SECONDS", 0.02)
    stop, spec, clock = asyncio.Event(), spec_of(), SystemClock()
    told = FindingBook(ledger, clock, lambda *_: None)
    ledger.raise_finding(finding(pipeline=spec.id, finding=Finding.INCIDENT))
    running = asyncio.create_task(IncidentWatch({spec.id: spec}, ledger, told, clock).run(stop))
    await until(lambda: not ledger.findings(spec.id))
    stop.set()
    await running


async def test_the_scheduler_reads_the_last_sweeps_of_all_pipelines_at_once(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "OTHERS_SECONDS", 1_000)
    monkeypatch.setattr(sweeps, "TICK_SECONDS", 0.02)
    stop, watched, spec = asyncio.Event(), Watched(ledger), spec_of()
    board = SimpleNamespace(read_through=True, records=lambda _: [])
    on = SchedulerDependencies(
        pipelines=dict.fromkeys(("orders", "users"), spec),
        partitions=1,
        ledger=cast(Any, watched),
        board=cast(Any, board),
        clock=SystemClock(),
        new_id=lambda: "x",
    )
    running = asyncio.create_task(SweepScheduler(on).run(stop))
    await until(lambda: watched.asked["last_runs"] == 1)
    await asyncio.sleep(0.1)
    assert (watched.asked["last_runs"], watched.asked["runs"]) == (1, 0)
    ledger.store_gaps([opening(gap(1))])
    await until(lambda: watched.asked["last_runs"] == 2)
    stop.set()
    await running


async def test_what_runs_left_behind_is_looked_for_seldom_while_nothing_is_written(ledger: SqlLedger) -> None:
    watched, clock, spec = Watched(ledger), VirtualClock(), spec_of()
    on = SimpleNamespace(ledger=watched, clock=clock, pipelines={spec.id: spec}, stores=None, new_id=None)
    repairer = AutoRepairer(cast(Any, on))

    async def asked_after(seconds: float) -> int:
        await clock.sleep(seconds)
        await repairer.step(spec)
        return watched.asked["forget_resolved_repairs"]

    assert await asked_after(0) == 1
    assert await asked_after(TIDY_SECONDS + 1) == 1
    ledger.store_gaps([opening(gap(1))])
    assert await asked_after(0) == 2, "this process has written"
    assert await asked_after(TIDY_SECONDS + 1) == 2
    assert await asked_after(TIDY_OTHERS_SECONDS) == 3, "another one may have"
