"""A MongoDB whose oplog is small, so that a test can make it roll over: what was read up to then is then really lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
