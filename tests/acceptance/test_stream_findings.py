"""Stream findings, each provoked for real: what is wrong with a feed is named, and what it may have lost is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, OffsetSpec

from gapwatch.embedded import EmbeddedStack, mongo_sink_config, postgres_source_config
from gapwatch.errors import GapwatchError
from tests.acceptance.background import Background
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.stack import drop_slot, slot_is_active, until

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

ROWS = 300
BEFORE = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'old', i FROM generate_series(1, {ROWS}) i"]
CHANGED, DELETED = range(1, 201), range(201, 221)


@contextmanager
def quiet(stack: EmbeddedStack, database: str, directory: Path, *before: str, **pipeline: Any) -> Iterator[Scene]:
    """Yield a healthy pipeline of 300 rows."""
    with watched(stack, database, directory, before=[*before, *BEFORE], copied=ROWS, **pipeline) as scene:
        yield scene


def connector_of(scene: Scene) -> tuple[str, dict[str, str]]:
    """Return the name and the configuration of the source's connector."""
    config = postgres_source_config(scene.stack.postgres, database=scene.database, prefix=scene.database, tables=[TABLE])
    return f"source-{scene.database}", config | {"decimal.handling.mode": "string"}


def topic_of(scene: Scene) -> str:
    return f"{scene.database}.{TABLE}"


def admin(scene: Scene) -> AdminClient:
    return AdminClient({"bootstrap.servers": scene.stack.kafka.bootstrap_servers})


def finding(scene: Scene, *kinds: str, seconds: float = 60) -> dict[str, Any]:
    """Return the first finding of one of these kinds that there is, or was."""

    def raised() -> dict[str, Any] | None:
        scene.service.check_alive()
        try:
            found = scene.service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
        except GapwatchError:  # it starts
            return None
        return next((one for one in found if one["finding"] in kinds), None)

    return dict(wait_for(raised, f"the finding {' or '.join(kinds)}", seconds))


def in_state(scene: Scene, *statuses: str, seconds: float = 30) -> dict[str, Any]:
    """Return the pipeline's record once its status is one of these."""

    def so() -> dict[str, Any] | None:
        view = scene.service.view()
        return view if view["status"] in statuses else None

    try:
        return wait_for(so, " or ".join(statuses), seconds)
    except AssertionError as error:
        raise AssertionError(f"{error} {json.dumps(scene.service.view(), indent=1)}") from None


def wait_for_gaps(scene: Scene, wanted: set[int], seconds: float = 90) -> list[dict[str, Any]]:
    """Return the open gaps once they are those of these keys."""

    def there() -> list[dict[str, Any]] | None:
        gaps = scene.service.gaps()
        return gaps if {gap["key"]["id"] for gap in gaps} == wanted else None

    try:
        return wait_for(there, f"gaps of {len(wanted)} keys", seconds)
    except AssertionError as error:
        found = sorted((gap["key"]["id"], gap["kind"]) for gap in scene.service.gaps())
        raise AssertionError(f"{error} {found[:20]} {json.dumps(scene.service.view(), indent=1)}") from None


def without_capture(scene: Scene) -> None:
    """End the connector, and wait until nobody reads its slot, which stays: Connect answers before the task has stopped."""
    name, config = connector_of(scene)
    scene.stack.connect.client.delete(name)
    until(lambda: not slot_is_active(scene.stack, config["slot.name"]), "the connector to let go of its slot")


def capture_again(scene: Scene, **options: str) -> None:
    name, config = connector_of(scene)
    scene.stack.connect.client.put_connector(name, config | options)
    scene.stack.connect.client.wait_running(name)


def change_and_delete(scene: Scene) -> None:
    scene.sql(
        f"UPDATE {TABLE} SET v = 'new' WHERE id BETWEEN {CHANGED.start} AND {CHANGED.stop - 1}",
        f"DELETE FROM {TABLE} WHERE id BETWEEN {DELETED.start} AND {DELETED.stop - 1}",
    )


def wait_until_sent(scene: Scene, client: AdminClient) -> list[int]:
    """Return the topic's partitions once the connector has sent what :func:`change_and_delete` wrote."""
    topic = topic_of(scene)
    numbers = sorted(client.list_topics(topic, timeout=30).topics[topic].partitions)

    def sent() -> bool:
        asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in numbers}
        ends = sum(future.result(10).offset for future in client.list_offsets(asked).values())
        return bool(ends >= ROWS + len(CHANGED) + 2 * len(DELETED))  # a delete is followed by its tombstone

    until(sent, "the changes to be sent")
    return numbers


def test_m3_a_slot_that_is_dropped_and_made_again(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """200 rows change and 20 are deleted while there is none: nobody sends them, and all are found without being asked to."""
    with quiet(stack, postgres_database, tmp_path) as scene:
        retained = "gapwatch_replication_slot_retained_bytes"
        wait_for(lambda: scene.service.metric(retained, pipeline="orders") is not None, "what the slot keeps", 30)
        wait_for(lambda: scene.service.metric("gapwatch_oplog_window_seconds", store="catalog"), "what the oplog holds", 30)
        without_capture(scene)
        slot = connector_of(scene)[1]["slot.name"]
        until(lambda: drop_slot(stack, slot), "the slot to be dropped")
        change_and_delete(scene)
        found = finding(scene, "slot_lost")
        until(lambda: scene.service.metric(retained, pipeline="orders") is None, "the slot's metric to go with it")
        assert slot in found["message"]
        assert found["is_hole"]
        gaps = wait_for_gaps(scene, {*CHANGED, *DELETED})
        assert {gap["kind"] for gap in gaps if gap["key"]["id"] in CHANGED} <= {"stale", "mismatch"}
        assert {gap["kind"] for gap in gaps if gap["key"]["id"] in DELETED} <= {"extra", "undeleted"}
        assert {gap["detector"] for gap in gaps} == {"sweep"}
        capture_again(scene, **{"snapshot.mode": "when_needed"})  # Debezium refuses to go on at a position that is gone
        scene.insert(1_000, 1_000)
        wait_for(lambda: 1_000 in scene.documents(), "the stream to go on", 60)
        wait_for_gaps(scene, {*DELETED})  # a new snapshot brings the rows, and no deletes


@dataclass
class Traffic(Background):
    """Writes rows of its own, so that the stream tells time where no heartbeats do."""

    scene: Scene
    first: int = 10_000

    def _run(self) -> None:
        with psycopg.connect(self.scene.dsn, autocommit=True) as session:
            number = self.first
            while not self._stop.wait(0.1):
                session.execute(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (%s, %s, 'a', 1)", (number, number))
                number += 1


@contextmanager
def passed_over(scene: Scene) -> Iterator[None]:
    """Drop the slot and make it again at once, then capture by another connector, which has no offsets and takes no snapshot.

    What was written in between, and what was not sent by then, nobody will ever send. (With its old offsets this Debezium refuses
    to go on; it does go on, silently, once somebody has reset them.)
    """
    name, config = connector_of(scene)
    without_capture(scene)
    slot, another = config["slot.name"], f"{name}-again"
    with psycopg.connect(scene.dsn, autocommit=True) as session:
        session.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        change_and_delete(scene)
        session.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    client = scene.stack.connect.client
    client.put_connector(another, config | {"snapshot.mode": "no_data"})
    try:
        client.wait_running(another)
        yield
    finally:
        client.delete(another)


JUMPED = ("slot_jumped", "slot_lost")  # a look of the watcher may fall into the moment without a slot


def test_m3_trap_9_a_slot_that_is_made_again_between_two_looks(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """The connector goes on as if nothing had happened; 200 rows changed and 20 were deleted meanwhile."""
    with quiet(stack, postgres_database, tmp_path) as scene, passed_over(scene):
        assert finding(scene, *JUMPED)["is_hole"]
        gaps = wait_for_gaps(scene, {*CHANGED, *DELETED})
        assert {gap["detector"] for gap in gaps} == {"sweep"}
        scene.insert(1_000, 1_000)
        wait_for(lambda: 1_000 in scene.documents(), "the stream to go on", 60)


@pytest.mark.long
def test_m3_trap_9_a_slot_that_is_made_again_where_nobody_sends_heartbeats(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Nothing in the stream says that something is missing: only the slot itself does."""
    with watched(
        stack, postgres_database, tmp_path, before=BEFORE, copied=ROWS, heartbeat="none", stall_after="10s", wait=False
    ) as scene:
        traffic = Traffic(scene)
        traffic.start()
        try:
            scene.service.wait_healthy()
            wanted = {*CHANGED, *DELETED}
            with passed_over(scene):
                assert finding(scene, *JUMPED)["is_hole"]
                wait_for(lambda: wanted <= {gap["key"]["id"] for gap in scene.service.gaps()}, "their gaps", 90)
            there = scene.rows()
            assert {gap["kind"] for gap in scene.service.gaps() if gap["key"]["id"] in there.keys() - wanted} <= {"missing"}
        finally:
            traffic.stop()


def test_trap_15_rows_that_were_truncated_are_found_as_documents_left_over(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Debezium sends no TRUNCATE as it is set by default: its table's storage tells, and the sweep looks for orphans."""
    with quiet(stack, postgres_database, tmp_path, connector={"skipped.operations": "t"}) as scene:
        scene.sql(f"TRUNCATE {TABLE}")
        found = finding(scene, "truncated")
        assert found["is_hole"]
        assert found["message"] == f"The storage of {TABLE} was replaced: it was emptied, or rewritten."
        gaps = wait_for_gaps(scene, set(range(1, ROWS + 1)))
        assert {gap["kind"] for gap in gaps} <= {"extra", "undeleted"}


def test_a_table_that_is_rewritten_is_swept_and_nothing_is_invented(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """VACUUM FULL looks like a TRUNCATE from outside: a hole, which a sweep covers, and no gap."""
    with quiet(stack, postgres_database, tmp_path) as scene, psycopg.connect(scene.dsn, autocommit=True) as session:
        session.execute(f"VACUUM FULL {TABLE}")
        finding(scene, "truncated")

        def covered() -> bool:
            found = scene.service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
            return all(one["covered_by"] for one in found if one["finding"] == "truncated")

        wait_for(covered, "a sweep of everything", 60)
        scene.service.wait_healthy()
        assert scene.service.gaps(state="") == []


def test_more_pending_keys_than_their_limit_are_a_hole_that_a_sweep_covers(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Named, counted, alerted, swept: and what was let go is proven by the sweep."""
    with quiet(stack, postgres_database, tmp_path, pending_keys_max=20) as scene:
        raised, lost = "gapwatch_stream_findings_total", "gapwatch_unverifiable_writes_total"
        before = scene.service.metric(raised, pipeline="orders", finding="ingest_hole") or 0
        through = "gapwatch_consistent_through_timestamp_seconds"
        wait_for(lambda: scene.service.metric(through, pipeline="orders"), "a time up to which everything is proven", 20)
        scene.copier.pause()
        scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'new', 1 FROM generate_series(1001, 1100) i")

        def overflowed() -> list[dict[str, Any]]:
            found = scene.service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
            return [one for one in found if "pending_keys_max" in (one["message"] or "")]

        in_state(scene, "CRITICAL")  # first: once a sweep has covered the hole, it is no longer
        hole = wait_for(overflowed, "the hole", 30)[0]
        assert (hole["finding"], hole["is_hole"]) == ("ingest_hole", True)
        assert "more keys were unsettled at once than pending_keys_max allows" in hole["message"]
        wait_for(lambda: scene.service.view()["totals"]["unverifiable"].get("overflow", 0) >= 80, "what was let go, counted", 20)
        # what the alert GapwatchStreamHole asks for: raised since, while consistent-through had been there before
        wait_for(lambda: (scene.service.metric(raised, pipeline="orders", finding="ingest_hole") or 0) > before, "the alert", 10)
        wait_for(lambda: (scene.service.metric(lost, pipeline="orders", reason="overflow") or 0) >= 80, "the count", 10)
        scene.copier.resume()
        wait_for(lambda: all(one["covered_by"] for one in overflowed()), "a sweep of everything", 90)

        def low() -> dict[str, Any] | None:
            view = in_state(scene, "WARNING", seconds=60)  # for an hour: what was let go was proven by nobody's stream
            return view if view["reasons"][0].startswith("coverage 0.") else None  # the sink may lag for a moment

        view = wait_for(low, "coverage as the reason", 60)
        assert view["consistent_through"] > hole["time_to"]
        assert scene.service.gaps(state="") == []


def test_trap_10_a_slot_that_falls_behind_what_postgres_keeps(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    with quiet(stack, postgres_database, tmp_path) as scene, psycopg.connect(scene.dsn, autocommit=True) as session:
        without_capture(scene)
        session.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        session.execute("SELECT pg_reload_conf()")
        try:
            change_and_delete(scene)
            for _ in range(4):
                session.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))")
                session.execute("SELECT pg_switch_wal()")
            session.execute("CHECKPOINT")
            found = finding(scene, "slot_lost")
            assert "is lost: Postgres removed log that it still needed" in found["message"]
            wait_for_gaps(scene, {*CHANGED, *DELETED})
            in_state(scene, "CRITICAL")
        finally:
            session.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            session.execute("SELECT pg_reload_conf()")


def test_trap_13_a_raw_topic_that_is_made_anew(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    with quiet(stack, postgres_database, tmp_path) as scene:
        scene.copier.stop()
        change_and_delete(scene)
        client = admin(scene)
        wait_until_sent(scene, client)
        without_capture(scene)
        for future in client.delete_topics([topic_of(scene)]).values():
            future.result(30)
        capture_again(scene)
        for number in range(1_000, 1_020):
            scene.insert(number, number)
        scene.copier.start()
        assert finding(scene, "topic_recreated")["is_hole"]
        wait_for(lambda: set(range(1_000, 1_020)) <= set(scene.documents()), "the copier", 60)
        wait_for_gaps(scene, {*CHANGED, *DELETED})


def test_trap_13_a_log_that_was_truncated_below_our_position(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    with quiet(stack, postgres_database, tmp_path) as scene:
        scene.service.stop()
        scene.copier.stop()
        change_and_delete(scene)
        client = admin(scene)
        numbers = wait_until_sent(scene, client)
        everything = [TopicPartition(topic_of(scene), number, -1) for number in numbers]
        for future in client.delete_records(everything).values():
            future.result(30)
        scene.copier.start()
        scene.service.start()
        assert "lost offsets" in finding(scene, "log_truncated")["message"]
        wait_for_gaps(scene, {*CHANGED, *DELETED})


def test_partitions_that_are_added_are_named_and_nothing_is_lost(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    with quiet(stack, postgres_database, tmp_path) as scene:
        client = admin(scene)
        before = len(client.list_topics(topic_of(scene), timeout=10).topics[topic_of(scene)].partitions)
        for future in client.create_partitions([NewPartitions(topic_of(scene), before + 3)]).values():
            future.result(30)
        found = finding(scene, "partitions_added")
        assert f"has {before + 3} partitions; it had {before}" in found["message"]
        assert not found["is_hole"]
        scene.copier.rules[1_007] = lambda _: [(0, None)]
        for number in range(1_000, 1_050):
            scene.insert(number, number)
        gaps = wait_for_gaps(scene, {1_007})
        assert [gap["kind"] for gap in gaps] == ["missing"]
        in_state(scene, "ERROR", seconds=90)  # of the gap: the new partitions are read, and what they may have held is swept


def test_a_task_of_the_connector_that_failed(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """Told from a silent feed by its trace; what is written meanwhile is in transit, and nothing is lost when it goes on."""
    with quiet(stack, postgres_database, tmp_path) as scene:
        name, config = connector_of(scene)
        broken = {"transforms": "boom", "transforms.boom.type": "org.apache.kafka.connect.transforms.ExtractField$Value"}
        scene.stack.connect.client.put_connector(name, config | broken | {"transforms.boom.field": "no_such_field"})
        scene.insert(1_000, 1_000)
        found = finding(scene, "connector_failed")
        assert name in found["message"]
        view = in_state(scene, "ERROR", "CRITICAL")
        assert view["gaps_open"] == {} or not any(view["gaps_open"].values())
        scene.stack.connect.client.put_connector(name, config)
        scene.stack.connect.client.restart(name)
        wait_for(lambda: 1_000 in scene.documents(), "the row", 60)
        scene.service.wait_healthy()
        assert scene.service.gaps() == []


def test_a_connector_that_failed_itself(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """Not one of its tasks: its class is gone, as after a worker was upgraded without the plugin."""
    with quiet(stack, postgres_database, tmp_path) as scene:
        name, config = connector_of(scene)
        missing = {"properties": config | {"name": name, "connector.class": "io.debezium.connector.gone.GoneConnector"}}
        producer = Producer({"bootstrap.servers": stack.kafka.bootstrap_servers})
        producer.produce("_connect_config", json.dumps(missing).encode(), key=f"connector-{name}".encode())
        producer.flush(60)
        until(lambda: stack.connect.client.status(name)["connector"]["state"] == "FAILED", "the connector to fail")
        found = finding(scene, "connector_failed")
        assert name in found["message"]
        assert "GoneConnector" in found["message"]
        in_state(scene, "ERROR", "CRITICAL")
        assert scene.service.gaps() == []
        capture_again(scene)
        scene.insert(1_000, 1_000)
        wait_for(lambda: 1_000 in scene.documents(), "the row", 60)
        scene.service.wait_healthy()
        assert scene.service.gaps() == []


def test_dead_letters_of_the_sink(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    letters = f"{postgres_database}.dead"
    target = {
        "store": "catalog",
        "collection": f"{postgres_database}.orders",
        "key": {"_id": "int"},
        "feed": {"change_stream": True},
    }
    with quiet(stack, postgres_database, tmp_path, target=target | {"dead_letter_topic": letters}) as scene:
        sink = mongo_sink_config(stack.mongodb, topic=topic_of(scene), database=scene.database, collection="elsewhere")
        sink |= {
            "errors.tolerance": "all",
            "errors.deadletterqueue.topic.name": letters,
            "errors.deadletterqueue.topic.replication.factor": "1",
        }
        stack.connect.client.put_connector(f"sink-{scene.database}", sink)
        try:
            stack.connect.client.wait_running(f"sink-{scene.database}")
            producer = Producer({"bootstrap.servers": stack.kafka.bootstrap_servers})
            producer.produce(topic_of(scene), b"not JSON", key=b"neither")
            producer.flush(60)
            found = finding(scene, "dlq_growing")
        finally:
            stack.connect.client.delete(f"sink-{scene.database}")
        assert f"dead-letter topic {letters} has 1 new record" in found["message"]
        assert scene.service.view()["status"] != "HEALTHY"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            "DROP COLUMN dispatch_note",
            "Column dispatch_note is not in public.orders.",
        ),
        (
            "ALTER COLUMN dispatch_note TYPE bigint USING 1",
            "Column dispatch_note of public.orders is of another type now; its values are still read as text.",
        ),
    ],
    ids=["dropped", "another type"],
)
def test_a9_a_watched_column_is_dropped_or_changes_its_type(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, change: str, text: str
) -> None:
    fields = {"seq": "seq", "dispatch_note": "dispatch_note"}
    column = f"ALTER TABLE {TABLE} ADD COLUMN dispatch_note text"
    with quiet(stack, postgres_database, tmp_path, column, fields=fields) as scene:
        scene.sql(f"ALTER TABLE {TABLE} {change}")
        scene.sql(f"UPDATE {TABLE} SET amount = 5 WHERE id <= 50")
        found = finding(scene, "schema_changed")
        assert text in found["message"]
        wait_for(lambda: any(text in reason for reason in scene.service.view()["reasons"]), "it as a reason", 30)
        view = in_state(scene, "ERROR", "CRITICAL")  # what was written meanwhile is a hole
        assert sum(view["gaps_open"].values()) == 0


def test_a_clock_that_was_moved(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """The source's clock, as its user reads it, goes half a minute ahead: it is named, and no longer once it is put right."""
    user = f"reader_{postgres_database}"
    with quiet(stack, postgres_database, tmp_path, reader=user) as scene:
        scene.sql(
            "CREATE SCHEMA moved",
            f"GRANT USAGE ON SCHEMA moved TO {user}",
            "CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz"
            " LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() + interval '30 s' $$",
            f"ALTER ROLE {user} SET search_path = moved, pg_catalog, public",
        )
        connect_anew(scene, user)
        found = finding(scene, "clock_skew")
        assert "The clock of store shop is " in found["message"]
        assert "ahead of ours" in found["message"]
        assert not found["is_hole"]
        assert in_state(scene, "WARNING")["gaps_open"] == {}
        scene.sql(f"ALTER ROLE {user} RESET search_path")
        connect_anew(scene, user)
        scene.service.wait_healthy()


def connect_anew(scene: Scene, user: str) -> None:
    """End all sessions of a user, who then begins new ones, with what was set for them."""
    scene.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'")
