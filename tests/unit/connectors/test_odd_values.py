"""Values that a row may hold and a target may not: each is written as it is, or refused by name; none ends the process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import bson
import msgspec
import pytest
from bson import Code, DatetimeMS, Decimal128
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.values import JsonText
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldType, KeyColumn, KeyType
from gapwatch.ports import ABSENT, StoredRecord, WriteItem
from gapwatch.roles.repair.backfiller import _still_ours
from gapwatch_connectors.mongodb import MongoWriter
from gapwatch_connectors.mongodb.connection import OPTIONS
from gapwatch_connectors.mongodb.documents import build
from gapwatch_connectors.mongodb.keys import DocumentKeys
from gapwatch_connectors.postgres.writer import PostgresWriter, text_of
from tests.unit.core.samples import field, pipeline

DEEP = 5_000  # levels: Postgres keeps as many, neither Python's reader nor MongoDB does


def built(kind: FieldType, value: Any) -> Any:
    """Return what a repair would write into a field of a MongoDB target."""
    spec = pipeline(field("v", kind))
    key = CompiledMapping(spec).source.codec.encode([1])
    row = StoredRecord(key=key, fields={"id": 1, "v": value})
    return build(DocumentKeys(spec.target.key), key, row, spec.fields, "__gone")["v"]


@pytest.mark.parametrize(
    ("kind", "value", "millis"),
    [
        (FieldType.TIMESTAMP, "-0043-03-15T00:00:00+00:00", -63_517_824_000_000),
        (FieldType.TIMESTAMP, "294276-12-31T23:59:59.999+00:00", 9_224_318_015_999_999),
        (FieldType.DATE, "10000-01-01", 253_402_300_800_000),
        (FieldType.DATE, "-4712-01-01", -210_863_520_000_000),
    ],
)
def test_a_date_that_python_does_not_have_is_written_by_its_milliseconds(kind: FieldType, value: str, millis: int) -> None:
    written = built(kind, value)
    assert isinstance(written, DatetimeMS)
    assert int(written) == millis
    spec = pipeline(field("v", kind))
    mapping = CompiledMapping(spec)
    document: dict[str, Any] = bson.decode(bson.encode({"_id": 1, "v": written}), OPTIONS)
    back = mapping.canonical_target(document)
    assert mapping.differing(mapping.canonical_source({"id": 1, "v": value}), back) == (), "read back, it is what the row says"


@given(value=st.decimals(allow_nan=True, allow_infinity=True) | st.decimals(min_value=-1000, max_value=1000, places=2))
def test_a_decimal_is_written_just_as_the_driver_makes_it(value: Decimal) -> None:
    try:
        expected = Decimal128(str(value)).bid
    except (ArithmeticError, ValueError):
        expected = None
    if expected is None or len(value.as_tuple().digits) > 34:
        return  # refused, or written without zeros at its end
    assert built(FieldType.DECIMAL, value).bid == expected


@pytest.mark.parametrize(
    "text", ["0", "-0", "-0.00", "9" * 34, "-0." + "9" * 34, "0.000001", "1E-7", "1E+3", "123.4500", "Infinity"]
)
def test_a_decimal_of_an_odd_form_is_written_just_as_the_driver_makes_it(text: str) -> None:
    assert built(FieldType.DECIMAL, Decimal(text)).bid == Decimal128(text).bid


@given(value=st.datetimes(timezones=st.timezones()), declared=st.sampled_from([FieldType.TIMESTAMP, FieldType.DATE]))
def test_a_moment_is_written_to_the_millisecond_in_utc(value: datetime, declared: FieldType) -> None:
    """Whatever zone it is told in, and near the ends of what Python knows."""
    written = built(declared, value)
    moment = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if isinstance(written, DatetimeMS):
        assert int(written) == moment
    else:
        assert (written - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) == moment
        assert written.utcoffset() == timedelta(0)


def test_a_date_that_python_has_is_written_as_one() -> None:
    assert built(FieldType.TIMESTAMP, "0001-01-01T00:00:00+00:00") == datetime(1, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (FieldType.JSON, JsonText(f"[{'9' * 5_000}]")),
        (FieldType.JSON, JsonText("[" * DEEP + "]" * DEEP)),
        (FieldType.JSON, JsonText("{")),
        (FieldType.JSON, JsonText("[1e99999999999999999999]")),
        (FieldType.INT, Decimal("1E+5000")),
        (FieldType.INT, 2**63),
    ],
)
def test_a_value_that_bson_cannot_hold_refuses_the_item(kind: FieldType, value: Any) -> None:
    with pytest.raises(RecordError, match="v: "):
        built(kind, value)


def test_whole_numbers_of_json_keep_their_width() -> None:
    value = built(FieldType.JSON, JsonText(f"[0, -7, 2147483648, {2**63}]"))
    assert value == [0, -7, 2**31, Decimal128(str(2**63))]
    assert bson.decode(bson.encode({"v": value}))["v"] == value


class Encoding:
    """A collection that does with documents what the driver does before it sends them."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    async def insert_many(self, documents: Sequence[Any], *, ordered: bool) -> None:
        assert not ordered
        encoded = [bson.encode(document) for document in documents]
        self.held += [bson.decode(raw)["_id"] for raw in encoded]

    async def insert_one(self, document: Any) -> None:
        await self.insert_many([document], ordered=False)


@pytest.mark.parametrize("odd", ["nested", "half a pair"])
async def test_a_document_that_the_driver_cannot_encode_fails_alone(monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    document: dict[str, Any] = {"v": "\ud800"}
    if odd == "nested":
        for _ in range(DEEP):
            document = {"v": document}
    writer = MongoWriter(pipeline(field("v", FieldType.JSON)), "mongodb://127.0.0.1:1")
    collection = Encoding()
    monkeypatch.setattr(MongoWriter, "_collection", collection)
    items = [
        WriteItem(key=b"1", document={"_id": 1, **document}, replaces=ABSENT),
        WriteItem(key=b"2", document={"_id": 2, "v": "a"}, replaces=ABSENT),
    ]
    results = await writer.write(items)
    await writer.close()
    assert [result.outcome for result in results] == ["failed", "written"]
    assert collection.held == [2]


@pytest.mark.parametrize("kind", [FieldType.TIMESTAMP, FieldType.DATE])
def test_trap_18_postgres_reads_both_its_infinities(kind: FieldType) -> None:
    assert text_of(field("v", kind), "-infinity") == "-infinity"
    assert text_of(field("v", kind), "infinity") == "infinity"
    assert text_of(field("v", kind), "-0043-03-15") == "0044-03-15 BC"


@pytest.mark.parametrize("kind", [FieldType.JSON, FieldType.INFERRED])
def test_code_in_a_document_is_compared_and_shown_like_text(kind: FieldType) -> None:
    """BSON's code is a class of its own under Python's text; somebody may put it anywhere in a target."""
    mapping = CompiledMapping(pipeline(field("v", kind)))
    document = bson.decode(bson.encode({"_id": 1, "v": Code("a = 1")}))
    found = mapping.canonical_target(document)
    assert mapping.differing(mapping.canonical_source({"id": 1, "v": "a = 2"}), found) == ("v",)
    assert msgspec.json.encode(mapping.shown_target(document, ["v"])) == b'{"v":"a = 1"}'


async def test_a_row_that_was_written_to_a_table_is_known_again_in_the_types_of_its_columns() -> None:
    """0.1 is no float that equals it, and a column besides the mapped ones is none of ours: the row outlived its source's."""
    fields = (field("price", FieldType.FLOAT), field("extra", FieldType.JSON), field("at", FieldType.TIMESTAMP))
    spec = pipeline(*fields, target_key=(KeyColumn(path="id", type=KeyType.INT),))
    mapping = CompiledMapping(spec)
    key = mapping.source.codec.encode([1])
    at = datetime(2026, 1, 1, tzinfo=UTC)
    row = {"id": 1, "price": Decimal("0.1"), "extra": JsonText('{"a": 1, "b": 2}'), "at": at}
    writer = PostgresWriter(spec, "postgresql://nobody@127.0.0.1:1/none")
    written = WriteItem(key=key, document=writer.document(key, StoredRecord(key=key, fields=row), spec.fields), replaces=ABSENT)
    await writer.close()
    there = {"id": 1, "price": 0.1, "extra": JsonText('{"b":2,"a":1}'), "at": at.replace(tzinfo=None), "deleted_at": None}
    ours = StoredRecord(key=key, fields=there, revision="1/2/(0,1)")
    assert _still_ours(mapping, written, ours) is ours
    assert _still_ours(mapping, written, StoredRecord(key=key, fields={**there, "price": 0.2}, revision="1/2/(0,1)")) is None


async def test_a_row_is_kept_as_it_stands_though_nobody_would_write_it_so() -> None:
    """What stands in the way of the undo file stands in the way of the whole run: 1.5 is no whole number, and it is there."""
    spec = pipeline(field("count", FieldType.INT), target_key=(KeyColumn(path="id", type=KeyType.INT),))
    key = CompiledMapping(spec).source.codec.encode([1])
    writer = PostgresWriter(spec, "postgresql://nobody@127.0.0.1:1/none")
    for value, text in ((Decimal("1.5"), "1.5"), (Decimal("NaN"), "NaN")):
        row = StoredRecord(key=key, fields={"id": 1, "count": value})
        assert writer.kept(row) == f'{{"id": "1", "count": "{text}"}}'
        with pytest.raises(RecordError, match="is no whole number"):
            writer.document(key, row, spec.fields)
    await writer.close()
