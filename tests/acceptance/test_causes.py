"""Why a gap is there: one scripted fault for each cause, and its evidence read back from where it says it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from gapwatch.embedded import EmbeddedStack, mongo_sink_config
from tests.acceptance.copier import Change
from tests.acceptance.mirror import create_topic
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import caught_up, is_swept, record_at
from tests.stack import until

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

NEVER_WRITTEN, OVERWRITTEN, RESURRECTED, OUT_OF_BAND = 101, 102, 103, 104
CAUSES = {
    NEVER_WRITTEN: ("missing", "never_written", {"expected"}),
    OVERWRITTEN: ("stale", "overwritten", {"expected", "observed"}),
    RESURRECTED: ("undeleted", "resurrected", {"expected", "observed"}),
    OUT_OF_BAND: ("extra", "out_of_band", {"observed"}),
}


def nothing(_: Change) -> list[tuple[float, Any]]:
    return [(0, None)]


def test_m2_each_fault_of_the_target_has_its_cause_and_its_evidence_is_there(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'old', i FROM generate_series(1, 20) i"]
    with watched(stack, postgres_database, tmp_path, before=before) as scene:
        scene.copier.rules[501] = nothing
        scene.insert(OVERWRITTEN, 502)
        scene.insert(RESURRECTED, 503)
        wait_for(lambda: {OVERWRITTEN, RESURRECTED} <= scene.documents().keys(), "the documents", 30)
        older, deleted = (scene.documents()[key] for key in (OVERWRITTEN, RESURRECTED))
        scene.sql(
            f"UPDATE {TABLE} SET seq = 504, v = 'newer' WHERE id = {OVERWRITTEN}", f"DELETE FROM {TABLE} WHERE id = {RESURRECTED}"
        )
        wait_for(lambda: _updated(scene), "the update and the delete", 30)
        caught_up(scene.service, both=True)  # else it may look as if the sink had never written them
        client = scene.mongo()
        try:
            orders = client[postgres_database].orders
            orders.replace_one({"_id": OVERWRITTEN}, older)
            orders.insert_many([deleted, {**older, "_id": OUT_OF_BAND}])
        finally:
            client.close()
        scene.insert(NEVER_WRITTEN, 501)
        gaps = wait_for(lambda: found if len(found := scene.service.gaps()) >= len(CAUSES) else None, "the gaps", 60)
        said = {gap["key"]["id"]: (gap["kind"], gap["cause"], {row["side"] for row in _streamed(gap)}) for gap in gaps}
        assert said == CAUSES
        for gap in gaps:
            for row in _streamed(gap):
                assert str(gap["key"]["id"]) in _key_at(scene, row), row


def _updated(scene: Scene) -> bool:
    documents = scene.documents()
    return documents[OVERWRITTEN]["seq"] == 504 and RESURRECTED not in documents


def _streamed(gap: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in gap["evidence"] if row["topic"]]


def _key_at(scene: Scene, row: dict[str, Any]) -> str:
    """Return the key of the raw record that evidence names."""
    return (record_at(scene.stack.kafka.bootstrap_servers, row).key() or b"").decode()


def test_m2_what_the_source_did_and_its_topic_lacks_is_lost_in_stream_and_what_only_a_sweep_saw_is_unknown(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """The connector passes updates over. One insert does not arrive either: the stream raises it, and the read shows more."""
    lost, unseen = 201, 202
    before = [f"INSERT INTO {TABLE} (id, seq, v) VALUES (1, 1, 'old')"]  # makes the topic: a new one may be swept
    with watched(stack, postgres_database, tmp_path, before=before, connector={"skipped.operations": "u"}) as scene:
        wait_for(lambda: is_swept(scene.service), "no sweep to find anything", 60)
        scene.copier.rules[601] = nothing
        scene.insert(lost, 601)
        scene.insert(unseen, 602)
        scene.sql(f"UPDATE {TABLE} SET v = 'newer' WHERE id IN ({lost}, {unseen})")
        [gap] = wait_for(scene.service.gaps, "the gap", 60)
        assert (gap["key"]["id"], gap["kind"], gap["cause"], gap["detector"]) == (lost, "missing", "lost_in_stream", "stream")
        [row] = _streamed(gap)
        assert row["side"] == "expected"
        assert b"newer" not in (record_at(scene.stack.kafka.bootstrap_servers, row).value() or b""), (
            "the newest that the topic has"
        )
        _, runs = scene.service.answer("sweep", "start", "orders", "--content", "--wait")
        assert runs[0]["state"] == "succeeded", runs
        found = wait_for(lambda: found if len(found := scene.service.gaps()) > 1 else None, "the gap of the sweep", 30)
        said = {one["key"]["id"]: (one["kind"], one["cause"], one["detector"], len(_streamed(one))) for one in found}
        assert said[unseen] == ("mismatch", "unknown", "sweep", 0)


def test_m2_a_write_that_the_sink_connector_gave_up_is_dead_lettered(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """The topic of its dead letters is made with the sink, after the start; it is made anew in between; and one comes late."""
    letters = f"{postgres_database}.dead"
    with watched(stack, postgres_database, tmp_path, beside={"sunk": _sunk(postgres_database, letters)}) as scene:
        _refuse(scene, "no")
        with _sink(scene, letters):
            scene.insert(1, 1)
            wait_for(lambda: _sunk_keys(scene) == {1}, "the sink to write", 60)
            scene.insert(2, 2, "no")
            scene.insert(3, 3)
            gap = _dead_lettered(scene, 2)
            wait_for(lambda: _sunk_keys(scene) == {1, 3}, "the sink to go on", 30)
            rows = {row["side"]: row for row in gap["evidence"]}
            said = rows["sink"]
            assert (said["topic"], said["operation"], said["position"]) == (
                letters,
                "dead_lettered",
                rows["expected"]["position"],
            )
            assert said["reason"].startswith("TASK_PUT com.mongodb.")
            headers = dict(record_at(stack.kafka.bootstrap_servers, said).headers() or [])
            where = (headers["__connect.errors.topic"], headers["__connect.errors.offset"])
            assert where == (rows["expected"]["topic"].encode(), str(rows["expected"]["offset"]).encode())

            scene.sql(f"UPDATE {TABLE} SET v = 'yes' WHERE id = 2")
            wait_for(lambda: not scene.service.gaps("sunk"), "the gap to be resolved", 60)
            _make_anew(stack, letters)
            scene.insert(4, 4, "no")
            assert _dead_lettered(scene, 4)["evidence"]
            scene.sql(f"DELETE FROM {TABLE} WHERE id = 4")
            wait_for(lambda: not scene.service.gaps("sunk"), "the gap to be resolved", 60)
        with _sink(scene, ""):
            scene.insert(5, 5, "no")
            _told_late(scene, letters, 5)


def _sunk(database: str, letters: str) -> dict[str, Any]:
    """Return what a pipeline has of its own that MongoDB's own sink connector fills."""
    target = {"store": "catalog", "collection": f"{database}.sunk", "key": {"_id": "int"}, "feed": {"change_stream": True}}
    return {"target": {**target, "dead_letter_topic": letters}, "delivery": {"group": f"connect-sink-{database}"}}


def _refuse(scene: Scene, value: str) -> None:
    """Make a collection that takes no document with this value."""
    client = scene.mongo()
    try:
        client[scene.database].create_collection("sunk", validator={"v": {"$ne": value}})
    finally:
        client.close()


@contextmanager
def _sink(scene: Scene, letters: str) -> Iterator[None]:
    name, client = f"sink-{scene.database}", scene.stack.connect.client
    """Run a sink that passes over what the target refuses, and says so in the topic of its dead letters where it has one."""
    options = {"errors.tolerance": "all", "bulk.write.ordered": "false", "consumer.override.auto.offset.reset": "earliest"}
    if letters:
        options |= {
            "errors.deadletterqueue.topic.name": letters,
            "errors.deadletterqueue.topic.replication.factor": "1",
            "errors.deadletterqueue.context.headers.enable": "true",
        }
    topic = f"{scene.database}.{TABLE}"
    config = mongo_sink_config(
        scene.stack.mongodb, topic=topic, database=scene.database, collection="sunk", variant="unwrap", **options
    )
    client.put_connector(name, config)
    try:
        client.wait_running(name)
        yield
    finally:
        client.delete(name)


def _sunk_keys(scene: Scene) -> set[int]:
    client = scene.mongo()
    try:
        return {document["_id"] for document in client[scene.database].sunk.find()}
    finally:
        client.close()


def _told_late(scene: Scene, letters: str, key: int) -> None:
    """The gap of a write that the sink gave up in silence learns its cause from a dead letter that comes behind it."""
    [gap] = wait_for(lambda: scene.service.gaps("sunk"), "the gap", 90)
    assert (gap["key"]["id"], gap["cause"]) == (key, "never_written")
    _, shown = scene.service.answer("gaps", "show", gap["id"])
    [written] = [row for row in shown["evidence"] if row["side"] == "expected"]
    servers = scene.stack.kafka.bootstrap_servers
    record, producer = record_at(servers, written), Producer({"bootstrap.servers": servers})
    place = {"topic": written["topic"], "partition": written["partition"], "offset": written["offset"]}
    headers = [(f"__connect.errors.{name}", str(value).encode()) for name, value in place.items()]
    producer.produce(letters, record.value(), record.key(), headers=headers)
    producer.flush(60)
    wait_for(lambda: [one["cause"] for one in scene.service.gaps("sunk")] == ["dead_lettered"], "its cause", 30)
    known = _dead_lettered(scene, key)
    assert (known["id"], known["occurrences"], known["first_seen"]) == (shown["id"], 1, shown["first_seen"])
    assert known["evidence"][: len(shown["evidence"])] == shown["evidence"]
    assert [row["topic"] for row in known["evidence"] if row["side"] == "sink"] == [letters]


def _dead_lettered(scene: Scene, key: int) -> dict[str, Any]:
    """Return the gap of this key alone, as the command line shows it; a dead letter may come behind its gap."""

    def told() -> list[dict[str, Any]]:
        found = scene.service.gaps("sunk")
        return found if found and all(gap["cause"] == "dead_lettered" for gap in found) else []

    wait_for(lambda: scene.service.gaps("sunk"), "the gap", 90)
    gaps = wait_for(told, "its cause", 30)
    assert [(gap["key"]["id"], gap["kind"]) for gap in gaps] == [(key, "missing")]
    _, shown = scene.service.answer("gaps", "show", gaps[0]["id"])
    return dict(shown)


def _make_anew(stack: EmbeddedStack, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap_servers})
    for future in admin.delete_topics([topic]).values():
        future.result(30)
    until(lambda: topic not in admin.list_topics(timeout=30).topics, "the topic to go")
    create_topic(stack.kafka.bootstrap_servers, topic, 1)
