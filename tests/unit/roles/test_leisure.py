"""A sweep that nobody waits for is spread over the time it has; one that somebody waits for hurries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast

import pytest

from gapwatch.errors import ConflictError
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Finding, FindingRecord, Run, RunKind, RunState
from gapwatch.model.pipeline import SweepSpec
from gapwatch.model.stream import Side
from gapwatch.ports import ContentChunk
from gapwatch.roles.board import Facts
from gapwatch.roles.repair import scanning
from gapwatch.roles.repair.leisure import (
    LEAST,
    OF_INTERVAL,
    PAUSE_SECONDS_MAX,
    REST_SECONDS_MAX,
    UNMEASURED,
    WITHIN,
    WITHIN_SECONDS_MAX,
    Leisure,
    SidePace,
    within_seconds,
)
from gapwatch.roles.repair.sweeper import IDLE_SECONDS
from gapwatch.roles.repair.sweeps import LEASE_SECONDS, request_sweep
from gapwatch.roles.repair.tenure import RENEW_SECONDS, renewing
from gapwatch.scans import contents_in
from tests.ledger_samples import hole as a_hole
from tests.simulation.stores import ModelReader, Rig, VirtualClock, spec_of_rig, sweeper_of
from tests.unit.roles.test_sweep_schedule import STARTED, scheduler

CHUNK_SECONDS = 0.01
ROWS = 100
READING_SECONDS = 0.04
HOUR = 3600.0
SELDOM_SECONDS = 10 * IDLE_SECONDS


class RestingClock(VirtualClock):
    """Counts the seconds of rest: of the sleeps that are neither a chunk's reading nor a look at whether there is work."""

    rested = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.slept = {READING_SECONDS: 0.0, IDLE_SECONDS: 0.0, SELDOM_SECONDS: 0.0}

    async def sleep(self, seconds: float) -> None:
        if seconds in self.slept:
            self.slept[seconds] += seconds
        else:
            self.rested += seconds
        await super().sleep(seconds)


async def read(clock: VirtualClock, pace: SidePace, chunks: int) -> float:
    """Return how long it takes to read so many chunks, and to rest after each."""
    began = clock.monotonic()
    for _ in range(chunks):
        await clock.sleep(CHUNK_SECONDS)
        await pace.rest(CHUNK_SECONDS, ROWS)
    return clock.monotonic() - began


@pytest.mark.parametrize(("within", "least", "most"), [(60.0, 50.0, 61.0), (0.0, 1.9, 2.2), (1e6, 950.0, 1_100.0)])
async def test_reading_takes_the_time_that_it_has_and_leaves_the_store_alone_meanwhile(
    within: float, least: float, most: float
) -> None:
    """A second's reading: over a minute; without a time, at its load; at its slowest, a thousandth of it is for reading."""
    clock = VirtualClock()
    pace = SidePace(Leisure(clock, most=0.5, within=within), clock, total=100 * ROWS)
    assert least < await read(clock, pace, 100) < most


async def test_more_rows_than_the_store_had_said_end_at_the_load_and_no_sooner() -> None:
    clock = VirtualClock()
    pace = SidePace(Leisure(clock, most=0.5, within=10.0), clock, total=50 * ROWS)
    took = await read(clock, pace, 200)
    assert 10.0 < took < 10.0 + 150 * 2 * CHUNK_SECONDS + 1


def test_where_nobody_knows_how_much_there_is_little_is_taken_until_the_time_is_up() -> None:
    clock = VirtualClock()
    leisure = Leisure(clock, most=0.5, within=10.0)
    assert leisure.share(1.0, 100, 0) == UNMEASURED
    assert leisure.share(1.0, 0, 100) == UNMEASURED
    assert leisure.share(1e-6, 100, 101) == LEAST
    assert leisure.share(100.0, 1, 100) == 0.5
    asyncio.run(clock.sleep(10))
    assert leisure.share(1.0, 100, 0) == 0.5


async def test_no_rest_is_so_long_that_a_store_closes_what_is_read_on() -> None:
    """A slow chunk of a slow store: a hundred times as long would outlast the keep-alive of an index's point in time."""
    clock = VirtualClock()
    pace = SidePace(Leisure(clock, most=0.5, within=1e6), clock, total=2)
    began = clock.monotonic()
    await pace.rest(20.0, 1)
    assert clock.monotonic() - began == pytest.approx(REST_SECONDS_MAX, abs=0.1)


async def test_f4_whoever_holds_a_lease_renews_it_while_it_rests() -> None:
    """A sweep by key reads and renews in one task: a rest of a minute outlasted its lease of twenty seconds, again and again."""
    clock = VirtualClock()
    pace, renewed = SidePace(Leisure(clock, most=0.5, within=1e6), clock), [clock.monotonic()]

    async def renew() -> None:
        renewed.append(clock.monotonic())

    await pace.rest(5.0, 2_000, meanwhile=renew)
    assert renewed[-1] - renewed[0] > LEASE_SECONDS[RunKind.SWEEP]
    assert max(after - before for before, after in pairwise(renewed)) <= PAUSE_SECONDS_MAX


async def test_f4_whoever_holds_a_lease_renews_it_while_a_store_is_slow() -> None:
    gone, renewed = asyncio.Event(), list[int]()

    async def renew() -> None:
        renewed.append(1)
        if len(renewed) == 3:
            gone.set()

    async def slow() -> str:
        await gone.wait()
        return "read"

    assert await renewing(slow(), renew, seconds=0.001) == "read"
    assert len(renewed) == 3


async def test_f4_work_ends_once_its_lease_is_lost() -> None:
    ended = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            ended.set()

    async def refused() -> None:
        raise ConflictError("Another worker has it.")

    with pytest.raises(ConflictError):
        await renewing(slow(), refused, seconds=0.001)
    assert ended.is_set()


async def test_a_long_pause_ends_soon_after_somebody_waits() -> None:
    clock = VirtualClock()
    leisure = Leisure(clock, most=0.5, within=1e6)
    pace = SidePace(leisure, clock, total=10**9)
    began = clock.monotonic()
    resting = asyncio.create_task(pace.rest(1.0, 1))
    for _ in range(3):
        await asyncio.sleep(0)
    leisure.hurried = True
    await resting
    assert clock.monotonic() - began < 5, "it would have been a minute"


@pytest.mark.parametrize(
    ("spec", "within"),
    [
        (SweepSpec(every_seconds=HOUR), OF_INTERVAL * HOUR),
        (SweepSpec(every_seconds=24 * HOUR), WITHIN_SECONDS_MAX),
        (SweepSpec(cron="0 0 1 1 *"), WITHIN_SECONDS_MAX),
        (SweepSpec(every_seconds=HOUR, within_seconds=60.0), 60.0),
        (SweepSpec(every_seconds=HOUR, within_seconds=0.0), 0.0),
        (SweepSpec(), 0.0),
    ],
)
def test_a_scheduled_sweep_has_a_part_of_its_interval_or_what_is_configured(spec: SweepSpec, within: float) -> None:
    assert within_seconds(spec, VirtualClock()) == within


def test_by_the_calendar_it_has_a_part_of_the_time_up_to_the_next_one() -> None:
    clock = VirtualClock()  # 22:13 UTC
    assert within_seconds(SweepSpec(cron="0 23 * * *"), clock) == pytest.approx(OF_INTERVAL * 2_800, abs=60)


def of_schedule(ledger: SqlLedger, clock: VirtualClock, sweep: SweepSpec) -> Run:
    """Return the sweep that the scheduler asks for, taken by a worker."""
    spec = replace(spec_of_rig(), sweep=replace(sweep, start_delay_seconds=0.0))
    asking = scheduler(ledger, clock, spec)
    ledger.set_fact(Facts.baseline(spec.id), {"started_at": "x", "ended_at": "x", "sweep_id": "first"})
    assert asking._wanted(spec, STARTED) == "schedule"
    asyncio.run(asking._ask(spec, "schedule"))
    taken = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert taken is not None
    return taken


def hurried(ledger: SqlLedger) -> object:
    return ledger.fact(Facts.hurry(spec_of_rig().id))


def test_what_waits_for_a_sweep_makes_the_one_under_way_hurry_and_only_one_that_takes_its_time(ledger: SqlLedger) -> None:
    clock, spec = VirtualClock(), spec_of_rig()
    run = of_schedule(ledger, clock, SweepSpec(every_seconds=HOUR))
    assert run.request[WITHIN] == OF_INTERVAL * HOUR
    with pytest.raises(ConflictError):
        request_sweep(ledger, spec, clock, "scheduled too", {WITHIN: 10.0})
    assert hurried(ledger) is None, "nobody waits for that one, either"
    with pytest.raises(ConflictError):
        request_sweep(ledger, spec, clock, "asked", {"reason": "asked"})
    assert hurried(ledger) == run.id
    ledger.update_run(replace(run, state=RunState.SUCCEEDED, ended_at=clock.now()), holder="here")
    quick = request_sweep(ledger, spec, clock, "quick", {"reason": "asked"})
    with pytest.raises(ConflictError):
        request_sweep(ledger, spec, clock, "again", {"reason": "asked"})
    assert hurried(ledger) != quick.id


@pytest.mark.parametrize("what", ["hole", "mapping", "ongoing"])
def test_a_hole_or_another_mapping_waits_for_a_sweep(ledger: SqlLedger, what: str) -> None:
    clock = VirtualClock()
    run = of_schedule(ledger, clock, SweepSpec(every_seconds=HOUR))
    spec, now = spec_of_rig(), clock.now()
    asking = scheduler(ledger, clock, spec)
    assert asking._wanted(spec, STARTED) == ""
    assert hurried(ledger) is None
    found: FindingRecord = a_hole(now - timedelta(minutes=5), now - timedelta(minutes=2), id="found", pipeline=spec.id)
    if what == "mapping":
        found = replace(found, finding=Finding.MAPPING_CHANGED, time_from=None, time_to=None)
    elif what == "ongoing":
        found = replace(found, details={**found.details, "ongoing": True})
    ledger.raise_finding(found)
    assert asking._wanted(spec, STARTED) == ""
    assert hurried(ledger) == (None if what == "ongoing" else run.id), "one that still grows is not over with a sweep"


def test_one_that_proved_nothing_is_done_again_without_taking_its_time(ledger: SqlLedger) -> None:
    clock, spec = VirtualClock(), spec_of_rig()
    run = of_schedule(ledger, clock, SweepSpec(every_seconds=HOUR))
    ledger.update_run(replace(run, state=RunState.INCONCLUSIVE, ended_at=clock.now()), holder="here")
    asking = scheduler(ledger, clock, spec)
    assert WITHIN not in asking._asked(spec, "inconclusive")
    asyncio.run(clock.sleep(61))
    assert asking._wanted(spec, STARTED) == "inconclusive"


@pytest.mark.parametrize("waited_for", [False, True])
def test_a_whole_sweep_takes_its_time_unless_somebody_waits_for_it(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, *, waited_for: bool
) -> None:
    clock, reading = RestingClock(), contents_in

    async def slowly(*some: Any, **more: Any) -> AsyncIterator[ContentChunk]:
        async for chunk in reading(*some, **more):
            await clock.sleep(READING_SECONDS)
            yield chunk

    monkeypatch.setattr(scanning, "RECORDS_PER_CHUNK", 10 * scanning.GIVING_WAY)
    monkeypatch.setattr("gapwatch.roles.repair.scanning.contents_in", slowly)
    rig = Rig(spec=replace(spec_of_rig(), sweep=SweepSpec(every_seconds=HOUR, start_delay_seconds=0.0)))
    for number in range(200):
        rig.source_writes(number)
        rig.sink_delivers(number)
    rig.stranger_writes(7, None)
    run = of_schedule(ledger, clock, rig.spec.sweep)
    if waited_for:
        ledger.set_fact(Facts.hurry(rig.spec.id), run.id)
    ended = asyncio.run(sweeper_of(rig, ledger, clock).run(run, rig.stores, last_full_started=None))
    assert ended.state is RunState.SUCCEEDED
    assert (ended.counts["source_keys"], ended.counts["missing"]) == (200, 1)
    busy = clock.slept[READING_SECONDS]
    assert clock.rested < 2 * (busy + clock.slept[IDLE_SECONDS]) if waited_for else clock.rested > 20 * busy


@pytest.mark.parametrize("waited_for", [False, True])
def test_where_nothing_is_to_be_judged_a_sweep_that_takes_its_time_looks_seldom(ledger: SqlLedger, *, waited_for: bool) -> None:
    clock = RestingClock()
    rig = Rig(spec=replace(spec_of_rig(), sweep=SweepSpec(every_seconds=HOUR, start_delay_seconds=0.0)))
    for number in range(200):
        rig.source_writes(number)
        rig.sink_delivers(number)
    run = of_schedule(ledger, clock, rig.spec.sweep)
    if waited_for:
        ledger.set_fact(Facts.hurry(rig.spec.id), run.id)
    asyncio.run(sweeper_of(rig, ledger, clock).run(run, rig.stores, last_full_started=None))
    often, seldom = clock.slept[IDLE_SECONDS], clock.slept[SELDOM_SECONDS]
    assert often > 0 == seldom if waited_for else seldom > 2 * often


class Renewed:
    """A ledger that says when a run was stored."""

    def __init__(self, ledger: SqlLedger, clock: VirtualClock) -> None:
        self._ledger, self._clock = ledger, clock
        self.at: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def update_run(self, run: Run, *, holder: str) -> None:
        self.at.append(self._clock.monotonic())
        self._ledger.update_run(run, holder=holder)


def test_f4_a_lookback_that_rests_for_long_keeps_its_lease(ledger: SqlLedger) -> None:
    """It went to another holder at each rest, who began at the same place, for ever."""
    clock = VirtualClock()
    rig = Rig(spec=replace(spec_of_rig(), sweep=SweepSpec(every_seconds=HOUR, start_delay_seconds=0.0, lookback_seconds=HOUR)))
    for number in range(20):
        rig.source_writes(number)
        rig.sink_delivers(number)
        rig.changed[Side.EXPECTED][number] = clock.now()

    def passes(what: str) -> None:
        clock._ms += 1_000 if what.startswith("fetch") else 0

    run = of_schedule(ledger, clock, rig.spec.sweep)
    assert run.request["range"] == "lookback"
    rig.between, watched = passes, Renewed(ledger, clock)
    ended = asyncio.run(sweeper_of(rig, cast(Any, watched), clock).run(run, rig.stores, last_full_started=None))
    assert ended.state is RunState.SUCCEEDED
    assert watched.at[-1] - watched.at[0] > LEASE_SECONDS[RunKind.SWEEP], "it rested"
    assert max(after - before for before, after in pairwise(watched.at)) < LEASE_SECONDS[RunKind.SWEEP] / 4


def test_f4_a_sweep_whose_store_is_slow_keeps_its_lease(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking keys up took longer than the lease, and nobody renewed it meanwhile."""
    clock, rig, at_work, fetch = VirtualClock(), Rig(spec=spec_of_rig()), list[int](), ModelReader.fetch
    watched = Renewed(ledger, clock)
    rig.source_writes(1)
    request_sweep(ledger, rig.spec, clock, "slow", {"range": "full", "content": True})
    run = ledger.take_run(RunKind.SWEEP, "here", seconds=1e6)
    assert run is not None

    async def slowly(self: ModelReader, keys: Any) -> Any:
        before = len(watched.at)
        await asyncio.sleep(1.5 * RENEW_SECONDS if not at_work else 0)
        at_work.append(len(watched.at) - before)
        return await fetch(self, keys)

    monkeypatch.setattr(ModelReader, "fetch", slowly)
    asyncio.run(sweeper_of(rig, cast(Any, watched), clock).run(run, rig.stores, last_full_started=None))
    assert at_work[0] >= 1


@pytest.mark.parametrize(
    ("most", "within", "records"),
    [
        (1.0, 0.0, scanning.RECORDS_PER_CHUNK),
        (0.5, 0.0, scanning.RECORDS_PER_CHUNK // scanning.GIVING_WAY),
        (0.5, 3_600.0, scanning.RECORDS_PER_CHUNK // scanning.GIVING_WAY * scanning.AT_LEISURE),
    ],
)
async def test_a_sweep_that_takes_its_time_asks_seldom_and_one_that_gives_way_for_little_at_once(
    monkeypatch: pytest.MonkeyPatch, most: float, within: float, records: int
) -> None:
    clock, rig, asked = VirtualClock(), Rig(spec=spec_of_rig()), list[int]()

    def noted(*some: Any, chunk: int, **more: Any) -> AsyncIterator[ContentChunk]:
        asked.append(chunk)
        return contents_in(*some, chunk=chunk, **more)

    monkeypatch.setattr("gapwatch.roles.repair.scanning.contents_in", noted)
    leisure = Leisure(clock, most=most, within=within)
    scan = scanning.Scanning(rig.stores, content=True, clock=clock, leisure=leisure, in_order=False, on_compared=lambda *_: None)
    async for _ in scan.steps():
        pass
    assert asked == [records, records]
