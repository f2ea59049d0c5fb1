"""Topics that an application writes, without Debezium: JSON documents, wrapped by some of their producers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from pymongo import MongoClient

from gapwatch.core.batches import unpack
from gapwatch.core.keys import KeyCodec
from gapwatch.embedded import EmbeddedStack
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch.model.stream import Batch, Operation, Side
from tests.acceptance.mirror import create_topic
from tests.acceptance.scenery import CREATE, TABLE, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import during, record_at
from tests.stack import execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

WRAPPERS = ["transaction", "transactions"]


def bare(*rows: Mapping[str, Any]) -> list[Any]:
    return list(rows)


def single(*rows: Mapping[str, Any]) -> list[Any]:
    return [{"transaction": row} for row in rows]


def several(*rows: Mapping[str, Any]) -> list[Any]:
    return [{"transactions": rows}]


SHAPES = (bare, single, several)


@dataclass
class Shop:
    """An application that writes each row to its table, then to a topic; and another that writes the topic's documents."""

    stack: EmbeddedStack
    dsn: str
    database: str
    service: Service

    @property
    def topic(self) -> str:
        return f"{self.database}.plain"

    def write(self, shape: Any, *keys: int, lost: int = 0) -> list[dict[str, Any]]:
        """Write rows, and send them in one shape; the document of `lost` is never written."""
        rows = [{"id": key, "seq": key, "v": f"v{key}", "amount": f"{key}.50", "big": None} for key in keys]
        for row in rows:
            values = f"({row['id']}, {row['seq']}, '{row['v']}', {row['amount']})"
            execute(self.dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES {values}")
        made = [{"_id": row["id"], **{name: row[name] for name in ("seq", "v", "amount", "big")}} for row in rows]
        client: MongoClient[dict[str, Any]] = MongoClient(self.stack.mongodb.uri)
        try:
            client.admin.command("ping")  # without a delivery what is late is a gap: it is connected before anything is sent
            self.send(*shape(*rows))
            client[self.database].orders.insert_many([one for one in made if one["_id"] != lost])
        finally:
            client.close()
        return rows

    def send(self, *values: Any) -> None:
        producer = Producer({"bootstrap.servers": self.stack.kafka.bootstrap_servers})
        for value in values:
            producer.produce(self.topic, json.dumps(value))
        assert producer.flush(60) == 0

    def events(self, key: int) -> list[tuple[int, bytes]]:
        """Return operation and digest of every expected event of a key that ingest made."""
        wanted = KeyCodec([KeyColumn(path="id", type=KeyType.INT)]).encode([key])
        topic, found = f"gw-{self.database}.events", list[tuple[int, bytes]]()
        consumer = Consumer({"bootstrap.servers": self.stack.kafka.bootstrap_servers, "group.id": "tests"})
        try:
            numbers = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            ends = {number: consumer.get_watermark_offsets(TopicPartition(topic, number))[1] for number in numbers}
            consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
            while ends:
                for message in consumer.consume(500, timeout=1):
                    record = unpack(message.value() or b"")
                    for section in record.sections if isinstance(record, Batch) else ():
                        if section.side == Side.EXPECTED:
                            rows = zip(section.keys, section.operations, section.digests, strict=True)
                            found += [(operation, digest) for one, operation, digest in rows if one == wanted]
                    if (message.offset() or 0) + 1 >= ends.get(message.partition() or 0, 0):
                        ends.pop(message.partition() or 0, None)
            return found
        finally:
            consumer.close()


@pytest.fixture
def shop(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> Iterator[Shop]:
    dsn = stack.postgres.dsn(postgres_database)
    execute(dsn, CREATE)
    config = configuration(stack, dsn, postgres_database, "")
    topic = f"{postgres_database}.plain"
    orders = config["pipelines"]["orders"]
    orders["source"]["feed"] = {"topic": topic, "wrappers": WRAPPERS}
    orders["delivery"] = "none"
    create_topic(stack.kafka.bootstrap_servers, topic, 1)
    service = Service(tmp_path, config)
    service.start()
    try:
        service.wait_healthy()
        yield Shop(stack, dsn, postgres_database, service)
        service.check_alive()
    finally:
        service.stop()


def test_a11_three_shapes_on_one_topic_are_one_canonical_event(shop: Shop) -> None:
    """The same row in each shape is the same event; and a lost document of each is one gap, with its record as evidence."""
    rows = shop.write(bare, 1)
    shop.send(*single(*rows), *several(*rows))
    wait_for(lambda: len(shop.events(1)) == 3, "three events", 30)
    (event, *others) = shop.events(1)
    assert event[0] == Operation.UPSERT
    assert others == [event, event]
    lost = [10, 21, 32]
    for number, (shape, key) in enumerate(zip(SHAPES, lost, strict=True)):
        shop.write(shape, *range(10 * number + 10, 10 * number + 15), lost=key)
    wait_for(lambda: {gap["key"]["id"] for gap in shop.service.gaps()} == {*lost}, "the gaps", 60)
    gaps = shop.service.gaps()
    assert sorted((gap["key"]["id"], gap["kind"], gap["cause"], gap["detector"]) for gap in gaps) == [
        (key, "missing", "never_written", "stream") for key in lost
    ]
    for gap in gaps:
        (row,) = [row for row in gap["evidence"] if row["side"] == "expected"]
        said = json.loads(record_at(shop.stack.kafka.bootstrap_servers, row).value() or b"")
        assert f'"id": {gap["key"]["id"]}' in json.dumps(said)
    view = shop.service.view()
    assert [(feed["side"], feed["topic"]) for feed in view["feeds"] if feed["side"] == "expected"] == [("expected", shop.topic)]


def test_a_plain_topic_that_is_quiet_stays_known_and_its_deletes_are_writes(shop: Shop) -> None:
    """No heartbeat goes through it: what had been appended when its end was fetched is read, and that is its time."""
    begun = shop.write(bare, 1)
    shop.service.wait_healthy()
    during(35, partial(_is_healthy, shop.service))  # longer than stall_after, without a record
    execute(shop.dsn, f"DELETE FROM {TABLE} WHERE id = 1")
    producer = Producer({"bootstrap.servers": shop.stack.kafka.bootstrap_servers})
    producer.produce(shop.topic, None, key=json.dumps({"id": begun[0]["id"]}))
    producer.flush(60)
    gaps = wait_for(shop.service.gaps, "the gap", 30)
    assert [(gap["key"]["id"], gap["kind"]) for gap in gaps] == [(1, "undeleted")]


def _is_healthy(service: Service) -> None:
    assert service.view()["status"] == "HEALTHY"
