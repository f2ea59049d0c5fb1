"""Batches of records of one form, some of them damaged: what is remembered of the record before never decides about the next."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gapwatch_native
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native.tests.test_equal import assert_read_alike
from tests.property.test_compiled import PLACEHOLDER, Told
from tests.unit.core.samples import APPENDED, COMMITTED, change, field, mongo_change, pipeline, with_schema

from gapwatch.core.envelopes import BatchDecoder, RawRecord, decoder_for
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyColumn, KeyType, PipelineSpec
from gapwatch.model.stream import Side

FEED = FeedSpec(kind=FeedKind.DEBEZIUM, topic="t")
FIELDS = (
    field("name", FieldType.TEXT),
    field("note", FieldType.TEXT, maskable=True, nfc=True),
    field("total", FieldType.DECIMAL, scale=2, wire="text"),
    field("score", FieldType.FLOAT),
    field("at", FieldType.TIMESTAMP, wire="iso", precision="us"),
    field("seen", FieldType.TIMESTAMP, wire="epoch_us"),
    field("tags", FieldType.ARRAY, wire="items:text:"),
    field("more", FieldType.JSON, wire="json_text"),
    field("count", FieldType.INT),
    field("done", FieldType.BOOL),
    field("ref", FieldType.UUID),
)
KEYS: dict[KeyType, Callable[[int], Any]] = {
    KeyType.INT: lambda number: number * 37 - 50,
    KeyType.TEXT: lambda number: f"k\0{number} é",
    KeyType.UUID: lambda number: f"{number:08x}-0000-4000-8000-000000000001",
    KeyType.OBJECTID: lambda number: f"{number:024x}",
    KeyType.DECIMAL: lambda number: f"{number}.50",
    KeyType.BYTES: lambda number: base64.b64encode(bytes([number])).decode(),
}


def spec_of(kind: KeyType, *, full_before: bool = False) -> PipelineSpec:
    return pipeline(
        *FIELDS,
        source_key=(KeyColumn(path="id", type=kind),),
        target_key=(KeyColumn(path="_id", type=kind),),
        source_feed=replace(FEED, full_before=full_before),
        target_feed=FEED,
    )


def row(number: int) -> dict[str, Any]:
    return {
        "name": f'n{number} "quoted" \\ \n',
        "note": "plain" if number % 3 else PLACEHOLDER,
        "total": f"{number * 10}.50",
        "score": number / 7,
        "at": f"2026-11-27T02:44:{number % 60:02d}.12345{number % 10}Z",
        "seen": COMMITTED * 1_000 + number,
        "tags": ["a", str(number)],
        "more": f'{{"b": {number}, "a": [1.50, null]}}',
        "count": number * 100,
        "done": number % 2 == 0,
        "ref": KEYS[KeyType.UUID](number),
        "unmapped": f"u{number % 2}",
    }


def document(number: int, identifier: Any) -> dict[str, Any]:
    made = {"_id": identifier, **row(number)}
    made |= {"total": {"$numberDecimal": made["total"]}, "seen": {"$date": {"$numberLong": str(COMMITTED + number)}}}
    return made | {"count": {"$numberLong": str(number * 10)}, "at": {"$date": made["at"][:23] + "Z"}}


def rows(count: int, kind: KeyType, *, schemas: bool, ops: Sequence[str] = "c") -> list[tuple[Any, Any]]:
    found = []
    for number in range(count):
        op = ops[number % len(ops)]
        image = {"id": KEYS[kind](number), **row(number)}
        before = {"u": image if number % 4 else {**image, "count": 1}, "d": image}.get(op)
        sequence = f'["{number + 20}","{number + 25}"]'
        value: Any = change(op, before=before, after=None if op == "d" else image, sequence=sequence)
        named: Any = {"id": KEYS[kind](number)}
        found.append((with_schema(value, []) if schemas else value, {"schema": {}, "payload": named} if schemas else named))
    return found


def documents(count: int, kind: KeyType, *, schemas: bool, ops: Sequence[str] = "c") -> list[tuple[Any, Any]]:
    found = []
    for number in range(count):
        op = ops[number % len(ops)]
        identifier = KEYS[kind](number)
        if kind is KeyType.OBJECTID:
            identifier = {"$oid": identifier}
        elif kind is KeyType.INT and number % 2:
            identifier = {"$numberLong": str(identifier)}
        after = None if op == "d" else document(number, identifier)
        value: Any = mongo_change(op, after=after, updated=number % 2 == 0, ord=number)
        named: Any = {"id": json.dumps(identifier)}
        found.append(
            ({"schema": {}, "payload": value} if schemas else value, {"schema": {}, "payload": named} if schemas else named)
        )
    return found


def recorded(pairs: Sequence[tuple[Any, Any]]) -> list[RawRecord]:
    def raw(value: Any) -> bytes | None:
        return value if isinstance(value, bytes) or value is None else json.dumps(value, separators=(",", ":")).encode()

    return [RawRecord("t", 0, 10 + at, APPENDED + at, raw(key), raw(value), []) for at, (value, key) in enumerate(pairs)]


def damaged(data: bytes, how: str, at: int) -> bytes | None:
    """Return a record's bytes with something wrong, or merely unusual, at a place."""
    quotes = [place for place, byte in enumerate(data) if byte == 0x22]
    quote = quotes[at % len(quotes)]
    member = data.index(b'{"', 0) + 1
    match how:
        case "cut":
            return data[: at % len(data)]
        case "garbage":
            return data + [b"x", b"}", b" ", b"\n\n", b"{}", b"\0"][at % 6]
        case "byte":
            place = at % len(data)
            return data[:place] + [b"\xff", b"\x01", b"0", b"e", b'"', b"\\", b"-", b"}"][at % 8] + data[place + 1 :]
        case "twice":
            names = [b'"name":"x",', b'"id":5,', b'"op":"d",', b'"after":null,', b'"ts_ms":1,', b'"count":7,', b'\\"count\\":7,']
            places = [place for place in range(len(data)) if data[place : place + 2] == b'{"']
            place = places[at % 3 % len(places)]
            return data[: place + 1] + names[at % len(names)] + data[place + 1 :]
        case "more":
            depth = (5, 60, 63, 64, 65, 66, 300, 1_200)[at % 8]
            values = [b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"1e400", b"-0", b"0.0e-5", b"9" * 50]
            values += [b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\q"', b'"\t"', b"01", b"1.", b"nul", b"NaN"]
            return data[:member] + b'"extra":' + values[at // 8 % len(values)] + b"," + data[member:]
        case "space":
            return data[:quote] + b" " + data[quote:]
        case "escape":
            return data[:quote] + b'"\\u006e' + data[quote + 1 :]
        case "nothing":
            return [None, b"", b"null", b"{}", b"[]", b" " + data, b"\xef\xbb\xbf" + data][at % 7]
        case _:
            return data


HOWS = ["", "", "", "", "", "cut", "garbage", "byte", "twice", "more", "space", "escape", "nothing"]
DAMAGES = st.lists(st.tuples(st.sampled_from(HOWS), st.integers(0, 2_000)), min_size=12, max_size=12)
OPS = st.sampled_from(["c", "r", "u", "d", "cu", "cccd", "cud", "cur"])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(KeyType)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(list(Side)),
    OPS,
    DAMAGES,
    DAMAGES,
)
def test_damaged_rows_change_nothing_for_their_neighbours(
    kind: KeyType, schemas: bool, full: bool, in_key: bool, side: Side, ops: str, damages: Any, key_damages: Any
) -> None:
    made = recorded(rows(12, kind, schemas=schemas, ops=ops))
    made = [record._replace(value=damaged(record.value or b"", *damage)) for record, damage in zip(made, damages, strict=True)]
    if in_key:
        made = [record._replace(key=damaged(record.key or b"", *one)) for record, one in zip(made, key_damages, strict=True)]
    assert_read_alike(spec_of(kind, full_before=full), side, made)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([KeyType.INT, KeyType.TEXT, KeyType.OBJECTID]), st.booleans(), st.booleans(), OPS, DAMAGES, DAMAGES)
def test_damaged_documents_change_nothing_for_their_neighbours(
    kind: KeyType, schemas: bool, inside: bool, ops: str, damages: Any, key_damages: Any
) -> None:
    pairs = documents(12, kind, schemas=schemas, ops=ops)
    if inside:
        for (value, _), (how, at) in zip(pairs, damages, strict=True):
            envelope = value.get("payload", value)
            if envelope["after"] is not None:
                envelope["after"] = (damaged(envelope["after"].encode(), how, at) or b"").decode("utf-8", "replace")
    made = recorded(pairs)
    if not inside:
        made = [record._replace(value=damaged(record.value or b"", *one)) for record, one in zip(made, damages, strict=True)]
        made = [record._replace(key=damaged(record.key or b"", *one)) for record, one in zip(made, key_damages, strict=True)]
    assert_read_alike(spec_of(kind), Side.OBSERVED, made)


class Counting:
    """The module, and how many messages it was shown and read."""

    INTERFACE = gapwatch_native.INTERFACE
    Columns = gapwatch_native.Columns
    Run = gapwatch_native.Run

    def __init__(self) -> None:
        self.shown = self.read_by_it = 0

    def Loop(self, plan: dict[str, Any], /) -> Any:  # noqa: N802 - as the module's class
        self._loop = gapwatch_native.Loop(plan)
        return self

    def read(self, messages: Any, *rest: Any) -> int:
        self.shown += len(messages)
        count: int = self._loop.read(messages, *rest)
        self.read_by_it += count
        return count


def counted(spec: PipelineSpec, side: Side, made: Sequence[RawRecord]) -> tuple[int, int]:
    counting: Any = Counting()
    BatchDecoder(decoder_for(spec, side, CompiledMapping(spec), counting)).decode([Told(record) for record in made])
    return counting.shown, counting.read_by_it


@pytest.mark.parametrize("schemas", [False, True])
@pytest.mark.parametrize("kind", list(KeyType))
@pytest.mark.parametrize("ops", ["c", "ru", "cudr"])
def test_usual_rows_are_read_by_the_module(kind: KeyType, schemas: bool, ops: str) -> None:
    made = recorded(rows(12, kind, schemas=schemas, ops=ops))
    for full in (False, True):
        spec = spec_of(kind, full_before=full)
        assert_read_alike(spec, Side.EXPECTED, made)
        assert counted(spec, Side.EXPECTED, made) == (12, 12)


@pytest.mark.parametrize("schemas", [False, True])
@pytest.mark.parametrize("kind", [KeyType.INT, KeyType.TEXT, KeyType.OBJECTID])
@pytest.mark.parametrize("ops", ["c", "ru", "cudr"])
def test_usual_documents_are_read_by_the_module(kind: KeyType, schemas: bool, ops: str) -> None:
    made = recorded(documents(12, kind, schemas=schemas, ops=ops))
    assert_read_alike(spec_of(kind), Side.OBSERVED, made)
    assert counted(spec_of(kind), Side.OBSERVED, made) == (12, 12)


def test_a_plan_that_makes_no_sense_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="The plan has no names"):
        gapwatch_native.Loop({})


@pytest.mark.parametrize("number", [2**53, 2**53 + 1, 2**63 - 1, -(2**53) - 1, -(2**63), -(2**63) - 1, 2**64])
def test_whole_numbers_in_a_field_of_floats_are_read_alike(number: int) -> None:
    """The least one has no positive counterpart: it was taken for a small one, and written digit by digit."""
    usual = rows(12, KeyType.INT, schemas=False)
    made = recorded([({**value, "after": {**value["after"], "score": number}}, key) for value, key in usual])
    assert_read_alike(spec_of(KeyType.INT), Side.EXPECTED, made)
