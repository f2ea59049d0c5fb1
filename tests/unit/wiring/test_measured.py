"""What the metrics say of sweeps: the last success stays known, whatever came after it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gapwatch.ledger import SqlLedger
from gapwatch.metrics import SNAPSHOT_SECONDS_MAX, Metrics, unread
from gapwatch.model.gap import RunKind, RunState
from gapwatch.roles.repair.sweeps import request_sweep
from gapwatch.wiring.measured import FIRST_LOOK, last_success, snapshot
from gapwatch.wiring.parts import SHOWN_SECONDS, UNSEEN_SECONDS, Parts
from tests.deploy.test_alerts import exposed
from tests.simulation.stores import VirtualClock, spec_of_rig


def ended(ledger: SqlLedger, clock: VirtualClock, state: RunState, scope: str = "full") -> None:
    request_sweep(ledger, spec_of_rig(), clock, f"run{len(ledger.runs(limit=1_000))}", {"range": scope})
    run = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert run is not None
    ledger.update_run(replace(run, state=state, ended_at=clock.now()), holder="here")


@pytest.mark.parametrize(("state", "scope"), [(RunState.INCONCLUSIVE, "full"), (RunState.SUCCEEDED, "keys")])
def test_the_last_success_stays_known_however_many_sweeps_prove_nothing_or_look_at_some_keys_only(
    ledger: SqlLedger, state: RunState, scope: str
) -> None:
    """Else the alert that sweeps are stale falls silent just when they are."""
    clock, pipeline = VirtualClock(), spec_of_rig().id
    assert last_success(ledger, pipeline) is None
    ended(ledger, clock, RunState.SUCCEEDED)
    good = last_success(ledger, pipeline)
    assert good is not None
    assert clock.now() - good < timedelta(seconds=1)
    for _ in range(2 * FIRST_LOOK + 1):
        ended(ledger, clock, state, scope)
    assert last_success(ledger, pipeline) == good
    ended(ledger, clock, RunState.SUCCEEDED, "lookback")
    assert last_success(ledger, pipeline) != good


def test_i1_how_long_the_last_sweep_took_is_shown_while_another_one_runs(ledger: SqlLedger) -> None:
    clock, pipeline, metrics = VirtualClock(), spec_of_rig().id, exposed()

    def shown() -> dict[str, float]:
        last = ledger.last_runs(RunKind.SWEEP, [pipeline])[pipeline]
        said = snapshot(ledger, [SimpleNamespace(id=pipeline, last_sweep=last, gaps_open={})])
        metrics.show(replace(metrics.snapshot, sweeps=said.sweeps, sweeps_before=said.sweeps_before))
        families = text_string_to_metric_families(metrics.exposition().decode())
        found = {one.name: one.value for family in families for one in family.samples if one.labels.get("pipeline") == pipeline}
        return {name.removeprefix("gapwatch_"): value for name, value in found.items() if name.startswith("gapwatch_sweep_")}

    ended(ledger, clock, RunState.SUCCEEDED)
    before = shown()
    assert before["sweep_running"] == 0
    request_sweep(ledger, spec_of_rig(), clock, "waits", {})
    assert shown()["sweep_duration_seconds"] == before["sweep_duration_seconds"]
    assert ledger.take_run(RunKind.SWEEP, "here", seconds=60) is not None
    after = shown()
    assert (after["sweep_running"], after["sweep_duration_seconds"]) == (1, before["sweep_duration_seconds"])
    for _ in range(2):
        metrics.show(unread(metrics.snapshot))
    assert "gapwatch_sweep_running{" not in metrics.exposition().decode(), "nobody knows, and it would silence an alert for ever"
    assert "gapwatch_sweep_duration_seconds{" in metrics.exposition().decode()


def test_while_the_ledger_does_not_answer_nothing_that_holds_now_is_shown() -> None:
    metrics = exposed()
    before = metrics.snapshot
    metrics.show(unread(before))
    shown = metrics.exposition().decode()
    assert_unknown(shown)
    assert metrics.snapshot.detected == before.detected


def assert_unknown(shown: str) -> None:
    assert 'gapwatch_pipeline_status{pipeline="orders",status="UNKNOWN"} 1.0' in shown
    assert 'gapwatch_pipeline_status{pipeline="orders",status="HEALTHY"} 0.0' in shown
    assert "gapwatch_consistent_through_timestamp_seconds{" not in shown
    assert "gapwatch_coverage_ratio{" not in shown


async def test_a_ledger_that_neither_answers_nor_fails_leaves_nothing_shown_for_ever() -> None:
    """Its server is frozen, and its kernel still acknowledges: the reading never ends, and what was read last was HEALTHY."""
    before, clock, stop, hangs = exposed().snapshot, VirtualClock(), asyncio.Event(), asyncio.Event()
    metrics, reads_again = Metrics("0", ["orders"], monotonic=clock.monotonic), asyncio.Event()

    class Board:
        read = 0

        async def measured(self) -> Sequence[Any]:
            self.read += 1
            if self.read > 1:
                reads_again.set()
                await hangs.wait()
            return before.views

    async def pause(*_: object) -> None:
        await clock.sleep(UNSEEN_SECONDS + SHOWN_SECONDS)

    ledger = SimpleNamespace(**dict.fromkeys(("gap_counts", "resolution_counts", "repair_counts"), dict))
    ledger.runs, ledger.facts = lambda **_: (), lambda _: {}
    ledger.gap_summary = lambda _: SimpleNamespace(oldest_alerting=None)
    parts: Any = SimpleNamespace(clock=clock, metrics=metrics, ledger=ledger, _pause=pause)
    board: Any = Board()
    showing = asyncio.create_task(Parts._show_metrics(parts, board, stop))
    await reads_again.wait()
    healthy = 'gapwatch_pipeline_status{pipeline="orders",status="HEALTHY"} 1.0'
    await clock.sleep(SNAPSHOT_SECONDS_MAX - UNSEEN_SECONDS - SHOWN_SECONDS)
    assert healthy in metrics.exposition().decode()
    await clock.sleep(1)
    assert_unknown(metrics.exposition().decode())
    stop.set()
    hangs.set()  # the server goes on: what it says is as old as its views
    await clock.sleep(SNAPSHOT_SECONDS_MAX)
    await showing
    assert_unknown(metrics.exposition().decode())


async def test_nobody_who_pauses_keeps_the_service_from_its_end() -> None:
    """Metrics that nobody reads are read every thirty seconds: longer than a stop may take."""
    clock, stop = VirtualClock(), asyncio.Event()
    parts: Any = SimpleNamespace(clock=clock, _scraped_at=float("-inf"))
    board: Any = SimpleNamespace(looked_at=float("-inf"))
    begun = clock.monotonic()
    await Parts._pause(parts, board, stop)
    assert clock.monotonic() - begun >= UNSEEN_SECONDS
    stop.set()
    begun = clock.monotonic()
    await Parts._pause(parts, board, stop)
    assert clock.monotonic() - begun <= SHOWN_SECONDS
