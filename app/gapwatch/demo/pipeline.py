"""The pipeline of the demo, and its own word: what connector, lag, dead letters and counts say of it."""

from __future__ import annotations

from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from pymongo import MongoClient

from gapwatch.demo.load import TABLE, create_table
from gapwatch.embedded import EmbeddedStack, debezium_mongodb_sink_config, postgres_source_config

SOURCE, SINK = "orders-source", "orders-sink"
SINK_GROUP = f"connect-{SINK}"
PREFIX = "shop"
TOPIC = f"{PREFIX}.{TABLE}"
DEAD_LETTERS = f"{SINK}.dlq"
DATABASE, COLLECTION = "catalog", TOPIC.replace(".", "_")
CONNECTOR_SECONDS_MAX = 60.0


class Pipeline:
    """Orders from Postgres to MongoDB, through Debezium, Kafka and Debezium's own MongoDB sink. Asks nothing of Gapwatch."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._stack = stack
        self._admin: AdminClient | None = None
        self._sink: Consumer | None = None  # never subscribes: it only asks what the sink's group committed
        self._documents: MongoClient[dict[str, Any]] | None = None

    @property
    def dsn(self) -> str:
        return self._stack.postgres.dsn(database="shop")

    @property
    def uri(self) -> str:
        return self._stack.mongodb.uri

    def start(self) -> None:
        """Create and fill the table, and register both connectors."""
        with psycopg.connect(self._stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        create_table(self.dsn)
        connect, postgres, mongodb = self._stack.connect.client, self._stack.postgres, self._stack.mongodb
        connect.put_connector(SOURCE, postgres_source_config(postgres, database="shop", prefix=PREFIX, tables=[TABLE]))
        connect.wait_running(SOURCE, timeout_seconds=CONNECTOR_SECONDS_MAX)
        sink = debezium_mongodb_sink_config(mongodb, topic=TOPIC, database=DATABASE, dead_letter_topic=DEAD_LETTERS)
        connect.put_connector(SINK, sink)
        connect.wait_running(SINK, timeout_seconds=CONNECTOR_SECONDS_MAX)
        options = {"bootstrap.servers": self._stack.kafka.bootstrap_servers, "log_level": 0}
        self._admin = AdminClient(options)
        self._sink = Consumer({**options, "group.id": SINK_GROUP, "enable.auto.commit": False})
        self._documents = MongoClient(self.uri)

    def close(self) -> None:
        """Let go of the clients, before the servers end."""
        self._admin = None
        if self._sink is not None:
            self._sink.close()
        if self._documents is not None:
            self._documents.close()

    def says(self) -> dict[str, Any]:
        """Return what a healthy look at the pipeline shows."""
        status = self._stack.connect.client.status(SINK)
        source, target = self.counts()
        return {
            "connector_state": status["connector"]["state"],
            "task_states": [task["state"] for task in status["tasks"]],
            "lag": self.lag(),
            "dead_letter_records": self._dead_letters(),
            "source_count": source,
            "target_count": target,
        }

    def counts(self) -> tuple[int, int]:
        """Return the numbers of rows and documents."""
        assert self._documents is not None
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT count(*) FROM public.orders").fetchone()
        assert row is not None
        return int(row[0]), self._documents[DATABASE][COLLECTION].count_documents({})

    def lag(self) -> int:
        """Return how many records the sink has not yet committed."""
        assert self._sink is not None
        ends = self._ends(TOPIC)
        found = self._sink.committed([TopicPartition(TOPIC, number) for number in ends], timeout=10)
        return sum(ends[part.partition] - max(0, part.offset) for part in found)

    def sent(self) -> int:
        """Return how many records the source has sent to the sink."""
        return sum(self._ends(TOPIC).values())

    def _dead_letters(self) -> int:
        return sum(self._ends(DEAD_LETTERS).values())

    def _ends(self, topic: str) -> dict[int, int]:
        """Return the end of each partition; none of a topic that does not exist."""
        assert self._admin is not None
        topics = self._admin.list_topics().topics
        if topic not in topics:
            return {}
        asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in topics[topic].partitions}
        return {part.partition: int(end.result().offset) for part, end in self._admin.list_offsets(asked).items()}
