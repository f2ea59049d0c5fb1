"""Sweeps of their own: taken over in the middle, and over keys that both stores sort in their own way."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from gapwatch.ledger import open_ledger
from tests.acceptance.scenery import TABLE, Scene, configuration, watched
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import found, is_swept
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]


def ended(service: Service, run: dict[str, Any], seconds: float = 60.0) -> dict[str, Any]:
    """Return a sweep's run once it has ended."""

    def look() -> dict[str, Any] | None:
        record: dict[str, Any] = service.api.get(f"/api/v1/sweeps/{run['id']}")
        return None if record["state"] in ("queued", "running") else record

    return wait_for(look, "the sweep to end", seconds)


@contextmanager
def many_rows(
    stack: EmbeddedStack, database: str, directory: Path, rows: int, lost: Collection[int], sweep: dict[str, Any], **more: Any
) -> Iterator[tuple[Scene, dict[str, Any]]]:
    """Yield a pipeline of so many rows, of which the target lacks some, and its first sweep, under way.

    The first start on an existing log is a hole, which asks for a sweep by itself.
    """
    before = [f"INSERT INTO {TABLE} (id, seq) SELECT i, i FROM generate_series(1, {rows}) i"]
    with MongoClient[dict[str, Any]](stack.mongodb.uri) as client:
        for start in range(1, rows + 1, 40_000):
            here = [{"_id": i, "seq": i} for i in range(start, min(start + 40_000, rows + 1)) if i not in lost]
            client[database].orders.insert_many(here)
    with watched(
        stack,
        database,
        directory,
        before=before,
        connector={"snapshot.mode": "no_data"},
        grace="1s",
        baseline="assume",
        fields={"seq": "seq"},
        sweep=sweep,
        wait=False,
        **more,
    ) as scene:
        api = scene.service.api
        wait_for(lambda: scene.service.view()["status"], "the API to answer", 60)
        yield scene, wait_for(lambda: next(iter(api.get("/api/v1/sweeps", pipeline="orders")["sweeps"]), None), "a sweep", 60)


@pytest.mark.long
def test_d13_lesson_36_a_sweep_goes_on_where_its_worker_was_killed(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Killed in the middle, taken over: what was compared and judged is not read again, and every difference is found once."""
    rows = 120_000
    lost = {5, 59_999, 60_001, rows}
    with many_rows(stack, postgres_database, tmp_path, rows, lost, {"load": 0.3}) as (scene, run):

        def marked() -> bool:
            """Whether a part was compared and judged: the mark stands before a difference that is not judged yet."""
            ledger = open_ledger(scene.service.config["database"])
            try:
                stored = ledger.run(run["id"])
            finally:
                ledger.close()
            return bool(stored and "place" in stored.cursor and stored.counts.get("source_keys", 0) >= 20_000)

        wait_for(marked, "a part of the sweep", 60)
        scene.service.restart("all")
        wait_for(lambda: scene.service.view()["status"], "the API to answer again", 60)
        record = ended(scene.service, run, 150)
        assert record["state"] == "succeeded", record
        assert (record["counts"]["source_keys"], record["counts"]["target_keys"]) == (rows, rows - len(lost))
        assert found(scene) == dict.fromkeys(lost, "missing")
        assert "sweep_resumed" in scene.service.log("all").read_text()


def test_d13_lesson_36_workers_share_a_sweep_and_one_of_them_is_killed(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Each takes ranges of keys; who had cut the sweep is killed, the other one does the rest: each difference is found once."""
    rows, lost = 20_000, {1, 4_999, 10_001, 20_000}
    roles = ("capture", "ingest", "match", "api", "repair#0", "repair#1")
    slowly = {"load": 0.1, "parts": 4}
    with many_rows(stack, postgres_database, tmp_path, rows, (), slowly, roles=roles) as (scene, first):
        record = ended(scene.service, first, 90)
        assert record["state"] == "succeeded", record
        assert "parts" not in record["counts"], "the mapping is on trial in the first one"

        with scene.mongo() as client:
            client[postgres_database].orders.delete_many({"_id": {"$in": sorted(lost)}})
        run = wait_for(lambda: asked(scene.service), "a sweep of ours", 60)
        holder, other = wait_for(lambda: holder_of(scene.service, run), "the sweep to be cut", 60)
        scene.service.kill(holder)
        record = ended(scene.service, run, 150)
        assert record["state"] == "succeeded", record
        counts = record["counts"]
        assert (counts["source_keys"], counts["target_keys"], counts["parts"]) == (rows, rows - len(lost), 4)
        assert found(scene) == dict.fromkeys(lost, "missing")
        wait_for(lambda: "sweep_part_ended" in scene.service.log(other).read_text(), "the line of the other one", 20)


def holder_of(service: Service, run: dict[str, Any]) -> tuple[str, str] | None:
    """Return the worker that has cut a sweep, and the other one."""
    for name, other in (("repair#0", "repair#1"), ("repair#1", "repair#0")):
        if any("sweep_split" in line and run["id"] in line for line in service.log(name).read_text().splitlines()):
            return name, other
    return None


def asked(service: Service) -> dict[str, Any] | None:
    """Ask for a sweep of everything; None while another one is under way."""
    _, runs = service.answer("sweep", "start", "orders")
    return runs[0] if isinstance(runs, list) else None


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
                last = wait_for(lambda: one if (one := service.view()["last_sweep"])["ended_at"] else None, "its end", 60)
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


def test_d12_lesson_36_sweeps_of_what_changed_lately_of_named_keys_and_of_a_range(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Nothing is observed between sweeps, so that each finds just what lies in it."""
    rows = 60
    values = f"SELECT i, i, now() - make_interval(hours => i) FROM generate_series(1, {rows}) i"
    before = [
        f"ALTER TABLE {TABLE} ADD COLUMN updated_at timestamptz",
        f"INSERT INTO {TABLE} (id, seq, updated_at) {values}",
    ]
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    orders = client[postgres_database].orders
    orders.insert_many([{"_id": i, "seq": i} for i in range(1, rows + 1)])
    side = {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": f"{postgres_database}.{TABLE}"}}
    target = {"store": "catalog", "collection": f"{postgres_database}.orders", "key": {"_id": "int"}, "feed": "none"}
    pipeline: dict[str, Any] = {"source": {**side, "changed_at": "updated_at"}, "target": target, "fields": {"seq": "seq"}}
    try:
        with watched(
            stack, postgres_database, tmp_path, before=before, grace="1s", delivery="none", wait=False, **pipeline
        ) as scene:
            wait_for(lambda: scene.service.view().get("baseline"), "the baseline", 90)
            wait_for(lambda: is_swept(scene.service), "no sweep of everything to come", 60)

            def sweep(*options: str) -> dict[str, Any]:
                def start() -> dict[str, Any] | None:
                    _, runs = scene.service.answer("sweep", "start", "orders", "--wait", *options)
                    return runs[0] if isinstance(runs, list) else None  # one of its own may be under way

                run = wait_for(start, "a sweep", 60)
                assert run["state"] == "succeeded", run
                return run

            orders.delete_many({"_id": {"$in": [47, 49]}})
            run = sweep("--range", "lookback=48h")
            assert (run["counts"]["source_keys"], run["counts"]["missing"]) == (47, 1)
            assert found(scene) == {47: "missing"}

            orders.delete_many({"_id": {"$in": [3, 4]}})
            orders.insert_one({"_id": 900, "seq": 1})
            run = sweep("--keys", "3", "--keys", "900", "--keys", "5")
            assert (run["counts"]["keys"], run["counts"]["differences"]) == (3, 2)
            assert found(scene) == {47: "missing", 3: "missing", 900: "extra"}

            orders.delete_many({"_id": {"$in": [20, 29, 30]}})
            run = sweep("--from", "20", "--to", "30")
            assert (run["counts"]["source_keys"], run["counts"]["target_keys"]) == (10, 8)
            run = sweep("--from", "20", "--to", "30", "--ids")
            assert (run["counts"]["source_keys"], run["counts"]["target_keys"]) == (10, 8)
            assert found(scene).keys() == {47, 3, 900, 20, 29}

            assert sweep()["counts"]["differences"] == 8
            assert found(scene).keys() == {47, 3, 900, 20, 29, 49, 4, 30}, "the full audit finds what was left"

            for wrong in (("--from", "30", "--to", "20"), ("--range", "lookback=soon"), ("--keys", "3", "--from", "2")):
                assert scene.service.command("sweep", "start", "orders", *wrong).returncode == 2
    finally:
        client.close()
