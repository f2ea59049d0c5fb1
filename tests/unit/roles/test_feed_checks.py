"""A silent feed, a delivery that nobody knows and a sink that lags are findings while they last, and do not flap."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.errors import StoreUnreachable
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import FindingRecord
from gapwatch.model.pipeline import DeliverySpec, PipelineSpec
from gapwatch.model.stream import UNKNOWN_DELIVERY, Side
from gapwatch.model.suspect import FeedStatus, PartitionStatus
from gapwatch.roles.board import Board
from gapwatch.roles.repair.feed_checks import FeedChecks
from gapwatch.roles.repair.watcher import POLL_SECONDS, FindingBook, Watcher, WatcherDependencies
from tests.simulation.stores import VirtualClock, spec_of_rig
from tests.unit.core.test_standing import record

SPEC: PipelineSpec = replace(spec_of_rig(), delivery=DeliverySpec(group="sink"))
STALL = SPEC.stall_after_seconds


class World:
    """A ledger, a board with one partition's record, and the watcher over nothing but the check of the feeds."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self.clock = VirtualClock()
        self.now: PartitionStatus | None = None
        self.read_through = True
        self.raised: list[str] = []
        self.restart()

    def restart(self) -> None:
        board = SimpleNamespace(records=lambda _: [self.now] if self.now else [], feed_ended=lambda _, *, ended: None)
        self.board = board
        check = FeedChecks(SPEC, cast("Board", board), self.ledger, self.clock)
        watching: dict[str, Any] = {"pipelines": {SPEC.id: SPEC}, "ledger": self.ledger, "board": board, "clock": self.clock}
        watching |= {"stores": None, "checks": lambda _: [check], "undecided": lambda _: 0, "process": "here"}
        watching |= {"on_finding": lambda _, finding: self.raised.append(finding)}
        self.watcher = Watcher(WatcherDependencies(**watching), FindingBook(self.ledger, self.clock, watching["on_finding"]))

    def look(self, seconds: float = POLL_SECONDS, *, silent: float = 0.0, **changes: Any) -> list[str]:
        """Go on so long, with a feed that is so old by then; return the open findings."""

        async def go_on() -> None:
            left = seconds
            while left > 0:
                await self.clock.sleep(min(POLL_SECONDS, left))
                left -= POLL_SECONDS
                self.board.read_through = self.read_through
                self.now = self._record(silent, changes)
                await self.watcher.check(SPEC)

        asyncio.run(go_on())
        return [one.finding.value for one in self.open]

    def _record(self, silent: float, changes: dict[str, Any]) -> PartitionStatus:
        now = self.clock.now_ms()
        told = now - int(silent * 1000)
        feed: dict[str, Any] = {
            "side": Side.EXPECTED,
            "feed": SPEC.source.feed.topic,
            "feed_partition": 0,
            "partitions": 1,
            "epoch": 1,
        }
        feed |= {"reached": 1, "watermark": told, "caught_up": now, "delivery": 0}
        feed |= {name: value for name, value in changes.items() if name in feed}
        others = {name: value for name, value in changes.items() if name not in feed}
        return record(0, pipeline=SPEC.id, partitions=1, written_at=now, feeds=[FeedStatus(**feed)], **others)

    @property
    def open(self) -> list[FindingRecord]:
        return list(self.ledger.findings(SPEC.id))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield World(ledger)
    ledger.close()


def test_a_feed_that_falls_silent_is_one_finding_from_beginning_to_end(world: World) -> None:
    assert world.look(60, silent=1) == []
    assert world.look(60, silent=STALL + 1) == ["feed_stalled"]
    (finding,) = world.open
    assert (finding.feed, finding.side, finding.is_hole) == (SPEC.source.feed.topic, "expected", False)
    assert "is silent: it proves no time after" in finding.message
    assert world.look(2 * POLL_SECONDS, silent=1) == []
    assert world.raised == ["feed_stalled"]


def test_a_feed_that_is_read_late_again_and_again_does_not_flap(world: World) -> None:
    world.look(silent=STALL + 1)
    for _ in range(20):
        assert world.look(silent=1) == ["feed_stalled"]
        assert world.look(silent=STALL + 1) == ["feed_stalled"]
    assert world.raised == ["feed_stalled"]


def test_trap_41_a_feed_without_traffic_that_proves_its_time_is_not_silent(world: World) -> None:
    """No traffic is a state of its own: the end is that of now, and heartbeats carry the time."""
    assert world.look(3_600, silent=1) == []
    assert world.look(silent=0, caught_up=1) == ["feed_stalled"]  # its end was not reached for long, whatever it proves


def test_a_feed_that_has_not_spoken_yet_gets_the_time_to_do_so(world: World) -> None:
    assert world.look(STALL - POLL_SECONDS, watermark=0, caught_up=0) == []
    assert world.look(3 * POLL_SECONDS, watermark=0, caught_up=0) == ["feed_stalled"]
    assert "has proven no time yet" in world.open[0].message


def test_a_delivery_that_nobody_knows_is_a_finding_once_it_lasts(world: World) -> None:
    assert world.look(delivery=UNKNOWN_DELIVERY) == []  # a handover: the new owner has not read it yet
    assert world.look(silent=1) == []
    assert world.look(STALL + 2 * POLL_SECONDS, delivery=UNKNOWN_DELIVERY) == ["delivery_unknown"]
    assert world.look(3 * POLL_SECONDS) == []


def test_a_sink_that_lags_is_a_finding_of_the_target(world: World) -> None:
    since = world.clock.now_ms()
    assert world.look(SPEC.lag_limit - POLL_SECONDS, oldest_in_transit=since) == []
    assert world.look(2 * POLL_SECONDS, oldest_in_transit=since) == ["sink_lagging"]
    assert [one.side for one in world.open] == ["observed"]
    assert world.look(3 * POLL_SECONDS) == []
    assert world.raised == ["sink_lagging"]


def test_a_restart_neither_ends_nor_repeats_what_lasts(world: World) -> None:
    world.look(STALL + 2 * POLL_SECONDS, delivery=UNKNOWN_DELIVERY)
    world.restart()
    assert world.look(delivery=UNKNOWN_DELIVERY) == ["delivery_unknown"]
    assert world.raised == ["delivery_unknown"]
    assert world.ledger.findings(SPEC.id, open_only=False)[0].cleared_at is None


def test_status_records_that_were_not_read_yet_say_nothing(world: World) -> None:
    world.look(silent=STALL + 1)
    world.restart()
    world.read_through = False
    assert world.look(60, silent=1) == ["feed_stalled"]
    with pytest.raises(StoreUnreachable):
        asyncio.run(FeedChecks(SPEC, cast("Board", world.board), world.ledger, world.clock).check())
