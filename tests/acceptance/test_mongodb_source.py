"""MongoDB → its change stream → an indexer of its own → OpenSearch; Gapwatch follows both ends by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from bson import Decimal128, ObjectId
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from tests.acceptance.background import Background
from tests.acceptance.indexer import KINDS, OF_UPDATES, WHOLE, Fault, lines_of, send
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import caught_up, during, is_at_rest, is_swept, number
from tests.acceptance.test_opensearch import node as node
from tests.stack import ask

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

COUNTED = ("live", "sold")


@dataclass
class Follower(Background):
    """Copies a collection's changes to an index. ``faults`` maps an ``_id`` to what goes wrong with it, while it stands there.

    ``passed``: the ids whose changes it is through with, in their order.
    """

    uri: str
    database: str
    url: str
    index: str
    filtered: bool = False  # only what counts is copied, and what went is marked as gone
    faults: dict[Any, Fault] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    passed: list[Any] = field(default_factory=list)
    _newest: dict[Any, dict[str, Any]] = field(default_factory=dict)

    announces = True

    def _run(self) -> None:
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri, tz_aware=True)
        try:
            with client[self.database].orders.watch(full_document="updateLookup", max_await_time_ms=50) as stream:
                self._ready.set()
                while not self._stop.is_set():
                    change = stream.try_next()
                    if change is not None:
                        self._copy(change["documentKey"]["_id"], change.get("fullDocument"))
        finally:
            client.close()

    def _copy(self, key: Any, found: dict[str, Any] | None) -> None:
        fault, where = self.faults.get(key), {"_index": self.index, "_id": str(key)}
        if self.filtered and (found is None or found["v"] not in COUNTED):
            lines: list[Any] = [{"update": where}, {"doc": {"gone": True}, "doc_as_upsert": True}]
        elif found is None:
            lines = [{"delete": where}]
        else:
            lines = lines_of(where, plain(found), fault, before=self._newest.get(key, {}), number="amount")
            self._newest[key] = plain(found)
        if fault in (*WHOLE, Fault.RETRIED):  # a bulk is one change here; the token was stored first, where it is lost
            self.refused.append(fault.value)
        if fault not in (*WHOLE, Fault.LOST, Fault.COMMITTED_FIRST):
            send(self.url, lines, self.refused)
        self.passed.append(key)


def plain(document: dict[str, Any]) -> dict[str, Any]:
    placed: datetime = document["placed"]
    found = {
        "v": document["v"],
        "amount": document["amount"].to_decimal(),
        "placed": placed.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return found | ({"ship": document["ship"]} if "ship" in document else {})


@dataclass
class World:
    client: MongoClient[dict[str, Any]]
    database: str
    node: OpenSearchPart
    index: str
    follower: Follower
    filtering: Follower  # of pipeline `counted`
    service: Service

    def insert(self, *keys: ObjectId, **more: Any) -> None:
        self.client[self.database].orders.insert_many(
            [{"_id": key, "v": "a", "amount": Decimal128("12.50"), "placed": datetime.now(UTC), **more} for key in keys]
        )

    def gaps(self, pipeline: str = "orders") -> dict[str, str]:
        return {gap["key"]["_id"]: gap["kind"] for gap in self.service.gaps(pipeline)}

    def counted(self, key: ObjectId) -> dict[str, Any]:
        found = ask("POST", f"{self.node.url}/{self.filtering.index}/_mget", {"ids": [str(key)]})["docs"][0]
        return dict(found.get("_source", {}))

    def indexed(self, key: ObjectId) -> bool:
        body = {"ids": [str(key)]}
        return bool(ask("POST", f"{self.node.url}/{self.index}/_mget", body)["docs"][0]["found"])

    def wait_gaps(self, wanted: dict[str, str]) -> None:
        """Wait until just these are open: without a delivery what is merely late is a gap as well, for a moment."""
        wait_for(lambda: self.gaps() == wanted, f"gaps {wanted}", 40)

    def command(self, *arguments: str) -> tuple[int, Any]:
        return self.service.answer(*arguments)


@pytest.fixture
def world(built: World) -> World:
    """Both pipelines at rest, and nothing is swept."""
    for pipeline in ("orders", "counted"):
        wait_for(partial(is_at_rest, built.service, pipeline), f"pipeline {pipeline} to be at rest", 120)
        wait_for(partial(is_swept, built.service, pipeline), "sweeps to end", 60)
    return built


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, node: OpenSearchPart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    name = f"mongo{number()}"
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    client[name].create_collection("orders")
    for index in (name, f"{name}-counted"):
        ask("PUT", f"{node.url}/{index}", {"settings": {"number_of_shards": 2, "number_of_replicas": 0}})
    config = {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "topics": {"prefix": f"gw-{name}", "partitions": 2, "replication": 1},
        "stores": {
            "shop": {"type": "mongodb", "uri": stack.mongodb.uri},
            "search": {"type": "opensearch", "hosts": [node.url]},
        },
        "pipelines": {
            "orders": {
                "source": {
                    "store": "shop",
                    "collection": f"{name}.orders",
                    "key": {"_id": "objectid"},
                    "feed": {"change_stream": True},
                },
                "target": {"store": "search", "index": name, "key": {"_id": "objectid"}, "feed": {"seq_no": True}},
                "fields": {
                    "v": "v",
                    "amount": {"from": "amount", "type": "decimal"},
                    "placed": {"from": "placed", "type": "timestamp"},
                    "ship.city": "ship.city",
                },
                "grace": "3s",
                "delivery": "none",
            }
        },
    }
    orders: dict[str, Any] = config["pipelines"]["orders"]  # type: ignore[index]
    config["pipelines"]["counted"] = {  # type: ignore[index]
        **orders,
        "source": {**orders["source"], "where": "v in ('live', 'sold')"},
        "target": {**orders["target"], "index": f"{name}-counted", "deleted_when": "gone = true"},
        "repair": {"undeleted": "delete"},
    }
    follower = Follower(stack.mongodb.uri, name, node.url, name)
    filtering = Follower(stack.mongodb.uri, name, node.url, f"{name}-counted", filtered=True)
    service = Service(tmp_path_factory.mktemp("mongo"), config)
    follower.start()
    filtering.start()
    try:
        service.start()
        for pipeline in ("orders", "counted"):
            service.wait_healthy(pipeline, seconds=120)
        yield World(client, name, node, name, follower, filtering, service)
        service.check_alive()
    finally:
        follower.stop()
        filtering.stop()
        service.stop()
        client.close()


def test_b1_a_document_that_was_lost_on_its_way_to_the_index_is_found_and_repaired(world: World) -> None:
    keys = [ObjectId() for _ in range(6)]
    world.follower.faults[keys[3]] = Fault.LOST
    world.insert(*keys, ship={"city": "Wien"})
    world.wait_gaps({str(keys[3]): "missing"})
    [gap] = world.service.gaps()
    assert gap["cause"] == "never_written"
    assert world.service.command("gaps", "snooze", gap["id"], "--for", "1").returncode == 0
    [awake] = wait_for(lambda: world.service.gaps(state="open"), "the snooze to end", 20)
    assert awake["revision"] == gap["revision"] + 2, "it was snoozed, and is open again"
    code, plans = world.command("backfill", "plan", "orders", "--kinds", "missing")
    assert code == 0
    _, runs = world.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    assert (runs[0]["state"], runs[0]["counts"]["verified"]) == ("succeeded", 1), runs
    written = ask("GET", f"{world.node.url}/{world.index}/_doc/{keys[3]}")["_source"]
    intact = ask("GET", f"{world.node.url}/{world.index}/_doc/{keys[2]}")["_source"]
    assert written == {**intact, "placed": written["placed"]}
    world.service.wait_healthy()


EXPECTED = {**KINDS, Fault.REJECTED: "missing", Fault.FALSIFIED: "mismatch", Fault.TWICE: ""}


def test_trap_29_every_way_in_which_a_bulk_of_documents_can_fail_is_found_with_its_kind(world: World) -> None:
    follower, keys = world.follower, {fault: ObjectId() for fault in EXPECTED}
    orders = world.client[world.database].orders
    updated = [keys[fault] for fault in OF_UPDATES]
    world.insert(*updated)
    wait_for(lambda: all(world.indexed(key) for key in updated), "the documents")
    caught_up(world.service)
    before = len(follower.refused)
    follower.faults |= {key: fault for fault, key in keys.items()}
    orders.update_many({"_id": {"$in": updated}}, {"$set": {"v": "b"}})
    world.insert(*(key for key in keys.values() if key not in updated))
    wait_for(lambda: set(keys.values()) <= set(follower.passed[-len(keys) :]), "the indexer to have passed them")
    wanted = {str(keys[fault]): kind for fault, kind in EXPECTED.items() if kind}
    world.wait_gaps(wanted)
    during(3, lambda: _is(world.gaps(), wanted))
    refused = {"429", "413", "503", "retried", "mapper_parsing_exception", "document_missing_exception"}
    assert set(follower.refused[before:]) == {*refused, "version_conflict_engine_exception"}
    follower.faults.clear()
    code, plans = world.command("backfill", "plan", "orders", "--kinds", "missing,stale,mismatch")
    assert code == 0
    _, runs = world.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    assert (runs[0]["state"], runs[0]["counts"]["verified"]) == ("succeeded", len(wanted)), runs
    world.service.wait_healthy()


def test_a5_a_document_that_stays_when_it_was_deleted_at_the_source_is_undeleted(world: World) -> None:
    kept, gone = ObjectId(), ObjectId()
    world.insert(kept, gone)
    wait_for(lambda: world.indexed(kept) and world.indexed(gone), "both documents")
    world.follower.faults[kept] = Fault.LOST
    world.client[world.database].orders.delete_many({"_id": {"$in": [kept, gone]}})
    world.wait_gaps({str(kept): "undeleted"})
    ask("DELETE", f"{world.node.url}/{world.index}/_doc/{kept}")
    assert wait_for(lambda: not world.gaps(), "the gap to be resolved", 60)
    world.service.wait_healthy()


def test_d3_a_field_that_only_the_source_has_is_named_by_a_sweep(world: World) -> None:
    key = ObjectId()
    world.insert(key)
    wait_for(lambda: world.indexed(key), "the document")
    world.service.wait_healthy()
    world.follower.faults[key] = Fault.LOST
    world.client[world.database].orders.update_one({"_id": key}, {"$set": {"ship": {"city": "Graz"}}})
    [gap] = wait_for(world.service.gaps, "the gap", 40)
    assert (gap["key"], gap["fields"]) == ({"_id": str(key)}, ["ship.city"])
    _, runs = world.command("sweep", "start", "orders", "--content", "--wait")
    assert runs[0]["state"] == "succeeded"
    during(1, lambda: _is(world.gaps(), {str(key): gap["kind"]}))
    world.client[world.database].orders.update_one({"_id": key}, {"$unset": {"ship": 1}})
    assert wait_for(lambda: not world.gaps(), "the gap to be resolved", 60)


def test_d10_a_field_removed_at_the_source_is_removed_from_the_index_by_a_backfill(world: World) -> None:
    key = ObjectId()
    world.insert(key, ship={"city": "Wien"})
    wait_for(lambda: world.indexed(key), "the document")
    world.service.wait_healthy()
    world.follower.faults[key] = Fault.LOST
    world.client[world.database].orders.update_one({"_id": key}, {"$unset": {"ship": 1}})
    [gap] = wait_for(world.service.gaps, "the gap", 40)
    assert (gap["key"], gap["fields"]) == ({"_id": str(key)}, ["ship.city"])
    assert "ship" in ask("GET", f"{world.node.url}/{world.index}/_doc/{key}")["_source"]
    code, plans = world.command("backfill", "plan", "orders", "--kinds", "stale,mismatch")
    assert code == 0
    _, runs = world.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    assert (runs[0]["state"], runs[0]["counts"]["verified"]) == ("succeeded", 1), runs
    assert "ship" not in ask("GET", f"{world.node.url}/{world.index}/_doc/{key}")["_source"]
    assert wait_for(lambda: not world.gaps(), "the gap to be resolved", 60)


def _is(found: object, expected: object) -> None:
    assert found == expected


def test_m21_a_filter_of_a_collection_and_a_soft_delete_in_an_index(world: World) -> None:
    """What left the filter, or is marked as gone, is absent on its side: for the streams, for a sweep and for a repair."""
    orders = world.client[world.database].orders
    stays, leaves, left_over, marked = (ObjectId() for _ in range(4))
    world.insert(stays, leaves, left_over, marked)
    orders.update_many({"_id": {"$in": [stays, leaves, left_over, marked]}}, {"$set": {"v": "live"}})
    wait_for(lambda: all(world.counted(key).get("v") == "live" for key in (stays, leaves, left_over, marked)), "the documents")
    world.service.wait_healthy("counted")
    world.filtering.faults[left_over] = Fault.LOST
    orders.update_many({"_id": {"$in": [leaves, left_over]}}, {"$set": {"v": "hidden"}})
    ask("POST", f"{world.node.url}/{world.filtering.index}/_update/{marked}", {"doc": {"gone": True}})
    expected = {str(left_over): "undeleted", str(marked): "missing"}
    wait_for(lambda: world.gaps("counted") == expected, f"gaps {expected}", 40)
    _, runs = world.command("sweep", "start", "counted", "--content", "--wait")
    assert (runs[0]["state"], world.gaps("counted")) == ("succeeded", expected)
    code, plans = world.command("backfill", "plan", "counted", "--kinds", "undeleted,missing")
    assert code == 0, plans
    _, runs = world.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    assert {name: runs[0]["counts"][name] for name in ("planned", "verified")} == {"planned": 2, "verified": 1}, runs
    assert world.counted(left_over) == {}, "it left the filter"
    assert world.counted(marked)["gone"] is True, "nothing is written over a document that is marked as deleted"
    assert world.gaps("counted") == {str(marked): "missing"}
    orders.update_one({"_id": marked}, {"$set": {"v": "sold"}})
    wait_for(lambda: not world.gaps("counted"), "the gap to be resolved", 40)
    world.service.wait_healthy("counted")
