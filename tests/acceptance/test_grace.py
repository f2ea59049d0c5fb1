"""A grace that is measured, on real parts."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from tests.acceptance.shared import caught_up, late

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(900)]

FIRST = 1_000_000  # of the numbers and keys of the writes
WRITES = 3_000
SLOW_SECONDS = 3.0
PAUSE_SECONDS = 20.0
LEAST, MOST = 1.0, 40.0  # the bounds, in seconds; the first fall is by a quarter of the longest
SETTLED_SECONDS = 120.0  # how long it has to stand, in the long form
FALSE_SHARE_MAX = 0.001


def insert(scene: Scene, first: int) -> None:
    slow = range(first, first + WRITES, 500)  # two in a thousand: their delay is what counts
    scene.copier.rules |= dict.fromkeys(slow, late(SLOW_SECONDS))
    values = f"SELECT i, i, 'new', i % 1000 FROM generate_series({first}, {first + WRITES - 1}) i"
    scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) {values}")


@dataclass
class Load:
    """Writes more now and then: what was delayed before the first look at the delays is in no difference of two looks."""

    scene: Scene
    firsts: count[int]
    next_at: float = 0.0

    def go_on(self) -> float:
        """Return the grace in force, in seconds, after a batch of writes where one is due."""
        if time.monotonic() >= self.next_at:
            insert(self.scene, next(self.firsts))
            self.next_at = time.monotonic() + PAUSE_SECONDS
        return float(self.scene.service.view()["grace_seconds"])

    def stands(self, seconds: float) -> bool:
        """Whether the grace is three times the bound of the slow writes' bucket, and stays so for so long."""
        since = time.monotonic()
        while (grace := self.go_on()) in (15.0, 30.0):  # a busy machine makes 5 s and more of 3
            if time.monotonic() - since >= seconds:
                return True
            time.sleep(1)
        assert LEAST <= grace <= MOST
        return False


def test_m9_with_a_p999_of_three_seconds_the_measured_grace_is_within_its_bounds_stored_sent_and_suspects_no_write(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With ``--soak`` until it has settled, and two minutes longer."""
    bounds: dict[str, Any] = {"grace": "auto", "grace_min": f"{LEAST:g}s", "grace_max": f"{MOST:g}s"}
    with watched(stack, postgres_database, tmp_path, **bounds) as scene:
        service, load = scene.service, Load(scene, count(FIRST, WRITES))
        assert service.view()["grace_seconds"] == MOST
        wait_for(lambda: load.go_on() < MOST, "a measured grace", 150)
        wait_for(lambda: min(_graces(scene), default=MOST * 1000) < MOST * 1000, "the grace on the stream", 60)
        if request.config.getoption("--soak"):
            wait_for(lambda: load.stands(SETTLED_SECONDS), "the grace to settle", 600)
        assert 3 * SLOW_SECONDS <= service.view()["grace_seconds"] < MOST
        insert(scene, next(load.firsts))
        totals = caught_up(service)["totals"]
        assert totals["expected"] >= 2 * WRITES, "some of them since it was measured"
        assert totals["raised"] / totals["expected"] <= FALSE_SHARE_MAX
        assert service.gaps(state="") == []


def _graces(scene: Scene) -> set[int]:
    """Return the graces in the newest control records."""
    topic = f"gw-{scene.database}.events"
    consumer = Consumer(
        {"bootstrap.servers": scene.stack.kafka.bootstrap_servers, "group.id": "looks", "enable.auto.commit": False}
    )
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
        consumer.assign([TopicPartition(topic, 0, max(0, end - 20))])
        records = [unpack(value) for message in consumer.consume(20, 5) if (value := message.value())]
        return {times.grace for record in records if isinstance(record, Control) for times in record.pipelines}
    finally:
        consumer.close()
