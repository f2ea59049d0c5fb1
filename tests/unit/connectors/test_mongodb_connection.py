"""One client for all users of a store in a loop: each client watches its servers by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandStartedEvent

from gapwatch.errors import StoreRefused
from gapwatch_connectors.mongodb import connection
from gapwatch_connectors.mongodb.connection import Document, Mongo

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
