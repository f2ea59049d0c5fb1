"""One client for all users of a store in a loop: each client watches its servers by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, OperationFailure
from pymongo.monitoring import CommandStartedEvent

from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch_connectors.mongodb import connection
from gapwatch_connectors.mongodb.connection import Document, Mongo
from tests.simulation.stores import VirtualClock

URI = "mongodb://127.0.0.1:1/"


def is_closed(client: AsyncMongoClient[Document]) -> bool:
    return client._closed


async def test_users_of_a_store_share_its_client_until_the_last_one_is_closed() -> None:
    one, other, elsewhere = Mongo("crm", URI), Mongo("crm_too", URI), Mongo("shop", "mongodb://127.0.0.1:2/")
    client = one.client
    assert one.client is client
    assert other.client is client
    assert elsewhere.client is not client
    await one.close()
    await one.close()
    assert other.client is client, "somebody still uses it"
    assert not is_closed(client)
    await other.close()
    assert is_closed(client)
    assert one.client is not client
    await one.close()
    await elsewhere.close()
    assert not connection._SHARED[asyncio.get_running_loop()]


def test_each_loop_has_clients_of_its_own() -> None:
    store = Mongo("crm", URI)
    clients: list[Any] = []

    async def use() -> None:
        clients.append(store.client)
        await store.close()

    asyncio.run(use())
    asyncio.run(use())
    assert clients[0] is not clients[1]


async def test_an_address_that_cannot_be_read_leaves_nothing_behind() -> None:
    store = Mongo("crm", "mongodb://user:s3cret@[")
    for _ in range(2):
        with pytest.raises(StoreRefused) as refused:
            _ = store.client
        assert "s3cret" not in f"{refused.value} {refused.value.remedy}"
    await store.close()


def test_requests_are_counted_for_whoever_makes_them() -> None:
    one, other = Mongo("crm", URI), Mongo("crm", URI)

    def command() -> None:
        connection._LISTENER.started(CommandStartedEvent({"ping": 1}, "admin", 1, ("127.0.0.1", 1), 1))

    command()
    with one.wrapped():
        command()
        with other.wrapped():
            command()
            command()
        command()
    command()
    assert (one.asked(), other.asked()) == (2, 2)
    assert (one.asked(), other.asked()) == (0, 0)
    with pytest.raises(RuntimeError), one.wrapped():
        raise RuntimeError
    command()
    assert one.asked() == 0


class Server:
    """The admin database of a cluster that numbers its operations."""

    def __init__(self) -> None:
        self.notes = 0
        self.refuses = False

    @property
    def admin(self) -> Server:
        return self

    async def command(self, name: str, value: int, *, data: dict[str, str]) -> dict[str, Any]:
        assert (name, value, data) == ("appendOplogNote", 1, {"gapwatch": "marker"})
        await asyncio.sleep(0)
        if self.refuses:
            raise OperationFailure("not authorized", 13)
        self.notes += 1
        return {"operationTime": Timestamp(1_700_000_000, self.notes)}

    async def close(self) -> None: ...


async def test_streams_of_a_cluster_share_a_note_that_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    server, clock = Server(), VirtualClock()
    monkeypatch.setattr(Mongo, "_open", lambda _: server)
    one, other = Mongo("crm", URI), Mongo("crm", URI)
    began = clock.monotonic()
    first, second = await asyncio.gather(one.note(clock, newer_than=began - 1), other.note(clock, newer_than=began - 1))
    assert (first, server.notes) == (second, 1)
    assert (first.clock_ms, first.cluster_time) == (clock.now_ms(), 1_700_000_000 << 32 | 1)
    await clock.sleep(1)
    assert await other.note(clock, newer_than=began) != first, "what was noted before a stream was opened proves nothing of it"
    assert await one.note(clock, newer_than=began) == await other.note(clock, newer_than=began)
    assert server.notes == 2
    server.refuses = True
    with pytest.raises(OperationFailure):
        await one.note(clock, newer_than=clock.monotonic())
    await one.close()
    await other.close()


async def test_what_a_cluster_says_to_everybody_is_asked_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = VirtualClock(), []
    monkeypatch.setattr(Mongo, "_open", lambda _: Server())
    one, other = Mongo("crm", URI), Mongo("crm", URI)

    async def ask() -> int:
        await asyncio.sleep(0)
        asked.append(clock.monotonic())
        return len(asked)

    async def both(name: str) -> list[int]:
        return list(await asyncio.gather(*(user.of_cluster(name, ask, clock, seconds=4) for user in (one, other))))

    assert await both("oplog") == [1, 1]
    assert await both("other") == [2, 2]
    await clock.sleep(3.9)
    assert await both("oplog") == [1, 1]
    await clock.sleep(0.2)
    assert await both("oplog") == [3, 3]
    await one.close()
    await other.close()


async def test_a_cluster_that_is_away_keeps_its_streams_waiting_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = VirtualClock(), []
    monkeypatch.setattr(Mongo, "_open", lambda _: Server())
    users = [Mongo("crm", URI) for _ in range(3)]

    async def away() -> int:
        asked.append(clock.monotonic())
        await clock.sleep(10)
        raise AutoReconnect("nobody there")

    began = clock.monotonic()
    asking = [asyncio.create_task(user.of_cluster("oplog", away, clock, seconds=4)) for user in users]
    await asyncio.sleep(0)
    asking[0].cancel()  # who asked first need not wait to the end for the others to be told
    said = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(one) for one in said] == [asyncio.CancelledError, AutoReconnect, AutoReconnect]
    assert (asked, clock.monotonic() - began) == ([began], 10)
    with pytest.raises(AutoReconnect):
        await users[1].of_cluster("oplog", away, clock, seconds=40)
    assert len(asked) == 2, "a failure is no answer: whoever comes later asks anew"
    for user in users:
        await user.close()


class Member:
    """A cluster whose primary answers pings."""

    def __init__(self) -> None:
        self.pings = 0
        self.name = ("one", 27017)
        self.last = 10**9  # ping that is answered, and by the same primary
        self.answered = asyncio.Event()  # some of them

    @property
    def admin(self) -> Member:
        return self

    @property
    async def primary(self) -> tuple[str, int]:
        return self.name

    async def command(self, name: str) -> None:
        assert name == "ping"
        self.pings += 1
        if self.pings == 5:
            self.answered.set()
        if self.pings > self.last:
            self.passes_away()

    def passes_away(self) -> None:
        raise AutoReconnect("nobody there")

    async def close(self) -> None: ...


class Succeeded(Member):
    def passes_away(self) -> None:
        self.name = ("two", 27017)


@pytest.mark.parametrize("kind", [Member, Succeeded], ids=["it is frozen", "it is primary no more"])
async def test_a_server_that_takes_long_is_waited_for_as_long_as_it_lives(
    monkeypatch: pytest.MonkeyPatch, kind: type[Member]
) -> None:
    """A change stream that goes on after an outage answers once the server has found a change in all that was written."""
    member, ended, enough = kind(), list[str](), asyncio.Event()
    monkeypatch.setattr(Mongo, "_open", lambda _: member)
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.01)
    store = Mongo("crm", URI)

    async def work() -> str:
        try:
            await enough.wait()
        finally:
            ended.append("work")
        return "found"

    waiting = asyncio.create_task(store.patiently(work()))
    await member.answered.wait()
    enough.set()
    assert await waiting == "found"
    enough.clear()
    member.last = member.pings + 2
    with pytest.raises(StoreUnreachable):
        await store.patiently(work())
    assert ended == ["work", "work"]
    await store.close()


async def test_nobody_waits_long_to_take_leave_of_a_server_that_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(Member):
        async def close(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(Mongo, "_open", lambda _: Frozen())
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.01)
    store = Mongo("crm", URI, patient=True)
    assert store.client is not None
    async with asyncio.timeout(10):
        await store.close()
