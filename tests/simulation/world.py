"""A small world: a source, a sink that may lag, lose and falsify, two feeds, and ingesters that crash, overlap and reorder.

Everything follows from one seed. The world knows the truth, so it can say what a right matcher must have found in the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from gapwatch.core.keys import partition_of
from gapwatch.model.pipeline import (
    DeliverySpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    KeyType,
    Match,
    PipelineSpec,
    SourceSpec,
    TargetSpec,
)
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Operation,
    PipelineTimes,
    Section,
    Side,
)

PIPELINE = "orders"
MAPPING = 7
START = 1_700_000_000_000
GRACE_MS = 2_000
HOUR_MS = 3_600_000
TOPICS = {Side.EXPECTED: "src", Side.OBSERVED: "dst"}
KEY = (KeyColumn(path="id", type=KeyType.INT),)


def pipeline(*, match: Match = Match.DIGEST, delivery: bool = False, **more: object) -> PipelineSpec:
    fields: dict[str, object] = {
        "id": PIPELINE,
        "source": SourceSpec(store="a", table="public.orders", key=KEY, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="src")),
        "target": TargetSpec(store="b", collection="db.orders", key=KEY, feed=FeedSpec(kind=FeedKind.TOPIC, topic="dst")),
        "fields": (FieldSpec(target="v", source="v", type=FieldType.INT, maskable=False),),
        "match": match,
        "grace_seconds": GRACE_MS / 1000,
        "delivery": DeliverySpec(group="sink") if delivery else DeliverySpec(),
        "baseline": "assume",
    }
    return PipelineSpec(**(fields | more))  # type: ignore[arg-type]


def digest(value: int) -> bytes:
    return xxhash.xxh3_128_digest(value.to_bytes(8, "big"))


class Raw(NamedTuple):
    """One record of a raw feed partition."""

    offset: int
    key: bytes
    operation: int
    major: int
    event_time: int
    append_time: int
    value: int
    again: bool = False  # the connector repeats itself: same position, new offset


@dataclass
class Feed:
    """One partition of one side's feed, and how far the ingesters have come with it."""

    side: Side
    number: int
    records: list[Raw] = field(default_factory=list)
    position: int = 0
    passed: list[int] = field(default_factory=list)  # by offset: when the sink was done with it

    def watermark(self, position: int, clock: int) -> int:
        return min([clock, *(raw.event_time for raw in self.records[position:] if not raw.again)])

    def caught_up(self, position: int, clock: int) -> int:
        return min([clock, *(raw.append_time for raw in self.records[position:])])

    def delivery(self, clock: int) -> int:
        done = 0
        while done < len(self.passed) and self.passed[done] <= clock:
            done += 1
        return done


@dataclass(frozen=True)
class Shape:
    """What may happen in a world. Probabilities per write; times in milliseconds."""

    writes: int = 40
    keys: int = 8
    source_partitions: int = 2
    target_partitions: int = 2
    lag: int = 400
    lost: float = 0.0
    falsified: float = 0.0
    coalesced: float = 0.0
    strange: float = 0.0  # somebody else writes to the target
    deletes: float = 0.15
    touched: float = 0.0
    repeats: float = 0.1  # of raw records, by the connectors
    delivery: bool = False
    reemitted: float = 0.1  # per emission: another ingester begins again further back
    swapped: float = 0.0  # per emission: two sections of a feed partition come in the wrong order
    mute: bool = False  # one source partition never speaks
    partitions: int = 2  # of gapwatch.events; only number 0 is looked at


class World:
    def __init__(self, seed: int, shape: Shape) -> None:
        self.shape = shape
        self._random = random.Random(seed)
        self.source: dict[bytes, int | None] = {}
        self.target: dict[bytes, int | None] = {}
        self.touched: set[bytes] = set()
        self.feeds: dict[tuple[Side, int], Feed] = {}
        self._write()
        self._last = max([START, *(raw.append_time for feed in self.feeds.values() for raw in feed.records)])
        self._last = max([self._last, *(time for feed in self.feeds.values() for time in feed.passed)])

    # what happened in the stores

    def _write(self) -> None:
        shape, rng = self.shape, self._random
        now, value = START, 0
        shown: list[tuple[int, int, bytes, int, int]] = []
        busy: dict[bytes, int] = {}
        consumed: dict[tuple[Side, int], int] = {}
        raws: dict[tuple[Side, int], list[Raw]] = {}
        for sequence in range(shape.writes):
            now += rng.randrange(1, 300)
            key = b"key-%02d" % rng.randrange(shape.keys)
            value += 1
            operation = self._operation(key)
            place = (Side.EXPECTED, partition_of(key + b"s", shape.source_partitions))
            raws.setdefault(place, []).append(Raw(0, key, operation, sequence, now, now + rng.randrange(1, 50), value))
            self.source[key] = None if operation == Operation.DELETE else value
            (self.touched.add if operation == Operation.TOUCHED else self.touched.discard)(key)
            commit = max(now + rng.randrange(5, shape.lag), busy.get(key, 0) + 1, consumed.get(place, 0) + 1)
            consumed[place] = commit
            fate = rng.random()
            raws[place][-1] = raws[place][-1]._replace(again=False)
            self.feeds.setdefault(place, Feed(*place)).passed.append(commit)
            if fate < shape.lost or (fate < shape.lost + shape.coalesced and sequence < shape.writes // 2):
                continue
            busy[key] = commit
            said = value if fate < 1 - shape.falsified else -value
            said_operation = Operation.UPSERT if operation == Operation.TOUCHED else operation
            shown.append((commit, len(shown), key, int(said_operation), said))
        for _ in range(shape.writes):
            if rng.random() < shape.strange:
                commit = START + rng.randrange(1, now - START + shape.lag)
                shown.append((commit, len(shown), b"key-%02d" % rng.randrange(shape.keys + 2), 1, 1_000_000 + len(shown)))
        self._show(sorted(shown), raws)
        for place, records in raws.items():
            self._log(self.feeds.setdefault(place, Feed(*place)), records)
        for side, count in ((Side.EXPECTED, shape.source_partitions), (Side.OBSERVED, shape.target_partitions)):
            for number in range(count):
                self.feeds.setdefault((side, number), Feed(side, number))

    def _operation(self, key: bytes) -> int:
        rng, shape = self._random, self.shape
        if self.source.get(key) is not None and rng.random() < shape.deletes:
            return int(Operation.DELETE)
        return int(Operation.TOUCHED if rng.random() < shape.touched else Operation.UPSERT)

    def _show(self, shown: list[tuple[int, int, bytes, int, int]], raws: dict[tuple[Side, int], list[Raw]]) -> None:
        for sequence, (commit, _, key, operation, value) in enumerate(shown):
            place = (Side.OBSERVED, partition_of(key + b"t", self.shape.target_partitions))
            append = commit + self._random.randrange(1, 50)
            raws.setdefault(place, []).append(Raw(0, key, operation, sequence, commit, append, value))
            self.target[key] = None if operation == Operation.DELETE else value

    def _log(self, feed: Feed, records: list[Raw]) -> None:
        """Append in order of commit; now and then the connector repeats some of its records. The sink passes those at once."""
        rng, append, passed = self._random, 0, feed.passed
        feed.passed = []
        for number, raw in enumerate(records):
            append = max(append + 1, raw.append_time)
            feed.records.append(raw._replace(offset=len(feed.records), append_time=append))
            feed.passed += passed[number : number + 1]
            if rng.random() < self.shape.repeats:
                for repeated in records[max(0, number - rng.randrange(3)) : number + 1]:
                    append += 1
                    feed.records.append(repeated._replace(offset=len(feed.records), append_time=append, again=True))
                    feed.passed += passed[number : number + 1]

    # what the ingesters make of it

    def log(self, shuffle: int = 0) -> list[tuple[Batch | Control, int]]:
        """Return partition 0 of ``gapwatch.events``: records with their append times. ``shuffle`` is the ingesters' own seed."""
        rng = random.Random(f"{shuffle} {self.shape} {self._last}")
        emitted = list(self._emit(rng))
        return [(record, self._last + 10 * number) for number, record in enumerate(emitted)]

    def _emit(self, rng: random.Random) -> Iterator[Batch | Control]:
        for feed in self.feeds.values():
            feed.position = 0
        speaking = [feed for feed in self.feeds.values() if not (self.shape.mute and (feed.side, feed.number) == (0, 0))]
        clock = START
        yield self._control(speaking, clock)
        while any(feed.position < len(feed.records) for feed in speaking):
            clock += rng.randrange(0, 400)
            feed = rng.choice(speaking)
            if rng.random() < self.shape.reemitted:
                yield from self._begin_again(rng, feed)
            yield from self._sections(rng, feed, clock)
            if rng.random() < 0.5:
                yield self._control(rng.sample(speaking, rng.randrange(1, len(speaking) + 1)), clock)
        clock = max(clock, self._last) + HOUR_MS
        for _ in range(3):
            yield self._control(speaking, clock)
            clock += GRACE_MS

    def _sections(self, rng: random.Random, feed: Feed, clock: int) -> Iterator[Batch]:
        readable = feed.position
        while readable < len(feed.records) and feed.records[readable].append_time <= clock:
            readable += 1
        end = min(readable, feed.position + rng.randrange(0, 6))
        middle = rng.randrange(feed.position, end + 1)
        parts = [self._section(feed, feed.position, middle), self._section(feed, middle, end)]
        feed.position = end
        if rng.random() < self.shape.swapped:
            parts.reverse()
        for part in parts:
            yield Batch(FORMAT, [part], [])

    def _begin_again(self, rng: random.Random, feed: Feed) -> Iterator[Batch | Control]:
        """A second ingester reads from the committed offset on, and speaks of what it has read."""
        at = rng.randrange(feed.position + 1)
        while at < feed.position:
            end = min(feed.position, at + rng.randrange(1, 4))
            yield Batch(FORMAT, [self._section(feed, at, end)], [])
            at = end
            if rng.random() < 0.3:
                clock = min([START, *(raw.append_time for raw in feed.records[:at])])
                yield Control(FORMAT, "second", clock, [self._state(feed, at, clock)], [])

    def _section(self, feed: Feed, start: int, end: int) -> Section:
        rows = [raw for raw in feed.records[start:end] if partition_of(raw.key, self.shape.partitions) == 0]
        plain = (Operation.UPSERT, Operation.SNAPSHOT, Operation.LOOKED_UP)
        return Section(
            pipeline=PIPELINE,
            side=int(feed.side),
            feed=TOPICS[feed.side],
            feed_partition=feed.number,
            epoch=1,
            mapping=MAPPING,
            offset_from=start,
            offset_to=end,
            keys=[raw.key for raw in rows],
            operations=bytes(raw.operation for raw in rows),
            offsets=[raw.offset for raw in rows],
            majors=[raw.major for raw in rows],
            minors=[0 for _ in rows],
            event_times=[raw.event_time for raw in rows],
            append_times=[raw.append_time for raw in rows],
            digests=[digest(raw.value % (1 << 64)) if raw.operation in plain else b"" for raw in rows],
        )

    def _state(self, feed: Feed, position: int, clock: int) -> FeedState:
        count = self.shape.source_partitions if feed.side is Side.EXPECTED else self.shape.target_partitions
        delivered = self.shape.delivery and feed.side is Side.EXPECTED
        return FeedState(
            pipeline=PIPELINE,
            side=int(feed.side),
            feed=TOPICS[feed.side],
            feed_partition=feed.number,
            partitions=count,
            epoch=1,
            offset_from=position,
            offset_to=position,
            watermark=feed.watermark(position, clock),
            caught_up=feed.caught_up(position, clock),
            delivery=min(feed.delivery(clock), len(feed.records)) if delivered else NO_DELIVERY,
            delivery_clock=clock if delivered else 0,
            lost=[],
        )

    def _control(self, feeds: list[Feed], clock: int) -> Control:
        states = [self._state(feed, feed.position, clock) for feed in feeds]
        return Control(FORMAT, "first", clock, states, [PipelineTimes(PIPELINE, 0, GRACE_MS)])

    def control(self, clock: int) -> Control:
        """Return what the ingesters say at `clock`, after everything."""
        return self._control(list(self.feeds.values()), clock)

    # the truth

    @property
    def differing(self) -> set[bytes]:
        """Return partition 0's keys that a right matcher has raised in the end."""
        found = set()
        for key in self.source.keys() | self.target.keys():
            unseen = key not in self.target or key not in self.source
            if key in self.touched or unseen or self.source[key] != self.target[key]:
                found.add(key)
        return {key for key in found if partition_of(key, self.shape.partitions) == 0}
