"""What Gapwatch's topics are, and what is said of one that differs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreRefused
from gapwatch.kafka.topics import SharedTopics, TopicAdmin, TopicFacts, TopicPlan, _differences, state_topic, topic_plans
from gapwatch.model.pipeline import Settings, TopicsSpec
from tests.unit.core.samples import TOPIC, pipeline

SETTINGS = Settings(bootstrap_servers="127.0.0.1:1", topics=TopicsSpec(prefix="g", partitions=4, replication=3))


def plans() -> dict[str, TopicPlan]:
    return {plan.name: plan for plan in topic_plans(SETTINGS)}


def test_every_topic_states_its_cleanup() -> None:
    assert {name: plan.cleanup for name, plan in plans().items()} == {
        "g.events": "delete",
        "g.suspects": "delete",
        "g.status": "compact",
        "g.gaps": "compact",
        "g.dlq": "delete",
        "g.match-state-changelog": "compact",
    }


def test_state_has_a_partition_for_each_partition_of_events() -> None:
    assert plans()[state_topic(SETTINGS)].partitions == plans()["g.events"].partitions == 4


def test_append_time_is_the_brokers() -> None:
    assert plans()["g.events"].settings["message.timestamp.type"] == "LogAppendTime"


def test_a_topic_as_planned_needs_no_advice() -> None:
    for plan in plans().values():
        assert _differences(plan, plan.partitions, dict(plan.settings)) == []


def test_a_message_limit_below_ours_is_an_error_and_above_it_a_warning() -> None:
    plan = plans()["g.events"]
    small = _differences(plan, 4, {**plan.settings, "max.message.bytes": "1000"})
    large = _differences(plan, 4, {**plan.settings, "max.message.bytes": "99999999"})
    assert [(advice.level, advice.subject) for advice in small] == [("error", "g.events")]
    assert [advice.level for advice in large] == ["warning"]


def test_compact_and_delete_together_would_drop_state() -> None:
    plan = plans()[state_topic(SETTINGS)]
    (advice,) = _differences(plan, 4, {**plan.settings, "cleanup.policy": "delete,compact"})
    assert (advice.level, "compact,delete" in advice.message, "cleanup.policy=compact" in advice.remedy) == ("error", True, True)


def test_dead_letters_may_have_any_number_of_partitions() -> None:
    plan = plans()["g.dlq"]
    assert _differences(plan, 12, dict(plan.settings)) == []


async def test_the_marks_of_transactions_in_our_own_feeds_are_never_taken_for_removed_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the right to describe a raw topic's settings that one counts as compacted: what is missing in it was removed."""
    spec = pipeline()
    settings = replace(SETTINGS, pipelines={spec.id: spec})
    admin, asked = TopicAdmin(settings), []

    async def refused(_: TopicAdmin, names: Sequence[str]) -> Any:
        asked.append(list(names))
        raise StoreRefused("Not authorized.")

    monkeypatch.setattr(TopicAdmin, "_configs", refused)
    assert await admin.compacted([TOPIC, spec.target.feed.topic]) == {TOPIC}
    assert asked == [[TOPIC]]


async def test_topics_are_described_for_all_who_ask_at_once_and_one_that_is_refused_is_nobody_elses() -> None:
    asked: list[Sequence[str]] = []

    class Described:
        async def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
            asked.append(list(names))
            if "secret" in names:
                raise StoreRefused("No right.", store="kafka")
            return {name: TopicFacts(topic_id=name, partitions=1) for name in names}

    topics = SharedTopics(cast(TopicAdmin, Described()), SystemClock())
    found = await asyncio.gather(topics.describe(["a", "b"]), topics.describe(["b", "c"]))
    assert asked == [["a", "b", "c"]]
    assert all({"b"} < set(one) for one in found)
    said = await asyncio.gather(topics.describe(["a"]), topics.describe(["secret"]), return_exceptions=True)
    assert said[0] == {"a": TopicFacts(topic_id="a", partitions=1)}
    assert isinstance(said[1], StoreRefused)
