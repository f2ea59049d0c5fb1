"""A grace that is measured, on real parts."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from gapwatch.core.batches import unpack
from gapwatch.embedded import EmbeddedStack
from gapwatch.model.stream import Control
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import late

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

FIRST = 1_000_000  # of the numbers and keys of the writes
WRITES = 3_000
SLOW_SECONDS = 1.0
PAUSE_SECONDS = 20.0
MOST = 600  # the longest grace, in seconds: three times the delay that a busy machine may show


def insert(scene: Scene, first: int) -> None:
    slow = range(first, first + WRITES, 500)  # two in a thousand: their delay is what counts
    scene.copier.rules |= dict.fromkeys(slow, late(SLOW_SECONDS))
    values = f"SELECT i, i, 'new', i % 1000 FROM generate_series({first}, {first + WRITES - 1}) i"
    scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) {values}")


def test_m9_the_measured_grace_is_stored_and_sent_with_the_stream(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    bounds: dict[str, Any] = {"grace": "auto", "grace_min": "1s", "grace_max": f"{MOST}s"}
    with watched(stack, postgres_database, tmp_path, **bounds) as scene:
        service = scene.service
        assert service.view()["grace_seconds"] == MOST
        firsts, next_at = count(FIRST, WRITES), 0.0

        def measured() -> bool:
            """Write more now and then: what was delayed before the first look at the delays is in no difference of two looks."""
            nonlocal next_at
            if time.monotonic() >= next_at:
                insert(scene, next(firsts))
                next_at = time.monotonic() + PAUSE_SECONDS
            return 1.0 <= float(service.view()["grace_seconds"]) < MOST

        wait_for(measured, "a measured grace", 150)
        wait_for(lambda: min(_graces(scene), default=MOST * 1000) < MOST * 1000, "the grace on the stream", 60)
        assert service.view()["totals"]["raised"] == 0
        assert service.gaps() == []


def _graces(scene: Scene) -> set[int]:
    """Return the graces in the newest control records."""
    topic = f"gw-{scene.database}.events"
    consumer = Consumer(
        {"bootstrap.servers": scene.stack.kafka.bootstrap_servers, "group.id": "looks", "enable.auto.commit": False}
    )
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
        consumer.assign([TopicPartition(topic, 0, max(0, end - 20))])
        records = [unpack(value) for message in consumer.consume(20, 5) if (value := message.value())]
        return {times.grace for record in records if isinstance(record, Control) for times in record.pipelines}
    finally:
        consumer.close()
