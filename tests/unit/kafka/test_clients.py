"""A client that does not come back from closing holds nobody up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from gapwatch.kafka import clients
from gapwatch.kafka.clients import RawConsumer
from gapwatch.model.pipeline import Settings


class Closing:
    """librdkafka's consumer as far as closing it goes."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.begun, self.let_go, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self._error = error

    def close(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        self.let_go.wait()
        if self._error is not None:
            raise self._error
        self.closed.set()


def consumer_with(client: Closing) -> RawConsumer:
    made = RawConsumer(Settings(bootstrap_servers="127.0.0.1:1", pipelines={}), client_id="one")
    made._consumer.close()
    made._consumer = cast(Any, client)
    return made


async def test_a_client_that_does_not_close_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CLOSE_SECONDS", 0.2)
    client = Closing()
    await consumer_with(client).close()
    assert await asyncio.to_thread(client.begun.wait, 60)
    assert client.thread is not None
    assert client.thread.daemon, "no exit of the process may wait for it"
    client.let_go.set()
    client.thread.join(60)


async def test_what_goes_wrong_while_it_closes_is_raised() -> None:
    client = Closing(error=RuntimeError("broken"))
    client.let_go.set()
    with pytest.raises(RuntimeError, match="broken"):
        await consumer_with(client).close()


async def test_it_closes_although_whoever_asked_stops_waiting() -> None:
    client = Closing()
    closing = asyncio.create_task(consumer_with(client).close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    client.let_go.set()
    assert await asyncio.to_thread(client.closed.wait, 60)


class Member(Closing):
    """Of a group that does not hear of its leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go.set()
        self.done: list[str] = []

    def unsubscribe(self) -> None:
        self.done.append("unsubscribe")

    def consume(self, limit: int, timeout: float) -> list[Any]:
        self.done.append("consume")
        return []

    def close(self) -> None:
        self.done.append("close")
        super().close()


async def test_a_member_that_cannot_leave_its_group_is_closed_all_the_same() -> None:
    class Fenced(Member):
        def unsubscribe(self) -> None:
            raise RuntimeError("fenced")

    client = Fenced()
    consumer = consumer_with(client)
    consumer._group = "g"
    with pytest.raises(RuntimeError, match="fenced"):
        await consumer.close()
    assert client.done == ["close"]


@pytest.mark.parametrize("assigned", [False, True])
async def test_a_member_leaves_its_group_before_it_closes(monkeypatch: pytest.MonkeyPatch, assigned: bool) -> None:
    monkeypatch.setattr(clients, "_HAND_BACK_SECONDS", 0.0)
    client = Member()
    consumer = consumer_with(client)
    consumer._group, consumer._assigned = "g", assigned
    await consumer.close()
    asked = client.done.count("consume")
    assert client.done == ["unsubscribe", *["consume"] * asked, "close"]
    assert (asked > 1) is assigned
