"""Sweep and automatic repair while both sides are written to, the worker is killed, and the target refuses, hangs and is away.

Afterwards both stores are compared by somebody else, and MongoDB's log is read for what the repair did to every document.
The short form runs in CI; ``--soak`` does it with 200,000 documents and 500 writes a second.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient, ReplaceOne, WriteConcern
from pymongo.errors import AutoReconnect, BulkWriteError, ConnectionFailure, OperationFailure

from gapwatch.core.keys import KeyCodec
from gapwatch.embedded import EmbeddedStack
from gapwatch.model.pipeline import KeyColumn, KeyType
from tests.acceptance.background import Background
from tests.acceptance.copier import Change, Copier, Operation
from tests.acceptance.scenery import CREATE, FIELDS, TABLE, configuration
from tests.acceptance.service import EVERY_ROLE, Service, wait_for
from tests.acceptance.shared import lose
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(2_400)]

REFUSED = {"$expr": {"$ne": [{"$mod": ["$_id", 20]}, 7]}}  # five in a hundred
DOCUMENT_REFUSED = 121
HEALED_SECONDS = 300.0
CODEC = KeyCodec((KeyColumn(path="id", type=KeyType.INT),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Rows, writes a second, seconds of writing, grace, and how long the target is away and hangs."""

    rows: int
    rate: float
    seconds: float
    grace: str
    away: float
    hangs: float


SHORT = Length(rows=2_000, rate=60, seconds=50, grace="2s", away=6, hangs=4)
LONG = Length(rows=200_000, rate=500, seconds=300, grace="10s", away=20, hangs=15)


@dataclass
class Tolerant(Copier):
    """A sink that marks what it writes, loses some of it, and passes over what the target refuses."""

    refused: int = 0

    def __post_init__(self) -> None:
        self.sink = _marked

    def _write(self, client: MongoClient[dict[str, Any]], operations: list[Operation]) -> None:
        concern = WriteConcern(w="majority", j=True)
        target = client[self.database].get_collection(self.collection, write_concern=concern)
        while not self._stop.is_set():
            try:
                target.bulk_write(_last_of_each(operations), ordered=False)
                return
            except BulkWriteError as error:
                details = error.details.get("writeErrors", ())
                if details and all(one["code"] == DOCUMENT_REFUSED for one in details):
                    self.refused += len(details)
                    return
            except (AutoReconnect, ConnectionFailure, OperationFailure):
                pass
            time.sleep(0.3)


def _last_of_each(operations: Sequence[Operation]) -> list[Operation]:
    """Return one operation a document, the last: without an order between them, they may be tried again one by one."""
    return list({operation._filter["_id"]: operation for operation in operations}.values())


def _marked(change: Change) -> Operation:
    operation = change.applied()
    if isinstance(operation, ReplaceOne):
        return ReplaceOne({"_id": change.key}, {**operation._doc, "by": "sink"}, upsert=True)
    return operation


class Losing(dict[Any, Any]):
    def get(self, seq: Any, default: Any = None) -> Any:
        return lose if isinstance(seq, int) and seq and seq % 50 == 0 else default


@dataclass
class Writer(Background):
    """Updates, deletes and inserts rows again, about `rate` a second, until it is stopped."""

    dsn: str
    rows: int
    rate: float
    writes: int = 0

    def _run(self) -> None:
        rng, gone, seq, started = random.Random(1), set[int](), self.rows, time.monotonic()
        with psycopg.connect(self.dsn) as connection:
            while not self._stop.is_set():
                if self.writes > (time.monotonic() - started) * self.rate:
                    time.sleep(0.005)
                    continue
                for key in {rng.randint(1, self.rows) for _ in range(5)}:
                    seq += 1
                    self.writes += 1
                    if key in gone:
                        gone.discard(key)
                        connection.execute(f"INSERT INTO {TABLE} (id, seq, v) VALUES (%s, %s, %s)", (key, seq, f"v{seq}"))
                    elif rng.random() < 0.1:
                        gone.add(key)
                        connection.execute(f"DELETE FROM {TABLE} WHERE id = %s", (key,))
                    else:
                        connection.execute(f"UPDATE {TABLE} SET seq = %s, v = %s WHERE id = %s", (seq, f"v{seq}", key))
                connection.commit()


def test_sweep_and_repair_under_fire(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    length = LONG if request.config.getoption("--soak") else SHORT
    dsn, database = stack.postgres.dsn(postgres_database), postgres_database
    rows = f"INSERT INTO {TABLE} (id, seq, v) SELECT i, i, 'v' || i FROM generate_series(1, {length.rows}) i"
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL", rows)
    with captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix:
        group = f"copier-{database}"
        sink = Tolerant(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, stack.mongodb.uri, database, "orders")
        sink.rules = Losing()
        service = Service(tmp_path, config_of(stack, dsn, database, group, length))
        writer = Writer(dsn, length.rows, length.rate)
        sink.start()
        try:
            wait_for(lambda: count(stack, database) >= length.rows * 0.97, "the rows to be copied", 300)
            half(stack, database)
            service.start(EVERY_ROLE)
            writer.start()
            burn(stack, database, service, length)
            writer.stop()
            began = time.monotonic()
            wait_for(lambda: differing(stack, database, dsn) == {}, "both stores to be equal", HEALED_SECONDS)
            healed = time.monotonic() - began
            wait_for(lambda: not service.gaps(), "the gaps to be resolved", 120)
            assert sink.refused, "the target refused nothing: nothing was tried"
            judged = examine(stack, database, tmp_path / "gapwatch.db")
            assert judged["writes"] >= length.rows * 0.1, judged  # the sink brings many back by itself
            print(f"healed after {healed:.0f} s; {writer.writes} writes at the source; {judged}")
        finally:
            writer.stop()
            refuse(stack, database, {})
            sink.stop()
            service.stop()


def config_of(stack: EmbeddedStack, dsn: str, database: str, group: str, length: Length) -> dict[str, Any]:
    kinds = dict.fromkeys(("missing", "stale", "mismatch", "undeleted"), "auto")
    limits = {"max_documents_per_run": 1_000_000, "brake_ratio": 1.0, "backoff": "2s", "max_attempts": 100}
    return configuration(
        stack,
        dsn,
        database,
        group,
        grace=length.grace,
        fields=FIELDS,
        repair={**kinds, **limits},
        sweep={"every": "10s", "start_delay": "0s", "load": 1.0, "batch": {"documents": 500, "pause": "0s"}},
        incident_threshold=1_000_000,
    )


def half(stack: EmbeddedStack, database: str) -> None:
    """Take every other document away, before anybody looks."""
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        client[database].orders.delete_many({"$expr": {"$eq": [{"$mod": ["$_id", 2]}, 1]}})
    finally:
        client.close()


def burn(stack: EmbeddedStack, database: str, service: Service, length: Length) -> None:
    """Refuse five documents in a hundred all the time; kill the worker three times; let the target hang, and take it away."""
    step = length.seconds / 7
    refuse(stack, database, REFUSED)
    for number in range(3):
        time.sleep(step)
        service.restart("repair", signal.SIGKILL)
        if number == 0:
            stack.mongodb.pause()
            time.sleep(length.hangs)
            stack.mongodb.resume()
        elif number == 1:
            stack.mongodb.kill()
            time.sleep(length.away)
            stack.mongodb.start()
        time.sleep(step)
    service.check_alive()
    time.sleep(step)
    refuse(stack, database, {})


def refuse(stack: EmbeddedStack, database: str, rule: dict[str, Any]) -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        client[database].command("collMod", "orders", validator=rule, validationLevel="strict" if rule else "off")
    finally:
        client.close()


def count(stack: EmbeddedStack, database: str) -> int:
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        return client[database].orders.count_documents({})
    finally:
        client.close()


def differing(stack: EmbeddedStack, database: str, dsn: str) -> dict[int, tuple[Any, Any]]:
    """Compare both stores without Gapwatch."""
    with psycopg.connect(dsn) as connection:
        rows: dict[int, Any] = {key: (seq, v) for key, seq, v in connection.execute(f"SELECT id, seq, v FROM {TABLE}").fetchall()}
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        documents = {one["_id"]: (one["seq"], one["v"]) for one in client[database].orders.find({}, {"seq": 1, "v": 1})}
    finally:
        client.close()
    keys = rows.keys() | documents.keys()
    return {key: (rows.get(key), documents.get(key)) for key in keys if rows.get(key) != documents.get(key)}


def examine(stack: EmbeddedStack, database: str, ledger: Path) -> dict[str, int]:
    """Read the target's log: no write of ours took a document back, and the audit knows of each one."""
    ours: Counter[int] = Counter()
    newest: dict[int, int] = {}
    for key, seq, by in versions(stack, database):
        if seq is None:
            continue
        if by is None:
            ours[key] += 1
            assert seq >= newest.get(key, 0), f"our write took document {key} back from {newest[key]} to {seq}"
        newest[key] = max(seq, newest.get(key, 0))
    with sqlite3.connect(ledger) as connection:
        found = connection.execute("SELECT key, outcome, count(*) FROM audit WHERE action = 'backfill_write' GROUP BY 1, 2")
        audited: dict[str, Counter[int]] = {}
        for key, outcome, times in found:
            audited.setdefault(outcome, Counter())[int(CODEC.decode(key)[0])] += times
    for key, times in ours.items():
        announced = audited["planned"][key]
        assert announced >= times, f"document {key} was written {times} times, and announced {announced}"
    return {"writes": ours.total(), "announced": audited["planned"].total(), "written": audited["written"].total()}


def versions(stack: EmbeddedStack, database: str) -> Iterator[tuple[int, int | None, str | None]]:
    """Yield key, `seq` and `by` of every state that a document had, oldest first; None for what is not there."""
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    namespace, known = f"{database}.orders", dict[int, dict[str, Any]]()
    try:
        for entry in client.local["oplog.rs"].find({"$or": [{"ns": namespace}, {"o.applyOps.ns": namespace}]}):
            for change in entry["o"].get("applyOps", [entry]):
                if change.get("ns") != namespace or change["op"] not in "iud":
                    continue
                key = change["o2"]["_id"] if change["op"] == "u" else change["o"]["_id"]
                if change["op"] == "d":
                    known.pop(key, None)
                    yield key, None, None
                    continue
                state = known[key] = _applied(known.get(key, {}), change["o"])
                yield key, state.get("seq"), state.get("by")
    finally:
        client.close()


def _applied(before: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    difference = change.get("diff")
    if difference is None:
        return {name: value for name, value in change.items() if name != "$v"}
    after = {**before, **difference.get("u", {}), **difference.get("i", {})}
    return {name: value for name, value in after.items() if name not in difference.get("d", {})}
