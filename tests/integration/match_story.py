"""A made-up stream for match: what ingest would have sent, with known losses, and what an undisturbed run says of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gapwatch.core.batches import SectionBuilder, unpack
from gapwatch.core.envelopes.records import Event
from gapwatch.core.keys import partition_of
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import (
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    KeyType,
    PipelineSpec,
    Settings,
    SourceSpec,
    TargetSpec,
    TopicsSpec,
)
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Operation,
    PipelineTimes,
    Side,
)
from gapwatch.model.suspect import Hole, PartitionStatus, Said, Suspect

PIPELINE = "orders"
MAPPING = 7
FEEDS = {Side.EXPECTED: "src", Side.OBSERVED: "dst"}
START = 1_700_000_000_000  # ms: event times of the story
GRACE_SECONDS = 2.0
STEP_MS = 50  # how far the story's clock moves a step
LAG_STEPS = 10  # how much later the target shows a write
CONTROL_EVERY = 5  # steps


def story_settings(bootstrap: str, prefix: str, partitions: int) -> Settings:
    key = (KeyColumn(path="id", type=KeyType.INT),)
    pipeline = PipelineSpec(
        id=PIPELINE,
        source=SourceSpec(store="a", table="public.orders", key=key, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="src")),
        target=TargetSpec(store="b", collection="db.orders", key=key, feed=FeedSpec(kind=FeedKind.TOPIC, topic="dst")),
        fields=(FieldSpec(target="v", source="v", type=FieldType.INT),),
        grace_seconds=GRACE_SECONDS,
        baseline="assume",
    )
    return Settings(
        bootstrap_servers=bootstrap, topics=TopicsSpec(prefix=prefix, partitions=partitions), pipelines={PIPELINE: pipeline}
    )


@dataclass
class Story:
    """Yields ``(partition, record)`` in the order of one ingester; the same for the same seed.

    Of the keys, 4 % never reach the target, 2 % reach it changed, and 1 % of the target's are nobody's; if ``faithful``, none.
    """

    partitions: int
    steps: int
    keys_per_step: int
    seed: int = 1
    mapping: int = MAPPING
    shown_from: int = 1  # steps after its write in which the target shows it at the earliest; at most LAG_STEPS later
    faithful: bool = False
    lost: set[bytes] = field(default_factory=set)
    changed: set[bytes] = field(default_factory=set)
    strange: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._raw = dict.fromkeys(Side, 0)
        self._sent = {(side, number): 0 for side in Side for number in range(self.partitions)}
        self._due: dict[int, list[tuple[bytes, bytes, int]]] = {}
        self._made = 0

    def records(self, *, end: bool = True) -> Iterator[tuple[int, Batch | Control]]:
        """Yield the steps; with ``end`` also what makes everything due."""
        for step in range(self.steps):
            yield from self._step(step)
        if end:
            yield from self.ending()

    def ending(self) -> Iterator[tuple[int, Batch | Control]]:
        last = self.steps + self.shown_from + LAG_STEPS
        for step in range(self.steps, last):
            yield from self._events(step, Side.OBSERVED, self._due.pop(step, []))
        for extra in range(5):
            yield from self._controls(last + (1 + extra) * int(GRACE_SECONDS * 1000 / STEP_MS))

    def _step(self, step: int) -> Iterator[tuple[int, Batch | Control]]:
        now = START + step * STEP_MS
        written = [self._write(step, now) for _ in range(self.keys_per_step)]
        yield from self._events(step, Side.EXPECTED, written)
        yield from self._events(step, Side.OBSERVED, self._due.pop(step, []))
        if step % CONTROL_EVERY == 0:
            yield from self._controls(step)

    def _write(self, step: int, now: int) -> tuple[bytes, bytes, int]:
        key = b"k%08d" % self._made
        self._made += 1
        digest = self._random.randbytes(16)
        fate = 0.5 if self.faithful else self._random.random()
        seen = self._due.setdefault(step + self.shown_from + self._random.randrange(LAG_STEPS), [])
        if fate < 0.04:
            self.lost.add(key)
        elif fate < 0.06:
            self.changed.add(key)
            seen.append((key, self._random.randbytes(16), now))
        else:
            seen.append((key, digest, now))
            if fate > 0.99:
                self.strange.add(b"x" + key)
                seen.append((b"x" + key, digest, now))
        return key, digest, now

    def _events(self, step: int, side: Side, written: list[tuple[bytes, bytes, int]]) -> Iterator[tuple[int, Batch]]:
        now = START + step * STEP_MS
        builders: dict[int, SectionBuilder] = {}
        for key, digest, _ in written:
            number = partition_of(key, self.partitions)
            builder = builders.get(number)
            if builder is None:
                builder = builders[number] = SectionBuilder(
                    pipeline=PIPELINE, side=side, feed=FEEDS[side], feed_partition=0, epoch=1, mapping=self.mapping
                )
            raw = self._raw[side]
            builder.add(Event(key, Operation.UPSERT, raw, 0, now, digest, None, None, None, None), raw, now)
            self._raw[side] = raw + 1
        for number, builder in builders.items():
            section = builder.build(self._sent[side, number], self._raw[side])
            self._sent[side, number] = self._raw[side]
            yield number, Batch(format=FORMAT, sections=[section], verdicts=[])

    def _controls(self, step: int) -> Iterator[tuple[int, Control]]:
        now = START + step * STEP_MS
        for number in range(self.partitions):
            feeds = [self._feed(side, number, now) for side in Side]
            times = [PipelineTimes(PIPELINE, 0, int(GRACE_SECONDS * 1000))]
            yield number, Control(FORMAT, "ingest-1", now, feeds, times)

    def _feed(self, side: Side, number: int, now: int) -> FeedState:
        before, self._sent[side, number] = self._sent[side, number], self._raw[side]
        return FeedState(PIPELINE, int(side), FEEDS[side], 0, 1, 1, before, self._raw[side], now, now, NO_DELIVERY, 0, [])


@dataclass
class Told:
    """What match said of a partition's log."""

    suspects: dict[str, Suspect] = field(default_factory=dict)
    holes: dict[str, Hole] = field(default_factory=dict)
    statuses: dict[int, PartitionStatus] = field(default_factory=dict)

    def add(self, said: Said) -> None:
        if isinstance(said, Suspect):
            self.suspects[said.id] = said
        elif isinstance(said, Hole):
            self.holes[said.id] = said

    @property
    def settled(self) -> int:
        return sum(status.counters.settled for status in self.statuses.values())

    @property
    def keys(self) -> Counter[bytes]:
        return Counter(suspect.key for suspect in self.suspects.values())


def undisturbed(settings: Settings, logs: Mapping[int, list[tuple[int, int, bytes]]]) -> Told:
    """Return what one run without any disturbance says of ``partition → (offset, append time, value)``."""
    told = Told()
    for number, log in logs.items():
        matcher = KeyMatcher(number, settings.topics.partitions, settings.pipelines, fingerprints={PIPELINE: MAPPING}, life="one")
        for offset, append_time, value in log:
            for said in matcher.apply(unpack(value), offset, append_time):
                told.add(said)
            for said in matcher.advance():
                told.add(said)
        (told.statuses[number],) = matcher.status("undisturbed", 0)
    return told
