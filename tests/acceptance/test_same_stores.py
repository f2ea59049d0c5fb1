"""Postgres → Postgres and MongoDB → MongoDB, both ends followed: what is lost, touched or left over is found and repaired."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest
from bson import Decimal128, Int64
from confluent_kafka import Consumer
from psycopg import sql
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.background import Background
from tests.acceptance.copier import PLACEHOLDER
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import FOUND_WITHIN_SECONDS, at, caught_up, is_at_rest, is_swept, judged_after, now, number
from tests.stack import captured, execute, until

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

TABLE = "public.orders"
COLUMNS = "(id bigint PRIMARY KEY, seq bigint NOT NULL, amount numeric(12,2), placed timestamptz, tags text[], big text)"
SCHEMALESS = {
    f"{part}.converter{option}": value
    for part in ("key", "value")
    for option, value in {"": "org.apache.kafka.connect.json.JsonConverter", ".schemas.enable": "false"}.items()
}
GRACE = 2.0
LARGE = 9 << 20  # bytes: above what a record may hold, and twice of it above what a change may
BIG = "repeat(md5(random()::text), 400)"  # kept out of line: an update that leaves it alone does not carry it


@dataclass
class Sink(Background):
    """What stands in ``lost`` it passes over."""

    announces = True
    lost: set[Any] = field(default_factory=set)


@dataclass
class TableSink(Sink):
    """From Debezium's topic of a table into another table: upserts of what each event carries, offsets after them."""

    bootstrap_servers: str = ""
    topic: str = ""
    dsn: str = ""

    def _run(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": f"sink-{self.topic}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
                "topic.metadata.refresh.interval.ms": 500,
            }
        )
        consumer.subscribe([self.topic])
        self._ready.set()
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self._stop.is_set():
                    messages = [message for message in consumer.consume(100, timeout=0.05) if message.error() is None]
                    for message in messages:
                        if message.value():
                            self._apply(connection, json.loads(message.value() or b""))
                    if messages:
                        consumer.commit(asynchronous=False)
        finally:
            consumer.close()

    def _apply(self, connection: psycopg.Connection[Any], change: Mapping[str, Any]) -> None:
        change = change.get("payload", change)
        image = change["after"] or change["before"]
        if image["id"] in self.lost:
            return
        if change["op"] == "d":
            connection.execute("DELETE FROM orders WHERE id = %s", (image["id"],))
            return
        row = {name: value for name, value in image.items() if value != PLACEHOLDER}
        names = [sql.Identifier(name) for name in row]
        statement = sql.SQL("INSERT INTO orders ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}").format(
            sql.SQL(", ").join(names),
            sql.SQL(", ").join([sql.Placeholder()] * len(names)),
            sql.SQL(", ").join([sql.SQL("{} = EXCLUDED.{}").format(name, name) for name in names]),
        )
        connection.execute(statement, list(row.values()))


@dataclass
class CollectionSink(Sink):
    """From a collection's change stream into another collection."""

    uri: str = ""
    database: str = ""
    late: dict[Any, float] = field(default_factory=dict)  # how many seconds it took to copy a document, at most

    def _run(self) -> None:
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri, tz_aware=True)
        copies = client[self.database].copies
        try:
            shown = [{"$project": {"updateDescription": 0}}]
            with client[self.database].orders.watch(shown, full_document="updateLookup", max_await_time_ms=50) as stream:
                self._ready.set()
                while not self._stop.is_set():
                    change = stream.try_next()
                    if change is None or change["documentKey"]["_id"] in self.lost:
                        continue
                    where, document = change["documentKey"], change.get("fullDocument")
                    if document is None:
                        copies.delete_one(where)
                    else:
                        copies.replace_one(where, {**document, "copied": True}, upsert=True)
                    took = (now() - change["wallTime"]).total_seconds()
                    self.late[where["_id"]] = max(took, self.late.get(where["_id"], 0.0))
        finally:
            client.close()


@dataclass
class World:
    source: str
    target: str
    mongo: MongoClient[dict[str, Any]]
    database: str
    rows: TableSink
    documents: CollectionSink
    service: Service

    def gaps(self, pipeline: str) -> dict[Any, tuple[str, str]]:
        return {next(iter(gap["key"].values())): (gap["kind"], gap["cause"]) for gap in self.service.gaps(pipeline)}

    def repaired(self, pipeline: str, *kinds: str) -> dict[str, Any]:
        code, plans = self.service.answer("backfill", "plan", pipeline, "--kinds", ",".join(kinds))
        assert code == 0, plans
        _, runs = self.service.answer("backfill", "apply", plans[0]["id"], "--yes", "--wait")
        assert runs[0]["state"] == "succeeded", runs
        counts: dict[str, Any] = runs[0]["counts"]
        return counts

    def table(self, dsn: str) -> list[Any]:
        assert self.rows.error is None, self.rows.error
        with psycopg.connect(dsn) as connection:
            return connection.execute("SELECT id, seq, amount, placed, tags, md5(big) FROM orders ORDER BY id").fetchall()


@pytest.fixture
def world(built: World) -> World:
    """Both pipelines that every test leaves as they were are at rest, and nothing is swept."""
    service = built.service
    for pipeline in ("tables", "collections"):
        wait_for(partial(is_at_rest, service, pipeline), f"pipeline {pipeline} to be at rest", 120)
    wait_for(lambda: not service.api.get("/api/v1/sweeps", state="queued,running")["sweeps"], "sweeps to end", 60)
    return built


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    name = f"same{number()}"
    source, target = f"{name}s", f"{name}t"
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        for database in (source, target):
            connection.execute(f'CREATE DATABASE "{database}"'.encode())
    dsns = [stack.postgres.dsn(database) for database in (source, target)]
    for dsn in dsns:
        execute(dsn, f"CREATE TABLE orders {COLUMNS}")
    mongo: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri, tz_aware=True)
    for collection in ("orders", "copies", "parts", "stocked"):
        mongo[name].create_collection(collection)
    mongo[name].parts.insert_one({"_id": 100, "amount": 1})
    mongo[name].stocked.insert_many([stocked(100, region) for region in ("eu", "us")])
    with ExitStack() as open_:
        open_.callback(mongo.close)
        # The two connectors write decimals differently, and one of them without saying how: the catalogue tells.
        for database, options in (
            (source, {"decimal.handling.mode": "string"}),
            (target, {"decimal.handling.mode": "precise", "time.precision.mode": "connect", **SCHEMALESS}),
        ):
            open_.enter_context(captured(stack, database, [TABLE], **options))
        rows = TableSink(bootstrap_servers=stack.kafka.bootstrap_servers, topic=f"{source}.{TABLE}", dsn=dsns[1])
        documents = CollectionSink(uri=stack.mongodb.uri, database=name)
        service = Service(tmp_path_factory.mktemp("same"), configuration(stack, name, dsns, rows.topic))
        for sink in (rows, documents):
            sink.start()
            open_.callback(sink.stop)
        open_.callback(service.stop)
        service.start()
        for pipeline in ("tables", "collections"):
            service.wait_healthy(pipeline, 120)
        yield World(dsns[0], dsns[1], mongo, name, rows, documents, service)
        service.check_alive()


def configuration(stack: EmbeddedStack, name: str, dsns: list[str], topic: str) -> dict[str, Any]:
    heartbeat = {"auto": True, "every": "250ms"}
    return {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "connect": {"url": stack.connect.url},
        "topics": {"prefix": f"gw-{name}", "partitions": 2, "replication": 1},
        "stores": {
            "shop": {"type": "postgres", "dsn": dsns[0], "heartbeat": heartbeat},
            "copy": {"type": "postgres", "dsn": dsns[1], "heartbeat": heartbeat},
            "documents": {"type": "mongodb", "uri": stack.mongodb.uri},
        },
        "pipelines": {
            "tables": {
                "source": {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": topic}},
                "target": {"store": "copy", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": f"{name}t.{TABLE}"}},
                "fields": {column: column for column in ("seq", "amount", "placed", "tags", "big")},
                "grace": "2s",
                "delivery": {"group": f"sink-{topic}"},
                "repair": {"undeleted": "delete"},
                "sweep": {"batch": {"documents": 2}},
            },
            "collections": {
                "source": {
                    "store": "documents",
                    "collection": f"{name}.orders",
                    "key": {"_id": "int"},
                    "feed": {"change_stream": True},
                },
                "target": {
                    "store": "documents",
                    "collection": f"{name}.copies",
                    "key": {"_id": "int"},
                    "feed": {"change_stream": True},
                },
                "fields": {"amount": "amount", "placed": "placed", "items": "items", "ship.city": "ship.city"},
                "grace": "2s",
                "delivery": "none",
                "sweep": {"batch": {"documents": 2}},
            },
            "regions": {
                "source": {
                    "store": "documents",
                    "collection": f"{name}.parts",
                    "key": {"_id": "int"},
                    "feed": {"change_stream": True},
                },
                "target": {
                    "store": "documents",
                    "collection": f"{name}.stocked",
                    "key": {"part": "int"},
                    "feed": {"change_stream": True},
                },
                "fields": {"amount": "amount"},
                "grace": "2s",
                "delivery": "none",
            },
        },
    }


def stocked(part: int, region: str) -> dict[str, Any]:
    """Return a document whose id says more than the key that it is compared by."""
    return {"_id": f"{part}-{region}", "part": part, "amount": 1}


def insert(world: World, *numbers: int) -> None:
    for each in numbers:
        execute(
            world.source,
            f"INSERT INTO orders SELECT {each}, 1, 12.5, now(), ARRAY ['a', 'b'], {BIG}",
        )


def test_b1_a_row_that_was_lost_between_two_tables_is_found_and_repaired_as_it_is(world: World) -> None:
    world.rows.lost.add(3)
    insert(world, 1, 2, 3, 4)
    assert wait_for(lambda: world.gaps("tables"), "the gap", 40) == {3: ("missing", "never_written")}
    assert world.repaired("tables", "missing")["verified"] == 1
    wait_for(lambda: world.table(world.target) == world.table(world.source), "the others", 20)
    world.service.wait_healthy("tables")
    world.rows.lost.clear()


def test_m5_an_update_that_leaves_a_large_column_alone_is_no_gap_on_either_side(world: World) -> None:
    insert(world, 11, 12)
    wait_for(lambda: len(world.table(world.target)) == len(world.table(world.source)), "the rows")
    execute(world.source, "UPDATE orders SET seq = seq + 1 WHERE id IN (11, 12)")
    wait_for(lambda: world.table(world.target) == world.table(world.source), "the updates")
    caught_up(world.service, "tables")
    assert not [gap for gap in world.service.gaps("tables", state="") if gap["key"]["id"] in (11, 12)]


def test_m13_a_write_of_somebody_else_to_the_target_table_is_out_of_band(world: World) -> None:
    insert(world, 21)
    wait_for(lambda: world.table(world.target) == world.table(world.source), "the row")
    caught_up(world.service, "tables")  # or the streams may show both writes before they show the row's own
    execute(world.target, "UPDATE orders SET amount = 99 WHERE id = 21")
    assert wait_for(lambda: world.gaps("tables"), "the gap", 40) == {21: ("mismatch", "out_of_band")}
    [gap] = world.service.gaps("tables")
    assert (gap["fields"], gap["target_id"], gap["detector"]) == (["amount"], "21", "stream")
    assert judged_after(gap) <= FOUND_WITHIN_SECONDS
    assert world.repaired("tables", "mismatch")["verified"] == 1
    assert world.table(world.target) == world.table(world.source)


def test_a5_a_row_that_stays_is_undeleted_and_deleted_where_the_policy_says_so(world: World) -> None:
    insert(world, 31, 32)
    wait_for(lambda: world.table(world.target) == world.table(world.source), "the rows")
    world.rows.lost.add(31)
    execute(world.source, "DELETE FROM orders WHERE id IN (31, 32)")
    assert wait_for(lambda: world.gaps("tables"), "the gap", 40) == {31: ("undeleted", "never_written")}
    assert world.repaired("tables", "undeleted")["verified"] == 1
    assert world.table(world.target) == world.table(world.source)
    world.service.wait_healthy("tables")


def test_b6_lesson_46_a_sweep_compares_tables_of_two_databases_in_key_order(world: World) -> None:
    """A check joined two databases, which Postgres cannot do: each is read by itself, and the keys are compared here."""
    join = sql.SQL("SELECT id FROM orders EXCEPT SELECT id FROM {}.public.orders").format(sql.Identifier(f"{world.database}t"))
    with psycopg.connect(world.source) as connection, pytest.raises(psycopg.errors.FeatureNotSupported):
        connection.execute(join)
    execute(world.source, "INSERT INTO orders (id, seq) SELECT g, 1 FROM generate_series(1000, 2999) g")
    wait_for(lambda: len(world.table(world.target)) == len(world.table(world.source)), "the rows")
    world.service.wait_healthy("tables")
    code, runs = world.service.answer("sweep", "start", "tables", "--content", "--wait")
    assert (code, runs[0]["state"], runs[0]["counts"]["differences"]) == (0, "succeeded", 0), runs
    assert runs[0]["counts"]["source_keys"] == runs[0]["counts"]["target_keys"] == len(world.table(world.source))
    execute(world.target, "DELETE FROM orders WHERE id = 2000")
    code, runs = world.service.answer("sweep", "start", "tables", "--ids", "--wait")
    assert (code, runs[0]["counts"]["missing"], runs[0]["counts"]["differences"]) == (1, 1, 1), runs
    assert world.repaired("tables", "missing")["verified"] == 1
    wait_for(lambda: not world.gaps("tables"), "no gap")


def test_b1_documents_between_two_collections_are_copied_back_with_their_own_types(world: World) -> None:
    world.documents.lost |= {2}
    placed = datetime(2026, 3, 1, 10, 20, 30, 456_000, UTC)
    for each in (1, 2, 3):
        world.mongo[world.database].orders.insert_one(
            {
                "_id": each,
                "amount": Decimal128("12.50"),
                "placed": placed,
                "items": [{"sku": "a", "count": Int64(5)}, None],
                "ship": {"city": "Wien", "zip": "1010"},
            }
        )
    expected = {2: ("missing", "never_written")}  # without a delivery what is merely late is a gap as well, for a moment
    wait_for(lambda: world.gaps("collections") == expected, f"gaps {expected}", 40)
    assert world.repaired("collections", "missing")["verified"] == 1
    written = world.mongo[world.database].copies.find_one({"_id": 2})
    source = world.mongo[world.database].orders.find_one({"_id": 2})
    assert written is not None
    assert source is not None
    assert written == {**source, "ship": {"city": "Wien"}}, "what is mapped, as it is, and nothing else"
    assert type(written["items"][0]["count"]) is type(source["items"][0]["count"])


def test_a5_and_m13_hold_between_two_collections(world: World) -> None:
    orders, copies = world.mongo[world.database].orders, world.mongo[world.database].copies
    orders.insert_many([{"_id": each, "amount": each} for each in (11, 12)])
    wait_for(lambda: copies.count_documents({"_id": {"$in": [11, 12]}}) == 2, "the documents")
    wait_for(lambda: not world.gaps("collections"), "no gap of what was late", 40)
    caught_up(world.service, "collections")
    world.documents.lost.add(11)
    orders.delete_one({"_id": 11})
    copies.update_one({"_id": 12}, {"$set": {"amount": 13}})
    expected = {11: ("undeleted", "never_written"), 12: ("mismatch", "out_of_band")}
    wait_for(lambda: world.gaps("collections") == expected, f"gaps {expected}", 40)
    for gap in world.service.gaps("collections"):
        assert gap["detector"] == "stream"
        assert judged_after(gap) <= FOUND_WITHIN_SECONDS
    copies.delete_one({"_id": 11})
    assert world.repaired("collections", "mismatch")["verified"] == 1
    wait_for(lambda: not world.gaps("collections"), "no gap")
    world.service.wait_healthy("collections")


def test_trap_46_documents_and_changes_above_every_limit_are_read_by_their_keys(world: World) -> None:
    """A document above a record of Kafka, then a change above MongoDB's 16 MiB: either ended the stream, or passed in silence."""
    orders, copies, service = world.mongo[world.database].orders, world.mongo[world.database].copies, world.service
    service.wait_healthy("collections")
    begun, large = now(), "x" * LARGE
    world.documents.lost.add(42)
    orders.insert_many([{"_id": key, "amount": key, "blob": large} for key in (41, 42, 43)])
    wait_for(lambda: world.gaps("collections").keys() == {42}, "the gap", 40)
    assert [(gap["kind"], gap["detector"]) for gap in service.gaps("collections")] == [("missing", "stream")]
    assert world.repaired("collections", "missing")["verified"] == 1
    assert copies.find_one({"_id": 42}) == {"_id": 42, "amount": 42}

    def named() -> bool:
        return len([line for line in service.lines("all", "change_too_large") if at(line["timestamp"]) > begun]) >= 5

    wait_for(named, "both streams to have named what is too large", 30)
    world.documents.lost.add(43)
    orders.update_many({"_id": {"$in": [41, 43]}}, {"$set": {"amount": 44, "blob": large.swapcase()}})
    wait_for(lambda: world.gaps("collections").keys() == {43}, "the gap", 40)
    assert world.gaps("collections")[43][0] in ("stale", "mismatch")
    assert world.repaired("collections", "stale", "mismatch")["verified"] == 1
    wait_for(lambda: not world.gaps("collections"), "no gap")
    service.wait_healthy("collections")
    wait_for(lambda: at(service.view("collections")["consistent_through"]) > begun, "the time to move on", 30)
    late = [gap for gap in service.gaps("collections", state="") if gap["key"]["_id"] == 41]
    assert late == [] or world.documents.late[41] > GRACE, "delivery: none: what the sink copied later than grace was a gap"
    assert {gap["resolution"] for gap in late} <= {"late_arrival"}


def documents_of(gap: Mapping[str, Any]) -> list[Any]:
    """Return the ids of the documents that a gap's evidence lists."""
    rows = [row for row in gap["evidence"] if row["side"] == "target"]
    return sorted(shown for row in rows for shown in row.get("target_ids", ()))


def test_b7_a_sweep_names_both_documents_of_a_key(world: World) -> None:
    """They were there before either stream began."""
    both = ["100-eu", "100-us"]
    gap = wait_for(
        lambda: next((one for one in world.service.gaps("regions") if one["key"] == {"_id": 100}), None), "the gap", 60
    )
    assert (gap["kind"], gap["detector"], documents_of(gap)) == ("duplicate", "sweep", both)
    world.mongo[world.database].stocked.delete_one({"_id": "100-us"})
    wait_for(lambda: 100 not in world.gaps("regions"), "the gap to end", 40)


def test_b7_the_stream_finds_a_second_document_of_a_key_and_names_both(world: World) -> None:
    """Equal contents, so that nothing but their number is wrong; and where one goes, the gap does."""
    parts, there = world.mongo[world.database].parts, world.mongo[world.database].stocked
    both = ["1-eu", "1-us"]
    # A delete of the test before may have asked for a sweep (its event has no key of ours), and that one would find this as well.
    wait_for(lambda: world.service.view("regions")["baseline"] and is_swept(world.service, "regions"), "no hole", 90)
    if 100 not in world.gaps("regions"):  # somebody has deleted a document
        caught_up(world.service, "regions")  # which nothing is while a hole waits for its sweep
    parts.insert_one({"_id": 1, "amount": 1})
    there.insert_one(stocked(1, "eu"))
    wait_for(lambda: world.service.view("regions")["totals"]["settled"], "the key to be settled")
    there.insert_one(stocked(1, "us"))
    gap = wait_for(lambda: next((one for one in world.service.gaps("regions") if one["key"] == {"_id": 1}), None), "the gap", 40)
    assert (gap["kind"], gap["cause"], gap["detector"], documents_of(gap)) == ("duplicate", "unknown", "stream", both)
    there.delete_one({"_id": "1-us"})
    wait_for(lambda: 1 not in world.gaps("regions"), "the gap to end", 60)


def test_d10_a_field_removed_at_the_source_is_removed_from_the_copy_by_a_backfill(world: World) -> None:
    orders, copies = world.mongo[world.database].orders, world.mongo[world.database].copies
    orders.insert_one({"_id": 21, "amount": 1, "ship": {"city": "Wien"}})
    wait_for(lambda: copies.find_one({"_id": 21}), "the document")
    world.service.wait_healthy("collections")
    world.documents.lost.add(21)
    orders.update_one({"_id": 21}, {"$unset": {"ship": 1}})
    gaps = wait_for(lambda: world.gaps("collections"), "the gap", 40)
    assert [(key, kind) for key, (kind, _) in gaps.items()] == [(21, "stale")]
    assert world.repaired("collections", "stale", "mismatch")["verified"] == 1
    assert "ship" not in (copies.find_one({"_id": 21}) or {"ship": 1})
    wait_for(lambda: not world.gaps("collections"), "no gap")
    world.service.wait_healthy("collections")


NO_CUSTOMER = "ForeignKeyViolation: constraint orders_customer"


def test_d8_lesson_22_a_row_without_its_parent_is_refused_by_name_and_written_once_the_parent_is_there(world: World) -> None:
    """The foreign key is looked at when a transaction ends: the target refuses what it had seemed to take."""
    service = world.service
    execute(
        world.target,
        "CREATE TABLE customers (id bigint PRIMARY KEY)",
        "INSERT INTO customers SELECT DISTINCT seq FROM orders",
        "ALTER TABLE orders ADD CONSTRAINT orders_customer FOREIGN KEY (seq) REFERENCES customers DEFERRABLE INITIALLY DEFERRED",
    )
    try:
        world.rows.lost.add(41)
        execute(world.source, "INSERT INTO orders (id, seq, amount) VALUES (41, 4141, 1)")
        assert wait_for(lambda: world.gaps("tables"), "the gap", 40) == {41: ("missing", "never_written")}
        code, plans = service.answer("backfill", "plan", "tables")
        assert code == 0, plans
        code, runs = service.answer("backfill", "apply", plans[0]["id"], "--yes", "--wait")
        counts = {name: runs[0]["counts"][name] for name in ("written", "verified", "failed", "in_sync", "open_gaps_left")}
        assert (code, runs[0]["state"]) == (1, "failed"), runs
        assert counts == {"written": 0, "verified": 0, "failed": 1, "in_sync": 0, "open_gaps_left": 1}
        assert runs[0]["error"] == f"1 documents failed. Most often: {NO_CUSTOMER}"
        assert 41 not in [row[0] for row in world.table(world.target)]
        [listed] = service.gaps("tables")
        gap = service.api.get(f"/api/v1/gaps/{listed['id']}")
        assert (gap["state"], gap["resolution"], gap["note"]) == ("open", None, f"repair refused: {NO_CUSTOMER}")
        assert "repair_refused" in [step["event"] for step in gap["history"]]
        code, failed = service.answer("backfill", "failed", "tables")
        assert (code, [(one["key"], one["state"], one["reason"]) for one in failed]) == (
            1,
            [({"id": 41}, "given_up", NO_CUSTOMER)],
        )
        wait_for(lambda: service.metric("gapwatch_repairs_failed", pipeline="tables", state="given_up") == 1, "the metric", 10)

        execute(world.target, "INSERT INTO customers VALUES (4141)")
        code, runs = service.answer("backfill", "requeue", "tables", "41", "--yes", "--wait")
        assert (code, runs[0]["state"], runs[0]["counts"]["verified"]) == (0, "succeeded", 1), runs
        gap = service.api.get(f"/api/v1/gaps/{listed['id']}")
        assert (gap["state"], gap["resolution"]) == ("resolved", "backfilled")
        assert world.table(world.target) == world.table(world.source)
    finally:
        world.rows.lost.discard(41)
        row = "INSERT INTO orders (id, seq, amount) VALUES (41, 4141, 1) ON CONFLICT DO NOTHING"
        execute(world.target, "ALTER TABLE orders DROP CONSTRAINT orders_customer", "DROP TABLE customers", row)
    service.wait_healthy("tables")


def test_d18_lesson_7_lesson_36_backfills_of_two_sources_come_on_each_for_itself_and_a_failed_row_fails_its_own(
    world: World,
) -> None:
    service, keys = world.service, range(51, 75)
    execute(world.target, "ALTER TABLE orders ADD CONSTRAINT not_53 CHECK (id <> 53)")
    try:
        world.rows.lost |= set(keys)
        world.documents.lost |= set(keys)
        insert(world, *keys)
        world.mongo[world.database].orders.insert_many([{"_id": each, "amount": each} for each in keys])
        both = ("tables", "collections")
        wait_for(lambda: all(world.gaps(pipeline).keys() == set(keys) for pipeline in both), "the gaps of both", 40)
        ask = {"dry_run": False}
        runs = {pipeline: service.api.post("/api/v1/backfills", {"pipeline": pipeline, **ask})["id"] for pipeline in both}
        seen: dict[str, list[dict[str, Any]]] = {pipeline: [] for pipeline in runs}
        until(lambda: sum(followed(service, runs[one], seen[one]) for one in runs) == len(runs), "both to end", 60)
        for pipeline, run in runs.items():
            progress = [one["progress"] or 0.0 for one in seen[pipeline]]
            assert progress == sorted(progress)
            assert progress[-1] == 1.0
            assert any(0 < one < 1 for one in progress), "told as it came on, two documents of twenty-four at a time"
            rows = service.api.get("/api/v1/audit", run_id=run, limit=500)["audit"]
            done = {next(iter(row["key"].values())) for row in rows if row["action"] == "backfill_write"}
            assert (done, {row["pipeline"] for row in rows}) == (set(keys), {pipeline})
            newest = service.api.get("/api/v1/backfills", pipeline=pipeline)["backfills"]
            assert next(one["id"] for one in newest if not one["request"]["dry_run"]) == run
            assert {one["pipeline"] for one in newest} == {pipeline}
        ends = {pipeline: seen[pipeline][-1] for pipeline in runs}
        told = {pipeline: (end["state"], end["counts"]["written"], end["counts"]["failed"]) for pipeline, end in ends.items()}
        assert told == {"tables": ("failed", len(keys) - 1, 1), "collections": ("succeeded", len(keys), 0)}
        assert ends["tables"]["error"] == "1 documents failed. Most often: CheckViolation: constraint not_53"
        assert ends["collections"]["error"] is None
        assert world.gaps("tables").keys() == {53}
        assert world.gaps("collections") == {}
    finally:
        world.rows.lost -= set(keys)
        world.documents.lost -= set(keys)
        execute(world.target, "ALTER TABLE orders DROP CONSTRAINT not_53")
    code, again = service.answer("backfill", "requeue", "tables", "--yes", "--wait")
    assert (code, again[0]["counts"]["verified"]) == (0, 1), again
    service.wait_healthy("tables")
    service.wait_healthy("collections")


def followed(service: Service, run: str, seen: list[dict[str, Any]]) -> bool:
    """Note a backfill's record while it goes on, and its last one; return whether it has ended."""
    if not seen or seen[-1]["ended_at"] is None:
        seen.append(service.api.get(f"/api/v1/backfills/{run}"))
    return seen[-1]["ended_at"] is not None
