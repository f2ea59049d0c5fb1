"""The confirm loop between its inbox, its judge and its verdicts: what was settled is finished, whoever was quicker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from gapwatch.clock import SystemClock
from gapwatch.core.confirm import Cleared, Difference
from gapwatch.model.gap import Cause, Kind
from gapwatch.model.stream import Operation, Outcome
from gapwatch.model.suspect import GivenUp, Heard, Hole, Reason, Suspect
from gapwatch.roles.repair.confirmer import Confirmer, ConfirmerDependencies, Raised
from gapwatch.roles.repair.judging import Case, Decided
from tests.unit.core.samples import unsatisfied

KEY = b"key"


def raised() -> Raised:
    return Raised(partition=0, offset=7, record=unsatisfied(KEY))


class Judge:
    """Finds every key in agreement as soon as it is there."""

    def __init__(self) -> None:
        self.cases: dict[bytes, Case] = {}

    def add(self, key: bytes, suspect: Suspect) -> None:
        self.cases[key] = Case(key=key, suspect=suspect)

    def due(self) -> list[Case]:
        return list(self.cases.values())

    async def step(self) -> Sequence[Decided]:
        cases, self.cases = self.cases, {}
        reads = cast(Any, None)
        return [Decided(case=case, judgement=Cleared(reason="in_agreement"), reads=reads) for case in cases.values()]


class World:
    """Everything around a confirmer, with a ledger that takes `slow` turns of the loop to say whether it is quiet."""

    def __init__(self, *, quiet: bool, slow: int) -> None:
        self.waiting = [raised()]
        self.finished: list[Raised] = []
        self.verdicts: list[Any] = []
        self.events: list[str] = []  # what becomes of the next differences
        self.detected: list[float] = []
        self.holes: list[Hole] = []
        self.explained: list[Heard] = []
        self.judge = Judge()
        self._quiet = quiet
        self._slow = slow
        self.confirmer = Confirmer(
            ConfirmerDependencies(
                ledger=cast(Any, None),
                inbox=self,
                verdicts=self,
                judges={"orders": cast(Any, self.judge)},
                stores=self.stores,
                book=cast(Any, self),
                clock=SystemClock(),
                trials=cast(Any, self),
                on_hole=self.hole,
                on_cleared=lambda *_: None,
                on_detected=lambda _, seconds: self.detected.append(seconds),
                is_quiet=self.is_quiet,
            )
        )

    async def hole(self, hole: Hole) -> None:
        assert not self.finished, "it was finished before it was stored"
        self.holes.append(hole)

    async def is_quiet(self, _: str) -> bool:
        for _turn in range(self._slow):
            await asyncio.sleep(0)
        return self._quiet

    async def stores(self, _: str) -> Any:
        return SimpleNamespace(spec=SimpleNamespace(id="orders"))

    async def streamed(self, *_: Any) -> frozenset[bytes]:
        return frozenset()

    async def open(self, _: Any, decided: Sequence[Decided], *__: Any) -> dict[bytes, str]:
        return {item.case.key: self.events.pop(0) for item in decided}

    async def explain(self, pipeline: str, heard: Sequence[Heard]) -> None:
        assert pipeline == "orders"
        self.explained += heard

    async def close(self, _: Any, decided: Sequence[Decided]) -> list[bytes]:
        return [item.case.key for item in decided]

    async def skipped(self, *_: Any) -> None: ...

    async def publish(self, verdicts: Sequence[Any]) -> None:
        self.verdicts += verdicts

    async def take(self, limit: int, seconds: float) -> Sequence[Raised]:
        await asyncio.sleep(0)
        taken, self.waiting = self.waiting, []
        return taken

    async def done(self, finished: Sequence[Raised]) -> None:
        self.finished += finished

    async def run(self, *, least: int = 0) -> None:
        """Let the confirmer work until it has finished something, for at least so many turns, five seconds at most."""
        stop = asyncio.Event()
        running = asyncio.create_task(self.confirmer.run(stop))
        for turn in range(500):
            await asyncio.sleep(0.01)
            if self.finished and turn >= least:
                break
        stop.set()
        await running


async def test_what_is_settled_at_once_is_finished_too() -> None:
    """The judge settles a key while the ledger is still asked whether the pipeline is left alone."""
    world = World(quiet=False, slow=5)
    await world.run()
    assert [verdict.key for verdict in world.verdicts] == [KEY]
    assert [item.offset for item in world.finished] == [7], "it was settled, and is read again for ever"


async def test_the_detection_of_a_gap_is_measured_once_however_often_its_key_is_raised() -> None:
    world = World(quiet=False, slow=1)
    world.events = ["opened", "unchanged", "updated", "reopened"]
    suspect = unsatisfied(KEY)
    judgement = Difference(kind=Kind.MISSING, cause=Cause.LOST_IN_STREAM, fields=())
    found = [Decided(case=Case(key=KEY, suspect=suspect), judgement=judgement, reads=cast(Any, None))]
    for count in (1, 1, 1, 2):
        await world.confirmer._settle("orders", found)
        assert len(world.detected) == count
    assert [verdict.outcome for verdict in world.verdicts] == [Outcome.GAP] * 4


async def test_what_is_raised_in_a_quiet_time_waits_for_its_end_and_holds_nothing_up() -> None:
    world = World(quiet=True, slow=1)
    await world.run(least=30)
    assert world.verdicts == []
    assert [item.offset for item in world.finished] == [7]
    assert list(world.judge.cases) == [KEY]


async def test_a_hole_that_every_partition_names_is_stored_once_with_all_that_they_say() -> None:
    """At a first start there are as many as raw partitions times partitions of the events; suspects wait behind them."""
    world = World(quiet=False, slow=1)
    named = [hole("a", 5, 20), hole("b", 1, 2), hole("a", 3, 10)]
    world.waiting = [Raised(partition=number, offset=number, record=one) for number, one in enumerate(named)] + [raised()]
    await world.run(least=40)
    assert [(one.id, one.time_from, one.time_to) for one in world.holes] == [("a", 3, 20), ("b", 1, 2)]
    assert sorted(item.offset for item in world.finished) == [0, 1, 2, 7]


def hole(name: str, time_from: int, time_to: int) -> Hole:
    return Hole(
        id=name,
        pipeline="orders",
        side=0,
        feed="shop.public.orders",
        feed_partition=0,
        time_from=time_from,
        time_to=time_to,
        reason="ingest_hole",
    )


def heard(*, major: int, key: bytes = KEY) -> Heard:
    said = GivenUp(operation=Operation.DEAD_LETTERED, feed="said", partition=0, offset=3, major=major, minor=0, time=10**13)
    return Heard(id="heard_1", pipeline="orders", key=key, given_up=said)


async def test_what_the_sink_says_of_a_key_under_judgement_is_judged_with_it() -> None:
    world, opening = World(quiet=True, slow=0), unsatisfied(KEY).opening
    world.judge.add(KEY, unsatisfied(KEY))
    said = heard(major=opening.major)
    world.waiting = [Raised(partition=0, offset=8, record=said)]
    await world.run()
    suspect = world.judge.cases[KEY].suspect
    assert suspect is not None
    assert (suspect.reason, suspect.given_up, suspect.opening) == (Reason.DEAD_LETTERED, said.given_up, opening)
    assert world.explained == []
    assert [item.offset for item in world.finished] == [8]


async def test_what_the_sink_says_of_another_write_goes_to_the_gaps_before_it_is_finished() -> None:
    world, opening = World(quiet=True, slow=0), unsatisfied(KEY).opening
    world.judge.add(KEY, unsatisfied(KEY))
    others = [heard(major=opening.major - 1), heard(major=opening.major, key=b"other")]
    world.waiting = [Raised(partition=0, offset=8 + number, record=one) for number, one in enumerate(others)]
    await world.run(least=10)
    assert world.explained == others
    assert sorted(item.offset for item in world.finished) == [8, 9]
    suspect = world.judge.cases[KEY].suspect
    assert suspect is not None
    assert suspect.given_up is None
