"""Ids read out of a reply's bytes are the ids that the driver decodes."""

from __future__ import annotations

from typing import Any

import bson
import numpy as np
import pytest
from bson import Binary, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.keys import TEXT_END
from gapwatch.model.pipeline import KeyType
from gapwatch_connectors.mongodb.bulk import RUNS_MAX, block_of, first_batch, page_of_texts, texts_of


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


NO_ZERO = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
ODD = st.sampled_from(["", "_id", "\x02_id", "a\x02_id", "\x02_id\x01", "\x03\x02_id", "\x01", "🙂", "ä" * 70, "x" * 300])


@given(st.lists(NO_ZERO | ODD, max_size=130))
def test_texts(ids: list[str]) -> None:
    joined = texts_of(batch(ids))
    if joined is None:  # what looks like the beginning of another id is not taken for one
        assert any(one.endswith("\x02_id") for one in ids)
    else:
        assert joined == b"".join(one.encode() + TEXT_END for one in ids)


@given(st.lists(NO_ZERO, min_size=1, max_size=120), st.data())
def test_a_page_of_texts_and_all_but_its_last(ids: list[str], data: st.DataObject) -> None:
    page = page_of_texts(batch(ids))
    assert page is not None
    assert (page.count, page.last) == (len(ids), ids[-1])
    most = data.draw(st.sampled_from([len(ids), len(ids) - 1]))
    assert page.chunk("", most).texts == b"".join(one.encode() + TEXT_END for one in ids[:most])


@pytest.mark.parametrize("position", [0, 9, 10, 99, 150])
@pytest.mark.parametrize("stranger", ["a\0b", "\0", 1, 1.5, None, ObjectId(), {"_id": "a"}, Binary(b"x" * 16, 4), bson.Code("a")])
def test_trap_27_a_stranger_among_texts_is_never_skipped(position: int, stranger: Any) -> None:
    ids: list[Any] = [f"text {number}" for number in range(150)]
    ids.insert(position, stranger)
    assert texts_of(batch(ids)) is None


def test_texts_that_are_no_utf8_or_have_other_fields_beside_them_are_none_of_ours() -> None:
    assert texts_of(batch(["one", "two"]).replace(b"two", b"t\xffo")) is None
    assert texts_of(batch(["one", "two"]).replace(b"two", b"\xed\xa0\x80")) is None  # half of a surrogate pair
    assert texts_of(batch(["one", "two"], other=1)) is None


@given(st.lists(NO_ZERO, min_size=1, max_size=12), st.data())
def test_a_reply_that_is_not_what_it_says_is_none_of_ours(ids: list[str], data: st.DataObject) -> None:
    """One byte of it is another one: either nothing is read, or other texts, each of which the driver reads too."""
    changed = bytearray(batch(ids))
    changed[data.draw(st.integers(4, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    joined = texts_of(bytes(changed))
    if joined is None:
        return
    try:
        documents = list(bson.decode(bytes(changed)).values())
    except bson.errors.BSONError:
        return  # of what texts_of does not look at: the number of an element, and the very end
    assert joined == b"".join(one["_id"].encode() + TEXT_END for one in documents)
