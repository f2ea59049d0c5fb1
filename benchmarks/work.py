"""The work of reference: Debezium envelopes of a table, and the change events of a copier that loses and falsifies a few."""

from __future__ import annotations

import json
from dataclasses import dataclass
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

SOURCE, TARGET = "bench.public.orders", "gapwatch.feed.orders.target"
PARTITIONS = 4
EVENTS_PARTITIONS = 4
MISSING_EVERY, WRONG_EVERY = 1_000, 1_000
START_MS = 1_790_000_000_000
PER_SECOND = 2_000  # commits a second, in event time


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Keys that never arrive, and keys that arrive with another value."""

    missing: frozenset[int]
    wrong: frozenset[int]


def settings(bootstrap_servers: str, database: str) -> Settings:
    """Return the settings of the benchmark's one pipeline: six mapped fields, resolved."""
    kinds: tuple[tuple[str, FieldType, dict[str, Any]], ...] = (
        ("customer", FieldType.TEXT, {}),
        ("status", FieldType.TEXT, {}),
        ("amount", FieldType.DECIMAL, {"scale": 2, "wire": "text"}),
        ("quantity", FieldType.INT, {}),
        ("placed", FieldType.TIMESTAMP, {"wire": "epoch_ms"}),
        ("note", FieldType.TEXT, {}),
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
            feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic=TARGET),
        ),
        fields=fields,
        delivery=DeliverySpec(),
        grace_seconds=1.0,
        baseline="assume",
    )
    return Settings(
        bootstrap_servers=bootstrap_servers,
        topics=TopicsSpec(partitions=EVENTS_PARTITIONS),
        database=database,
        stores={
            "shop": StoreSpec(name="shop", type=StoreType.POSTGRES, url=""),
            "catalog": StoreSpec(name="catalog", type=StoreType.MONGODB, url=""),
        },
        pipelines={"orders": spec},
    )


def produce(bootstrap_servers: str, keys: int) -> Planted:
    """Fill both topics with one write of each key; return what is wrong on purpose."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    # The work has its own clock: by the machine's its records may be older than any retention.
    topics = [
        NewTopic(name, num_partitions=PARTITIONS, replication_factor=1, config={"retention.ms": "-1"})
        for name in (SOURCE, TARGET)
    ]
    for future in admin.create_topics(topics).values():
        future.result()
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
    )
    missing = frozenset(range(500, keys, MISSING_EVERY))
    wrong = frozenset(range(700, keys, WRONG_EVERY))
    for number in range(keys):
        _send(producer, SOURCE, number, *_source(number))
        if number not in missing:
            _send(producer, TARGET, number, *_target(number, wrong=number in wrong))
    producer.flush()
    return Planted(missing=missing, wrong=wrong)


def _send(
    producer: Producer, topic: str, number: int, key: bytes, value: bytes, headers: list[tuple[str, str | bytes | None]]
) -> None:
    while True:
        try:
            # Appended when it was written, by the clock of the work itself: due times count from the later of both.
            at = START_MS + number * 1_000 // PER_SECOND
            producer.produce(topic, key=key, value=value, headers=headers, partition=number % PARTITIONS, timestamp=at)
            return
        except BufferError:
            producer.poll(0.1)


def _values(number: int) -> tuple[str, str, str, int, int, str]:
    return (
        f"customer {number % 5_000}",
        ("new", "paid", "packed", "shipped")[number % 4],
        f"{number % 100_000}.{number % 100:02d}",
        1 + number % 9,
        START_MS + number,
        f"note for order {number}, handled with care",
    )


def _source(number: int) -> tuple[bytes, bytes, list[tuple[str, str | bytes | None]]]:
    customer, status, amount, quantity, placed, note = _values(number)
    time_ms = START_MS + number * 1_000 // PER_SECOND
    lsn = 10_000_000 + number * 100
    after = {
        "id": number,
        "customer": customer,
        "status": status,
        "amount": amount,
        "quantity": quantity,
        "placed": placed,
        "note": note,
    }
    source = {
        "version": "3.6.3.Final",
        "connector": "postgresql",
        "name": "bench",
        "ts_ms": time_ms,
        "snapshot": "false",
        "db": "bench",
        "sequence": f'["{lsn - 50}","{lsn}"]',
        "schema": "public",
        "table": "orders",
        "txId": number,
        "lsn": lsn,
        "xmin": None,
    }
    envelope = {"before": None, "after": after, "source": source, "transaction": None, "op": "c", "ts_ms": time_ms + 20}
    return json.dumps({"id": number}).encode(), json.dumps(envelope).encode(), []


def _target(number: int, *, wrong: bool) -> tuple[bytes, bytes, list[tuple[str, str | bytes | None]]]:
    customer, status, amount, quantity, placed, note = _values(number)
    time_ms = START_MS + number * 1_000 // PER_SECOND + 300
    identifier = {"_id": {"$numberInt": str(number)}}
    document = {
        **identifier,
        "customer": customer if not wrong else "somebody else",
        "status": status,
        "amount": {"$numberDecimal": amount},
        "quantity": {"$numberInt": str(quantity)},
        "placed": {"$date": {"$numberLong": str(placed)}},
        "note": note,
    }
    headers: list[tuple[str, str | bytes | None]] = [
        ("gapwatch-op", b"insert"),
        ("gapwatch-time", str(time_ms).encode()),
        ("gapwatch-position", f"{(time_ms // 1000) << 32 | number}:0".encode()),
    ]
    return json.dumps(identifier).encode(), json.dumps(document).encode(), headers


def end_time(keys: int) -> int:
    """Return the commit time of the last write, in milliseconds."""
    return START_MS + keys * 1_000 // PER_SECOND


def records(keys: int) -> int:
    return 2 * keys - keys // MISSING_EVERY
