"""A loss that lasts is one finding whose hole grows: few sweeps meanwhile, and one that covers it once it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.check_ports import Advice, Measure
from gapwatch.core.gaps import time_of
from gapwatch.errors import RecordError, StoreRefused, StoreUnreachable
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.metrics import Metrics
from gapwatch.model.gap import Finding, FindingRecord, Run, RunKind, RunState
from gapwatch.model.pipeline import Settings, TopicsSpec
from gapwatch.model.suspect import Hole, Limit, PartitionStatus
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.role import RepairDependencies, RepairRole
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from gapwatch.roles.repair.watcher import POLL_SECONDS, SILENT_SECONDS, FindingBook, Watcher, WatcherDependencies
from gapwatch.wiring.parts import Parts
from tests.simulation.stores import HastyClock, Rig, VirtualClock, spec_of_rig
from tests.unit.core.test_standing import record
from tests.unit.roles.test_sweep_schedule import scheduler

LOST = Advice(level="error", subject="orders.source", message="There is no slot.", finding="slot_lost")
SPEC = spec_of_rig()
UNSEEN = replace(LOST, level="unknown", message="Nobody knows its name.")


@dataclass
class Other:
    """Another check of the pipeline: what it says, None: it cannot look."""

    name: str
    says: Sequence[Advice] | None = ()

    async def watch(self) -> Sequence[Advice]:
        if self.says is None:
            raise StoreRefused("A wrong password.", store="connect")
        return self.says


class World:
    """A ledger, the watcher's checks with what they find, and the scheduler beside it; sweeps take so long and succeed."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self.clock = VirtualClock()
        self.found: Sequence[Advice] = ()
        self.away = False
        self.sweeps: list[Run] = []
        records: list[PartitionStatus] = [record(0, pipeline=SPEC.id, partitions=1)]
        self.records = records
        self.ended: list[bool] = []  # what the board was told of the source's feed
        board = SimpleNamespace(records=lambda _: records, feed_ended=lambda _, *, ended: self.ended.append(ended))
        watching: dict[str, Any] = {"pipelines": {SPEC.id: SPEC}, "ledger": ledger, "board": board, "clock": self.clock}
        self.others: list[Other] = []
        watching |= {"stores": None, "checks": lambda _: [self, *self.others], "undecided": lambda _: 0, "process": "here"}
        book = FindingBook(ledger, self.clock, lambda *_: None)
        self.metrics = Metrics("0")
        watching |= {"on_finding": lambda *_: None, "on_measure": self.metrics.measured}
        self.watcher = Watcher(WatcherDependencies(**watching), book)
        self.scheduler = scheduler(ledger, self.clock, SPEC)
        running = SimpleNamespace(ledger=ledger, board=board, pipelines={SPEC.id: SPEC})
        self.runner = RunRunner(cast("RunnerDependencies", running))
        self.sweep(0.1)

    name = "the slot"

    async def check(self) -> Sequence[Advice]:
        if self.away:
            raise StoreUnreachable("It does not answer.")
        return self.found

    async def watch(self) -> Sequence[Advice]:
        return await self.check()

    async def close(self) -> None: ...

    @property
    def holes(self) -> list[FindingRecord]:
        return list(self.ledger.findings(SPEC.id))

    def sweep(self, seconds: float) -> None:
        started, run_id = self.clock.now(), f"run{len(self.sweeps)}"
        self.ledger.create_run(Run(id=run_id, pipeline=SPEC.id, kind=RunKind.SWEEP, state=RunState.QUEUED, requested_at=started))
        taken = self.ledger.take_run(RunKind.SWEEP, "me", seconds=60)
        assert taken is not None
        ended = replace(
            taken,
            state=RunState.SUCCEEDED,
            started_at=started,
            ended_at=started + timedelta(seconds=seconds),
            request={"range": "full", "content": True},
        )
        self.clock._ms += int(seconds * 1000)
        self.ledger.update_run(ended, holder="me")
        self.runner._settle(ended, 0)
        self.sweeps.append(ended)

    async def live(self, seconds: float, *, sweep_seconds: float = 0.1) -> None:
        """Let the watcher check every five seconds, and carry out what the scheduler asks for, for so long."""
        end = self.clock.now() + timedelta(seconds=seconds)
        while self.clock.now() < end:
            await self.watcher.check(SPEC)
            for _ in range(int(POLL_SECONDS)):
                if self.scheduler._wanted(SPEC, self.records) == "hole":
                    self.sweep(sweep_seconds)
                await self.clock.sleep(1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield World(ledger)
    ledger.close()


async def test_a_slot_that_stays_lost_is_one_finding_with_few_sweeps_and_one_after_it(world: World) -> None:
    await world.live(60)
    world.found = [LOST]
    await world.live(30)
    (first,) = world.holes
    assert len(world.sweeps) == 2, "one at once, beside the one from before"
    await world.live(600)
    (later,) = world.holes
    assert (later.id, later.first_seen, later.time_from, later.ongoing) == (first.id, first.first_seen, first.time_from, True)
    assert later.time_to is not None
    assert first.time_to is not None
    assert later.time_to - first.time_to >= timedelta(seconds=590)
    assert len(world.sweeps) in range(10, 13), "about one a minute"
    world.found, before = [], len(world.sweeps)
    over = world.clock.now()
    await world.live(60)
    assert world.holes == []
    assert len(world.sweeps) == before + 1
    assert world.sweeps[-1].started_at is not None
    (closed,) = [one for one in world.ledger.findings(SPEC.id, open_only=False) if one.id == first.id]
    assert (closed.covered_by, closed.first_seen) == (world.sweeps[-1].id, first.first_seen)
    assert closed.time_to is not None
    assert over <= closed.time_to < world.sweeps[-1].started_at, "what was written until it was seen to be over is covered, too"
    await world.live(300)
    assert len(world.sweeps) == before + 1


async def test_long_sweeps_take_a_tenth_of_the_time_while_a_slot_stays_lost(world: World) -> None:
    world.found = [LOST]
    await world.live(3_600, sweep_seconds=30)
    assert len(world.sweeps) - 1 in range(9, 13)
    assert len(world.holes) == 1


@pytest.mark.parametrize("finding", ["slot_lost", "history_lost"])
async def test_only_the_end_of_the_sources_feed_leaves_age_alone_to_decide(world: World, finding: str) -> None:
    """The sink still says how far it has come: a target that is followed no more does not make its delays gaps."""
    world.found = [replace(LOST, subject="orders.target", finding=finding)]
    await world.live(30)
    assert len(world.holes) == 1
    assert not any(world.ended)
    world.found = [*world.found, replace(LOST, finding=finding)]
    await world.live(30)
    assert world.ended[-1]
    world.found = world.found[:1]
    await world.live(30)
    assert not world.ended[-1]


async def test_a_check_that_could_not_be_made_ends_no_loss(world: World) -> None:
    world.found = [LOST]
    await world.live(30)
    world.away = True
    await world.live(300)
    (hole,) = world.holes
    assert hole.ongoing
    world.away, world.found = False, []
    await world.live(60)
    assert world.holes == []


async def test_a_loss_that_comes_again_is_another_finding_and_is_swept_at_once(world: World) -> None:
    world.found = [LOST]
    await world.live(30)
    (first,) = world.holes
    world.found = []
    await world.live(60)
    world.found = [LOST]
    before = len(world.sweeps)
    await world.live(30)
    (second,) = world.holes
    assert second.first_seen > first.first_seen
    assert len(world.sweeps) == before + 1
    assert world.ledger.fact(Facts.swept(SPEC.id)) is not None


async def test_what_is_known_to_have_ended_is_covered_by_the_next_sweep(world: World) -> None:
    """Partitions that were added: the hole has an end, however long the finding is shown."""
    ended = world.clock.now_ms()
    world.found = [replace(LOST, finding="partitions_added", hole_to_ms=ended)]
    await world.live(30)
    assert world.holes == []
    assert len(world.sweeps) == 2
    await world.live(300)
    assert len(world.sweeps) == 2


async def test_what_a_check_measured_is_shown_until_it_measures_it_no_more(world: World) -> None:
    def shown() -> float | None:
        return world.metrics.registry.get_sample_value("gapwatch_replication_slot_retained_bytes", {"pipeline": SPEC.id})

    held = [Measure(metric="replication_slot_retained_bytes", of=SPEC.id, value=value) for value in (7, 9, 8)]
    world.found = [Advice(level="ok", subject="orders.source", message="It is there.", measure=one) for one in held]
    assert shown() is None
    await world.watcher.check(SPEC)
    assert shown() == 9
    world.away = True
    await world.watcher.check(SPEC)
    assert shown() == 9, "nobody knows better"
    world.away, world.found = False, [LOST]
    await world.watcher.check(SPEC)
    assert shown() is None


async def test_a_hole_that_is_stored_after_the_sweep_that_covered_it_is_cleared(world: World) -> None:
    """The baseline can be done before the hole of the first start is stored: no sweep was to come, and it stood for ever."""
    (sweep,) = world.sweeps
    assert sweep.started_at is not None
    before, since = sweep.started_at - timedelta(seconds=10), world.clock.now_ms()
    for number, end in enumerate((before, world.clock.now())):
        hole = Hole(
            id=f"hole{number}",
            pipeline=SPEC.id,
            side=0,
            feed="t",
            feed_partition=number,
            time_from=0,
            time_to=int(end.timestamp() * 1000),
            reason="ingest_hole",
        )
        await FindingBook(world.ledger, world.clock, lambda *_: None).hole(hole)
    assert world.scheduler._wanted(SPEC, world.records) in ("", "hole")
    (left,) = world.holes
    assert left.id == "hole1", "that one ended after the sweep had begun"
    (cleared,) = [one for one in world.ledger.findings(SPEC.id, open_only=False) if one.id == "hole0"]
    assert cleared.covered_by == sweep.id
    await world.live(30)
    assert world.holes == []
    assert world.clock.now_ms() > since


@pytest.mark.parametrize("says", [None, [UNSEEN]], ids=["it cannot look", "it cannot look for this one"])
async def test_a_check_ends_what_it_had_found_itself(world: World, says: Sequence[Advice] | None) -> None:
    """Kafka Connect is away for good: a hole that its own check sees ended was held open by it, and nothing covered it."""
    world.others = [Other("connect", says)]
    world.found = [LOST]
    await world.live(30)
    assert [one.ongoing for one in world.holes] == [True]
    world.found, world.away = [], True
    await world.live(30)
    assert [one.ongoing for one in world.holes] == [True], "nobody has looked"
    world.away, world.found = False, [UNSEEN]
    await world.live(30)
    assert [one.ongoing for one in world.holes] == [True], "it has looked at everything else"
    world.found = [replace(UNSEEN, finding="schema_changed")]
    await world.live(60)
    assert world.holes == []


async def test_what_two_had_found_is_over_when_both_find_it_no_more(world: World) -> None:
    failed = replace(LOST, finding="connector_failed", subject="orders.target")
    other = Other("connect", [failed])
    world.others, world.found = [other], [failed]
    await world.live(10)
    other.says = None
    await world.live(10)
    assert [one.details["checks"] for one in world.holes] == [["connect", "the slot"]]
    world.found = []
    await world.live(10)
    assert [one.details["checks"] for one in world.holes] == [["connect"]], "the other one may see it yet"
    world.away, other.says = True, ()
    await world.live(10)
    assert world.holes == []


@pytest.mark.parametrize("found_by", [(), ("a check of another configuration",)])
async def test_a_finding_of_nobodys_is_over_once_all_have_looked(world: World, found_by: Sequence[str]) -> None:
    """An earlier version did not say who had found it; a check that is not made any more ends nothing either."""
    world.found = [replace(LOST, finding="connector_failed")]
    await world.live(10)
    (known,) = world.holes
    world.ledger.clear_finding(known.id, at=world.clock.now())
    world.ledger.raise_finding(replace(known, details={"checks": list(found_by)} if found_by else {}))
    world.found, world.others = [], [Other("connect", None)]
    await world.live(10)
    assert len(world.holes) == 1
    world.others = [Other("connect")]
    await world.live(10)
    assert world.holes == []


async def readable(_: Any) -> list[str]:
    return []


async def said(world: World) -> Sequence[str]:
    setattr(world.watcher, "_unreadable", readable)  # noqa: B010
    await world.watcher.report(SPEC)
    return cast("Sequence[str]", (world.ledger.fact(Facts.repair(SPEC.id, "here")) or {})["unlooked"])


async def test_what_a_check_could_not_look_at_for_long_is_said(world: World) -> None:
    other = Other("connect")
    world.others = [other]
    await world.live(POLL_SECONDS)
    other.says = None
    await world.live(SPEC.stall_after_seconds - POLL_SECONDS)
    assert await said(world) == []
    world.found = [UNSEEN]
    await world.live(3 * POLL_SECONDS)
    assert await said(world) == ["A wrong password."]
    other.says = ()
    await world.live(SPEC.stall_after_seconds + POLL_SECONDS)
    assert await said(world) == ["Nobody knows its name."]
    world.found = []
    await world.live(POLL_SECONDS)
    assert await said(world) == []


async def test_what_no_check_has_looked_at_since_the_start_is_not_known(world: World) -> None:
    """A restart forgot that a check could not look: its pipeline was HEALTHY again, for `stall_after`."""
    other = Other("connect", None)
    world.others = [other]
    assert await said(world) == [f"{name}: nobody has looked since role repair began." for name in ("connect", "the slot")]
    await world.watcher.check(SPEC)
    assert await said(world) == ["A wrong password."], "it may have been so for long"
    other.says = ()
    await world.watcher.check(SPEC)
    assert await said(world) == []
    other.says = None
    await world.watcher.check(SPEC)
    assert await said(world) == [], "it has looked a moment ago"


async def test_each_look_counts_when_it_ends(world: World) -> None:
    """Else one that hangs keeps all the others unlooked at, and is itself counted from when the last of them had ended."""
    reports: list[Sequence[str]] = []

    class Slow(Other):
        async def watch(self) -> Sequence[Advice]:
            reports.append(await said(world))
            await world.clock.sleep(8)
            return await super().watch()

    slow = Slow("slow")
    world.others = [Other("connect", None), slow]
    await world.watcher.check(SPEC)
    assert reports == [["A wrong password.", "slow: nobody has looked since role repair began."]]
    slow.says, world.others = None, [slow]
    await world.watcher.check(SPEC)
    await world.clock.sleep(SPEC.stall_after_seconds - 8)
    assert await said(world) == ["A wrong password."], "blind since its look began"


@pytest.mark.parametrize("error", [ValueError("a bug"), RecordError("odd", "A record that nobody expects.")])
async def test_a_check_that_fails_in_its_own_way_is_blind_and_ends_nothing_else(world: World, error: Exception) -> None:
    class Broken(Other):
        async def watch(self) -> Sequence[Advice]:
            raise error

    world.others, world.found = [Broken("broken"), Other("connect", [replace(LOST, subject="orders.target")])], [LOST]
    await world.watcher.check(SPEC)
    assert len(world.holes) == 2
    (why,) = await said(world)
    assert why == ("broken failed (ValueError); the log says where." if isinstance(error, ValueError) else str(error))


async def run_for_a_moment(
    world: World, *checks: Any, until: int, stall_after: float = 0.8, on_told: Callable[[], None] = lambda: None
) -> list[Sequence[str]]:
    """Return what the first reports of a role that has just begun said: at most so many. ``on_told`` is called after each."""
    spec, told, stop = replace(SPEC, stall_after_seconds=stall_after), list[Sequence[str]](), asyncio.Event()
    clock = HastyClock(speed=10)
    facts = world.ledger.set_facts

    def kept(values: Any) -> None:
        told.extend(fact["unlooked"] for fact in values.values())
        facts(values)
        on_told()
        if len(told) >= until:
            stop.set()

    setattr(world.ledger, "set_facts", kept)  # noqa: B010
    board = SimpleNamespace(feed_ended=lambda _, *, ended: None)
    on: dict[str, Any] = {"pipelines": {spec.id: spec}, "ledger": world.ledger, "board": board, "stores": None, "clock": clock}
    on |= {"checks": lambda _: checks, "undecided": lambda _: 0, "process": "here", "on_finding": lambda *_: None}
    watcher = Watcher(WatcherDependencies(**on), FindingBook(world.ledger, clock, on["on_finding"]))
    setattr(watcher, "_unreadable", readable)  # noqa: B010
    await asyncio.wait_for(watcher.run(stop), 60)
    return told


async def test_a_healthy_start_shows_nothing_as_unlooked(world: World) -> None:
    """Also where a check can look only once the status records have been read: it is asked again at once."""

    class Later(Other):
        looks = 0

        async def watch(self) -> Sequence[Advice]:
            self.looks += 1
            if self.looks == 1:
                raise StoreUnreachable("The status records have not been read yet.", store="kafka")
            return ()

    # The first report waits for the looks as long as a busy machine may take for them.
    told = await run_for_a_moment(world, Other("connect"), Later("later"), until=3, stall_after=40.0)
    assert told == [[]] * len(told)


async def test_a_start_that_sees_nothing_says_so_and_takes_it_back_at_once(world: World) -> None:
    waits, loop = asyncio.Event(), asyncio.get_running_loop()

    class Hanging(Other):
        async def watch(self) -> Sequence[Advice]:
            await waits.wait()
            return ()

    def soon() -> None:
        """Let it look once somebody has said that it does not; a report is made by a thread."""
        loop.call_soon_threadsafe(waits.set)

    told = await run_for_a_moment(world, Other("connect"), Hanging("hanging"), until=6, on_told=soon)
    assert told[0] == ["hanging: nobody has looked since role repair began."]
    assert told[-1] == []


async def test_a_measure_stays_only_while_the_check_that_made_it_cannot_look(world: World) -> None:
    def shown() -> float | None:
        return world.metrics.registry.get_sample_value("gapwatch_replication_slot_retained_bytes", {"pipeline": SPEC.id})

    held = Measure(metric="replication_slot_retained_bytes", of=SPEC.id, value=7)
    world.others = [Other("connect", None)]
    world.found = [Advice(level="ok", subject="orders.source", message="It is there.", measure=held)]
    await world.live(POLL_SECONDS)
    assert shown() == 7
    world.found = [UNSEEN]
    await world.live(POLL_SECONDS)
    assert shown() == 7
    world.found = []
    await world.live(POLL_SECONDS)
    assert shown() is None


@pytest.mark.parametrize("limit", list(Limit))
async def test_a_hole_of_a_limit_that_was_reached_names_it(world: World, limit: Limit) -> None:
    hole = Hole(
        id="hole", pipeline=SPEC.id, side=0, feed="t", feed_partition=0, time_from=1_000, time_to=2_000, reason=limit.value
    )
    await FindingBook(world.ledger, world.clock, lambda *_: None).hole(hole)
    (found,) = world.ledger.findings(SPEC.id, open_only=False)
    assert (found.finding, found.is_hole) == (Finding.INGEST_HOLE, True)
    assert limit.value in found.message


async def test_a_hole_begins_where_the_check_says(world: World) -> None:
    """The stream went on before anybody looked: where it is read through by now says nothing of what was lost."""
    begin, end = world.clock.now_ms() - 60_000, world.clock.now_ms()
    world.found = [replace(LOST, finding="slot_jumped", hole_from_ms=begin, hole_to_ms=end)]
    await world.watcher.check(SPEC)
    (found,) = world.holes
    assert (found.time_from, found.time_to, found.ongoing) == (time_of(begin), time_of(end), False)


def role_of(ledger: SqlLedger, clock: VirtualClock, process: str, unreadable: str = "") -> RepairRole:
    """Return role repair of one of several processes on a host; to it a store may not answer."""
    settings = Settings(bootstrap_servers="", pipelines={SPEC.id: SPEC}, topics=TopicsSpec(partitions=1))

    async def ping() -> None: ...

    async def stores(_: str) -> Any:
        if unreadable:
            raise StoreUnreachable("It does not answer.", store=unreadable)
        reader = SimpleNamespace(ping=ping)
        return replace(Rig().stores, source=reader, target=reader)

    board = SimpleNamespace(delivered=lambda _: None)
    parts: dict[str, Any] = {"settings": settings, "ledger": ledger, "board": board, "stores": SimpleNamespace(stores=stores)}
    parts |= {"checks": lambda _: (), "metrics": Metrics("0"), "clock": clock, "host": "one", "process": process}
    return RepairRole(cast("RepairDependencies", SimpleNamespace(**parts, new_id=lambda: process)))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_what_one_process_cannot_read_is_said_beside_what_another_one_on_its_host_can(
    world: World, order: Sequence[int]
) -> None:
    """They wrote their reports over each other's: UNKNOWN and HEALTHY alternated, as one or the other had spoken last."""
    roles = [role_of(world.ledger, world.clock, "one-17", "shop"), role_of(world.ledger, world.clock, "one-18")]
    board = Board(roles[0]._on.settings, world.ledger, cast("Any", None), world.clock)
    for number in order:
        await roles[number]._watcher().report(SPEC)
    assert "store shop does not answer" in (await board.view(SPEC.id)).reasons


async def test_what_processes_said_that_are_gone_is_forgotten(world: World) -> None:
    def known() -> list[str]:
        return [name.rpartition("/")[2] for name in world.ledger.facts(Facts.repair(SPEC.id))]

    first, second = (role_of(world.ledger, world.clock, name)._watcher() for name in ("one-17", "one-18"))
    await first.report(SPEC)
    await second.report(SPEC)
    for _ in range(9):
        await world.clock.sleep(SILENT_SECONDS / 10)
        await second.report(SPEC)
    assert known() == ["one-17", "one-18"]
    for _ in range(9):
        await world.clock.sleep(SILENT_SECONDS / 10)
        await second.report(SPEC)
    assert known() == ["one-18"]
    world.ledger.set_fact(Facts.repair("another", "one-16"), {"at": time_of(0).isoformat()})
    await world.clock.sleep(2 * SILENT_SECONDS)
    await role_of(world.ledger, world.clock, "one-19")._watcher().report(SPEC)
    assert known() == ["one-19"]
    assert world.ledger.fact(Facts.repair("another", "one-16")) is not None, "that is its own watcher's"


async def test_no_two_processes_have_one_name(tmp_path: Path) -> None:
    """Two containers on one host's network have its name, and each has a process 1."""
    settings = Settings(bootstrap_servers="", database=f"sqlite:///{tmp_path}/ledger.db")
    parts = [Parts(settings, "repair") for _ in range(2)]
    assert parts[0].name == parts[1].name
    assert parts[0].process != parts[1].process
    for one in parts:
        await one.close()


class Elsewhere:
    """The clock of another machine, so many seconds beside ours: its seconds are as long."""

    def __init__(self, clock: VirtualClock, seconds: float) -> None:
        self._clock = clock
        self._beside = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return self._clock.now() + self._beside

    def monotonic(self) -> float:
        return self._clock.monotonic()


@pytest.mark.parametrize("beside", [0, -600, 600])
@pytest.mark.parametrize("advice", [LOST, replace(LOST, level="warning", finding="clock_skew")])
async def test_what_one_process_still_finds_no_other_one_ends(world: World, advice: Advice, beside: float) -> None:
    """Each look of the other one cleared it, and each look of this one raised it again: a row every five seconds, for ever."""
    other = Other("the slot", [advice])
    clock = cast("Any", Elsewhere(world.clock, beside))
    on = replace(world.watcher._on, process="there", clock=clock, checks=lambda _: cast("Any", [other]))
    there = Watcher(on, FindingBook(world.ledger, clock, lambda *_: None))
    stood = []
    for _ in range(100):
        await there.check(SPEC)
        await world.clock.sleep(POLL_SECONDS / 2)
        await world.watcher.check(SPEC)
        stood.append(any(one.ongoing or not one.is_hole for one in world.ledger.findings(SPEC.id)))
        await world.clock.sleep(POLL_SECONDS / 2)
    assert all(stood[1:]), "a wrong clock may make an old word of the first one"
    assert len(world.ledger.findings(SPEC.id, open_only=False)) <= 2
    for _ in range(10):  # it stops: what it said last is forgotten
        await world.watcher.check(SPEC)
        await world.clock.sleep(POLL_SECONDS)
    assert not any(one.ongoing or not one.is_hole for one in world.ledger.findings(SPEC.id))
    assert not world.watcher._finders or all(known[0] in [one.id for one in world.holes] for known in world.watcher._finders)


async def test_the_checks_of_all_pipelines_begin_at_the_same_time_however_long_one_takes(world: World) -> None:
    """So they ask together what they ask of the same store."""
    stop, begun = asyncio.Event(), list[float]()

    async def watch() -> Sequence[Advice]:
        begun.append(world.clock.monotonic())
        await world.clock.sleep(1.3)
        if len(begun) == 4:
            stop.set()
        return ()

    setattr(world, "watch", watch)  # noqa: B010
    await world.watcher._check_on(stop, SPEC, asyncio.Event())
    _, *later = begun
    assert [round(at % POLL_SECONDS, 1) for at in later] == [0.0, 0.0, 0.0]
    assert later[2] - later[0] == pytest.approx(2 * POLL_SECONDS, abs=0.1)
