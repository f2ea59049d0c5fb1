"""The difference of two sets of keys in hash buckets, in whatever form they come, against Python's own sets."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core import sweep_buckets
from gapwatch.core.sweep_buckets import (
    Block,
    Bucket,
    Stretch,
    block_of_bulk,
    blocks_of,
    blocks_of_texts,
    compare_bucket,
    keys_of_block,
    scatter,
)
from gapwatch.core.sweep_sets import Array, KeyForm
from gapwatch.model.pipeline import KeyType
from tests.unit.core.sweep_rows import CODECS, TEXTS, Rows, as_digests, as_objects, codec, equal, expected, pairs

Side = dict[Bucket, list[Stretch]]


def spread(blocks: list[Block], contents: Array | None) -> Side:
    side: Side = {}
    for block in blocks:
        for bucket, stretch in scatter(block, contents):
            side.setdefault(bucket, []).append(stretch)
    return side


def gathered(side: Side, bucket: Bucket) -> Stretch:
    found = side.get(bucket, [])
    contents = [one.contents for one in found if one.contents is not None]
    if not found:
        return Stretch.empty(bucket)
    return Stretch(
        hashes=np.concatenate([one.hashes for one in found]),
        keys=np.concatenate([one.keys for one in found]),
        contents=np.concatenate(contents) if contents else None,
    )


def compared(form: KeyForm, source: Side, target: Side) -> tuple[list[bytes], list[bytes], list[bytes]]:
    found: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    for bucket in source.keys() | target.keys():
        unlike = compare_bucket(gathered(source, bucket), gathered(target, bucket), equal)
        for into, keys in zip(found, (unlike.source, unlike.target, unlike.differing), strict=True):
            into += keys_of_block(form, bucket[0], keys)
    return found


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("column", [as_digests, as_objects])
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_d1_buckets_in_any_order_show_every_difference_and_nothing_else(
    name: str, column: Callable[[Rows, list[bytes]], Array], data: st.DataObject, seed: int
) -> None:
    made, source, target = data.draw(pairs(name))
    generator, form = Random(seed), KeyForm(made)
    sides: list[Side] = []
    for rows in (source, target):
        keys = list(rows)
        generator.shuffle(keys)
        half = len(keys) // 2
        side: Side = {}
        for part in (keys[:half], keys[half:]):
            for bucket, stretches in spread(blocks_of(form, part), column(rows, part)).items():
                side.setdefault(bucket, []).extend(stretches)
        sides.append(side)
    assert tuple(set(keys) for keys in compared(form, *sides)) == expected(source, target)


@given(values=st.lists(TEXTS.filter(lambda text: "\0" not in text), unique=True))
def test_texts_in_bulk_lie_as_one_by_one(values: list[str]) -> None:
    made = codec(KeyType.TEXT)
    form, keys = KeyForm(made), [made.encode([value]) for value in values]
    joined = b"".join(value.encode() + b"\0\1" for value in values)
    assert compared(form, spread(blocks_of_texts(joined), None), spread(blocks_of(form, keys), None)) == ([], [], [])
    only = compared(form, spread(blocks_of_texts(joined), None), {})
    assert sorted(only[0]) == sorted(keys)


@pytest.mark.parametrize(
    ("name", "bulk"),
    [
        ("int", np.array([5, -1, 2**62], dtype=np.int64)),
        ("uuid", np.array([b"a" * 16, bytes(16), b"b" * 15 + b"\0"], dtype="S16")),
        ("objectid", np.array([b"a" * 12, bytes(12)], dtype="S12")),
    ],
)
def test_keys_in_bulk_lie_as_one_by_one(name: str, bulk: Array) -> None:
    form = KeyForm(CODECS[name][0])
    in_bulk, alone = spread([block_of_bulk(bulk)], None), spread(blocks_of(form, form.keys(bulk)), None)
    assert compared(form, in_bulk, alone) == ([], [], [])
    assert sorted(compared(form, in_bulk, {})[0]) == sorted(form.keys(bulk))


def test_a_key_that_one_side_holds_twice_is_read_again() -> None:
    form = KeyForm(codec(KeyType.TEXT))
    keys = [b"a\0\1", b"b\0\1"]
    found = compared(form, spread(blocks_of(form, keys), None), spread(blocks_of(form, [*keys, keys[0]]), None))
    assert set(found[1]) == {keys[0]}
    assert found[0] == []


@pytest.mark.parametrize("name", ["text", "int"])
def test_one_hash_for_all_makes_no_two_keys_equal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash only says where to look: what it cannot tell apart is read again, and nothing is missed."""
    monkeypatch.setattr(sweep_buckets, "hashes", lambda keys: np.zeros(len(keys), dtype=np.uint64))
    made = CODECS[name][0]
    form, values = KeyForm(made), [["1"], ["2"]] if name == "text" else [[1], [2]]
    one, other = (made.encode(value) for value in values)
    found = compared(form, spread(blocks_of(form, [one]), None), spread(blocks_of(form, [other]), None))
    assert found == ([one], [other], [])
    several = compared(form, spread(blocks_of(form, [one, other]), None), spread(blocks_of(form, [other]), None))
    assert one in several[0]


@given(values=st.lists(st.binary(min_size=1, max_size=40), max_size=200, unique=True))
def test_hashes_depend_on_every_byte_and_not_on_the_neighbours(values: list[bytes]) -> None:
    keys: Any = np.array(values, dtype="S64")
    hashed = sweep_buckets.hashes(keys)
    padded = {value.ljust(64, b"\0") for value in values}
    assert len(set(hashed.tolist())) == len(padded)
    assert [sweep_buckets.hashes(keys[at : at + 1])[0] for at in range(len(keys))] == hashed.tolist()
