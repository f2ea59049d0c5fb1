"""How far a scheduled sweep looks, and what a pause or a maintenance window does to sweeps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from msgspec import structs

from gapwatch.core.standing import BEGINNING
from gapwatch.errors import UsageError
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Run, RunKind, RunState
from gapwatch.model.pipeline import PipelineSpec, Settings, SweepSpec, TopicsSpec
from gapwatch.model.suspect import PartitionStatus
from gapwatch.ports import GapChange
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.desk import Desk, DeskDependencies
from gapwatch.roles.repair import sweeps
from gapwatch.roles.repair.sweeps import (
    JITTER_SECONDS_MAX,
    SchedulerDependencies,
    SweepScheduler,
    jitter,
    refuse_quiet,
    request_sweep,
    set_baseline,
)
from tests.ledger_samples import gap as a_gap
from tests.ledger_samples import hole as a_hole
from tests.simulation.stores import VirtualClock, _NoStatus, spec_of_rig
from tests.unit.core.test_standing import record

HOUR = 3600.0
NUMBERS = itertools.count()


def scheduler(ledger: SqlLedger, clock: VirtualClock, spec: PipelineSpec) -> SweepScheduler:
    settings = Settings(bootstrap_servers="", topics=TopicsSpec(), database="", stores={}, pipelines={spec.id: spec})
    dependencies = SchedulerDependencies(
        pipelines={spec.id: spec},
        partitions=1,
        ledger=ledger,
        board=Board(settings, ledger, _NoStatus(), clock),
        clock=clock,
        new_id=lambda: f"sweep{next(NUMBERS)}",
    )
    return SweepScheduler(dependencies)


def extent(ledger: SqlLedger, clock: VirtualClock, sweep: SweepSpec) -> dict[str, Any]:
    spec = replace(spec_of_rig(), sweep=sweep)
    return scheduler(ledger, clock, spec).extent(spec)


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


async def test_m22_a_window_ends_what_runs_and_is_followed_by_a_sweep_of_what_changed(ledger: SqlLedger) -> None:
    clock = VirtualClock()
    start = clock.now() + timedelta(hours=1)
    window = f"{start.isoformat()}/{(start + timedelta(hours=2)).isoformat()}"
    spec = replace(spec_of_rig(), maintenance=(window,))
    spec = replace(spec, source=replace(spec.source, changed_at="changed"))
    asking = scheduler(ledger, clock, spec)
    running = request_sweep(ledger, spec, clock, "running", {"reason": "asked"})
    await asking.tick()
    assert found(ledger, running.id).state is RunState.QUEUED, "before the window"
    await clock.sleep(HOUR + 1)
    await asking.tick()
    assert found(ledger, running.id).state is RunState.CANCELLED
    with pytest.raises(UsageError, match="left alone now: maintenance until"):
        refuse_quiet(ledger, spec, clock.now())
    await clock.sleep(2 * HOUR)
    await scheduler(ledger, clock, spec).tick()  # another process: what one began to wait for, another one goes on with
    (sweep,) = ledger.runs(pipeline=spec.id, kind=RunKind.SWEEP, states=[RunState.QUEUED])
    assert (sweep.request["reason"], sweep.request["range"]) == ("resumed", "lookback")
    assert datetime.fromisoformat(sweep.request["since"]) == start - timedelta(seconds=spec.grace_seconds)
    ledger.cancel_run(sweep.id)
    await asking.tick()
    assert ledger.runs(pipeline=spec.id, kind=RunKind.SWEEP, states=[RunState.QUEUED]) == [], "once is enough"


async def test_m22_without_a_time_of_the_last_write_the_sweep_after_a_pause_looks_at_everything(ledger: SqlLedger) -> None:
    clock, spec = VirtualClock(), spec_of_rig()
    asking = scheduler(ledger, clock, spec)
    ledger.set_fact(Facts.paused(spec.id), {"reason": "a move", "at": clock.now().isoformat()})
    await asking.tick()
    ledger.set_fact(Facts.paused(spec.id), None)
    request_sweep(ledger, spec, clock, "asked", {"reason": "asked"})
    await asking.tick()
    ledger.cancel_run("asked")
    await asking.tick()
    (sweep,) = ledger.runs(pipeline=spec.id, kind=RunKind.SWEEP, states=[RunState.QUEUED])
    assert (sweep.request["reason"], sweep.request["range"]) == ("resumed", "full"), "it waited for the one under way"


def found(ledger: SqlLedger, run_id: str) -> Run:
    run = ledger.run(run_id)
    assert run is not None
    return run


def desk(ledger: SqlLedger, clock: VirtualClock, spec: PipelineSpec) -> Desk:
    settings = Settings(bootstrap_servers="", topics=TopicsSpec(), database="", stores={}, pipelines={spec.id: spec})
    nobody = cast(Any, None)
    dependencies = DeskDependencies(
        settings=settings,
        ledger=ledger,
        board=nobody,
        stores=nobody,
        stream=nobody,
        clock=clock,
        new_id=lambda: f"asked{next(NUMBERS)}",
    )
    return Desk(dependencies)


async def test_m22_a_pause_that_ends_while_a_run_still_does_is_followed_by_a_sweep_all_the_same(ledger: SqlLedger) -> None:
    """What was cancelled ends at its next step only; the sweep comes after it, and looks back to the first of two pauses."""
    clock, spec = VirtualClock(), spec_of_rig()
    spec = replace(spec, source=replace(spec.source, changed_at="changed"))
    office, asking = desk(ledger, clock, spec), scheduler(ledger, clock, spec)
    request_sweep(ledger, spec, clock, "running", {"reason": "asked"})
    assert ledger.take_run(RunKind.SWEEP, "here", seconds=1e6) is not None
    first = clock.now()
    await office.pause(spec.id, actor="me")
    await clock.sleep(60)
    await office.pause(spec.id, actor="me", reason="still")
    await office.resume(spec.id, actor="me")
    assert ledger.fact(Facts.paused(spec.id)) is None
    assert ledger.runs(pipeline=spec.id, kind=RunKind.SWEEP, states=[RunState.QUEUED]) == []
    ledger.update_run(replace(found(ledger, "running"), state=RunState.CANCELLED, ended_at=clock.now()), holder="here")
    await asking.tick()
    (sweep,) = ledger.runs(pipeline=spec.id, kind=RunKind.SWEEP, states=[RunState.QUEUED])
    since = datetime.fromisoformat(sweep.request["since"]) + timedelta(seconds=spec.grace_seconds)
    assert abs((since - first).total_seconds()) < 1
    assert ledger.fact(Facts.quiet(spec.id)) is None


@pytest.mark.parametrize(
    ("hours_since_last", "due"),
    [(None, True), (0.0, False), (30.0, True)],
    ids=["never swept", "swept since", "nobody ran at the time"],
)
def test_f2_a_sweep_by_the_calendar_is_due_once_and_made_up_for(
    ledger: SqlLedger, hours_since_last: float | None, *, due: bool
) -> None:
    clock = VirtualClock()
    spec = replace(spec_of_rig(), sweep=SweepSpec(cron="0 3 * * *", start_delay_seconds=0.0))
    asking = scheduler(ledger, clock, spec)
    last = None
    if hours_since_last is not None:
        last = Run(
            id="last",
            pipeline=spec.id,
            kind=RunKind.SWEEP,
            state=RunState.SUCCEEDED,
            requested_at=clock.now() - timedelta(hours=hours_since_last),
            request={"range": "full"},
        )
    assert asking._scheduled(spec, last, clock.now()) is due


def test_f2_the_first_scheduled_sweep_waits_for_its_delay(ledger: SqlLedger) -> None:
    clock = VirtualClock()
    spec = replace(spec_of_rig(), sweep=SweepSpec(cron="* * * * *", start_delay_seconds=120.0))
    asking = scheduler(ledger, clock, spec)
    assert not asking._scheduled(spec, None, clock.now() + timedelta(seconds=119))
    assert asking._scheduled(spec, None, clock.now() + timedelta(seconds=120))


# what the last sweep leaves to do

STARTED: list[PartitionStatus] = [record(0, pipeline=spec_of_rig().id, partitions=1)]


def last_sweep(ledger: SqlLedger, clock: VirtualClock, state: RunState, *, seconds: float = 0.0, **request: Any) -> Run:
    run = request_sweep(ledger, spec_of_rig(), clock, f"run{next(NUMBERS)}", request)
    taken = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert taken is not None
    started = clock.now() - timedelta(seconds=seconds)
    ended = replace(taken, state=state, started_at=started, ended_at=clock.now())
    ledger.update_run(ended, holder="here")
    return replace(ended, id=run.id)


async def test_no_second_baseline_is_asked_for_while_the_first_one_is_only_just_stored(ledger: SqlLedger) -> None:
    """The run has ended, and what it proves is not on record yet."""
    clock, spec = VirtualClock(), spec_of_rig()
    asking = scheduler(ledger, clock, spec)
    assert asking._wanted(spec, STARTED) == "baseline"
    run = last_sweep(ledger, clock, RunState.SUCCEEDED)
    assert asking._wanted(spec, STARTED) == ""
    await clock.sleep(60)
    assert asking._wanted(spec, STARTED) == "baseline", "whoever carried it out is gone"
    ledger.set_fact(Facts.swept(spec.id), {"started_at": clock.now().isoformat(), "run": run.id, "masked": 0})
    ledger.set_fact(Facts.baseline(spec.id), {"started_at": "x", "ended_at": "x", "sweep_id": run.id})
    assert asking._wanted(spec, STARTED) == ""


async def test_a_sweep_that_proved_nothing_is_done_again_as_it_was_asked_for(ledger: SqlLedger) -> None:
    """Until then its pipeline is UNKNOWN, whoever asked for it. It leaves the stores alone for most of the time."""
    clock, spec = VirtualClock(), spec_of_rig()
    asking = scheduler(ledger, clock, spec)
    ledger.set_fact(Facts.baseline(spec.id), {"started_at": "x", "ended_at": "x", "sweep_id": "first"})
    asked: dict[str, Any] = {"range": "range", "from": "81", "to": None, "reason": "asked"}
    last_sweep(ledger, clock, RunState.INCONCLUSIVE, **asked)
    await clock.sleep(50)
    assert asking._wanted(spec, STARTED) == ""
    await clock.sleep(10)
    assert asking._wanted(spec, STARTED) == "inconclusive"
    assert asking._asked(spec, "inconclusive") == {**asked, "content": True}
    last_sweep(ledger, clock, RunState.INCONCLUSIVE, seconds=60.0)
    await clock.sleep(590)
    assert asking._wanted(spec, STARTED) == ""
    await clock.sleep(11)
    assert asking._wanted(spec, STARTED) == "inconclusive"
    last_sweep(ledger, clock, RunState.CANCELLED)
    await clock.sleep(600)
    assert asking._wanted(spec, STARTED) == "", "somebody did not want it"


def test_a_hole_that_was_stored_after_the_sweep_that_covers_it_is_held_by_younger_gaps_first(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep read that the key differs, and not that it had lost a write in the hole already."""
    clock, spec = VirtualClock(), spec_of_rig()
    now = clock.now()
    started, before = now - timedelta(minutes=1), now - timedelta(hours=2)
    set_baseline(ledger, spec.id, started=before, ended=before, run_id=None)
    ledger.set_fact(
        Facts.swept(spec.id), {"started_at": started.isoformat(), "run": "r", "masked": 0, "before": before.isoformat()}
    )
    gap = structs.replace(a_gap(), pipeline=spec.id, event_time=now - timedelta(minutes=3))
    ledger.store_gaps([GapChange(gap=gap, against=None, event="opened")])
    times = {"of the time between two sweeps": now - timedelta(hours=1), "from before it was watched": BEGINNING}
    for name, begun in times.items():
        ledger.raise_finding(a_hole(begun, now - timedelta(minutes=2), id=name, pipeline=spec.id))
    asked = scheduler(ledger, clock, spec)
    with monkeypatch.context() as overtaken:
        overtaken.setattr(sweeps, "hold_from", lambda *_: False)
        assert asked._wanted(spec, [record(0)]) == ""
        assert {one.id for one in ledger.findings(spec.id)} == set(times), "while gaps cannot be stored, the holes stay"
    assert asked._wanted(spec, [record(0)]) == ""
    assert ledger.findings(spec.id) == []
    assert ledger.gaps_by_id([gap.id])[gap.id].held_since == before, "what came before that sweep, it has proved"


def test_sweeps_of_many_pipelines_do_not_all_begin_at_once_and_each_process_says_the_same(ledger: SqlLedger) -> None:
    clock, hour = VirtualClock(), timedelta(hours=1)
    specs = [replace(spec_of_rig(), id=f"p{number}", sweep=SweepSpec(every_seconds=HOUR)) for number in range(50)]
    late = [jitter(spec, "last") for spec in specs]
    assert late == [jitter(spec, "last") for spec in specs]
    assert len(set(late)) > 30
    assert max(late) <= timedelta(seconds=JITTER_SECONDS_MAX)
    assert max(late) - min(late) > timedelta(seconds=JITTER_SECONDS_MAX / 2)
    often = replace(specs[0], sweep=SweepSpec(every_seconds=10.0))
    assert jitter(often, "last") <= timedelta(seconds=1)
    spec = replace(specs[0], sweep=SweepSpec(every_seconds=HOUR, start_delay_seconds=0.0))
    last = Run(id="last", pipeline=spec.id, kind=RunKind.SWEEP, state=RunState.SUCCEEDED, requested_at=clock.now())
    asking, due = scheduler(ledger, clock, spec), last.requested_at + hour + late[0]
    assert not asking._scheduled(spec, last, due - timedelta(milliseconds=1))
    assert asking._scheduled(spec, last, due)


def test_by_the_calendar_a_sweep_is_a_little_late_and_still_only_one(ledger: SqlLedger) -> None:
    spec = replace(spec_of_rig(), sweep=SweepSpec(cron="0 3 * * *", start_delay_seconds=0.0))
    asking, three = scheduler(ledger, VirtualClock(), spec), datetime(2026, 11, 29, 3, tzinfo=UTC)
    last = Run(
        id="last", pipeline=spec.id, kind=RunKind.SWEEP, state=RunState.SUCCEEDED, requested_at=three - timedelta(hours=23)
    )
    late = jitter(spec, last.id)
    assert timedelta() < late <= timedelta(minutes=1)
    asking._started = three - timedelta(days=2)
    assert not asking._scheduled(spec, last, three + late - timedelta(milliseconds=1))
    assert asking._scheduled(spec, last, three + late)
    assert not asking._scheduled(spec, replace(last, requested_at=three + late), three + timedelta(hours=23))


async def test_a_sweep_of_no_keys_proves_nothing_and_is_refused(ledger: SqlLedger) -> None:
    office = desk(ledger, VirtualClock(), spec_of_rig())
    with pytest.raises(UsageError, match="needs a key"):
        await office.start_sweep(spec_of_rig().id, {"range": "keys", "keys": []}, actor="me")
    assert ledger.runs() == []
