"""Two processes that may capture one feed, of which the first is frozen where it hurts most, and thaws when the other writes."""

from __future__ import annotations

import asyncio
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message
from pymongo import MongoClient

from gapwatch.clock import SystemClock
from gapwatch.embedded import EmbeddedStack
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import TopicAdmin, TopicPlan
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.pipeline import FieldType, PipelineSpec, Settings, TopicsSpec
from gapwatch_connectors.mongodb.feed import MongoChangeStream, first_batch
from tests.stack import until
from tests.unit.core.samples import field, pipeline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PARTITIONS = 2


@dataclass
class Feed:
    """A captured collection, its topic, the ledger, and the processes that may capture it."""

    settings: Settings
    spec: PipelineSpec
    ledger: SqlLedger
    uri: str
    client: MongoClient[dict[str, Any]]
    directory: Path
    processes: ExitStack

    @property
    def topic(self) -> str:
        return self.spec.target.feed.topic

    @property
    def token(self) -> Any:
        return (self.ledger.fact(f"resume/{self.topic}") or {}).get("token")

    def insert(self, *numbers: int) -> None:
        database, _, collection = self.spec.target.collection.partition(".")
        self.client[database][collection].insert_many([{"_id": number} for number in numbers])

    def holder(self, name: str, when: str = "") -> subprocess.Popen[bytes]:
        log = self.processes.enter_context((self.directory / f"{name}.log").open("wb"))
        command = [sys.executable, "-m", "tests.integration.capture_process", str(self.directory / "given"), name]
        process = subprocess.Popen([*command, *([when] if when else [])], stdout=log, stderr=subprocess.STDOUT)
        self.processes.callback(process.wait, 30)
        self.processes.callback(process.kill)
        return process

    def said(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def records(self, isolation: str = "read_committed") -> list[Message]:
        """Return everything that the topic holds now, of all partitions up to their ends."""
        return asyncio.run(self._records())

    async def _records(self) -> list[Message]:
        places = [Partition(self.topic, number) for number in range(PARTITIONS)]
        wanted = (await OffsetReader(self.settings, SystemClock()).log_ends(places)).ends
        consumer = RawConsumer(self.settings, client_id="look", options={"enable.partition.eof": True})
        found: list[Message] = []
        ends: dict[Partition, int] = {}
        try:
            await consumer.assign(dict.fromkeys(places, 0))
            async with asyncio.timeout(60):
                while any(ends.get(at, -1) < end for at, end in wanted.items()):
                    polled = await consumer.consume(1000)
                    assert not polled.faults
                    found += polled.messages
                    ends |= polled.ends
        finally:
            await consumer.close()
        return found

    def events(self) -> Counter[int]:
        keys = [message.key() for message in self.records()]
        return Counter(int(key.decode().split('"')[-2]) for key in keys if key is not None)


@pytest.fixture
def feed(stack: EmbeddedStack, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Feed]:
    name = unique("frozen")
    topic = f"{name}.feed.orders.target"
    made = pipeline(field("total", FieldType.INT))
    target = replace(made.target, collection=f"{name}.orders", feed=replace(made.target.feed, topic=topic))
    spec = replace(made, target=target)
    settings = Settings(
        bootstrap_servers=stack.kafka.bootstrap_servers, topics=TopicsSpec(prefix=name), pipelines={spec.id: spec}
    )
    asyncio.run(
        TopicAdmin(settings).ensure([TopicPlan(name=topic, partitions=PARTITIONS, settings={"cleanup.policy": "delete"})])
    )
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    (tmp_path / "given").write_bytes(pickle.dumps((settings, spec, database, stack.mongodb.uri)))
    with ExitStack() as opened:
        ledger = open_ledger(database)
        opened.callback(ledger.close)
        client: MongoClient[dict[str, Any]] = opened.enter_context(MongoClient(stack.mongodb.uri))
        client[name].create_collection("orders")
        yield Feed(settings, spec, ledger, stack.mongodb.uri, client, tmp_path, opened.enter_context(ExitStack()))


def stopped(process: subprocess.Popen[bytes]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("when", ["before", "after"])
def test_lesson_40_what_a_frozen_holder_writes_late_is_refused_by_kafka_and_its_token_by_the_ledger(
    feed: Feed, when: str
) -> None:
    """Between its last look at the lease and its write; and between its write and the storing of its token."""
    first = feed.holder("first", when)
    until(lambda: feed.token is not None, "the stream of the first to be open")
    feed.insert(1)
    until(lambda: feed.events() == {1: 1}, "the first event")
    feed.insert(2)
    until(lambda: stopped(first), "the first to be frozen")
    second = feed.holder("second")
    feed.insert(3)
    repeated = 1 if when == "before" else 2  # what was committed without its token is read once more: its position tells
    until(lambda: feed.events() == {1: 1, 2: repeated, 3: 1}, "the second to go on where the first had stored its token")
    feed.insert(4)
    until(lambda: feed.events()[4] == 1, "another event")
    assert second.poll() is None
    kept = feed.ledger.fact(f"resume/{feed.topic}") or {}
    first.send_signal(signal.SIGCONT)
    why, other = ("producer_fenced", "was taken by another")[:: 1 if when == "before" else -1]
    until(lambda: all(word in feed.said("first") for word in ("lease_lost", why)), "the first to notice")
    assert other not in feed.said("first")
    assert (feed.ledger.fact(f"resume/{feed.topic}") or {})["watermark"] >= kept["watermark"]
    assert "lease_lost" not in feed.said("second")
    second.send_signal(signal.SIGTERM)
    assert second.wait(80) == 0
    feed.insert(5)  # the first, which was there all the time, goes on where the second was
    until(lambda: feed.events()[5] == 1, "what comes after")
    assert feed.events() == {1: 1, 2: repeated, 3: 1, 4: 1, 5: 1}
    assert feed.ledger.findings("orders") == []
    positions = [dict(message.headers() or [])["gapwatch-position"] for message in feed.records() if message.key() is not None]
    assert len(set(positions)) == 5, "a repetition has the position of what it repeats"


def test_m26_a_topic_of_before_transactions_is_gone_on_with_beside_an_older_process(feed: Feed) -> None:
    """An upgrade in place: its records, the token that was stored under no lease, and one that still writes as it used to."""

    async def as_before(number: int) -> None:
        producer = AckedProducer(feed.settings, client_id="older")
        await producer.start()
        headers = [("gapwatch-op", b"insert"), ("gapwatch-time", b"1"), ("gapwatch-position", b"%d:0" % number)]
        await producer.send(feed.topic, b'{"_id": {"$numberInt": "%d"}}' % number, b"{}", headers=headers, partition=0)
        await producer.flush()
        await producer.close()

    async def token() -> bytes:
        stream = MongoChangeStream(feed.spec, feed.uri)
        batch = await first_batch(stream)
        await stream.close()
        return batch.token

    asyncio.run(as_before(1))
    feed.ledger.set_fact(f"resume/{feed.topic}", {"token": asyncio.run(token()).decode(), "watermark": 1})
    feed.insert(2)
    feed.holder("newer")
    until(lambda: feed.events() == {1: 1, 2: 1}, "what came since the token")
    asyncio.run(as_before(3))
    feed.insert(4)
    until(lambda: feed.events() == {1: 1, 2: 1, 3: 1, 4: 1}, "both of them")
    assert "lease_lost" not in feed.said("newer")
