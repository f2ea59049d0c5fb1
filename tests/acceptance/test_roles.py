"""Each role a process of its own: who reads what, and what a killed one of them misses (nothing)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from bson.json_util import loads
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.oplog import roll_over, small_oplog
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import EVERY_ROLE, wait_for
from tests.acceptance.shared import at, caught_up, clean, create_database, during, gaps_of, lose, now, number, resumed
from tests.stack import BESIDE_SECONDS

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

Places = set[tuple[str, int]]


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A pipeline whose target has a small oplog."""
    database = create_database(stack, f"roles_{number()}")
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (1, 1, 'first', 1)"]  # makes the topic
    with small_oplog() as small:
        parts = SimpleNamespace(kafka=stack.kafka, connect=stack.connect, postgres=stack.postgres, mongodb=small.mongodb)
        both = cast(EmbeddedStack, parts)
        with watched(both, database, tmp_path_factory.mktemp("roles"), before=before, roles=EVERY_ROLE) as scene:
            yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    with clean(built) as scene:
        yield scene


def insert(scene: Scene, keys: list[int]) -> None:
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        for key in keys:
            connection.execute(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (%s, %s, 'a', 1)", (key, key))


def feed_of(scene: Scene) -> str:
    return f"gw-{scene.database}.feed.orders.target"


def in_feed(scene: Scene) -> dict[Any, int]:
    """Return the ``_id`` of every event in our change stream's topic, with how often it came."""
    servers, topic = scene.stack.kafka.bootstrap_servers, feed_of(scene)
    options = {"enable.auto.commit": False, "enable.partition.eof": True}  # its last offset may be a transaction's marker
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "tests", **options})
    found: dict[Any, int] = {}
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while (message := consumer.poll(60)) is not None:
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                return found
            if message.key() is not None:
                key = loads(message.key() or b"")["_id"]
                found[key] = found.get(key, 0) + 1
        raise AssertionError(f"{topic} was not read to its end.")
    finally:
        consumer.close()


def test_a2_what_happens_while_the_reader_is_dead_arrives_all_the_same(scene: Scene) -> None:
    before, keys = caught_up(scene.service, both=True)["totals"], [number() for _ in range(1_000)]
    dead = threading.Event()

    def write() -> None:
        insert(scene, keys[:300])
        dead.wait()  # else a slow look may find them all written
        insert(scene, keys[300:])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(lambda: len(scene.documents().keys() & set(keys)) >= 50, "some of the documents", 30)
        scene.service.kill("capture", signal.SIGKILL)
    finally:
        dead.set()
    missed = len(set(keys) - in_feed(scene).keys())
    assert missed >= 500
    writer.join()
    wait_for(lambda: set(keys) <= scene.documents().keys(), "all documents", 30)
    scene.service.start(["capture"])
    wait_for(lambda: set(keys) <= in_feed(scene).keys(), "every write in the feed", 30)
    scene.service.wait_healthy()

    def settled() -> dict[str, Any] | None:
        totals: dict[str, Any] = scene.service.view()["totals"]
        return totals if totals["settled"] - before["settled"] == len(keys) else None

    totals = wait_for(settled, "every write to be settled by the stream itself", 30)
    assert totals["cleared"] == before["cleared"], "a write was confirmed by reading: its event was lost"
    assert gaps_of(scene.service, *keys, state="") == []


def test_a2_trap_12_a_token_outside_the_oplog_is_history_lost_and_a_sweep(scene: Scene) -> None:
    key, stranger = number(), number()
    insert(scene, [key])
    wait_for(lambda: key in scene.documents(), "the document")
    shown = now()
    wait_for(lambda: (time := scene.service.view()["consistent_through"]) and at(time) > shown, "its write to be proven", 30)
    scene.service.wait_healthy()
    scene.service.kill("capture", signal.SIGKILL)
    client: MongoClient[dict[str, Any]] = scene.mongo()
    try:  # no stream ever shows these: they happen while nobody reads, and the position is lost
        client[scene.database].orders.delete_one({"_id": key})
        client[scene.database].orders.insert_one({"_id": stranger, "seq": stranger, "v": "nobody's"})
    finally:
        client.close()
    roll_over(scene.stack.mongodb.uri)
    doctor = scene.service.command("doctor")
    assert doctor.returncode == 2
    assert "lies outside the oplog of store catalog (ChangeStreamHistoryLost)" in doctor.stdout
    scene.service.start(["capture"])
    wait_for(lambda: scene.service.view()["status"] == "CRITICAL", "CRITICAL", 60)

    def both() -> list[dict[str, Any]] | None:
        gaps = gaps_of(scene.service, key, stranger)
        return gaps if len(gaps) == 2 else None

    gaps = wait_for(both, "both gaps", 60)
    assert [(gap["key"]["id"], gap["kind"], gap["detector"]) for gap in gaps] == [
        (key, "missing", "sweep"),
        (stranger, "extra", "sweep"),
    ]

    def covered() -> list[dict[str, Any]]:
        found = scene.service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
        return [finding for finding in found if finding["finding"] == "history_lost" and finding["covered_by"]]

    finding = wait_for(covered, "the finding to be covered by its sweep", 30)[0]
    assert (finding["side"], finding["feed"]) == ("observed", feed_of(scene))
    sweep = scene.service.api.get(f"/api/v1/sweeps/{finding['covered_by']}")
    assert (sweep["state"], sweep["request"]["reason"], sweep["requested_by"]) == ("succeeded", "hole", "gapwatch")
    assert at(sweep["started_at"]) > at(finding["time_to"])
    later = number()
    insert(scene, [later])
    wait_for(lambda: later in in_feed(scene), "the new stream to go on", 30)


WINDOW_SECONDS = 16 + int(BESIDE_SECONDS) // 2  # long enough for two roles to start, and for a write that is lost then to be late


def test_m22_in_a_maintenance_window_nothing_opens_and_when_it_ends_a_sweep_looks(scene: Scene) -> None:
    """Repair and API start into a window that has just begun; the streams are read on by processes that know of none."""
    service, (lost, right) = scene.service, (number(), number())
    for role in ("api", "repair"):
        service.kill(role, signal.SIGTERM)
    orders, started = service.config["pipelines"]["orders"], now().replace(microsecond=0)
    ends = started + timedelta(seconds=WINDOW_SECONDS)
    orders["maintenance"] = [f"{started:%Y-%m-%dT%H:%M:%SZ}/{ends:%Y-%m-%dT%H:%M:%SZ}"]
    service.write()
    try:
        service.start(["repair", "api"])
        scene.copier.rules[lost] = lose
        insert(scene, [lost, right])
        view = wait_for(lambda: view if (view := service.view())["status"] == "SKIPPED" else None, "SKIPPED", WINDOW_SECONDS)
        assert view["reasons"] == [f"maintenance until {ends:%Y-%m-%d %H:%M} UTC ({orders['maintenance'][0]})"]
        refused = service.command("sweep", "start", "orders")
        assert refused.returncode == 2
        assert "Pipeline orders is left alone now: maintenance until" in refused.stderr
        known = wait_for(lambda: service.view()["consistent_through"], "the API to have read the statuses", WINDOW_SECONDS)
        through = [at(known)]
        while True:
            view, found = service.view(), gaps_of(service, lost, right, state="")
            if now() >= ends:  # the answers may be of after it
                break
            through.append(at(view["consistent_through"]))
            assert (view["status"], found) == ("SKIPPED", [])
            time.sleep(0.2)
        assert through == sorted(through)
        assert through[-1] <= started, "a status of before the window may be read in it; nothing goes beyond its start"
    finally:
        del orders["maintenance"]
        service.write()  # the next start knows of none
    gaps = wait_for(lambda: gaps_of(service, lost, right), "the gap of what was lost in the window", 60)
    assert [(gap["key"], gap["kind"]) for gap in gaps] == [({"id": lost}, "missing")]
    assert at(gaps[0]["confirmed_at"]) >= ends
    assert at(resumed(service)["started_at"]) >= ends


def members(scene: Scene, group: str) -> dict[str, Places]:
    """Return, per member of a group, the partitions that it owns."""
    admin = AdminClient({"bootstrap.servers": scene.stack.kafka.bootstrap_servers})
    described = admin.describe_consumer_groups([group], request_timeout=30)[group].result(30)
    return {
        member.member_id: {(place.topic, place.partition) for place in member.assignment.topic_partitions}
        for member in described.members
    }


def owned(scene: Scene, group: str) -> Places:
    return set().union(*members(scene, group).values())


def committed(scene: Scene, group: str, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    consumer = Consumer({"bootstrap.servers": scene.stack.kafka.bootstrap_servers, "group.id": group})
    try:
        found = consumer.committed([TopicPartition(*place) for place in places], timeout=30)
    finally:
        consumer.close()
    return {(place.topic, place.partition): place.offset for place in found}


def ends(scene: Scene, places: Places) -> dict[tuple[str, int], int]:
    consumer = Consumer({"bootstrap.servers": scene.stack.kafka.bootstrap_servers, "group.id": "tests"})
    try:
        return {place: int(consumer.get_watermark_offsets(TopicPartition(*place), timeout=30)[1]) for place in places}
    finally:
        consumer.close()


def read_through(scene: Scene, group: str, goal: dict[tuple[str, int], int]) -> bool:
    now = committed(scene, group, goal)
    return all(now.get(place, -1) >= end for place, end in goal.items())


def test_k1_lesson_35_lesson_42_ingest_and_match_have_groups_of_their_own(scene: Scene) -> None:
    ingest, match = f"gw-{scene.database}.ingest", f"gw-{scene.database}.match"
    raw: Places = {(f"{scene.database}.{TABLE}", n) for n in range(4)} | {(feed_of(scene), 0)}
    events: Places = {(f"gw-{scene.database}.events", n) for n in range(2)}
    wait_for(lambda: owned(scene, ingest) == raw, "ingest to own all raw topics", 30)
    wait_for(lambda: events <= owned(scene, match), "match to own all events", 30)
    assert not raw & owned(scene, match)
    before = resting(scene)

    def written(keys: list[int]) -> None:
        insert(scene, keys)
        goals = {ingest: ends(scene, raw), match: ends(scene, events)}
        for group, goal in goals.items():
            wait_for(lambda group=group, goal=goal: read_through(scene, group, goal), f"{group} to have read it all", 30)  # type: ignore[misc]

    def counted(writes: int) -> bool:
        totals = scene.service.view()["totals"]
        return all(totals[name] - before[name] == writes for name in ("expected", "observed"))

    written([number() for _ in range(100)])
    wait_for(lambda: counted(100), "each write to be counted once", 20)

    kept = members(scene, match)
    scene.service.kill("ingest", signal.SIGTERM)
    wait_for(lambda: not members(scene, ingest), "ingest to have left its group", 20)
    during(3, lambda: _assert(members(scene, match) == kept))
    missed = [number() for _ in range(50)]
    insert(scene, missed)
    scene.service.start(["ingest"])
    wait_for(lambda: counted(150), "what ingest missed, once", 40)
    assert members(scene, match) == kept

    kept = members(scene, ingest)
    scene.service.kill("match", signal.SIGKILL)
    insert(scene, [number() for _ in range(50)])
    during(3, lambda: _assert(members(scene, ingest) == kept))
    goal = ends(scene, raw)
    wait_for(lambda: read_through(scene, ingest, goal), "ingest to go on without match", 20)
    scene.service.start(["match"])
    wait_for(lambda: counted(200), "what match missed, once", 60)
    assert members(scene, ingest) == kept
    scene.service.wait_healthy()
    during(2, lambda: _assert(counted(200)))


def resting(scene: Scene) -> dict[str, Any]:
    """Return the totals once they have not changed for three seconds: what another test undid is counted by then."""
    seen: list[dict[str, Any]] = [scene.service.view()["totals"]]

    def same() -> bool:
        seen.append(scene.service.view()["totals"])
        return len(seen) > 15 and all(totals == seen[-1] for totals in seen[-15:])

    wait_for(same, "the totals to stand still", 30)
    return seen[-1]


def _assert(holds: bool) -> None:
    assert holds
