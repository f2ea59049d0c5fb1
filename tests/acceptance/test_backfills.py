"""Sweeps and backfills on real stores: what differs is named, planned, repaired in batches, verified, audited."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from bson import Decimal128
from bson.json_util import loads
from pymongo.collection import Collection

from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import ConflictError, GapwatchError
from tests.acceptance.copier import PLACEHOLDER
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import at, clean, create_database, falsify, found, is_at_rest, now, number, shown_by
from tests.acceptance.shop import Shop, differing
from tests.stack import BESIDE_SECONDS, until

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 1_967
LOST = 117
IN_A_BATCH = 5  # documents of ``slow``: what a kibibyte holds
PER_RUN = 1_100  # documents in a plan of ``orders``
STUCK = 1_050
Orders = Collection[dict[str, Any]]


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """1,967 rows, copied right. ``orders`` repairs as it does by default; ``slow``, the same data, a few documents at once.

    ``slow`` has room for ten settled keys.
    """
    database = create_database(stack, f"sweeps_{number()}")
    rows = f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'v' || i, i FROM generate_series(1, {ROWS}) i"
    slow = {"sweep": {"batch": {"documents": 100, "bytes": "1KiB", "pause": "400ms"}}, "settled_keys_max": 10}
    directory = tmp_path_factory.mktemp("sweeps")
    repair = {"extra": "delete", "undo": str(directory / "undo"), "max_documents_per_run": PER_RUN}
    quickly = {"batch": {"pause": "20ms"}}
    options: dict[str, Any] = {"grace": "1s", "repair": repair, "sweep": quickly, "evidence": "values"}
    with watched(stack, database, directory, before=[rows], copied=ROWS, beside={"slow": slow}, **options) as scene:
        yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    wait_for(lambda: is_at_rest(built.service, "slow"), "pipeline slow to be at rest", 150)
    with clean(built) as scene:
        wait_for(lambda: not sweeps(built, "queued,running"), "sweeps that nobody asked for to end", 60)
        yield scene
        built.sql(f"DELETE FROM {TABLE} WHERE id > {ROWS}", f"UPDATE {TABLE} SET seq = id, v = 'v' || id WHERE v <> 'v' || id")
    wait_for(lambda: as_at_first(built), "the pipeline to copy the rows as they were at first", 30)
    wait_for(lambda: not built.service.gaps("slow"), "the gaps to be resolved", 30)


def as_at_first(scene: Scene) -> bool:
    """Whether every document of a row holds what the row held at first: nothing is on its way into the next test."""
    return all(document.get("v") == f"v{key}" for key, document in scene.documents().items() if key <= ROWS)


def sweep(scene: Scene, *options: str) -> dict[str, Any]:
    _, runs = scene.service.answer("sweep", "start", "orders", "--wait", *options)
    run: dict[str, Any] = runs[0]
    assert run["state"] == "succeeded", run
    return run


def sweeps(scene: Scene, state: str, pipeline: str = "") -> list[dict[str, Any]]:
    """Return the sweeps in these states, newest first."""
    asked = {"state": state} | ({"pipeline": pipeline} if pipeline else {})
    runs: list[dict[str, Any]] = scene.service.api.get("/api/v1/sweeps", **asked)["sweeps"]
    return runs


def swept_after_pause(scene: Scene) -> bool:
    last = scene.service.view()["last_sweep"]
    return bool(last) and last["request"].get("reason") == "resumed" and last["state"] not in ("queued", "running")


def wait_found(scene: Scene, count: int, pipeline: str = "orders") -> dict[int, str]:
    return wait_for(lambda: gaps if len(gaps := found(scene, pipeline)) == count else None, f"{count} gaps", 60)


def plan(scene: Scene, pipeline: str = "orders", *options: str) -> dict[str, Any]:
    code, plans = scene.service.answer("backfill", "plan", pipeline, *options)
    assert code == 0, plans
    planned: dict[str, Any] = plans[0]
    return planned


def apply(scene: Scene, planned: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    code, runs = scene.service.answer("backfill", "apply", planned["id"], "--yes", "--wait")
    return code, runs[0]


def outcomes(scene: Scene, run: dict[str, Any], pipeline: str = "orders") -> dict[int, tuple[str, str | None]]:
    """Return the last audited outcome of every key that a run touched, with its reason."""
    rows = scene.service.api.get("/api/v1/audit", pipeline=pipeline, limit=500)["audit"]
    mine = [row for row in rows if row["run_id"] == run["id"] and row["action"] == "backfill_write"]
    return {row["key"]["id"]: (row["outcome"], row["reason"]) for row in sorted(mine, key=lambda row: row["at"])}


def untouched(orders: Orders) -> dict[int, dict[str, Any]]:
    return {document["_id"]: document for document in orders.find({"_id": {"$lte": ROWS - LOST}})}


OUTCOMES = ("written", "already_newer", "vanished", "failed")


def shown(scene: Scene) -> dict[str, float]:
    """Return what ``/metrics`` says of the pipeline's sweeps and backfills at one moment, by name and last label."""
    found = {}
    for name, labels, value in scene.service.scrape():
        known = name.removeprefix("gapwatch_")
        if labels.pop("pipeline", "") == "orders" and known.startswith(("sweep_", "backfill_")) and not name.endswith("_created"):
            found[" ".join([known, *labels.values()])] = value
    return found


def more(scene: Scene, before: dict[str, float], name: str) -> float:
    return shown(scene)[name] - before[name]


def test_i1_the_metrics_of_sweeps_and_backfills_say_what_the_runs_records_say(scene: Scene, orders: Orders) -> None:
    service, lost = scene.service, range(30, 40)
    orders.delete_many({"_id": {"$in": list(lost)}})
    wait_found(scene, len(lost))
    # From here on what the metrics show is of after the test before.
    wait_for(lambda: service.metric("gapwatch_gaps_open", pipeline="orders", kind="missing") == len(lost), "the gaps' metric", 20)
    before = shown(scene)

    _, [first] = service.answer("sweep", "start", "orders", "--within", "1h")
    path = f"/api/v1/sweeps/{first['id']}"
    running = wait_for(lambda: now if (now := shown(scene))["sweep_running"] == 1 else None, "the running sweep", 20)
    assert running["sweep_duration_seconds"] == before["sweep_duration_seconds"], "that of the last one that ended"
    assert 0 <= running["sweep_progress_ratio"] <= service.api.get(path)["progress"] < 1
    assert service.command("sweep", "start", "orders").returncode == 2, "the one that runs hurries"
    swept = wait_for(lambda: run if (run := service.api.get(path))["state"] == "succeeded" else None, "the sweep", 40)
    wait_for(lambda: shown(scene)["sweep_running"] == 0, "the metrics to be taken again", 20)
    now = shown(scene)
    took = at(swept["ended_at"]) - at(swept["started_at"])
    assert now["sweep_progress_ratio"] == swept["progress"] == 1
    assert now["sweep_duration_seconds"] == pytest.approx(took.total_seconds(), abs=0.01)
    assert now["sweep_last_success_timestamp_seconds"] == pytest.approx(at(swept["ended_at"]).timestamp(), abs=0.01)
    counts = swept["counts"]
    assert (counts["source_keys"], counts["target_keys"]) == (ROWS, ROWS - len(lost))
    assert more(scene, before, "sweep_keys_compared_total expected") == counts["source_keys"]
    assert more(scene, before, "sweep_keys_compared_total observed") == counts["target_keys"]

    planned = plan(scene)
    database = orders.database
    database.command("collMod", "orders", validator={"seq": {"$nin": [31, 32]}}, validationLevel="strict")
    try:
        _, run = apply(scene, planned)
    finally:
        database.command("collMod", "orders", validator={}, validationLevel="off")
    counted = {outcome: more(scene, before, f"backfill_documents_total {outcome}") for outcome in OUTCOMES}
    assert counted == {outcome: run["counts"].get(outcome, 0) for outcome in OUTCOMES}
    assert counted == {"written": 8, "already_newer": 0, "vanished": 0, "failed": 2}
    families = {name.split()[0] for name in shown(scene)}
    assert families >= {
        "sweep_running",
        "sweep_progress_ratio",
        "sweep_duration_seconds",
        "sweep_last_success_timestamp_seconds",
        "sweep_keys_compared_total",
        "backfill_documents_total",
    }


def test_d1_lesson_11_trap_35_equal_counts_hide_nothing(scene: Scene, orders: Orders) -> None:
    orders.delete_one({"_id": 42})
    orders.insert_one({"_id": 777_777, "seq": 1, "v": "stranger", "amount": Decimal128("1"), "big": None})
    assert orders.count_documents({}) == ROWS
    run = sweep(scene, "--ids")
    assert {name: run["counts"][name] for name in ("source_keys", "target_keys", "missing", "extra", "differences")} == {
        "source_keys": ROWS,
        "target_keys": ROWS,
        "missing": 1,
        "extra": 1,
        "differences": 2,
    }
    assert wait_found(scene, 2) == {42: "missing", 777_777: "extra"}


def test_d3_a_changed_field_is_named_by_the_content_sweep(scene: Scene, orders: Orders) -> None:
    orders.update_one({"_id": 7}, {"$set": {"v": "changed"}})
    run = sweep(scene)
    assert (run["counts"]["differences"], run["counts"]["mismatch"]) == (1, 1)
    assert (run["counts"]["source_keys"], run["counts"]["target_keys"]) == (ROWS, ROWS)
    (gap,) = scene.service.gaps()
    assert (gap["key"], gap["kind"], gap["fields"]) == ({"id": 7}, gap["kind"], ["v"])
    assert gap["kind"] in ("mismatch", "stale")
    assert [row["values"] for row in gap["evidence"] if "values" in row] == [{"v": "v7"}, {"v": "changed"}]


def test_d4_only_what_is_missing_is_written_in_two_batches(scene: Scene, orders: Orders) -> None:
    orders.delete_many({"_id": {"$gt": ROWS - LOST}})
    sweep(scene, "--ids")
    assert wait_found(scene, LOST) == dict.fromkeys(range(ROWS - LOST + 1, ROWS + 1), "missing")
    before = untouched(orders)
    assert len(before) == ROWS - LOST
    planned = plan(scene, "orders", "--kinds", "missing")
    assert planned["counts"]["planned"] == LOST
    with orders.watch() as stream:
        code, run = apply(scene, planned)
        touched = [(change["operationType"], change["documentKey"]["_id"]) for change in shown_by(stream, LOST)]
    assert (code, run["state"]) == (0, "succeeded"), run
    counts = {name: run["counts"][name] for name in ("batches", "written", "verified", "failed", "in_sync", "open_gaps_left")}
    assert counts == {"batches": 2, "written": LOST, "verified": LOST, "failed": 0, "in_sync": 1, "open_gaps_left": 0}
    assert sorted(touched) == [("insert", key) for key in range(ROWS - LOST + 1, ROWS + 1)], "no event of any other document"
    assert untouched(orders) == before
    assert set(outcomes(scene, run).values()) == {("written", None)}
    assert wait_for(lambda: found(scene) == {}, "the repaired gaps to be resolved", 30)


def test_d4_lesson_14_what_fills_many_pages_is_found_at_once_and_drained_in_one_run(scene: Scene, orders: Orders) -> None:
    """It was seen after 25 hours, and drained by 100 an hour: one page was read and no next one, whatever the caps allowed."""
    gone = range(1, STUCK + 1)
    orders.delete_many({"_id": {"$lte": STUCK}})
    begun = time.monotonic()
    assert wait_found(scene, STUCK) == dict.fromkeys(gone, "missing")
    assert time.monotonic() - begun < 30 + BESIDE_SECONDS
    planned = plan(scene, "orders", "--kinds", "missing")
    assert planned["counts"]["planned"] == STUCK
    code, run = apply(scene, planned)
    counts = {name: run["counts"][name] for name in ("batches", "written", "verified", "failed", "in_sync", "open_gaps_left")}
    assert counts == {"batches": 11, "written": STUCK, "verified": STUCK, "failed": 0, "in_sync": 1, "open_gaps_left": 0}
    assert (code, orders.count_documents({"_id": {"$lte": STUCK}})) == (0, STUCK)


def test_lesson_29_a_repair_that_is_done_again_applies_nothing_again(scene: Scene, orders: Orders) -> None:
    """Messages that were refreshed applied their amounts once more: 404 of 424 balances were wrong after it."""
    wrong, gone = [21, 22, 23], [24, 25]
    orders.update_many({"_id": {"$in": wrong}}, {"$inc": {"amount": Decimal128("5")}})
    orders.delete_many({"_id": {"$in": gone}})
    sweep(scene)
    wait_found(scene, len(wrong + gone))
    planned = plan(scene)
    assert apply(scene, planned)[1]["counts"]["verified"] == len(wrong + gone)

    def amounts() -> dict[int, int]:
        found = orders.find({"_id": {"$in": wrong + gone}})
        return {document["_id"]: int(document["amount"].to_decimal()) for document in found}

    assert amounts() == {key: key for key in wrong + gone}
    with orders.watch() as stream:
        for _ in range(2):
            code, run = apply(scene, planned)
            assert (code, run["state"]) == (0, "succeeded"), run
            assert (run["counts"]["written"], run["counts"]["already_right"]) == (0, len(wrong + gone))
        assert stream.try_next() is None
    assert amounts() == {key: key for key in wrong + gone}


def test_lesson_18_what_no_cache_holds_costs_a_read_and_a_wrong_value_is_a_fault(scene: Scene, orders: Orders) -> None:
    """A cold cache was reported as critical inconsistency. Of ``slow`` nearly every settled key is forgotten."""
    cold = list(range(300, 340))

    def cleared() -> float:
        samples = scene.service.samples("gapwatch_suspects_cleared_total")
        return sum(value for labels, value in samples if labels["pipeline"] == "slow")

    before = cleared()
    orders.update_many({"_id": {"$in": cold}}, {"$set": {"unmapped": number()}})
    wait_for(lambda: cleared() >= before + len(cold) - 10, "the keys that it had forgotten to be read", 40)
    assert scene.service.gaps("slow") == []
    scene.service.wait_healthy("slow")
    orders.update_one({"_id": cold[0]}, {"$set": {"v": "wrong"}})
    assert wait_found(scene, 1, "slow") == {cold[0]: "mismatch"}
    (gap,) = scene.service.gaps("slow")
    assert (gap["detector"], gap["fields"]) == ("stream", ["v"])


def test_what_a_backfill_overwrote_and_deleted_is_in_its_undo_file(scene: Scene, orders: Orders) -> None:
    orders.replace_one({"_id": 8}, {"seq": 8, "v": "wrong", "amount": Decimal128("8.10"), "own": [1, {"a": None}]})
    orders.insert_one({"_id": 777_778, "v": "stranger"})
    orders.delete_one({"_id": 9})
    before = {key: orders.find_one({"_id": key}) for key in (8, 9, 777_778)}
    sweep(scene)
    wait_found(scene, 3)
    code, run = apply(scene, plan(scene, "orders", "--kinds", "missing,stale,mismatch,extra"))
    assert (code, run["counts"]["verified"]) == (0, 3), run
    file = scene.service.directory / "undo" / "orders" / f"{run['id']}.jsonl"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    lines = [loads(line) for line in file.read_text().splitlines()]
    assert {line["key"]["id"]: line["action"] for line in lines} == {8: "replace", 9: "create", 777_778: "delete"}
    assert {line["key"]["id"]: line["document"] for line in lines} == before, "whole, in types of its own"
    assert {(line["pipeline"], line["run"]) for line in lines} == {("orders", run["id"])}


def test_nothing_is_written_where_the_undo_file_cannot_be(scene: Scene, orders: Orders) -> None:
    folder = scene.service.directory / "undo" / "orders"
    orders.delete_one({"_id": 10})
    sweep(scene, "--ids")
    wait_found(scene, 1)
    planned = plan(scene)
    kept = folder.rename(folder.with_name("aside")) if folder.exists() else None
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")
    try:
        _, run = apply(scene, planned)
    finally:
        folder.unlink()
        if kept is not None:
            kept.rename(folder)
    assert run["state"] == "inconclusive"
    assert "The undo file" in run["error"]
    assert orders.find_one({"_id": 10}) is None
    assert apply(scene, plan(scene))[1]["counts"]["verified"] == 1


def test_d5_lesson_7_refused_documents_fail_alone_and_are_never_in_sync(scene: Scene, orders: Orders) -> None:
    database = orders.database
    orders.delete_many({"_id": {"$lte": 100}})
    sweep(scene, "--ids")
    wait_found(scene, 100)
    database.command("collMod", "orders", validator={"seq": {"$nin": [3, 50, 99]}}, validationLevel="strict")
    try:
        code, run = apply(scene, plan(scene))
        counts = {name: run["counts"][name] for name in ("written", "verified", "failed", "in_sync", "open_gaps_left")}
        assert counts == {"written": 97, "verified": 97, "failed": 3, "in_sync": 0, "open_gaps_left": 3}
        assert (code, run["state"]) == (1, "failed")
        assert run["error"].startswith("3 documents failed. Most often: Document failed validation")
        refused = {key: reason for key, (outcome, reason) in outcomes(scene, run).items() if outcome == "failed"}
        assert refused.keys() == {3, 50, 99}
        assert all("$nin" in str(reason) for reason in refused.values()), refused
        assert found(scene).keys() == {3, 50, 99}
        assert orders.count_documents({"_id": {"$lte": 100}}) == 97, "what was counted is what is there"
    finally:
        database.command("collMod", "orders", validator={}, validationLevel="off")


def test_d7_what_is_newer_by_now_is_already_newer(scene: Scene, orders: Orders) -> None:
    """While a slow backfill works its batches off, the pipeline itself writes one of its keys, newer: that one stays."""
    scene.service.api.post("/api/v1/pipelines/orders/pause")
    try:
        orders.delete_many({"_id": {"$lte": 60}})
        wait_found(scene, 60, "slow")
        run = scene.service.api.post("/api/v1/backfills", {"pipeline": "slow", "dry_run": False})
        wait_for(lambda: orders.count_documents({"_id": {"$lte": 60}}) > 0, "the first batch", 30)
        late = max({*range(1, 61)} - {document["_id"] for document in orders.find({"_id": {"$lte": 60}}, {"_id": 1})})
        seq = number()
        scene.sql(f"UPDATE {TABLE} SET seq = {seq}, v = 'newer' WHERE id = {late}")
        newer = {"seq": seq, "v": "newer", "amount": Decimal128(str(late)), "big": None}
        orders.replace_one({"_id": late}, newer, upsert=True)  # as the copier will: it may take longer than the backfill
        path = f"/api/v1/backfills/{run['id']}"
        ended = wait_for(lambda: one if (one := scene.service.api.get(path))["state"] != "running" else None, "the run", 60)
    finally:
        scene.service.api.post("/api/v1/pipelines/orders/resume")
        wait_for(lambda: swept_after_pause(scene), "the sweep that follows a pause", 60)
    assert ended["state"] == "succeeded", ended
    counts = {name: ended["counts"][name] for name in ("written", "already_newer", "failed")}
    assert counts == {"written": 59, "already_newer": 1, "failed": 0}
    assert outcomes(scene, ended, "slow")[late][0] == "already_newer"
    newest = orders.find_one({"_id": late})
    assert newest is not None
    assert newest["v"] == "newer"


def test_d7_a_row_that_lacks_a_field_is_refused_and_never_filled_up(scene: Scene, orders: Orders) -> None:
    """The placeholder stands for a column that somebody did not have: no document is made of such a row."""
    key = ROWS + 1
    scene.copier.rules[key] = falsify()
    scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES ({key}, {key}, '{PLACEHOLDER}', 1)")
    wait_for(lambda: orders.find_one({"_id": key}), "the document", 20)
    orders.delete_one({"_id": key})
    wait_for(lambda: found(scene).get(key) == "missing", "the gap", 30)
    code, run = apply(scene, plan(scene))
    assert (code, run["state"], run["counts"]["failed"], run["counts"]["written"]) == (1, "failed", 1, 0)
    assert outcomes(scene, run)[key] == ("failed", "Column v holds Debezium's placeholder: it is not written.")
    assert orders.find_one({"_id": key}) is None
    assert found(scene) == {key: "missing"}


def test_d9_an_extra_document_goes_only_while_the_source_has_no_such_row(scene: Scene, orders: Orders) -> None:
    gone, kept = 900_001, 900_002
    for key in (gone, kept):
        orders.insert_one({"_id": key, "seq": key, "v": "stranger", "amount": Decimal128("1"), "big": None})
    assert wait_found(scene, 2) == dict.fromkeys((gone, kept), "extra")
    planned = plan(scene, "orders", "--kinds", "extra")
    scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES ({kept}, {kept}, 'v{kept}', 1)")
    wait_for(lambda: (orders.find_one({"_id": kept}) or {}).get("v") == f"v{kept}", "the row to be copied", 20)
    code, run = apply(scene, planned)
    assert (code, run["state"]) == (0, "succeeded"), run
    assert orders.find_one({"_id": gone}) is None
    assert orders.find_one({"_id": kept}) is not None
    assert outcomes(scene, run)[gone][0] == "written"
    assert outcomes(scene, run)[kept][0] == "already_right"


def test_d11_a_dry_run_writes_nothing(scene: Scene, orders: Orders) -> None:
    orders.delete_many({"_id": {"$gt": ROWS - 3}})
    orders.update_one({"_id": 8}, {"$set": {"v": "changed"}})
    sweep(scene)
    wait_found(scene, 4)
    before = {document["_id"]: document for document in orders.find()}
    with orders.watch() as stream:
        planned = plan(scene)
        assert stream.try_next() is None
    assert (planned["state"], planned["request"]["dry_run"]) == ("succeeded", True)
    assert planned["counts"]["planned"] == 4
    assert (planned["counts"]["missing"], sum(planned["counts"].get(kind, 0) for kind in ("mismatch", "stale"))) == (3, 1)
    assert {document["_id"]: document for document in orders.find()} == before
    assert len(found(scene)) == 4


def test_f3_a_second_sweep_at_once_is_refused_with_the_running_id(scene: Scene) -> None:
    first = scene.service.api.post("/api/v1/sweeps", {"pipeline": "orders"})
    with pytest.raises(ConflictError) as refused:
        scene.service.api.post("/api/v1/sweeps", {"pipeline": "orders"})
    assert refused.value.running_id == first["id"]
    wait_for(lambda: scene.service.api.get(f"/api/v1/sweeps/{first['id']}")["state"] == "succeeded", "the first sweep", 60)


def test_a_sweep_that_takes_its_time_tells_how_far_it_is_hurries_for_who_waits_and_ends_when_asked_to(scene: Scene) -> None:
    service = scene.service
    shown: list[dict[str, Any]] = []

    def record(run: str) -> dict[str, Any]:
        found: dict[str, Any] = service.api.get(f"/api/v1/sweeps/{run}")
        return found

    def told(run: str) -> bool:
        shown.append(record(run))
        return bool(shown[-1]["rate"] and shown[-1]["eta"] and 0 < shown[-1]["progress"] < 1)

    _, [first] = service.answer("sweep", "start", "orders", "--within", "1h")
    wait_for(lambda: told(first["id"]), "rate and end of a sweep under way", 20)
    assert shown[-1]["state"] == "running"
    assert service.command("sweep", "start", "orders").returncode == 2, "one at a time"
    wait_for(lambda: record(first["id"])["state"] == "succeeded", "the first sweep to hurry", 30)
    assert service.lines("all", "sweep_hurries")
    _, [second] = service.answer("sweep", "start", "orders", "--within", "1h")
    assert service.command("sweep", "cancel", second["id"]).returncode == 0
    wait_for(lambda: record(second["id"])["state"] == "cancelled", "the second sweep to end", 30)
    assert not service.gaps()


def test_a_backfill_that_is_cancelled_leaves_the_rest_as_it_was(scene: Scene, orders: Orders) -> None:
    service, lost = scene.service, list(range(200, 400))  # so many that it is not through before a busy machine cancels it
    orders.delete_many({"_id": {"$in": lost}})
    _, [swept] = service.answer("sweep", "start", "slow", "--wait")
    assert swept["counts"]["missing"] == len(lost)
    _, [plan] = service.answer("backfill", "plan", "slow")
    _, [run] = service.answer("backfill", "apply", plan["id"], "--yes")
    wait_for(lambda: orders.count_documents({"_id": {"$in": lost}}), "the first batch", 30)
    assert service.command("backfill", "cancel", run["id"]).returncode == 0
    wait_for(lambda: service.api.get(f"/api/v1/backfills/{run['id']}")["state"] == "cancelled", "the backfill to end", 30)
    written = {document["_id"] for document in orders.find({"_id": {"$in": lost}}, {"_id": 1})}
    assert 0 < len(written) < len(lost)
    wait_for(lambda: {gap["key"]["id"] for gap in service.gaps("slow")} == set(lost) - written, "the others' gaps", 30)
    assert {gap["state"] for gap in service.gaps("slow")} == {"open"}
    orders.insert_many([{"_id": key, "seq": key, "v": f"v{key}", "amount": Decimal128(str(key))} for key in set(lost) - written])
    _, [again] = service.answer("sweep", "start", "slow", "--wait")
    assert again["state"] == "succeeded"


def refuse(orders: Orders, rule: dict[str, Any]) -> None:
    """Have the target refuse what breaks a rule from now on; an empty one: nothing."""
    orders.database.command("collMod", "orders", validator=rule, validationLevel="strict" if rule else "off")


def test_d17_lesson_6_a_backfill_of_which_too_much_fails_is_aborted_and_leaves_the_rest(scene: Scene, orders: Orders) -> None:
    """Two documents in five are refused: it stops soon after the tenth, and nothing that it had not come to is touched."""
    lost = set(range(401, 461))
    orders.delete_many({"_id": {"$in": sorted(lost)}})
    wait_found(scene, len(lost), "slow")
    planned = plan(scene, "slow")
    before = {document["_id"]: document for document in orders.find()}
    refuse(orders, {"$expr": {"$gte": [{"$mod": ["$seq", 5]}, 2]}})
    try:
        with orders.watch() as stream:
            code, run = apply(scene, planned)
            touched = [(one["operationType"], one["documentKey"]["_id"]) for one in shown_by(stream, run["counts"]["written"])]
    finally:
        refuse(orders, {})
    said = outcomes(scene, run, "slow")
    written = {key for key, (outcome, _) in said.items() if outcome == "written"}
    failed = said.keys() - written
    assert (code, run["state"]) == (1, "aborted"), run
    reason = f"Stopped: {len(failed)} of the first {len(said)} documents failed. Most often: Document failed validation"
    assert run["error"].startswith(reason), run
    counts = {name: run["counts"][name] for name in ("planned", "written", "failed", "in_sync", "open_gaps_left")}
    left = lost - written
    assert counts == {
        "planned": len(lost),
        "written": len(written),
        "failed": len(failed),
        "in_sync": 0,
        "open_gaps_left": len(left),
    }
    assert {outcome for outcome, _ in said.values()} == {"written", "failed"}
    assert len(failed) > 0.2 * len(said)
    assert 10 <= len(said) <= 48, "of sixty it cannot go on for longer, in whatever order it takes them"
    assert sorted(touched) == [("insert", key) for key in sorted(written)]
    after = {document["_id"]: document for document in orders.find()}
    assert after.keys() == before.keys() | written
    assert {key: after[key] for key in before} == before
    assert {gap["key"]["id"]: gap["state"] for gap in scene.service.gaps("slow")} == dict.fromkeys(left, "open")


def lapse(scene: Scene, run: dict[str, Any]) -> None:
    """Let the lease of a killed holder be over by the ledger: its minute has passed, for all that anybody can tell."""
    with closing(sqlite3.connect(scene.service.directory / "gapwatch.db", timeout=10)) as ledger, ledger:
        found = ledger.execute("UPDATE runs SET lease_until = 0 WHERE id = ? AND state = 'running'", (run["id"],))
        assert found.rowcount == 1


def announced(scene: Scene, run: dict[str, Any]) -> list[tuple[str, set[int]]]:
    """Return the batches that a run was about to write, by the audit: when, and which keys; the oldest first."""
    rows = scene.service.api.get("/api/v1/audit", run_id=run["id"], limit=1_000)["audit"]
    batches: dict[str, set[int]] = {}
    for row in rows:
        if row["action"] == "backfill_write" and row["outcome"] == "planned":
            batches.setdefault(row["at"], set()).add(row["key"]["id"])
    return sorted(batches.items(), key=lambda batch: at(batch[0]))


def test_d13_a_backfill_that_was_killed_at_its_fifth_batch_of_ten_goes_on_there(
    scene: Scene, orders: Orders, request: pytest.FixtureRequest
) -> None:
    """Whoever takes it over repeats one batch at most. Its lease is ended by hand; with ``--soak`` its minute passes."""
    service, lost = scene.service, set(range(301, 301 + 10 * IN_A_BATCH))
    where = {"_id": {"$in": sorted(lost)}}
    orders.delete_many(where)
    wait_found(scene, len(lost), "slow")
    with orders.watch() as stream:
        run = service.api.post("/api/v1/backfills", {"pipeline": "slow", "dry_run": False})
        until(lambda: orders.count_documents(where) > 4 * IN_A_BATCH, "the fifth batch")
        service.kill("all")
        killed = now()
        if not request.config.getoption("--soak"):
            lapse(scene, run)
        stood = {document["_id"] for document in orders.find(where, {"_id": 1})}
        service.start()
        ended = wait_for(lambda: ended_backfill(scene, run), "another one to end it", 150)
        changes = shown_by(stream, len(lost))
    assert {change["operationType"] for change in changes} == {"insert"}, changes
    inserted = Counter(change["documentKey"]["_id"] for change in changes)
    batches = announced(scene, run)
    first = [keys for when, keys in batches if at(when) < killed]
    second = set[int]().union(*(keys for when, keys in batches if at(when) > killed))
    assert {len(keys) for keys in first} == {IN_A_BATCH}
    assert 5 <= len(first) < 10, "killed at the fifth, or a little late"
    assert second == lost - stood, "what stood is not written again"
    assert second & set[int]().union(*first) <= first[-1], "a batch that had only been announced is repeated, and no other"
    assert inserted == dict.fromkeys(lost, 1)
    assert (ended["state"], ended["progress"]) == ("succeeded", 1)
    counts = {name: ended["counts"][name] for name in ("planned", "already_right", "written", "verified", "failed", "in_sync")}
    assert counts == {
        "planned": len(lost),
        "already_right": len(stood),
        "written": len(second),
        "verified": len(second),
        "failed": 0,
        "in_sync": 1,
    }


def ended_backfill(scene: Scene, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return a backfill's run once it has ended; None before, and while the API does not answer."""
    try:
        record: dict[str, Any] = scene.service.api.get(f"/api/v1/backfills/{run['id']}")
    except GapwatchError:
        return None
    return None if record["state"] in ("queued", "running") else record


def test_d14_lesson_26_a_target_that_was_dropped_is_filled_again_while_the_shop_is_open(scene: Scene, orders: Orders) -> None:
    """The sweep comes by itself. A plan has so many documents at most: plans are made until one has nothing to do."""
    shop, api = Shop(scene.dsn, ROWS // 6), scene.service.api  # the sink brings back what is changed: less than a plan leaves
    shop.start()
    try:
        orders.drop()
        wait_for(lambda: emptied(scene), "the sweep that finds it", 60)
        runs: list[dict[str, Any]] = []
        while (planned := api.post("/api/v1/backfills", {"pipeline": "orders"}))["counts"]["planned"]:
            assert planned["counts"]["planned"] <= PER_RUN
            runs.append(applied(scene, planned))
            assert len(runs) <= 10, runs
    finally:
        shop.stop()
    assert {run["state"] for run in runs} == {"succeeded"}, runs
    assert runs[0]["counts"]["planned"] == PER_RUN
    assert len(runs) > 1
    assert sum(run["counts"]["written"] for run in runs) > ROWS / 2
    assert shop.writes > 100
    wait_for(lambda: not differing(scene), "both stores to be equal", 30)
    wait_for(lambda: not found(scene), "the gaps to be resolved", 30)


def applied(scene: Scene, planned: dict[str, Any]) -> dict[str, Any]:
    """Apply a plan; return its run when it has ended."""
    run = scene.service.api.post("/api/v1/backfills", {"plan": planned["id"], "dry_run": False})
    return wait_for(lambda: ended_backfill(scene, run), "a backfill to end", 60)


def emptied(scene: Scene) -> dict[str, Any] | None:
    """Return the sweep that found the target empty."""
    return next((run for run in sweeps(scene, "succeeded", "orders") if run["counts"].get("missing", 0) > PER_RUN), None)
