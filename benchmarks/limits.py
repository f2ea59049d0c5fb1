"""The raw limits: read both topics to their end, ``C`` without looking at a record, ``R`` with a typed decode of each.

``python -m benchmarks.limits C|R SERVERS RECORDS SOURCE TARGET PARTITIONS``; nothing of the product is imported, so that its
start-up is not in the limit.
"""

from __future__ import annotations

import sys

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks.figures import report


class Row(msgspec.Struct):
    id: int
    customer: str
    amount: str
    status: str
    quantity: int
    updated_at: str
    version: int


class Change(msgspec.Struct):
    after: Row | None
    op: str


class DocumentChange(msgspec.Struct):
    after: str | None
    op: str


class Amount(msgspec.Struct):
    text: str = msgspec.field(name="$numberDecimal")


class Moment(msgspec.Struct):
    ms: int = msgspec.field(name="$date")


class Document(msgspec.Struct):
    customer: str
    amount: Amount
    status: str
    quantity: int
    updated_at: Moment
    version: int


class Key(msgspec.Struct):
    id: str


def consume(servers: str, total: int, source: str, target: str, partitions: int, *, decode: bool) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "limit",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 20,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for topic in (source, target) for number in range(partitions)])
    change, document_change = msgspec.json.Decoder(Change).decode, msgspec.json.Decoder(DocumentChange).decode
    document, key = msgspec.json.Decoder(Document).decode, msgspec.json.Decoder(Key).decode
    read = 0
    while read < total:
        messages = consumer.consume(10_000, timeout=0.05)
        read += len(messages)
        if not decode:
            continue
        for message in messages:
            if message.topic() == source:
                change(message.value())
            else:
                key(message.key())
                document(document_change(message.value()).after or "")
    consumer.close()


if __name__ == "__main__":
    name, servers, records, source, target, partitions = sys.argv[1:]
    consume(servers, int(records), source, target, int(partitions), decode=name == "R")
    report(int(records))
