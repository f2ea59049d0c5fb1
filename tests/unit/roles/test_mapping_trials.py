"""The trial of a mapping against a real ledger: what a sweep may book, what is withdrawn, and what a correction ends."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import replace

from gapwatch.clock import SystemClock
from gapwatch.core.confirm import Cleared, Difference, Judgement, Presence, Reading, Reads
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep import Mark, Place
from gapwatch.core.trial import KEYS
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Cause, Finding, Kind, Resolution
from gapwatch.model.pipeline import FieldType
from gapwatch.model.stream import Side
from gapwatch.ports import GapFilter, StoredRecord
from gapwatch.roles.board import Board
from gapwatch.roles.repair.judging import Case, Decided
from gapwatch.roles.repair.reads import KeyReads
from gapwatch.roles.repair.trials import MappingTrials, SweepTrial
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import PipelineStores, StoreProvider
from tests.ledger_samples import gap, opening
from tests.unit.core.samples import field, pipeline

HERE = Reading(presence=Presence.PRESENT, identity=b"1" * 16)


def stores_of(kind: FieldType = FieldType.DECIMAL) -> PipelineStores:
    """A pipeline's stores as far as a trial asks them: it reads nothing itself."""
    spec = pipeline(field("total", kind), field("v"))
    mapping, nobody = CompiledMapping(spec), cast(Any, None)
    codec = KeyCodec(spec.source.key)
    return PipelineStores(spec=spec, mapping=mapping, codec=codec, source=nobody, target=nobody, writer=nobody)


def decided(number: int, judgement: Judgement) -> Decided:
    key = b"%08d" % number
    reads = Reads(before=HERE, target=HERE, after=HERE, differing=(), started_ms=0, proven_ms=0, ended_ms=0)
    read = StoredRecord(key=key, fields={"total": 1, "v": "a"}, raw={}, target_id=None, revision=None)
    return Decided(case=Case(key=key), judgement=judgement, reads=KeyReads(reads=reads, source=read, target=read))


def mismatch(number: int, *fields: str) -> Decided:
    return decided(number, Difference(kind=Kind.MISMATCH, cause=Cause.UNKNOWN, fields=fields))


def trials_of(ledger: SqlLedger, stores: PipelineStores) -> MappingTrials:
    async def given(_: str) -> PipelineStores:
        return stores

    clock = SystemClock()
    board = cast(Board, SimpleNamespace(records=lambda pipeline: []))  # a stream that has settled nothing yet
    provider = cast(StoreProvider, SimpleNamespace(stores=given))
    return MappingTrials(ledger, board, FindingBook(ledger, clock, lambda *_: None), provider, clock)


def suspicions(ledger: SqlLedger) -> list[str]:
    return [record.message for record in ledger.findings("orders") if record.finding is Finding.MAPPING_SUSPECT]


async def swept(
    trials: MappingTrials, stores: PipelineStores, items: Sequence[Decided], *, compared: int
) -> tuple[list[Decided], str]:
    sweep = SweepTrial(trials, stores, takes_part=True)
    now, again = await sweep.take(items, compared=compared, pending=0)
    return [*now, *again, *await sweep.finish(compared=compared, whole=True)], sweep.said


async def test_m23_a_sweep_books_nothing_of_a_wrong_field_and_everything_else(ledger: SqlLedger) -> None:
    stores = stores_of()
    missing = decided(900, Difference(kind=Kind.MISSING, cause=Cause.UNKNOWN, fields=()))
    other = mismatch(901, "v")
    wrong = [mismatch(n, "total") for n in range(80)]
    booked, said = await swept(trials_of(ledger, stores), stores, [*wrong, missing, other], compared=100)
    assert booked == [missing, other]
    assert said == "The mapping looks wrong: total differs in 80 of 100 keys."
    assert suspicions(ledger) == [said]


async def test_m23_a_large_sweep_raises_its_suspicion_long_before_it_ends(ledger: SqlLedger) -> None:
    """Of a million keys all differ; after the first thousand judgements it is clear enough."""
    stores, count = stores_of(), 0
    sweep = SweepTrial(trials_of(ledger, stores), stores, takes_part=True)
    while not sweep.said and count < 10 * KEYS:
        booked, again = await sweep.take(
            [mismatch(n, "total") for n in range(count, count + 500)], compared=1_000_000, pending=900_000
        )
        assert [*booked, *again] == []
        count += 500
    assert count == KEYS


async def test_m23_many_wrong_documents_among_many_more_are_gaps(ledger: SqlLedger) -> None:
    stores = stores_of()
    wrong = [mismatch(n, "total") for n in range(3 * KEYS)]
    booked, said = await swept(trials_of(ledger, stores), stores, wrong, compared=1_000_000)
    assert (booked, said, suspicions(ledger)) == (wrong, "", [])


async def test_m23_once_passed_the_target_may_go_wrong_as_it_likes(ledger: SqlLedger) -> None:
    stores = stores_of()
    trials = trials_of(ledger, stores)
    assert await swept(trials, stores, [decided(1, Cleared(reason="in_agreement"))], compared=100) == (
        [decided(1, Cleared(reason="in_agreement"))],
        "",
    )
    wrong = [mismatch(n, "total") for n in range(100)]
    for again in (trials, trials_of(ledger, stores)):  # also after a restart
        assert await swept(again, stores, wrong, compared=100) == (wrong, "")


async def test_m23_gaps_that_were_opened_before_the_suspicion_are_withdrawn(ledger: SqlLedger) -> None:
    stores = stores_of()
    wrong, right, lost = gap(1, kind=Kind.MISMATCH, fields=("total",)), gap(2, kind=Kind.MISMATCH, fields=("v",)), gap(3)
    ledger.store_gaps([opening(one) for one in (wrong, right, lost)])
    await swept(trials_of(ledger, stores), stores, [mismatch(n, "total") for n in range(80)], compared=100)
    left = {one.id for one in ledger.gaps(GapFilter(pipeline="orders", states=("open",))).gaps}
    assert left == {right.id, lost.id}
    withdrawn = ledger.gap(wrong.id)
    assert withdrawn is not None
    assert (withdrawn.resolution, withdrawn.note) == (Resolution.SUPERSEDED, "mapping_suspect: total")
    assert ledger.unverifiable_oldest("orders") is not None, "its key holds consistent-through"


async def test_m23_a_corrected_mapping_ends_the_suspicion_at_the_start(ledger: SqlLedger) -> None:
    wrong, right = stores_of(FieldType.DECIMAL), stores_of(FieldType.FLOAT)
    await swept(trials_of(ledger, wrong), wrong, [mismatch(n, "total") for n in range(80)], compared=100)
    await trials_of(ledger, wrong).begin(["orders"])
    assert suspicions(ledger), "a restart alone corrects nothing"
    await trials_of(ledger, right).begin(["orders"])
    assert suspicions(ledger) == []


def place(*left: int, **differing: int) -> Place:
    """From where another worker goes on, with the keys that an earlier one left."""
    mark = Mark(key=b"9", counts=(4_000, 4_000))
    return Place(mark=mark, identities={}, mapping=1, left=[b"%08d" % number for number in left], differing=differing)


async def test_m23_what_an_earlier_worker_compared_counts_with_what_differed_in_it(ledger: SqlLedger) -> None:
    """Its keys were counted, and none that differed: a field that is wrong in a fourth of all documents passed its trial."""
    stores, trials = stores_of(), trials_of(ledger, stores_of())
    first = SweepTrial(trials, stores, takes_part=True)
    released: list[Decided] = []
    for start in range(0, 2_000, 100):
        some = [mismatch(n, "total") for n in range(start, start + 100)]
        now, again = await first.take(some, compared=20_000, pending=0)  # so far they are few
        released += again
        assert now == []
    assert (len(released), first.said) == (2 * KEYS, "")
    booked, _ = await first.take(released[:1_500], compared=20_000, pending=0)
    assert booked == released[:1_500]
    left = {item.case.key for item in released[1_500:]}
    assert first.behind(lambda key: key in left) == {"total": 1_500}
    assert first.behind(lambda key: key in left) == {"total": 1_500}, "each counts once"

    second = SweepTrial(trials, stores, takes_part=True, place=place(*range(1_500, 2_000), total=1_500))
    now, again = await second.take(released[1_500:], compared=20_000, pending=0)
    assert [*now, *again] == []
    assert second.behind(lambda key: False) == {"total": 2_000}
    await second.take([mismatch(n, "total") for n in range(2_000, 2_400)], compared=9_000, pending=0)
    assert await second.finish(compared=9_000, whole=True) == []
    assert second.said == "The mapping looks wrong: total differs in 2400 of 9000 keys."


async def test_m23_keys_that_were_left_say_nothing_of_those_that_wait(ledger: SqlLedger) -> None:
    """All of them differ, as they were held back for that: ten thousand that wait, and are missing, looked like them."""
    stores = stores_of()
    sweep = SweepTrial(trials_of(ledger, stores), stores, takes_part=True, place=place(*range(990)))
    now, again = await sweep.take([mismatch(n, "total") for n in range(990)], compared=20_000, pending=10_000)
    assert [*now, *again] == []
    missing = [decided(n, Difference(kind=Kind.MISSING, cause=Cause.UNKNOWN, fields=())) for n in range(2_000, 2_090)]
    found = [mismatch(n, "total") for n in range(3_000, 3_010)]
    now, again = await sweep.take([*missing, *found], compared=20_000, pending=10_000)
    assert (list(now), len(again), sweep.said) == (missing, KEYS, "")


async def test_m23_a_sweep_that_begins_anew_forgets_what_an_earlier_worker_found(ledger: SqlLedger) -> None:
    stores = stores_of()
    sweep = SweepTrial(trials_of(ledger, stores), stores, takes_part=True, place=place(1, total=500))
    sweep.begin_anew()
    assert sweep.behind(lambda key: False) == {}
    assert (await sweep.finish(compared=1_000, whole=True), sweep.said) == ([], "")


def differing(numbers: range) -> list[Decided]:
    """Judgements of the pipeline's own writes."""
    suspect = cast(Any, SimpleNamespace(opening=SimpleNamespace(side=Side.EXPECTED)))
    found = [mismatch(n, "total") for n in numbers]
    return [replace(item, case=replace(item.case, suspect=suspect)) for item in found]


def agreeing(numbers: range) -> list[Decided]:
    return [decided(n, Cleared(reason="late_arrival")) for n in numbers]


async def test_m23_two_processes_judge_one_mapping_together(ledger: SqlLedger) -> None:
    """Each has a part of the keys. One whose keys happened to agree passed the mapping, and ended the suspicion of another."""
    stores = stores_of()
    one, other = trials_of(ledger, stores), trials_of(ledger, stores)
    assert not await other.is_over(stores)
    assert await one.streamed(stores, differing(range(400))) == {"total"}
    assert await other.streamed(stores, agreeing(range(400, 400 + KEYS))) == {"total"}
    assert suspicions(ledger), "400 of 1,400 are more than a fifth"
    assert await one.streamed(stores, agreeing(range(2_000, 2_000 + KEYS))) == frozenset()
    assert suspicions(ledger) == []
    assert await other.is_over(stores), "and not of another opinion"


async def test_m23_a_suspicion_is_over_although_whoever_knew_it_first_has_ended(ledger: SqlLedger) -> None:
    """The process stored that the mapping had passed, and died before it cleared the finding: nobody did, for ever."""
    stores = stores_of()
    trials = trials_of(ledger, stores)
    await trials.streamed(stores, differing(range(400)))
    (record,) = ledger.findings("orders")
    await trials.streamed(stores, agreeing(range(1_000, 1_000 + 2 * KEYS)))
    ledger.raise_finding(record)
    assert suspicions(ledger)
    assert await trials_of(ledger, stores).is_over(stores)
    assert suspicions(ledger) == []
