"""What may not be read ends no ingest: a clock is left out, and what nobody can count is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import text

from gapwatch.core.gaps import time_of
from gapwatch.errors import HistoryLost, StoreError, StoreRefused, StoreUnreachable
from gapwatch.kafka.clients import Partition, Polled
from gapwatch.kafka.topics import TopicFacts
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Finding
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec, Settings
from gapwatch.ports import Lease
from gapwatch.roles.board import Facts
from gapwatch.roles.ingest.parts import IngestDependencies, Shared
from gapwatch.roles.ingest.transactions import STORE_SECONDS, Transactions
from gapwatch.roles.repair.transactions_read import TransactionsRead
from tests.unit.core.samples import pipeline

TOPIC, TABLE = "shop.transaction", "shop.public.orders"
BEGUN_MS = 1_700_000_000_000
REFUSED = StoreRefused("Topic authorization failed.", store="kafka", remedy="Grant it.")


def spec() -> PipelineSpec:
    one = pipeline(FieldSpec(target="name", source="name", type=FieldType.TEXT))
    return replace(one, source=replace(one.source, feed=replace(one.source.feed, topic=TABLE), transactions=TOPIC))


@dataclass
class World:
    """A broker, a ledger of facts, and a clock; `refused`: what may not be described, `unreadable`: what may not be read."""

    refused: dict[str, StoreError] = field(default_factory=dict)
    unreadable: dict[str, StoreError] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    assigned: list[dict[Partition, int]] = field(default_factory=list)
    turns: int = 60
    seconds: float = 1.0
    ledger: SqlLedger | None = None  # None: facts alone, and a lease that is never lost
    on_turn: dict[int, Callable[[], HistoryLost | None]] = field(default_factory=dict)  # what happens while a turn is read
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def describe(self, topics: Sequence[str]) -> Mapping[str, TopicFacts]:
        for topic in topics:
            if topic in self.refused:
                raise self.refused[topic]
        return {topic: TopicFacts(topic_id=topic, partitions=1) for topic in topics}

    async def log_range(self, at: Partition) -> tuple[int, int]:
        if at.topic in self.refused:
            raise self.refused[at.topic]
        return 0, 7

    async def assign(self, starts: Mapping[Partition, int]) -> None:
        self.assigned.append(dict(starts))

    async def consume(self, limit: int, *, seconds: float) -> Polled:
        await self.sleep(seconds)
        lost = self.on_turn.pop(self.turns, lambda: None)()
        if lost is not None:
            return Polled(faults=[(None, lost)])
        faults = [(at, self.unreadable[at.topic]) for at in self.assigned[-1] if at.topic in self.unreadable]
        return Polled(faults=[(at, fault) for at, fault in faults for _ in range(2)])

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.turns -= 1
        if not self.turns:
            self.stop.set()

    def now_ms(self) -> int:
        return BEGUN_MS + int(self.seconds * 1000)

    async def close(self) -> None: ...

    async def run(self) -> None:
        one, lease = spec(), Lease(name="l", holder="me", fencing=1, expires_at=cast(Any, None))
        ledger = SimpleNamespace(
            take_lease=lambda *_, **__: lease,
            renew_lease=lambda *_, **__: lease,
            release_lease=lambda _: None,
            fact=self.facts.get,
            set_fact=lambda name, value, *, under=None: self.facts.__setitem__(name, value),
        )
        dependencies = SimpleNamespace(
            settings=Settings(bootstrap_servers="", pipelines={one.id: one}),
            pipelines={one.id: one},
            clock=SimpleNamespace(
                monotonic=lambda: self.seconds,
                sleep=self.sleep,
                now=lambda: time_of(self.now_ms()),
                now_ms=self.now_ms,
            ),
            topics=SimpleNamespace(describe=self.describe),
            ledger=self.ledger or ledger,
            native=None,
            name="me",
            on_finding=lambda *_: None,
        )
        shared = Shared(cast("IngestDependencies", dependencies))
        shared.heartbeat_topics = {TABLE: "shop.message"}
        await Transactions(shared, TOPIC, lambda: cast(Any, self)).run(self.stop)

    async def said(self) -> list[str]:
        return [one.level for one in await TransactionsRead(spec(), self.facts.get).watch()]


@pytest.mark.parametrize("right", ["refused", "unreadable"])
@pytest.mark.parametrize("position", [False, True], ids=["at first", "later"])
async def test_heartbeats_that_may_not_be_read_are_left_out(right: str, position: bool) -> None:
    world = World()
    if position:  # an earlier version kept the position of heartbeats, too
        places = {TABLE: {"0": 3}, TOPIC: {"0": 3}, "shop.message": {"0": 3}}
        world.facts[Facts.transactions(TOPIC)] = {"topics": sorted((TABLE, TOPIC)), "starts": places, "read": places, "open": []}
    setattr(world, right, {"shop.message": REFUSED})
    await world.run()
    start = 3 if position else 7
    assert world.assigned[-1] == {Partition(TABLE, 0): start, Partition(TOPIC, 0): start}
    assert len(world.assigned) == (1 if right == "refused" else 2)
    assert await world.said() == []


@pytest.mark.parametrize("topic", [TOPIC, TABLE])
@pytest.mark.parametrize("right", ["refused", "unreadable"])
@pytest.mark.parametrize("fault", [REFUSED, StoreUnreachable("away", store="kafka")])
async def test_what_cannot_be_read_is_said_until_it_is_read_and_ends_nothing(topic: str, right: str, fault: StoreError) -> None:
    world = World()
    setattr(world, right, {topic: fault})
    await world.run()
    if right == "unreadable" and fault.retriable:
        return  # the consumer itself tries on
    assert await world.said() == ["unknown"]
    again = World(facts=world.facts, turns=8)
    assert STORE_SECONDS >= 8 * 0.25, "a refusal may come yet"
    await again.run()
    assert await again.said() == ["unknown"]
    again = World(facts=world.facts)
    await again.run()
    assert await again.said() == []


async def test_what_nobody_expects_ends_it() -> None:
    world = World(refused={TOPIC: StoreError("A bug.", store="kafka")})
    with pytest.raises(StoreError):
        await world.run()


def position(offset: int, **more: Any) -> dict[str, Any]:
    places = {TABLE: {"0": offset}, TOPIC: {"0": offset}}
    return {"topics": sorted((TABLE, TOPIC)), "starts": places, "read": places, "open": [], **more}


@pytest.mark.parametrize("lost", [None, HistoryLost("It is gone.")], ids=["reads on", "finds its position gone"])
async def test_lesson_40_whoever_thaws_without_its_lease_leaves_the_position_alone(
    ledger: SqlLedger, lost: HistoryLost | None
) -> None:
    """A frozen one went back to what its successor had judged already, or deleted where that one stood."""
    theirs = position(6, through=BEGUN_MS)

    def overtaken() -> HistoryLost | None:
        with ledger._db.engine.begin() as connection:
            connection.execute(text("UPDATE leases SET expires_us = 1"))
        other = ledger.take_lease(f"transactions/{TOPIC}", "there", seconds=60)
        assert other is not None
        ledger.set_fact(Facts.transactions(TOPIC), theirs, under=other)
        return lost

    ledger.set_fact(Facts.transactions(TOPIC), position(3))
    world = World(ledger=ledger, on_turn={30: overtaken})
    await world.run()
    assert world.on_turn == {}
    assert ledger.fact(Facts.transactions(TOPIC)) == theirs
    assert ledger.findings(spec().id) == []


@pytest.mark.parametrize("later", [False, True], ids=["when it begins", "while it reads"])
async def test_what_was_not_counted_since_a_position_was_lost_is_a_hole(ledger: SqlLedger, later: bool) -> None:
    """It began "from now on" and said nothing: a transaction that lacked events in between passed for a whole one."""
    proven = BEGUN_MS - 3_600_000
    ledger.set_fact(Facts.transactions(TOPIC), position(3 if later else 9, through=proven))
    world = World(ledger=ledger, on_turn={30: lambda: HistoryLost("It is gone.")} if later else {})
    await world.run()
    (found,) = ledger.findings(spec().id)
    why = "It is gone." if later else f"Offset 9 of {TABLE}[0] is not there any more."
    assert found.message == f"transactions that wrote to public.orders were not counted: {why} Counting began anew."
    assert (found.finding, found.is_hole, found.feed) == (Finding.INGEST_HOLE, True, TABLE)
    assert found.time_from == time_of(proven), "up to then all was judged, however long ago that is"
    stored = cast("Mapping[str, Any]", ledger.fact(Facts.transactions(TOPIC)))
    assert stored["starts"] == {TABLE: {"0": 7}, TOPIC: {"0": 7}}
    assert found.time_to is not None
    assert found.time_to == time_of(stored["through"]), "when counting had begun anew"


async def test_a_first_start_counts_from_now_on_and_misses_nothing(ledger: SqlLedger) -> None:
    await World(ledger=ledger).run()
    assert ledger.findings(spec().id) == []
