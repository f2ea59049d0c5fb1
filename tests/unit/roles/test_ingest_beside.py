"""What runs beside ingest: each sink's group is asked once, for all the topics that it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.core.feeds import FeedProgress, HeartbeatRows, StandingEnd
from gapwatch.errors import StoreError, StoreRefused, StoreUnreachable
from gapwatch.kafka.clients import Partition, Polled
from gapwatch.kafka.offsets import GroupPositions
from gapwatch.kafka.topics import TopicFacts
from gapwatch.model.pipeline import DeliverySpec, FieldSpec, FieldType, PipelineSpec, Settings
from gapwatch.model.stream import UNKNOWN_DELIVERY
from gapwatch.roles.ingest.beside import Beside
from gapwatch.roles.ingest.parts import IngestDependencies, Owned, Shared
from tests.unit.core.samples import pipeline

NOW, ASKED = 1_000, 900


def spec(name: str, topic: str, group: str) -> PipelineSpec:
    one = pipeline(FieldSpec(target="name", source="name", type=FieldType.TEXT))
    feed = replace(one.source.feed, topic=topic)
    return replace(one, id=name, source=replace(one.source, feed=feed), delivery=DeliverySpec(group=group))


class Rig:
    """Four pipelines: two of one sink, one of the same sink that reads the first topic too, one of another sink."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.refused: dict[str, StoreError] = {}  # by topic
        self.stop = asyncio.Event()
        specs = [spec("a", "t.a", "sink"), spec("b", "t.b", "sink"), spec("again", "t.a", "sink"), spec("c", "t.c", "other")]
        pipelines = {one.id: one for one in specs}
        dependencies = SimpleNamespace(
            settings=Settings(bootstrap_servers="", pipelines=pipelines),
            pipelines=pipelines,
            offsets=SimpleNamespace(delivery=self._delivery, acked=self._acked),
            clock=SimpleNamespace(now_ms=lambda: NOW, monotonic=lambda: 0.0, sleep=self._sleep),
            native=None,
        )
        self.shared = Shared(cast("IngestDependencies", dependencies))
        for topic in ("t.a", "t.b", "t.c"):
            self.own(topic)

    def own(self, topic: str) -> None:
        progress = FeedProgress(topic=topic, partition=0, partitions=1, epoch=1, position=9, sent=9, disorder_ms=200)
        self.shared.owned[Partition(topic, 0)] = Owned(progress=progress, topic_id=topic, end=StandingEnd(500))

    async def _delivery(self, group: str, partitions: Collection[Partition]) -> GroupPositions:
        self.asked.append((group, sorted(at.topic for at in partitions)))
        for at in partitions:
            if at.topic in self.refused:
                raise self.refused[at.topic]
        return GroupPositions(group=group, positions=dict.fromkeys(partitions, 7), clock=ASKED)

    async def _acked(self, topic: str, partitions: Collection[Partition]) -> GroupPositions:
        return await self._delivery(f"acks in {topic}", partitions)

    async def _sleep(self, seconds: float) -> None:
        self.stop.set()

    async def run(self) -> dict[str, tuple[int, int]]:
        await Beside(self.shared)._read_deliveries(self.stop)
        return {name: said for owned in self.shared.owned.values() for name, said in owned.delivery.items()}


async def test_a_group_is_asked_once_for_all_topics_that_it_reads() -> None:
    rig = Rig()
    assert await rig.run() == dict.fromkeys(["a", "again", "b", "c"], (7, ASKED))
    assert sorted(rig.asked) == [("other", ["t.c"]), ("sink", ["t.a", "t.b"])]


async def test_an_acks_topic_is_asked_instead_of_a_group_where_the_pipeline_names_one() -> None:
    rig = Rig()
    acked = replace(rig.shared.on.pipelines["c"], delivery=DeliverySpec(acks_topic="acks"))
    pipelines = {**rig.shared.on.pipelines, "c": acked}
    rig.shared = Shared(cast("IngestDependencies", SimpleNamespace(**{**vars(rig.shared.on), "pipelines": pipelines})))
    rig.own("t.c")
    assert await rig.run() == {"c": (7, ASKED)}
    assert rig.asked == [("acks in acks", ["t.c"])]


async def test_topics_that_somebody_else_owns_are_not_asked_for() -> None:
    rig = Rig()
    del rig.shared.owned[Partition("t.b", 0)], rig.shared.owned[Partition("t.c", 0)]
    await rig.run()
    assert rig.asked == [("sink", ["t.a"])]


async def test_a_topic_that_is_refused_says_nothing_of_the_others() -> None:
    rig = Rig()
    rig.refused["t.b"] = StoreRefused("no right", store="kafka")
    found = await rig.run()
    assert found["b"] == (UNKNOWN_DELIVERY, NOW)
    assert found["a"] == found["again"] == found["c"] == (7, ASKED)


@pytest.mark.parametrize("topic", ["t.a", "t.b"])
async def test_brokers_that_do_not_answer_are_asked_once(topic: str) -> None:
    rig = Rig()
    rig.refused[topic] = StoreUnreachable("away", store="kafka")
    found = await rig.run()
    assert {name: position for name, (position, _) in found.items() if name != "c"} == dict.fromkeys(
        ["a", "again", "b"], UNKNOWN_DELIVERY
    )
    assert len([group for group, _ in rig.asked if group == "sink"]) == 1


class Heartbeats:
    """The consumer of heartbeat topics: where it was told to read, and the ends of the logs."""

    def __init__(self) -> None:
        self.assigned: list[dict[Partition, int]] = []
        self.end = 1_000
        self.polled = Polled()

    async def log_range(self, at: Partition) -> tuple[int, int]:
        return 0, self.end

    async def assign(self, starts: dict[Partition, int]) -> None:
        self.assigned.append(starts)

    async def consume(self, limit: int, *, seconds: float) -> Polled:
        return self.polled


async def test_a_topic_of_heartbeats_that_appears_moves_no_other_and_one_that_is_refused_stops_nothing() -> None:
    """Rows that were passed over looked like a gap in their numbers, and ingest did not start where one topic was forbidden."""
    rig, heartbeats, turns = Rig(), Heartbeats(), iter(range(100))
    there = {"t.a": 1}
    asked: list[list[str]] = []

    async def describe(topics: Sequence[str]) -> dict[str, TopicFacts]:
        asked.append(list(topics))
        if "t.c" in topics:
            raise StoreRefused("forbidden", store="kafka")
        return {name: TopicFacts(topic_id=name, partitions=there[name]) for name in topics if name in there}

    def monotonic() -> float:
        turn = next(turns)
        if turn == 4:
            beside._heartbeats[Partition("t.a", 0)] = 970  # read on meanwhile, behind what is written
            heartbeats.end = 5_000
            there["t.b"] = 1
        if turn == 12:
            rig.stop.set()
        return float(turn)

    rig.shared.rows = {topic: HeartbeatRows(1_000, 200) for topic in ("t.a", "t.b", "t.c")}
    on = replace_on(rig.shared.on, topics=SimpleNamespace(describe=describe), heartbeats=heartbeats)
    on.clock.monotonic = monotonic
    beside = Beside(rig.shared)
    await beside._read_heartbeats(rig.stop)
    assert heartbeats.assigned[0] == {Partition("t.a", 0): 950}
    assert heartbeats.assigned[1] == {Partition("t.a", 0): 970, Partition("t.b", 0): 4_950}
    assert len(heartbeats.assigned) == 2
    assert ["t.c"] in asked


async def test_a_topic_of_heartbeats_that_may_not_be_read_is_left_out() -> None:
    rig, heartbeats = Rig(), Heartbeats()
    replace_on(rig.shared.on, heartbeats=heartbeats)
    rig.shared.rows = {topic: HeartbeatRows(1_000, 200) for topic in ("t.a", "t.b")}
    beside = Beside(rig.shared)
    beside._heartbeats.update({Partition("t.a", 0): 5, Partition("t.b", 0): 7})
    fault = StoreRefused("forbidden", store="kafka")
    heartbeats.polled = Polled(faults=[(Partition("t.b", 0), fault), (Partition("t.b", 1), fault)])
    assert not await beside._poll_heartbeats(1, 0.0)
    assert heartbeats.assigned == [{Partition("t.a", 0): 5}]
    heartbeats.polled = Polled(faults=[(None, fault)])
    with pytest.raises(StoreRefused):
        await beside._poll_heartbeats(1, 0.0)


def replace_on(on: IngestDependencies, **parts: object) -> Any:
    for name, part in parts.items():
        setattr(on, name, part)
    return on
