"""From messages to sections: ranges, repetitions, broken histories and records that nobody understands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message

from gapwatch.core.batches import unpack
from gapwatch.core.envelopes import Event
from gapwatch.core.feeds import FeedProgress, StandingEnd
from gapwatch.core.keys import partition_of
from gapwatch.core.matching import KeyMatcher
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.producer import CONTENT_BYTES_MAX
from gapwatch.model.gap import FindingRecord
from gapwatch.model.pipeline import FieldSpec, FieldType, Settings
from gapwatch.model.stream import BYTES_PER_RECORD_MAX, Batch, Control, Letter, Operation, Section
from gapwatch.model.suspect import Hole
from gapwatch.roles.ingest.intake import Intake
from gapwatch.roles.ingest.outlet import Outlet
from gapwatch.roles.ingest.parts import REST_AFTER_SECONDS, IngestDependencies, Owned, Shared
from tests.unit.core.samples import COMMITTED, TOPIC, change, pipeline

AT = Partition(TOPIC, 0)


class Rig:
    """The intake with its outlet; what would go to Kafka and to the ledger is kept."""

    def __init__(self, *, letters: str = "") -> None:
        self.sent: list[tuple[str, int, bytes | None]] = []
        self.buried: list[tuple[bytes | None, bytes | None, dict[str, bytes]]] = []
        self.findings: list[FindingRecord] = []
        self.begun: dict[int, int] = {}  # epochs by the offset where they begin
        self.unparsable: list[str] = []
        self.stirred: list[str] = []
        self.pause = 0.0
        self.seconds = 0.0
        spec = pipeline(FieldSpec(target="name", source="name", type=FieldType.TEXT))
        spec = replace(spec, target=replace(spec.target, dead_letter_topic=letters))
        settings = Settings(bootstrap_servers="", pipelines={"orders": spec})
        dependencies = SimpleNamespace(
            settings=settings,
            pipelines=settings.pipelines,
            producer=SimpleNamespace(send=self._send),
            ledger=SimpleNamespace(epoch=self._epoch, raise_finding=self._finding),
            clock=SimpleNamespace(
                now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
                now_ms=lambda: COMMITTED,
                monotonic=lambda: self.seconds,
                sleep=lambda _: asyncio.sleep(self.pause),
            ),
            name="one",
            on_finding=lambda *_: None,
            on_unparsable=self.unparsable.append,
            native=None,
            on_stir=self.stirred.append,
        )
        self.shared = Shared(cast("IngestDependencies", dependencies))
        self.outlet = Outlet(self.shared)
        self.intake = Intake(self.shared, self.outlet)
        self.progress = FeedProgress(topic=TOPIC, partition=0, partitions=1, epoch=1, position=5, sent=5, disorder_ms=200)
        self.shared.owned[AT] = Owned(progress=self.progress, topic_id="id", end=StandingEnd(500))

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, *, partition: int = -1, headers: Any = (), **_: Any
    ) -> Any:
        self.sent.append((topic, partition, value))
        if topic.endswith(".dlq"):
            self.buried.append((key, value, dict(headers)))
        return asyncio.get_running_loop().create_future()

    def _epoch(self, feed: str, partition: int, topic_id: str, offset: int, *, after: int) -> int:
        return self.begun.setdefault(offset, max(6, after, *self.begun.values()) + 1)

    def _finding(self, record: FindingRecord) -> bool:
        self.findings.append(record)
        return True

    async def take(self, *messages: Message, at: Partition = AT) -> None:
        await self.intake.take(at, messages)
        await self.outlet.send_sections(self.shared.owned.values())

    def add(self, offset: int, key: bytes, events: int) -> None:
        """Let one raw record say so much of one key."""
        binding, partition = self.shared.bindings[TOPIC][0], partition_of(key, self.shared.on.settings.topics.partitions)
        builder = self.intake._builder(binding, self.shared.owned[AT], partition)
        for number in range(events):
            builder.add(
                Event(key, Operation.UPSERT, offset, number, COMMITTED, bytes(16), None, None, None, None), offset, COMMITTED + 1
            )
        self.progress.read_to(offset + 1)

    def matched(self) -> list[Sequence[Any]]:
        """Return what the matcher of each partition says of what was sent to it."""
        on, told = self.shared.on, list[Sequence[Any]]()
        fingerprints = {"orders": self.shared.bindings[TOPIC][0].fingerprint}
        for partition in range(on.settings.topics.partitions):
            matcher = KeyMatcher(partition, on.settings.topics.partitions, on.pipelines, fingerprints=fingerprints, life="0")
            log = [value or b"" for topic, at, value in self.sent if topic.endswith(".events") and at == partition]
            told.append([one for number, value in enumerate(log) for one in matcher.apply(unpack(value), number, COMMITTED)])
            assert matcher.buffered("orders") == 0, "a range is waited for that will not come"
        return told

    @property
    def letters(self) -> list[tuple[int, Letter]]:
        batches = [(at, unpack(value or b"")) for topic, at, value in self.sent if topic.endswith(".events")]
        return [(at, letter) for at, batch in batches if isinstance(batch, Batch) for letter in batch.letters]

    @property
    def sections(self) -> list[Section]:
        batches = [unpack(value or b"") for topic, _, value in self.sent if topic.endswith(".events")]
        return [section for batch in batches if isinstance(batch, Batch) for section in batch.sections]


def message(offset: int, *, lsn: int = 0, time: int = COMMITTED, value: bytes | None = None, kind: int = 1) -> Message:
    lsn = lsn or offset
    made = change("c", after={"id": offset, "name": "n"}, sequence=f'["{lsn}","{lsn}"]', ts_ms=time)
    return Message(
        topic=TOPIC,
        partition=0,
        offset=offset,
        key=json.dumps({"id": offset}).encode(),
        value=json.dumps(made).encode() if value is None else value,
        timestamp=(kind, time),
    )


async def test_ranges_join_and_repetitions_are_passed_over() -> None:
    rig = Rig()
    await rig.take(message(5), message(6))
    await rig.take(message(6), message(7))
    await rig.take(message(7))
    found = sorted((offset, section.offset_from, section.offset_to) for section in rig.sections for offset in section.offsets)
    assert [offset for offset, _, _ in found] == [5, 6, 7]
    assert all(start <= offset < end for offset, start, end in found)
    assert {end for _, _, end in found} == {7, 8}
    assert rig.progress.position == 8
    assert rig.progress.watermark == COMMITTED - 200


async def test_when_a_record_was_sent_is_known_where_the_topic_keeps_it() -> None:
    rig = Rig()
    await rig.take(message(5, kind=TIMESTAMP_LOG_APPEND_TIME))
    assert rig.progress.created == 0
    await rig.take(message(6), message(7, time=COMMITTED + 5))
    assert rig.progress.created == COMMITTED + 5
    await rig.take(message(8, time=COMMITTED))
    assert rig.progress.created == COMMITTED + 5


async def test_a_control_record_begins_where_the_sections_of_its_partition_ended() -> None:
    """Seed 53 of the simulation: a section was not delivered, and the control record already behind it spoke of its range: what
    was sent again lay below what the matcher had reached. It speaks of what follows only, so what is missing is waited for."""
    rig = Rig()
    await rig.take(message(5), message(6), message(7))
    ended = {partition: unpack(value or b"") for topic, partition, value in rig.sent if topic.endswith(".events")}
    rig.sent.clear()
    await rig.outlet.pulse()
    controls = {partition: unpack(value or b"") for _, partition, value in rig.sent}
    assert len(controls) == rig.shared.on.settings.topics.partitions > len(ended) > 0
    for partition, control in controls.items():
        assert isinstance(control, Control)
        (state,) = [state for state in control.feeds if state.feed_partition == 0 and state.feed == TOPIC]
        assert (state.offset_from, state.offset_to) == (8 if partition in ended else 5, 8)


async def test_a_broken_history_ends_its_epoch_in_the_middle_of_a_batch() -> None:
    rig = Rig()
    await rig.take(message(5, lsn=100), message(6, lsn=101), message(8, lsn=3, time=COMMITTED + 5_000), message(9, lsn=4))
    by_epoch = {epoch: [s for s in rig.sections if s.epoch == epoch] for epoch in (1, 7)}
    assert sorted(offset for section in by_epoch[1] for offset in section.offsets) == [5, 6]
    assert sorted(offset for section in by_epoch[7] for offset in section.offsets) == [8, 9]
    assert {(section.offset_from, section.offset_to) for section in by_epoch[1]} == {(5, 8)}
    assert {(section.offset_from, section.offset_to) for section in by_epoch[7]} == {(8, 10)}
    assert [record.finding for record in rig.findings] == ["slot_jumped"]
    assert rig.progress.highest == (4, 4)


async def test_a_break_that_is_known_is_neither_told_nor_numbered_again() -> None:
    """Whoever begins with the newest epoch reads the log from its start, past the breaks that made it: all is repetition."""
    rig = Rig()
    rig.begun = {8: 1}
    await rig.take(message(5, lsn=100), message(6, lsn=101), message(8, lsn=3, time=COMMITTED + 5_000), message(9, lsn=4))
    assert {section.epoch for section in rig.sections} == {1}
    assert sorted(offset for section in rig.sections for offset in section.offsets) == [5, 6, 8, 9]
    assert rig.findings == []
    assert (rig.progress.epoch, rig.progress.highest) == (1, (4, 4))


async def test_a_record_that_nobody_understands_is_buried_and_lost_and_its_neighbours_are_not() -> None:
    rig = Rig()
    await rig.take(message(5), message(6, value=b"{"), message(7))
    assert sorted(offset for section in rig.sections for offset in section.offsets) == [5, 7]
    assert [(lost.offset_from, lost.offset_to, lost.reason) for lost in rig.progress.lost] == [(6, 7, "unparsable")]
    assert [value for topic, _, value in rig.sent if topic.endswith(".dlq")] == [b"{"]
    assert rig.unparsable == ["unparsable_json"]


async def test_trap_46_a_dead_letter_that_is_too_large_for_its_topic_says_where_the_record_lies() -> None:
    """Sent whole, it was refused, and ended every ingester that came to it."""
    rig = Rig()
    await rig.take(message(5), message(6, value=b"{" * CONTENT_BYTES_MAX), message(7))
    assert sorted(offset for section in rig.sections for offset in section.offsets) == [5, 7]
    assert [(lost.offset_from, lost.offset_to, lost.reason) for lost in rig.progress.lost] == [(6, 7, "unparsable")]
    [(key, value, headers)] = rig.buried
    assert (key, value) == (None, None)
    assert headers["__connect.errors.offset"] == b"6"
    assert int(headers["gapwatch-left-out"]) > CONTENT_BYTES_MAX


@pytest.mark.parametrize(("key", "events"), [(b"k" * (BYTES_PER_RECORD_MAX + 1), 1), (b"k", 40_000)], ids=["a key", "events"])
async def test_trap_46_what_is_too_large_for_a_record_is_a_hole_and_its_neighbours_are_not(key: bytes, events: int) -> None:
    """Sent whole, the brokers refused it, and that ended every ingester that came to it. Every partition learns of the hole."""
    rig = Rig()
    await rig.outlet.pulse()
    await rig.intake.take(AT, [message(5), message(6), message(7)])
    rig.add(8, key, events)
    await rig.intake.take(AT, [message(9), message(10)])
    await rig.outlet.send_sections(rig.shared.owned.values())
    assert sorted(offset for section in rig.sections for offset in section.offsets) == [5, 6, 7, 9, 10]
    assert max(len(value or b"") for topic, _, value in rig.sent if topic.endswith(".events")) < BYTES_PER_RECORD_MAX
    [lost] = rig.progress.lost
    assert (lost.offset_from, lost.offset_to, lost.time_from, lost.reason) == (8, 9, COMMITTED, "oversized")
    assert rig.unparsable == ["oversized"]
    assert [headers["__connect.errors.offset"] for _, _, headers in rig.buried] == [b"8"]
    await rig.outlet.pulse()
    assert rig.progress.lost == []
    for partition, said in enumerate(rig.matched()):
        assert [one.reason for one in said if isinstance(one, Hole) and one.time_from] == ["oversized"], partition


async def test_trap_46_what_is_found_too_large_when_it_is_sent_is_a_hole_before_what_was_unparsable_behind_it() -> None:
    """A record is refused when it is read, and found too large only when it is sent: losses are not said in their order."""
    rig = Rig()
    await rig.outlet.pulse()
    rig.add(5, b"k" * (BYTES_PER_RECORD_MAX + 1), 1)
    await rig.take(message(6), message(7, value=b"{"), message(8))
    assert [(lost.offset_from, lost.reason) for lost in rig.progress.lost] == [(7, "unparsable"), (5, "oversized")]
    await rig.outlet.pulse()
    for partition, said in enumerate(rig.matched()):
        holes = [one.reason for one in said if isinstance(one, Hole) and one.time_from]
        assert sorted(holes) == ["oversized", "unparsable"], partition


async def test_trap_46_many_events_of_one_record_are_sent_where_brokers_take_them() -> None:
    rig = Rig()
    rig.add(5, b"k", 5_000)
    await rig.outlet.send_sections(rig.shared.owned.values())
    assert [len(section.keys) for section in rig.sections] == [5_000]
    assert max(len(value or b"") for _, _, value in rig.sent) > BYTES_PER_RECORD_MAX
    assert rig.progress.lost == []


async def test_partitions_that_are_not_ours_are_left_alone() -> None:
    rig = Rig()
    await rig.intake.take(Partition(TOPIC, 1), [message(5)])
    assert rig.progress.position == 5
    assert rig.sent == []


async def test_what_the_sink_says_goes_to_its_keys_and_moves_no_time() -> None:
    """Dead letters come in no order that anybody could break, one that nobody can read is no hole, and no feed speaks of them."""
    rig, dead = Rig(letters="dead"), Partition("dead", 0)
    progress = FeedProgress(topic="dead", partition=0, partitions=1, epoch=1, position=0, sent=0, disorder_ms=0)
    rig.shared.owned[dead] = Owned(progress=progress, topic_id="id", end=StandingEnd(500))
    await rig.take(message(5), message(6), at=dead)
    await rig.take(message(7, lsn=3, time=COMMITTED + 9_000), message(8, value=b"{"), message(9), at=dead)
    assert [(letter.offset, letter.major) for _, letter in rig.letters] == [(5, 5), (6, 6), (7, 3), (9, 9)]
    assert all(at == partition_of(letter.key, rig.shared.on.settings.topics.partitions) for at, letter in rig.letters)
    assert (rig.findings, rig.unparsable, progress.lost, progress.watermark) == ([], ["unparsable_json"], [], 0)
    rig.sent.clear()
    await rig.outlet.pulse()
    controls = [unpack(value or b"") for _, _, value in rig.sent]
    assert {state.feed for control in controls if isinstance(control, Control) for state in control.feeds} & {TOPIC, "dead"} == {
        TOPIC
    }
    assert rig.letters == []
    assert progress.sent == 10


async def test_feeds_at_rest_are_asked_every_two_seconds_until_the_first_event() -> None:
    rig = Rig()
    rig.seconds = REST_AFTER_SECONDS
    assert (rig.shared.paced(0.25), rig.shared.paced(2.0)) == (0.25, 2.0)
    rig.seconds += 1
    assert (rig.shared.paced(0.25), rig.shared.paced(5.0)) == (2.0, 5.0)
    await rig.take(message(4))
    assert (rig.shared.paced(0.25), rig.stirred) == (2.0, []), "a repetition is no event"
    await rig.take(message(5))
    assert (rig.shared.paced(0.25), rig.stirred) == (0.25, ["orders"])


async def test_who_rests_beside_the_feeds_goes_on_at_the_first_event() -> None:
    """What is asked every few seconds only (ends of logs, deliveries) was known that much later, and so was the first loss."""
    rig = Rig()
    rig.seconds = REST_AFTER_SECONDS + 1
    rig.pause = 3_600.0
    resting = [asyncio.create_task(rig.shared.pause(0.25)) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(one.done() for one in resting)
    await rig.take(message(5))
    async with asyncio.timeout(5):
        await asyncio.gather(*resting)
