"""What changed about the topics of one pipeline that others own: partitions that were added, dead letters that came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from gapwatch.check_ports import Advice
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import SharedTopics, TopicAdmin, TopicFacts
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.ports import Clock

SHOWN_SECONDS: Final = 600  # how long a change is shown
HOLE_SHOWN_SECONDS: Final = 7 * 86_400  # how long it is shown where it may have lost something: the ledger takes it once

Recall = Callable[[str], Mapping[str, Any] | None]
Remember = Callable[[str, Mapping[str, Any]], None]


class TopicPreflight:
    """Implements :class:`gapwatch.ports.Preflight`. What was seen last is remembered, so that a change while nobody ran is seen.

    Args:
        recall: Returns what was remembered under a name, None at first.
        remember: Stores it durably.
    """

    def __init__(
        self,
        pipeline: PipelineSpec,
        topics: TopicAdmin | SharedTopics,
        offsets: OffsetReader,
        clock: Clock,
        *,
        recall: Recall,
        remember: Remember,
    ) -> None:
        self._pipeline = pipeline
        self._topics = topics
        self._offsets = offsets
        self._clock = clock
        self._recall = recall
        self._remember = remember
        self._seen: dict[str, Mapping[str, Any]] = {}

    @property
    def name(self) -> str:
        return "topics"

    async def check(self) -> Sequence[Advice]:
        pipeline = self._pipeline
        feeds = [*(("source", feed) for feed in pipeline.source.feeds), ("target", pipeline.target.feed)]
        names = {feed.topic for _, feed in feeds if feed.topic} | {pipeline.target.dead_letter_topic} - {""}
        facts = await self._topics.describe(sorted(names))
        advice: list[Advice] = []
        for side, feed in feeds:
            if feed.topic in facts:
                plain = feed.kind is FeedKind.TOPIC
                advice += [one async for one in self._partitions(side, feed.topic, facts[feed.topic], plain=plain)]
        if pipeline.target.dead_letter_topic:
            advice += [one async for one in self._letters(pipeline.target.dead_letter_topic, facts)]
        return advice

    async def watch(self) -> Sequence[Advice]:
        return await self.check()

    async def close(self) -> None:
        await self._offsets.close()

    async def _partitions(self, side: str, topic: str, fact: TopicFacts, *, plain: bool) -> AsyncIterator[Advice]:
        name = f"topic/{self._pipeline.id}/{topic}"
        now = {"id": fact.topic_id, "partitions": fact.partitions}
        known = await self._known(name, current=lambda known: (known.get("id"), known.get("partitions")) == tuple(now.values()))
        same = known.get("id") == fact.topic_id
        if not same or int(known["partitions"]) < fact.partitions:
            before = int(known["partitions"]) if same else fact.partitions
            known = now | {"before": before, "at": self._clock.now_ms() if same else 0}
            await self._keep(name, known)
        if self._is_fresh(known, HOLE_SHOWN_SECONDS if plain else SHOWN_SECONDS):
            message = f"Topic {topic} has {fact.partitions} partitions; it had {known['before']}."
            if plain:
                remedy = "Records of one key may lie in two partitions, whose order nobody knows; a sweep covers it, by itself."
                yield self._advice(
                    side, message, remedy, "partitions_added", table=self._table(topic), hole_to_ms=int(known["at"])
                )
            else:
                remedy = "Nothing is to be done: the records of this feed carry their own order."
                yield self._advice(side, message, remedy, "partitions_added", table=self._table(topic))

    async def _letters(self, topic: str, facts: Mapping[str, TopicFacts]) -> AsyncIterator[Advice]:
        fact = facts.get(topic, TopicFacts(topic_id="", partitions=0))  # the sink makes it with its first dead letter
        partitions = [Partition(topic, number) for number in range(fact.partitions)]
        count = sum((await self._offsets.log_ends(partitions)).ends.values()) if partitions else 0
        name = f"dead_letters/{self._pipeline.id}"
        now = {"id": fact.topic_id, "topic": topic, "count": count}
        known = await self._known(name, current=lambda known: now.items() <= known.items())
        watched = known.get("topic") == topic
        same = watched and known["id"] == fact.topic_id
        if not same or count > int(known["count"]):
            more = count - int(known["count"]) if same else count if watched else 0
            if watched and self._is_fresh(known):
                more += int(known["more"])
            known = now | {"more": more, "at": self._clock.now_ms() if more else 0}
            await self._keep(name, known)
        if self._is_fresh(known):
            records = "1 new record" if known["more"] == 1 else f"{known['more']} new records"
            message = f"The sink's dead-letter topic {topic} has {records}: it gave up writing them."
            yield self._advice("target", message, "Read the reasons in their headers; each write is a gap soon.", "dlq_growing")

    async def _known(self, name: str, *, current: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Return what is remembered; it is not asked for again while what is there now is what it says."""
        known = self._seen.get(name)
        if known is None or not current(known):
            recalled: Mapping[str, Any] | None = await asyncio.to_thread(self._recall, name)
            known = self._seen[name] = recalled or {}
        return known

    async def _keep(self, name: str, known: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self._remember, name, known)
        self._seen[name] = known

    def _is_fresh(self, known: Mapping[str, Any], seconds: float = SHOWN_SECONDS) -> bool:
        return bool(known.get("at")) and self._clock.now_ms() - int(known["at"]) < seconds * 1000

    def _table(self, topic: str) -> str:
        """Return which of several tables a topic is for."""
        tables = self._pipeline.source.table_of
        return tables.get(topic, "") if len(tables) > 1 else ""

    def _advice(self, side: str, message: str, remedy: str, finding: str, *, table: str = "", hole_to_ms: int = 0) -> Advice:
        return Advice(
            level="warning",
            subject=f"{self._pipeline.id}.{side}",
            message=message,
            remedy=remedy,
            finding=finding,
            table=table,
            hole_to_ms=hole_to_ms,
        )
