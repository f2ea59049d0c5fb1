"""Ids read out of a reply's bytes are the ids that the driver decodes."""

from __future__ import annotations

from typing import Any

import bson
import numpy as np
import pytest
from bson import Binary, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.model.pipeline import KeyType
from gapwatch_connectors.mongodb.bulk import RUNS_MAX, block_of, first_batch


def batch(ids: list[Any], **more: Any) -> bytes:
    """Return the array of a reply that shows these documents."""
    reply = bson.encode({"firstBatch": [{"_id": one, **more} for one in ids], "id": Int64(0), "ns": "db.c"})
    found = first_batch(reply)
    assert found is not None
    return found


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=1_200))
def test_small_numbers(ids: list[int]) -> None:
    block = block_of(batch(ids), KeyType.INT)
    assert block is not None
    assert block.dtype == np.int64
    assert block.tolist() == ids


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=120), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=120))
def test_numbers_of_both_widths_one_after_the_other(small: list[int], large: list[int]) -> None:
    block = block_of(batch([*small, *map(Int64, large)]), KeyType.INT)
    assert block is not None
    assert block.tolist() == [*small, *large]


@given(st.lists(st.binary(min_size=12, max_size=12), min_size=1, max_size=120))
def test_object_ids(ids: list[bytes]) -> None:
    block = block_of(batch([ObjectId(one) for one in ids]), KeyType.OBJECTID)
    assert block is not None
    assert [one.ljust(12, b"\0") for one in block.tolist()] == ids


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=120))
def test_uuids(ids: list[bytes]) -> None:
    block = block_of(batch([Binary(one, 4) for one in ids]), KeyType.UUID)
    assert block is not None
    assert [one.ljust(16, b"\0") for one in block.tolist()] == ids


@pytest.mark.parametrize("position", [0, 9, 10, 99, 150])
@pytest.mark.parametrize("stranger", ["text", 1.5, None, ObjectId(), {"a": 1}, Binary(b"x" * 16, 4)])
def test_trap_27_a_stranger_among_numbers_is_never_skipped(position: int, stranger: Any) -> None:
    ids: list[Any] = list(range(150))
    ids.insert(position, stranger)
    assert block_of(batch(ids), KeyType.INT) is None


def test_a_uuid_of_another_subtype_is_none_of_ours() -> None:
    assert block_of(batch([Binary(bytes(16), 4), Binary(bytes(16), 3)]), KeyType.UUID) is None
    assert block_of(batch([Binary(bytes(16), 4), Binary(bytes(15), 4)]), KeyType.UUID) is None


def test_a_document_with_more_than_its_id_is_none_of_ours() -> None:
    assert block_of(batch([1, 2], other=1), KeyType.INT) is None


def test_a_page_that_keeps_changing_width_is_read_one_by_one() -> None:
    ids = [number if number % 2 else Int64(number) for number in range(RUNS_MAX + 2)]
    assert block_of(batch(ids), KeyType.INT) is None


def test_a_reply_of_another_shape_is_none_of_ours() -> None:
    assert first_batch(bson.encode({"id": Int64(0), "firstBatch": []})) is None
    assert first_batch(bson.encode({})) is None


def test_an_empty_page() -> None:
    block = block_of(batch([]), KeyType.INT)
    assert block is not None
    assert len(block) == 0
