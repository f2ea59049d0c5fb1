"""How far ingest is behind: the brokers are asked once for all pipelines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from gapwatch.kafka.clients import Partition
from gapwatch.kafka.offsets import GroupPositions, LogEnds
from gapwatch.kafka.topics import TopicFacts
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec, Settings
from gapwatch.wiring.parts import Parts
from tests.unit.core.samples import pipeline

PARTITIONS = {"s.a": 2, "s.b": 1, "t.a": 1}  # t.b does not exist yet


def spec(name: str) -> PipelineSpec:
    one = pipeline(FieldSpec(target="name", source="name", type=FieldType.TEXT))
    source = replace(one.source, feed=replace(one.source.feed, topic=f"s.{name}"))
    return replace(one, id=name, source=source, target=replace(one.target, feed=replace(one.target.feed, topic=f"t.{name}")))


class Brokers:
    """Logs end at 10; the group stands at 4, and nowhere in the second partition."""

    def __init__(self, partitions: dict[str, int]) -> None:
        self.partitions = partitions
        self.asked: list[str] = []

    async def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        self.asked.append("topics")
        return {name: TopicFacts(topic_id=name, partitions=self.partitions[name]) for name in names if name in self.partitions}

    async def log_ends(self, partitions: Collection[Partition]) -> LogEnds:
        self.asked.append("ends")
        return LogEnds(ends=dict.fromkeys(partitions, 10), clock=1)

    async def delivery(self, group: str, partitions: Collection[Partition]) -> GroupPositions:
        self.asked.append(group)
        return GroupPositions(group=group, positions={at: None if at.partition else 4 for at in partitions}, clock=1)


async def lags(brokers: Brokers) -> dict[tuple[str, str], int]:
    settings = Settings(bootstrap_servers="", pipelines={name: spec(name) for name in ("a", "b")})
    parts: Any = SimpleNamespace(settings=settings)
    return await Parts._lags(parts, cast("Any", brokers), cast("Any", brokers))


async def test_every_pipeline_has_the_lag_of_each_topic_that_exists() -> None:
    brokers = Brokers(PARTITIONS)
    assert await lags(brokers) == {("a", "s.a"): 16, ("a", "t.a"): 6, ("b", "s.b"): 6}
    assert brokers.asked == ["topics", "ends", "gapwatch.ingest"]


async def test_without_topics_nothing_is_asked_of_the_group() -> None:
    brokers = Brokers({})
    assert await lags(brokers) == {}
    assert brokers.asked == ["topics"]
