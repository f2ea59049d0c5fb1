"""Whole columns end where single events do: partitions, sections, and the order of a feed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.batches import SectionBuilder
from gapwatch.core.envelopes import Event, EventColumns
from gapwatch.core.envelopes.columns import EVERYTHING, Shape
from gapwatch.core.feeds import FeedProgress
from gapwatch.core.keys import partition_of
from gapwatch.model.stream import Operation, Side

SHAPES = st.builds(Shape, masks=st.booleans(), values=st.booleans(), versions=st.booleans(), target_ids=st.booleans())
STEPS = st.lists(
    # offset step, major, minor, event time, operation
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 6),
        st.integers(0, 2),
        st.integers(0, 900),
        st.sampled_from([Operation.UPSERT, Operation.UPSERT, Operation.DELETE, Operation.SNAPSHOT]),
    ),
    max_size=12,
)
RISING = STEPS.map(lambda steps: [(step, *rest) for (step, *_), rest in zip(steps, sorted(s[1:] for s in steps), strict=True)])


def events(steps: Sequence[tuple[int, int, int, int, int]], shape: Shape = EVERYTHING) -> list[tuple[int, Event]]:
    """Return events by offset; those of one offset are of one record, so they share its position."""
    found: list[tuple[int, Event]] = []
    offset = 10
    for number, (step, major, minor, time, operation) in enumerate(steps):
        offset += step
        if found and not step:
            _, before = found[-1]
            major, minor, time, operation = before.major, before.minor, before.event_time, Operation(before.operation)
        event = Event(
            key=number.to_bytes(2, "big"),
            operation=operation,
            major=major,
            minor=minor,
            event_time=time,
            digest=bytes(16) if operation != Operation.DELETE else b"",
            masks=(b"m",) if shape.masks and number % 2 else None,
            values=("1", None) if shape.values and number % 3 else None,
            version=number if shape.versions and number % 2 else None,
            target_id=b"t" if shape.target_ids and number % 3 == 1 else None,
        )
        found.append((offset, event))
    return found


def columns(items: Sequence[tuple[int, Event]], shape: Shape = EVERYTHING) -> EventColumns:
    made = EventColumns(shape)
    for offset, event in items:
        made.add(event, offset, offset + 1)
    return made


def progress() -> FeedProgress:
    return FeedProgress(topic="t", partition=0, partitions=1, epoch=1, position=10, sent=10, disorder_ms=200)


@given(STEPS, SHAPES, st.integers(1, 5))
def test_sections_cut_out_of_columns_are_those_built_event_by_event(
    steps: list[tuple[int, int, int, int, int]], shape: Shape, partitions: int
) -> None:
    items = events(steps, shape)
    whole = columns(items, shape)
    for number, part in enumerate(whole.dealt(partitions, 0, len(whole))):
        one, other = (
            SectionBuilder(pipeline="p", side=Side.EXPECTED, feed="t", feed_partition=0, epoch=1, mapping=1, shape=shape)
            for _ in range(2)
        )
        if part is not None:
            one.take(part)
        for offset, event in items:
            if partition_of(event.key, partitions) == number:
                other.add(event, offset, offset + 1)
        assert len(one) == (0 if part is None else len(part)) == len(other)
        assert one.build(10, 99) == other.build(10, 99)


def one_by_one(feed: FeedProgress, items: Sequence[tuple[int, Event]], offset_from: int) -> int | None:
    for offset, event in sorted(items, key=lambda item: item[0]):
        if offset < offset_from or event.operation == Operation.SNAPSHOT:
            continue
        if feed.jumped(event.major, event.minor, event.event_time) and offset != feed.begun:
            return offset
        feed.streamed(event.event_time)
    return None


@given(st.lists(STEPS | RISING, min_size=1, max_size=3), st.integers(1, 2))
def test_a_batch_is_followed_as_its_events_one_by_one(batches: list[list[tuple[int, int, int, int, int]]], readers: int) -> None:
    """`readers` pipelines read the same topic: positions are taken in raw order, whoever read them."""
    fast, slow = progress(), progress()
    for steps in batches:
        items = events(steps)
        shares = [items] if readers == 1 else [items[::2], items[1::2]]
        offset = 0
        while True:
            broken = fast.follow([columns(share) for share in shares], offset)
            assert broken == one_by_one(slow, items, offset)
            assert fast == slow
            if broken is None:
                break
            for feed in (fast, slow):
                feed.begin_epoch(feed.epoch + 1, broken)
            offset = broken
