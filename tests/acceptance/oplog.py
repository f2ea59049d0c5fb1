"""MongoDB's oplog: one so small that a test can make it roll over, and what a collection's documents once were."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from bson import Timestamp
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from tests.stack import until

OPLOG_MIB = 16
FILLING = "x" * 1_000_000
AT_ONCE = 20


@contextmanager
def small_oplog() -> Iterator[EmbeddedStack]:
    """Yield a stack of nothing but a MongoDB with an oplog of 16 MiB."""
    with EmbeddedStack(parts=("mongodb",)) as running:
        mongodb = running.mongodb
        mongodb.stop()
        shutil.rmtree(mongodb.directory / "data")  # the size of an oplog is fixed when it is made
        mongodb.oplog_mib = OPLOG_MIB
        mongodb.options = ("--syncdelay", "1")  # what no checkpoint holds is never cut off
        mongodb.start()
        yield running


def roll_over(uri: str, before: Timestamp | None = None) -> None:
    """Write until the oplog holds nothing that is as old as `before` (left out: as the end of the oplog now)."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    try:
        oplog = client.local["oplog.rs"]

        def end(direction: int) -> Timestamp:
            entry = oplog.find_one({}, {"ts": 1}, sort=[("$natural", direction)])
            assert entry is not None
            stamp: Timestamp = entry["ts"]
            return stamp

        oldest = before or end(-1)

        def rolled() -> bool:
            client.filling.documents.insert_many([{"text": FILLING, "salt": os.urandom(16)} for _ in range(AT_ONCE)])
            return end(1) > oldest

        until(rolled, "the oplog to roll over", 60)
        client.drop_database("filling")
    finally:
        client.close()


def changes_of(uri: str, namespace: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every insert, update and delete of a collection's documents, oldest first, each with the entry that holds it."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    try:
        for entry in client.local["oplog.rs"].find({"$or": [{"ns": namespace}, {"o.applyOps.ns": namespace}]}):
            for change in entry["o"].get("applyOps", [entry]):
                if change["ns"] == namespace and change["op"] in "iud":
                    yield change, entry
    finally:
        client.close()


def key_of(change: Mapping[str, Any]) -> Any:
    """Return the ``_id`` of the document that a change is about."""
    return change["o2"]["_id"] if change["op"] == "u" else change["o"]["_id"]


def history_of(uri: str, namespace: str, field: str) -> dict[Any, list[tuple[float, Any]]]:
    """Return, by ``_id``, what a field of each document was set to (None: deleted), oldest first, with the time in seconds."""
    found: dict[Any, list[tuple[float, Any]]] = defaultdict(list)
    for change, entry in changes_of(uri, namespace):
        if change["op"] == "d" or (value := value_of(change["o"], field)) is not None:
            at = entry["wall"].replace(tzinfo=UTC).timestamp()
            found[key_of(change)].append((at, None if change["op"] == "d" else value))
    return found


def value_of(changed: Mapping[str, Any], field: str) -> Any:
    """Return what an insert, a replacement or a difference sets a field to; None where it leaves it as it is."""
    difference = changed.get("diff")
    if difference is None:
        return changed.get(field)
    return next((difference[part][field] for part in ("u", "i") if field in difference.get(part, ())), None)
