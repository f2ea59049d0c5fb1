"""The module's way of fetching, against a real broker: it brings what the client's own would, and groups are heard beside it."""

from __future__ import annotations

import asyncio
import gc
import uuid
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gapwatch_native
import pytest
from tests.integration.broker import until
from tests.integration.test_kafka_clients import Keeper, fill, read

from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import HistoryLost
from gapwatch.kafka.clients import AckedProducer, Committed, Partition, RawConsumer
from gapwatch.kafka.topics import TopicAdmin, TopicPlan
from gapwatch.model.pipeline import Settings, TopicsSpec


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    with EmbeddedStack(parts=("kafka",)) as stack:
        yield stack.kafka.bootstrap_servers


@pytest.fixture
def settings(servers: str) -> Settings:
    return Settings(bootstrap_servers=servers, topics=TopicsSpec(prefix=f"t{uuid.uuid4().hex[:8]}", partitions=2))


@pytest.fixture
async def topic(settings: Settings) -> str:
    name = f"{settings.topics.prefix}-raw"
    await TopicAdmin(settings).ensure([TopicPlan(name=name, partitions=2, settings={"cleanup.policy": "delete"})])
    return name


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[AckedProducer]:
    made = AckedProducer(settings, client_id="test")
    await made.start()
    yield made
    await made.close()


def member(settings: Settings, topic: str, name: str = "one", **options: Any) -> RawConsumer:
    made = RawConsumer(settings, client_id=name, group="g-" + topic, native=gapwatch_native, options=options)
    assert made._fetching is not None
    return made


async def all_of(consumer: RawConsumer, count: int) -> list[Any]:
    found: list[Any] = []

    async def more() -> bool:
        polled = await consumer.consume(1_000)
        assert not polled.faults
        assert all(isinstance(run, gapwatch_native.Run) for run in polled.runs.values())
        found.extend(polled.messages)
        return len(found) >= count

    await until(more)
    return found


def told(message: Any) -> tuple[Any, ...]:
    where = message.topic(), message.partition(), message.offset(), message.timestamp()
    return (*where, message.key(), message.value(), message.headers(), message.error())


async def test_messages_say_what_the_clients_own_say(settings: Settings, topic: str, producer: AckedProducer) -> None:
    headers: list[tuple[str, bytes]] = [("name", b"1"), ("näme", b"\0\xff")]
    for key, value, told_with in ((b"k", b"v", headers), (None, b"", []), (b"", None, headers[:1]), (b"\0", b"x" * 100_000, [])):
        await producer.send(topic, key, value, headers=told_with, partition=1, timestamp=1_700_000_000_123)
    await producer.flush()
    usual, native = RawConsumer(settings, client_id="usual"), member(settings, topic)
    await usual.assign({Partition(topic, 1): 0})
    await native.subscribe([topic], Keeper())
    expected: list[Any] = []

    async def arrived() -> bool:
        expected.extend((await usual.consume(10)).messages)
        return len(expected) >= 4

    await until(arrived)
    found = await all_of(native, 4)
    assert [told(message) for message in found] == [told(message) for message in expected]
    await usual.close()
    await native.close()


async def test_a_run_is_a_sequence_and_ends_with_its_consumer(settings: Settings, topic: str, producer: AckedProducer) -> None:
    await fill(producer, topic, 5)
    consumer = member(settings, topic)
    await consumer.subscribe([topic], Keeper())
    runs: list[Any] = []

    async def arrived() -> bool:
        runs.extend((await consumer.consume(5, seconds=2)).runs.values())
        return bool(runs) and sum(map(len, runs)) == 5

    await until(arrived)
    run = runs[0]
    assert [message.offset() for message in run[1:]] == list(range(1, len(run)))
    assert run[-1].offset() == len(run) - 1
    assert len(run[3:2]) == 0
    for place in (len(run), -len(run) - 1):
        with pytest.raises(IndexError):
            run[place]
    with pytest.raises(IndexError):
        run[::2]
    message = run[0]
    await consumer.close()
    with pytest.raises(RuntimeError, match="closed"):
        message.value()


async def test_a_member_goes_on_where_the_group_stands(settings: Settings, topic: str, producer: AckedProducer) -> None:
    await fill(producer, topic, 10)
    keeper = Keeper()
    first = member(settings, topic)
    await first.subscribe([topic], keeper)
    await read(first, 10)
    keeper.to_commit = {Partition(topic, 0): Committed(7, "here")}
    await first.close()
    assert keeper.mine == set()
    after, second = Keeper(), member(settings, topic, "two")
    await second.subscribe([topic], after)
    assert await read(second, 3) == [(0, 7), (0, 8), (0, 9)]
    assert after.seen == {Partition(topic, 0): Committed(7, "here"), Partition(topic, 1): None}
    await second.seek(Partition(topic, 0), 4)
    assert await read(second, 6) == [(0, number) for number in range(4, 10)]
    await second.close()


async def test_partitions_move_and_come_back_and_nothing_is_left_out(
    settings: Settings, topic: str, producer: AckedProducer
) -> None:
    first, second = Keeper(), Keeper()
    one, two = member(settings, topic), member(settings, topic, "two")
    await one.subscribe([topic], first)
    await two.subscribe([topic], second)
    seen: set[tuple[int | None, int | None]] = set()

    async def both(*consumers: RawConsumer) -> None:
        for polled in await asyncio.gather(*(consumer.consume(100) for consumer in consumers)):
            assert not polled.faults
            seen.update((message.partition(), message.offset()) for message in polled.messages)

    async def shared() -> bool:
        await both(one, two)
        return len(first.mine) == len(second.mine) == 1

    async def all_seen(count: int, *consumers: RawConsumer) -> None:
        async def done() -> bool:
            await both(*consumers)
            return seen == {(partition, offset) for partition in (0, 1) for offset in range(count)}

        await until(done)

    await until(shared)
    for partition in (0, 1):
        await fill(producer, topic, 50, partition)
    await all_seen(50, one, two)
    await two.close()

    async def back() -> bool:
        await both(one)
        return len(first.mine) == 2

    await until(back)
    for partition in (0, 1):
        await fill(producer, topic, 50, partition)
    await all_seen(100, one)
    await one.close()


async def test_ends_and_faults_are_told(settings: Settings, topic: str, producer: AckedProducer) -> None:
    await fill(producer, topic, 3)
    consumer = member(settings, topic, **{"enable.partition.eof": True})
    await consumer.subscribe([topic], Keeper())
    ends: dict[Partition, int] = {}

    async def ended() -> bool:
        ends.update((await consumer.consume(10)).ends)
        return len(ends) == 2

    await until(ended)
    assert ends == {Partition(topic, 0): 3, Partition(topic, 1): 0}
    await consumer.seek(Partition(topic, 0), 1_000)
    faults: list[Any] = []

    async def told_of() -> bool:
        faults.extend((await consumer.consume(10)).faults)
        return bool(faults)

    await until(told_of)
    assert faults[0][0] == Partition(topic, 0)
    assert isinstance(faults[0][1], HistoryLost)
    await consumer.close()


async def test_what_was_fetched_of_a_paused_partition_comes_again(
    settings: Settings, topic: str, producer: AckedProducer
) -> None:
    await fill(producer, topic, 30)
    consumer = member(settings, topic)
    await consumer.subscribe([topic], Keeper())
    offsets = [message.offset() for message in await some(consumer, 5)]
    await consumer.pause([Partition(topic, 0)])
    await consumer.resume([Partition(topic, 0)])
    offsets += [offset for _, offset in await read(consumer, 30 - len(offsets))]
    assert offsets == list(range(30))
    await consumer.close()


async def some(consumer: RawConsumer, count: int) -> list[Any]:
    found: list[Any] = []

    async def more() -> bool:
        found.extend((await consumer.consume(count)).messages)
        return bool(found)

    await until(more)
    return found


async def test_nothing_of_a_closed_consumer_is_kept(settings: Settings, topic: str, producer: AckedProducer) -> None:
    """The fetcher held the client, whose callbacks held all of the role that had subscribed: each restart left one behind."""
    await fill(producer, topic, 5)
    consumer, keeper = member(settings, topic), Keeper()
    await consumer.subscribe([topic], keeper)
    await all_of(consumer, 5)
    await consumer.close()
    left = weakref.ref(keeper)
    del consumer, keeper

    async def gone() -> bool:
        gc.collect()
        return left() is None

    await until(gone)
