"""Sweep and automatic repair while both sides are written to, the worker is killed, and the target refuses, hangs and is away.

Afterwards both stores are compared by somebody else, and MongoDB's log is read for what the repair did to every document.
The short form runs in CI; ``--soak`` does it with 200,000 documents and 500 writes a second.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient, ReplaceOne, WriteConcern
from pymongo.errors import AutoReconnect, BulkWriteError, ConnectionFailure, OperationFailure

from gapwatch.embedded import EmbeddedStack
from tests.acceptance import fire
from tests.acceptance.copier import Change, Copier, Operation
from tests.acceptance.fire import HEALED_SECONDS, Length, State, Writer, differing, is_lost
from tests.acceptance.scenery import TABLE, configuration
from tests.acceptance.service import EVERY_ROLE, Service, wait_for
from tests.acceptance.shared import lose
from tests.stack import captured

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(2_400)]

REFUSED = {"$expr": {"$ne": [{"$mod": ["$_id", fire.REFUSED_OF]}, fire.REFUSED]}}
DOCUMENT_REFUSED = 121


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
        return lose if isinstance(seq, int) and is_lost(seq) else default


def test_sweep_and_repair_under_fire(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    length = LONG if request.config.getoption("--soak") else SHORT
    dsn, database = stack.postgres.dsn(postgres_database), postgres_database
    fire.create(dsn, length)
    with captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix:
        group = f"copier-{database}"
        sink = Tolerant(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, stack.mongodb.uri, database, "orders")
        sink.rules = Losing()
        service = Service(tmp_path, configuration(stack, dsn, database, group, **fire.repairing(length)))
        writer = Writer(dsn, length.rows, length.rate)
        sink.start()
        try:
            wait_for(lambda: count(stack, database) >= length.rows * 0.97, "the rows to be copied", 300)
            half(stack, database)
            service.start(EVERY_ROLE)
            writer.start()
            refuse(stack, database, REFUSED)  # five documents in a hundred, all the time
            fire.burn(length, blows(stack, service, length))
            service.check_alive()
            refuse(stack, database, {})
            writer.stop()
            began = time.monotonic()
            wait_for(lambda: differing(dsn, documents(stack, database)) == {}, "both stores to be equal", HEALED_SECONDS)
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


def half(stack: EmbeddedStack, database: str) -> None:
    """Take every other document away, before anybody looks."""
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        client[database].orders.delete_many({"$expr": {"$eq": [{"$mod": ["$_id", 2]}, 1]}})
    finally:
        client.close()


def blows(stack: EmbeddedStack, service: Service, length: Length) -> list[Callable[[], None]]:
    """Return what happens, in order: the worker is killed, and the target hangs, goes away, and does nothing of the kind."""

    def hang() -> None:
        service.restart("repair", signal.SIGKILL)
        stack.mongodb.pause()
        time.sleep(length.hangs)
        stack.mongodb.resume()

    def go_away() -> None:
        service.restart("repair", signal.SIGKILL)
        stack.mongodb.kill()
        time.sleep(length.away)
        stack.mongodb.start()

    return [hang, go_away, lambda: service.restart("repair", signal.SIGKILL)]


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


def documents(stack: EmbeddedStack, database: str) -> dict[int, State]:
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        return {one["_id"]: (one["seq"], one["v"]) for one in client[database].orders.find({}, {"seq": 1, "v": 1})}
    finally:
        client.close()


def examine(stack: EmbeddedStack, database: str, ledger: Path) -> dict[str, int]:
    """Read the target's log: no write of ours took a document back, and the audit knows of each one."""
    states = ((key, seq, seq is not None and by is None) for key, seq, by in versions(stack, database))
    judged = fire.never_back(states)
    assert judged.came_back == set()
    return fire.accounted(judged.ours, fire.audited(ledger))


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
