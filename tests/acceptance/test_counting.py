"""Row filter, soft delete and the time that the target keeps documents: in the stream, in sweeps and in repair (M21)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from bson import Decimal128
from pymongo import DeleteOne, UpdateOne
from pymongo.collection import Collection

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change, Operation
from tests.acceptance.scenery import FIELDS, TABLE, Scene, configuration, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import caught_up, create_database, during, found, gaps_of, is_at_rest, lose, number

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

GRACE, SKEW, KEPT = 2.0, 1.0, 20.0
COUNTED = ("live", "sold")
Orders = Collection[dict[str, Any]]


def filtering(change: Change) -> Operation:
    """What a correct sink with this filter does: a row that leaves it is a document that goes."""
    if change.after is not None and change.after["v"] not in COUNTED:
        return DeleteOne({"_id": change.key})
    return change.applied()


def soft_delete(change: Change) -> list[tuple[float, Operation | None]]:
    return [(0, UpdateOne({"_id": change.key}, {"$set": {"gone": True}}))]


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """``orders`` is watched by both streams; ``swept``, the same data, has no feed of its target: only sweeps look there."""
    database = create_database(stack, f"counting_{number()}")
    orders = configuration(stack, stack.postgres.dsn(database), database, "")["pipelines"]["orders"]
    target = {**orders["target"], "deleted_when": "gone = true", "keep": f"{KEPT:g}s by placed"}
    with watched(
        stack,
        database,
        tmp_path_factory.mktemp("counting"),
        before=[f"ALTER TABLE {TABLE} ADD COLUMN placed timestamptz"],
        identity="DEFAULT",
        source={**orders["source"], "where": "v in ('live', 'sold') and seq > 0"},
        target=target,
        fields={**FIELDS, "placed": {"from": "placed", "type": "timestamp"}},
        clock_skew_max=f"{SKEW:g}s",
        repair={"extra": "delete", "undeleted": "delete"},
        beside={"swept": {"target": {**target, "feed": "none"}, "delivery": "none"}},
        wait=False,
    ) as scene:
        scene.copier.sink = filtering
        for name in ("orders", "swept"):
            scene.service.wait_healthy(name)
        yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    for name in ("orders", "swept"):
        wait_for(partial(is_at_rest, built.service, name), f"pipeline {name} to be at rest", 150)
    try:
        yield built
    finally:
        built.copier.rules.clear()
        built.sql(f"DELETE FROM {TABLE}")
        wait_for(lambda: built.copier.delayed == 0, "the copier", 20)
        client = built.mongo()
        try:
            wait_for(lambda: _emptied(built, client[built.database].orders), "the gaps to be resolved", 60)
        finally:
            client.close()
        for name in ("orders", "swept"):
            built.service.wait_healthy(name)


def _emptied(scene: Scene, orders: Orders) -> bool:
    orders.delete_many({})
    return not any(scene.service.gaps(name) for name in ("orders", "swept"))


def insert(scene: Scene, value: str, *, placed: str = "NULL", rule: Callable[[Change], Any] | None = None) -> int:
    key = seq = number()
    if rule is not None:
        scene.copier.rules[seq] = rule
    scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount, placed) VALUES ({key}, {seq}, '{value}', 1, {placed})")
    return key


def update(scene: Scene, key: int, value: str, *, rule: Callable[[Change], Any] | None = None) -> None:
    seq = number()
    if rule is not None:
        scene.copier.rules[seq] = rule
    scene.sql(f"UPDATE {TABLE} SET seq = {seq}, v = '{value}' WHERE id = {key}")


def plant(orders: Orders, key: int) -> None:
    orders.insert_one({"_id": key, "seq": key, "v": "live", "amount": Decimal128("1.00"), "big": None, "placed": None})


def ago(seconds: float) -> str:
    return f"now() - interval '{seconds} seconds'"


def wait_found(scene: Scene, wanted: dict[int, str], pipeline: str = "orders") -> None:
    """Wait until these are the open gaps, and see that no other one joins them."""
    try:
        wait_for(lambda: found(scene, pipeline) == wanted, "the gaps", 45)
    except AssertionError:
        assert found(scene, pipeline) == wanted
        raise

    def the_same() -> None:
        assert found(scene, pipeline) == wanted

    during(GRACE + 2, the_same)


def documents(orders: Orders) -> set[int]:
    return {document["_id"] for document in orders.find({}, {"_id": 1})}


def test_m21_the_stream_judges_leaving_entering_and_soft_deleted_rows_as_declared(scene: Scene, orders: Orders) -> None:
    outside, entering, lost_entering = (insert(scene, "draft") for _ in range(3))
    leaving, lost_leaving, soft, gone, stranger = (insert(scene, "live") for _ in range(5))
    insert(scene, "draft")
    wait_for(lambda: documents(orders) == {leaving, lost_leaving, soft, gone, stranger}, "the documents", 30)
    caught_up(scene.service)
    assert found(scene) == {}
    update(scene, outside, "still a draft")
    update(scene, leaving, "draft")
    update(scene, lost_leaving, "draft", rule=lose)
    update(scene, entering, "sold")
    update(scene, lost_entering, "sold", rule=lose)
    orders.update_one({"_id": soft}, {"$set": {"gone": True}})
    scene.copier.rules["d", gone] = soft_delete
    scene.sql(f"DELETE FROM {TABLE} WHERE id = {gone}")
    update(scene, stranger, "draft")
    wait_for(lambda: {leaving, stranger}.isdisjoint(documents(orders)), "the documents to go", 30)
    plant(orders, stranger)
    wait_found(scene, {lost_leaving: "undeleted", lost_entering: "missing", soft: "missing", stranger: "undeleted"})
    assert documents(orders) == {lost_leaving, entering, soft, gone, stranger}
    story = scene.service.api.get(f"/api/v1/pipelines/orders/keys/{lost_leaving}")
    assert "its row does not satisfy source.where" in story["verdict"]
    story = scene.service.api.get(f"/api/v1/pipelines/orders/keys/{gone}")
    assert story["verdict"] == "No gap: neither store has this key (its document is marked as deleted (target.deleted_when))."
    orders.delete_many({"_id": {"$in": [lost_leaving, stranger]}})
    orders.update_one({"_id": soft}, {"$set": {"gone": False}})
    update(scene, lost_entering, "live")
    wait_found(scene, {})


def test_m2_m21_the_stream_takes_what_is_expired_for_no_loss_and_the_rest_for_one(scene: Scene, orders: Orders) -> None:
    lost = insert(scene, "live", placed=ago(3_600), rule=lose)
    removed = insert(scene, "live", placed=ago(KEPT - 8))
    young = insert(scene, "live", placed="now()", rule=lose)
    wait_for(lambda: documents(orders) == {removed}, "the document", 20)
    wait_for(lambda: found(scene) == {young: "missing"}, "the gap of the young row", 40)
    # Each partition's keys are judged in their own time.
    [skipped] = wait_for(lambda: gaps_of(scene.service, lost, state="resolved"), "the expired row to be put on record", 30)

    def cleared() -> bool:
        name = "gapwatch_suspects_cleared_total"
        return (scene.service.metric(name, pipeline="orders", reason="skipped_by_policy") or 0) >= 1

    wait_for(cleared, "it to be counted", 20)
    assert (skipped["kind"], skipped["cause"], skipped["resolution"]) == ("missing", "skipped_by_policy", "accepted")
    _, shown = scene.service.answer("gaps", "show", skipped["id"])
    assert {row["side"] for row in shown["evidence"]} == {"expected", "source", "target"}
    assert [row["reason"] for row in shown["evidence"] if row["side"] == "source"] == [skipped["note"]]
    during(5, lambda: None)  # until the document is surely expired, as the target would see it
    wait_for(lambda: _expired(scene, removed), "the document to expire", 40)
    orders.delete_one({"_id": removed})
    wait_for(lambda: found(scene) == {}, "the young row to be expired as well", 60)
    (gap,) = [gap for gap in scene.service.gaps(state="resolved") if gap["key"]["id"] == young]
    assert gap["resolution"] == "superseded"
    caught_up(scene.service)
    assert [gap for gap in scene.service.gaps(state="") if gap["key"]["id"] == removed] == []


def _expired(scene: Scene, key: int) -> bool:
    story = scene.service.api.get(f"/api/v1/pipelines/orders/keys/{key}")
    return bool(story["stores"]["source"]["read"] == "exempt")


@pytest.mark.parametrize("content", ["--ids", "--content"])
def test_m21_a_sweep_judges_by_the_same_rules_without_any_stream(scene: Scene, orders: Orders, content: str) -> None:
    outside, drafts = insert(scene, "draft"), [insert(scene, "draft") for _ in range(3)]
    right, soft, expired = insert(scene, "live"), insert(scene, "live"), insert(scene, "live", placed=ago(3_600))
    wait_for(lambda: documents(orders) == {right, soft, expired}, "the documents", 30)
    caught_up(scene.service, "swept")
    assert found(scene, "swept") == {}
    orders.delete_one({"_id": expired})
    orders.update_one({"_id": soft}, {"$set": {"gone": True}})
    plant(orders, outside)
    marked, late = number(), number()
    orders.insert_one({"_id": marked, "gone": True})
    orders.insert_one({"_id": late, "placed": "2020-01-01T00:00:00Z"})
    code, runs = scene.service.answer("sweep", "start", "swept", content, "--wait")
    assert (code, runs[0]["state"]) == (1, "succeeded")
    assert found(scene, "swept") == {soft: "missing", outside: "extra"}
    assert {gap["detector"] for gap in scene.service.gaps("swept")} == {"sweep"}
    counts = runs[0]["counts"]
    assert (counts["source_keys"], counts["target_keys"], counts["differences"]) == (2, 2, 2), len(drafts)


def test_m21_a_repair_writes_nothing_outside_the_rules(scene: Scene, orders: Orders) -> None:
    lost, soft = insert(scene, "live", rule=lose), insert(scene, "live")
    insert(scene, "live", placed=ago(3_600), rule=lose)
    leaving = insert(scene, "live")
    lost_later = insert(scene, "live", rule=lose)
    wait_for(lambda: documents(orders) == {soft, leaving}, "the documents", 30)
    orders.update_one({"_id": soft}, {"$set": {"gone": True}})
    update(scene, leaving, "draft", rule=lose)
    wait_found(scene, {lost: "missing", lost_later: "missing", soft: "missing", leaving: "undeleted"})
    code, plans = scene.service.answer("backfill", "plan", "orders", "--kinds", "missing,undeleted")
    assert (code, plans[0]["counts"]["planned"]) == (0, 4)
    update(scene, lost_later, "draft")  # planned, and outside the filter by now
    _, runs = scene.service.answer("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    rows = scene.service.api.get("/api/v1/audit", pipeline="orders", limit=500)["audit"]
    mine = sorted((row for row in rows if row["run_id"] == runs[0]["id"] and row["key"]), key=lambda row: row["at"])
    outcomes = {row["key"]["id"]: (row["outcome"], row["reason"]) for row in mine}
    assert outcomes[lost] == ("written", None)
    assert outcomes[leaving] == ("written", None)
    assert outcomes[lost_later][0] == "already_right"
    assert outcomes[soft] == (
        "refused",
        "Not written over: its document is marked as deleted (target.deleted_when).",
    )
    assert documents(orders) == {lost, soft}
    assert orders.count_documents({"gone": True}) == 1
    wait_found(scene, {soft: "missing"})
