"""An indexer from a Debezium topic to OpenSearch: correct unless it is told in which way a bulk shall go wrong.

Correct means: it applies every record in order, reads the result of every item, and commits its group's offsets after that. It
may publish what each item did as acks, as any indexer in Python would.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import Consumer, Message, Producer

from gapwatch_connectors.opensearch.acks import acks_of, heartbeat
from gapwatch_connectors.opensearch.connection import encode
from tests.acceptance.background import Background
from tests.acceptance.copier import BATCH, Change, _readable, decode
from tests.stack import ask

BEAT_SECONDS = 0.5


class Fault(Enum):
    LOST = "lost"  # the item never leaves the indexer
    REJECTED = "rejected"  # the index refuses the item, with status 200 for the bulk, and nobody looks
    FALSIFIED = "falsified"
    TWICE = "twice"
    OVERLOADED = "429"  # the whole bulk is refused, nothing of it is applied, and the indexer goes on
    TOO_LARGE = "413"
    AWAY = "503"
    RETRIED = "retried"  # the bulk is refused first, and sent again
    CONFLICT = "conflict"  # a `create` of what is there: refused with a version conflict
    NOT_THERE = "not there"  # an `update` of what is not: refused as missing
    OLDER = "older"  # what was before is written again, after the newest
    COMMITTED_FIRST = "committed first"  # the offset was committed, and the bulk never came to be
    MISROUTED = "misrouted"  # under a routing that is not the row's


# What a fault makes of a document, as a kind of gap ("": none).
KINDS: Mapping[Fault, str] = {
    Fault.CONFLICT: "stale",
    Fault.OLDER: "stale",
    Fault.OVERLOADED: "missing",
    Fault.TOO_LARGE: "missing",
    Fault.AWAY: "missing",
    Fault.COMMITTED_FIRST: "missing",
    Fault.NOT_THERE: "missing",
    Fault.RETRIED: "",
}
OF_UPDATES = (Fault.CONFLICT, Fault.OLDER)  # they show on a document that was there already
WHOLE = (Fault.OVERLOADED, Fault.TOO_LARGE, Fault.AWAY)


def lines_of(
    where: Mapping[str, Any], document: Mapping[str, Any], fault: Fault | None, *, before: Mapping[str, Any], number: str
) -> list[Mapping[str, Any]]:
    """Return the lines of a bulk that index a document, as that goes wrong; `number` is a field that is mapped as a number."""
    if fault is Fault.REJECTED:
        document = {**document, number: "not a number"}
    if fault is Fault.FALSIFIED:
        document = {**document, "v": "false"}
    lines: list[Mapping[str, Any]] = [{"index": where}, document]
    if fault is Fault.CONFLICT:
        lines = [{"create": where}, document]
    if fault is Fault.NOT_THERE:
        lines = [{"update": where}, {"doc": document}]
    if fault is Fault.OLDER and before:
        lines += [{"index": where}, before]
    return lines * 2 if fault is Fault.TWICE else lines


def send(url: str, lines: Sequence[Mapping[str, Any]], refused: list[str]) -> Any:
    """Send a bulk, note which of its items were refused, and why; return the answer."""
    answer = ask("POST", f"{url}/_bulk", b"".join(encode(line) + b"\n" for line in lines))
    for item in answer["items"]:
        [said] = item.values()
        if "error" in said:
            refused.append(said["error"]["type"])
    return answer


@dataclass
class Indexer(Background):
    """Runs in a thread. ``faults`` maps a row's key to what goes wrong with it, for as long as it stands there."""

    bootstrap_servers: str
    topic: str
    group: str
    url: str
    index: str
    routing: str = ""
    version: str = ""  # the column that is written as the documents' external version
    acks_topic: str = ""
    faults: dict[int, Fault] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def _run(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": self.group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
                "topic.metadata.refresh.interval.ms": 1_000,
            }
        )
        producer = Producer({"bootstrap.servers": self.bootstrap_servers, "enable.idempotence": True, "linger.ms": 0})
        try:
            consumer.subscribe([self.topic])
            next_beat = 0.0
            while not self._stop.is_set():
                begun = _now_ms()
                messages = [message for message in consumer.consume(BATCH, timeout=0.05) if _readable(message)]
                if messages and self._has(messages, Fault.COMMITTED_FIRST):
                    consumer.commit(asynchronous=False)
                    messages = []
                self._index(producer, messages)
                if messages:
                    consumer.commit(asynchronous=False)
                if self.acks_topic and time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + BEAT_SECONDS
                    self._send(producer, [(b"", heartbeat(begun, self.group, delivered=self._delivered(consumer)))])
        finally:
            consumer.close()

    def _delivered(self, consumer: Consumer) -> dict[str, dict[int, int]]:
        """Return the next offset of each partition that is ours: what was read is indexed by now."""
        places: dict[str, dict[int, int]] = {}
        for at in consumer.committed(consumer.assignment(), timeout=10):
            if at.offset >= 0:
                places.setdefault(at.topic, {})[at.partition] = at.offset
        return places

    def _has(self, messages: Sequence[Message], *faults: Fault) -> list[Fault]:
        """Return which of these faults the bulk of these records has."""
        changes = [change for message in messages if (change := decode(message)) is not None]
        return [fault for change in changes if (fault := self.faults.get(change.key)) in faults]

    def _index(self, producer: Producer, messages: Sequence[Message]) -> None:
        body: list[Mapping[str, Any]] = []
        for message in messages:
            change = decode(message)
            if change is not None:
                body += self._lines(change)
        whole = self._has(messages, *WHOLE, Fault.RETRIED)
        if whole:
            self.refused.append(whole[0].value)
        if not body or (whole and whole[0] is not Fault.RETRIED):
            return
        begun = _now_ms()
        answer = send(self.url, body, self.refused)
        if self.acks_topic:
            self._send(producer, acks_of(body, answer, begun))

    def _lines(self, change: Change) -> list[Mapping[str, Any]]:
        fault = self.faults.get(change.key)
        if fault is Fault.LOST:
            return []
        image = change.after or change.before or {}
        where: dict[str, Any] = {"_index": self.index, "_id": str(change.key)}
        if self.routing:
            where["routing"] = str(image[self.routing])
        if fault is Fault.MISROUTED:
            where["routing"] = f"not-{where['routing']}-but-elsewhere"
        if change.after is None:
            return [{"delete": where}]
        if self.version:
            where |= {"version": int(change.after[self.version]), "version_type": "external"}
        return lines_of(where, _document(change.after), fault, before=_document(change.before or {}), number="seq")

    def _send(self, producer: Producer, records: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            producer.produce(self.acks_topic, value, key or None, partition=0)
        assert producer.flush(60) == 0


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
