"""A copier from a Debezium topic to MongoDB: correct unless a fault plan tells it what to get wrong.

Correct means: it applies every record in order with majority, journaled writes, and commits its group's offsets after them.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from bson import Decimal128
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from pymongo import DeleteOne, MongoClient, ReplaceOne, UpdateOne, WriteConcern
from pymongo.errors import AutoReconnect, BulkWriteError, ConnectionFailure, OperationFailure

from tests.acceptance.background import Background

PLACEHOLDER = "__debezium_unavailable_value"
BATCH = 500
AWAY = frozenset({KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError.UNKNOWN_TOPIC_OR_PART})
ANSWER_SECONDS = 5.0  # a commit that is not answered by then is made once more

Operation = ReplaceOne[dict[str, Any]] | UpdateOne | DeleteOne
Rule = Callable[["Change"], list[tuple[float, Operation | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One record of the topic. ``operation`` is Debezium's letter; ``after`` None for a delete."""

    operation: str
    key: int
    after: Mapping[str, Any] | None
    before: Mapping[str, Any] | None

    @property
    def seq(self) -> int:
        """The number of the write in the workload; of a delete, the one that it removes (needs the before image)."""
        image = self.after or self.before or {}
        return int(image.get("seq") or 0)

    def applied(self) -> Operation:
        """Return the operation that a correct copier makes of this change."""
        if self.after is None:
            return DeleteOne({"_id": self.key})
        document = fields_of(self.after)
        if len(document) < len(self.after) - 1:  # an unchanged TOAST column is not in the event: leave it as it is
            return UpdateOne({"_id": self.key}, {"$set": document}, upsert=True)
        return ReplaceOne({"_id": self.key}, document, upsert=True)


def fields_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document's fields for a row image (decimals come as text), without what the event does not carry."""
    fields: dict[str, Any] = {}
    for name, value in image.items():
        if name == "id" or value == PLACEHOLDER:
            continue
        fields[name] = Decimal128(Decimal(value)) if name == "amount" and value is not None else value
    return fields


@dataclass
class Copier(Background):
    """Runs in a thread. ``rules`` maps a write's number to what to do instead of applying it.

    A rule returns operations with delays in seconds; (0, None) stands for doing nothing.
    """

    bootstrap_servers: str
    topic: str
    group: str
    uri: str
    database: str
    collection: str
    rules: dict[Any, Rule] = field(default_factory=dict)
    sink: Callable[[Change], Operation] = Change.applied
    applied: int = 0
    _running: threading.Event = field(default_factory=threading.Event)
    _idle: threading.Event = field(default_factory=threading.Event)
    _delayed: list[tuple[float, int, Operation]] = field(default_factory=list)
    _number: int = 0
    _released: int = 0  # the newest number that is delayed no more
    _copied: dict[tuple[str, int], int] = field(default_factory=dict)  # up to where all is applied, and not yet committed
    _asked: float = 0.0  # since when an answer to a commit is waited for; 0: none is

    def start(self) -> None:
        self._running.set()
        super().start()

    def pause(self) -> None:
        """Return once nothing is read any more: what is written from now on stays unread until :meth:`resume`."""
        self._running.clear()
        self._idle.clear()
        if self._thread is not None and self._thread.is_alive():
            assert self._idle.wait(90), "The copier did not pause within 90 s."

    def resume(self) -> None:
        self._running.set()

    def release(self) -> None:
        """Write now what was read until now, and was to be written later."""
        self._released = self._number

    def stop(self) -> None:
        self._stop.set()
        self._running.set()
        super().stop()

    @property
    def delayed(self) -> int:
        return len(self._delayed)

    def _run(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": self.group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 250,
                "topic.metadata.refresh.interval.ms": 1_000,  # a table without rows has no topic yet
                "error_cb": lambda error: None,  # a broker that is away comes back
                "on_commit": self._answered,
                "log_level": 0,
            }
        )
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri, retryWrites=True)
        try:
            consumer.subscribe([self.topic])
            while not self._stop.is_set():
                self._wait_until_running()
                messages = consumer.consume(BATCH, timeout=0.05)
                readable = [message for message in messages if _readable(message)]
                self._copy(client, readable)
                self._copied |= {_place(message): (message.offset() or 0) + 1 for message in readable}
                self._commit(consumer)
        finally:
            consumer.close()
            client.close()

    def _wait_until_running(self) -> None:
        while not self._running.is_set():
            self._idle.set()
            self._running.wait(0.05)

    def _commit(self, consumer: Consumer) -> None:
        """Commit what was applied, until the group takes it from us; never waiting: a rebalance goes on only while we poll.

        By its offsets: a commit of "what was read" means what was read by the time it is sent, which may be not applied yet.
        """
        if not self._copied or time.monotonic() < self._asked + ANSWER_SECONDS:
            return
        ours = {(at.topic, at.partition) for at in consumer.assignment()}
        self._copied = {place: offset for place, offset in self._copied.items() if place in ours}
        if not self._copied:
            return
        try:
            offsets = [TopicPartition(*place, offset) for place, offset in self._copied.items()]
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException:  # nobody to ask: what is another's by now is read and applied again
            return
        self._asked = time.monotonic()

    def _answered(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._asked = 0.0
        for at in partitions if error is None else ():
            place = at.topic, at.partition
            if at.error is None and self._copied.get(place) == at.offset:
                self._copied.pop(place, None)

    def _copy(self, client: MongoClient[dict[str, Any]], messages: list[Message]) -> None:
        operations: list[Operation] = []
        for message in messages:
            change = decode(message)
            if change is None:
                continue
            rule = self.rules.get((change.operation, change.key)) or self.rules.get(change.seq)
            if rule is None:
                operations.append(self.sink(change))
                continue
            for delay, operation in rule(change):
                if operation is None:
                    continue
                if delay:
                    self._number += 1
                    heapq.heappush(self._delayed, (time.monotonic() + delay, self._number, operation))
                else:
                    operations.append(operation)
        while self._delayed and (self._delayed[0][0] <= time.monotonic() or self._delayed[0][1] <= self._released):
            operations.append(heapq.heappop(self._delayed)[2])
        if operations:
            self._write(client, operations)
            self.applied += len(operations)

    def _write(self, client: MongoClient[dict[str, Any]], operations: list[Operation]) -> None:
        """Write all, again and again while MongoDB is away: every operation may be repeated without harm."""
        concern = WriteConcern(w="majority", j=True)
        target = client[self.database].get_collection(self.collection, write_concern=concern)
        while not self._stop.is_set():
            try:
                target.bulk_write(operations, ordered=True)
                return
            except (AutoReconnect, ConnectionFailure, BulkWriteError, OperationFailure):
                time.sleep(0.3)


def _place(message: Message) -> tuple[str, int]:
    return message.topic() or "", message.partition() or 0


def _readable(message: Message) -> bool:
    error = message.error()
    if error is not None and not error.retriable() and error.code() not in AWAY:
        raise KafkaException(error)
    return error is None


def decode(message: Message) -> Change | None:
    """Return the change of one record; None for a tombstone, and for what is no JSON (as a sink with errors.tolerance=all)."""
    raw, key = message.value(), message.key()
    if raw is None or key is None:
        return None
    try:
        value, identity = json.loads(raw), json.loads(key)
    except ValueError:
        return None
    value, identity = value.get("payload", value), identity.get("payload", identity)
    if value["op"] == "t":
        return None
    return Change(operation=value["op"], key=int(identity["id"]), after=value["after"], before=value.get("before"))
