from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from gapwatch.core.batches import NO_VERSION, SectionBuilder, batches, pack, split, unpack
from gapwatch.core.envelopes import Event
from gapwatch.errors import RecordError
from gapwatch.model.stream import (
    BYTES_PER_RECORD_MAX,
    EVENTS_PER_RECORD_MAX,
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Lost,
    Operation,
    Outcome,
    PipelineTimes,
    Section,
    Side,
    VerdictSection,
)


def builder() -> SectionBuilder:
    return SectionBuilder(pipeline="orders", side=Side.EXPECTED, feed="shop.public.orders", feed_partition=2, epoch=1, mapping=99)


def event(number: int, **changes: Any) -> Event:
    plain = Event(number.to_bytes(8, "big"), Operation.UPSERT, 5, number, 1_000 + number, bytes(16), None, None, None, None)
    return plain._replace(**changes)


def section(count: int, *, first: int = 100, value: str = "") -> Section:
    build = builder()
    for number in range(count):
        build.add(event(number, values=(value,) if value else None), first + number, 2_000)
    return build.build(first - 5, first + count + 7)


def test_a_batch_comes_back_as_it_was() -> None:
    build = builder()
    build.add(event(1, masks=(b"m" * 16, b""), values=("1.5", None), version=7, target_id=b"x"), 10, 2_000)
    build.add(event(2, operation=Operation.DELETE, digest=b""), 11, 2_001)
    made = build.build(9, 12)
    assert made.versions == [7, NO_VERSION]
    assert made.target_ids == [b"x", b""]
    assert made.masks == [(b"m" * 16, b""), ()]
    assert made.values == [("1.5", None), ()]
    assert made.operations == bytes([Operation.UPSERT, Operation.DELETE])
    verdict = VerdictSection("orders", [b"k"], b"\x00", [(1, 2, 3)], bytes([Outcome.GAP]))
    batch = Batch(FORMAT, [made], [verdict])
    assert unpack(pack(batch)) == batch
    assert len(build) == 0


def test_a_control_record_comes_back_as_it_was() -> None:
    state = FeedState("orders", 0, "t", 1, 4, 1, 10, 20, 3, 4, NO_DELIVERY, 0, [Lost(12, 13, 1, 2, "ingest_hole")])
    control = Control(FORMAT, "worker-1", 77, [state], [PipelineTimes("orders", -3, 30_000)])
    assert unpack(pack(control)) == control


def test_columns_nobody_needs_are_not_sent() -> None:
    made = section(3)
    assert (made.masks, made.values, made.versions, made.target_ids) == (None, None, None, None)


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\x93\xa1b\x01", msgspec.msgpack.encode(["x", 1, []]), pack(Batch(FORMAT, [], []))[:-1]]
)
def test_a6_garbage_is_a_record_error(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        unpack(data)
    assert caught.value.reason == "unreadable_batch"


def test_another_format_is_named() -> None:
    with pytest.raises(RecordError) as caught:
        unpack(pack(Batch(FORMAT + 1, [], [])))
    assert caught.value.reason == "unknown_format"


def test_columns_of_unequal_length_are_refused() -> None:
    made = section(3)
    made.majors.pop()
    with pytest.raises(RecordError, match="unequal length"):
        unpack(pack(Batch(FORMAT, [made], [])))
    verdict = VerdictSection("orders", [b"k"], b"", [(1, 2, 3)], b"\x01")
    with pytest.raises(RecordError, match="unequal length"):
        unpack(pack(Batch(FORMAT, [], [verdict])))


def test_parts_of_a_section_join_without_gaps() -> None:
    parts = split(section(2_500))
    assert [len(part.keys) for part in parts] == [1_000, 1_000, 500]
    assert parts[0].offset_from == 95
    assert parts[-1].offset_to == 2_607
    for left, right in pairwise(parts):
        assert left.offset_to == right.offset_from == right.offsets[0]


def test_events_of_one_record_stay_together() -> None:
    build = builder()
    for offset, count in ((1, 3), (2, 3), (3, 5), (4, 1)):
        for number in range(count):
            build.add(event(number), offset, 2_000)
    parts = split(build.build(1, 5), events_max=4)
    assert [part.offsets for part in parts] == [[1] * 3, [2] * 3, [3] * 5, [4]]
    assert [(part.offset_from, part.offset_to) for part in parts] == [(1, 2), (2, 3), (3, 4), (4, 5)]


def test_every_record_keeps_both_limits() -> None:
    sections = [section(900), section(900), section(40, value="x" * 10_000), section(0), section(3)]
    made = list(batches(sections))
    assert sum(len(part.keys) for batch in made for part in batch.sections) == 1_843
    for batch in made:
        assert sum(len(part.keys) for part in batch.sections) <= EVENTS_PER_RECORD_MAX
        assert len(pack(batch)) <= BYTES_PER_RECORD_MAX
    assert [part for batch in made for part in batch.sections if not part.keys], "an empty range is sent as well"


def test_one_event_larger_than_a_record_goes_alone() -> None:
    build = builder()
    for offset, size in ((1, 10), (2, BYTES_PER_RECORD_MAX), (3, 10)):
        build.add(event(offset, values=("x" * size,)), offset, 2_000)
    assert [part.offsets for part in split(build.build(1, 4))] == [[1], [2], [3]]


def test_verdicts_go_with_the_first_batch_and_nothing_is_made_of_nothing() -> None:
    verdict = VerdictSection("orders", [b"k"], b"\x00", [(1, 2, 3)], bytes([Outcome.CLEARED]))
    assert [len(batch.verdicts) for batch in batches([section(900), section(900)], [verdict])] == [1, 0]
    assert [batch.verdicts for batch in batches([], [verdict])] == [[verdict]]
    assert list(batches([])) == []
