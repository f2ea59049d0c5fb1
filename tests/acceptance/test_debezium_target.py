"""A collection that Debezium captures: the records of its MongoDB connector are the feed, heartbeat documents are its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pymongo import ReplaceOne

from gapwatch.core.envelopes import HEARTBEAT_COLLECTION
from gapwatch.embedded import EmbeddedStack, mongodb_source_config
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import found, is_swept, lose
from tests.stack import read_topic

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

BEHIND = timedelta(seconds=12)  # heartbeats of a second twice, settle, and times of whole seconds; on a machine that is busy


@contextmanager
def scene_of(stack: EmbeddedStack, database: str, directory: Path, *collections: str) -> Iterator[Scene]:
    """Yield a pipeline whose target is captured by a connector of those collections."""
    name = f"copy-{database}"
    client = stack.connect.client
    names = [f"{database}.{collection}" for collection in collections]
    client.put_connector(name, mongodb_source_config(stack.mongodb, prefix=name, collections=names))
    try:
        client.wait_running(name)
        target = {
            "store": "catalog",
            "collection": f"{database}.orders",
            "key": {"_id": "int"},
            "feed": {"debezium": f"{name}.{database}.orders"},
        }
        with watched(stack, database, directory, wait=False, target=target) as scene:
            yield scene
    finally:
        client.delete(name)


def test_a_collection_that_debezium_captures_has_a_time_without_writes(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Before its first document, too, and in each partition; and a write that is lost there is found by the stream."""
    with scene_of(stack, postgres_database, tmp_path, "orders", HEARTBEAT_COLLECTION) as scene:
        service = scene.service
        service.wait_healthy()
        for key in range(1, 6):
            scene.insert(key, key)
        wait_for(lambda: len(scene.documents()) == 5, "the copies", 30)

        def fresh() -> bool:
            view = service.view()
            through = view["consistent_through"]
            if view["status"] != "HEALTHY" or through is None:
                return False
            return datetime.now(UTC) - datetime.fromisoformat(through) < BEHIND

        def steady() -> bool:
            """Whether it is so for much longer than new topics go unnoticed."""
            until = time.monotonic() + 15
            while time.monotonic() < until:
                if not fresh():
                    return False
                time.sleep(0.2)
            return True

        for topic in (f"{scene.database}.{TABLE}", f"copy-{scene.database}.{scene.database}.orders"):
            read_topic(stack, topic, 5, 60)
        wait_for(steady, "consistent-through to follow in topics that are new", 90)
        assert service.gaps() == []
        wait_for(lambda: is_swept(service), "no sweep to find anything", 60)

        scene.copier.rules[1_001] = lose
        scene.insert(11, 1_001)
        with scene.mongo() as client:
            orders = client[scene.database].orders
            orders.bulk_write([ReplaceOne({"_id": 99}, {"_id": 99, "seq": 0, "v": "nobody's"}, upsert=True)])
            orders.update_one({"_id": 2}, {"$set": {"v": "somebody's"}})
            orders.delete_one({"_id": 3})
        wanted = {11: "missing", 99: "extra", 2: "mismatch", 3: "missing"}
        wait_for(lambda: found(scene) == wanted, f"{wanted}", 60)
        assert {gap["detector"] for gap in service.gaps()} == {"stream"}


def test_a_connector_that_leaves_the_heartbeats_out_is_named_by_the_doctor(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    with scene_of(stack, postgres_database, tmp_path, "orders") as scene:
        scene.insert(1, 1)
        wait_for(scene.documents, "the copy", 30)
        done = scene.service.command("doctor")
        assert done.returncode == 0, done.stdout
        remedy = f"Add {scene.database}\\.{HEARTBEAT_COLLECTION} to collection.include.list."
        (said,) = [line for line in done.stdout.splitlines() if remedy in line]
        assert said.startswith("warning"), said
