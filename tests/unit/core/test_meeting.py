"""Both sides of a pipeline meet in one partition of ``gapwatch.events``, whatever partitioned and serialised them before."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence

import pytest
from bson import Int64
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.batches import SectionBuilder
from gapwatch.core.envelopes import Event, RawRecord, decoder_for
from gapwatch.core.keys import partition_of
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyColumn, KeyType
from gapwatch.model.stream import FORMAT, NO_DELIVERY, Batch, Control, FeedState, PipelineTimes, Side
from tests.unit.core.samples import APPENDED, COMMITTED, TOPIC, change, field, pipeline, record

PARTITIONS = 8
TARGET = "gapwatch.feed.orders.target"
PLAIN = FeedSpec(kind=FeedKind.TOPIC, topic="search.acks")


def murmur2(data: bytes) -> int:
    """Kafka's default partitioner (Java), as its source has it."""
    length, seed, m = len(data), 0x9747B28C, 0x5BD1E995
    h = (seed ^ length) & 0xFFFFFFFF
    for at in range(0, length & ~3, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & 0xFFFFFFFF
        k = (k ^ k >> 24) * m & 0xFFFFFFFF
        h = h * m & 0xFFFFFFFF ^ k
    rest = data[length & ~3 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return (h ^ h >> 15) & 0x7FFFFFFF


def at_source(number: int) -> RawRecord:
    """Debezium with the Java client: a JSON key, murmur2, three partitions."""
    key = json.dumps({"id": number}).encode()
    return record(change("c", after={"id": number, "total": 5}), key=key, partition=murmur2(key) % 3, offset=number)


def at_mongodb(number: int) -> RawRecord:
    """Our change-stream reader: canonical extended JSON, xxh3, five partitions."""
    options = {"json_options": CANONICAL_JSON_OPTIONS}
    key = dumps({"_id": Int64(number)}, **options).encode()
    return record(
        dumps({"_id": Int64(number), "total": 5}, **options).encode(),
        key=key,
        topic=TARGET,
        partition=zlib.adler32(key) % 5,
        offset=number,
        headers={"gapwatch-op": "insert", "gapwatch-time": str(COMMITTED), "gapwatch-position": f"{number}:0"},
    )


def at_search(number: int) -> RawRecord:
    """Somebody's indexer with librdkafka: the id as bare text, crc32, two partitions."""
    key = str(number).encode()
    return record({"_id": str(number), "total": 5}, key=key, topic=PLAIN.topic, partition=zlib.crc32(key) % 2, offset=number)


def events_of(side: Side, target_feed: FeedSpec | None, key: KeyType, raw: RawRecord) -> Sequence[Event]:
    spec = pipeline(
        field("total", FieldType.INT),
        source_key=[KeyColumn(path="id", type=key)],
        target_key=[KeyColumn(path="_id", type=key)],
        target_feed=target_feed,
    )
    decoded = decoder_for(spec, side, CompiledMapping(spec)).decode(raw)
    return [event for event in decoded if isinstance(event, Event)]


@given(st.integers(0, 2**62))
def test_trap_40_one_entity_is_one_key_in_one_partition_on_every_feed(number: int) -> None:
    """Integers by three serialisers and three partitioners; the raw partitions differ, ours does not."""
    found = [
        *events_of(Side.EXPECTED, None, KeyType.INT, at_source(number)),
        *events_of(Side.OBSERVED, None, KeyType.INT, at_mongodb(number)),
        *events_of(Side.OBSERVED, PLAIN, KeyType.INT, at_search(number)),
    ]
    assert len(found) == 3
    assert len({event.key for event in found}) == 1
    assert len({partition_of(event.key, PARTITIONS) for event in found}) == 1


@pytest.mark.parametrize(("target", "raw"), [(None, at_mongodb), (PLAIN, at_search)])
def test_trap_40_every_pair_settles_although_both_topics_are_partitioned_otherwise(
    target: FeedSpec | None, raw: Callable[[int], RawRecord]
) -> None:
    """Two thousand rows through real decoders, sections and matchers: nobody waits in another partition than its partner."""
    spec = pipeline(field("total", FieldType.INT), target_feed=target)
    mapping = CompiledMapping(spec)
    arguments = {"fingerprints": {spec.id: mapping.fingerprint}, "life": "0"}
    matchers = [KeyMatcher(n, PARTITIONS, {spec.id: spec}, **arguments) for n in range(PARTITIONS)]  # type: ignore[arg-type]
    applied = [0] * PARTITIONS
    feeds: dict[tuple[Side, int], list[RawRecord]] = {}
    for number in range(2_000):
        source, observed = at_source(number), raw(number)
        feeds.setdefault((Side.EXPECTED, source.partition), []).append(source)
        feeds.setdefault((Side.OBSERVED, observed.partition), []).append(observed)
    topics = {Side.EXPECTED: TOPIC, Side.OBSERVED: spec.target.feed.topic}

    def apply(partition: int, one: Batch | Control) -> None:
        said = matchers[partition].apply(one, applied[partition], APPENDED)
        applied[partition] += 1
        assert not any(getattr(item, "key", None) for item in said)

    def control(end: bool) -> Control:
        states = [
            FeedState(
                pipeline=spec.id,
                side=int(side),
                feed=topics[side],
                feed_partition=number,
                partitions=len({place for where, place in feeds if where is side}),
                epoch=1,
                offset_from=0,
                offset_to=2_000 if end else 0,
                watermark=APPENDED + (10**9 if end else 0),
                caught_up=APPENDED + (10**9 if end else 0),
                delivery=NO_DELIVERY,
                delivery_clock=0,
                lost=[],
            )
            for side, number in feeds
        ]
        return Control(FORMAT, "one", APPENDED, states, [PipelineTimes(spec.id, 0, 1_000)])

    for partition in range(PARTITIONS):
        apply(partition, control(end=False))
    for (side, number), records in feeds.items():
        decoder, builders = (
            decoder_for(spec, side, mapping),
            [
                SectionBuilder(
                    pipeline=spec.id, side=side, feed=topics[side], feed_partition=number, epoch=1, mapping=mapping.fingerprint
                )
                for _ in range(PARTITIONS)
            ],
        )
        for one in records:
            for event in decoder.decode(one):
                assert isinstance(event, Event)
                builders[partition_of(event.key, PARTITIONS)].add(event, one.offset, APPENDED)
        for partition, builder in enumerate(builders):
            apply(partition, Batch(FORMAT, [builder.build(0, 2_000)], []))
    for partition in range(PARTITIONS):
        apply(partition, control(end=True))
    counters = [matcher.status("w", 0)[0].counters for matcher in matchers]
    assert sum(one.settled for one in counters) == sum(one.expected for one in counters) == 2_000
    assert all(one.settled for one in counters), "and every partition had its share"
