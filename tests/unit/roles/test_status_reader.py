"""One reader of the status topic for all boards of a process: nobody misses a record, whenever he comes and whoever leaves."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from confluent_kafka import Message

from gapwatch.errors import FeedError
from gapwatch.kafka.clients import Partition, Polled
from gapwatch.model.pipeline import TopicsSpec
from gapwatch.roles.status_feed import StatusReader, StatusTopic, StatusView

AT = Partition(TopicsSpec().status, 0)


class Log:
    """A consumer of one partition, whose records come when they are told to."""

    def __init__(self, first: int = 0, end: int = 0) -> None:
        self.range = (first, end)
        self.records: asyncio.Queue[tuple[bytes, bytes] | Exception] = asyncio.Queue()
        self.asked: list[tuple[int, float]] = []
        self.offset = first
        self.closed = 0
        self.taken, self.answering = asyncio.Event(), asyncio.Event()
        self.answering.set()

    async def partitions(self, topic: str) -> tuple[int, ...]:
        return (0,)

    async def log_range(self, at: Partition) -> tuple[int, int]:
        return self.range

    async def assign(self, starts: Any) -> None: ...

    async def consume(self, limit: int, *, seconds: float) -> Polled:
        self.asked.append((limit, seconds))
        messages: list[Message] = []
        if self.records.empty():
            await asyncio.sleep(0)
        while len(messages) < limit and not self.records.empty():
            record = self.records.get_nowait()
            if isinstance(record, Exception):
                self.taken.set()
                await self.answering.wait()
                raise record
            key, value = record
            messages.append(Message(topic=AT.topic, partition=0, offset=self.offset, key=key, value=value))
            self.offset += 1
        self.taken.set()
        await self.answering.wait()
        return Polled(runs={AT: messages} if messages else {})

    def say(self, key: bytes, value: bytes) -> None:
        self.records.put_nowait((key, value))

    async def close(self) -> None:
        self.closed += 1


def reader_of(*logs: Log) -> StatusReader:
    left = list(logs)
    return StatusReader(lambda: StatusTopic(cast(Any, left.pop(0)), TopicsSpec()))


async def started(reader: StatusReader) -> StatusView:
    view = reader.view()
    await view.start()
    return view


async def test_both_boards_get_every_record_of_one_consumer() -> None:
    log = Log(end=2)
    reader = reader_of(log)
    one, two = await started(reader), await started(reader)
    log.say(b"a", b"1")
    log.say(b"b", b"2")
    assert await one.read(0.1) == [b"1", b"2"]
    assert [one.at_end, two.at_end] == [True, False], "the other one has not taken them yet"
    assert await two.read(0.1) == [b"1", b"2"]
    assert two.at_end
    assert len(log.asked) == 1


async def test_who_comes_later_begins_with_the_newest_of_each() -> None:
    log = Log()
    reader = reader_of(log)
    one = await started(reader)
    for value in (b"1", b"2"):
        log.say(b"a", value)
        await one.read(0.1)
    two = await started(reader)
    assert await two.read(0.1) == [b"2"]
    await one.close()
    log.say(b"a", b"3")
    assert await two.read(0.1) == [b"3"], "who stays reads on"
    before = log.closed
    await two.close()
    assert (before, log.closed) == (0, 1)


async def test_a_board_that_is_cancelled_takes_no_record_with_it() -> None:
    log = Log()
    reader = reader_of(log)
    one, two = await started(reader), await started(reader)
    log.say(b"a", b"1")
    log.answering.clear()
    reading = asyncio.create_task(one.read(0.1))
    await log.taken.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    log.answering.set()
    assert await two.read(0.1) == [b"1"]


async def test_a_reader_that_fails_fails_for_all_and_the_next_one_is_new() -> None:
    broken, new = Log(), Log()
    reader = reader_of(broken, new)
    one, two = await started(reader), await started(reader)
    broken.records.put_nowait(FeedError("gone"))
    with pytest.raises(FeedError, match="gone"):
        await one.read(0.1)
    with pytest.raises(FeedError, match="has failed"):
        await two.read(0.1)
    assert broken.closed == 1
    await one.close()
    again = await started(reader)
    new.say(b"a", b"1")
    assert await again.read(0.1) == [b"1"]


async def test_what_an_old_reader_still_brings_is_nothing_to_the_next_one() -> None:
    old, new = Log(), Log()
    reader = reader_of(old, new)
    one = await started(reader)
    old.answering.clear()
    old.records.put_nowait(FeedError("closed"))
    reading = asyncio.create_task(one.read(0.1))
    await old.taken.wait()
    await one.close()
    two = await started(reader)
    old.answering.set()
    with pytest.raises(FeedError, match="closed"):
        await reading
    new.say(b"a", b"1")
    assert await two.read(0.1) == [b"1"]


async def test_while_nothing_comes_it_waits_for_the_first_record_and_then_takes_those_that_come_with_it() -> None:
    log = Log()
    topic = StatusTopic(cast(Any, log), TopicsSpec())
    await topic.start()
    assert await topic.read(5.0) == []
    log.say(b"a", b"1")
    log.say(b"b", b"2")
    assert await topic.read(5.0) == [b"1", b"2"]
    assert [seconds for limit, seconds in log.asked if limit == 1] == [5.0], "one call for all of the time in which nothing comes"
