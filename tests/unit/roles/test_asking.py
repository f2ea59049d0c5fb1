"""Pollers ask the ledger seldom while nothing is written, and at once when this process has written to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.errors import ConflictError
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import RunKind, RunState
from gapwatch.ports import OutboxRow
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.outbox import OutboxPublisher
from gapwatch.roles.repair.runner import TAKE_SECONDS, RunnerDependencies, RunRunner
from gapwatch.roles.repair.sweeps import LEASE_SECONDS
from tests.ledger_samples import at, finding, gap, opening, run
from tests.simulation.stores import VirtualClock


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


class Watched:
    """A ledger that notes who asks what, and when."""

    def __init__(self, ledger: SqlLedger, clock: VirtualClock) -> None:
        self._ledger, self._clock = ledger, clock
        self.asked: list[tuple[str, float]] = []

    def __getattr__(self, name: str) -> Any:
        if name != "writes":
            self.asked.append((name, self._clock.monotonic()))
        return getattr(self._ledger, name)

    def times(self, name: str) -> list[float]:
        return [time for one, time in self.asked if one == name]


def test_asks_after_each_write_and_otherwise_when_its_time_has_come(ledger: SqlLedger) -> None:
    clock = VirtualClock()
    asking = Asking(ledger, clock, seconds=5)
    assert asking.due(), "nothing is known at first"
    assert not asking.due()
    ledger.store_gaps([opening(gap())])
    assert asking.due()
    assert not asking.due()
    asyncio.run(clock.sleep(4.9))
    assert not asking.due()
    asyncio.run(clock.sleep(0.2))
    assert asking.due(), "another process may have written"
    assert not asking.due()
    asking.again()
    assert asking.due()


def test_what_gives_somebody_something_to_do_counts_and_nothing_else(ledger: SqlLedger) -> None:
    def counts(write: Any) -> bool:
        before = ledger.writes()
        write()
        return ledger.writes() != before

    one = run(1, state=RunState.QUEUED)
    assert counts(lambda: ledger.store_gaps([opening(gap())]))
    assert counts(lambda: ledger.raise_finding(finding()))
    assert counts(lambda: ledger.create_run(one))
    lease = ledger.take_lease("feed", "me", seconds=10)
    assert lease is not None
    for quiet in (
        lambda: ledger.set_fact("resume/feed", {"token": "t"}),
        lambda: ledger.renew_lease(lease, seconds=10),
        lambda: ledger.outbox_done([row.id for row in ledger.outbox(10)]),
        lambda: ledger.take_run(RunKind.BACKFILL, "me", seconds=10),
    ):
        assert not counts(quiet)
    taken = ledger.take_run(one.kind, "me", seconds=10)
    assert taken is not None
    assert counts(lambda: ledger.update_run(replace(taken, state=RunState.SUCCEEDED, ended_at=at(9)), holder="me"))


def test_a_write_that_fails_counts_too(ledger: SqlLedger) -> None:
    """Whether it was stored is not known where the connection broke."""
    ledger.create_run(run(1, state=RunState.QUEUED))
    before = ledger.writes()
    with pytest.raises(ConflictError):
        ledger.create_run(run(2, state=RunState.QUEUED))
    assert ledger.writes() != before


class Sink:
    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.published: list[float] = []

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        self.published += [self._clock.monotonic()] * len(rows)


async def test_a_gap_is_published_at_once_and_an_empty_outbox_is_asked_once_a_second(ledger: SqlLedger) -> None:
    clock, stop = VirtualClock(), asyncio.Event()
    watched, sink = Watched(ledger, clock), Sink(clock)
    begun = clock.monotonic()
    running = asyncio.create_task(OutboxPublisher(cast(Any, watched), sink, clock).run(stop))
    await until(clock, begun + 10.05)
    assert 9 <= len(watched.times("outbox")) <= 12
    stored = clock.monotonic()
    ledger.store_gaps([opening(gap(1)), opening(gap(2))])
    await until(clock, stored + 2)
    stop.set()
    await running
    assert len(sink.published) == 2
    assert max(sink.published) - stored < 0.5


async def test_a_run_is_taken_at_once_and_an_empty_queue_is_asked_once_a_second(ledger: SqlLedger) -> None:
    clock, stop = VirtualClock(), asyncio.Event()
    watched = Watched(ledger, clock)
    on = SimpleNamespace(ledger=watched, clock=clock, holder="me", pipelines={})
    begun = clock.monotonic()
    running = asyncio.create_task(RunRunner(cast(RunnerDependencies, on)).run(stop))
    await until(clock, begun + 10.05)
    polls = len(watched.times("take_run")) + len(watched.times("take_part"))
    assert polls <= 12 * (len(LEASE_SECONDS) + 1)
    asked = clock.monotonic()
    for number, kind in enumerate(LEASE_SECONDS, start=1):
        ledger.create_run(run(number, kind=kind, state=RunState.QUEUED))
    await until(clock, asked + 60, lambda: len(ledger.runs(states=[RunState.FAILED])) == len(LEASE_SECONDS))
    stop.set()
    await running
    assert {one.kind for one in ledger.runs(states=[RunState.FAILED])} == set(LEASE_SECONDS), "there is no such pipeline"
    first = min(time for time in watched.times("take_run") if time >= asked)
    assert first - asked <= 2 * TAKE_SECONDS


async def until(clock: VirtualClock, time: float, done: Callable[[], bool] = lambda: False) -> None:
    """Let others run until then, or until it is done: the clock stands unless somebody sleeps."""
    for _ in range(100_000):
        if clock.monotonic() >= time or done():
            return
        await asyncio.sleep(0.001)
