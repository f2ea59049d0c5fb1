"""The order in which a checkpoint becomes durable, and that nothing later happens when a step fails."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import faust
import pytest

from gapwatch.clock import SystemClock
from gapwatch.core import segments
from gapwatch.core.batches import pack, read
from gapwatch.core.matching import KeyMatcher
from gapwatch.errors import ProtocolError, StoreUnreachable
from gapwatch.kafka.clients import Delivered
from gapwatch.kafka.faust_safety import StateTable
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import Batch, Control, PackedBatch
from gapwatch.roles.match import checkpointer as checkpointer_module
from gapwatch.roles.match.checkpointer import Checkpointer
from gapwatch.roles.match.held import Held
from gapwatch.roles.match.journal import Journal, rank_of
from gapwatch.roles.match.outlet import Outlet
from tests.integration.match_story import MAPPING, PIPELINE, Story, story_settings
from tests.simulation.stores import VirtualClock

SETTINGS: Settings = story_settings("127.0.0.1:1", "u", 1)


class Event:
    def __init__(self, offset: int, seen: list[str]) -> None:
        self.offset = offset
        self._seen = seen

    def ack(self) -> None:
        self._seen.append(f"ack {self.offset}")


class Broker:
    """Stands where both producers end: notes each record, and acknowledges it, or fails from the one of a kind on."""

    def __init__(self, fails: str = "") -> None:
        self.seen: list[str] = []
        self.fails = fails
        self.changelog: dict[bytes, bytes] = {}
        self.waiting: list[asyncio.Future[Any]] = []

    def take(self, kind: str) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.seen.append(kind)
        if kind == self.fails:
            future.set_exception(StoreUnreachable("away", store="kafka"))
        else:
            asyncio.get_running_loop().call_soon(self._acknowledge, kind, future)
        return future

    def _acknowledge(self, kind: str, future: asyncio.Future[Any]) -> None:
        self.seen.append(f"{kind} acknowledged")
        future.set_result(None)

    async def send(self, topic: str, key: bytes, value: bytes) -> asyncio.Future[Delivered]:
        return self.take(topic.rpartition(".")[2])

    async def send_state(self, partition: int, key: bytes, value: bytes | None) -> asyncio.Future[Any]:
        self.changelog[key] = value or b""
        return self.take("marker" if key.endswith(b"/marker") else "state")


def rig(broker: Broker, *, owns: bool = True, records: int | None = None) -> tuple[Checkpointer, Held, StateTable]:
    app = faust.App("unit", broker="kafka://127.0.0.1:1", store="memory://", autodiscover=False, Table=StateTable)
    table: StateTable = app.Table("state", key_type=bytes, value_type=bytes, partitions=1)
    table.send, table.rank = broker.send_state, rank_of
    matcher = KeyMatcher(0, 1, SETTINGS.pipelines, fingerprints={PIPELINE: MAPPING}, life="one")
    held = Held(partition=0, matcher=matcher, journal=Journal(0), expected=0)
    for offset, (_, record) in enumerate(list(Story(partitions=1, steps=20, keys_per_step=20).records())[:records]):
        held.apply(as_read(record), offset, 1_700_000_000_000 + offset, Event(offset, broker.seen))
    outlet = Outlet(broker, SETTINGS.topics)  # type: ignore[arg-type]
    checkpointer = Checkpointer({0: held}, table, outlet, SystemClock(), worker="w", topic_id=lambda: "T", owns=lambda: owns)
    return checkpointer, held, table


def as_read(record: Batch | Control) -> PackedBatch | Control:
    return read(pack(record))


ORDER = ["suspects", "status", "state", "marker", "ack"]


def spans(seen: list[str]) -> dict[str, tuple[int, int]]:
    """Return first and last place of each kind, acknowledgements included."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(seen):
        places.setdefault(name.split()[0], []).append(place)
    return {kind: (min(found), max(found)) for kind, found in places.items()}


async def test_each_step_begins_when_the_one_before_is_acknowledged() -> None:
    broker = Broker()
    checkpointer, held, _ = rig(broker)
    count = len(held.events)
    assert await checkpointer.run()
    found = spans(broker.seen)
    assert list(found) == ORDER
    for earlier, later in itertools.pairwise(ORDER):
        assert found[earlier][1] < found[later][0]
    assert [line for line in broker.seen if line.startswith("ack ")] == [f"ack {offset}" for offset in range(count)]
    assert held.events == []
    assert held.said == []


@pytest.mark.parametrize("fails", ORDER[:-1])
async def test_after_a_failed_step_nothing_later_happens(fails: str) -> None:
    broker = Broker(fails)
    checkpointer, _, _ = rig(broker)
    with pytest.raises(StoreUnreachable):
        await checkpointer.run()
    assert not set(spans(broker.seen)) & set(ORDER[ORDER.index(fails) + 1 :])
    seen = list(broker.seen)
    with pytest.raises(ProtocolError):  # another task may wait for its turn: it must not write a marker over what is lost
        await checkpointer.run()
    with pytest.raises(ProtocolError):
        await checkpointer.say()
    assert broker.seen == seen


async def test_a_worker_that_the_group_did_not_answer_writes_nothing() -> None:
    broker = Broker()
    checkpointer, held, _ = rig(broker, owns=False)
    assert not await checkpointer.run()
    assert broker.seen == []
    assert held.events


async def test_what_is_applied_during_a_checkpoint_waits_for_the_next() -> None:
    broker = Broker()
    checkpointer, held, _ = rig(broker, records=10)
    running = asyncio.create_task(checkpointer.run())
    await asyncio.sleep(0)  # to the first thing that it waits for
    assert broker.seen
    assert not running.done()
    held.apply(as_read(list(Story(partitions=1, steps=20, keys_per_step=20).records())[10][1]), 10, 0, Event(10, broker.seen))
    await running
    assert "ack 9" in broker.seen
    assert "ack 10" not in broker.seen
    assert await checkpointer.run()
    assert broker.seen[-1] == "ack 10"


async def test_suspects_are_raised_before_their_checkpoint_and_once() -> None:
    broker = Broker()
    checkpointer, held, _ = rig(broker)
    count, said = len(held.events), len(held.said)
    assert said
    assert await checkpointer.say()
    assert broker.seen == ["suspects"] * said + ["suspects acknowledged"] * said
    assert len(held.events) == count, "nothing is acknowledged before its checkpoint"
    assert await checkpointer.run()
    assert broker.seen.count("suspects") == said
    assert list(spans(broker.seen)) == ORDER
    assert await checkpointer.say()
    assert broker.seen.count("suspects") == said


async def test_what_could_not_be_raised_ends_the_worker_and_leaves_its_records_to_the_next() -> None:
    broker = Broker("suspects")
    checkpointer, held, _ = rig(broker)
    with pytest.raises(StoreUnreachable):
        await checkpointer.say()
    assert held.events
    with pytest.raises(ProtocolError):
        await checkpointer.run()
    assert not [line for line in broker.seen if line.startswith("ack ")]


async def test_a_worker_that_the_group_did_not_answer_raises_nothing_and_forgets_nothing() -> None:
    broker = Broker()
    checkpointer, held, _ = rig(broker, owns=False)
    assert not await checkpointer.say()
    assert broker.seen == []
    assert held.said


async def test_without_new_records_only_the_status_is_written() -> None:
    broker = Broker()
    checkpointer, _, _ = rig(broker)
    await checkpointer.run()
    broker.seen.clear()
    assert await checkpointer.run()
    assert broker.seen == ["status", "status acknowledged"]


async def test_of_control_records_alone_the_status_is_shown_and_the_rest_is_left_to_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A marker holds every feed of every pipeline: at rest it was most of what a checkpoint wrote, twenty times a minute."""
    broker, clock = Broker(), VirtualClock()
    checkpointer, held, _ = rig(broker)
    monkeypatch.setattr(checkpointer, "_clock", clock)
    await checkpointer.run()
    told = [record for _, record in Story(partitions=1, steps=20, keys_per_step=20).records()]
    control = next(record for record in told if isinstance(record, Control))
    written = next(record for record in told if isinstance(record, Batch))

    async def after(seconds: float, record: Batch | Control = control, *, everything: bool = False) -> list[str]:
        await clock.sleep(seconds)
        broker.seen.clear()
        offset = held.expected
        held.apply(as_read(record), offset, 1_700_000_000_000 + offset, Event(offset, broker.seen))
        assert await checkpointer.run(everything=everything)
        assert held.shown == held.applied
        return sorted({line.split()[0] for line in broker.seen})

    assert await after(0) == ["status"]
    assert await after(5) == ["status"]
    assert await after(checkpointer_module.MARK_SECONDS - 5) == ["ack", "marker", "status"]
    assert [line for line in broker.seen if line.startswith("ack")] == [f"ack {held.applied - left}" for left in (2, 1, 0)]
    assert await after(1) == ["status"]
    assert await after(1, everything=True) == ["ack", "marker", "status"], "the partition is given up"
    assert await after(1) == ["status"]
    assert {"ack", "marker", "status"} <= set(await after(1, written)), "what was written is made durable at once"
    assert not held.events


async def test_the_state_restores_to_what_was_checkpointed() -> None:
    broker = Broker()
    checkpointer, held, _ = rig(broker)
    await checkpointer.run()
    found = Journal(0).restore(broker.changelog.items())
    assert found is not None
    assert (found.applied, found.topic_id) == (held.applied, "T")
    again = KeyMatcher.restore(
        0, 1, SETTINGS.pipelines, fingerprints={PIPELINE: MAPPING}, records=found.records, marker=found.marker, life="two"
    )
    again.advance()
    assert again.status("w", 0)[0].pending == held.matcher.status("w", 0)[0].pending
    assert again.applied == held.applied


async def test_only_so_much_of_the_state_is_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer_module, "UNDER_WAY_BYTES_MAX", 1)
    monkeypatch.setattr(segments, "RECORD_BYTES_MAX", 1_000)
    broker = Broker()
    checkpointer, _, _ = rig(broker)
    assert await checkpointer.run()
    state = [line for line in broker.seen if line.startswith("state")]
    assert len(state) > 4
    assert state == ["state", "state acknowledged"] * (len(state) // 2)


async def test_memory_is_given_back_seldom_while_much_is_written_and_once_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each checkpoint it cost a reader of a backlog some four hundredths: what was given back was asked for again."""
    seconds, given = [0.0], list[float]()
    checkpointer, _, _ = rig(Broker())
    monkeypatch.setattr(checkpointer, "_clock", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(checkpointer, "_gave_back", 0.0)
    monkeypatch.setattr(checkpointer_module, "give_back", lambda: given.append(seconds[0]))
    large = checkpointer_module.GIVE_BACK_BYTES + 1
    for second, written in ((1, large), (9, large), (10, large), (11, large), (12, 0), (13, 0), (30, 0), (31, large), (32, 0)):
        seconds[0] = float(second)
        checkpointer._give_back(written)
    assert given == [10.0, 12.0, 31.0]
