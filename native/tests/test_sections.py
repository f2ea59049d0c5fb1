"""The module's columns are followed, dealt, cut and packed as those in Python are, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gapwatch_native
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_columns import SHAPES, STEPS

from gapwatch.core import batches
from gapwatch.core.batches import SectionBuilder, packed_batches
from gapwatch.core.compiledcolumns import listed
from gapwatch.core.envelopes import Event, EventColumns
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.feeds import FeedProgress
from gapwatch.model.stream import Operation, Side

EXAMPLES = 200
DIGESTS = st.binary(min_size=16, max_size=16)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300)
WIDE = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-40_000, 70_000))
MASKS = st.none() | st.lists(st.just(b"") | DIGESTS, max_size=3).map(tuple)
VALUES = st.none() | st.lists(st.none() | TEXTS, max_size=3).map(tuple)
EVENTS = st.builds(
    Event,
    key=st.binary(min_size=1, max_size=300),
    operation=st.sampled_from([1, 1, 1, 2, 3, 4]),
    major=WIDE,
    minor=WIDE,
    event_time=WIDE,
    digest=st.just(b"") | DIGESTS,
    masks=MASKS,
    values=VALUES,
    version=st.none() | WIDE,
    target_id=st.none() | st.binary(max_size=40),
)
STEPPED = st.lists(st.tuples(st.integers(0, 2), EVENTS), max_size=40)
NUMBERS = st.sampled_from([0, 1, 127, 128, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1])


def both(steps: Sequence[tuple[int, Event]], shape: Shape) -> tuple[Any, EventColumns]:
    """Return the same events in the module's columns and in Python's."""
    compiled = gapwatch_native.Columns(shape.masks, shape.values, shape.versions, shape.target_ids)
    plain, offset = EventColumns(shape), 10
    for step, event in steps:
        offset += step
        for columns in (compiled, plain):
            columns.add(event, offset, offset + 5)
    return compiled, plain


def builder(shape: Shape, number: int) -> SectionBuilder:
    return SectionBuilder(
        pipeline="p" * (number % 300),
        side=Side.OBSERVED,
        feed="t",
        feed_partition=number % 1_000,
        epoch=number,
        mapping=number,
        shape=shape,
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(STEPPED, SHAPES)
def test_columns_hold_what_was_added(steps: list[tuple[int, Event]], shape: Shape) -> None:
    compiled, plain = both(steps, shape)
    assert len(compiled) == len(plain)
    assert listed(compiled, shape).all() == plain.all()
    assert list(plain.events()) == list(listed(compiled, shape).events())
    assert [list(getattr(compiled, name)) for name in ("offsets", "majors", "minors", "event_times", "operations")] == [
        plain.offsets,
        plain.majors,
        plain.minors,
        plain.event_times,
        plain.operations,
    ]
    for offset in range(8, 30):
        assert compiled.place(offset) == plain.place(offset)


@settings(max_examples=EXAMPLES, deadline=None)
@given(STEPPED, SHAPES, st.integers(1, 5), st.integers(0, 40), st.integers(0, 40), NUMBERS, st.booleans())
def test_sections_are_dealt_and_packed_alike(
    steps: list[tuple[int, Event]], shape: Shape, partitions: int, start: int, end: int, number: int, mixed: bool
) -> None:
    """`mixed`: half of the events were read by the one and half by the other, into one section."""
    compiled, plain = both(steps, shape)
    start, end = sorted((min(start, len(plain)), min(end, len(plain))))
    parts = zip(compiled.dealt(partitions, start, end), plain.dealt(partitions, start, end), strict=True)
    for one, other in parts:
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        first, second = builder(shape, number), builder(shape, number)
        first.take(one)
        second.take(other)
        again = both(steps, shape)
        first.take(again[1] if mixed else again[0])
        second.take(again[1])
        assert len(first) == len(second)
        made = first.close(7, number), second.close(7, number)
        assert list(packed_batches(made[:1])) == list(packed_batches(made[1:]))
        assert list(packed_batches(made)) == list(packed_batches([made[1], made[1]]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(STEPPED, SHAPES, st.integers(1, 8), st.integers(300, 3_000))
def test_sections_are_cut_alike(steps: list[tuple[int, Event]], shape: Shape, events_max: int, bytes_max: int) -> None:
    one, other = builder(shape, 1), builder(shape, 1)
    for building, columns in zip((one, other), both(steps, shape), strict=True):
        building.take(columns)
    sections = one.close(10, 999), other.close(10, 999)
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(batches, "EVENTS_PER_RECORD_MAX", events_max)
        limits.setattr(batches, "BYTES_PER_RECORD_MAX", bytes_max)
        limits.setattr(batches.split, "__kwdefaults__", {"events_max": events_max, "bytes_max": bytes_max})
        assert list(packed_batches(sections[:1])) == list(packed_batches(sections[1:]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=3), st.booleans())
def test_positions_are_followed_alike(runs: list[list[tuple[int, int, int, int, int]]], rising: bool) -> None:
    one, other = (
        FeedProgress(topic="t", partition=0, partitions=1, epoch=1, position=10, sent=10, disorder_ms=200) for _ in range(2)
    )
    for steps in runs:
        moves = sorted(steps, key=lambda step: step[1:3]) if rising else steps
        told = [
            (step, Event(b"k", int(operation), major, minor, time, b"", None, None, None, None))
            for step, major, minor, time, operation in moves
        ]
        compiled, plain = both(told, Shape())
        for offset in (0, 12):
            assert one.follow([compiled], offset) == other.follow([plain], offset)
            assert one == other


def test_snapshots_and_large_numbers_are_told_apart() -> None:
    """What the strategies above seldom draw: each size of a number, text and list in msgpack."""
    sizes = (0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536)
    for size in sizes:
        event = Event(
            b"k" * max(size, 1),
            Operation.UPSERT,
            1,
            1,
            1,
            bytes(16),
            (b"",) * min(size, 70_000),
            ("x" * size,),
            -size,
            b"t" * size,
        )
        shape = Shape(masks=True, values=True, versions=True, target_ids=True)
        one, other = builder(shape, size), builder(shape, size)
        compiled, plain = both([(1, event)] * (size % 300 or 1), shape)
        one.take(compiled)
        other.take(plain)
        assert list(packed_batches([one.close(-size, size)])) == list(packed_batches([other.close(-size, size)]))
