"""Ids and documents of an index: one form for each key, and rows as JSON that reads back as what the source said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.canonical import parse_json
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.values import JsonText
from gapwatch.errors import KeyMisfit, RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyColumn, KeyType, Rounding
from gapwatch.ports import StoredRecord
from gapwatch_connectors.opensearch.connection import encode
from gapwatch_connectors.opensearch.documents import _general, _json, build, routing_of
from gapwatch_connectors.opensearch.keys import DocumentIds
from tests.unit.core.samples import field, pipeline

UUID_TEXT = "0a1b2c3d-0000-4000-8000-00000000000f"


def test_the_driver_is_imported_where_it_is_used_and_nowhere_else() -> None:
    code = "import sys, gapwatch.wiring.service, gapwatch_connectors.opensearch.acks; print('opensearchpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


VALUES = st.one_of(
    st.text(max_size=5),
    st.integers() | st.booleans(),
    st.floats(),
    st.decimals() | st.decimals(min_value=-(10**6), max_value=10**6, places=3),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.datetimes(timezones=st.timezones()).map(lambda moment: moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)),
)


def said(make: Any, spec: FieldSpec, value: Any) -> tuple[str, str]:
    try:
        made = make(spec, value)
    except RecordError as error:
        return "refused", str(error)
    return type(made).__name__, repr(made)


@given(
    value=VALUES,
    kind=st.sampled_from(FieldType),
    precision=st.sampled_from(["s", "ms", "us"]),
    scale=st.none() | st.integers(-2, 4),
    rounding=st.sampled_from(Rounding),
)
def test_the_quick_forms_are_the_general_ones(
    value: Any, kind: FieldType, precision: str, scale: int | None, rounding: Rounding
) -> None:
    spec = replace(field("v", kind), precision=precision, scale=scale, rounding=rounding)
    assert said(_json, spec, value) == said(_general, spec, value)


def ids(kind: KeyType) -> DocumentIds:
    return DocumentIds([KeyColumn(path="_id", type=kind)])


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (KeyType.INT, 42, "42"),
        (KeyType.INT, -(10**30), f"-{10**30}"),
        (KeyType.TEXT, "a b/ü", "a b/ü"),
        (KeyType.UUID, UUID(UUID_TEXT), UUID_TEXT),
        (KeyType.OBJECTID, "0" * 23 + "f", "0" * 23 + "f"),
        (KeyType.DECIMAL, Decimal("10.50"), "10.5"),
        (KeyType.DECIMAL, Decimal("3E+3"), "3000"),
    ],
)
def test_a_key_has_one_id_and_is_found_by_it(kind: KeyType, value: Any, text: str) -> None:
    made = ids(kind)
    key = made.codec.encode([value])
    assert made.id_of(key) == text
    assert made.of(text) == key


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (KeyType.INT, "042"),
        (KeyType.INT, "4.0"),
        (KeyType.UUID, UUID_TEXT.replace("a", "A", 1)),
        (KeyType.OBJECTID, "0" * 22 + "fF"),
        (KeyType.DECIMAL, "10.50"),
        (KeyType.BYTES, "00"),
    ],
)
def test_an_id_of_another_form_is_refused(kind: KeyType, text: str) -> None:
    with pytest.raises(KeyMisfit):
        ids(kind).of(text)


def test_usual_spellings_are_the_same_key() -> None:
    made = ids(KeyType.UUID)
    spellings = [UUID_TEXT, UUID_TEXT.upper(), UUID_TEXT.replace("-", ""), UUID_TEXT.replace("-", "").upper()]
    assert {made.of(text) for text in spellings} == {made.codec.encode([UUID(UUID_TEXT)])}
    assert made.spellings(made.of(UUID_TEXT)) == spellings


def test_what_no_id_can_hold_is_proved_absent_without_asking() -> None:
    made = ids(KeyType.TEXT)
    for text in ("", "x" * 513, "\ud800"):
        assert made.spellings(made.codec.encode([text])) == []


@given(st.text(max_size=600))
def test_every_text_that_an_id_can_hold_comes_back(text: str) -> None:
    made = ids(KeyType.TEXT)
    key = made.codec.encode([text])
    for spelling in made.spellings(key):
        assert made.of(spelling) == key


def document(spec: FieldSpec, value: Any) -> Any:
    made = pipeline(spec)
    row = StoredRecord(key=b"", fields={"id": 1, spec.source: value})
    return build(made, ids(KeyType.INT), ids(KeyType.INT).codec.encode([1]), row, made.fields)


@pytest.mark.parametrize(
    ("spec", "value", "written"),
    [
        (field("f", FieldType.INT), 2**70, str(2**70)),
        (field("f", FieldType.DECIMAL), Decimal("12.50"), "12.5"),
        (field("f", FieldType.DECIMAL), Decimal("100000000000000000000001"), "100000000000000000000001"),
        (field("f", FieldType.DECIMAL, scale=1, rounding=Rounding.ROUND), Decimal("0.25"), "0.3"),
        (field("f", FieldType.FLOAT), 0.1, "0.1"),
        (field("f", FieldType.TEXT), UUID(UUID_TEXT), f'"{UUID_TEXT}"'),
        (field("f", FieldType.BOOL), True, "true"),
        (field("f", FieldType.BYTES), b"\x00\xff", '"AP8="'),
        (field("f", FieldType.TIMESTAMP), datetime(2026, 3, 1, 10, 20, 30, 456_999, tzinfo=UTC), '"2026-03-01T10:20:30.456Z"'),
        (
            field("f", FieldType.TIMESTAMP, precision="us"),
            datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
            '"1969-12-31T23:59:59.000001Z"',
        ),
        (field("f", FieldType.TIMESTAMP, precision="s"), datetime(2026, 3, 1, tzinfo=UTC), '"2026-03-01T00:00:00Z"'),
        (field("f", FieldType.DATE), date(2026, 3, 1), '"2026-03-01"'),
        (field("f", FieldType.TIME), time(10, 20, 30, 5), '"10:20:30.000005"'),
        (field("f", FieldType.JSON), JsonText('{"a": [1.10, 2]}'), '{"a":[1.10,2]}'),
        (field("f", FieldType.ARRAY), [1, None, 3], "[1,null,3]"),
        (field("f", FieldType.TEXT), None, "null"),
    ],
)
def test_a_value_is_written_exactly_and_reads_back_as_the_sources(spec: FieldSpec, value: Any, written: str) -> None:
    made = document(spec, value)
    raw = encode(made)
    assert raw == b'{"_id":"1","f":%b}' % written.encode()
    read = parse_json(raw)
    assert read == made
    mapping = CompiledMapping(pipeline(spec))
    assert mapping.differing(mapping.canonical_source({"id": 1, "f": value}), mapping.canonical_target(read)) == ()


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (field("f", FieldType.DECIMAL), Decimal("NaN")),
        (field("f", FieldType.FLOAT), float("inf")),
        (field("f", FieldType.TIMESTAMP), "infinity"),
        (field("f", FieldType.TIMESTAMP), "-0044-03-15T00:00:00Z"),
        (field("f", FieldType.DATE), "infinity"),
        (field("f", FieldType.TEXT), object()),
        (field("f", FieldType.JSON), JsonText("[1e99999999999999999999]")),
        (field("f", FieldType.TEXT), "__debezium_unavailable_value"),
        (field("f", FieldType.ARRAY), ["a", "__debezium_unavailable_value"]),
    ],
)
def test_lesson_21_what_has_no_form_is_refused_and_nothing_is_written_in_its_place(spec: FieldSpec, value: Any) -> None:
    with pytest.raises(RecordError):
        document(spec, value)


def test_nested_fields_and_versions() -> None:
    spec = replace(pipeline(field("a.b"), field("a.c"), version="v"), id="x")
    spec = replace(spec, target=replace(spec.target, version="_version"))
    row = StoredRecord(key=b"", fields={"id": 1, "a.b": "x", "a.c": "y", "v": 7})
    made = build(spec, ids(KeyType.INT), ids(KeyType.INT).codec.encode([1]), row, spec.fields)
    assert made == {"_id": "1", "a": {"b": "x", "c": "y"}, "_version": 7}
    with pytest.raises(RecordError):
        build(spec, ids(KeyType.INT), b"\x81\x01", StoredRecord(key=b"", fields={**row.fields, "v": None}), spec.fields)


@pytest.mark.parametrize("document", [{}, {"r": None}, {"r": {}}, {"r": [1]}, {"r": True}])
def test_d15_a_document_without_its_routing_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        routing_of(document, "r")


def test_a_routing_is_text() -> None:
    assert [routing_of({"a": {"r": value}}, "a.r") for value in ("x", 7, Decimal("3E+3"))] == ["x", "7", "3000"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.builds(
        SearchAddress,
        scheme=st.sampled_from(["http", "https"]),
        hosts=st.lists(st.sampled_from(["a:1", "[::1]:9200", "b.c:2"]), min_size=1, max_size=3).map(tuple),
        user=TEXTS,
        password=TEXTS,
        api_key=TEXTS,
        ca=TEXTS,
        client_cert=TEXTS,
        client_key=TEXTS,
    )
)
def test_an_address_comes_back_whatever_is_in_it(address: SearchAddress) -> None:
    assert SearchAddress.parse(address.encode()) == address
