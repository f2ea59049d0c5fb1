"""Rows 8, 9, 11 and 12: sweeps and backfills, beside the raw reads and the naive algorithm of the same run.

``python -m benchmarks.sweeps`` prepares the stores and runs each contestant in a process of its own, round after round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from pymongo import MongoClient

from benchmarks import work
from gapwatch.clock import SystemClock
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.embedded import EmbeddedStack
from gapwatch.ledger import open_ledger
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
    SweepSpec,
    TargetSpec,
)
from gapwatch.roles.board import Board, Delivered
from gapwatch.roles.repair.backfill_work import BackfillDependencies
from gapwatch.roles.repair.backfiller import Backfiller
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.plans import plan, request_apply
from gapwatch.roles.repair.sweeper import Sweeper, SweeperDependencies
from gapwatch.roles.repair.sweeps import request_sweep
from gapwatch.roles.repair.trials import MappingTrials
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.mongodb import MongoReader, MongoWriter
from gapwatch_connectors.postgres import PostgresReader

DATABASE = "bench"
HOLDER = "bench"
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


def pipeline(name: str, key: KeyType, batch: BatchSpec) -> PipelineSpec:
    """Return the pipeline between table and collection of one name: eight mapped fields, no stream, grace 0."""
    return PipelineSpec(
        id=name,
        source=SourceSpec(
            store="shop",
            table=f"public.{name}",
            key=(KeyColumn(path="id", type=key),),
            feed=FeedSpec(kind=FeedKind.NONE),
        ),
        target=TargetSpec(
            store="catalog",
            collection=f"{DATABASE}.{name}",
            key=(KeyColumn(path="_id", type=key),),
            feed=FeedSpec(kind=FeedKind.NONE),
        ),
        fields=tuple(FieldSpec(target=field, source=field, type=kind, maskable=False, **more) for field, kind, more in FIELDS),
        grace_seconds=0.0,
        sweep=SweepSpec(load=1.0, batch=batch),
        repair=RepairSpec(max_documents_per_run=1_000_000),
    )


def fill(dsn: str, uri: str, name: str, *, key: KeyType, rows: int, missing: int, content: bool) -> None:
    """Make a table of `rows`, and a collection that lacks `missing` of them, spread evenly."""
    kind = {KeyType.INT: "bigint", KeyType.TEXT: "text"}[key]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ROWS_SQL.format(table=name, key=kind, rows=rows))
        connection.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
        connection.execute(f"VACUUM ANALYZE {name}")
    stores = _stores(dsn, uri, pipeline(name, key, BatchSpec()))
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    collection = client[DATABASE][name]
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
                collection.insert_many(batch, ordered=False)
                batch = []
        if batch:
            collection.insert_many(batch, ordered=False)
    client.close()


def _document(stores: PipelineStores, row: tuple[Any, ...]) -> dict[str, Any]:
    from gapwatch.ports import StoredRecord

    fields = dict(zip(["id", *(name for name, _, _ in FIELDS)], row, strict=True))
    key = stores.codec.encode([row[0]])
    return dict(stores.writer.document(key, StoredRecord(key=key, fields=fields), stores.spec.fields))


def _stores(dsn: str, uri: str, spec: PipelineSpec) -> PipelineStores:
    return PipelineStores(
        spec=spec,
        mapping=CompiledMapping(spec),
        codec=KeyCodec(spec.source.key),
        source=PostgresReader(spec, dsn),
        target=MongoReader(spec, uri),
        writer=MongoWriter(spec, uri),
    )


class _NoStatus:
    """The status topic of a benchmark without streams."""

    at_end = True

    async def read(self, seconds: float) -> Sequence[bytes]:
        return ()


class Repair:
    """Sweeper and backfiller over a ledger of their own, as role repair runs them."""

    def __init__(self, dsn: str, uri: str, spec: PipelineSpec, directory: str) -> None:
        self.clock = SystemClock()
        self.ledger = open_ledger(f"sqlite:///{Path(directory) / 'bench.db'}")
        self.made = _stores(dsn, uri, spec)
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

    async def stores(self, pipeline: str) -> PipelineStores:
        return self.made

    def _taken(self, kind: RunKind) -> Run:
        run = self.ledger.take_run(kind, HOLDER, seconds=600)
        assert run is not None
        return run

    async def sweep(self, *, content: bool) -> dict[str, int]:
        request_sweep(self.ledger, self.spec, self.clock, "sweep", {"content": content})
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
        self.ledger.close()


# ── contestants ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_mongo_ids(uri: str, name: str) -> int:
    """The raw read of the slower store: ids alone, in large batches."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    return sum(1 for _ in client[DATABASE][name].find({}, {"_id": 1}, batch_size=50_000))


def naive(dsn: str, uri: str, name: str) -> int:
    """Both id sets in memory, as an afternoon's script does it."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    with psycopg.connect(dsn) as connection:
        source = {row[0] for row in connection.execute(f"SELECT id FROM {name}")}
    target = {document["_id"] for document in client[DATABASE][name].find({}, {"_id": 1})}
    return len(source - target) + len(target - source)


def read_both(dsn: str, uri: str, name: str) -> int:
    """Read and decode all mapped fields of both sides, and nothing else."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    with psycopg.connect(dsn) as connection, connection.cursor(name="both", binary=True) as cursor:
        cursor.itersize = 5_000
        cursor.execute(f"SELECT id, {COLUMNS} FROM {name}")
        rows = sum(1 for _ in cursor)
    return rows + sum(1 for _ in client[DATABASE][name].find({}, batch_size=5_000))


def write_plain(dsn: str, uri: str, name: str) -> int:
    """Plain bulk writing of the documents that the target lacks, into a collection of their own."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    stores = _stores(dsn, uri, pipeline(name, KeyType.INT, BatchSpec()))
    there = {document["_id"] for document in client[DATABASE][name].find({}, {"_id": 1})}
    with psycopg.connect(dsn) as connection:
        rows = [row for row in connection.execute(f"SELECT id, {COLUMNS} FROM {name}") if row[0] not in there]
    documents = [_document(stores, row) for row in rows]
    client[DATABASE].drop_collection(f"{name}_plain")
    began = time.monotonic()
    for start in range(0, len(documents), 1_000):
        client[DATABASE][f"{name}_plain"].insert_many(documents[start : start + 1_000], ordered=False)
    print(json.dumps({"wall": time.monotonic() - began}), file=sys.stderr)
    return len(documents)


async def ours(dsn: str, uri: str, name: str, key: KeyType, *, content: bool, repair: bool, paced: bool) -> dict[str, int]:
    batch = BatchSpec() if paced else BatchSpec(documents=2_000, pause_seconds=0.0)
    with tempfile.TemporaryDirectory() as directory:
        made = Repair(dsn, uri, pipeline(name, key, batch), directory)
        try:
            counts = await made.sweep(content=content)
            return counts | await made.backfill() if repair else counts
        finally:
            await made.close()


def contestant(arguments: list[str]) -> None:
    """Run one contestant and print its figures as JSON: wall and CPU seconds, peak memory above the imports, the answer."""
    what, dsn, uri, name, key = arguments
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    answer: Any
    if what == "mongo_ids":
        answer = read_mongo_ids(uri, name)
    elif what == "naive":
        answer = naive(dsn, uri, name)
    elif what == "read_both":
        answer = read_both(dsn, uri, name)
    elif what == "write_plain":
        answer = write_plain(dsn, uri, name)
    else:
        options = {"content": what == "content", "repair": what.startswith("repair"), "paced": what == "repair_paced"}
        answer = asyncio.run(ours(dsn, uri, name, KeyType(key), **options))
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "wall": time.monotonic() - began,
        "cpu": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "rss_mib": used.ru_maxrss / 1024,
        "net_mib": (used.ru_maxrss - before.ru_maxrss) / 1024,
        "answer": answer,
    }
    print(json.dumps(figures))


def run(what: str, dsn: str, uri: str, name: str, key: KeyType = KeyType.INT) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweeps", "contestant", what, dsn, uri, name, key.value],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {what:12} {name:10} {figures['wall']:8.2f} s  {figures['net_mib']:6.0f} MiB  {figures['answer']}", file=sys.stderr)
    return figures


def medians(rounds: list[dict[str, Any]]) -> Mapping[str, float]:
    return {name: median(one[name] for one in rounds) for name in ("wall", "cpu", "rss_mib", "net_mib")}


def measure(keys: int, rounds: int) -> dict[str, Any]:
    """Run everything; return medians by contestant."""
    found: dict[str, list[dict[str, Any]]] = {}
    with EmbeddedStack(parts=("postgres", "mongodb")) as stack:
        with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        dsn, uri = stack.postgres.dsn(DATABASE), stack.mongodb.uri
        print("filling the stores", file=sys.stderr)
        fill(dsn, uri, "ids", key=KeyType.INT, rows=keys, missing=7, content=False)
        fill(dsn, uri, "names", key=KeyType.TEXT, rows=keys, missing=7, content=False)
        fill(dsn, uri, "contents", key=KeyType.INT, rows=keys // 5, missing=7, content=True)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for what, name, key in (
                ("mongo_ids", "ids", KeyType.INT),
                ("ids", "ids", KeyType.INT),
                ("naive", "ids", KeyType.INT),
                ("mongo_ids", "names", KeyType.TEXT),
                ("ids", "names", KeyType.TEXT),
                ("read_both", "contents", KeyType.INT),
                ("content", "contents", KeyType.INT),
            ):
                found.setdefault(f"{what}/{name}", []).append(run(what, dsn, uri, name, key))
            for what, rows, missing in (("repair", 133_433, 102_349), ("repair_paced", 1_967, 117)):
                name = f"{what}{number}"
                fill(dsn, uri, name, key=KeyType.INT, rows=rows, missing=missing, content=True)
                if what == "repair":
                    found.setdefault("write_plain", []).append(run("write_plain", dsn, uri, name))
                one = run(what, dsn, uri, name)
                assert (one["answer"]["missing"], one["answer"]["verified"]) == (missing, missing), one
                found.setdefault(what, []).append(one)
    return {name: dict(medians(rounds_of)) for name, rounds_of in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000, help="ids a side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(measure(options.keys, options.rounds), indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["contestant"]:
        contestant(sys.argv[2:])
    else:
        sys.exit(main())
