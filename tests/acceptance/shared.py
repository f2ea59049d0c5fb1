"""One watched pipeline for all tests of a file: each finds it HEALTHY, uses numbers of its own, and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, Message, TopicPartition
from pymongo import DeleteOne, MongoClient, ReplaceOne

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change, Operation, fields_of
from tests.acceptance.scenery import TABLE, Scene
from tests.acceptance.service import Service, wait_for
from tests.stack import BESIDE_SECONDS, PATIENCE_SECONDS

# W + P as in the product's features, for a grace of two seconds: grace, `disorder`, a little skew; a second, two heartbeats and
# `settle`, the sink's commit, and two seconds of reads.
FOUND_WITHIN_SECONDS = (2 + 0.2 + 0.1) + (1 + 2 * 0.25 + 1 + 0.5 + 2) + BESIDE_SECONDS
_NUMBERS = itertools.count(1_000_000)


def number() -> int:
    """Return a number that no other write of this process has."""
    return next(_NUMBERS)


def create_database(stack: EmbeddedStack, name: str) -> str:
    """Create an empty database; return its name."""
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return name


def lose(_: Change) -> list[tuple[float, Operation | None]]:
    """A rule: the write is not applied."""
    return [(0, None)]


def late(seconds: float) -> Callable[[Change], list[tuple[float, Operation | None]]]:
    """Return a rule: the write is applied so much later."""
    return lambda change: [(seconds, change.applied())]


def falsify(**fields: Any) -> Callable[[Change], list[tuple[float, Operation | None]]]:
    """Return a rule: the document is written with these fields instead of the row's."""

    def rule(change: Change) -> list[tuple[float, Operation | None]]:
        assert change.after is not None
        return [(0, ReplaceOne({"_id": change.key}, {**fields_of(change.after), **fields}, upsert=True))]

    return rule


def found(scene: Scene, pipeline: str = "orders") -> dict[int, str]:
    """Return the kinds of the open gaps by key."""
    return {int(gap["key"]["id"]): gap["kind"] for gap in scene.service.gaps(pipeline)}


def at(text: str) -> datetime:
    """Return an API time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def now() -> datetime:
    return datetime.now(UTC)


def gaps_of(service: Service, *keys: int, pipeline: str = "orders", state: str | None = None) -> list[dict[str, Any]]:
    """Return the gaps (open ones, if not told otherwise) of these keys, in their order."""
    found = service.gaps(pipeline) if state is None else service.gaps(pipeline, state=state)
    return sorted((gap for gap in found if gap["key"]["id"] in keys), key=lambda gap: gap["key"]["id"])


def during(seconds: float, look: Callable[[], object]) -> None:
    """Call `look`, which asserts, again and again for so long: what must not happen takes time to not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        look()
        time.sleep(0.2)


def caught_up(service: Service, pipeline: str = "orders", *, both: bool = False) -> dict[str, Any]:
    """Wait until everything that was written before now is settled and counted; return the pipeline's view then.

    ``both``: also what was written at the target, and settles nothing.
    """
    started = now()

    def look() -> dict[str, Any] | None:
        view = service.view(pipeline)
        times = [view["consistent_through"], *([view.get("target_watermark")] if both else [])]
        return view if all(time is not None and at(time) > started for time in times) else None

    return wait_for(look, "everything before to be settled", 30)


def resumed(service: Service, pipeline: str = "orders") -> dict[str, Any]:
    """Return the sweep that followed the end of a pause or a maintenance window, once it has succeeded."""

    def look() -> dict[str, Any] | None:
        runs = service.api.get("/api/v1/sweeps", pipeline=pipeline)["sweeps"]
        return next((run for run in runs if run["request"]["reason"] == "resumed" and run["state"] == "succeeded"), None)

    return wait_for(look, "the sweep after a quiet time", 60)


def heal(scene: Scene, collection: str = "orders", table: str = TABLE, uri: str = "") -> None:
    """Make the target equal to the source by hand, whatever a test left there."""
    with psycopg.connect(scene.dsn) as connection:
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    wanted = {row["id"]: fields_of({name: _plain(value) for name, value in row.items()}) for row in rows}
    client: MongoClient[dict[str, Any]] = MongoClient(uri or scene.stack.mongodb.uri)
    try:
        target = client[scene.database][collection]
        there = {document["_id"]: document for document in target.find()}
        operations: list[Any] = [DeleteOne({"_id": key}) for key in there.keys() - wanted.keys()]
        operations += [
            ReplaceOne({"_id": key}, document, upsert=True)
            for key, document in wanted.items()
            if there.get(key) != {"_id": key, **document}
        ]
        if operations:
            target.bulk_write(operations)
    finally:
        client.close()


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str | bool) else str(value)


def is_at_rest(service: Service, pipeline: str = "orders") -> bool:
    """Whether a pipeline is HEALTHY without a gap, and nothing of an earlier test is on its way or under judgement."""
    service.check_alive()
    view = service.view(pipeline)
    unsettled = view["status"] != "HEALTHY" or view["pending_keys"] or view["in_transit_keys"]
    return not unsettled and service.gaps(pipeline) == []


def is_swept(service: Service, pipeline: str = "orders") -> bool:
    """Whether no hole waits for a sweep, and none is under way: what is lost now, no sweep finds before the stream does."""
    active = service.api.get("/api/v1/sweeps", pipeline=pipeline, state="queued,running")["sweeps"]
    return not active and not service.api.get("/api/v1/findings", pipeline=pipeline)["findings"]


@contextmanager
def clean(scene: Scene, pipeline: str = "orders") -> Iterator[Scene]:
    """Yield the scene when it is HEALTHY without a gap; afterwards undo what is wrong at the target."""
    scene.copier.rules.clear()
    wait_for(lambda: is_at_rest(scene.service, pipeline), f"pipeline {pipeline} to be HEALTHY and at rest", 150)
    try:
        yield scene
    finally:
        scene.copier.rules.clear()
        scene.copier.resume()
        heal(scene)
        wait_for(lambda: scene.service.gaps(pipeline) == [], "the gaps to be resolved", 30)


def record_at(servers: str, row: Mapping[str, Any]) -> Message:
    """Return the raw record that a row of evidence names."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "tests", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(row["topic"], row["partition"], row["offset"])])
        (message,) = consumer.consume(1, timeout=PATIENCE_SECONDS)
        assert (message.error(), message.offset()) == (None, row["offset"])
        return message
    finally:
        consumer.close()


def shown_by(stream: Any, least: int = 0) -> list[Any]:
    """Return what a change stream shows until nothing more comes, `least` changes or more: it comes behind the writes."""
    found, end = list[Any](), time.monotonic() + PATIENCE_SECONDS
    while True:
        change = stream.try_next()
        if change is not None:
            found.append(change)
        elif len(found) >= least or time.monotonic() > end:
            return found


def judged_after(gap: Mapping[str, Any]) -> float:
    """Return how many seconds after the write a gap was confirmed."""
    written, confirmed = (datetime.fromisoformat(gap[name]) for name in ("event_time", "confirmed_at"))
    return (confirmed - written).total_seconds()


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in [pid, *children])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
