"""What an engineer writes in an evening: a consumer, typed decoding with msgspec, two dicts. Nothing is kept anywhere."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks.limits import Change, Document, DocumentChange, Key
from benchmarks.peers.programs.answer import Answer, Arguments, arguments

PARTITIONS = 4


def join(options: Arguments, answer: Answer) -> None:
    """Read both topics from their beginning; fill `answer`."""
    consumer = Consumer(
        {
            "bootstrap.servers": options.servers,
            "group.id": options.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 20,
        }
    )
    topics = (options.source, options.target)
    consumer.assign([TopicPartition(topic, number, 0) for topic in topics for number in range(PARTITIONS)])
    change, document_change = msgspec.json.Decoder(Change).decode, msgspec.json.Decoder(DocumentChange).decode
    document, key_of = msgspec.json.Decoder(Document).decode, msgspec.json.Decoder(Key).decode
    expected: dict[int, tuple[Any, ...]] = {}
    observed: dict[int, tuple[Any, ...]] = {}
    while options.follow or answer.read < options.total:
        messages = consumer.consume(10_000, timeout=0.05)
        for message in messages:
            if message.topic() == options.source:
                after = change(message.value()).after
                assert after is not None
                key = after.id
                moment = round(datetime.fromisoformat(after.updated_at).timestamp() * 1_000)
                found = (after.customer, Decimal(after.amount), after.status, after.quantity, moment, after.version)
                mine, theirs = expected, observed
            else:
                key, copy = int(key_of(message.key()).id), document(document_change(message.value()).after or "")
                amount, moment = Decimal(copy.amount.text), copy.updated_at.ms
                found = (copy.customer, amount, copy.status, copy.quantity, moment, copy.version)
                mine, theirs = observed, expected
            other = theirs.pop(key, None)
            if other is None:
                mine[key] = found
            elif other != found:
                answer.wrong.add(key)
        answer.read += len(messages)
    answer.missing, answer.extra = set(expected), set(observed)


if __name__ == "__main__":
    given, result = arguments(), Answer()
    if given.follow:
        result.tell()
    join(given, result)
    result.end()
