"""Sweeps and backfills on real stores, with a target whose copier is gone: what differs is named, planned, repaired, verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bson import Decimal128
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import ConflictError
from tests.acceptance.scenery import TABLE, Scene, configuration, watched
from tests.acceptance.service import Service, wait_for
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(300)]

ROWS = 1_967
LOST = 117


@pytest.fixture
def scene(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> Iterator[Scene]:
    """A pipeline of 1,967 rows, copied right, whose stream no longer runs: only sweeps see what is changed by hand."""
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'v' || i, i FROM generate_series(1, {ROWS}) i"]
    with watched(
        stack, postgres_database, tmp_path, before=before, grace="1s", repair={"extra": "delete"}, evidence="values"
    ) as made:
        yield made


def command(scene: Scene, *arguments: str) -> tuple[int, Any]:
    """Run a command against the running service; return its exit code and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "gapwatch", *arguments, "--output", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "GAPWATCH_URL": scene.service.api.url},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else done.stderr


def sweep(scene: Scene, *options: str) -> dict[str, Any]:
    _, runs = command(scene, "sweep", "start", "orders", "--wait", *options)
    run: dict[str, Any] = runs[0]
    assert run["state"] == "succeeded", run
    return run


def found(scene: Scene) -> dict[int, str]:
    return {int(gap["key"]["id"]): gap["kind"] for gap in scene.service.gaps()}


def test_d1_d3_d11_d4_sweep_plan_apply(scene: Scene) -> None:
    client: MongoClient[dict[str, Any]] = scene.mongo()
    try:
        orders = client[scene.database].orders
        # 117 missing, one extra, one changed: the counts differ by 116, and with 116 strangers more they would not
        orders.delete_many({"_id": {"$gt": ROWS - LOST}})
        orders.insert_one({"_id": 900_000, "seq": 1, "v": "stranger", "amount": Decimal128("1"), "big": None})
        orders.update_one({"_id": 7}, {"$set": {"v": "changed"}})

        run = sweep(scene)
        assert run["counts"]["source_keys"] == ROWS
        assert run["counts"]["target_keys"] == ROWS - LOST + 1
        gaps = wait_for(lambda: found(scene) if len(found(scene)) >= LOST + 2 else None, "all gaps", 60)
        assert gaps == dict.fromkeys(range(ROWS - LOST + 1, ROWS + 1), "missing") | {900_000: "extra", 7: gaps[7]}
        assert gaps[7] in ("mismatch", "stale")
        changed = next(gap for gap in scene.service.gaps() if gap["key"] == {"id": 7})
        assert changed["fields"] == ["v"]

        before = {document["_id"]: document for document in orders.find({"_id": {"$lte": ROWS - LOST}})}
        code, plans = command(scene, "backfill", "plan", "orders", "--kinds", "missing")
        assert (code, plans[0]["counts"]["planned"]) == (0, LOST)
        assert orders.count_documents({}) == ROWS - LOST + 1, "a plan writes nothing"

        with orders.watch() as stream:
            code, runs = command(scene, "backfill", "apply", plans[0]["id"], "--yes", "--wait")
            assert runs[0]["state"] == "succeeded", runs
            assert (runs[0]["counts"]["written"], runs[0]["counts"]["verified"]) == (LOST, LOST)
            assert code == 0
            touched = set()
            while (change := stream.try_next()) is not None:
                touched.add(change["documentKey"]["_id"])
        assert touched == set(range(ROWS - LOST + 1, ROWS + 1)), "only what was missing is written"
        assert {document["_id"]: document for document in orders.find({"_id": {"$lte": ROWS - LOST}})} == before
        assert wait_for(lambda: len(found(scene)) == 2, "the repaired gaps to be resolved", 30)
        audit = scene.service.api.get("/api/v1/audit", pipeline="orders", limit=500)["audit"]
        assert sum(1 for row in audit if row["action"] == "backfill_write" and row["outcome"] == "written") >= LOST

        code, plans = command(scene, "backfill", "plan", "orders", "--kinds", "extra,mismatch,stale")
        code, runs = command(scene, "backfill", "apply", plans[0]["id"], "--yes", "--wait")
        assert (code, runs[0]["state"]) == (0, "succeeded")
        assert orders.find_one({"_id": 900_000}) is None
        healed = orders.find_one({"_id": 7})
        assert healed is not None
        assert healed["v"] == "v7"
        scene.service.wait_healthy(seconds=60)
    finally:
        client.close()


def test_d1_lesson_11_equal_counts_hide_nothing(scene: Scene) -> None:
    client: MongoClient[dict[str, Any]] = scene.mongo()
    try:
        orders = client[scene.database].orders
        orders.delete_one({"_id": 42})
        orders.insert_one({"_id": 777_777, "seq": 1, "v": "stranger", "amount": Decimal128("1"), "big": None})
        assert orders.count_documents({}) == ROWS
        sweep(scene, "--ids")
        assert wait_for(lambda: found(scene) if len(found(scene)) == 2 else None, "both gaps", 60) == {
            42: "missing",
            777_777: "extra",
        }
    finally:
        client.close()


def test_d5_refused_documents_fail_alone_and_are_never_in_sync(scene: Scene) -> None:
    client: MongoClient[dict[str, Any]] = scene.mongo()
    try:
        orders = client[scene.database].orders
        orders.delete_many({"_id": {"$lte": 100}})
        sweep(scene, "--ids")
        wait_for(lambda: len(found(scene)) == 100, "all gaps", 60)
        rule = {"seq": {"$nin": [3, 50, 99]}}
        client[scene.database].command("collMod", "orders", validator=rule, validationLevel="strict")
        _, plans = command(scene, "backfill", "plan", "orders")
        code, runs = command(scene, "backfill", "apply", plans[0]["id"], "--yes", "--wait")
        counts = runs[0]["counts"]
        assert (counts["written"], counts["verified"], counts["failed"], counts["in_sync"]) == (97, 97, 3, 0)
        assert runs[0]["state"] == "failed"
        assert "3 documents failed" in runs[0]["error"]
        assert code == 1
        assert set(found(scene)) == {3, 50, 99}
        assert orders.count_documents({"_id": {"$lte": 100}}) == 97
    finally:
        client.close()


def test_d7_nothing_newer_is_overwritten(scene: Scene) -> None:
    """A row that was repaired by its own pipeline after the plan is left alone."""
    client: MongoClient[dict[str, Any]] = scene.mongo()
    try:
        orders = client[scene.database].orders
        orders.delete_one({"_id": 11})
        sweep(scene, "--ids")
        wait_for(lambda: found(scene) == {11: "missing"}, "the gap", 60)
        _, plans = command(scene, "backfill", "plan", "orders")
        scene.sql(f"UPDATE {TABLE} SET seq = 5011, v = 'newer' WHERE id = 11")
        wait_for(lambda: (orders.find_one({"_id": 11}) or {}).get("v") == "newer", "the copier to write it")
        code, runs = command(scene, "backfill", "apply", plans[0]["id"], "--yes", "--wait")
        assert (code, runs[0]["counts"]["written"]) == (0, 0)
        assert runs[0]["counts"]["already_right"] + runs[0]["counts"]["already_newer"] == 1
        newest = orders.find_one({"_id": 11})
        assert newest is not None
        assert (newest["seq"], newest["v"]) == (5011, "newer")
    finally:
        client.close()


def test_a_second_sweep_at_once_is_refused_with_the_running_id(scene: Scene) -> None:
    first = scene.service.api.post("/api/v1/sweeps", {"pipeline": "orders"})
    with pytest.raises(ConflictError) as refused:
        scene.service.api.post("/api/v1/sweeps", {"pipeline": "orders"})
    assert refused.value.running_id == first["id"]
    wait_for(lambda: scene.service.api.get(f"/api/v1/sweeps/{first['id']}")["state"] == "succeeded", "the first sweep", 60)


def ended(service: Service, run: dict[str, Any], seconds: float = 60.0) -> dict[str, Any]:
    """Return a sweep's run once it has ended."""

    def look() -> dict[str, Any] | None:
        record: dict[str, Any] = service.api.get(f"/api/v1/sweeps/{run['id']}")
        return None if record["state"] in ("queued", "running") else record

    return wait_for(look, "the sweep to end", seconds)


def test_d13_a_sweep_goes_on_where_its_worker_was_killed(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """Killed in the middle, taken over: what was compared and judged is not read again, and every difference is found once."""
    rows = 400_000
    lost = {5, 199_999, 200_001, rows}
    before = [f"INSERT INTO {TABLE} (id, seq) SELECT i, i FROM generate_series(1, {rows}) i"]
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        orders = client[postgres_database].orders
        for start in range(1, rows + 1, 50_000):
            orders.insert_many([{"_id": i, "seq": i} for i in range(start, start + 50_000) if i not in lost])
        with watched(
            stack,
            postgres_database,
            tmp_path,
            before=before,
            connector={"snapshot.mode": "no_data"},
            grace="1s",
            baseline="assume",
            fields={"seq": "seq"},
            sweep={"load": 0.1},
            wait=False,
        ) as scene:
            api = scene.service.api
            wait_for(lambda: scene.service.view()["status"], "the API to answer", 60)
            # The first start on an existing log is a hole, which asks for a sweep by itself.
            run = wait_for(lambda: next(iter(api.get("/api/v1/sweeps", pipeline="orders")["sweeps"]), None), "a sweep", 60)

            def compared() -> int:
                return int(api.get(f"/api/v1/sweeps/{run['id']}")["counts"].get("source_keys", 0))

            wait_for(lambda: compared() >= 100_000, "a part of the sweep", 60)
            scene.service.restart("all")
            wait_for(lambda: scene.service.view()["status"], "the API to answer again", 60)
            record = ended(scene.service, run, 150)
            assert record["state"] == "succeeded", record
            assert (record["counts"]["source_keys"], record["counts"]["target_keys"]) == (rows, rows - len(lost))
            assert found(scene) == dict.fromkeys(lost, "missing")
            assert "sweep_resumed" in scene.service.log("all").read_text()
    finally:
        client.close()


def test_trap_25_keys_that_both_stores_sort_differently_are_compared_as_sets(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Text keys whose order depends on the collation: nothing is invented, nothing hidden, and no order is asked of anybody."""
    names = ["a", "B", "c", "ä", "Z", "_", "zz", "a b", "ab", "É", "e", "ß", "10", "9", "-"]
    table = "public.names"
    stack_dsn = stack.postgres.dsn(postgres_database)
    execute(stack_dsn, f"CREATE TABLE {table} (id text PRIMARY KEY, v int)")
    with psycopg.connect(stack_dsn) as connection:
        connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, 1)", [(name,) for name in names])
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        target = client[postgres_database].names
        target.insert_many([{"_id": name, "v": 1} for name in names if name != "É"] + [{"_id": "e\u0301", "v": 1}])
        target.update_one({"_id": "10"}, {"$set": {"v": 2}})
        config = configuration(stack, stack_dsn, postgres_database, "none")
        orders = config["pipelines"]["orders"]
        orders["source"] |= {"table": table, "key": {"id": "text"}, "feed": {"debezium": f"{postgres_database}.{table}"}}
        orders["target"] |= {"collection": f"{postgres_database}.names", "key": {"_id": "text"}}
        orders |= {"fields": {"v": "v"}, "grace": "1s", "delivery": "none", "baseline": "assume"}
        service = Service(tmp_path, config)
        with captured(stack, postgres_database, [table]):
            service.start()
            try:
                wait_for(lambda: service.view()["status"], "the API to answer", 60)
                wait_for(lambda: len(service.gaps()) >= 3, "what the first sweep finds", 60)
                last = service.view()["last_sweep"]
                assert (last["state"], last["counts"]["source_keys"]) == ("succeeded", len(names)), last
                found = service.gaps()
                assert {gap["key"]["id"]: gap["kind"] for gap in found} == {
                    "É": "missing",
                    "e\u0301": "extra",
                    "10": "mismatch",
                }
            finally:
                service.stop()
    finally:
        client.close()
