"""The contestants of rows 8 to 12, each run as ``python -m benchmarks.sweep_contestants WHAT PAIR…``; what fills their stores."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from pymongo import MongoClient

from benchmarks import work
from benchmarks.figures import peak_mib
from gapwatch.clock import SystemClock
from gapwatch.core.canonical_records import CanonicalRecords
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import Canonical, CompiledMapping
from gapwatch.core.search_address import SearchAddress
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Kind, Run, RunKind, RunState
from gapwatch.model.pipeline import (
    BatchSpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    KeyType,
    PipelineSpec,
    RepairSpec,
    SourceSpec,
    StoreType,
    SweepSpec,
    TargetSpec,
)
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, Absent, Key, StoredRecord, WriteItem
from gapwatch.roles.board import Board, Delivered
from gapwatch.roles.collecting import collect_seldom
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.plans import plan, request_apply
from gapwatch.roles.repair.sweep_work import SweeperDependencies
from gapwatch.roles.repair.sweeper import Sweeper
from gapwatch.roles.repair.sweeps import request_sweep
from gapwatch.roles.repair.trials import MappingTrials
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.opensearch.connection import encode
from gapwatch_connectors.registry import connector_of

DATABASE = "bench"
HOLDER = "bench"
LEAST_BATCH = 2_000  # as the backfill of these rows has
FIELDS: tuple[tuple[str, FieldType, dict[str, Any]], ...] = (
    ("customer", FieldType.TEXT, {}),
    ("status", FieldType.TEXT, {}),
    ("amount", FieldType.DECIMAL, {"scale": 2}),
    ("quantity", FieldType.INT, {}),
    ("placed", FieldType.TIMESTAMP, {}),
    ("paid", FieldType.BOOL, {}),
    ("weight", FieldType.FLOAT, {}),
    ("note", FieldType.TEXT, {}),
)
COLUMNS = ", ".join(name for name, _, _ in FIELDS)
ROWS_SQL = """
CREATE TABLE {table} AS
SELECT i::{key} AS id, 'customer ' || i % 5000 AS customer, (array['new', 'paid', 'packed', 'shipped'])[1 + i % 4] AS status,
       (i % 100000 / 100.0)::numeric(12, 2) AS amount, (1 + i % 9)::int AS quantity,
       '2026-01-01T00:00:00Z'::timestamptz + i * interval '1 second' AS placed, i % 2 = 0 AS paid, i / 8.0::float8 AS weight,
       'note for order ' || i AS note
  FROM generate_series(1, {rows}) i
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A source and a target of one name, and where they are."""

    name: str
    source: StoreType
    source_url: str
    target: StoreType
    target_url: str
    key: KeyType = KeyType.INT
    label: str = ""  # by which its figures are found, where another pair has the same name

    @property
    def arguments(self) -> list[str]:
        return [self.name, self.source.value, self.source_url, self.target.value, self.target_url, self.key.value]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Pair:
        name, source, source_url, target, target_url, key = arguments
        return cls(
            name=name,
            source=StoreType(source),
            source_url=source_url,
            target=StoreType(target),
            target_url=target_url,
            key=KeyType(key),
        )


def dataset(kind: StoreType, name: str) -> str:
    return {StoreType.POSTGRES: f"public.{name}", StoreType.MONGODB: f"{DATABASE}.{name}"}.get(kind, name)


def pipeline(pair: Pair, batch: BatchSpec) -> PipelineSpec:
    """Return the pipeline between a pair of datasets: eight mapped fields, no stream, grace 0."""
    followed = FeedKind.CHANGE_STREAM if pair.source is StoreType.MONGODB else FeedKind.NONE  # its rows are documents
    path = "id" if pair.source is StoreType.POSTGRES else "_id"
    return PipelineSpec(
        id=pair.name,
        source=SourceSpec(
            store="shop",
            table=dataset(pair.source, pair.name),
            key=(KeyColumn(path=path, type=pair.key),),
            feed=FeedSpec(kind=followed),
        ),
        target=TargetSpec(
            store="catalog",
            collection=dataset(pair.target, pair.name),
            key=(KeyColumn(path="_id", type=pair.key),),
            feed=FeedSpec(kind=FeedKind.NONE),
        ),
        fields=tuple(FieldSpec(target=field, source=field, type=kind, maskable=False, **more) for field, kind, more in FIELDS),
        grace_seconds=0.0,
        sweep=SweepSpec(load=1.0, batch=batch),
        repair=RepairSpec(max_documents_per_run=1_000_000),
    )


def fill(pair: Pair, *, rows: int, missing: int, content: bool) -> None:
    """Make a table of `rows`, and a target that lacks `missing` of them, spread evenly."""
    name, dsn = pair.name, pair.source_url
    kind = {KeyType.INT: "bigint", KeyType.TEXT: "text"}[pair.key]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ROWS_SQL.format(table=name, key=kind, rows=rows))
        connection.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
        connection.execute(f"VACUUM ANALYZE {name}")
    stores = _stores(pair, pipeline(pair, BatchSpec()))
    put = putter(pair.target, pair.target_url, name)
    lost = {round(number * rows / missing) + 1 for number in range(missing)}
    with psycopg.connect(dsn) as connection, connection.cursor(name="fill") as cursor:
        cursor.itersize = 20_000
        cursor.execute(f"SELECT id, {COLUMNS} FROM {name}")
        batch: list[dict[str, Any]] = []
        for row in cursor:
            if int(row[0]) in lost:
                continue
            batch.append(_document(stores, row) if content else {"_id": row[0]})
            if len(batch) == 20_000:
                put(batch)
                batch = []
        if batch:
            put(batch)


def putter(kind: StoreType, url: str, name: str) -> Callable[[list[dict[str, Any]]], object]:
    """Return what writes documents plainly, in bulk."""
    if kind is StoreType.MONGODB:
        client: MongoClient[dict[str, Any]] = MongoClient(url)
        return lambda batch: client[DATABASE][name].insert_many(batch, ordered=False)

    def bulk(batch: list[dict[str, Any]]) -> None:
        lines = [line for one in batch for line in ({"create": {"_id": str(one["_id"])}}, _without_id(one))]
        body = b"".join(encode(line) + b"\n" for line in lines)
        assert not _ask(url, "POST", f"/{name}/_bulk?filter_path=errors", body)["errors"]

    _ask(url, "PUT", f"/{name}", encode({"settings": {"number_of_shards": 2, "number_of_replicas": 0}}))
    return bulk


def _without_id(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "_id"}


def _ask(address: str, method: str, path: str, body: bytes = b"") -> Any:
    node = SearchAddress.parse(address)
    request = urllib.request.Request(
        f"http://{node.hosts[0]}{path}", data=body or None, headers={"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def _document(stores: PipelineStores, row: tuple[Any, ...]) -> dict[str, Any]:
    fields = dict(zip(["id", *(name for name, _, _ in FIELDS)], row, strict=True))
    key = stores.codec.encode([row[0]])
    return dict(stores.writer.document(key, StoredRecord(key=key, fields=fields), stores.spec.fields))


def _stores(pair: Pair, spec: PipelineSpec) -> PipelineStores:
    source, target = connector_of(pair.source), connector_of(pair.target)
    return PipelineStores(
        spec=spec,
        mapping=CompiledMapping(spec),
        codec=KeyCodec(spec.source.key),
        source=source.source_reader(spec, pair.source_url),
        target=target.target_reader(spec, pair.target_url),
        writer=target.target_writer(spec, pair.target_url),
    )


class _NoStatus:
    """The status topic of a benchmark without streams."""

    at_end = True

    async def read(self, seconds: float) -> Sequence[bytes]:
        return ()


class Repair:
    """Sweeper and backfiller over a ledger of their own, as role repair runs them."""

    def __init__(self, pair: Pair, spec: PipelineSpec, directory: str) -> None:
        self.clock = SystemClock()
        self.ledger = self.opened(directory)
        self.pair = pair
        self.made = self.make(spec)
        self.spec = spec
        book = Book(self.ledger, self.clock)

        board = Board(work.settings("", ""), self.ledger, _NoStatus(), self.clock)
        findings = FindingBook(self.ledger, self.clock, lambda pipeline, finding: None)
        trials = MappingTrials(self.ledger, board, findings, self, self.clock)

        def delivered(_: str) -> Delivered:
            return Delivered(through_ms=None, age_alone=True)

        self.sweeper = Sweeper(
            SweeperDependencies(
                ledger=self.ledger,
                book=book,
                trials=trials,
                clock=self.clock,
                holder=HOLDER,
                grace_ms=lambda _: 0,
                delivered=delivered,
                on_compared=lambda pipeline, side, keys: None,
            )
        )
        self.backfiller = Backfiller(
            BackfillDependencies(
                ledger=self.ledger,
                book=book,
                clock=self.clock,
                holder=HOLDER,
                grace_ms=lambda _: 0,
                delivered=delivered,
                on_document=lambda pipeline, outcome: None,
            )
        )

    def opened(self, directory: str) -> SqlLedger:
        return open_ledger(f"sqlite:///{Path(directory) / 'bench.db'}")

    def make(self, spec: PipelineSpec) -> PipelineStores:
        return _stores(self.pair, spec)

    async def stores(self, pipeline: str) -> PipelineStores:
        return self.made

    def _taken(self, kind: RunKind) -> Run:
        run = self.ledger.take_run(kind, HOLDER, seconds=600)
        assert run is not None
        return run

    async def sweep(self, *, content: bool, run_id: str = "sweep", **more: float) -> dict[str, int]:
        request_sweep(self.ledger, self.spec, self.clock, run_id, {"content": content, **more})
        run = await self.sweeper.run(self._taken(RunKind.SWEEP), self.made, last_full_started=None)
        assert run.state is RunState.SUCCEEDED, run
        return run.counts

    async def backfill(self) -> dict[str, int]:
        made = plan(self.ledger, self.spec, frozenset({Kind.MISSING}), limit=1_000_000, run_id="plan", clock=self.clock)
        request_apply(self.ledger, made.id, run_id="apply", clock=self.clock)
        run = await self.backfiller.run(self._taken(RunKind.BACKFILL), self.made)
        assert run.state is RunState.SUCCEEDED, run
        return run.counts

    async def close(self) -> None:
        await self.made.source.close()
        await self.made.target.close()
        await self.made.writer.close()
        self.ledger.close()


# ── contestants ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_ids(kind: StoreType, url: str, name: str) -> int:
    """The raw read of one store: ids alone, in large batches, each made an object once."""
    if kind is StoreType.MONGODB:
        client: MongoClient[dict[str, Any]] = MongoClient(url)
        return sum(1 for _ in client[DATABASE][name].find({}, {"_id": 1}, batch_size=50_000))
    if kind is StoreType.POSTGRES:
        with psycopg.connect(url) as connection, connection.cursor(name="ids", binary=True) as cursor:
            cursor.itersize = 50_000
            cursor.execute(f"SELECT id FROM {name}")
            return sum(1 for _ in cursor)
    point = _ask(url, "POST", f"/{name}/_search/point_in_time?keep_alive=5m")["pit_id"]
    asked: dict[str, Any] = {"size": 10_000, "_source": False, "sort": ["_shard_doc"], "pit": {"id": point, "keep_alive": "5m"}}
    count = 0
    while True:
        answer = _ask(url, "POST", "/_search?filter_path=hits.hits._id,hits.hits.sort", encode(asked))
        hits = answer.get("hits", {}).get("hits", [])
        if not hits:
            return count
        count += sum(1 for hit in hits if hit["_id"])
        asked["search_after"] = hits[-1]["sort"]


def naive(pair: Pair) -> int:
    """Both id sets in memory, as an afternoon's script does it."""
    client: MongoClient[dict[str, Any]] = MongoClient(pair.target_url)
    with psycopg.connect(pair.source_url) as connection:
        source = {row[0] for row in connection.execute(f"SELECT id FROM {pair.name}")}
    target = {document["_id"] for document in client[DATABASE][pair.name].find({}, {"_id": 1})}
    return len(source - target) + len(target - source)


def read_both(pair: Pair) -> int:
    """Read and decode all mapped fields of both sides, and nothing else."""
    client: MongoClient[dict[str, Any]] = MongoClient(pair.target_url)
    with psycopg.connect(pair.source_url) as connection, connection.cursor(name="both", binary=True) as cursor:
        cursor.itersize = 5_000
        cursor.execute(f"SELECT id, {COLUMNS} FROM {pair.name}")
        rows = sum(1 for _ in cursor)
    return rows + sum(1 for _ in client[DATABASE][pair.name].find({}, batch_size=5_000))


def write_plain(pair: Pair) -> tuple[int, float]:
    """Plain bulk writing of the documents that the target lacks, into a dataset of their own; return how many, and seconds."""
    stores = _stores(pair, pipeline(pair, BatchSpec()))
    with psycopg.connect(pair.source_url) as connection:
        rows = connection.execute(f"SELECT id, {COLUMNS} FROM {pair.name} WHERE id % 4 <> 0").fetchall()
    documents = [_document(stores, row) for row in rows]
    put = putter(pair.target, pair.target_url, f"{pair.name}_plain")
    began = time.monotonic()
    for start in range(0, len(documents), 1_000):
        put(documents[start : start + 1_000])
    return len(documents), time.monotonic() - began


async def least(pair: Pair) -> tuple[int, float]:
    """What every backfill that verifies does at least, one step after the other: both sides read by key, guarded writes, both
    read and compared again, and a line of the audit for each document. By the same connectors; nothing is judged or leased, and
    no gap is stored.

    Returns how many, and seconds.
    """
    stores = _stores(pair, pipeline(pair, BatchSpec()))
    with psycopg.connect(pair.source_url) as connection:
        ids = connection.execute(f"SELECT id FROM {pair.name} ORDER BY id").fetchall()
    there = [stores.codec.encode(list(row)) for row in ids]
    keys = []
    for start in range(0, len(there), LEAST_BATCH):
        found = await stores.target.fetch(there[start : start + LEAST_BATCH])
        keys += [key for key, document in found.items() if isinstance(document, Absent)]
    with tempfile.TemporaryDirectory() as directory:
        audit = sqlite3.connect(Path(directory) / "audit.db")
        audit.execute("PRAGMA journal_mode = WAL")
        audit.execute("CREATE TABLE audit (at TEXT, key BLOB, before TEXT, after TEXT)")
        began = time.monotonic()
        for start in range(0, len(keys), LEAST_BATCH):
            batch = keys[start : start + LEAST_BATCH]
            rows, documents = await asyncio.gather(stores.source.fetch(batch), stores.target.fetch(batch))
            items = [_item(stores, key, rows[key], documents[key]) for key in batch]
            assert all(result.outcome == "written" for result in await stores.writer.write(items))
            rows, documents = await asyncio.gather(stores.source.fetch(batch), stores.target.fetch(batch))
            digests = _digests(stores, [rows[key] for key in batch], [documents[key] for key in batch])
            lines = [("2026-01-01", key, None, digest) for key, digest in zip(batch, digests, strict=True)]
            with audit:
                audit.executemany("INSERT INTO audit VALUES (?, ?, ?, ?)", lines)
        seconds = time.monotonic() - began
        audit.close()
    for store in (stores.source, stores.target, stores.writer):
        await store.close()
    return len(keys), seconds


def _item(stores: PipelineStores, key: Key, row: object, document: object) -> WriteItem:
    assert isinstance(row, StoredRecord)
    assert isinstance(document, Absent)
    return WriteItem(key=key, document=stores.writer.document(key, row, stores.spec.fields), replaces=ABSENT)


def _digests(stores: PipelineStores, rows: Sequence[object], documents: Sequence[object]) -> list[str]:
    expected, observed = (
        CanonicalRecords(stores.mapping, side)([one.fields for one in records if isinstance(one, StoredRecord)])
        for side, records in ((Side.EXPECTED, rows), (Side.OBSERVED, documents))
    )
    digests = [one.digest.hex() for one in expected if isinstance(one, Canonical)]
    assert digests == [one.digest.hex() for one in observed if isinstance(one, Canonical)]
    assert len(digests) == len(rows)
    return digests


async def ours(pair: Pair, *, content: bool, repair: bool, paced: bool) -> dict[str, Any]:
    """Sweep, and repair what is found; ``repair_seconds`` is what the backfill alone took."""
    collect_seldom()  # as the role does
    batch = BatchSpec() if paced else BatchSpec(documents=2_000, pause_seconds=0.0)
    with tempfile.TemporaryDirectory() as directory:
        made = Repair(pair, pipeline(pair, batch), directory)
        try:
            counts: dict[str, Any] = {**await made.sweep(content=content)}
            if repair:
                began = time.monotonic()
                counts |= await made.backfill()
                counts["repair_seconds"] = time.monotonic() - began
            return counts
        finally:
            await made.close()


def contestant(what: str, pair: Pair) -> None:
    """Run one contestant and print its figures as JSON: wall seconds, peak memory above the imports, the answer."""
    before = peak_mib()
    began = time.monotonic()
    answer: Any
    seconds: float | None = None
    if what == "read_source":
        answer = read_ids(pair.source, pair.source_url, pair.name)
    elif what == "read_target":
        answer = read_ids(pair.target, pair.target_url, pair.name)
    elif what == "naive":
        answer = naive(pair)
    elif what == "read_both":
        answer = read_both(pair)
    elif what == "write_plain":
        answer, seconds = write_plain(pair)
    elif what == "least":
        answer, seconds = asyncio.run(least(pair))
    else:
        options = {"content": what == "content", "repair": what.startswith("repair"), "paced": what == "repair_paced"}
        answer = asyncio.run(ours(pair, **options))
        seconds = answer.get("repair_seconds")
    wall, peak = time.monotonic() - began, peak_mib()
    figures = {
        "wall": wall,
        "seconds": wall if seconds is None else seconds,
        "rss_mib": peak,
        "net_mib": peak - before,
        "answer": answer,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    contestant(sys.argv[1], Pair.of(sys.argv[2:]))
