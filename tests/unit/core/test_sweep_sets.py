"""The difference of two sorted sets of keys, in blocks, against Python's own sets."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.sweep_sets import Array, KeyForm, OrderedDifference, OutOfOrderError
from gapwatch.model.stream import Side
from tests.unit.core.sweep_rows import CODECS, Rows, as_digests, as_objects, equal, expected, pairs


def cut(rows: Rows, sizes: Random) -> list[list[bytes]]:
    keys, blocks = sorted(rows), []
    while keys:
        size = sizes.randint(1, 7)
        blocks.append(keys[:size])
        keys = keys[size:]
    return blocks


@pytest.mark.parametrize("name", ["int", "uuid", "objectid", "two ints"])
@pytest.mark.parametrize("column", [as_digests, as_objects])
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_d1_blocks_in_any_rhythm_show_every_difference_and_nothing_else(
    name: str, column: Callable[[Rows, list[bytes]], Array], data: st.DataObject, seed: int
) -> None:
    made, source, target = data.draw(pairs(name))
    generator, form = Random(seed), KeyForm(made)
    difference = OrderedDifference(form, equal)
    queues = {Side.EXPECTED: cut(source, generator), Side.OBSERVED: cut(target, generator)}
    rows = {Side.EXPECTED: source, Side.OBSERVED: target}
    found: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    live = list(Side)
    while live:
        side = generator.choice(live)
        if queues[side]:
            keys = queues[side].pop(0)
            step = difference.add(side, form.block(keys), column(rows[side], keys))
        else:
            live.remove(side)
            step = difference.end(side)
        for into, keys_found in zip(found, (step.source_only, step.target_only, step.differing), strict=True):
            into.extend(keys_found)
        mark = difference.mark()
        if mark is not None:
            assert mark.counts == (sum(key < mark.key for key in source), sum(key < mark.key for key in target))
    assert tuple(sorted(keys) for keys in found) == tuple(sorted(keys) for keys in expected(source, target))
    assert difference.held == 0


def test_lesson_12_without_contents_only_ids_are_compared() -> None:
    made = CODECS["int"][0]
    form = KeyForm(made)
    difference = OrderedDifference(form, equal)
    difference.add(Side.EXPECTED, np.array([1, 2]))
    difference.end(Side.EXPECTED)
    difference.add(Side.OBSERVED, np.array([1, 2]))
    assert len(difference.end(Side.OBSERVED)) == 0


@pytest.mark.parametrize("second", [[5], [4], [6, 6], [7, 6]])
def test_trap_25_a_side_out_of_order_is_noticed_and_not_compared(second: list[int]) -> None:
    difference = OrderedDifference(KeyForm(CODECS["int"][0]), equal)
    difference.add(Side.EXPECTED, np.array([1, 5]))
    with pytest.raises(OutOfOrderError):
        difference.add(Side.EXPECTED, np.array(second))


def test_a_number_beyond_64_bits_is_for_buckets() -> None:
    made = CODECS["int"][0]
    with pytest.raises(OutOfOrderError):
        KeyForm(made).block([made.encode([2**63])])


def test_sides_in_step_hold_little() -> None:
    difference = OrderedDifference(KeyForm(CODECS["int"][0]), equal)
    for start in range(0, 100_000, 1_000):
        block = np.arange(start, start + 1_000)
        difference.add(Side.EXPECTED, block)
        difference.add(Side.OBSERVED, block)
        assert difference.held <= 1_000
