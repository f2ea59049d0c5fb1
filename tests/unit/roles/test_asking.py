"""Pollers ask the ledger seldom while nothing is written, and at once when this process has written to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import ConflictError
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import RunKind, RunState
from gapwatch.ports import OutboxRow
from gapwatch.roles.repair import outbox, rechecker, runner
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.outbox import OutboxPublisher
from gapwatch.roles.repair.rechecker import Rechecker, RecheckerDependencies
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from gapwatch.roles.repair.sweeps import LEASE_SECONDS
from tests.ledger_samples import at, finding, gap, opening, run
from tests.simulation.stores import VirtualClock


class Watched:
    """A ledger that counts what it is asked."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.asked = Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._ledger, name)


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


async def test_a_poller_that_rests_is_woken_by_a_write_by_its_time_and_by_the_end(ledger: SqlLedger) -> None:
    clock, stop = SystemClock(), asyncio.Event()
    asking = Asking(ledger, clock, seconds=1_000)
    assert asking.due()
    resting = asyncio.create_task(asking.rest(0.01, stop))
    await asyncio.to_thread(lambda: ledger.set_fact("resume/feed", {"token": "t"}))
    await asyncio.sleep(0.1)
    assert not resting.done(), "that is nothing for it"
    await asyncio.to_thread(lambda: ledger.store_gaps([opening(gap())]))
    await asyncio.wait_for(resting, 10)
    assert asking.due()
    resting = asyncio.create_task(asking.rest(0.01, stop))
    await asyncio.sleep(0.1)
    assert not resting.done()
    stop.set()
    await asyncio.wait_for(resting, 10)
    assert not ledger._db._told, "nobody is told who does not rest"
    soon = Asking(ledger, clock, seconds=0.1)
    assert soon.due()
    await asyncio.wait_for(soon.rest(0.01, asyncio.Event()), 10)
    assert soon.due()


async def test_a_poller_does_not_rest_where_there_is_something_to_ask_already(ledger: SqlLedger) -> None:
    asking = Asking(ledger, SystemClock(), seconds=1_000)
    assert asking.due()
    ledger.store_gaps([opening(gap())])
    await asyncio.wait_for(asking.rest(0.01, asyncio.Event()), 10)
    assert asking.due()
    asking.again()
    await asyncio.wait_for(asking.rest(0.01, asyncio.Event()), 10)


async def test_open_gaps_are_asked_for_by_pipeline_only_where_there_are_any(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecker, "OTHERS_SECONDS", 1_000)
    monkeypatch.setattr(rechecker, "PAUSE_SECONDS", 0.01)
    stop, watched, stepped = asyncio.Event(), Watched(ledger), list[str]()
    on = SimpleNamespace(
        ledger=watched,
        clock=SystemClock(),
        pipelines={"a": None, "b": None},
        judges=dict.fromkeys("ab", SimpleNamespace(cases={})),
    )
    checked = Rechecker(cast(RecheckerDependencies, on))

    async def step(pipeline: str) -> int:
        stepped.append(pipeline)
        return 0

    monkeypatch.setattr(checked, "step", step)
    running = asyncio.create_task(checked.run(stop))
    await until(lambda: watched.asked["gaps"] == 1)
    await asyncio.sleep(0.1)
    assert (stepped, watched.asked["gaps"]) == ([], 1)
    await asyncio.to_thread(lambda: ledger.store_gaps([opening(gap())]))
    await until(lambda: stepped == ["a", "b"])
    stop.set()
    await running


class Sink:
    def __init__(self) -> None:
        self.published: list[OutboxRow] = []

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        self.published += rows


async def test_an_empty_outbox_is_left_alone_until_this_process_has_stored_a_gap(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OTHERS_SECONDS", 1_000)
    stop, watched, sink = asyncio.Event(), Watched(ledger), Sink()
    running = asyncio.create_task(OutboxPublisher(cast(Any, watched), sink, SystemClock()).run(stop))
    await asyncio.sleep(5 * outbox.IDLE_SECONDS)
    assert watched.asked["outbox"] == 1
    ledger.store_gaps([opening(gap(1)), opening(gap(2))])
    await until(lambda: len(sink.published) == 2)
    await until(lambda: watched.asked["outbox"] == 3)
    await asyncio.sleep(3 * outbox.IDLE_SECONDS)
    stop.set()
    await running
    assert watched.asked["outbox"] == 3, "once after the gaps were stored, and once for what there may be beside them"


async def test_an_empty_queue_is_left_alone_until_this_process_has_queued_a_run(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "OTHERS_SECONDS", 1_000)
    stop, watched = asyncio.Event(), Watched(ledger)
    on = SimpleNamespace(ledger=watched, clock=SystemClock(), holder="me", pipelines={})
    running = asyncio.create_task(RunRunner(cast(RunnerDependencies, on)).run(stop))
    await until(lambda: watched.asked["runs"] == 1)
    await asyncio.sleep(3 * runner.TAKE_SECONDS)
    assert (watched.asked["runs"], watched.asked["take_run"], watched.asked["take_part"]) == (1, 0, 0)
    for number, kind in enumerate(LEASE_SECONDS, start=1):
        ledger.create_run(run(number, kind=kind, state=RunState.QUEUED))
    await until(lambda: len(ledger.runs(states=[RunState.FAILED])) == len(LEASE_SECONDS))
    stop.set()
    await running
    assert {one.kind for one in ledger.runs()} == set(LEASE_SECONDS), "there is no such pipeline"


async def test_what_another_process_has_written_is_seen_all_the_same(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OTHERS_SECONDS", 0.2)
    stop, sink = asyncio.Event(), Sink()
    running = asyncio.create_task(OutboxPublisher(ledger, sink, SystemClock()).run(stop))
    before, other = ledger.writes(), open_ledger(str(ledger._db.url))
    try:
        other.store_gaps([opening(gap(1))])
    finally:
        other.close()
    assert ledger.writes() == before
    await until(lambda: len(sink.published) == 1)
    stop.set()
    await running


async def until(done: Callable[[], bool]) -> None:
    for _ in range(6_000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing came of it within a minute")
