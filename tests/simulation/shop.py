"""The pipeline that is watched: a source table, Debezium, a sink that may lag, lose and falsify, a target, and its change stream.

It knows the truth: every version of every row with its commit time, what the target has shown since when, and how far the sink
is. Each write of the source has a value of its own, so that one is never taken for another.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME

from gapwatch.core.envelopes.heartbeats import message_content
from gapwatch.core.keys import partition_of
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import StoreUnreachable
from gapwatch.kafka.clients import Partition
from gapwatch.model.pipeline import DeliverySpec, FieldType, PipelineSpec, Settings, StoreSpec, StoreType, TopicsSpec
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, Key, Read, StoredRecord
from gapwatch.roles.stores import PipelineStores
from tests.simulation.cluster import Cluster
from tests.simulation.loop import ProcessClock
from tests.unit.core import samples

START = 1_700_000_000_000
PIPELINE = "orders"
RAW = samples.TOPIC
BEATS = "shop.message"
SHOWN = "gapwatch.feed.orders.target"
PARTITIONS = 2
GRACE_MS = 1_000
PLACEHOLDER = "__debezium_unavailable_value"
BEAT_MS = 1_000
SENDING_MS = 800  # Connect lands each record within that time: `settle` must be longer

Row = dict[str, Any]


def spec_of(*, delivery: bool = True) -> PipelineSpec:
    made = samples.pipeline(samples.field("total", FieldType.INT), samples.field("note", maskable=True))
    return PipelineSpec(
        id=PIPELINE,
        source=made.source,
        target=made.target,
        fields=made.fields,
        delivery=DeliverySpec(group="sink") if delivery else DeliverySpec(),
        grace_seconds=GRACE_MS / 1000,
        confirm_again_seconds=10.0,
        baseline="assume",
    )


def settings_of(spec: PipelineSpec) -> Settings:
    stores = {
        "shop": StoreSpec(name="shop", type=StoreType.POSTGRES, url=""),
        "catalog": StoreSpec(name="catalog", type=StoreType.MONGODB, url=""),
    }
    return Settings(bootstrap_servers="none", topics=TopicsSpec(partitions=PARTITIONS), stores=stores, pipelines={PIPELINE: spec})


class Change(NamedTuple):
    """One committed write of the source. ``row`` None: a delete. ``carried``: the event holds the note."""

    number: int
    time: int
    id: int
    row: Row | None
    carried: bool


class Beat(NamedTuple):
    number: int
    time: int
    beat: int


class Shown(NamedTuple):
    """One write of the target. ``document`` None: a delete."""

    number: int
    time: int
    id: int
    document: Row | None


class Sending(NamedTuple):
    since: int
    key: bytes | None
    value: bytes
    entry: Change | None


@dataclass
class Fates:
    """What may happen to a write on its way to the target, as probabilities."""

    lost: float = 0.0
    falsified: float = 0.0
    placeholder: float = 0.0  # the sink writes Debezium's placeholder into the document
    coalesced: float = 0.0  # it applies only the last of several writes that it has read


@dataclass
class Shop:
    cluster: Cluster
    random: random.Random
    spec: PipelineSpec
    fates: Fates
    created: bool  # Debezium's topics keep when a record was handed to the producer, else when the broker took it
    keys: int = 5
    source: dict[int, Row] = field(default_factory=dict)
    target: dict[int, Row] = field(default_factory=dict)
    wal: list[Change | Beat] = field(default_factory=list)
    oplog: list[Shown] = field(default_factory=list)
    raw: dict[Partition, list[Change]] = field(default_factory=dict)  # by offset: what a record of the raw topic says
    first: dict[int, tuple[Partition, int]] = field(default_factory=dict)  # by number: where its first record lies
    shown: dict[Partition, list[Shown | None]] = field(default_factory=dict)  # None: a marker
    first_shown: dict[int, tuple[Partition, int]] = field(default_factory=dict)
    by_place: dict[Partition, list[Change | Shown]] = field(default_factory=dict)  # what a feed partition is to show, in order
    emitted: int = 0
    sending: dict[Partition, list[Sending]] = field(default_factory=dict)  # what Connect's producer has not landed yet
    captured: int = 0
    applied: dict[Partition, int] = field(default_factory=dict)
    committed: dict[Partition, int] = field(default_factory=dict)
    passed: dict[tuple[Partition, int], int] = field(default_factory=dict)  # when the sink's commit had passed an offset
    beats: int = 0
    beaten_at: int = 0
    away: set[Side] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.mapping = CompiledMapping(self.spec)
        for number in range(PARTITIONS):
            self.raw[Partition(RAW, number)] = []
            self.shown[Partition(SHOWN, number)] = []
            self.by_place |= {Partition(RAW, number): [], Partition(SHOWN, number): []}
            self.applied[Partition(RAW, number)] = 0

    @property
    def now(self) -> int:
        return self.cluster.time.now_ms

    def key(self, number: int) -> Key:
        return self.mapping.source.codec.encode([number])

    def number(self, key: Key) -> int:
        (number,) = self.mapping.source.codec.decode(key)
        return int(number)

    def home(self, number: int) -> int:
        """Return the partition of ``gapwatch.events`` that a row lives in."""
        return partition_of(self.key(number), PARTITIONS)

    # the source

    def write(self, number: int | None = None) -> str:
        """Write a row, some row unless one is named."""
        rng = self.random
        number = rng.randrange(self.keys) if number is None else number
        before = self.source.get(number)
        row: Row | None = None
        carried = before is None or rng.random() < 0.5
        if before is None or rng.random() < 0.85:
            total = len(self.wal) + 1
            row = {"id": number, "total": total, "note": f"note {total}" if before is None or carried else before["note"]}
        change = Change(len(self.wal), self.now, number, row, carried)
        self.wal.append(change)
        self.by_place[Partition(RAW, number % PARTITIONS)].append(change)
        if row is None:
            del self.source[number]
        else:
            self.source[number] = row
        return f"source row {number} is {'deleted' if row is None else row['total']}"

    # Debezium

    def emit(self, most: int, *, calm: bool = False) -> str:
        """Debezium reads on in its log; what it sends to different partitions lands at different times."""
        entries = self.wal[self.emitted : self.emitted + most]
        for entry in entries:
            self._emit(entry)
        self.emitted += len(entries)
        for at, sending in self.sending.items():
            count = len(sending) if calm or self.random.random() < 0.6 else self.random.randrange(len(sending) + 1)
            self._land(at, count)
        return f"Debezium sends {len(entries)} of its log"

    def _emit(self, entry: Change | Beat) -> None:
        source = {"ts_ms": entry.time, "sequence": json.dumps([str(entry.number + 1), str(entry.number + 1)])}
        if isinstance(entry, Beat):
            content = base64.b64encode(message_content(entry.beat, "one").encode()).decode()
            value = {**samples.change("m", **source), "message": {"prefix": "gapwatch", "content": content}}
            self._send(Partition(BEATS, 0), None, value, None)
            return
        row = entry.row
        if row is not None and not entry.carried:
            row = {**row, "note": PLACEHOLDER}
        made = samples.change("d" if row is None else "u", after=row, **source)
        self._send(Partition(RAW, entry.id % PARTITIONS), json.dumps({"id": entry.id}).encode(), made, entry)

    def _send(self, at: Partition, key: bytes | None, value: Mapping[str, Any], entry: Change | None) -> None:
        self.sending.setdefault(at, []).append(Sending(self.now, key, json.dumps(value).encode(), entry))

    def time_passes(self) -> None:
        """Land what has been on its way for so long, and let a heartbeat row be written."""
        for at, sending in self.sending.items():
            self._land(at, sum(one.since <= self.now - SENDING_MS for one in sending))
        if self.now - self.beaten_at >= BEAT_MS:
            self.beats += 1
            self.beaten_at = self.now
            self.wal.append(Beat(len(self.wal), self.now, self.beats))

    def _land(self, at: Partition, count: int) -> None:
        for one in self.sending[at][:count]:
            time, kind = (one.since, TIMESTAMP_CREATE_TIME) if self.created else (self.now, TIMESTAMP_LOG_APPEND_TIME)
            record = self.cluster.append(at, one.key, one.value, time=time, kind=kind)
            if one.entry is not None:
                self.raw[at].append(one.entry)
                self.first.setdefault(one.entry.number, (at, record.number))
        del self.sending[at][:count]

    def emit_again(self) -> str:
        """The connector's worker was killed: it goes on at the position that it had flushed, which was acknowledged."""
        self.sending.clear()
        landed = [entry.number for entry in self.wal if isinstance(entry, Change) and entry.number not in self.first]
        self.emitted = min([self.emitted, *landed])
        self.emitted -= self.random.randrange(min(self.emitted, 8) + 1)
        return "Debezium starts again further back"

    # the sink

    def apply(self, at: Partition, most: int) -> str:
        rng, start = self.random, self.applied[at]
        changes = self.raw[at][start : start + most]
        skipped = set()
        if len(changes) > 1 and rng.random() < self.fates.coalesced:
            last = {change.id: index for index, change in enumerate(changes)}
            skipped = {index for index, change in enumerate(changes) if last[change.id] != index}
        said = [self._apply(change) for index, change in enumerate(changes) if index not in skipped]
        self.applied[at] = start + len(changes)
        return f"the sink takes {len(changes)} of {at.partition}: {', '.join(said)}"

    def _apply(self, change: Change) -> str:
        fate, fates = self.random.random(), self.fates
        if fate < fates.lost:
            return f"loses row {change.id}"
        if change.row is None:
            self.show(change.id, None)
            return f"deletes {change.id}"
        document = {**self.target.get(change.id, {}), "_id": change.id, "total": change.row["total"]}
        if change.carried:
            document["note"] = change.row["note"]
        elif self.random.random() < fates.placeholder:
            document["note"] = PLACEHOLDER
        if fate < fates.lost + fates.falsified:
            document["total"] += 10_000
        self.show(change.id, document)
        return f"writes {change.id} = {document['total']}"

    def show(self, number: int, document: Row | None) -> None:
        if document is None and number not in self.target:
            return  # nothing changes, so the store's log says nothing
        if document == self.target.get(number):
            return
        self.oplog.append(Shown(len(self.oplog), self.now, number, document))
        self.by_place[Partition(SHOWN, number // PARTITIONS % PARTITIONS)].append(self.oplog[-1])
        if document is None:
            del self.target[number]
        else:
            self.target[number] = document

    def commit(self, at: Partition) -> str:
        for offset in range(self.committed.get(at, 0), self.applied[at]):
            self.passed.setdefault((at, offset), self.now)
        self.committed[at] = max(self.committed.get(at, 0), self.applied[at])
        return f"the sink commits {self.committed[at]} of {at.partition}"

    def sink_starts_again(self) -> str:
        for at in self.applied:
            self.applied[at] = self.committed.get(at, 0)
        return "the sink starts again where its group stands"

    def stranger(self, number: int | None = None) -> str:
        """Somebody else writes to the target."""
        number = self.random.randrange(self.keys + 1) if number is None else number
        document = None if self.random.random() < 0.3 else {"_id": number, "total": 20_000 + len(self.oplog), "note": "odd"}
        self.show(number, document)
        return f"somebody writes {number} at the target"

    def mend(self) -> str:
        """Somebody sets a row right at the target."""
        if not self.differing:
            return ""
        number = self.random.choice(sorted(self.differing))
        self.show(number, document_of(self.source.get(number)))
        return f"somebody sets {number} right at the target"

    # our change stream

    def capture(self, most: int) -> str:
        entries = self.oplog[self.captured : self.captured + most]
        for entry in entries:
            kind = b"delete" if entry.document is None else b"replace"
            headers = [
                ("gapwatch-op", kind),
                ("gapwatch-time", b"%d" % entry.time),
                ("gapwatch-position", b"%d:0" % (entry.number + 1)),
            ]
            at = Partition(SHOWN, entry.id // PARTITIONS % PARTITIONS)
            value = b"" if entry.document is None else json.dumps(_extended(entry.document)).encode()
            record = self.cluster.append(at, json.dumps(_extended({"_id": entry.id})).encode(), value, headers)
            self.shown[at].append(entry)
            self.first_shown.setdefault(entry.number, (at, record.number))
        self.captured += len(entries)
        if self.captured == len(self.oplog):
            for at in self.shown:
                self.cluster.append(at, None, None, [("gapwatch-watermark", b"%d" % self.now)])
                self.shown[at].append(None)
        return f"capture sends {len(entries)} changes of the target"

    def capture_again(self) -> str:
        self.captured -= self.random.randrange(min(self.captured, 6) + 1)
        return "capture starts again further back"

    # what is true

    def agrees(self, number: int) -> bool:
        return document_of(self.source.get(number)) == self.target.get(number)

    @property
    def differing(self) -> set[int]:
        return {number for number in self.source.keys() | self.target.keys() if not self.agrees(number)}

    @property
    def idle(self) -> bool:
        return (
            self.emitted == len(self.wal)
            and not any(self.sending.values())
            and self.captured == len(self.oplog)
            and all(self.committed.get(at, 0) == len(records) for at, records in self.raw.items())
        )

    def versions(self, number: int) -> list[Change]:
        return [entry for entry in self.wal if isinstance(entry, Change) and entry.id == number]

    def shown_of(self, number: int) -> list[Shown]:
        return [entry for entry in self.oplog if entry.id == number]

    def place(self, entry: Change | Shown) -> int | None:
        """Return the offset of the first record that says it; None: there is none yet."""
        found = (self.first if isinstance(entry, Change) else self.first_shown).get(entry.number)
        return None if found is None else found[1]

    def stores(self, clock: ProcessClock) -> PipelineStores:
        source, target = Reader(self, Side.EXPECTED, clock), Reader(self, Side.OBSERVED, clock)
        return PipelineStores(
            spec=self.spec,
            mapping=self.mapping,
            codec=self.mapping.source.codec,
            source=source,  # type: ignore[arg-type]
            target=target,  # type: ignore[arg-type]
            writer=None,  # type: ignore[arg-type]
        )


def document_of(row: Mapping[str, Any] | None) -> Row | None:
    """Return the document that a row ought to be."""
    return None if row is None else {"_id": row["id"], "total": row["total"], "note": row["note"]}


def _extended(document: Row) -> Row:
    return {name: {"$numberInt": str(value)} if isinstance(value, int) else value for name, value in document.items()}


class Reader:
    """The part of :class:`gapwatch.ports.DatasetReader` that confirming needs; time may pass before it answers."""

    def __init__(self, shop: Shop, side: Side, clock: ProcessClock) -> None:
        self._shop = shop
        self._side = side
        self._clock = clock

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        shop = self._shop
        if shop.random.random() < 0.3:
            await self._clock.sleep(0.01)
        if self._side in shop.away:
            raise StoreUnreachable("The store does not answer.", store=self._side.name.lower())
        return {key: self._read(key, shop.number(key)) for key in keys}

    def _read(self, key: Key, number: int) -> Read:
        shop = self._shop
        if self._side is Side.EXPECTED:
            row = shop.source.get(number)
            if row is None:
                return ABSENT
            return StoredRecord(key=key, fields=dict(row), revision=str(row["total"]))
        document = shop.target.get(number)
        return ABSENT if document is None else StoredRecord(key=key, fields=dict(document), raw=dict(document))
