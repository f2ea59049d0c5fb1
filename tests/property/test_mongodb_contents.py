"""Documents as the server sends them: decoded for a scan of contents they have the contents that reading by key finds."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import bson
import numpy as np
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep_contents import PageContents
from gapwatch.core.sweep_sets import digests
from gapwatch.errors import KeyMisfit
from gapwatch.model.pipeline import FieldType, KeyColumn, KeyType, Rounding
from gapwatch.model.stream import Side
from gapwatch_connectors.mongodb.connection import OPTIONS
from gapwatch_connectors.mongodb.contents import DRIVER, keys_in, options
from gapwatch_connectors.mongodb.keys import DocumentKeys
from tests.unit.core.samples import field, pipeline

PRICES = st.integers(-(10**6), 10**6).map(lambda cents: Decimal128(str(Decimal(cents).scaleb(-2))))
DECIMALS = (
    PRICES
    | st.binary(min_size=16, max_size=16).map(Decimal128.from_bid)  # any bits: not canonical, infinite, no number
    | st.builds("{}E{}".format, st.integers(-(10**34 - 1), 10**34 - 1), st.integers(-20, 20)).map(Decimal128)
    | st.sampled_from(
        [Decimal128(text) for text in ("0", "-0", "0.00", "1.000", "10", "1E+3", "NaN", "-Infinity", "0.001", "1.0005")]
    )
)
MOMENTS = (st.integers(-(2**63), 2**63 - 1) | st.integers(-63_000_000_000_000, 254_000_000_000_000)).map(DatetimeMS)
INTS = st.integers(-(2**31), 2**31 - 1) | st.integers(-(2**63), 2**63 - 1).map(Int64)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
RARE = st.sampled_from(
    [
        Regex("a", "i"),
        Timestamp(1, 2),
        MinKey(),
        MaxKey(),
        Code("f()"),
        Binary(b"x" * 16, 4),
        Binary(b"x" * 16, 3),
        Binary(b"ab", 0),
    ]
)
FLAT = (
    INTS
    | st.floats()
    | st.booleans()
    | st.none()
    | TEXTS
    | DECIMALS
    | MOMENTS
    | RARE
    | st.binary(max_size=16)
    | st.builds(ObjectId, st.binary(min_size=12, max_size=12))
)
NESTED = FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(st.sampled_from("xyz"), FLAT, max_size=3)
KINDS = (INTS, st.floats(), DECIMALS, PRICES, MOMENTS, TEXTS, st.builds(ObjectId, st.binary(min_size=12, max_size=12)), NESTED)


@given(st.data())
def test_a_page_of_documents_has_the_contents_of_each(data: st.DataObject) -> None:
    fields = [
        field(
            name,
            data.draw(st.sampled_from(list(FieldType))),
            scale=data.draw(st.sampled_from([None, None, 0, 2, 3])),
            precision=data.draw(st.sampled_from(["ms", "us", "s"])),
            rounding=data.draw(st.sampled_from(list(Rounding))),
            timezone=data.draw(st.sampled_from(["UTC", "UTC", "UTC", "Europe/Berlin"])),
            maskable=data.draw(st.booleans()),
            wire=data.draw(st.sampled_from(["", "", "items:timestamp:epoch_ms"])),
        )
        for name in ("a", "b.c")
    ]
    mapping = CompiledMapping(pipeline(*fields))
    count = data.draw(st.integers(1, 8))
    columns = [data.draw(st.lists(data.draw(st.sampled_from(KINDS)), min_size=count, max_size=count)) for _ in fields]
    raw = [
        bson.encode({"_id": number, "a": one, "b": {"c": other}})
        for number, (one, other) in enumerate(zip(*columns, strict=True))
    ]
    contents = PageContents(mapping, Side.OBSERVED, driver=DRIVER)
    documents = bson.decode_all(b"".join(raw), options(mapping))
    found = contents.contents(contents.columns(documents), count)
    alone = [mapping.canonical_target(one).identity for one in bson.decode_all(b"".join(raw), OPTIONS)]
    assert found.tobytes() == digests(alone).tobytes()


@given(st.data(), st.sampled_from(list(KeyType)))
def test_keys_of_a_page_are_those_of_its_documents(data: st.DataObject, kind: KeyType) -> None:
    keys = DocumentKeys([KeyColumn(path="_id", type=kind)])
    values = data.draw(st.sampled_from((INTS, INTS | st.booleans(), KINDS[-2], TEXTS, FLAT)))
    documents: list[dict[str, Any]] = [{"_id": value} for value in data.draw(st.lists(values, min_size=1, max_size=6))]
    try:
        expected = [keys.of(document) for document in documents]
    except KeyMisfit:
        expected = None
    try:
        found = keys_in(keys, documents)
    except KeyMisfit:
        assert expected is None
        return
    assert expected is not None
    found = found.tolist() if isinstance(found, np.ndarray) else found
    assert [one if isinstance(one, bytes) else keys.codec.encode([one]) for one in found] == expected
