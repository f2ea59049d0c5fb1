"""Columns that the source's log leaves out when they did not change (TOAST, REPLICA IDENTITY DEFAULT)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from bson import Decimal128
from pymongo import ReplaceOne

from gapwatch.embedded import EmbeddedStack, mongo_sink_config
from gapwatch.errors import ConflictError
from tests.acceptance.copier import PLACEHOLDER, Change, Copier, Operation, fields_of
from tests.acceptance.scenery import CREATE, TABLE, Scene, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import (
    at,
    caught_up,
    create_database,
    during,
    gaps_of,
    heal,
    is_at_rest,
    is_swept,
    lose,
    now,
    number,
)
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

BIG = 20_000
OLDER = range(1, 6)  # rows from before the capture: the stream never showed their big column
GRACE = 2.0
NAMES = ("orders", "sunk")


@dataclass
class World:
    """``orders``: the table by way of the copier; ``sunk``: the same table by way of MongoDB's own sink connector."""

    scene: Scene

    @property
    def service(self) -> Service:
        return self.scene.service

    def insert(self, *keys: int) -> None:
        rows = (f"({key}, {key}, 'a', 1, {_big(key)})" for key in keys)
        self.scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount, big) VALUES {', '.join(rows)}")

    def update(self, key: int, seq: int) -> None:
        """Change a row; its big column stays, so that the event does not carry it."""
        self.scene.sql(f"UPDATE {TABLE} SET seq = {seq}, v = 'b' WHERE id = {key}")

    def documents(self, collection: str) -> dict[int, dict[str, Any]]:
        client = self.scene.mongo()
        try:
            return {document["_id"]: document for document in client[self.scene.database][collection].find()}
        finally:
            client.close()


def _big(key: int) -> str:
    """Return SQL for a text of 20 kB that does not compress into a row."""
    return f"(SELECT substr(string_agg(md5(({key} * 1000 + n)::text), ''), 1, {BIG}) FROM generate_series(1, {BIG // 32 + 1}) n)"


def two_ways(stack: EmbeddedStack, dsn: str, database: str) -> dict[str, Any]:
    config = configuration(stack, dsn, database, f"copier-{database}")
    orders = config["pipelines"]["orders"]
    target = {**orders["target"], "collection": f"{database}.sunk"}
    config["pipelines"]["sunk"] = {**orders, "target": target, "delivery": {"group": f"connect-sink-{database}"}}
    return config


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    database = create_database(stack, f"toast_{number()}")
    dsn, raw, sink = stack.postgres.dsn(database), f"{database}.{TABLE}", f"sink-{database}"
    execute(
        dsn,
        CREATE,
        f"ALTER TABLE {TABLE} ALTER COLUMN big SET STORAGE EXTERNAL",
        *(f"INSERT INTO {TABLE} (id, seq, v, amount, big) VALUES ({key}, {key}, 'older', 1, {_big(key)})" for key in OLDER),
    )
    options = {"decimal.handling.mode": "string", "snapshot.mode": "no_data"}
    with captured(stack, database, [TABLE], **options):
        copier = Copier(stack.kafka.bootstrap_servers, raw, f"copier-{database}", stack.mongodb.uri, database, "orders")
        service = Service(tmp_path_factory.mktemp("toast"), two_ways(stack, dsn, database))
        world = World(Scene(stack, dsn, database, copier, service))
        for collection in ("orders", "sunk"):
            heal(world.scene, collection)
        execute(dsn, f"UPDATE {TABLE} SET amount = 2, big = big || 'x' WHERE id = 1")  # makes the topic
        client = stack.connect.client
        client.put_connector(
            sink,
            mongo_sink_config(
                stack.mongodb,
                topic=raw,
                database=database,
                collection="sunk",
                variant="unwrap",
                **{"consumer.override.auto.offset.reset": "earliest"},
            ),
        )
        try:
            client.wait_running(sink)
            copier.start()
            service.start()
            yield world
            service.check_alive()
        finally:
            copier.stop()
            service.stop()
            client.delete(sink)


@pytest.fixture
def world(built: World) -> Iterator[World]:
    for name in NAMES:
        wait_for(partial(is_at_rest, built.service, name), f"pipeline {name} to be at rest", 150)
    try:
        yield built
    finally:
        built.scene.copier.rules.clear()
        for collection in ("orders", "sunk"):
            heal(built.scene, collection)
        wait_for(lambda: not any(built.service.gaps(name) for name in NAMES), "the gaps to be resolved", 40)
        for name in NAMES:  # what events showed in part; the next test begins with no sweep under way
            wait_for(partial(_swept, built.service, name), f"a content sweep of {name}", 60)


def _swept(service: Service, pipeline: str) -> bool:
    """Start a content sweep and wait for its end; False while another one is under way."""
    try:
        run = service.api.post("/api/v1/sweeps", {"pipeline": pipeline, "content": True})
    except ConflictError:
        return False
    wait_for(lambda: service.api.get(f"/api/v1/sweeps/{run['id']}")["state"] == "succeeded", "the sweep", 60)
    return True


def test_m5_an_unchanged_big_column_is_no_gap_and_hides_none(world: World) -> None:
    service, known, lost = world.service, number(), number()
    world.insert(known, lost)
    for name in NAMES:
        wait_for(partial(_there, world, name, {known, lost}), f"the documents of {name}", 30)
    sequence = {key: number() for key in (known, lost, 2)}
    world.scene.copier.rules[sequence[lost]] = lose
    for key, seq in sequence.items():
        world.update(key, seq)
    gaps = wait_for(lambda: gaps_of(service, *sequence), "the gap of the lost update", 30)
    during(GRACE + 1, lambda: None)
    gaps = gaps_of(service, *sequence)
    assert [(gap["key"]["id"], gap["kind"], gap["fields"]) for gap in gaps] == [(lost, "stale", ["seq", "v"])]
    documents = world.documents("orders")
    assert {len(documents[key]["big"]) for key in sequence} == {BIG}


def test_m5_a_sink_that_overwrites_is_found_to_the_document(world: World) -> None:
    service, keys = world.service, [number() for _ in range(12)]
    world.insert(*keys)
    wait_for(lambda: set(keys) <= world.documents("sunk").keys(), "the documents", 30)
    caught_up(service, "sunk", both=True)  # the streams have shown them whole
    for key in keys[:7]:
        world.update(key, number())
    world.scene.sql(f"UPDATE {TABLE} SET v = 'c', big = {_big(7)} WHERE id = {keys[7]}")  # this event carries all
    overwritten = wait_for(lambda: _overwritten(world, keys, 7), "the sink to have overwritten", 30)
    assert overwritten == set(keys[:7])
    wait_for(lambda: len(gaps_of(service, *keys, pipeline="sunk")) >= 7, "the gaps", 30)
    during(GRACE + 2, lambda: None)
    gaps = gaps_of(service, *keys, pipeline="sunk")
    assert {gap["key"]["id"] for gap in gaps} == overwritten
    assert {(gap["kind"], gap["cause"], *gap["fields"]) for gap in gaps} == {("mismatch", "overwritten", "big")}
    assert service.gaps("orders") == []


def test_m5_a_blanked_column_is_named_by_coverage_and_found_by_the_content_sweep(world: World) -> None:
    service, key = world.service, 3
    wait_for(lambda: is_swept(service), "no sweep to prove anything", 60)
    wait_for(lambda: _masked(service, 0), "nothing to be left of other tests", 20)
    seq = number()
    world.scene.copier.rules[seq] = _blank
    world.update(key, seq)
    wait_for(lambda: world.documents("orders")[key].get("big") == "", "the blanked column", 20)
    view = wait_for(lambda: _masked(service, 1), "coverage to name it", 20)
    assert view["coverage"] < 1
    assert [reason for reason in view["reasons"] if "1 writes had fields that no event carried" in reason]
    during(GRACE + 2, lambda: _no_gaps(service, key))  # the stream cannot know
    asked = now()
    run = service.api.post("/api/v1/sweeps", {"pipeline": "orders", "content": True})
    gap = wait_for(lambda: gaps_of(service, key), f"sweep {run['id']}", 40)[0]
    assert (gap["kind"], gap["fields"], gap["detector"]) == ("mismatch", ["big"], "sweep")
    assert at(gap["first_seen"]) > asked
    view = wait_for(lambda: _masked(service, 0), "the sweep to have proven the rest", 20)
    assert view["coverage"] == 1
    assert at(view["consistent_through"]) < asked


def _blank(change: Change) -> list[tuple[float, Operation | None]]:
    assert change.after is not None
    document = {**fields_of(change.after), "big": "", "amount": Decimal128(str(change.after["amount"]))}
    return [(0, ReplaceOne({"_id": change.key}, document, upsert=True))]


def _there(world: World, collection: str, keys: set[int]) -> bool:
    return keys <= world.documents(collection).keys()


def _overwritten(world: World, keys: Sequence[int], count: int) -> set[int] | None:
    found = {key for key, document in world.documents("sunk").items() if key in keys and document.get("big") == PLACEHOLDER}
    return found if len(found) >= count else None


def _masked(service: Service, count: int) -> dict[str, Any] | None:
    view = service.view()
    return view if view["totals"]["masked"] == count else None


def _no_gaps(service: Service, *keys: int) -> None:
    assert gaps_of(service, *keys) == []
