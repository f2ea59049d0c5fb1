"""Stretches that are read column by column say what the general decoder says, however few of their records are unusual."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapwatch.core.envelopes import BatchDecoder, RawRecord, decoder_for
from gapwatch.core.envelopes.batches import LoopDecoder
from gapwatch.core.envelopes.compiled.columnwise import PASSED_OVER_MAX, Turns
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldSpec, FieldType, PipelineSpec
from gapwatch.model.stream import Side
from tests.property.test_compiled import (
    ANYTHING,
    INTS,
    NUMBERS,
    PLACEHOLDER,
    SPELLINGS,
    TEXTS,
    Told,
    assert_read_alike,
    mapped,
    rarely,
    versions,
)
from tests.unit.core.samples import change, field, mongo_change, pipeline, with_schema

RECORDS_MAX = 12
READ_AT_ONCE: list[tuple[FieldType, dict[str, Any]]] = [
    (FieldType.TEXT, {}),
    (FieldType.TEXT, {"nfc": True}),
    (FieldType.INT, {}),
    (FieldType.DECIMAL, {"wire": "text"}),
    (FieldType.DECIMAL, {"wire": "text", "scale": 2}),
    (FieldType.TIMESTAMP, {"wire": "iso"}),
    (FieldType.TIMESTAMP, {"wire": "iso", "precision": "us"}),
    (FieldType.BOOL, {}),
]
MOMENTS = st.integers(0, 3_000_000).map(lambda us: f"1970-01-01T00:00:{us / 1e6:09.6f}Z")
AMOUNTS = st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=2).map(str)
ODDITIES = st.none() | st.sampled_from(SPELLINGS) | ANYTHING | NUMBERS | MOMENTS.map(lambda text: text + text) | st.just("")
FEED = FeedSpec(kind=FeedKind.DEBEZIUM, topic="t")
USUAL_SEQUENCE = ['["24","25"]'] * 30 + [None, "[1]", '[null,"7"]', '["7",null]']


@st.composite
def fields_of(draw: st.DrawFn) -> list[FieldSpec]:
    """Mostly fields whose columns are read at once; now and then any."""
    if rarely(draw, 4):
        return [one for one, _ in draw(mapped())]
    kinds = draw(st.lists(st.sampled_from(READ_AT_ONCE), min_size=1, max_size=4))
    return [
        field(f"f{number}", kind, maskable=rarely(draw, 6), absent_is_null=draw(st.booleans()), **options)
        for number, (kind, options) in enumerate(kinds)
    ]


def raw(number: int, key: Any, value: Any) -> RawRecord:
    return RawRecord("t", 0, 10 + number, 900 + number, json.dumps(key).encode(), json.dumps(value).encode(), [])


COLUMNS: dict[tuple[FieldType, str], st.SearchStrategy[Any]] = {
    (FieldType.TEXT, ""): TEXTS,
    (FieldType.INT, ""): INTS,
    (FieldType.DECIMAL, "text"): AMOUNTS,
    (FieldType.TIMESTAMP, "iso"): MOMENTS,
    (FieldType.BOOL, ""): st.booleans(),
}


@st.composite
def rows(draw: st.DrawFn) -> tuple[PipelineSpec, Side, list[RawRecord]]:
    fields, feed = draw(fields_of()), replace(FEED, full_before=rarely(draw, 4))
    spec = pipeline(*fields, source_feed=feed, target_feed=FEED, **(versions(draw) if rarely(draw, 3) else {}))
    usual = {one.source: COLUMNS.get((one.type, one.wire), ANYTHING) for one in fields}
    strange, schemas, ops = rarely(draw, 2), draw(st.booleans()), draw(st.sampled_from(["c", "cu", "r", "cr", "cud"]))
    records = []
    for number in range(draw(st.integers(1, RECORDS_MAX))):
        row = {name: draw(ODDITIES) if strange and rarely(draw, 20) else draw(values) for name, values in usual.items()}
        row |= {"version": draw(st.integers(0, 99))}
        op = draw(st.sampled_from(ops))
        source = {
            "sequence": draw(st.sampled_from(USUAL_SEQUENCE)),
            "snapshot": draw(st.sampled_from(["false"] * 20 + ["last", None])),
        }
        value: Any = change(op, before=row if rarely(draw, 3) else None, after=None if op == "d" else row, **source)
        key: Any = {"id": draw(st.integers(0, 2**40) | INTS)}
        if schemas:
            key, value = {"schema": {}, "payload": key}, with_schema(value, [])
        records.append(raw(number, key, value))
    return spec, draw(st.sampled_from(list(Side))), records


@settings(max_examples=300, deadline=None)
@given(rows())
def test_stretches_of_rows_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)


MEMBERS: dict[FieldType, st.SearchStrategy[Any]] = {
    FieldType.TEXT: TEXTS,
    FieldType.INT: INTS | st.integers(0, 1_200).map(lambda number: {"$numberInt": str(number)}),
    FieldType.DECIMAL: AMOUNTS.map(lambda text: {"$numberDecimal": text}),
    FieldType.TIMESTAMP: st.integers(-(10**15), 10**15).map(lambda at: {"$date": at}),
    FieldType.BOOL: st.booleans(),
}
ODD_MEMBERS = (
    ODDITIES
    | NUMBERS.map(lambda text: {"$numberDecimal": text})
    | st.sampled_from(
        [{"$date": {"$numberLong": "5"}}, {"$date": "1970-01-01T00:00:00Z"}, {"$numberInt": "1", "$numberDecimal": "2"}]
    )
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[PipelineSpec, Side, list[RawRecord]]:
    fields = [(one, MEMBERS.get(one.type, ANYTHING)) for one in draw(fields_of())]
    feed = replace(FEED, post_images=draw(st.booleans()))
    spec = pipeline(*[one for one, _ in fields], target_feed=feed, **(versions(draw) if rarely(draw, 3) else {}))
    strange, schemas, ops = rarely(draw, 2), draw(st.booleans()), draw(st.sampled_from(["c", "cu", "r", "cud"]))
    records = []
    for number in range(draw(st.integers(1, RECORDS_MAX))):
        op, identifier = draw(st.sampled_from(ops)), draw(st.integers(0, 2**40) | st.just({"$numberLong": "-7"}))
        document: dict[str, Any] = {"_id": identifier}
        for one, values in fields:
            if not strange or not rarely(draw, 20):
                document[one.target] = draw(ODD_MEMBERS) if strange and rarely(draw, 20) else draw(values)
        document |= {"version": draw(st.integers(0, 99))}
        value: Any = mongo_change(op, after=None if op == "d" else document, updated=op == "u")
        key: Any = {"id": json.dumps(identifier)}
        if schemas:
            key, value = {"schema": {}, "payload": key}, {"schema": {}, "payload": value}
        records.append(raw(number, key, value))
    return spec, Side.OBSERVED, records


@settings(max_examples=300, deadline=None)
@given(documents())
def test_stretches_of_documents_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)


# ── they are in use ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ROW = {"id": 1, "a": "x", "b": "1.50", "c": "2026-11-27T02:44:27.123456Z", "d": 1_500, "e": "y", "v": 1}
DOCUMENT = {"_id": 1, "a": "x", "b": {"$numberDecimal": "1.5"}, "c": {"$date": 5}, "d": 7, "e": "y", "v": 1}


def spec_and_records(side: Side, changed: Sequence[dict[str, Any]]) -> tuple[PipelineSpec, list[RawRecord]]:
    fields = [field("a"), field("b", FieldType.DECIMAL, wire="text", scale=2), field("c", FieldType.TIMESTAMP, wire="iso")]
    spec = pipeline(*fields, field("d", FieldType.INT), field("e", maskable=True), target_feed=FEED, version="v")
    if side is Side.EXPECTED:
        return spec, [raw(at, {"id": at}, change("c", after=ROW | more)) for at, more in enumerate(changed)]
    return spec, [raw(at, {"id": str(at)}, mongo_change("c", after=DOCUMENT | more)) for at, more in enumerate(changed)]


def turns_of(decoder: BatchDecoder) -> Turns:
    [turns] = [value for value in decoder._loop.__defaults__ if isinstance(value, Turns)]  # type: ignore[union-attr]
    return turns


@pytest.mark.parametrize("side", Side)
def test_usual_records_are_read_column_by_column(side: Side) -> None:
    spec, records = spec_and_records(side, [{}, {"a": "é"}, {"a": None}, {"b": None, "c": None}, {"d": 999}])
    decoder = BatchDecoder(decoder_for(spec, side, CompiledMapping(spec)))
    decoder.decode([Told(record) for record in records])
    assert turns_of(decoder).waits == 0
    assert_read_alike(spec, side, records)


@pytest.mark.parametrize("side", Side)
def test_one_unusual_record_sends_its_stretch_through_the_loop(side: Side) -> None:
    odd: dict[str, Any] = {"a": PLACEHOLDER} if side is Side.EXPECTED else {"b": {"$numberInt": "x"}}
    spec, records = spec_and_records(side, [{}, odd, {}])
    assert_read_alike(spec, side, [*records, *(record._replace(offset=record.offset + 9) for record in records)])
    decoder: LoopDecoder = decoder_for(spec, side, CompiledMapping(spec))
    batches = BatchDecoder(decoder)
    batches.decode([Told(record) for record in records])
    assert turns_of(batches).waits == 1


def test_trying_in_vain_becomes_seldom_and_succeeding_brings_it_back() -> None:
    turns, tried = Turns(), []
    for stretch in range(400):
        if turns.mine():
            tried.append(stretch)
            turns.failed()
    assert tried[:5] == [0, 2, 5, 10, 19]
    assert tried[-1] - tried[-2] == PASSED_OVER_MAX + 1
    while not turns.mine():
        pass
    turns.succeeded()
    assert turns.mine()
    turns.failed()
    assert [turns.mine(), turns.mine()] == [False, True]


def test_times_whose_lengths_only_sum_up_are_read_one_by_one() -> None:
    whole = "2026-11-27T02:44:27.123456Z"
    for pair in (["", whole + whole], [whole[:-1], whole + "Z"], [whole.replace("Z", "0"), whole]):
        spec, records = spec_and_records(Side.EXPECTED, [{"c": text} for text in pair])
        again = [record._replace(offset=record.offset + len(pair)) for record in reversed(records)]
        assert_read_alike(spec, Side.EXPECTED, [*records, *again])
