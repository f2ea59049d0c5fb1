"""Role match on a real broker, in this process: draining, jumps, torn and foreign state, truncated logs."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiokafka.cluster import ClusterMetadata
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from faust.types import TP

from gapwatch.clock import SystemClock
from gapwatch.core.batches import pack
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import StoreRefused
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.kafka.faust_safety import SafeConsumer
from gapwatch.kafka.topics import ensure_topics, state_topic
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import FORMAT, Batch
from gapwatch.model.suspect import Reason
from gapwatch.roles.match.role import MatchRole
from gapwatch.roles.match.worker import MatchWorker
from tests.integration.broker import until
from tests.integration.match_rig import TUNING, Rig, match_rig
from tests.integration.match_story import LAG_STEPS, MAPPING, PIPELINE, Story, story_settings
from tests.integration.test_match_kill import assert_as_undisturbed

pytestmark = pytest.mark.integration

PARTITIONS = 2


@pytest.fixture
def settings(kafka_bootstrap: str) -> Settings:
    return story_settings(kafka_bootstrap, f"f{uuid.uuid4().hex[:8]}", PARTITIONS)


@pytest.fixture
async def rig(settings: Settings, tmp_path: Path) -> AsyncIterator[Rig]:
    async with match_rig(settings, tmp_path) as made:
        yield made


@pytest.fixture
def logged() -> list[Mapping[str, Any]]:
    """What is logged, as dictionaries with ``event``."""
    lines: list[Mapping[str, Any]] = []

    def keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        lines.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    return lines


@pytest.fixture(autouse=True)
def _unconfigured() -> Any:
    yield
    structlog.reset_defaults()


def events(logged: list[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [line for line in logged if line["event"] == name]


@asynccontextmanager
async def matching(settings: Settings, *, fingerprint: int = MAPPING) -> AsyncIterator[MatchRole]:
    """Run the role while the block runs, then drain it."""
    stop = asyncio.Event()
    role = MatchRole(settings, {PIPELINE: fingerprint}, SystemClock(), stop=stop, tuning=TUNING, name="here")
    running = asyncio.create_task(role.run())
    try:
        yield role
    finally:
        stop.set()
        await running


def holds(role: MatchRole, count: int = PARTITIONS) -> Callable[[], Awaitable[bool]]:
    async def enough() -> bool:
        return len(role.partitions) == count

    return enough


async def test_what_was_said_is_what_an_undisturbed_run_says_and_a_restart_says_nothing_new(settings: Settings, rig: Rig) -> None:
    story = Story(partitions=PARTITIONS, steps=60, keys_per_step=20)
    records = list(story.records())
    async with matching(settings):
        await rig.produce(records[: len(records) // 2])
        await rig.wait_caught_up()
    before = await rig.told()
    async with matching(settings) as role:
        await until(holds(role))
    after = await rig.told()
    assert after.suspects.keys() == before.suspects.keys()
    assert after.holes.keys() == before.holes.keys()
    async with matching(settings):
        await rig.produce(records[len(records) // 2 :])
        await rig.wait_caught_up()
    await assert_as_undisturbed(rig, story)


async def test_draining_leaves_nothing_to_repeat(settings: Settings, rig: Rig) -> None:
    story = Story(partitions=PARTITIONS, steps=40, keys_per_step=20)
    async with matching(settings) as role:
        await until(holds(role))
        await rig.produce(list(story.records()))
        await rig.wait_caught_up()
    assert role.partitions == ()
    assert await rig.caught_up()


async def test_a_status_record_is_written_every_second_without_traffic(settings: Settings, rig: Rig) -> None:
    async with matching(settings):
        await rig.produce(list(Story(partitions=PARTITIONS, steps=5, keys_per_step=5).records()))
        await rig.wait_caught_up()
        before = await rig.told()

        async def rewritten() -> bool:
            now = await rig.told()
            return all(now.statuses[n].written_at >= status.written_at + 1_500 for n, status in before.statuses.items())

        await until(rewritten)
        after = await rig.told()
    assert {n: s.input_offset for n, s in after.statuses.items()} == {n: s.input_offset for n, s in before.statuses.items()}


async def test_trap_39_a_jump_is_healed_in_place(
    settings: Settings, rig: Rig, monkeypatch: pytest.MonkeyPatch, logged: list[Mapping[str, Any]]
) -> None:
    """Offsets 30 to 60 vanish between fetch and agent, once, as Faust's rebalances make them."""
    vanished: set[int] = set()
    stock = SafeConsumer._wait_next_records

    async def lossy(self: Any, timeout: float) -> Any:
        records, active = await stock(self, timeout)
        tp = (settings.topics.events, 0)
        lost = {row.offset for row in records.get(tp, ()) if 30 <= row.offset < 60} - vanished
        if lost:
            vanished.update(lost)
            records = {**records, tp: [row for row in records[tp] if row.offset not in lost]}
        return records, active

    monkeypatch.setattr(SafeConsumer, "_wait_next_records", lossy)
    story = Story(partitions=PARTITIONS, steps=200, keys_per_step=20)
    async with matching(settings):
        await rig.produce(list(story.records()))
        await rig.wait_caught_up()
    assert vanished == set(range(30, 60))
    assert [line["expected"] for line in events(logged, "match_jump_healed")] == [30]
    assert events(logged, "match_worker_failed") == []
    await assert_as_undisturbed(rig, story)


@pytest.mark.parametrize("paused", [1, 2])
async def test_trap_39_what_a_fetch_brings_while_its_partition_is_paused_comes_again(
    settings: Settings, rig: Rig, monkeypatch: pytest.MonkeyPatch, paused: int
) -> None:
    """At the end of a recovery a fetch is under way, all is paused, and the partitions are sought: no record may be used up."""
    seen: list[tuple[int, int]] = []
    taken = MatchWorker._take

    async def note(self: MatchWorker, event: Any) -> None:
        seen.append((event.message.partition, event.message.offset))
        await taken(self, event)

    monkeypatch.setattr(MatchWorker, "_take", note)
    async with matching(settings) as role:
        await until(holds(role))
        await rig.produce(list(Story(partitions=PARTITIONS, steps=20, keys_per_step=5).records()))
        await rig.wait_caught_up()
        wanted = sorted(seen)
        assert role._worker is not None
        consumer = role._worker._app.consumer
        sought = [TP(settings.topics.events, number) for number in range(paused)]
        seen[:] = [place for place in seen if place[0] >= paused]
        consumer.pause_partitions(sought)
        for tp in sought:
            await consumer.seek(tp, 0)
        await asyncio.sleep(1.5)  # longer than a fetch waits
        assert all(number >= paused for number, _ in seen)
        consumer.resume_partitions(sought)

        async def again() -> bool:
            return sorted(set(seen)) == wanted

        await until(again, 10)


async def test_a_log_whose_start_passed_the_position_is_named_and_matching_goes_on(
    settings: Settings, rig: Rig, logged: list[Mapping[str, Any]]
) -> None:
    records = list(Story(partitions=PARTITIONS, steps=60, keys_per_step=20).records())
    third = len(records) // 3
    async with matching(settings):
        await rig.produce(records[:third])
        await rig.wait_caught_up()
    await rig.produce(records[third : 2 * third])
    ends = (await rig.offsets.log_ends(rig.partitions)).ends
    client = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for future in client.delete_records([TopicPartition(at.topic, at.partition, end) for at, end in ends.items()]).values():
        await asyncio.wrap_future(future)
    async with matching(settings):
        await rig.produce(records[2 * third :])
        await rig.wait_caught_up()
    truncated = events(logged, "events_log_truncated")
    assert {line["partition"]: line["start"] for line in truncated} == {at.partition: end for at, end in ends.items()}
    assert events(logged, "match_worker_failed") == []


async def test_state_of_another_log_is_not_used(settings: Settings, rig: Rig, logged: list[Mapping[str, Any]]) -> None:
    async with matching(settings):
        await rig.produce(list(Story(partitions=PARTITIONS, steps=60, keys_per_step=20).records()))
        await rig.wait_caught_up()
    client = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for topic in (settings.topics.events, settings.topics.suspects, settings.topics.status):
        await asyncio.wrap_future(client.delete_topics([topic])[topic])

    async def recreated() -> bool:
        try:
            await ensure_topics(settings)
        except StoreRefused:
            return False
        return True

    await until(recreated)
    story = Story(partitions=PARTITIONS, steps=40, keys_per_step=20, seed=5)
    async with matching(settings):
        await rig.produce(list(story.records()))
        await rig.wait_caught_up()
    assert {line["partition"] for line in events(logged, "match_state_of_another_log")} == set(range(PARTITIONS))
    await assert_as_undisturbed(rig, story)
    async with matching(settings) as role:  # and nothing of the old state is found again
        await until(holds(role))
    assert len(events(logged, "match_state_of_another_log")) == PARTITIONS


async def test_torn_state_is_read_once_more_and_then_given_up(
    settings: Settings, rig: Rig, logged: list[Mapping[str, Any]]
) -> None:
    story = Story(partitions=PARTITIONS, steps=60, keys_per_step=20)
    records = list(story.records(end=False))
    async with matching(settings):
        await rig.produce(records)
        await rig.wait_caught_up()
    keys = await changelog_keys(rig, 1)
    producer = AckedProducer(settings, client_id="vandal")
    await producer.start()
    await (await producer.send(state_topic(settings), sorted(keys - {b"1/marker"})[0], None, partition=1))
    await producer.close()
    async with matching(settings) as role:
        await until(holds(role))
        await rig.produce(list(story.ending()))
        await rig.wait_caught_up()
    assert len(events(logged, "match_worker_failed")) == 1
    assert [line["partition"] for line in events(logged, "match_state_lost")] == [1]


async def changelog_keys(rig: Rig, partition: int) -> set[bytes]:
    consumer = RawConsumer(rig.settings, client_id="keys")
    at = Partition(state_topic(rig.settings), partition)
    start, end = await consumer.log_range(at)
    await consumer.assign({at: start})
    keys: set[bytes] = set()

    async def read() -> bool:
        last = -1
        for message in (await consumer.consume(1_000)).messages:
            keys.add(message.key() or b"")
            last = message.offset() or 0
        return last + 1 >= end

    await until(read)
    await consumer.close()
    return keys


async def test_an_unreadable_record_is_passed_over_and_named(
    settings: Settings, rig: Rig, logged: list[Mapping[str, Any]]
) -> None:
    story = Story(partitions=PARTITIONS, steps=20, keys_per_step=20)
    records = list(story.records())
    async with matching(settings):
        await rig.produce(records[:20])
        await send(settings, 0, b"\xc1 not ours")
        await rig.produce(records[20:])
        await rig.wait_caught_up()
    assert [line["partition"] for line in events(logged, "events_record_unreadable")] == [0]


async def test_a_record_of_a_later_format_stops_the_worker(settings: Settings, rig: Rig, logged: list[Mapping[str, Any]]) -> None:
    """An old worker must not pass over what a new ingester says."""
    await send(settings, 0, pack(Batch(format=FORMAT + 1, sections=[], verdicts=[])))
    async with matching(settings):

        async def failed() -> bool:
            return bool(events(logged, "match_worker_failed"))

        await until(failed)
    assert "Upgrade this worker" in events(logged, "match_worker_failed")[0]["reason"]
    assert not await rig.caught_up()


async def send(settings: Settings, partition: int, value: bytes) -> None:
    producer = AckedProducer(settings, client_id="one-record")
    await producer.start()
    await (await producer.send(settings.topics.events, None, value, partition=partition))
    await producer.close()


async def test_k4_matching_goes_on_by_itself_after_the_broker_was_away(
    settings: Settings, rig: Rig, stack: EmbeddedStack
) -> None:
    """In a process of its own, as always: Faust's threads end with exceptions when a broker goes."""
    story = Story(partitions=PARTITIONS, steps=100, keys_per_step=20)
    records = list(story.records())
    half = len(records) // 2
    name = rig.start_worker()
    await rig.produce(records[:half])
    await rig.wait_caught_up()
    await asyncio.to_thread(stack.kafka.kill)

    async def noticed() -> bool:
        return "match_checkpoint_postponed" in rig.log(name) or "match_worker_failed" in rig.log(name)

    try:
        await until(noticed)
    finally:
        await asyncio.to_thread(stack.kafka.start)
    await rig.produce(records[half:])
    await rig.wait_caught_up()
    await assert_as_undisturbed(rig, story)
    assert await rig.terminate(name) == 0


@pytest.mark.parametrize("seconds", [1.0, 7.0], ids=["for a moment", "for longer than a worker waits"])
async def test_a_topic_that_the_metadata_lack_is_waited_for(
    settings: Settings, rig: Rig, monkeypatch: pytest.MonkeyPatch, logged: list[Mapping[str, Any]], seconds: float
) -> None:
    """As of a broker that has just come back: the topic is there, and the metadata do not name it yet."""
    update, clock = ClusterMetadata.update_metadata, SystemClock()
    asked: list[float] = []

    def without_events(self: Any, metadata: Any) -> None:
        if any(topic[1] == settings.topics.events for topic in metadata.topics):
            asked.append(clock.monotonic())
            if clock.monotonic() < asked[0] + seconds:
                metadata.topics = [topic for topic in metadata.topics if topic[1] != settings.topics.events]
        update(self, metadata)

    monkeypatch.setattr(ClusterMetadata, "update_metadata", without_events)
    async with matching(settings) as role:
        await until(holds(role), 40)
    taken = [set(line["partitions"]) for line in events(logged, "match_partitions_taken")]
    assert taken == [set(range(PARTITIONS))], "nobody was content without them"
    reasons = {str(line["reason"]) for line in events(logged, "match_worker_failed")}
    assert all(f"do not name {settings.topics.events}" in reason for reason in reasons)
    assert bool(reasons) == (seconds > TUNING.session_seconds)


async def test_a_changed_mapping_is_not_compared_with_the_old_one(settings: Settings, rig: Rig) -> None:
    """The state holds digests of the old mapping; what comes with the new one raises for that reason, and is no mismatch."""
    story = Story(partitions=PARTITIONS, steps=LAG_STEPS, keys_per_step=20)
    async with matching(settings):
        await rig.produce(list(story.records(end=False)))
        await rig.wait_caught_up()
    story.mapping = MAPPING + 1
    async with matching(settings, fingerprint=MAPPING + 1):
        await rig.produce(list(story.ending()))
        await rig.wait_caught_up()
    reasons = Counter(suspect.reason for suspect in (await rig.told()).suspects.values())
    assert reasons[Reason.MAPPING] > 0
    assert set(reasons) <= {Reason.MAPPING, Reason.UNSATISFIED, Reason.UNEXPLAINED}
