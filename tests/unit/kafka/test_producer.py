"""The producer's own thread: what fails in it is told to whoever waits, and it serves on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError

from gapwatch.errors import ProtocolError
from gapwatch.kafka.producer import AckedProducer
from gapwatch.model.pipeline import Settings


async def test_a_callback_that_raises_ends_the_producer_and_not_only_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would serve the acknowledgements any more, and whoever waits for one would wait for ever."""

    def raises(self: Any, error: KafkaError) -> None:
        raise OSError("no room for a log line")

    monkeypatch.setattr(AckedProducer, "_on_client_error", raises)
    producer = AckedProducer(Settings(bootstrap_servers="127.0.0.1:1"), client_id="one")
    await producer.start()
    try:
        await producer.send("t", None, b"x")
        with pytest.raises(ProtocolError, match="OSError"):
            async with asyncio.timeout(60):
                await producer.flush()
        assert producer._thread is not None
        assert producer._thread.is_alive()
    finally:
        await producer.close()


async def test_what_a_callback_raises_while_it_closes_keeps_no_record_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last answers come when all that is under way is given up."""

    raised = list[str]()

    def raises(self: Any, error: KafkaError) -> None:
        if self._stopping.is_set():
            raised.append(error.name())
            raise OSError("no room for a log line")

    monkeypatch.setattr(AckedProducer, "_on_client_error", raises)
    producer = AckedProducer(Settings(bootstrap_servers="127.0.0.1:1"), client_id="one")
    await producer.start()
    under_way = await producer.send("t", None, b"x")
    producer._stopping.set()  # nobody serves the answers but who closes
    assert producer._thread is not None
    await asyncio.to_thread(producer._thread.join)
    raised.clear()
    await asyncio.to_thread(time.sleep, 1.0)  # the client's errors wait to be heard
    await producer.close()
    assert raised
    assert under_way.done()
