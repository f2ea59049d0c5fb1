"""Producer, consumer, positions and topics against a real broker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Mapping

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from gapwatch.clock import SystemClock
from gapwatch.errors import GapwatchError, HistoryLost, ProtocolError, StoreRefused, StoreUnreachable
from gapwatch.kafka.clients import AckedProducer, Committed, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import TopicAdmin, TopicPlan, ensure_topics, topic_plans
from gapwatch.model.pipeline import Settings, TopicsSpec
from gapwatch_connectors.opensearch.acks import heartbeat
from tests.integration.broker import until

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(kafka_bootstrap: str) -> Settings:
    return Settings(bootstrap_servers=kafka_bootstrap, topics=TopicsSpec(prefix=f"t{uuid.uuid4().hex[:8]}", partitions=2))


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


async def fill(producer: AckedProducer, topic: str, count: int, partition: int = 0) -> None:
    await asyncio.gather(*[await producer.send(topic, b"k", b"%d" % n, partition=partition) for n in range(count)])


class Keeper:
    """A rebalance handler that starts at the committed position or at the log's start, and commits what it was told."""

    def __init__(self) -> None:
        self.mine: set[Partition] = set()
        self.seen: Mapping[Partition, Committed | None] = {}
        self.to_commit: dict[Partition, Committed] = {}

    async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
        self.mine, self.seen = set(committed), committed
        return {at: position.offset if position else 0 for at, position in committed.items()}

    async def revoked(self, partitions: Collection[Partition], *, lost: bool) -> Mapping[Partition, Committed]:
        self.mine -= set(partitions)
        return {} if lost else self.to_commit


async def read(consumer: RawConsumer, count: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    async def more() -> bool:
        polled = await consumer.consume(1_000)
        assert not polled.faults
        found.extend((message.partition() or 0, message.offset() or 0) for message in polled.messages)
        return len(found) >= count

    await until(more)
    return found


async def test_an_acknowledged_record_lies_where_the_future_says(producer: AckedProducer, topic: str, settings: Settings) -> None:
    future = await producer.send(topic, b"key", b"value", headers=[("h", b"1")], partition=1, timestamp=1_700_000_000_000)
    delivered = await future
    consumer = RawConsumer(settings, client_id="reader")
    await consumer.assign({Partition(topic, 1): delivered.offset})
    messages: list[Message] = []

    async def arrived() -> bool:
        messages.extend((await consumer.consume(10)).messages)
        return bool(messages)

    await until(arrived)
    await consumer.close()
    (message,) = messages
    assert (message.key(), message.value(), message.headers()) == (b"key", b"value", [("h", b"1")])
    assert message.timestamp()[1] == 1_700_000_000_000


async def test_the_producer_holds_the_sender_up_at_its_bound(settings: Settings, topic: str) -> None:
    producer = AckedProducer(settings, client_id="bounded", in_flight_max=10)
    await producer.start()
    highest = 0
    for n in range(500):
        await producer.send(topic, None, b"%d" % n, partition=0)
        highest = max(highest, producer.in_flight)
    await producer.flush()
    assert highest <= 10
    assert producer.in_flight == 0
    ends = await OffsetReader(settings, SystemClock()).log_ends([Partition(topic, 0)])
    assert ends.ends == {Partition(topic, 0): 500}
    await producer.close()


async def test_a_delivery_error_ends_the_producer(settings: Settings) -> None:
    """A later message must never pass a lost one: the ingester ends before its next control record."""
    producer = AckedProducer(Settings(bootstrap_servers="127.0.0.1:1"), client_id="deaf", delivery_seconds=0.5)
    await producer.start()
    future = await producer.send("nowhere", None, b"1", partition=0)
    with pytest.raises(StoreUnreachable):
        await future
    with pytest.raises(StoreUnreachable):
        await producer.send("nowhere", None, b"2", partition=0)
    with pytest.raises(StoreUnreachable):
        await producer.flush()
    assert producer.failure is not None
    await producer.close()


async def test_without_a_time_out_records_wait_for_the_broker_and_closing_cancels_them() -> None:
    producer = AckedProducer(Settings(bootstrap_servers="127.0.0.1:1"), client_id="waiting")
    await producer.start()
    future = await producer.send("nowhere", None, b"1", partition=0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(future), 1)
    await producer.close()
    assert future.cancelled()
    with pytest.raises(ProtocolError):
        await producer.send("nowhere", None, b"2")


async def test_a_record_that_is_too_large_is_refused(producer: AckedProducer, topic: str) -> None:
    with pytest.raises(StoreRefused, match=r"max\.message\.bytes"):
        await producer.send(topic, None, b"x" * 9_000_000)


async def test_a_group_member_commits_what_its_handler_says_and_the_next_one_starts_there(
    settings: Settings, producer: AckedProducer, topic: str
) -> None:
    await fill(producer, topic, 10)
    keeper = Keeper()
    consumer = RawConsumer(settings, client_id="one", group="g1-" + topic)
    await consumer.subscribe([topic], keeper)
    await read(consumer, 10)
    assert keeper.mine == {Partition(topic, 0), Partition(topic, 1)}
    assert await consumer.commit({Partition(topic, 0): Committed(4, "seen 4")})
    assert (await consumer.committed(keeper.mine))[Partition(topic, 0)] == Committed(4, "seen 4")
    keeper.to_commit = {Partition(topic, 0): Committed(7, "at the end")}
    await consumer.close()
    assert keeper.mine == set()

    second = Keeper()
    consumer = RawConsumer(settings, client_id="two", group="g1-" + topic)
    await consumer.subscribe([topic], second)
    assert await read(consumer, 3) == [(0, 7), (0, 8), (0, 9)]
    assert second.seen == {Partition(topic, 0): Committed(7, "at the end"), Partition(topic, 1): None}
    await consumer.close()


async def test_what_is_handed_back_is_committed_though_a_rebalance_was_under_way(settings: Settings, topic: str) -> None:
    """It is closed right after it subscribed anew. librdkafka alone has that commit refused, and may then never return."""
    other = f"{topic}-other"
    await TopicAdmin(settings).ensure([TopicPlan(name=other, partitions=1, settings={"cleanup.policy": "delete"})])
    keeper = Keeper()
    consumer = RawConsumer(settings, client_id="one", group="g5-" + topic)
    await consumer.subscribe([topic, other], keeper)

    async def all_three() -> bool:
        await consumer.consume(1)
        return len(keeper.mine) == 3

    await until(all_three)
    keeper.to_commit = {Partition(topic, 0): Committed(0, "handed back")}
    await consumer.subscribe([other], keeper)
    await consumer.close()
    assert keeper.mine == set()
    after = RawConsumer(settings, client_id="two", group="g5-" + topic)
    assert await after.committed([Partition(topic, 0)]) == {Partition(topic, 0): Committed(0, "handed back")}
    await after.close()


async def test_partitions_move_to_a_second_member(settings: Settings, topic: str) -> None:
    first, second = Keeper(), Keeper()
    one = RawConsumer(settings, client_id="one", group="g2-" + topic)
    two = RawConsumer(settings, client_id="two", group="g2-" + topic)
    await one.subscribe([topic], first)
    await two.subscribe([topic], second)

    async def shared() -> bool:
        await asyncio.gather(one.consume(1), two.consume(1))
        return len(first.mine) == len(second.mine) == 1

    await until(shared)
    assert first.mine | second.mine == {Partition(topic, 0), Partition(topic, 1)}
    await two.close()

    async def back() -> bool:
        await one.consume(1)
        return len(first.mine) == 2

    await until(back)
    await one.close()


async def test_an_error_in_a_rebalance_handler_reaches_the_owner(settings: Settings, topic: str) -> None:
    class Failing(Keeper):
        async def assigned(self, committed: Mapping[Partition, Committed | None]) -> Mapping[Partition, int]:
            raise HistoryLost("gone")

    consumer = RawConsumer(settings, client_id="failing", group="g3-" + topic)
    await consumer.subscribe([topic], Failing())

    async def never() -> bool:
        await consumer.consume(1)
        return False

    with pytest.raises(HistoryLost, match="gone"):
        await until(never)
    await consumer.close()


async def test_a_position_outside_the_log_is_a_fault_not_a_reset(settings: Settings, producer: AckedProducer, topic: str) -> None:
    """Trap 13: librdkafka's default would go on somewhere else, silently."""
    await fill(producer, topic, 5)
    consumer = RawConsumer(settings, client_id="beyond")
    await consumer.assign({Partition(topic, 0): 1_000})
    faults: list[tuple[Partition | None, GapwatchError]] = []

    async def told() -> bool:
        polled = await consumer.consume(10)
        assert not polled.messages
        faults.extend(polled.faults)
        return bool(faults)

    await until(told)
    await consumer.close()
    assert faults[0][0] == Partition(topic, 0)
    assert isinstance(faults[0][1], HistoryLost)


async def test_positions_that_an_indexers_heartbeats_say(settings: Settings, producer: AckedProducer, topic: str) -> None:
    """The newest that names a partition counts, in whatever order they come; they go back with their indexer."""
    reader, at, other = OffsetReader(settings, SystemClock()), Partition("rows", 0), Partition("rows", 1)

    async def send(*values: bytes) -> None:
        for value in values:
            await (await producer.send(topic, None, value, partition=0))

    async def becomes(expected: dict[Partition, int | None]) -> None:
        async def said() -> bool:
            return (await reader.acked(topic, list(expected))).positions == expected

        await until(said)

    with pytest.raises(StoreRefused):
        await reader.acked(f"no-{topic}", [at])
    await send(b'{"op": "delete", "id": "1", "time": 1}', heartbeat(100, "a", delivered={"rows": {0: 7}}))
    await becomes({at: 7, other: None})
    await send(heartbeat(90, "gone", delivered={"rows": {0: 3}}), b'{"heartbeat": "now"}', heartbeat(110, "b"))
    await send(heartbeat(120, "b", delivered={"rows": {1: 5}, "others": {0: 1}}))
    await becomes({at: 7, other: 5})
    await send(heartbeat(130, "a", delivered={"rows": {0: 2}}))
    await becomes({at: 2, other: 5})
    again = OffsetReader(settings, SystemClock())
    first = (await again.acked(topic, [at])).clock
    assert first >= 1_700_000_000_000

    async def known() -> bool:
        return (await again.acked(topic, [at, other])).positions == {at: 2, other: 5}

    await until(known)
    for one in (reader, again):
        await one.close()


async def test_positions_of_a_group_and_of_one_that_does_not_exist(
    settings: Settings, producer: AckedProducer, topic: str
) -> None:
    await fill(producer, topic, 3)
    at = Partition(topic, 0)
    keeper = Keeper()
    consumer = RawConsumer(settings, client_id="sink", group="sink-" + topic)
    await consumer.subscribe([topic], keeper)
    await read(consumer, 3)
    assert await consumer.commit({at: Committed(2)})
    reader = OffsetReader(settings, SystemClock())
    before = SystemClock().now_ms()
    found = await reader.delivery("sink-" + topic, [at, Partition(topic, 1)])
    assert found.positions == {at: 2, Partition(topic, 1): None}
    assert found.clock >= before
    absent = await reader.delivery("nobody-" + topic, [at])
    assert absent.positions == {at: None}
    assert (await reader.log_starts([at])) == {at: 0}
    assert await consumer.log_range(at) == (0, 3)
    assert await consumer.partitions(topic) == (0, 1)
    await consumer.close()


async def test_a_missing_topic_is_named(settings: Settings) -> None:
    consumer = RawConsumer(settings, client_id="misspelt")
    with pytest.raises(StoreRefused, match="no-such-topic"):
        await consumer.partitions("no-such-topic")
    await consumer.close()
    with pytest.raises(ProtocolError):
        await consumer.partitions("no-such-topic")


async def test_offsets_at_a_time(settings: Settings, producer: AckedProducer, topic: str) -> None:
    for n in range(3):
        await (await producer.send(topic, None, b"x", partition=0, timestamp=1_000_000 + n * 1_000))
    consumer = RawConsumer(settings, client_id="replay")
    found = await consumer.offsets_at([Partition(topic, 0), Partition(topic, 1)], 1_001_000)
    await consumer.close()
    assert found == {Partition(topic, 0): 1, Partition(topic, 1): None}


async def test_topics_are_created_once_with_stated_settings(settings: Settings) -> None:
    assert await ensure_topics(settings) == ()
    assert await ensure_topics(settings) == ()
    admin = TopicAdmin(settings)
    found = await admin.describe([plan.name for plan in topic_plans(settings)] + ["absent"])
    assert {name: facts.partitions for name, facts in found.items()} == {
        plan.name: plan.partitions for plan in topic_plans(settings)
    }
    assert len({facts.topic_id for facts in found.values()}) == len(found)
    assert await admin.inspect() == ()


async def test_another_partition_count_is_refused_with_its_remedy(settings: Settings) -> None:
    await ensure_topics(settings)
    other = Settings(bootstrap_servers=settings.bootstrap_servers, topics=TopicsSpec(prefix=settings.topics.prefix, partitions=4))
    with pytest.raises(StoreRefused, match=r"has 2 partitions, but the configuration says 4.*kafka.partitions to 2"):
        await ensure_topics(other)


async def test_a_log_that_is_compacted_is_refused_and_a_shorter_retention_is_advised(settings: Settings) -> None:
    admin = TopicAdmin(settings)
    events = next(plan for plan in topic_plans(settings) if plan.name == settings.topics.events)
    shorter = TopicPlan(name=events.name, partitions=2, settings={**events.settings, "retention.ms": "60000"})
    await admin.ensure([shorter])
    (advice,) = await admin.ensure([events])
    assert advice.level == "warning"
    assert "retention.ms=60000" in advice.message
    await admin.apply_settings(TopicPlan(name=events.name, partitions=2, settings={"cleanup.policy": "compact"}))
    with pytest.raises(StoreRefused, match=r"cleanup.policy=compact.*cleanup.policy=delete"):
        await admin.ensure([events])
    assert any(found.level == "error" for found in await admin.inspect())


async def test_a_topic_made_anew_has_another_id(settings: Settings, topic: str) -> None:
    admin = TopicAdmin(settings)
    before = (await admin.describe([topic]))[topic].topic_id
    client = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    await asyncio.wrap_future(client.delete_topics([topic])[topic])

    async def gone() -> bool:
        return not await admin.describe([topic])

    await until(gone)
    await admin.ensure([TopicPlan(name=topic, partitions=2, settings={"cleanup.policy": "delete"})])
    assert (await admin.describe([topic]))[topic].topic_id != before


async def test_an_unknown_option_is_named(kafka_bootstrap: str) -> None:
    wrong = Settings(bootstrap_servers=kafka_bootstrap, kafka_options={"no.such.option": "1"})
    with pytest.raises(StoreRefused, match=r"no\.such\.option"):
        TopicAdmin(wrong)
    with pytest.raises(StoreRefused, match=r"no\.such\.option"):
        RawConsumer(wrong, client_id="x")
    with pytest.raises(StoreRefused, match=r"no\.such\.option"):
        await AckedProducer(wrong, client_id="x").start()


async def test_the_end_of_a_partition_is_told_when_asked_for(settings: Settings, producer: AckedProducer, topic: str) -> None:
    await fill(producer, topic, 3)
    consumer = RawConsumer(settings, client_id="ends", options={"enable.partition.eof": True})
    await consumer.assign({Partition(topic, 0): 0, Partition(topic, 1): 0})
    ends: dict[Partition, int] = {}

    async def both() -> bool:
        polled = await consumer.consume(10)
        assert not polled.faults
        ends.update(polled.ends)
        return len(ends) == 2

    await until(both)
    await consumer.close()
    assert ends == {Partition(topic, 0): 3, Partition(topic, 1): 0}
