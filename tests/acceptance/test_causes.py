"""Why a gap is there: one scripted fault for each cause, and its evidence read back from where it says it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for

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
        scene.service.wait_healthy()
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
    servers = scene.stack.kafka.bootstrap_servers
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "tests", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(row["topic"], row["partition"], row["offset"])])
        (message,) = consumer.consume(1, timeout=20)
        assert (message.error(), message.offset()) == (None, row["offset"])
        return (message.key() or b"").decode()
    finally:
        consumer.close()
