"""Partitions that were added, and dead letters that came, also while nobody ran; shown for a while, then over."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gapwatch.check_ports import Advice
from gapwatch.core.gaps import time_of
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.offsets import LogEnds
from gapwatch.kafka.preflight import SHOWN_SECONDS, TopicPreflight
from gapwatch.kafka.topics import TopicFacts
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from tests.simulation.shop import spec_of
from tests.simulation.stores import VirtualClock

LETTERS = "dead"


class Topics:
    """Topics and their ends, as brokers tell of them; what the check remembers lasts longer than the check."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.facts: dict[str, TopicFacts] = {}
        self.ends: dict[str, int] = {}
        self.remembered: dict[str, Mapping[str, Any]] = {}

    def wait(self, seconds: float) -> None:
        asyncio.run(self.clock.sleep(seconds))

    async def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        return {name: self.facts[name] for name in names if name in self.facts}

    async def log_ends(self, partitions: Collection[Partition]) -> LogEnds:
        first = min(at.partition for at in partitions)
        ends = {at: self.ends[at.topic] if at.partition == first else 0 for at in partitions}
        return LogEnds(ends=ends, clock=self.clock.now_ms())

    def check(self, spec: PipelineSpec) -> Sequence[Advice]:
        """Return what a check says that has only just been made: after a restart."""
        made = TopicPreflight(
            spec,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.clock,
            recall=self.remembered.get,
            remember=self.remembered.__setitem__,
        )
        return asyncio.run(made.check())


def pipeline(kind: FeedKind = FeedKind.DEBEZIUM) -> PipelineSpec:
    spec = spec_of()
    source = replace(spec.source, feed=replace(spec.source.feed, kind=kind))
    return replace(spec, source=source, target=replace(spec.target, dead_letter_topic=LETTERS))


def brokers() -> tuple[Topics, str]:
    topics, spec = Topics(), pipeline()
    topics.facts = {name: TopicFacts(topic_id=name, partitions=2) for name in (spec.source.feed.topic, LETTERS)}
    topics.ends = {LETTERS: 7}
    return topics, spec.source.feed.topic


def test_what_is_found_at_the_first_start_is_no_change() -> None:
    topics, _ = brokers()
    assert topics.check(pipeline()) == []
    assert topics.check(pipeline()) == []


def test_partitions_that_are_added_are_named_for_a_while() -> None:
    topics, topic = brokers()
    topics.check(pipeline())
    topics.facts[topic] = TopicFacts(topic_id=topic, partitions=5)
    for _ in range(2):
        (advice,) = topics.check(pipeline())
        assert (advice.finding, advice.hole_to_ms) == ("partitions_added", 0)
        assert f"{topic} has 5 partitions; it had 2" in advice.message
        topics.wait(SHOWN_SECONDS / 2)
    assert topics.check(pipeline()) == []


def test_of_a_plain_topic_they_are_a_hole_up_to_when_it_was_seen() -> None:
    topics, topic = brokers()
    topics.check(pipeline(FeedKind.TOPIC))
    topics.facts[topic] = TopicFacts(topic_id=topic, partitions=3)
    seen = topics.clock.now_ms()
    for _ in range(2):
        (advice,) = topics.check(pipeline(FeedKind.TOPIC))
        assert time_of(advice.hole_to_ms) == time_of(seen), "it stays the same, or its sweep would never cover it"
        topics.wait(86_400)  # whoever saw it died before it was stored, and nobody ran for a day


def test_a_topic_that_was_made_anew_has_no_partitions_added() -> None:
    topics, topic = brokers()
    topics.check(pipeline())
    topics.facts[topic] = TopicFacts(topic_id="another", partitions=9)
    assert topics.check(pipeline()) == []


def test_new_dead_letters_are_counted_together_until_none_came_for_a_while() -> None:
    topics, _ = brokers()
    topics.check(pipeline())
    for end, shown in ((8, "1 new record:"), (8, "1 new record:"), (11, "4 new records:")):
        topics.ends[LETTERS] = end
        (advice,) = topics.check(pipeline())
        assert advice.finding == "dlq_growing"
        assert shown in advice.message
        topics.wait(SHOWN_SECONDS / 3)
    topics.wait(SHOWN_SECONDS)
    assert topics.check(pipeline()) == []
    topics.ends[LETTERS] = 12
    (advice,) = topics.check(pipeline())
    assert "1 new record:" in advice.message


def test_a_dead_letter_topic_that_is_made_with_its_first_record_has_a_new_one() -> None:
    topics, _ = brokers()
    there = topics.facts.pop(LETTERS)
    assert topics.check(pipeline()) == []
    topics.facts[LETTERS], topics.ends[LETTERS] = there, 1
    (advice,) = topics.check(pipeline())
    assert "1 new record:" in advice.message


def test_what_is_remembered_is_not_asked_for_again_while_nothing_changes() -> None:
    topics, source = brokers()
    spec, asked = pipeline(), list[str]()

    def recall(name: str) -> Mapping[str, Any] | None:
        asked.append(name)
        return topics.remembered.get(name)

    made = TopicPreflight(
        spec,
        topics,  # type: ignore[arg-type]
        topics,  # type: ignore[arg-type]
        topics.clock,
        recall=recall,
        remember=topics.remembered.__setitem__,
    )
    assert asyncio.run(made.check()) == []
    first = len(asked)
    assert asyncio.run(made.check()) == []
    assert len(asked) == first
    topics.ends[LETTERS] = 9
    topics.facts[source] = TopicFacts(topic_id=source, partitions=4)
    assert {one.finding for one in asyncio.run(made.check())} == {"partitions_added", "dlq_growing"}
    assert len(asked) == first + 2, "only what has changed, as another worker may have seen it first"
