"""What comes in broken, twice, out of order, or not at all: four pipelines, two targets, one service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Copier
from tests.acceptance.mirror import Mirror, Place, create_topic, key_of
from tests.acceptance.scenery import CREATE, TABLE, Scene, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import (
    at,
    caught_up,
    create_database,
    during,
    falsify,
    gaps_of,
    heal,
    is_at_rest,
    is_swept,
    lose,
    now,
    number,
)
from tests.stack import BESIDE_SECONDS, captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

ELSEWHERE = "public.elsewhere"
PIPELINES = ("orders", "twice", "shuffled", "elsewhere")
STALL_AFTER = 10.0
GRACE = 2.0
DOWN, DOWN_LONG = 40.0, 120.0


@dataclass
class World:
    """``orders``; the same table with every record delivered ``twice``, and ``shuffled``; and a table with its own target."""

    scene: Scene
    elsewhere: Copier
    second: EmbeddedStack
    mirror: Mirror
    held: dict[int, list[Message]] = field(default_factory=dict)

    @property
    def service(self) -> Service:
        return self.scene.service

    def insert_elsewhere(self, *keys: int) -> None:
        self.scene.sql(*(f"INSERT INTO {ELSEWHERE} (id, seq, v, amount) VALUES ({key}, {key}, 'a', 1)" for key in keys))

    def documents_elsewhere(self) -> set[int]:
        client: MongoClient[dict[str, Any]] = MongoClient(self.second.mongodb.uri)
        try:
            return {document["_id"] for document in client[self.scene.database].elsewhere.find({}, {"_id": 1})}
        finally:
            client.close()


@pytest.fixture(scope="module")
def second() -> Iterator[EmbeddedStack]:
    """Another MongoDB."""
    with EmbeddedStack(parts=("mongodb",)) as running:
        yield running


def four_pipelines(stack: EmbeddedStack, second: EmbeddedStack, dsn: str, database: str) -> dict[str, Any]:
    config = configuration(stack, dsn, database, f"copier-{database}", stall_after=f"{STALL_AFTER:.0f}s")
    orders = config["pipelines"]["orders"]
    for name in ("twice", "shuffled"):
        source = {**orders["source"], "feed": {"debezium": f"{database}.{name}.orders"}}
        config["pipelines"][name] = {**orders, "source": source, "delivery": "none"}
    config["stores"]["second"] = {"type": "mongodb", "uri": second.mongodb.uri}
    config["pipelines"]["elsewhere"] = {
        **orders,
        "source": {**orders["source"], "table": ELSEWHERE, "feed": {"debezium": f"{database}.{ELSEWHERE}"}},
        "target": {**orders["target"], "store": "second", "collection": f"{database}.elsewhere"},
        "delivery": {"group": f"elsewhere-{database}"},
    }
    return config


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, second: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    database, servers = create_database(stack, f"capture_{number()}"), stack.kafka.bootstrap_servers
    dsn = stack.postgres.dsn(database)
    identity = "REPLICA IDENTITY FULL"
    execute(
        dsn, CREATE, f"ALTER TABLE {TABLE} {identity}", CREATE.replace(TABLE, ELSEWHERE), f"ALTER TABLE {ELSEWHERE} {identity}"
    )
    with captured(stack, database, [TABLE, ELSEWHERE], **{"decimal.handling.mode": "string"}):
        raw, feed = f"{database}.{TABLE}", f"gw-{database}.feed.twice.target"
        create_topic(servers, f"{database}.twice.orders", 4)
        create_topic(servers, f"{database}.shuffled.orders", 2)
        held: dict[int, list[Message]] = {}

        def spread(message: Message) -> list[Place]:
            key, partition = key_of(message), message.partition() or 0
            copies = [(f"{database}.twice.orders", partition)] * 2
            if key in held:
                held[key].append(message)
                return list(copies)
            return [*copies, (f"{database}.shuffled.orders", partition % 2)]

        mirror = Mirror(servers, {raw: spread, feed: lambda message: [(feed, message.partition() or 0)]})
        copier = Copier(servers, raw, f"copier-{database}", stack.mongodb.uri, database, "orders")
        elsewhere = Copier(servers, f"{database}.{ELSEWHERE}", f"elsewhere-{database}", second.mongodb.uri, database, "elsewhere")
        service = Service(tmp_path_factory.mktemp("capture"), four_pipelines(stack, second, dsn, database))
        world = World(Scene(stack, dsn, database, copier, service), elsewhere, second, mirror, held)
        execute(dsn, *(f"INSERT INTO {table} (id, seq, v) VALUES (1, 1, 'first')" for table in (TABLE, ELSEWHERE)))
        try:
            for part in (copier, elsewhere, mirror):
                part.start()
            service.start()
            yield world
            service.check_alive()
        finally:
            for stop in (mirror.stop, copier.stop, elsewhere.stop, service.stop):
                stop()


@pytest.fixture
def world(built: World) -> Iterator[World]:
    """All four pipelines HEALTHY and at rest, without a gap; afterwards both targets are made right again."""
    for pipeline in PIPELINES:
        wait_for(partial(is_at_rest, built.service, pipeline), f"pipeline {pipeline} to be at rest", 150)
    try:
        yield built
    finally:
        for copier in (built.scene.copier, built.elsewhere):
            copier.rules.clear()
        built.held.clear()
        heal(built.scene)
        heal(built.scene, "elsewhere", ELSEWHERE, built.second.mongodb.uri)
        wait_for(lambda: not any(built.service.gaps(pipeline) for pipeline in PIPELINES), "the gaps to be resolved", 40)


def test_a6_malformed_event_goes_to_the_dead_letters(world: World) -> None:
    """So do a record of another connector, and one of another table that a router put here: each says what it is."""
    topic, keys = f"{world.scene.database}.{ELSEWHERE}", [number() for _ in range(99)]
    before = caught_up(world.service, "elsewhere")["totals"]
    world.insert_elsewhere(*keys[:50])
    wait_for(lambda: set(keys[:50]) <= world.documents_elsewhere(), "the first fifty", 30)
    broken = b'{"op": "c", "after": {"id": '
    partition, offset = _produce(world, topic, broken)
    not_read = _produce_what_is_not_read(world, topic)
    world.insert_elsewhere(*keys[50:])
    wait_for(lambda: set(keys) <= world.documents_elsewhere(), "all of them", 30)

    def settled() -> dict[str, Any] | None:
        totals: dict[str, Any] = world.service.view("elsewhere")["totals"]
        done = totals["settled"] + totals["superseded"] + totals["cleared"]
        return totals if done - _closed(before) == 99 else None

    totals = wait_for(settled, "99 settled writes", 30)
    assert totals["expected"] - before["expected"] == 99

    def told() -> dict[tuple[str, str], dict[str, Any]] | None:
        found = {(one["__connect.errors.partition"], one["__connect.errors.offset"]): one for one in _dead_letters(world)}
        return found if {(str(partition), str(offset)), *not_read} <= found.keys() else None

    letters = wait_for(told, "all dead letters", 20)
    letter = letters[str(partition), str(offset)]
    assert (letter["value"], letter["__connect.errors.topic"]) == (broken, topic)
    assert letter["gapwatch-reason"]
    assert letter["__connect.errors.exception.message"]
    for place, (reason, said) in not_read.items():
        letter = letters[place]
        assert letter["gapwatch-reason"] == reason
        assert said in letter["__connect.errors.exception.message"]
    assert _end(world, topic, partition) > offset + 1, "nothing came after it in its partition"
    view = world.service.wait_healthy("elsewhere")
    assert view["consistent_through"] is not None
    assert world.service.gaps("elsewhere", state="") == [gap for gap in world.service.gaps("elsewhere", "") if gap["resolved_at"]]


def test_a6_trap_46_a_malformed_record_larger_than_a_dead_letter_is_named_and_blocks_nothing(world: World) -> None:
    """Compressed it is small, and a topic takes it; whole it is larger than our dead letters may be."""
    topic, key, begun = f"{world.scene.database}.{ELSEWHERE}", number(), now()
    partition, offset = _produce(world, topic, b'{"op": "c", ' + b" " * (9 << 20))
    world.insert_elsewhere(key)
    wait_for(lambda: key in world.documents_elsewhere(), "what came after it", 30)

    def holes() -> list[dict[str, Any]]:
        findings = world.service.api.get("/api/v1/findings", pipeline="elsewhere", open="false")["findings"]
        return [one for one in findings if one["finding"] == "ingest_hole" and one["covered_by"] and at(one["time_to"]) > begun]

    before = world.service.wait_healthy("elsewhere")["consistent_through"]
    wait_for(holes, "the hole to be covered by a sweep", 40)
    [letter] = [letter for letter in _dead_letters(world) if letter["__connect.errors.offset"] == str(offset)]
    assert (letter["value"], letter["__connect.errors.partition"]) == (None, str(partition))
    assert int(letter["gapwatch-left-out"]) > 9 << 20
    wait_for(lambda: world.service.view("elsewhere")["consistent_through"] > before, "the time to move on", 20)


def test_a7_everything_delivered_twice_changes_nothing(world: World) -> None:
    scene, names = world.scene, ("orders", "twice")
    keys = [number() for _ in range(40)]
    lost, false, left = keys[0], keys[1], keys[2]
    before = {name: caught_up(world.service, name, both=True)["totals"] for name in names}
    scene.copier.rules |= {lost: lose, false: falsify(v="false"), ("d", left): lose}
    scene.sql(*(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES ({key}, {key}, 'a', 1.50)" for key in keys))
    updated = [(key, number()) for key in keys[10:30]]
    scene.sql(*(f"UPDATE {TABLE} SET seq = {seq}, v = 'b' WHERE id = {key}" for key, seq in updated))
    scene.sql(f"DELETE FROM {TABLE} WHERE id = ANY(ARRAY[{left}, {keys[3]}, {keys[4]}])")

    def done(name: str) -> dict[str, Any] | None:
        totals = world.service.view(name)["totals"]
        closed = _closed(totals) - _closed(before[name]) + totals["gap"] - before[name]["gap"]
        return totals if closed >= 63 and len(world.service.gaps(name)) >= 3 else None

    after = {name: wait_for(partial(done, name), f"pipeline {name} to be done", 40) for name in names}
    found = {name: [_told(gap) for gap in gaps_of(world.service, *keys, pipeline=name)] for name in names}
    assert [(gap["key"], gap["kind"], gap["fields"]) for gap in found["orders"]] == [
        ({"id": lost}, "missing", []),
        ({"id": false}, "mismatch", ["v"]),
        ({"id": left}, "undeleted", []),
    ]
    assert found["twice"] == found["orders"]
    for counter in ("expected", "observed", "gap"):
        assert after["twice"][counter] - before["twice"][counter] == after["orders"][counter] - before["orders"][counter], counter
    assert _closed(after["twice"]) - _closed(before["twice"]) == _closed(after["orders"]) - _closed(before["orders"])


def test_a8_an_older_version_that_arrives_later(world: World) -> None:
    scene, key, service = world.scene, number(), world.service
    versions = [number() for _ in range(3)]
    before = caught_up(service, "shuffled")["totals"]["expected"]
    held = world.held.setdefault(key, [])
    scene.insert(key, versions[0], "one")
    for seq, value in zip(versions[1:], ("two", "three"), strict=True):
        scene.sql(f"UPDATE {TABLE} SET seq = {seq}, v = '{value}' WHERE id = {key}")
    wait_for(lambda: len(held) == 3, "the three records", 20)
    topic = f"{scene.database}.shuffled.orders"
    first, second, third = held
    world.mirror.send(first, (topic, 0))
    world.mirror.send(third, (topic, 0))
    wait_for(lambda: service.view("shuffled")["totals"]["expected"] == before + 2, "versions 1 and 3", 20)
    world.mirror.send(second, (topic, 1))  # through another partition
    world.mirror.send(second, (topic, 0))  # a batch sent again
    world.mirror.send(second, (topic, 1), value=_snapshot(second))  # a snapshot taken before version 3
    during(2 * GRACE + 2, lambda: _no_gaps(service, "shuffled", key))
    assert service.view("shuffled")["totals"]["expected"] == before + 2
    service.wait_healthy("shuffled")
    client = scene.mongo()
    try:  # the state is version 3: the target going back to version 2 is noticed, and judged against version 3
        client[scene.database].orders.update_one({"_id": key}, {"$set": {"seq": versions[1], "v": "two"}})
    finally:
        client.close()
    gap = wait_for(lambda: gaps_of(service, key, pipeline="shuffled"), "the target that went back", 30)[0]
    assert gap["fields"] == ["seq", "v"]
    expected = [(row["partition"], row["position"]) for row in gap["evidence"] if row["side"] == "expected"]
    assert expected == [(0, _position(third))]


def test_a10_only_the_pipeline_whose_target_is_down_is_unknown(world: World, request: pytest.FixtureRequest) -> None:
    """Down for 40 s, twenty times the grace; with ``--soak`` for two minutes."""
    down = DOWN_LONG if request.config.getoption("--soak") else DOWN
    service, keys = world.service, [number() for _ in range(5)]
    runs = service.api.get("/api/v1/backfills")["backfills"]
    world.second.mongodb.pause()
    stopped = time.monotonic()
    try:
        world.insert_elsewhere(*keys)
        wait_for(lambda: service.view("elsewhere")["status"] == "UNKNOWN", "UNKNOWN", STALL_AFTER + 5)
        others: list[bool] = []

        def are_healthy() -> bool:
            return all(service.view(name)["status"] == "HEALTHY" for name in PIPELINES[:3])

        def look() -> None:
            assert service.view("elsewhere")["status"] == "UNKNOWN"
            assert service.gaps("elsewhere") == []
            others.append(are_healthy())

        during(down - (time.monotonic() - stopped), look)
        # A machine that is busy may make anybody's status old for a moment; what hangs with the target stays so.
        assert sum(others) >= 0.8 * len(others)
        wait_for(are_healthy, "the others to be HEALTHY", 20)
        assert service.view("elsewhere")["status"] == "UNKNOWN"
    finally:
        world.second.mongodb.resume()
    service.wait_healthy("elsewhere")
    assert set(keys) <= world.documents_elsewhere()
    assert gaps_of(service, *keys, pipeline="elsewhere", state="") == []
    assert service.api.get("/api/v1/backfills")["backfills"] == runs


def test_b16_a_loss_during_an_outage_opens_after_it(world: World) -> None:
    service, lost, others = world.service, number(), [number() for _ in range(3)]
    world.elsewhere.rules[lost] = lose
    world.second.mongodb.kill()
    try:
        world.insert_elsewhere(lost)
        written = now()
        world.insert_elsewhere(*others)
        wait_for(lambda: service.view("elsewhere")["status"] == "UNKNOWN", "UNKNOWN", STALL_AFTER + 5)
        during(STALL_AFTER, lambda: _no_gaps(service, "elsewhere", lost, *others))
        assert now() - written > timedelta(seconds=2 * GRACE)
    finally:
        world.second.mongodb.start()
    gaps = wait_for(lambda: gaps_of(service, lost, *others, pipeline="elsewhere"), "the gap", 40)
    assert [(gap["key"], gap["kind"]) for gap in gaps] == [({"id": lost}, "missing")]
    assert at(gaps[0]["first_seen"]) > written
    late = at(gaps[0]["event_time"]) + timedelta(seconds=GRACE)
    wait_for(lambda: at(service.view("elsewhere")["target_watermark"]) >= late, "the status that says so, a checkpoint later", 5)
    wait_for(lambda: set(others) <= world.documents_elsewhere(), "the delayed writes", 30)
    during(GRACE + 1, lambda: _no_gaps(service, "elsewhere", *others, state=""))


def test_truncate_is_a_finding_and_its_sweep_names_every_document(world: World) -> None:
    service, keys = world.service, [number() for _ in range(30)]
    world.insert_elsewhere(*keys)
    wait_for(lambda: set(keys) <= world.documents_elsewhere(), "the documents", 30)
    service.wait_healthy("elsewhere")
    left = world.documents_elsewhere()
    world.scene.sql(f"TRUNCATE {ELSEWHERE}")
    begun = time.monotonic()
    wait_for(lambda: len(service.gaps("elsewhere")) >= len(left), "every document that was left over", 60)
    assert time.monotonic() - begun <= 60 + BESIDE_SECONDS
    gaps = service.gaps("elsewhere")
    assert {gap["key"]["id"] for gap in gaps} == left
    assert {gap["kind"] for gap in gaps} <= {"extra", "undeleted"}

    def covered() -> list[dict[str, Any]]:
        findings = service.api.get("/api/v1/findings", pipeline="elsewhere", open="false")["findings"]
        return [found for found in findings if found["finding"] == "truncated" and found["covered_by"]]

    findings = wait_for(covered, "the finding to be covered by its sweep", 30)
    sweep = service.api.get(f"/api/v1/sweeps/{findings[0]['covered_by']}")
    assert (sweep["state"], sweep["request"]["reason"]) == ("succeeded", "hole")
    assert at(sweep["started_at"]) > at(findings[0]["time_to"])


def test_m3_a_watched_collection_that_is_dropped_is_a_hole_and_is_read_on(world: World) -> None:
    """A change stream ends with its collection. No event tells of the documents that went with it."""
    service, keys = world.service, [number() for _ in range(30)]
    world.insert_elsewhere(*keys)
    wait_for(lambda: set(keys) <= world.documents_elsewhere(), "the documents", 30)
    service.wait_healthy("elsewhere")
    gone, begun = world.documents_elsewhere(), now()
    client: MongoClient[dict[str, Any]] = MongoClient(world.second.mongodb.uri)
    try:
        client[world.scene.database].elsewhere.drop()
    finally:
        client.close()
    dropped = now()
    wait_for(lambda: {gap["key"]["id"] for gap in service.gaps("elsewhere")} == gone, "every document that went with it", 60)
    assert {gap["kind"] for gap in service.gaps("elsewhere")} == {"missing"}

    def covered() -> list[dict[str, Any]]:
        findings = service.api.get("/api/v1/findings", pipeline="elsewhere", open="false")["findings"]
        lost = [found for found in findings if found["finding"] == "history_lost" and at(found["time_to"]) > begun]
        return lost if lost and all(found["covered_by"] for found in lost) else []

    findings = wait_for(covered, "the findings to be covered by a sweep", 30)
    assert all("ended with drop" in found["message"] for found in findings)
    assert min(at(found["time_from"]) for found in findings) <= dropped
    for found in findings:
        sweep = service.api.get(f"/api/v1/sweeps/{found['covered_by']}")
        assert (sweep["state"], sweep["request"]["reason"]) == ("succeeded", "hole")
    wait_for(lambda: is_swept(service, "elsewhere"), "no sweep to find anything", 60)
    kept, lost = number(), number()  # its successor is read, with its losses
    world.elsewhere.rules[lost] = lose
    world.insert_elsewhere(kept, lost)
    wait_for(lambda: gaps_of(service, lost, pipeline="elsewhere"), "the gap", 30)
    assert [gap["detector"] for gap in gaps_of(service, lost, pipeline="elsewhere")] == ["stream"]
    assert gaps_of(service, kept, pipeline="elsewhere", state="") == []
    assert kept in world.documents_elsewhere()


def _closed(totals: dict[str, Any]) -> int:
    return int(totals["settled"] + totals["superseded"] + totals["cleared"])


def _told(gap: dict[str, Any]) -> dict[str, Any]:
    return {name: gap[name] for name in ("key", "kind", "cause", "fields", "event_time", "detector", "target_id", "occurrences")}


def _no_gaps(service: Service, pipeline: str, *keys: int, state: str | None = None) -> None:
    assert gaps_of(service, *keys, pipeline=pipeline, state=state) == []


def _snapshot(message: Message) -> bytes:
    """Return the record's value as a snapshot would have sent it."""
    value = json.loads(message.value() or b"")
    envelope = value.get("payload", value)
    envelope["op"], envelope["before"], envelope["source"]["snapshot"] = "r", None, "incremental"
    return json.dumps(value).encode()


def _position(message: Message) -> str:
    value = json.loads(message.value() or b"")
    last, here = json.loads(value.get("payload", value)["source"]["sequence"])
    return f"{last or 0}/{here}"


def _produce(world: World, topic: str, value: bytes, key: bytes = b'{"id": 7}') -> tuple[int, int]:
    places: list[tuple[int, int]] = []
    options = {"message.max.bytes": 16 << 20, "compression.type": "lz4"}
    producer = Producer({"bootstrap.servers": world.scene.stack.kafka.bootstrap_servers, **options})
    producer.produce(topic, value, key, 0, on_delivery=lambda _, sent: places.append((sent.partition() or 0, sent.offset() or 0)))
    assert producer.flush(60) == 0
    return places[0]


def _reader(world: World) -> Consumer:
    servers = world.scene.stack.kafka.bootstrap_servers
    return Consumer({"bootstrap.servers": servers, "group.id": "tests", "enable.auto.commit": False})


def _end(world: World, topic: str, partition: int) -> int:
    consumer = _reader(world)
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)[1])
    finally:
        consumer.close()


def _produce_what_is_not_read(world: World, topic: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return, by partition and offset, as which dead letter each comes: its reason, and a part of its message."""
    database, source = world.scene.database, {"ts_ms": 1, "sequence": '["1","2"]', "ord": 1}
    expected = {}
    for key, connector, reason, said in (
        (
            {"id": 7, "__dbz__physicalTableIdentifier": f"{database}.public.items"},
            "postgresql",
            "other_table",
            "LogicalTableRouter",
        ),
        ({"id": "7"}, "mongodb", "other_connector", "connector for mongodb, which is not read as a source"),
    ):
        event = {"op": "t", "source": {**source, "connector": connector}}  # the copier lets that operation alone
        partition, offset = _produce(world, topic, json.dumps(event).encode(), json.dumps(key).encode())
        expected[str(partition), str(offset)] = reason, said
    return expected


def _dead_letters(world: World) -> list[dict[str, Any]]:
    topic, consumer, letters = f"gw-{world.scene.database}.dlq", _reader(world), list[dict[str, Any]]()
    try:
        places = [TopicPartition(topic, number, 0) for number in consumer.list_topics(topic, timeout=30).topics[topic].partitions]
        waiting = sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
        consumer.assign(places)
        while len(letters) < waiting:
            for message in consumer.consume(100, timeout=5):
                assert message.error() is None, message.error()
                headers = {name: (value or b"").decode() for name, value in message.headers() or ()}
                letters.append({"value": message.value(), **headers})
    finally:
        consumer.close()
    return letters
