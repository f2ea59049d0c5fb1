"""A sweep that workers share, over two stores in memory: everything but the stores is the product."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.core.sweep import Mark, Place
from gapwatch.errors import ConflictError, StoreRefused
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Run, RunKind, RunState, SweepPart
from gapwatch.model.pipeline import SweepSpec
from gapwatch.model.stream import Side
from gapwatch.ports import GapFilter
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from gapwatch.roles.repair.split import SplitDependencies, SplitSweep, other_mapping
from gapwatch.roles.repair.sweeps import request_sweep
from gapwatch.roles.stores import PipelineStores
from tests.simulation.stores import HastyClock, ModelReader, Rig, VirtualClock, spec_of_rig, sweeper_of, trials

PARTS = 4


class Shared:
    """One sweep of a rig's stores, its holder and its workers."""

    def __init__(self, rig: Rig, ledger: SqlLedger, **request: Any) -> None:
        self.rig, self.ledger, self.clock = rig, ledger, HastyClock(speed=300)
        request_sweep(ledger, rig.spec, self.clock, f"sweep{len(ledger.runs())}", {"content": False, **request})
        taken = ledger.take_run(RunKind.SWEEP, "holder", seconds=1e6)
        assert taken is not None
        self.run = taken

    @property
    def split(self) -> SplitSweep:
        judged = trials(self.rig, self.ledger, self.clock)
        return SplitSweep(SplitDependencies(ledger=self.ledger, trials=judged, clock=self.clock, holder="holder"))

    async def work(self, name: str, seen: Callable[[SweepPart], None] = lambda part: None) -> None:
        """Take parts as long as there are any."""
        sweeper = sweeper_of(self.rig, self.ledger, self.clock, holder=name)
        while (taken := self.ledger.take_part(name, [self.rig.spec.id], seconds=1e6)) is not None:
            seen(taken[1])
            await sweeper.part(*taken, self.rig.stores, last_full_started=None)

    async def carry_out(self, workers: int = 2) -> Run:
        assert await self.split.takes(self.run, self.rig.stores)
        working = [asyncio.create_task(self.work(f"worker{number}")) for number in range(workers)]
        ended = await self.split.carry_out(self.run, self.rig.stores)
        await asyncio.gather(*working)
        return ended


def copied(count: int, **sweep: Any) -> Rig:
    rig = Rig(spec=replace(spec_of_rig(), sweep=SweepSpec(parts=PARTS, **sweep)))
    for number in range(count):
        rig.source_writes(number)
        rig.sink_delivers(number)
    return rig


def found(ledger: SqlLedger) -> dict[int, str]:
    return {gap.key_fields["id"]: gap.kind.value for gap in ledger.gaps(GapFilter(), limit=500).gaps}


def spoil(rig: Rig) -> dict[int, str]:
    """Make a difference in each part, and at both ends; return what a sweep has to find."""
    missing, extra = (0, 10, 30, 50, 70, 99), (-5, 777)
    for number in missing:
        rig.stranger_writes(number, None)
    for number in extra:
        rig.stranger_writes(number, {"_id": number, "total": 1, "note": "nobody's"})
    return dict.fromkeys(missing, "missing") | dict.fromkeys(extra, "extra")


async def test_workers_find_together_what_one_finds_alone(ledger: SqlLedger) -> None:
    rig = copied(100)
    expected = spoil(rig)
    shared = Shared(rig, ledger)
    ended = await shared.carry_out()
    assert ended.state is RunState.SUCCEEDED
    assert found(ledger) == expected
    counts = {
        "source_keys": 100,
        "target_keys": 96,
        "differences": 8,
        "missing": 6,
        "extra": 2,
        "parts": PARTS,
        "parts_over": PARTS,
    }
    assert ended.counts == ended.counts | counts
    assert ended.progress == 1.0
    stored = ledger.run(ended.id)
    assert stored is not None
    assert (stored.state, stored.counts) == (ended.state, ended.counts)
    assert [part.state for part in ledger.parts(ended.id)] == [RunState.SUCCEEDED] * PARTS


async def test_the_content_is_compared_once_the_mapping_has_passed_its_trial(ledger: SqlLedger) -> None:
    """The trial looks at a sweep as a whole: until it is over, nothing is split."""
    rig = copied(100)
    first = Shared(rig, ledger, content=True)
    assert not await first.split.takes(first.run, rig.stores)
    ended = await sweeper_of(rig, ledger, first.clock, holder="holder").run(first.run, rig.stores, last_full_started=None)
    assert ended.state is RunState.SUCCEEDED
    rig.stranger_writes(42, {"_id": 42, "total": -1, "note": "wrong"})
    assert (await Shared(rig, ledger, content=True).carry_out()).state is RunState.SUCCEEDED
    assert found(ledger) == {42: "mismatch"}


async def nothing(reader: ModelReader, count: int) -> list[bytes]:
    return []


async def test_a_trial_that_another_worker_has_ended_is_over_for_all(ledger: SqlLedger) -> None:
    rig = copied(100)
    waiting = trials(rig, ledger, VirtualClock())
    assert not await waiting.is_over(rig.stores)
    first = Shared(rig, ledger, content=True)
    await sweeper_of(rig, ledger, first.clock, holder="holder").run(first.run, rig.stores, last_full_started=None)
    assert await waiting.is_over(rig.stores)


@pytest.mark.parametrize(
    "why", ["one part is asked for", "a range", "it has begun as a whole", "no order", "hardly any keys", "no sample"]
)
async def test_what_cannot_be_shared_is_swept_by_one(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    rig = copied(0 if why == "hardly any keys" else 100)
    if why == "one part is asked for":
        rig.spec = replace(rig.spec, sweep=SweepSpec())
    shared = Shared(rig, ledger, **({"range": "range", "from": None, "to": None} if why == "a range" else {}))
    if why == "it has begun as a whole":
        shared.run = replace(shared.run, cursor=Place(mark=Mark(key=b"\x80", counts=(1, 1)), identities={}, mapping=1).pack())
    if why == "no order":
        rig.ordered = False
    if why == "no sample":
        monkeypatch.setattr(ModelReader, "sample_keys", nothing)
    assert not await shared.split.takes(shared.run, rig.stores)
    assert ledger.parts(shared.run.id) == []


async def test_a_table_that_cannot_be_sampled_is_swept_by_one(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = copied(100)

    async def refuse(reader: ModelReader, count: int) -> list[bytes]:
        raise StoreRefused("TABLESAMPLE can only be applied to tables.", store="shop")

    monkeypatch.setattr(ModelReader, "sample_keys", refuse)
    shared = Shared(rig, ledger)
    assert not await shared.split.takes(shared.run, rig.stores)
    assert ledger.parts(shared.run.id) == []


async def test_what_was_known_before_anything_is_read_is_on_record_before_anybody_reads(ledger: SqlLedger) -> None:
    """The holder may be gone a moment later: what it knew is not asked for again, after parts were read."""
    rig = copied(100)
    shared = Shared(rig, ledger)
    shared.run = replace(shared.run, cursor={"masked": 7})
    assert await shared.split.takes(shared.run, rig.stores)
    stored = ledger.run(shared.run.id)
    assert stored is not None
    assert stored.cursor == {"masked": 7, "mapping": rig.mapping.fingerprint}
    working = asyncio.create_task(shared.work("worker"))
    ended = await shared.split.carry_out(replace(shared.run, cursor={}), rig.stores)
    await working
    assert ended.cursor["masked"] == 7


async def test_a_sweep_proves_nothing_by_two_mappings(ledger: SqlLedger) -> None:
    """Whoever was started with another configuration, holder or worker, takes no part in it."""
    rig = copied(100)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    await shared.work("worker")
    other = Rig(spec=replace(rig.spec, fields=rig.spec.fields[:1]), source=rig.source, target=rig.target)
    run = ledger.run(shared.run.id)
    assert run is not None
    assert (other_mapping(run, rig.stores), "configuration" in other_mapping(run, other.stores)) == ("", True)
    ended = await shared.split.carry_out(shared.run, other.stores)
    assert ended.state is RunState.INCONCLUSIVE
    assert "another one than when the sweep began" in (ended.error or "")


async def test_a_worker_with_another_configuration_compares_nothing(ledger: SqlLedger) -> None:
    rig = copied(100)
    spoil(rig)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    other = Rig(spec=replace(rig.spec, fields=rig.spec.fields[:1]), source=rig.source, target=rig.target)

    class Provider:
        async def stores(self, pipeline: str) -> PipelineStores:
            return other.stores

    on = SimpleNamespace(
        ledger=ledger,
        stores={RunKind.SWEEP: Provider()},
        sweeper=lambda holder: sweeper_of(other, ledger, shared.clock, holder=holder),
    )
    taken = ledger.take_part("worker", [rig.spec.id], seconds=1e6)
    assert taken is not None
    await RunRunner(cast("RunnerDependencies", on))._part(*taken, "worker")
    part = ledger.parts(shared.run.id)[taken[1].number - 1]
    assert (part.state, "another one" in (part.error or "")) == (RunState.INCONCLUSIVE, True)
    assert found(ledger) == {}


async def test_what_nobody_expected_ends_the_run_and_the_part_and_nobody_takes_them_again(ledger: SqlLedger) -> None:
    """One value that no reader foresaw ended the role, which took the run again when its lease was over, for ever."""
    rig = copied(100)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)

    class Provider:
        async def stores(self, pipeline: str) -> PipelineStores:
            raise TypeError("a value that nobody foresaw")

    on = SimpleNamespace(ledger=ledger, clock=shared.clock, pipelines={rig.spec.id: rig.spec}, stores={RunKind.SWEEP: Provider()})
    runner = RunRunner(cast("RunnerDependencies", on))
    taken = ledger.take_part("worker", [rig.spec.id], seconds=1e6)
    assert taken is not None
    await runner._part(*taken, "worker")
    part = ledger.parts(shared.run.id)[taken[1].number - 1]
    assert (part.state, part.error) == (RunState.INCONCLUSIVE, "It failed (TypeError); the log says where.")
    await runner._carry_out(shared.run, "holder")
    run = ledger.run(shared.run.id)
    assert run is not None
    assert (run.state, run.error) == (RunState.INCONCLUSIVE, "It failed (TypeError); the log says where.")
    assert ledger.take_run(RunKind.SWEEP, "another", seconds=1) is None


async def test_a_worker_that_is_gone_leaves_its_part_to_another_one(ledger: SqlLedger) -> None:
    rig = copied(100)
    expected = spoil(rig)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    gone = ledger.take_part("gone", [rig.spec.id], seconds=0.0)
    assert gone is not None
    numbers: list[int] = []
    working = asyncio.create_task(shared.work("other", lambda part: numbers.append(part.number)))
    ended = await shared.split.carry_out(shared.run, rig.stores)
    await working
    assert (ended.state, found(ledger)) == (RunState.SUCCEEDED, expected)
    assert sorted(numbers) == [1, 2, 3, 4]


async def test_another_holder_goes_on_with_the_parts_that_are_there(ledger: SqlLedger) -> None:
    rig = copied(100)
    expected = spoil(rig)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    before = ledger.parts(shared.run.id)
    assert await shared.split.takes(shared.run, rig.stores), "the parts of the holder that is gone"
    assert ledger.parts(shared.run.id) == before
    working = asyncio.create_task(shared.work("worker"))
    assert (await shared.split.carry_out(shared.run, rig.stores)).state is RunState.SUCCEEDED
    await working
    assert found(ledger) == expected


async def test_one_part_that_could_not_be_read_leaves_the_sweep_inconclusive(ledger: SqlLedger) -> None:
    """The other parts' gaps are found all the same."""
    rig = copied(100)
    spoil(rig)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    sweeper = sweeper_of(rig, ledger, shared.clock, holder="worker")
    while (taken := ledger.take_part("worker", [rig.spec.id], seconds=1e6)) is not None:
        rig.away = {Side.OBSERVED} if taken[1].number == 2 else set()
        await sweeper.part(*taken, rig.stores, last_full_started=None)
    rig.away = set()
    ended = await shared.split.carry_out(shared.run, rig.stores)
    assert ended.state is RunState.INCONCLUSIVE
    assert ended.error
    assert set(found(ledger)) == {-5, 0, 10, 50, 70, 99, 777}, "30 lies in the part that was not read"


async def test_trap_43_an_index_that_only_looks_empty_is_never_equal(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = copied(100)
    rig.target.clear()

    async def no(self: ModelReader) -> bool:
        return False

    monkeypatch.setattr(ModelReader, "is_empty", no)
    ended = await Shared(rig, ledger).carry_out()
    assert ended.state is RunState.INCONCLUSIVE
    assert "empty" in (ended.error or "")


async def test_parts_that_read_two_tables_prove_nothing(ledger: SqlLedger) -> None:
    rig = copied(100)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    await shared.work("worker")
    last = ledger.parts(shared.run.id)[-1]
    with ledger._db.engine.begin() as connection:  # as if another one had stood there when it was read
        connection.exec_driver_sql(
            "UPDATE sweep_parts SET cursor = ? WHERE number = ?", ('{"identities": {"expected": "another"}}', last.number)
        )
    ended = await shared.split.carry_out(shared.run, rig.stores)
    assert ended.state is RunState.INCONCLUSIVE
    assert "replaced" in (ended.error or "")


async def test_a_cancelled_sweep_is_given_up_by_all(ledger: SqlLedger) -> None:
    rig = copied(100)
    shared = Shared(rig, ledger)
    assert await shared.split.takes(shared.run, rig.stores)
    taken = ledger.take_part("worker", [rig.spec.id], seconds=1e6)
    assert taken is not None
    ledger.cancel_run(shared.run.id)
    with pytest.raises(ConflictError):
        await shared.split.carry_out(shared.run, rig.stores)
    with pytest.raises(ConflictError):
        await sweeper_of(rig, ledger, shared.clock, holder="worker").part(*taken, rig.stores, last_full_started=None)
    assert ledger.take_part("worker", [rig.spec.id], seconds=1e6) is None
