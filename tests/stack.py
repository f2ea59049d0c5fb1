"""What tests do with the real parts, over and over."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition

from gapwatch.embedded import EmbeddedStack, postgres_source_config
from gapwatch.embedded.ports import Port
from gapwatch.errors import GapwatchError

# What any wait may take longer than it should: three workers share two cores, and how soon something comes is its own question.
PATIENCE_SECONDS = 60.0
# A promise of how soon is one of a machine that does nothing else; beside other tests so much is added to it.
BESIDE_SECONDS = 20.0 if "PYTEST_XDIST_WORKER" in os.environ else 0.0
_CLAIMED: list[Port] = []


def free_port() -> int:
    """Return a port that no other test, and no part of any stack, takes as long as this process lives."""
    _CLAIMED.append(Port())
    return _CLAIMED[-1].number


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Return the condition's first true value; fail with `what` where there is none in time, or long after."""
    seconds += PATIENCE_SECONDS
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"Waited {seconds:.0f} s for {what}, in vain."
        time.sleep(0.05)


def execute(dsn: str, *statements: str) -> None:
    """Run statements in one transaction."""
    with psycopg.connect(dsn) as connection:
        for statement in statements:
            connection.execute(statement)


def ask(method: str, url: str, body: Any = None, seconds: float = 30) -> Any:
    """Send JSON to an HTTP interface and return what it answers; urllib's HTTPError for a refusal."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=seconds) as response:
        return json.loads(response.read() or b"null")


@contextmanager
def captured(stack: EmbeddedStack, database: str, tables: Sequence[str], **overrides: str) -> Iterator[str]:
    """Capture tables with Debezium while the block runs; yields the topic prefix. The slot is dropped at the end."""
    name = f"source-{database}"
    config = postgres_source_config(stack.postgres, database=database, prefix=database, tables=tables) | overrides
    client = stack.connect.client
    client.put_connector(name, config)
    client.wait_running(name)
    slot = config["slot.name"]
    until(lambda: slot_is_active(stack, slot), f"slot {slot}")
    try:
        yield database
    finally:
        try:
            client.delete(name)
        except GapwatchError:  # the test stopped Connect, or deleted it itself
            pass
        until(lambda: drop_slot(stack, slot), f"slot {slot} to be dropped")


def slot_is_active(stack: EmbeddedStack, slot: str) -> bool:
    with psycopg.connect(stack.postgres.dsn()) as connection:
        row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchone()
    return bool(row and row[0])


def drop_slot(stack: EmbeddedStack, slot: str) -> bool:
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        row = connection.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchone()
        if row is None:
            return True
        if row[0] is not None:
            connection.execute("SELECT pg_terminate_backend(%s)", (row[0],))
            return False
        connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    return True


def read_topic(stack: EmbeddedStack, topic: str, count: int, seconds: float = 60.0) -> list[Any]:
    """Return the first `count` records of a topic with a value, as decoded JSON in order of partition and offset."""
    consumer = Consumer({"bootstrap.servers": stack.kafka.bootstrap_servers, "group.id": "tests", "enable.auto.commit": False})
    found: list[Any] = []
    try:

        def partitions() -> list[int]:
            metadata = consumer.list_topics(topic, timeout=30).topics[topic]
            return sorted(metadata.partitions) if metadata.error is None else []

        numbers = until(partitions, f"topic {topic}", seconds)
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        end = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < end:
            for message in consumer.consume(500, timeout=0.2):
                value = message.value()
                if message.error() is None and value is not None:
                    found.append((message.partition(), message.offset(), json.loads(value)))
    finally:
        consumer.close()
    return [value for _, _, value in sorted(found, key=lambda item: item[:2])]
