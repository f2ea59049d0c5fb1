"""Which raw partitions are ours: taking them over where the group stands, giving them up, and watching their topics."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import structlog

from gapwatch.core.feeds import FeedProgress, Metadata, StandingEnd
from gapwatch.errors import GapwatchError
from gapwatch.kafka.clients import Committed, Partition
from gapwatch.kafka.topics import TopicFacts
from gapwatch.model.gap import Finding
from gapwatch.model.pipeline import MARKED
from gapwatch.roles.ingest.outlet import Outlet
from gapwatch.roles.ingest.parts import Owned, Shared

log = structlog.get_logger(__name__)


class Ownership:
    """The group member's side of rebalances (``kafka.clients.Rebalance``)."""

    def __init__(self, shared: Shared, outlet: Outlet) -> None:
        self._shared = shared
        self._on = shared.on
        self._outlet = outlet
        self.subscribed: list[str] = []

    async def find_topics(self) -> None:
        """Subscribe to what exists of the wanted topics; the rest are feeds of zero partitions for now."""
        shared, clock = self._shared, self._on.clock.now_ms()
        proven = {topic: rows.proven for topic, rows in shared.rows.items()}
        facts = await self._on.topics.describe(sorted({*shared.bindings, *shared.letters}))
        shared.missing = set(shared.bindings) - set(facts)
        shared.missing_seen, shared.missing_proven = clock, proven
        for at, owned in shared.owned.items():
            fact = facts.get(at.topic)
            if fact is None or fact.topic_id != owned.topic_id:
                raise GapwatchError(f"Topic {at.topic} was deleted or made anew.", remedy="It is read as a new epoch.")
            owned.progress.partitions = fact.partitions
        wanted = sorted(facts)
        if wanted and wanted != self.subscribed:
            self.subscribed = wanted
            await self._on.consumer.subscribe(wanted, self)

    async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
        """Take over raw partitions: go on at the committed offset, or say what cannot be read any more."""
        owned = self._shared.owned
        facts = await self._on.topics.describe(sorted({at.topic for at in committed}))
        starts = await self._on.offsets.log_starts(list(committed))
        ends = (await self._on.offsets.log_ends(list(committed))).ends
        compacted = await self._on.topics.compacted(sorted(facts))
        for at, position in committed.items():
            owned[at] = await self._own(at, position, facts[at.topic], starts[at], ends[at])
            owned[at].progress.compacted = at.topic in compacted
        log.info("partitions_assigned", partitions=[f"{at.topic}[{at.partition}]" for at in committed])
        return {at: owned[at].progress.position for at in committed}

    async def _own(self, at: Partition, position: Committed | None, fact: TopicFacts, start: int, end: int) -> Owned:
        bindings = self._shared.bindings.get(at.topic, ())  # none of a topic that only the sink's letters come from
        known = Metadata.decode(position.metadata) if position is not None else None
        disorder = max((int(binding.pipeline.disorder_seconds * 1000) for binding in bindings), default=0)
        offset = position.offset if position is not None else start
        same_topic = known is not None and known.topic_id == fact.topic_id
        same_log = same_topic and offset <= end
        if same_log and known is not None:
            epoch = known.epoch
        elif same_topic and known is not None:  # what stands at these offsets now is something else
            epoch = await asyncio.to_thread(
                self._on.ledger.epoch, at.topic, at.partition, fact.topic_id, -known.epoch, after=known.epoch
            )
            message = f"{at.topic}[{at.partition}] lost its end: offsets {end} to {offset}"
            for binding in bindings:
                await self._shared.find(binding, Finding.LOG_TRUNCATED, message, since_ms=known.time)
            offset = start
        else:
            epoch = await asyncio.to_thread(self._on.ledger.newest_epoch, at.topic, at.partition, fact.topic_id)
            offset = offset if position is not None and known is None and start <= offset <= end else start
        progress = FeedProgress(
            topic=at.topic,
            partition=at.partition,
            partitions=fact.partitions,
            epoch=epoch,
            position=max(offset, start),
            sent=offset,
            disorder_ms=disorder,
            by_markers=any(binding.kind in MARKED for binding in bindings),
            history_to=0 if same_log else end,
        )
        if same_log and known is not None:
            progress.highest, progress.highest_time = (known.major, known.minor), known.time
            if offset < start:
                progress.lose(offset, start, "log_truncated", time_from=known.time)
                message = f"{at.topic}[{at.partition}] lost offsets {offset} to {start}"
                for binding in bindings:
                    await self._shared.find(binding, Finding.LOG_TRUNCATED, message, since_ms=known.time)
        return Owned(progress=progress, topic_id=fact.topic_id, end=StandingEnd(self._shared.still_ms))

    async def revoked(self, partitions: Collection[Partition], *, lost: bool) -> Mapping[Partition, Committed]:
        """Give partitions up; only what is acknowledged by all is committed, so the next owner repeats the rest."""
        log.info("partitions_revoked", partitions=[f"{at.topic}[{at.partition}]" for at in partitions], lost=lost)
        positions = self._outlet.give_up(partitions)
        for at in partitions:
            self._shared.owned.pop(at, None)
        return {} if lost else positions
