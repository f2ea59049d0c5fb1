"""Automatic repair on real stores: one key at a time, until it fails for good or too much is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bson import Decimal128
from pymongo.collection import Collection

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change, Operation
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import at, clean, create_database, during, falsify, lose, number, shown_by
from tests.stack import BESIDE_SECONDS

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 40
REPAIR = {"missing": "auto", "stale": "auto", "mismatch": "auto", "backoff": "1s", "max_attempts": 2}
Orders = Collection[dict[str, Any]]


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = create_database(stack, f"autorepair_{number()}")
    rows = f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'v' || i, i FROM generate_series(1, {ROWS}) i"
    directory = tmp_path_factory.mktemp("autorepair")
    with watched(stack, database, directory, before=[rows], copied=ROWS, grace="1s", repair=REPAIR) as scene:
        yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    with clean(built) as scene:
        yield scene


def write(scene: Scene, key: int, value: str, rule: Callable[[Change], list[tuple[float, Operation | None]]]) -> None:
    """Change a row; the copier does with that write what the rule says."""
    seq = number()
    scene.copier.rules[seq] = rule
    scene.sql(f"UPDATE {TABLE} SET seq = {seq}, v = '{value}' WHERE id = {key}")


def resolved(scene: Scene, key: int) -> dict[str, Any]:
    """Return the key's newest gap with its history, once it is resolved."""

    def look() -> str | None:
        gaps = [gap for gap in scene.service.gaps(state="resolved") if gap["key"] == {"id": key}]
        return max(gaps, key=lambda gap: str(gap["first_seen"]))["id"] if gaps else None

    gap: dict[str, Any] = scene.service.api.get(f"/api/v1/gaps/{wait_for(look, 'the gap to be resolved', 40)}")
    return gap


def writes(scene: Scene, key: int) -> list[dict[str, Any]]:
    rows = scene.service.api.get("/api/v1/audit", pipeline="orders", limit=1_000)["audit"]
    return [row for row in rows if row["action"] == "backfill_write" and row["key"] == {"id": key}]


def given_up(scene: Scene, key: int) -> bool:
    _, found = scene.service.answer("backfill", "failed", "orders")
    return any(record["state"] == "given_up" and record["key"] == {"id": key} for record in found)


def ids(orders: Orders) -> set[int]:
    return {document["_id"] for document in orders.find({}, {"_id": 1})}


def runs(scene: Scene) -> list[tuple[str, str]]:
    """Return the newest plans and backfills, and their states."""
    return [(run["id"], run["state"]) for run in scene.service.api.get("/api/v1/backfills", pipeline="orders")["backfills"]]


def states(scene: Scene) -> set[tuple[str, str]]:
    """Return each gap there ever was, and its state."""
    return {(gap["id"], gap["state"]) for gap in scene.service.gaps(state="")}


Picture = tuple[set[int], set[tuple[str, str]], list[tuple[str, str]]]


def standing_still(scene: Scene, orders: Orders) -> Picture:
    """Return all documents, gaps and runs once they have not changed for a second and a half."""
    seen: list[Picture] = []

    def still() -> bool:
        seen.append((ids(orders), states(scene), runs(scene)))
        return len(seen) > 8 and all(one == seen[-1] for one in seen[-8:])

    wait_for(still, "nothing to change any more", 20)
    return seen[-1]


def stopped(scene: Scene) -> str:
    return next((reason for reason in scene.service.view()["reasons"] if "automatic repair has stopped" in reason), "")


@contextmanager
def profiled(orders: Orders) -> Iterator[list[dict[str, Any]]]:
    """Yield a list which holds, after the block, every operation on the collection in it, as MongoDB's profiler noted them."""
    noted: list[dict[str, Any]] = []
    orders.database.command("profile", 2)
    try:
        yield noted
    finally:
        orders.database.command("profile", 0)
        noted += orders.database["system.profile"].find({"ns": f"{orders.database.name}.orders"})
        orders.database["system.profile"].drop()


def is_left_alone(orders: Orders) -> bool:
    """Whether nobody reads a document for two seconds: gaps of earlier tests are read again until they are over."""
    with profiled(orders) as noted:
        during(2, lambda: None)
    return not any("find" in one["command"] for one in noted)


def asked_of(scene: Scene) -> dict[tuple[str, str], float]:
    """Return how often the stores were asked so far, by store and purpose."""
    found = scene.service.samples("gapwatch_store_requests_total")
    return {(labels["store"], labels["purpose"]): value for labels, value in found}


def test_d16_a_lost_write_is_repaired_by_itself_within_five_seconds_of_its_gap(scene: Scene, orders: Orders) -> None:
    """By its key alone: nothing else is read or written at the target, and nothing is swept."""
    wait_for(lambda: is_left_alone(orders), "what came before to be over", 60)
    swept = scene.service.api.get("/api/v1/sweeps", pipeline="orders")["sweeps"]
    before = asked_of(scene)
    with profiled(orders) as noted:
        write(scene, 7, "lost", lose)
        gap = resolved(scene, 7)
    reads = [one for one in noted if "find" in one["command"]]
    assert reads
    assert {tuple(one["command"]["filter"]["_id"]["$in"]) for one in reads} == {(7,)}
    assert max(one["docsExamined"] for one in reads) == 1
    (written,) = [one for one in noted if one["op"] in ("insert", "update", "remove")]
    assert (written["op"], written["command"]["q"]["_id"], written["docsExamined"]) == ("update", 7, 1)
    assert {next(iter(one["command"])) for one in noted} <= {"find", "q", "count", "getMore"}, "no scan; its stream goes on"
    more = {what for what, count in asked_of(scene).items() if count > before.get(what, 0)}
    assert {purpose for _, purpose in more} <= {"heartbeat", "capture", "watch", "confirm", "recheck", "backfill"}
    assert {("shop", "confirm"), ("catalog", "confirm"), ("shop", "backfill"), ("catalog", "backfill")} <= more
    assert scene.service.api.get("/api/v1/sweeps", pipeline="orders")["sweeps"] == swept
    assert (gap["kind"], gap["resolution"]) == ("stale", "backfilled")
    assert [step["event"] for step in gap["history"]][-2:] == ["repairing", "resolved"]
    assert (at(gap["resolved_at"]) - at(gap["confirmed_at"])).total_seconds() < 5 + BESIDE_SECONDS
    document = orders.find_one({"_id": 7})
    assert document is not None
    assert document["v"] == "lost"
    assert {row["outcome"] for row in writes(scene, 7)} == {"planned", "written"}
    assert {row["actor"] for row in writes(scene, 7)} == {"automatic repair"}
    path = f"/api/v1/backfills/{writes(scene, 7)[0]['run_id']}"
    wait_for(lambda: scene.service.api.get(path)["state"] == "succeeded", "the run to end", 20)
    run = scene.service.api.get(path)
    assert (run["counts"]["planned"], run["counts"]["written"], run["request"]["automatic"]) == (1, 1, True), "only that key"
    scene.service.wait_healthy()


def test_what_was_written_wrongly_is_set_right_and_what_is_extra_stays(scene: Scene, orders: Orders) -> None:
    orders.insert_one({"_id": 900_001, "seq": 1, "v": "stranger", "amount": Decimal128("1"), "big": None})
    write(scene, 8, "right", falsify(v="wrong"))
    assert resolved(scene, 8)["resolution"] == "backfilled"
    document = orders.find_one({"_id": 8})
    assert document is not None
    assert document["v"] == "right"
    wait_for(lambda: [gap["kind"] for gap in scene.service.gaps()] == ["extra"], "the stranger's gap", 30)
    assert writes(scene, 900_001) == []
    assert orders.find_one({"_id": 900_001}) is not None


def test_d6_what_the_target_refuses_is_given_up_listed_and_queued_again(scene: Scene, orders: Orders) -> None:
    orders.database.command("collMod", "orders", validator={"v": {"$ne": "poison"}}, validationLevel="strict")
    try:
        write(scene, 9, "poison", lose)

        def given_up() -> list[dict[str, Any]]:
            _, found = scene.service.answer("backfill", "failed", "orders")
            return [record for record in found if record["state"] == "given_up"]

        (record,) = wait_for(given_up, "the repair to be given up", 60)
        assert (record["key"], record["attempts"], record["outcome"], record["next_at"]) == ({"id": 9}, 2, "failed", None)
        assert "$ne" in record["reason"]
        assert scene.service.command("backfill", "failed", "orders").returncode == 1
        (gap,) = scene.service.gaps()
        assert gap["note"].startswith("repair refused: Document failed validation")
        reasons = scene.service.view()["reasons"]
        assert "the repair of 1 gaps was given up: see `gapwatch backfill failed orders`" in reasons
        wait_for(lambda: scene.service.metric("gapwatch_repairs_failed", state="given_up") == 1, "the metric", 10)
        assert len([row for row in writes(scene, 9) if row["outcome"] == "failed"]) == 2
    finally:
        orders.database.command("collMod", "orders", validator={}, validationLevel="off")
    assert scene.service.command("backfill", "requeue", "orders", "9").returncode == 2, "it writes: it needs a yes"
    code, runs = scene.service.answer("backfill", "requeue", "orders", "9", "--yes", "--wait")
    assert (code, runs[0]["state"], runs[0]["counts"]["written"]) == (0, "succeeded", 1)
    assert resolved(scene, 9)["resolution"] == "backfilled"
    assert scene.service.answer("backfill", "failed", "orders") == (0, [])


def test_lesson_13_lesson_24_what_was_given_up_is_compared_still_and_its_newest_row_is_written(
    scene: Scene, orders: Orders
) -> None:
    """Rows whose retries were exhausted were looked at by nothing; retries in no order wrote an old payload over a newer one."""
    key = 12
    orders.database.command("collMod", "orders", validator={"_id": {"$ne": key}}, validationLevel="strict")
    try:
        write(scene, key, "older", lose)
        wait_for(lambda: given_up(scene, key), "the repair to be given up", 60)
        write(scene, key, "newest", lose)
        code, runs = scene.service.answer("sweep", "start", "orders", "--wait")
        assert (code, runs[0]["state"], runs[0]["counts"]["differences"]) == (1, "succeeded", 1), runs
        assert [gap["key"] for gap in scene.service.gaps()] == [{"id": key}]
        with orders.watch([{"$match": {"documentKey._id": key}}], full_document="updateLookup") as stream:
            orders.database.command("collMod", "orders", validator={}, validationLevel="off")
            scene.service.command("backfill", "requeue", "orders", str(key), "--yes", "--wait")  # or it comes before by itself
            wait_for(lambda: scene.service.gaps() == [], "the gap to be resolved", 40)
            written = [change["fullDocument"]["v"] for change in shown_by(stream, 1)]
    finally:
        orders.database.command("collMod", "orders", validator={}, validationLevel="off")
    assert written == ["newest"]
    assert resolved(scene, key)["resolution"] == "backfilled"
    assert scene.service.answer("backfill", "failed", "orders") == (0, [])


def test_trap_48_m22_a_mass_failure_stops_it_and_somebody_lets_it_go_on_once_a_pause_is_over(
    scene: Scene, orders: Orders
) -> None:
    gone = list(range(11, 31))
    orders.delete_many({"_id": {"$in": gone}})
    assert wait_for(lambda: stopped(scene), "automatic repair to stop", 60)
    assert "gapwatch backfill resume orders" in stopped(scene)
    wait_for(lambda: scene.service.metric("gapwatch_automatic_repair_stopped") == 1, "the metric", 10)
    there = {"_id": {"$in": gone}}
    wait_for(lambda: len(scene.service.gaps()) == len(gone) - orders.count_documents(there), "the gaps", 30)
    left = orders.count_documents(there)
    assert left <= 10, "no more than a few were repaired before it stopped"
    assert scene.service.command("pipelines", "pause", "orders", "--reason", "the target moves").returncode == 0
    before = standing_still(scene, orders)  # within a second nothing is begun any more
    assert scene.service.command("backfill", "resume", "orders").returncode == 0

    def alone() -> None:
        assert (ids(orders), states(scene), runs(scene)) == before, "nothing is opened, resolved or repaired"
        assert scene.service.view()["status"] == "SKIPPED"

    during(5, alone)  # twenty looks of automatic repair, at gaps that wait for it
    assert {state for _, state in before[1]} >= {"open"}
    assert scene.service.command("pipelines", "resume", "orders").returncode == 0
    wait_for(lambda: orders.count_documents({"_id": {"$in": gone}}) == len(gone), "the repair", 60)
    wait_for(lambda: scene.service.gaps() == [], "the gaps to be resolved", 30)
    assert stopped(scene) == ""
    refused = scene.service.command("backfill", "resume", "orders")
    assert refused.returncode == 2
    assert "has not stopped" in refused.stderr


AWAY, AWAY_LONG = 5.0, 60.0  # seconds at least: an attempt at a server that is down takes five, and it is away for two


def test_d6_what_waits_for_a_target_that_is_away_lands_once_it_is_back(
    scene: Scene, orders: Orders, request: pytest.FixtureRequest
) -> None:
    """Asked for again and again while MongoDB is down, which uses up no attempt; with ``--soak`` for a minute."""
    service, gone = scene.service, list(range(11, 31))
    where = {"_id": {"$in": gone}}
    orders.delete_many(where)
    wait_for(lambda: stopped(scene), "automatic repair to stop", 60)
    wait_for(lambda: len(service.gaps()) == len(gone) - orders.count_documents(where), "the gaps", 30)
    waiting = {gap["id"] for gap in service.gaps()}
    assert len(waiting) >= 10

    def asked() -> float:
        return service.metric("gapwatch_store_requests_total", store="catalog", purpose="backfill", pipeline="orders") or 0.0

    def look() -> None:
        service.check_alive()
        assert {gap["id"] for gap in service.gaps()} == waiting, "nothing is resolved by a store that does not answer"

    def tried_again() -> bool:
        look()
        return asked() >= before + 2

    before = asked()
    scene.stack.mongodb.kill()
    try:
        assert service.command("backfill", "resume", "orders").returncode == 0
        during(AWAY_LONG if request.config.getoption("--soak") else AWAY, look)
        wait_for(tried_again, "it to be tried once more", 60)
        assert service.answer("backfill", "failed", "orders", "--state", "given_up") == (0, [])
    finally:
        scene.stack.mongodb.start()
    wait_for(lambda: orders.count_documents(where) == len(gone), "all of them to land", 60)
    wait_for(lambda: service.gaps() == [], "the gaps to be resolved", 30)
    landed = [gap for gap in service.gaps(state="resolved") if gap["id"] in waiting]
    assert {gap["resolution"] for gap in landed} == {"backfilled"}
    assert service.answer("backfill", "failed", "orders") == (0, [])
