"""Cutting sections into records loses no event and leaves no gap, whatever their sizes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.batches import SectionBuilder, _cuts_by_number, _cuts_by_size, batches, pack, split, unpack
from gapwatch.core.envelopes import Event
from gapwatch.errors import RecordError
from gapwatch.model.stream import Batch, Operation, Section, Side

EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3_000)), max_size=60)  # (steps between offsets, size)


def section(events: list[tuple[int, int]]) -> Section:
    builder = SectionBuilder(pipeline="p", side=Side.OBSERVED, feed="t", feed_partition=0, epoch=1, mapping=1)
    offset = 10
    for number, (step, size) in enumerate(events):
        offset += step
        key = number.to_bytes(4, "big")
        builder.add(Event(key, Operation.UPSERT, 1, number, 1, bytes(16), None, ("x" * size,), None, None), offset, 1)
    return builder.build(5, offset + 3)


@given(EVENTS, st.integers(1, 20), st.integers(500, 20_000))
def test_parts_hold_everything_once_and_their_ranges_join(events: list[tuple[int, int]], events_max: int, bytes_max: int) -> None:
    whole = section(events)
    parts = split(whole, events_max=events_max, bytes_max=bytes_max)
    assert [key for part in parts for key in part.keys] == whole.keys
    assert (parts[0].offset_from, parts[-1].offset_to) == (whole.offset_from, whole.offset_to)
    for left, right in pairwise(parts):
        assert left.offset_to == right.offset_from
    for part in parts:
        assert all(part.offset_from <= offset < part.offset_to for offset in part.offsets)
        assert len(part.keys) <= events_max or len(set(part.offsets)) == 1
        if len(set(part.offsets)) > 1:
            assert len(pack(Batch(1, [part], []))) <= bytes_max + 512


@given(EVENTS, st.integers(1, 20))
def test_a_small_section_is_cut_by_number_as_it_is_by_size(events: list[tuple[int, int]], events_max: int) -> None:
    whole = section(events)
    assert _cuts_by_number(whole.offsets, events_max) == _cuts_by_size(whole, events_max, 10**9)


@given(st.lists(EVENTS, max_size=4))
def test_packing_and_unpacking_change_nothing(many: list[list[tuple[int, int]]]) -> None:
    made = list(batches([section(events) for events in many]))
    assert [unpack(pack(batch)) for batch in made] == made


@given(st.binary(max_size=200))
def test_a6_any_bytes_are_a_record_or_a_record_error(data: bytes) -> None:
    reason = ""
    try:
        record = unpack(data)
        assert unpack(pack(record)) == record
    except RecordError as error:
        reason = error.reason
    assert reason in ("", "unreadable_batch", "unknown_format")
