"""Sweep and automatic repair while both sides are written to, the worker is killed, and the target refuses, hangs and is away.

Afterwards both stores are compared by somebody else, and MongoDB's log is read for what the repair did to every document, which
is held against its audit and its plans. The short form runs in CI; ``--soak`` does it with 200,000 documents and 500 writes a
second.
"""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from pymongo import MongoClient, WriteConcern
from pymongo.errors import AutoReconnect, BulkWriteError, ConnectionFailure, OperationFailure

from gapwatch.embedded import EmbeddedStack
from tests.acceptance import fire
from tests.acceptance.accounts import Shown, accounted, never_back, read_audit, within_plans
from tests.acceptance.copier import Copier, Operation
from tests.acceptance.fire import HEALED_SECONDS, Length, State, Writer, differing, is_lost
from tests.acceptance.oplog import changes_of, key_of, value_of
from tests.acceptance.scenery import TABLE, configuration
from tests.acceptance.service import EVERY_ROLE, Service, wait_for
from tests.acceptance.shared import lose
from tests.stack import BESIDE_SECONDS, captured

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(2_400)]

REFUSED = {"$expr": {"$ne": [{"$mod": ["$_id", fire.REFUSED_OF]}, fire.REFUSED]}}
DOCUMENT_REFUSED = 121
# MongoDB stamps its log by a clock that it reads a few times a second, to the millisecond; seldom on a machine that is busy.
SLACK_US = 100_000 + int(50_000 * BESIDE_SECONDS)

SHORT = Length(rows=2_000, rate=60, seconds=50, grace="2s", away=6, hangs=4)
LONG = Length(rows=200_000, rate=500, seconds=300, grace="10s", away=20, hangs=15)


@dataclass
class Tolerant(Copier):
    """A sink that loses some of what it is to write, and passes over what the target refuses; it wrote in these sessions."""

    refused: int = 0
    sessions: set[bytes] = field(default_factory=set)

    def _write(self, client: MongoClient[dict[str, Any]], operations: list[Operation]) -> None:
        concern = WriteConcern(w="majority", j=True)
        target = client[self.database].get_collection(self.collection, write_concern=concern)
        while not self._stop.is_set():
            try:
                with client.start_session() as session:
                    self.sessions.add(bytes(session.session_id["id"]))
                    target.bulk_write(_last_of_each(operations), ordered=False, session=session)
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


class Losing(dict[Any, Any]):
    def get(self, seq: Any, default: Any = None) -> Any:
        return lose if isinstance(seq, int) and is_lost(seq) else default


def test_sweep_and_repair_under_fire(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    length = fire.length_of(request.config, short=SHORT, long=LONG)
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
            began_at = half(stack, database)
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
            assert differing(dsn, documents(stack, database)) == {}
            judged = examine(logged(stack, database, sink.sessions, began_at), tmp_path / "gapwatch.db")
            assert judged["writes"] >= length.rows * 0.1, judged  # the sink brings many back by itself
            print(f"healed after {healed:.0f} s; {writer.writes} writes at the source; {judged}")
        finally:
            writer.stop()
            refuse(stack, database, {})
            sink.stop()
            service.stop()


def half(stack: EmbeddedStack, database: str) -> Timestamp:
    """Take every other document away, before anybody looks; return the place in MongoDB's log where that has ended."""
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        with client.start_session() as session:
            client[database].orders.delete_many({"$expr": {"$eq": [{"$mod": ["$_id", 2]}, 1]}}, session=session)
            assert session.operation_time is not None
            return session.operation_time
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


def logged(stack: EmbeddedStack, database: str, sessions: set[bytes], began_at: Timestamp) -> Iterator[Shown]:
    """Yield every state that a document had, by the target's log. Ours: what came since, and in no session of the sink."""
    seqs: dict[int, int] = {}
    for change, entry in changes_of(stack.mongodb.uri, f"{database}.orders"):
        key = key_of(change)
        if change["op"] == "d":
            seqs.pop(key, None)
        elif (seq := value_of(change["o"], "seq")) is not None:
            seqs[key] = seq
        by = entry.get("lsid")
        is_sinks = by is not None and bytes(by["id"]) in sessions
        at_us = int(entry["wall"].replace(tzinfo=UTC).timestamp() * 1_000_000)
        yield Shown(key=key, seq=seqs.get(key), is_ours=entry["ts"] > began_at and not is_sinks, at_us=at_us)


def examine(states: Iterator[Shown], ledger: Path) -> dict[str, int]:
    """Judge what the target's log says: no write of ours took a document back, each is in a plan, and in the audit."""
    shown, audit = list(states), read_audit(ledger)
    judged = never_back(shown)
    assert judged.came_back == set()
    ours: dict[int, list[int]] = defaultdict(list)
    for one in shown:
        if one.is_ours:
            ours[one.key].append(one.at_us)
    within_plans(audit, ours, slack_us=SLACK_US)
    counts = accounted(audit, sent=ours, done=ours, slack_us=SLACK_US)
    deletes = sum(one.is_ours and one.seq is None for one in shown)
    return {**counts, "deletes": deletes, "taken_back_by_others": judged.taken_back_by_others}
