"""Sections that the module takes together end as event by event, and say the same: the properties that hold for the columns."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import gapwatch_native
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.property import test_hotpath
from tests.property.test_hotpath import Life, Teller
from tests.property.test_hotpath import test_a_whole_world_in_large_records_ends_as_event_by_event as test_a_whole_world
from tests.property.test_hotpath import test_limits_are_kept_and_every_write_stays_in_one_class as test_limits
from tests.property.test_hotpath import test_together_and_one_by_one_end_alike_and_say_the_same as test_stories
from tests.property.test_hotpath import test_updates_together_and_one_by_one_end_alike as test_updates
from tests.simulation.world import PIPELINE, START

from gapwatch.core import hotpath, segments
from gapwatch.core.batches import packed
from gapwatch.core.keyrows import SETTLED, UPDATED, KeyRows
from gapwatch.model.stream import FORMAT, Batch, Operation, Side

__all__ = ["test_a_whole_world", "test_limits", "test_stories", "test_updates"]

UPSERT = Operation.UPSERT
Event = tuple[int, Operation, int, int, int]


@pytest.fixture(autouse=True)
def natively() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Life, "native", gapwatch_native)
        yield


@pytest.fixture
def left_over(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What the module leaves to the general path, by record and side."""
    left: list[list[Any]] = []
    for name in ("_expect_compiled", "_observe_compiled"):
        take = getattr(hotpath, name)
        monkeypatch.setattr(hotpath, name, lambda *told, take=take: left.append(list(take(*told))) or iter(left[-1]))
    return left


def both(value: int) -> list[tuple[int, bool]]:
    return [(value, True), (value, False)]


def rows_of(life: Life) -> KeyRows:
    return life.matcher._pipelines[PIPELINE].cell.rows


def test_the_module_takes_what_is_usual_and_nothing_is_left_over(left_over: list[list[Any]]) -> None:
    """First writes, answers, updates, and keys that the target shows first."""
    teller, life = Teller(2), Life(test_hotpath.SPECS["masks"], event_by_event=False)
    assert rows_of(life).compiled is not None
    first: list[Event] = [(key, UPSERT, 1, 0, 3) for key in range(8)]
    again: list[Event] = [(key, UPSERT, 1, 1, 3) for key in range(8)]
    lone: list[Event] = [(9, UPSERT, 1, 0, 3)]
    steps = [(Side.EXPECTED, first), (Side.OBSERVED, first), (Side.EXPECTED, again), (Side.OBSERVED, lone), (Side.EXPECTED, lone)]
    for offset, (side, step) in enumerate([*steps, (Side.OBSERVED, again)]):
        life.matcher.apply(teller.record([(side, False, step)]), offset, START + offset)
        if step is again and side is Side.EXPECTED:
            assert set(rows_of(life).place[:8].tolist()) == {UPDATED}
    assert set(rows_of(life).place[:9].tolist()) == {SETTLED}
    assert (rows_of(life).open, rows_of(life).settled) == (0, 9)
    assert left_over == [[]] * 6


def test_what_is_older_than_what_the_target_showed_answers_nothing() -> None:
    teller, life = Teller(2), Life(test_hotpath.SPECS["masks"], event_by_event=False)
    steps = [(Side.EXPECTED, 1, 0), (Side.OBSERVED, 10, 0), (Side.EXPECTED, 1, 1), (Side.OBSERVED, 1, 1)]
    for offset, (side, step, value) in enumerate(steps):
        life.matcher.apply(teller.record([(side, False, [(1, UPSERT, step, value, 3)])]), offset, START + offset)
    assert (rows_of(life).open, rows_of(life).settled) == (1, 0)


def test_a_field_that_neither_side_carries_is_counted_by_the_general_path(left_over: list[list[Any]]) -> None:
    teller, life = Teller(2), Life(test_hotpath.SPECS["masks"], event_by_event=False)
    for offset, side in enumerate([Side.EXPECTED, Side.OBSERVED]):
        life.matcher.apply(teller.record([(side, False, [(1, UPSERT, 1, 0, 1)])]), offset, START + offset)
    assert [len(one) for one in left_over] == [0, 1]
    assert life.matcher._pipelines[PIPELINE].cell.counters.masked == 1


def test_a_content_that_the_key_had_before_as_well_is_left_to_the_general_path(left_over: list[list[Any]]) -> None:
    """What is expected no more goes to the front of what was expected before, and stands there once."""
    teller, life = Teller(2), Life(test_hotpath.SPECS["masks"], event_by_event=False)
    for offset, (value, expected) in enumerate([*both(0), *both(1), *both(0), (1, True)]):
        side = Side.EXPECTED if expected else Side.OBSERVED
        life.matcher.apply(teller.record([(side, False, [(1, UPSERT, 1, value, 3)])]), offset, START + offset)
    assert [len(one) for one in left_over] == [0, 0, 0, 0, 0, 0, 1]


def test_what_follows_a_read_of_an_unknown_key_in_its_record_goes_with_it(left_over: list[list[Any]]) -> None:
    """In the order in which they came: the module would have opened the write before the read was looked at."""
    teller, life = Teller(2), Life(test_hotpath.SPECS["masks"], event_by_event=False)
    events: list[Event] = [(1, Operation.SNAPSHOT, 1, 0, 3), (1, UPSERT, 1, 1, 3), (2, UPSERT, 1, 0, 3)]
    life.matcher.apply(teller.record([(Side.EXPECTED, False, events)]), 0, START)
    assert [[key for key, _ in one] for one in left_over] == [[b"key1"] * 2]


def test_each_way_leaves_the_same_rows_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one key a record, so that the place in line is the same as well."""
    found = []
    for native in (gapwatch_native, None):
        monkeypatch.setattr(Life, "native", native)
        teller, life = Teller(2), Life(test_hotpath.SPECS["masks"], event_by_event=False)
        for offset in range(60):
            key, value, side = offset * 7 % 5, offset // 20, Side.EXPECTED if offset % 3 else Side.OBSERVED
            operation = Operation.DELETE if offset % 11 == 10 else UPSERT
            life.matcher.apply(teller.record([(side, False, [(key, operation, 1, value, 3)])]), offset, START + offset)
        rows = rows_of(life)
        columns = [rows.place, rows.words, rows.shown, rows.olders, rows.older, rows.order, rows.segment]
        held = [column[: rows.size].tolist() for column in columns]
        found.append([rows.at, rows.keys, rows.clock, rows.block_due.tolist(), *held])
    assert found[0] == found[1]


def test_columns_that_do_not_belong_together_are_refused() -> None:
    rows = KeyRows(2)
    columns = [rows.place, rows.words, rows.shown, rows.olders, rows.older, rows.order, rows.segment, rows.block_due]
    gapwatch_native.Rows(2, *columns)
    for at in range(len(columns)):
        with pytest.raises(ValueError, match="do not belong together"):
            gapwatch_native.Rows(2, *columns[:at], columns[at][:1].copy(), *columns[at + 1 :])
    with pytest.raises(ValueError, match="do not belong together"):
        gapwatch_native.Rows(3, *columns)
    frozen = rows.place.copy()
    frozen.flags.writeable = False
    with pytest.raises(BufferError):
        gapwatch_native.Rows(2, frozen, *columns[1:])
    with pytest.raises(BufferError):
        gapwatch_native.Rows(2, columns[0].astype(np.int64), *columns[1:])


def test_more_than_there_is_room_for_is_refused() -> None:
    """The callers make room first; a mistake of theirs must not write past a column."""
    rows = KeyRows(1)
    short = [rows.place[:4], rows.words[:4], rows.shown[:4], rows.olders[:4], rows.older[:4], rows.order[:4], rows.segment[:4]]
    compiled = gapwatch_native.Rows(1, *[column.copy() for column in short], rows.block_due[:1].copy())
    section = Teller(0)._section(Side.EXPECTED, False, [(key, UPSERT, 1, 0, 3) for key in range(5)])
    told = [(0, one) for one in packed(Batch(FORMAT, [section], [])).sections]
    with pytest.raises(IndexError, match="no room"):
        compiled.expect(told, {}, [], 0, (2, True, True, 64), 0)
    with pytest.raises(IndexError, match="no room"):
        compiled.observe(told, {}, [], 0, 10, [1, 2], 0)


WORD = st.integers(0, (1 << 64) - 1) | st.integers(0, 300)


@given(st.integers(7, 12).flatmap(lambda width: st.lists(st.lists(WORD, min_size=width, max_size=width), max_size=40)))
def test_planes_are_those_of_the_columns(rows: list[list[int]]) -> None:
    words = np.array(rows, np.uint64).reshape(len(rows), len(rows[0]) if rows else 8)
    assert gapwatch_native.planes(words, words.shape[1], (2, 7)) == segments.planes(words)


@pytest.mark.parametrize(("width", "steps"), [(0, (0, 0)), (5, (0, 1)), (6, (3, 2)), (6, (2, 7))])
def test_planes_of_what_is_no_table_are_refused(width: int, steps: tuple[int, int]) -> None:
    words = np.zeros((3, 6), np.uint64)
    gapwatch_native.planes(words, 6, (2, 6))
    with pytest.raises(ValueError, match="not rows of so many words"):
        gapwatch_native.planes(words, width, steps)


@given(
    st.lists(st.tuples(st.integers(-5, 5) | st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from(Operation))),
    st.integers(-4, 4),
)
def test_reads_are_never_late(events: list[tuple[int, Operation]], before: int) -> None:
    times = struct.pack(f"<{len(events)}q", *[time for time, _ in events])
    late = sum(time < before and operation != Operation.SNAPSHOT for time, operation in events)
    assert gapwatch_native.late(times, bytes(operation for _, operation in events), before) == late
