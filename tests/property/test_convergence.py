"""Whatever is written and breaks: once both are over, source and target are equal, no gap is open, and nothing was made up.

Sweeps, automatic repair, backfills, their leases and the ledger are the product; the stores are a model, and so is the sink,
which lags, loses writes, and takes documents back. Stores are away, refuse, and do not answer; workers are killed.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.errors import ConflictError, StoreError, StoreUnreachable
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import RunKind, RunState, State
from gapwatch.model.pipeline import Policy, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.ports import GapFilter, StoredRecord, WriteItem
from gapwatch.roles.board import Delivered, Facts
from gapwatch.roles.repair.autorepairer import AutoRepairDependencies, AutoRepairer
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.sweeps import request_sweep
from gapwatch.roles.stores import PipelineStores
from tests.property.often import often
from tests.simulation.stores import PLACEHOLDER, Rig, Row, VirtualClock, spec_of_rig, sweeper_of

GRACE_MS = 1_000
PACE = 100
BETWEEN_SECONDS, LONG_SECONDS = 60.0, 7_200.0  # a pause between two attempts is doubled up to an hour
NUMBERS = range(6)
KEPT = NUMBERS[0]  # a row that nobody deletes: a source without any stops automatic repair
ROUNDS = 3
ROUNDS_MAX = 8  # after everything is over
OFTEN = often(25)
REPAIR = RepairSpec(
    missing=Policy.AUTO,
    stale=Policy.AUTO,
    mismatch=Policy.AUTO,
    extra=Policy.AUTO,
    undeleted=Policy.AUTO,
    brake_ratio=1e6,  # brakes, and giving up, have tests of their own
    max_attempts=1_000,
    backoff_seconds=1.0,
)
OPEN = tuple(state.value for state in State if state is not State.RESOLVED)

WRITES = ("write", "delete", "deliver", "lose", "falsify", "remove", "strip", "mask")
FAULTS = ("refuse", "accept", "unread", "source away", "target away", "back", "cut", "no answer", "kill", "kill after")


class Killed(BaseException):
    """A worker ends, in the middle of whatever it does."""


class Mortal:
    """A ledger as one worker sees it: once the worker is killed, nothing of what it still does arrives."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        if self.dead:
            raise Killed
        return getattr(self._ledger, name)


@dataclass
class World:
    """Both stores, a sink, and one worker after the other. ``during``: what happens when a store is asked for the n-th time."""

    ledger: SqlLedger
    during: Mapping[int, Sequence[tuple[str, int]]]
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(pace=PACE))
    rig: Rig = field(default_factory=lambda: Rig(spec=replace(spec_of_rig(), repair=REPAIR)))
    strangers: dict[int, list[Row]] = field(default_factory=dict)
    calls: int = 0
    told: set[str] = field(default_factory=set)  # how the next batch's answer is lost

    def __post_init__(self) -> None:
        self._ids = itertools.count()
        self.rig.between, self.rig.on_write, self.rig.on_answer = self.between, self.never_worse, self.answer
        self.ledger.set_fact(Facts.baseline(self.rig.spec.id), {"started_at": "x", "ended_at": "x", "sweep_id": None})
        self.begin()

    # what happens

    def act(self, what: str, number: int) -> None:
        rig = self.rig
        if what == "write":
            rig.source_writes(number)
        elif what == "delete" and number != KEPT:
            rig.source_deletes(number)
        elif what == "deliver":
            rig.sink_delivers(number)
        elif what == "lose":
            rig.sink_loses(number)
        elif what == "falsify":
            document = {"_id": number, "total": -next(rig.values), "note": "a stranger's"}
            self.strangers.setdefault(number, []).append(document)
            rig.stranger_writes(number, document)
        elif what == "remove":
            rig.stranger_writes(number, None)
        elif what == "strip" and number in rig.source:
            del rig.source_writes(number)["note"]  # a reader that does not show the column
        elif what == "mask":
            rig.source_writes(number, note=PLACEHOLDER)
        else:
            self.break_(what, number)

    def break_(self, what: str, number: int) -> None:
        rig = self.rig
        if what == "refuse":
            rig.refused.add(number)
        elif what == "accept":
            rig.refused.discard(number)
        elif what == "unread":
            rig.unread ^= {number}
        elif what in ("source away", "target away"):
            rig.away.add(Side.EXPECTED if what.startswith("source") else Side.OBSERVED)
        elif what == "back":
            rig.away.clear()
        elif what in ("no answer", "kill after"):
            self.told.add(what)
        elif what == "cut":
            raise StoreUnreachable("The connection broke.")
        elif what == "kill":
            self.kill()

    def between(self, _: str) -> None:
        self.calls += 1
        for what, number in self.during.get(self.calls, ()):
            self.act(what, number)

    def answer(self) -> None:
        told, self.told = self.told, set()
        if "kill after" in told:
            self.kill()
        if told:
            raise StoreUnreachable("No answer.")

    def kill(self) -> None:
        self.mortal.dead = True
        raise Killed

    # the worker

    def begin(self) -> None:
        """A new worker begins: it knows what the ledger says, and nothing else."""
        self.holder = f"worker {next(self._ids)}"
        self.mortal = Mortal(self.ledger)
        seen, spec = cast(SqlLedger, self.mortal), self.rig.spec
        self.sweeper = sweeper_of(self.rig, seen, self.clock, holder=self.holder)
        self.repairer = AutoRepairer(
            AutoRepairDependencies(
                pipelines={spec.id: spec}, ledger=seen, stores=self, clock=self.clock, new_id=lambda: f"id{next(self._ids)}"
            )
        )
        self.backfiller = Backfiller(
            BackfillDependencies(
                ledger=seen,
                book=Book(seen, self.clock),
                clock=self.clock,
                holder=self.holder,
                grace_ms=lambda _: GRACE_MS,
                delivered=lambda _: Delivered(through_ms=None, age_alone=True),
                on_document=lambda *_: None,
            )
        )

    async def stores(self, pipeline: str) -> PipelineStores:
        return self.rig.stores

    def round(self) -> None:
        """A sweep of everything, and the repair of what it found, as far as the worker comes."""
        try:
            asyncio.run(self._round())
        except Killed:
            self.begin()

    async def _round(self) -> None:
        try:
            request_sweep(self.ledger, self.rig.spec, self.clock, f"sweep{next(self._ids)}", {})
        except ConflictError:
            pass  # one whose worker was killed waits to be taken
        await self._carry_out(RunKind.SWEEP)
        try:
            await self.repairer.step(self.rig.spec)
        except StoreError:
            return
        await self._carry_out(RunKind.BACKFILL)

    async def _carry_out(self, kind: RunKind) -> None:
        run = self.ledger.take_run(kind, self.holder, seconds=0)  # whoever comes after a killed one need not wait
        if run is None:
            return
        try:
            if kind is RunKind.SWEEP:
                await self.sweeper.run(run, self.rig.stores, last_full_started=None)
            else:
                await self.backfiller.run(run, self.rig.stores)
        except (ConflictError, StoreError) as error:
            state = RunState.CANCELLED if isinstance(error, ConflictError) else RunState.INCONCLUSIVE
            ended = replace(run, state=state, error=error.message, ended_at=self.clock.now())
            self.ledger.update_run(ended, holder=self.holder)

    def wait(self, seconds: float) -> None:
        asyncio.run(self.clock.sleep(seconds / PACE))

    def heal(self, lost: frozenset[int]) -> None:
        """Nothing breaks any more; every row is whole again, and the sink delivers what it still has, or loses it all."""
        rig = self.rig
        self.during, self.told = {}, set()
        rig.away.clear()
        rig.unread.clear()
        rig.refused.clear()
        for number, row in list(rig.source.items()):
            if row.get("note", PLACEHOLDER) == PLACEHOLDER:
                rig.source_writes(number)
        for number in list(rig.sink):
            while rig.sink.get(number):
                (rig.sink_loses if number in lost else rig.sink_delivers)(number)

    # what has to hold

    def never_worse(self, item: WriteItem) -> None:
        """A write of ours holds a whole state of the source, and takes no document back from what the source has made since."""
        rig, number = self.rig, self.rig.number(item.key)
        versions = [None if row is None else rig.document(row) for row in rig.history.get(number, ())]
        made = None if item.document is None else dict(item.document)
        if made is not None:
            assert made in versions, f"{made} was never at the source"
            assert PLACEHOLDER not in made.values()
            assert made.keys() == {"_id", "total", "note"}
        there = rig.target.get(number)
        guard = dict(item.replaces.raw) if isinstance(item.replaces, StoredRecord) else None
        if there is None or there != guard or there not in versions:
            return
        before = versions.index(there)
        assert made in versions[before:], f"{number}: {made} in the place of {there}, which is newer"

    def nothing_is_made_up(self) -> None:
        rig = self.rig
        for number, document in rig.target.items():
            known = [rig.document(row) for row in rig.history.get(number, ()) if row is not None]
            assert document in known or document in self.strangers.get(number, ()), f"nobody ever wrote {document}"

    def differing(self) -> list[int]:
        return [number for number in {*self.rig.source, *self.rig.target} if not self.rig.agrees(number)]

    def gaps(self) -> list[Any]:
        return list(self.ledger.gaps(GapFilter(states=OPEN), limit=100).gaps)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def ledgers(empty: Path, tmp_path: Path) -> Iterator[Any]:
    """Yield what makes a ledger of its own for each history."""
    opened: list[SqlLedger] = []

    def make() -> SqlLedger:
        while opened:
            opened.pop().close()
        for file in tmp_path.glob("ledger.db*"):
            file.unlink()
        shutil.copy(empty, tmp_path / "ledger.db")
        opened.append(open_ledger(f"sqlite:///{tmp_path}/ledger.db"))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


acts = st.lists(st.tuples(st.sampled_from(WRITES + FAULTS), st.sampled_from(NUMBERS)), min_size=1, max_size=4)
quiet = st.lists(st.tuples(st.sampled_from(WRITES), st.sampled_from(NUMBERS)), max_size=12)
moments = st.dictionaries(st.integers(1, 100), acts, min_size=5, max_size=20)


@OFTEN
@given(quiet, moments, st.lists(quiet, min_size=ROUNDS, max_size=ROUNDS), st.frozensets(st.sampled_from(NUMBERS)))
def test_l4_after_random_writes_and_faults_source_and_target_are_equal_and_nothing_was_made_up(
    ledgers: Any, before: list[Any], during: dict[int, list[Any]], rounds: list[list[Any]], lost: frozenset[int]
) -> None:
    world = World(ledgers(), during)
    for number in NUMBERS[:4]:
        world.rig.source_writes(number)
    for acts_now in (before, *rounds):
        for what, number in acts_now:
            world.act(what, number)
        world.round()
        world.nothing_is_made_up()
        world.wait(BETWEEN_SECONDS)
    world.heal(lost)
    for _ in range(ROUNDS_MAX):
        world.wait(LONG_SECONDS)
        world.round()
        world.nothing_is_made_up()
        if not world.differing() and not world.gaps():
            break
    assert world.differing() == []
    assert world.gaps() == []
    written = len(world.rig.writes)
    world.round()
    assert len(world.rig.writes) == written, "written again what is right"
