"""Copies topics badly, the way the world does: records twice, records out of order, on other partitions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.acceptance.background import Background
from tests.stack import until

AGAIN = ("again", b"1")
Place = tuple[str, int]  # topic, partition
Route = Callable[[Message], Sequence[Place]]


def create_topic(bootstrap_servers: str, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(30)


def key_of(message: Message) -> int | None:
    """Return the row's key of a Debezium record."""
    key = message.key()
    if key is None:
        return None
    identity = json.loads(key)
    return int(identity.get("payload", identity)["id"])


@dataclass
class Mirror(Background):
    """Sends each record of the topics to the places that the topic's route names. Runs in a thread."""

    bootstrap_servers: str
    routes: Mapping[str, Route]

    def __post_init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": self.bootstrap_servers, "enable.idempotence": True, "linger.ms": 0})

    def send(self, message: Message, place: Place, *, value: bytes | None = None) -> None:
        """Send a record (with another value where one is given), marked; returns when it is acknowledged."""
        topic, partition = place
        self._producer.produce(
            topic, value or message.value(), message.key(), partition, headers=[*(message.headers() or ()), AGAIN]
        )
        assert self._producer.flush(60) == 0

    def _run(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "mirror",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
            }
        )
        try:
            consumer.assign(self._places(consumer))
            while not self._stop.is_set():
                for message in consumer.consume(500, timeout=0.05):
                    if message.error() is None and AGAIN not in (message.headers() or ()):
                        for place in self.routes[message.topic() or ""](message):
                            self.send(message, place)
        finally:
            consumer.close()

    def _places(self, consumer: Consumer) -> list[TopicPartition]:
        def found() -> list[TopicPartition]:
            topics = consumer.list_topics(timeout=30).topics
            if not self.routes.keys() <= topics.keys():
                return []
            return [TopicPartition(topic, number, 0) for topic in self.routes for number in topics[topic].partitions]

        places: Any = until(lambda: self._stop.is_set() or found(), "the topics to be mirrored", 120)
        return [] if places is True else list(places)
