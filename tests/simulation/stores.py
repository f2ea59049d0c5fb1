"""Two stores in memory behind the real ports, with whatever else happens to them between any two calls.

The target's documents are built by the MongoDB connector's own mapping, guards are as strict as its guards. The rig notes what
a repair did and what it had seen, so that a test can say whether it made anything worse.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import structs

from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec, Settings, TopicsSpec
from gapwatch.model.stream import Side
from gapwatch.ports import (
    ABSENT,
    Clock,
    DatasetInfo,
    Key,
    KeyChunk,
    Ledger,
    Read,
    ScanChunk,
    StoredRecord,
    Unread,
    WriteItem,
    WriteResult,
)
from gapwatch.roles.board import Board, Delivered
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.sweep_work import SweeperDependencies
from gapwatch.roles.repair.sweeper import Sweeper
from gapwatch.roles.repair.trials import MappingTrials
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import PipelineStores
from gapwatch.roles.viewed import viewed
from gapwatch.scans import keys_of
from gapwatch_connectors.mongodb.documents import build
from gapwatch_connectors.mongodb.keys import DocumentKeys
from tests.unit.core import samples

PLACEHOLDER = "__debezium_unavailable_value"
Row = dict[str, Any]


class VirtualClock:
    """Time that passes by sleeping and asking only; ``pace``: how many times as much of it as was asked for."""

    def __init__(self, *, pace: int = 1) -> None:
        self._ms = 1_700_000_000_000
        self._pace = pace

    def now(self) -> datetime:
        self._ms += 1
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self._ms)

    def now_ms(self) -> int:
        return self._ms

    def monotonic(self) -> float:
        return self._ms / 1000

    async def sleep(self, seconds: float) -> None:
        self._ms += max(1, int(seconds * 1000 * self._pace))
        await asyncio.sleep(0)


class HastyClock(VirtualClock):
    """Real time, ``speed`` times as fast: for several who wait at once, and for threads, which virtual time does not wait for."""

    def __init__(self, *, speed: int) -> None:
        super().__init__()
        self._speed = speed
        self._begun, self._real = self._ms, time.monotonic()

    def _catch_up(self) -> int:
        self._ms = max(self._ms + 1, self._begun + int((time.monotonic() - self._real) * 1000 * self._speed))
        return self._ms

    def now(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self._catch_up())

    def now_ms(self) -> int:
        return self._catch_up()

    def monotonic(self) -> float:
        return self._catch_up() / 1000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)


def spec_of_rig(**more: Any) -> PipelineSpec:
    return samples.pipeline(samples.field("total", FieldType.INT), samples.field("note"), **more)


@dataclass
class Rig:
    """``between`` is called before each call reaches a store: there the rest of the world acts. ``away``: stores that are down.

    ``history``: every state that a source row ever had. ``sink``: writes of the source on their way to the target, per row.
    """

    spec: PipelineSpec = field(default_factory=spec_of_rig)
    between: Callable[[str], None] = lambda what: None
    source: dict[int, Row] = field(default_factory=dict)
    target: dict[int, Row] = field(default_factory=dict)
    history: dict[int, list[Row | None]] = field(default_factory=dict)
    sink: dict[int, list[Row | None]] = field(default_factory=dict)
    away: set[Side] = field(default_factory=set)
    unread: set[int] = field(default_factory=set)
    twice: set[int] = field(default_factory=set)  # rows that another table of the source holds as well
    ordered: bool = True  # whether scans say that they show keys in their order
    misplaced: frozenset[int] = frozenset()  # documents that a scan of the target shows last, whatever their keys
    refused: set[int] = field(default_factory=set)  # documents that the target refuses
    writes: list[WriteItem] = field(default_factory=list)  # that took effect, by the repair
    changed: dict[Side, dict[int, datetime]] = field(default_factory=lambda: {side: {} for side in Side})  # as tests say
    ours: dict[int, Row | None] = field(default_factory=dict)  # what the repair left at the target, unless somebody came after
    unseen: set[int] = field(default_factory=set)  # source rows that changed since anybody read them
    agreed: set[int] = field(default_factory=set)  # read as agreeing since the repair last wrote them
    on_write: Callable[[WriteItem], None] = lambda item: None
    on_answer: Callable[[], None] = lambda: None  # when a batch has taken effect, before anybody is told
    clock: Clock = field(default_factory=VirtualClock)  # by which records expire

    def __post_init__(self) -> None:
        self.mapping = CompiledMapping(self.spec)
        self.keys = DocumentKeys(self.spec.target.key)
        self.values = itertools.count(1)
        self._revision: dict[int, int] = {}

    @property
    def stores(self) -> PipelineStores:
        codec = self.mapping.source.codec
        counting = self.mapping.counting
        source, target = (viewed(ModelReader(self, side), counting, side, self.clock) for side in Side)
        return PipelineStores(
            spec=self.spec, mapping=self.mapping, codec=codec, source=source, target=target, writer=ModelWriter(self)
        )

    def key(self, number: int) -> Key:
        return self.mapping.source.codec.encode([number])

    def number(self, key: Key) -> int:
        (number,) = self.mapping.source.codec.decode(key)
        return int(number)

    # what the rest of the world does

    def source_writes(self, number: int, **changes: Any) -> Row:
        """Write a source row; its total says which version it is. The sink will deliver it, unless it loses it."""
        version = next(self.values)
        row = {"id": number, "total": version, "note": f"version {version}", **changes}
        self._source_is(number, row)
        return row

    def source_deletes(self, number: int) -> None:
        if number in self.source:
            self._source_is(number, None)

    def _source_is(self, number: int, row: Row | None) -> None:
        if row is None:
            del self.source[number]
        else:
            self.source[number] = row
        self._revision[number] = self._revision.get(number, 0) + 1
        self.history.setdefault(number, []).append(row)
        self.sink.setdefault(number, []).append(row)
        self.unseen.add(number)

    def revision(self, number: int) -> str:
        return str(self._revision.get(number, 0))

    def sink_delivers(self, number: int) -> None:
        """The sink applies the oldest write that it has not applied yet, whatever stands there: it knows no guard."""
        waiting = self.sink.get(number)
        if waiting:
            row = waiting.pop(0)
            self.stranger_writes(number, None if row is None else self.document(row))

    def sink_loses(self, number: int) -> None:
        self.sink.pop(number, None)

    def stranger_writes(self, number: int, document: Row | None) -> None:
        if document is None:
            self.target.pop(number, None)
        else:
            self.target[number] = document
        self.ours.pop(number, None)

    def document(self, row: Row) -> Row:
        return {"_id": row["id"], **{name: row[name] for name in ("total", "note") if name in row}}

    # what is true

    def agrees(self, number: int) -> bool:
        row, document = self.source.get(number), self.target.get(number)
        return document == (None if row is None else self.document(row))


class ModelReader:
    """Implements :class:`gapwatch.ports.DatasetReader`."""

    def __init__(self, rig: Rig, side: Side) -> None:
        self._rig = rig
        self._side = side

    async def in_key_order(self) -> bool:
        return self._rig.ordered

    async def ping(self) -> None: ...

    async def clock_offset_ms(self) -> int:
        return 0

    async def close(self) -> None: ...

    async def describe(self) -> DatasetInfo:
        return DatasetInfo(identity="one")

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        rig = self._rig
        rig.between(f"fetch {self._side.name}")
        return {key: self._read(rig.number(key), key) for key in keys}

    def _read(self, number: int, key: Key) -> Read | tuple[StoredRecord, ...]:
        rig = self._rig
        if self._side in rig.away or number in rig.unread:
            return Unread("no answer")
        if self._side is Side.OBSERVED:
            if rig.agrees(number):
                rig.agreed.add(number)
            document = rig.target.get(number)
            return ABSENT if document is None else StoredRecord(key=key, fields=dict(document), raw=dict(document))
        rig.unseen.discard(number)
        row = rig.source.get(number)
        if row is None:
            return ABSENT
        record = StoredRecord(key=key, fields=dict(row), revision=rig.revision(number))
        return (record, structs.replace(record, revision=f"another {record.revision}")) if number in rig.twice else record

    async def scan(
        self, *, content: bool, cursor: Any = None, lower: Key | None = None, upper: Key | None = None, chunk: int = 10_000
    ) -> AsyncIterator[ScanChunk]:
        rig = self._rig
        rows = rig.source if self._side is Side.EXPECTED else rig.target
        late = rig.misplaced if self._side is Side.OBSERVED else frozenset()
        ordered = sorted(rows.items(), key=lambda item: (item[0] in late, item[0]))
        records = [StoredRecord(key=rig.key(number), fields=dict(row)) for number, row in ordered]
        records = [one for one in records if (lower is None or one.key >= lower) and (upper is None or one.key < upper)]
        for start in range(0, max(1, len(records)), chunk):
            part = records[start : start + chunk]
            yield ScanChunk(records=part, cursor=None, identity="one", complete=self._side not in rig.away)

    async def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        rig = self._rig
        changes = rig.changed[self._side]
        numbers = sorted(number for number, at in changes.items() if at >= since and (cursor is None or number > cursor))
        for start in range(0, max(1, len(numbers)), chunk):
            part = numbers[start : start + chunk]
            records = [StoredRecord(key=rig.key(number), fields={}) for number in part]
            after = part[-1] if part else cursor
            yield ScanChunk(records=records, cursor=after, identity="one", complete=self._side not in rig.away)

    def scan_keys(self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000) -> AsyncIterator[KeyChunk]:
        return keys_of(self.scan(content=False, lower=lower, upper=upper, chunk=chunk))

    async def sample_keys(self, count: int) -> Sequence[Key]:
        rows = sorted(self._rig.source if self._side is Side.EXPECTED else self._rig.target)
        return [self._rig.key(number) for number in rows[:: max(1, len(rows) // count)]]

    async def estimate(self) -> int:
        return len(self._rig.source if self._side is Side.EXPECTED else self._rig.target)

    async def is_empty(self) -> bool:
        return not (self._rig.source if self._side is Side.EXPECTED else self._rig.target)


class ModelWriter:
    """Implements :class:`gapwatch.ports.TargetWriter` with MongoDB's documents and guards."""

    async def close(self) -> None: ...

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        return build(self._rig.keys, key, row, fields, PLACEHOLDER)

    def kept(self, document: StoredRecord) -> str:
        return str(document.raw)

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        self._rig.between("write")
        results = [self._write(item) for item in items]
        self._rig.on_answer()
        return results

    def _write(self, item: WriteItem) -> WriteResult:
        rig, number = self._rig, self._rig.number(item.key)
        assert item.document is not None or isinstance(item.replaces, StoredRecord), "what is not there cannot be deleted"
        rig.on_write(item)
        there = rig.target.get(number)
        expected = dict(item.replaces.raw) if isinstance(item.replaces, StoredRecord) else None
        if there != expected:
            return WriteResult(key=item.key, outcome="guard_failed", reason="it is not what was read any more")
        if number in rig.refused:
            return WriteResult(key=item.key, outcome="failed", reason="refused")
        rig.writes.append(item)
        rig.agreed.discard(number)
        rig.ours[number] = None if item.document is None else dict(item.document)
        if item.document is None:
            rig.target.pop(number, None)
        else:
            rig.target[number] = dict(item.document)
        return WriteResult(key=item.key, outcome="written")


class _NoStatus:
    """A status topic on which nobody says anything."""

    at_end = True

    async def read(self, seconds: float) -> Sequence[bytes]:
        return ()


def trials(rig: Rig, ledger: Ledger, clock: Clock) -> MappingTrials:
    """Return the trial of the rig's mapping."""

    class Provider:
        async def stores(self, pipeline: str) -> PipelineStores:
            return rig.stores

    settings = Settings(bootstrap_servers="", topics=TopicsSpec(), database="", stores={}, pipelines={rig.spec.id: rig.spec})
    findings = FindingBook(ledger, clock, lambda pipeline, finding: None)
    return MappingTrials(ledger, Board(settings, ledger, _NoStatus(), clock), findings, Provider(), clock)


def sweeper_of(rig: Rig, ledger: Ledger, clock: Clock, *, delivered: Delivered | None = None, holder: str = "here") -> Sweeper:
    """Return a sweeper of the rig's stores, grace 1 s; without a delivery position unless there is one."""
    dependencies = SweeperDependencies(
        ledger=ledger,
        book=Book(ledger, clock),
        trials=trials(rig, ledger, clock),
        clock=clock,
        holder=holder,
        grace_ms=lambda _: 1_000,
        delivered=lambda _: delivered or Delivered(through_ms=None, age_alone=True),
        on_compared=lambda *_: None,
    )
    return Sweeper(dependencies)
