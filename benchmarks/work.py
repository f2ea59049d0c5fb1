"""The work of reference: Debezium envelopes of a table, and Debezium's events of the collection that a copier fills.

The copier loses and falsifies a few. Records have the sizes of the reference: 484 and 538 bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from gapwatch.model.pipeline import (
    DeliverySpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    KeyType,
    PipelineSpec,
    Settings,
    SourceSpec,
    StoreSpec,
    StoreType,
    TargetSpec,
    TopicsSpec,
)

SOURCE, TARGET = "bench.public.orders", "catalog.shop.orders"
PARTITIONS = 4
EVENTS_PARTITIONS = 4
PREFIX = "gapwatch"  # of our own topics
MISSING_EVERY, WRONG_EVERY = 1_000, 1_000
START_MS = 1_790_000_000_000
PER_SECOND = 2_000  # commits a second, in event time
STATUSES = ("new", "paid", "shipped", "done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Keys that never arrive, and keys that arrive with another value."""

    missing: frozenset[int]
    wrong: frozenset[int]


def settings(bootstrap_servers: str, database: str, prefix: str = PREFIX) -> Settings:
    """Return the settings of the benchmark's one pipeline: six mapped fields, resolved; `prefix` of Gapwatch's own topics."""
    kinds: tuple[tuple[str, FieldType, dict[str, Any]], ...] = (
        ("customer", FieldType.TEXT, {}),
        ("amount", FieldType.DECIMAL, {"scale": 2, "wire": "text"}),
        ("status", FieldType.TEXT, {}),
        ("quantity", FieldType.INT, {}),
        ("updated_at", FieldType.TIMESTAMP, {"wire": "iso"}),
        ("version", FieldType.INT, {}),
    )
    fields = tuple(FieldSpec(target=name, source=name, type=kind, maskable=False, **more) for name, kind, more in kinds)
    key = (KeyColumn(path="id", type=KeyType.INT),)
    spec = PipelineSpec(
        id="orders",
        source=SourceSpec(store="shop", table="public.orders", key=key, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=SOURCE)),
        target=TargetSpec(
            store="catalog",
            collection="catalog.orders",
            key=(KeyColumn(path="_id", type=KeyType.INT),),
            feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=TARGET),
        ),
        fields=fields,
        delivery=DeliverySpec(),
        grace_seconds=1.0,
        baseline="assume",
    )
    return Settings(
        bootstrap_servers=bootstrap_servers,
        topics=TopicsSpec(prefix=prefix, partitions=EVENTS_PARTITIONS),
        database=database,
        stores={
            "shop": StoreSpec(name="shop", type=StoreType.POSTGRES, url=""),
            "catalog": StoreSpec(name="catalog", type=StoreType.MONGODB, url=""),
        },
        pipelines={"orders": spec},
    )


def produce(bootstrap_servers: str, keys: int) -> Planted:
    """Fill both topics with one write of each key; return what is wrong on purpose."""
    create_topics(bootstrap_servers)
    producer, planted = _producer(bootstrap_servers), plant(keys)
    for number in range(keys):
        _send_source(producer, number)
        _send_target(producer, number, planted)
    producer.flush()
    return planted


def produce_side(bootstrap_servers: str, keys: int, topic: str) -> Planted:
    """Fill one of both topics, which exist."""
    producer, planted = _producer(bootstrap_servers), plant(keys)
    for number in range(keys):
        if topic == SOURCE:
            _send_source(producer, number)
        else:
            _send_target(producer, number, planted)
    producer.flush()
    return planted


def plant(keys: int) -> Planted:
    """Say which of so many keys are wrong on purpose."""
    return Planted(missing=frozenset(range(500, keys, MISSING_EVERY)), wrong=frozenset(range(700, keys, WRONG_EVERY)))


def create_topics(bootstrap_servers: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    forever = {"retention.ms": "-1"}  # appended by the work's own clock, which lies in the past
    topics = [NewTopic(name, num_partitions=PARTITIONS, replication_factor=1, config=forever) for name in (SOURCE, TARGET)]
    for future in admin.create_topics(topics).values():
        future.result()


def _producer(bootstrap_servers: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
    )


def _send_source(producer: Producer, number: int) -> None:
    _send(producer, SOURCE, number, *source_record(number))


def _send_target(producer: Producer, number: int, planted: Planted) -> None:
    if number not in planted.missing:
        _send(producer, TARGET, number, *target_record(number, wrong=number in planted.wrong))


def _send(producer: Producer, topic: str, number: int, key: bytes, value: bytes) -> None:
    while True:
        try:
            # Appended when it was written, by the clock of the work itself: due times count from the later of both.
            producer.produce(topic, key=key, value=value, partition=number % PARTITIONS, timestamp=written_ms(number))
            return
        except BufferError:
            producer.poll(0.1)


def written_ms(number: int) -> int:
    """Return the commit time of a write at the source, in milliseconds."""
    return START_MS + number * 1_000 // PER_SECOND


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def source_record(number: int) -> tuple[bytes, bytes]:
    """Return key and value of a write at the source."""
    time_ms, lsn = written_ms(number), 28_280_000 + number * 100
    after = {
        "id": number,
        "customer": f"customer-{number}",
        "amount": f"{number % 100_000}.50",
        "status": STATUSES[number % 4],
        "quantity": number % 97,
        "updated_at": datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "note": f"order note {number}",
        "version": 1 + number % 5,
    }
    source = {
        "version": "3.6.3.Final",
        "connector": "postgresql",
        "name": "pg",
        "ts_ms": time_ms,
        "snapshot": "false",
        "db": "shop",
        "sequence": f'["{lsn - 56}","{lsn}"]',
        "schema": "public",
        "table": "orders",
        "txId": 739 + number,
        "lsn": lsn,
        "xmin": None,
    }
    envelope = {"before": None, "after": after, "source": source, "transaction": None, "op": "c", "ts_ms": time_ms + 60}
    return _json({"id": number}), _json(envelope)


def target_record(number: int, *, wrong: bool) -> tuple[bytes, bytes]:
    """Return key and value of the copier's write, as Debezium's MongoDB connector tells of it."""
    time_ms = written_ms(number) + 300
    document = {
        "_id": {"$numberLong": str(number)},
        "customer": f"customer-{number}",
        "amount": {"$numberDecimal": f"{number % 100_000}.5"},
        "status": "lost" if wrong else STATUSES[number % 4],
        "quantity": number % 97,
        "updated_at": {"$date": written_ms(number)},
        "note": f"order note {number}",
        "version": 1 + number % 5,
    }
    source = {
        "version": "3.6.3.Final",
        "connector": "mongodb",
        "name": "mg",
        "ts_ms": time_ms,
        "snapshot": "false",
        "db": "shop",
        "collection": "orders",
        "ord": 1 + number,
        "lsid": None,
        "txnNumber": None,
        "wallTime": time_ms,
    }
    envelope = {
        "before": None,
        "after": _json(document).decode(),
        "updateDescription": None,
        "source": source,
        "op": "c",
        "ts_ms": time_ms + 60,
        "transaction": None,
    }
    return _json({"id": str(number)}), _json(envelope)


def end_time(keys: int) -> int:
    """Return the commit time of the last write, in milliseconds."""
    return written_ms(keys)


def records(keys: int) -> int:
    return 2 * keys - keys // MISSING_EVERY
