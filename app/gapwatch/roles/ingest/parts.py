"""What the rooms of the role share: what they were handed, what this ingester owns, and how findings are raised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from gapwatch.core.batches import SectionBuilder
from gapwatch.core.envelopes import NativeModule
from gapwatch.core.feeds import FeedProgress, Follower, HeartbeatRows, StandingEnd
from gapwatch.core.gaps import gap_id, time_of
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.model.pipeline import PipelineSpec, Settings
from gapwatch.model.stream import Letter
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.ingest.bindings import Binding, LetterBinding, bindings_of, heartbeat_topics, letter_bindings_of

log = structlog.get_logger(__name__)

REST_AFTER_SECONDS: Final = 30.0  # without an event of any feed
REST_SECONDS: Final = 2.0  # then nothing is said or asked more often …
ASKED_PER_STALL: Final = 15  # … but so many times in the shortest ``stall_after``


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestDependencies:
    settings: Settings
    pipelines: Mapping[str, PipelineSpec]  # resolved
    ledger: Ledger
    producer: AckedProducer
    consumer: RawConsumer  # of the group, with partition ends
    heartbeats: RawConsumer  # of no group
    offsets: OffsetReader
    topics: TopicAdmin
    clock: Clock
    name: str
    skew_ms: Callable[[str], Awaitable[int]]
    on_unparsable: Callable[[str], None]
    on_finding: Callable[[str, str], None]
    transactions: Callable[[], RawConsumer] | None = None  # makes one of no group, with partition ends
    on_transactions: Callable[[str, int], None] = lambda outcome, count: None
    native: NativeModule | None = None  # the compiled hot path
    on_stir: Callable[[str], None] = lambda pipeline: None  # an event of a pipeline has come


@dataclass(slots=True, kw_only=True)
class Owned:
    """One raw partition that this ingester owns, with what waits to be sent of it."""

    progress: FeedProgress
    topic_id: str
    end: StandingEnd
    follower: Follower = field(default_factory=Follower)
    builders: dict[tuple[str, int, int], SectionBuilder] = field(default_factory=dict)  # pipeline, side, events partition
    delivery: dict[str, tuple[int, int]] = field(default_factory=dict)  # pipeline → position, clock
    # pipeline, side, events partition → end of the ranges sent since the last control
    ahead: dict[tuple[str, int, int], int] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)  # what the sink says, to be sent


class Shared:
    """Bindings, owned partitions and heartbeat rows: written by one room each, read by all."""

    def __init__(self, dependencies: IngestDependencies) -> None:
        self.on = dependencies
        self.bindings: Mapping[str, Sequence[Binding]] = bindings_of(dependencies.pipelines, dependencies.native)
        self.by_append = frozenset(
            topic for topic, bound in self.bindings.items() if all(binding.by_append for binding in bound)
        )  # plain topics
        self.letters: Mapping[str, Sequence[LetterBinding]] = letter_bindings_of(dependencies.pipelines)
        self.owned: dict[Partition, Owned] = {}
        self.stirred = dependencies.clock.monotonic()  # when the newest event was taken, or the process began
        self._stirring = asyncio.Event()  # an event came since somebody began to rest
        self.missing: set[str] = set(self.bindings)  # wanted topics that do not exist
        self.missing_seen = 0
        self.missing_proven: Mapping[str, int] = {}  # by topic of heartbeat rows: what they had proved before it was looked
        self.skew: dict[str, int] = {}
        self.grace: dict[str, int] = {}  # in force, where it is measured; not in it: the largest
        stores = dependencies.settings.stores
        self.heartbeat_topics = heartbeat_topics(dependencies.pipelines, stores)
        specs = list(dependencies.pipelines.values())
        settle = max((spec.settle_seconds for spec in specs), default=1.0)
        disorder = max((spec.disorder_seconds for spec in specs), default=0.2)
        self._rest_seconds = min([REST_SECONDS, *(spec.stall_after_seconds / ASKED_PER_STALL for spec in specs)])
        self.still_ms = int(settle * 1000 / 2)
        self.rows = {
            topic: HeartbeatRows(int(settle * 1000), int(disorder * 1000)) for topic in set(self.heartbeat_topics.values())
        }

    def paced(self, seconds: float) -> float:
        """Return how long to wait instead of `seconds`: while all feeds are at rest, there is less to say and to ask."""
        at_rest = self.on.clock.monotonic() - self.stirred > REST_AFTER_SECONDS
        return max(seconds, self._rest_seconds) if at_rest else seconds

    def stir(self, pipeline: str) -> None:
        """Take note of an event: nobody rests any longer."""
        self.stirred = self.on.clock.monotonic()
        self._stirring.set()
        self.on.on_stir(pipeline)

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`; at rest for longer, until the first event at most."""
        clock, longer = self.on.clock, self.paced(seconds)
        if longer == seconds:
            await clock.sleep(seconds)
            return
        self._stirring.clear()
        waits = [asyncio.ensure_future(clock.sleep(longer)), asyncio.ensure_future(self._stirring.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def find(self, binding: Binding, finding: Finding, message: str, *, at_ms: int = 0, since_ms: int = 0) -> None:
        """Raise a finding that can mean loss: a hole, which only a sweep covers. It began at `since_ms` at the earliest."""
        now = self.on.clock.now()
        begun = at_ms or since_ms
        start = time_of(begun) if begun else now - timedelta(seconds=binding.pipeline.stall_after_seconds)
        record = FindingRecord(
            id="ingest_" + gap_id(binding.pipeline.id, finding.value.encode(), f"{message}/{at_ms}").removeprefix("gap_"),
            pipeline=binding.pipeline.id,
            finding=finding,
            side=binding.side.name.lower(),
            feed=binding.topic,
            first_seen=now,
            last_seen=now,
            message=message,
            remedy="A sweep covers it; it starts by itself.",
            time_from=start,
            time_to=time_of(at_ms) if at_ms else now,
            is_hole=True,
        )
        if await asyncio.to_thread(self.on.ledger.raise_finding, record):
            self.on.on_finding(binding.pipeline.id, finding.value)
            log.warning("finding_raised", pipeline=binding.pipeline.id, finding=finding.value, message=message)
