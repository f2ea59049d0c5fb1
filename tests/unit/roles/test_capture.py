"""What a captured feed survives: a slow store, a ledger that is away at first, a bug beside it, partitions that are added."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import ConflictError, StoreUnreachable
from gapwatch.feed_ports import StreamBatch
from gapwatch.kafka.clients import Partition
from gapwatch.ledger import SqlLedger
from gapwatch.ports import Lease
from gapwatch.roles.capture import role
from gapwatch.roles.capture.role import CaptureRole, Stream
from gapwatch.roles.stirring import Stirring
from gapwatch.roles.supervisor import Supervised, Supervisor, Task
from tests.simulation.kafka import Broker
from tests.simulation.stores import VirtualClock
from tests.unit.roles.test_handover import TARGET, Reader, Stored, become, captured, capturing

OTHER = "gapwatch.feed.other.target"


class Slow(Stored):
    """It answers once the lease of whoever asks was renewed a few times."""

    def __init__(self, count: int, renewed: Sequence[Any]) -> None:
        super().__init__(count)
        self.renewed = renewed

    def open(self) -> Reader:
        return SlowReader(self)


class SlowReader(Reader):
    _store: Slow

    async def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        async for batch in super().open(token):
            enough = len(self._store.renewed) + 2
            await become(lambda: len(self._store.renewed) > enough)  # noqa: B023
            yield batch


async def test_a_store_that_takes_longer_than_a_lease_lasts_is_waited_for(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long refresh, an oplog with few changes of ours: the lease was lost, all began anew, and took as long again, for ever."""
    monkeypatch.setattr(role, "RENEW_SECONDS", 0.01)
    renewed, renew = list[Any](), ledger.renew_leases

    def renewing(held: Sequence[Any], *, seconds: float) -> Any:
        renewed.append(held)
        return renew(held, seconds=seconds)

    setattr(ledger, "renew_leases", renewing)  # noqa: B010
    broker, store, stop = Broker({TARGET: 2}, VirtualClock()), Slow(2, renewed), asyncio.Event()
    on = replace(capturing(store, broker, ledger), clock=SystemClock())
    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": 1})
    running = asyncio.create_task(CaptureRole(on).run(stop))
    await become(lambda: running.done() or captured(broker) == {0, 1})
    stop.set()
    await running
    assert store.opened == [0]


async def test_work_that_takes_long_ends_with_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "RENEW_SECONDS", 0.01)
    ended = list[str]()

    class Taken:
        async def ask(self, lease: Lease) -> Lease | None:
            return None

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    lease = Lease(name="capture/feed", holder="here", fencing=1, expires_at=datetime.now(UTC))
    held = role._Held(SystemClock(), Taken(), lease)  # type: ignore[arg-type]
    with pytest.raises(ConflictError):
        await held.during(work())
    assert ended == ["work"]


async def test_no_time_is_told_before_there_is_a_position_to_go_on_from(ledger: SqlLedger) -> None:
    """The ledger was away just then: the stream began from now once more, behind a time that was told, and nothing said so."""
    broker, store, stop, told = Broker({TARGET: 2}, VirtualClock()), Stored(0), asyncio.Event(), list[int]()
    store_fact = ledger.set_fact

    def away_at_first(name: str, value: Any, **more: Any) -> None:
        told.append(len(broker.log(TARGET)))
        if len(told) == 1:
            store.count = 3  # written while nobody follows
            raise StoreUnreachable("The ledger does not answer.", store="ledger")
        store_fact(name, value, **more)

    setattr(ledger, "set_fact", away_at_first)  # noqa: B010
    running = asyncio.create_task(CaptureRole(capturing(store, broker, ledger)).run(stop))
    await become(lambda: running.done() or (len(told) > 1 and bool(broker.log(TARGET))))
    stop.set()
    await running
    assert store.opened == [None, None]
    assert told[:2] == [0, 0], "it is told once the position is stored"


class Broken(Reader):
    async def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        self._store.opened.append(None)
        yield dict[str, StreamBatch]()["seq_no"]


async def test_a_bug_that_one_feed_meets_stops_no_other(ledger: SqlLedger) -> None:
    """One document that the code did not expect ended the role, again and again, and with it the feeds of all pipelines."""
    broker, store, stop = Broker({TARGET: 2, OTHER: 1}, VirtualClock()), Stored(0), asyncio.Event()
    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": 1})
    broken, on = Stored(0), capturing(store, broker, ledger)
    other = Stream(pipeline=on.streams[0].pipeline, topic=OTHER, open=lambda: Broken(broken))
    on = replace(on, streams=[*on.streams, other], partitions={**on.partitions, OTHER: 1})
    running = asyncio.create_task(CaptureRole(on).run(stop))
    await become(lambda: running.done() or len(broken.opened) > 2)
    store.count = 5
    await become(lambda: running.done() or len(captured(broker)) == 5)
    stop.set()
    await running
    assert store.opened == [0]
    assert broker.logs[Partition(OTHER, 0)] == []


async def test_partitions_that_are_added_to_a_feed_are_told_the_time(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had none until somebody started role capture anew: until then their pipeline was UNKNOWN."""
    monkeypatch.setattr(role, "RECOUNT_SECONDS", 0.01)
    broker, store, stop, counts = Broker({TARGET: 3}, VirtualClock()), Stored(0), asyncio.Event(), [2]
    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": 1})

    def begun() -> Task:
        on = capturing(store, broker, ledger)
        return CaptureRole(replace(on, partitions={TARGET: counts[-1]}, count=lambda: asyncio.sleep(0, {TARGET: counts[-1]}))).run

    supervisor = Supervisor(
        tasks=[Supervised(name="capture", make=begun)], clock=broker.clock, on_up=lambda *_: None, on_failure=lambda _: None
    )
    running = asyncio.create_task(supervisor.run(stop))
    await become(lambda: bool(broker.log(TARGET)))
    counts.append(3)
    store.count = 1
    await become(lambda: running.done() or bool(broker.logs[Partition(TARGET, 2)]))
    stop.set()
    await running
    assert supervisor.health["capture"].failures == 1
    assert store.opened in ([0, 0], [0, 1])


async def test_streams_in_which_nothing_happens_store_their_positions_together(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role, "TOKEN_SECONDS", 0.05)
    broker, stop, stored = Broker({TARGET: 1, OTHER: 1}, VirtualClock()), asyncio.Event(), list[set[str]]()
    together = ledger.set_facts_under

    def counted(values: Sequence[tuple[str, Any, Lease]]) -> Sequence[bool]:
        stored.append({name for name, _, _ in values})
        return together(values)

    setattr(ledger, "set_facts_under", counted)  # noqa: B010
    on = replace(capturing(Stored(0), broker, ledger), clock=SystemClock())
    other = replace(on.streams[0], topic=OTHER)
    on = replace(on, streams=[*on.streams, other], partitions={TARGET: 1, OTHER: 1})
    running = asyncio.create_task(CaptureRole(on).run(stop))
    both = {f"resume/{TARGET}", f"resume/{OTHER}"}
    await become(lambda: running.done() or both in stored)
    stop.set()
    await running
    assert both in stored


class Restful(Stored):
    """Its reader rests longer where somebody wakes it, and tells of both."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.said: list[str] = []

    def open(self) -> Reader:
        return RestfulReader(self)


class RestfulReader(Reader):
    _store: Restful

    def may_rest(self) -> None:
        self._store.said.append("may rest")

    def wake(self) -> None:
        self._store.said.append("woken")


@pytest.mark.parametrize("sees_all", [True, False])
async def test_a_stream_rests_longer_where_it_is_woken_by_what_happens_at_its_source(sees_all: bool, ledger: SqlLedger) -> None:
    broker, store, stop, stirring = Broker({TARGET: 2}, VirtualClock()), Restful(2), asyncio.Event(), Stirring()
    on = replace(capturing(store, broker, ledger), clock=SystemClock(), stirring=stirring if sees_all else None)
    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": 1})
    running = asyncio.create_task(CaptureRole(on).run(stop))
    await become(lambda: running.done() or captured(broker) == {0, 1})
    stirring.stir("another")
    stirring.stir(on.streams[0].pipeline.id)
    assert store.said == (["may rest", "woken"] if sees_all else [])
    stop.set()
    await running
    stirring.stir(on.streams[0].pipeline.id)
    assert len(store.said) == (2 if sees_all else 0), "who has ended is not called any more"
