"""The compiled loops say of every record what the general decoder says, whatever the mapping and however broken the record."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapwatch.core.envelopes import BatchDecoder, Decoder, Event, EventColumns, RawRecord, Refused, decoder_for
from gapwatch.core.envelopes.columns import fits, out_of_range
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldSpec, FieldType, KeyColumn, KeyType, Match, PipelineSpec, Rounding
from gapwatch.model.stream import Side
from tests.unit.core.samples import APPENDED, COMMITTED, change, field, mongo_change, pipeline, with_schema

PLACEHOLDER = "__debezium_unavailable_value"
SPELLINGS = [PLACEHOLDER, PLACEHOLDER.encode().hex(), base64.b64encode(PLACEHOLDER.encode()).decode()]


class Told(NamedTuple):
    """A message as a Kafka client hands it over."""

    record: RawRecord

    def topic(self) -> str:
        return self.record.topic

    def partition(self) -> int:
        return self.record.partition

    def offset(self) -> int:
        return self.record.offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self.record.timestamp

    def key(self) -> bytes | None:
        return self.record.key

    def value(self) -> bytes | None:
        return self.record.value

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        return list(self.record.headers) or None


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = st.text(max_size=12) | st.text("ab é\u0663", max_size=3) | st.text("x", min_size=120, max_size=140)
INTS = (
    st.integers(-1_100, 1_100)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**63 - 1, -(2**63), 10**18, 100, 9_223_372_036_825_200])
)
NUMBERS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**6), max_value=10**6).map(str),
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
    st.from_regex(r"\A-?[0-9]{1,4}\.?[0-9]{0,5}\Z"),
    st.sampled_from(["0", "-0.0", "00.50", "7.", ".5", "1e5", "+3", "NEGATIVE_INFINITY", "\u0661.5", "\u0663.50", "1_0.5"]),
)
MOMENTS = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.from_regex(r"\A20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]{0,10})?(Z|\+01:00|)\Z"),
    st.sampled_from(["infinity", "2026-11-27T02:44:27.\u0661\u0662\u0663Z", "1969-12-31T23:59:59.5Z", "2026-W48-5T02:44:27.5Z"]),
)
SCALARS = st.none() | st.booleans() | INTS | TEXTS | NUMBERS | st.floats(allow_nan=False, allow_infinity=False)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
UNSCALED = st.integers(-(10**12), 10**12).map(
    lambda number: base64.b64encode(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)).decode()
)
WIRES: list[tuple[FieldType, dict[str, Any], st.SearchStrategy[Any]]] = [
    (FieldType.TEXT, {}, TEXTS),
    (FieldType.TEXT, {"nfc": True}, TEXTS),
    (FieldType.INT, {}, INTS),
    (FieldType.INT, {"scale": -2}, INTS),
    (FieldType.DECIMAL, {"wire": "text"}, NUMBERS),
    (FieldType.DECIMAL, {"wire": "text", "scale": 2}, NUMBERS),
    (FieldType.DECIMAL, {"wire": "text", "scale": 1, "rounding": Rounding.ROUND}, NUMBERS),
    (FieldType.DECIMAL, {"wire": "base64_unscaled", "wire_scale": 3}, UNSCALED),
    (FieldType.DECIMAL, {"wire": "base64_unscaled", "wire_scale": 3, "scale": 2}, UNSCALED),
    (FieldType.DECIMAL, {}, st.floats(allow_nan=False, allow_infinity=False) | INTS),
    (FieldType.FLOAT, {}, st.floats(allow_nan=False, allow_infinity=False) | INTS),
    (FieldType.FLOAT, {"wire": "base64_unscaled", "wire_scale": 3}, UNSCALED),
    *[
        (FieldType.TIMESTAMP, {"wire": wire, "precision": precision, "rounding": rounding}, INTS)
        for wire in ("epoch_ms", "epoch_us")
        for precision in ("s", "ms", "us")
        for rounding in Rounding
    ],
    (FieldType.TIMESTAMP, {"wire": "epoch_ms", "timezone": "Europe/Berlin"}, st.integers(0, 2_000_000_000_000)),
    (FieldType.TIMESTAMP, {"wire": "iso"}, MOMENTS),
    (FieldType.TIMESTAMP, {"wire": "iso", "precision": "us"}, MOMENTS),
    (FieldType.TIMESTAMP, {"wire": "iso", "rounding": Rounding.ROUND}, MOMENTS),
    (FieldType.DATE, {"wire": "epoch_days"}, st.integers(-(10**6), 10**6) | INTS),
    (FieldType.DATE, {"wire": "epoch_us"}, st.integers(-(10**6), 10**6).map(lambda days: days * 86_400_000_000) | INTS),
    (FieldType.TIMESTAMP, {"wire": "epoch_days"}, st.integers(-(10**6), 10**6) | INTS),
    (FieldType.TIME, {"wire": "time_us"}, st.integers(0, 86_400_000_000)),
    (FieldType.BOOL, {}, st.booleans()),
    (FieldType.UUID, {}, st.uuids().map(str)),
    (FieldType.BYTES, {"wire": "base64"}, st.binary(max_size=9).map(lambda raw: base64.b64encode(raw).decode())),
    (FieldType.JSON, {"wire": "json_text"}, ANYTHING.map(json.dumps)),
    (FieldType.JSON, {"wire": "text"}, ANYTHING.map(json.dumps) | TEXTS),
    (FieldType.ARRAY, {"wire": "items:int:"}, st.lists(INTS | st.none(), max_size=4)),
    (FieldType.INFERRED, {}, ANYTHING),
]


@st.composite
def mapped(draw: st.DrawFn) -> list[tuple[FieldSpec, st.SearchStrategy[Any]]]:
    """Fields, each with its usual values."""
    found = []
    for number, (kind, options, values) in enumerate(draw(st.lists(st.sampled_from(WIRES), min_size=1, max_size=5))):
        spec = field(f"f{number}", kind, maskable=draw(st.booleans()), absent_is_null=draw(st.booleans()), **options)
        if kind in (FieldType.INT, FieldType.DECIMAL, FieldType.FLOAT) and rarely(draw, 4):
            spec = replace(spec, tolerance=Decimal("0.5"))
        if number and rarely(draw, 8):
            spec = replace(spec, source="f0")
        found.append((spec, values))
    return found


def versions(draw: st.DrawFn) -> dict[str, Any]:
    match = draw(st.sampled_from([Match.DIGEST, Match.DIGEST, Match.PRESENCE, Match.VERSION]))
    usual = ["version"] * 9 if match is Match.VERSION else ["", "", "version"] * 3
    return {"version": draw(st.sampled_from([*usual, "f0", ""])), "match": match}


def rarely(draw: st.DrawFn, one_in: int) -> bool:
    """Return True once in a while; plain integers would be drawn from their ends far more often."""
    return draw(st.sampled_from([False] * (one_in - 1) + [True]))


def odd(usual: st.SearchStrategy[Any], draw: st.DrawFn) -> Any:
    """Mostly a usual value; sometimes null, the placeholder, or anything at all."""
    if not rarely(draw, 8):
        return draw(usual)
    return draw(st.one_of(st.none(), st.sampled_from(SPELLINGS), ANYTHING))


def assert_read_alike(spec: PipelineSpec, side: Side, records: Sequence[RawRecord]) -> None:
    """Read the records both ways, in two batches, and compare all that was said."""
    mapping = CompiledMapping(spec)
    batches, general = BatchDecoder(decoder_for(spec, side, mapping)), decoder_for(spec, side, mapping)
    for part in (records[: len(records) // 2], records[len(records) // 2 :]):
        columns = batches.decode([Told(record) for record in part])
        expected = EventColumns(batches.shape)
        for record in part:
            add_alone(general, record, expected)
        assert isinstance(columns, EventColumns)
        assert columns.all() == expected.all()
        assert [said(item) for item in columns.others] == [said(item) for item in expected.others]


def add_alone(general: Decoder, record: RawRecord, columns: EventColumns) -> None:
    """Add what the general decoder says of one record: what cannot be kept is refused."""
    try:
        decoded = general.decode(record)
        if not all(map(fits, decoded)):
            raise out_of_range()
    except RecordError as error:
        columns.others.append((record.offset, Refused(record, error)))
        return
    for item in decoded:
        if isinstance(item, Event):
            columns.add(item, record.offset, record.timestamp)
        else:
            columns.others.append((record.offset, item))


def said(other: tuple[int, Any]) -> Any:
    offset, item = other
    return (offset, item.record, item.error.reason, str(item.error)) if isinstance(item, Refused) else other


# ── Debezium's rows ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ROW_KEYS: list[tuple[list[KeyColumn], dict[str, st.SearchStrategy[Any]]]] = [
    ([KeyColumn(path="id", type=KeyType.INT)], {"id": INTS}),
    ([KeyColumn(path="id", type=KeyType.TEXT)], {"id": TEXTS | st.just("a\0b")}),
    ([KeyColumn(path="id", type=KeyType.UUID)], {"id": st.uuids().map(str)}),
    ([KeyColumn(path="id", type=KeyType.DECIMAL)], {"id": NUMBERS}),
    ([KeyColumn(path="id", type=KeyType.INT), KeyColumn(path="no", type=KeyType.TEXT)], {"id": INTS, "no": TEXTS}),
]
OPS = [*"cuuucuuudrcuuucuuudrcuuucuuudr", "t", "m", "x"]
SEQUENCES = [
    '["24","25"]',
    '["24","25"]',
    '["24","25"]',
    '[null,"7"]',
    "[4,5]",
    '["24"]',
    '["x","25"]',
    "",
    None,
    '["1.0","2"]',
    '[ "3" , "4" ]',
]
SNAPSHOTS = [*["false"] * 9, "true", "last", "incremental", "FALSE", None, True, False]


@st.composite
def row_cases(draw: st.DrawFn) -> tuple[PipelineSpec, Side, list[RawRecord]]:
    fields = draw(mapped())
    key, key_values = draw(st.sampled_from(ROW_KEYS))
    spec = pipeline(
        *[spec for spec, _ in fields],
        source_key=key,
        target_key=key,
        source_feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="t", full_before=draw(st.booleans())),
        target_feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="t"),
        **versions(draw),
    )
    columns = {spec.source: values for spec, values in fields}
    schemas = draw(st.booleans())

    def row() -> Any:
        made = {name: odd(values, draw) for name, values in columns.items()}
        made |= {"version": odd(st.integers(0, 99), draw), "other": draw(ANYTHING)}
        if rarely(draw, 20):
            made.pop(draw(st.sampled_from(sorted(made))))
        return draw(st.sampled_from([None, 3, "x"])) if rarely(draw, 20) else made

    records = []
    for number in range(draw(st.integers(1, 5))):
        named = {name: odd(values, draw) for name, values in key_values.items()}
        op = draw(st.sampled_from(OPS))
        source = {"sequence": draw(st.sampled_from(SEQUENCES)), "snapshot": draw(st.sampled_from(SNAPSHOTS))}
        after = row()
        before = draw(st.sampled_from([None, after])) if draw(st.booleans()) else row()
        value: Any = change(op, before=before, after=None if op == "d" else after, **source)
        records.append(message(draw, number, wrapped(draw, value, schemas), key_of(draw, named, schemas)))
    return spec, draw(st.sampled_from(list(Side))), records


def wrapped(draw: st.DrawFn, value: Any, schemas: bool) -> Any:
    if not schemas or rarely(draw, 10):
        return value
    described = draw(st.sampled_from([[], [{"field": "f0", "type": "int64", "name": "io.debezium.time.MicroTimestamp"}]]))
    return with_schema(value, described)


def key_of(draw: st.DrawFn, named: Any, schemas: bool) -> Any:
    if rarely(draw, 12):
        return draw(st.sampled_from([None, b"", b"plain", b"[1]", b'{"no": 1}', b'{"id": "1"}']))
    return {"schema": {"type": "struct", "fields": []}, "payload": named} if schemas else named


def message(draw: st.DrawFn, number: int, value: Any, key: Any, headers: Sequence[tuple[str, bytes]] = ()) -> RawRecord:
    """Return the record of JSON values, now and then cut short or replaced."""
    raw = json.dumps(value, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))).encode() if value is not None else None
    if raw and rarely(draw, 15):
        broken = [None, raw[: draw(st.integers(0, len(raw)))], raw.replace(b'"', b"\xff", 1)]
        if isinstance(value, dict):
            broken.append(json.dumps({**value, "payload": {"op": "c"}}).encode())
        raw = draw(st.sampled_from(broken))
    encoded = key if isinstance(key, bytes) or key is None else json.dumps(key, separators=(",", ":")).encode()
    if encoded and rarely(draw, 15):
        encoded = encoded[: draw(st.integers(0, len(encoded)))]
    return RawRecord("t", 0, 10 + number, APPENDED + number, encoded, raw, list(headers))


@settings(max_examples=200, deadline=None)
@given(row_cases())
def test_rows_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)


# ── documents ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

LONGS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2_000_000_000_000)
WHOLES = LONGS | LONGS.map(lambda n: {"$numberLong": str(n)}) | st.integers(-900, 1_200).map(lambda n: {"$numberInt": str(n)})
MEMBERS: dict[FieldType, st.SearchStrategy[Any]] = {
    FieldType.TEXT: TEXTS,
    FieldType.INT: WHOLES,
    FieldType.DECIMAL: NUMBERS.map(lambda text: {"$numberDecimal": text}) | WHOLES | NUMBERS | st.floats(-1e9, 1e9),
    FieldType.TIMESTAMP: st.one_of(
        LONGS.map(lambda n: {"$date": n}),
        LONGS.map(lambda n: {"$date": {"$numberLong": str(n)}}),
        MOMENTS.map(lambda t: {"$date": t}),
    ),
    FieldType.BOOL: st.booleans(),
}
MALFORMED = [
    {"$numberInt": "1", "$numberLong": "2"},
    {"$numberDecimal": "1", "$numberInt": "2"},
    {"$numberInt": "x"},
    {"$numberLong": " 7"},
    {"$numberLong": None},
    {"$numberDouble": "NaN"},
    {"$date": None},
    {"$date": {"$numberLong": "x"}},
    {"$date": 1, "$numberInt": "2"},
    {"$oid": "00"},
    {"$numberInt": "1", "a": 2, "b": 3},
    {},
]
IDS: dict[KeyType, st.SearchStrategy[Any]] = {
    KeyType.INT: WHOLES,
    KeyType.TEXT: TEXTS | st.just("a\0b"),
    KeyType.OBJECTID: st.binary(min_size=12, max_size=12).map(lambda raw: {"$oid": raw.hex()}),
    KeyType.UUID: st.uuids().map(lambda value: {"$uuid": str(value)}),
}
OPERATIONS = [*["insert", "replace", "update", "update_lookup", "update_touched", "delete"] * 6, "drop"]


@st.composite
def documents(draw: st.DrawFn) -> tuple[PipelineSpec, Any, Any]:
    """Return a pipeline, and what makes documents and ids for it."""
    fields = [(spec, MEMBERS.get(spec.type, ANYTHING)) for spec, _ in draw(mapped())]
    if rarely(draw, 3):
        fields[0] = (replace(fields[0][0], target="deep.f0"), fields[0][1])
        if len(fields) > 1 and rarely(draw, 3):
            fields[1] = (replace(fields[1][0], target="deep"), ANYTHING)
    kind = draw(st.sampled_from(list(IDS)))
    path = draw(st.sampled_from([*["_id"] * 8, "_id.no", "no"]))
    spec = pipeline(
        *[spec for spec, _ in fields],
        source_key=[KeyColumn(path="id", type=kind)],
        target_key=[KeyColumn(path=path, type=kind)],
        **versions(draw),
    )

    def identifier() -> Any:
        value = draw(ANYTHING | st.sampled_from(MALFORMED)) if rarely(draw, 12) else draw(IDS[kind])
        return {"_id.no": {"no": value}}.get(path, value)

    def document() -> Any:
        if rarely(draw, 20):
            return draw(st.sampled_from([None, [1], "x", {"$oid": "0" * 24}, {"a": 1}]))
        made: dict[str, Any] = {"_id": identifier()}
        for spec, values in fields:
            if not rarely(draw, 10):
                made[spec.target] = draw(st.sampled_from(MALFORMED)) if rarely(draw, 12) else odd(values, draw)
        if "deep.f0" in made and not rarely(draw, 4):
            made["deep"] = draw(st.sampled_from([{"f0": made.pop("deep.f0")}, {"f1": 1}, {"$numberInt": "5"}, None]))
        made |= {"version": odd(WHOLES, draw), "no": draw(IDS[kind]), "unread": draw(st.sampled_from(MALFORMED))}
        return made

    return spec, document, identifier


@st.composite
def feed_cases(draw: st.DrawFn) -> tuple[PipelineSpec, Side, list[RawRecord]]:
    spec, document, identifier = draw(documents())
    records = []
    for number in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(OPERATIONS))
        headers = [
            ("gapwatch-op", op.encode()),
            ("gapwatch-time", draw(st.sampled_from([*[b"1726000000123"] * 20, b"", b"-1", b"9" * 21]))),
            ("gapwatch-position", draw(st.sampled_from([*[b"7:0", b"7:1"] * 10, b"7", b":", b"x:1", b"7:0:1"]))),
        ]
        if rarely(draw, 10):
            marker = [("gapwatch-watermark", b"1726000000123")]
            headers = draw(st.sampled_from([headers[::-1], marker, headers[:2], headers[1:], [*headers, ("more", b"x")]]))
        value = None if op in ("delete", "update_touched") and not rarely(draw, 9) else document()
        key: Any = {"_id": identifier()}
        if rarely(draw, 15):
            key = draw(st.sampled_from([None, b"", b"x", {"id": 1}]))
        records.append(message(draw, number, value, key, headers))
    return spec, Side.OBSERVED, records


@settings(max_examples=200, deadline=None)
@given(feed_cases())
def test_records_of_our_reader_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)


BROKEN_DOCUMENTS = ["", "x", "null", "[]", 5, ' {"_id": 1}', '{"$oid": "1", "_id": 2}', '{"_id": 1, "_id": 2}']


@st.composite
def mongo_cases(draw: st.DrawFn) -> tuple[PipelineSpec, Side, list[RawRecord]]:
    spec, document, identifier = draw(documents())
    feed = FeedSpec(kind=FeedKind.DEBEZIUM, topic="t", post_images=draw(st.booleans()))
    spec = replace(spec, target=replace(spec.target, feed=feed))
    schemas = draw(st.booleans())
    records = []
    for number in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(OPS))
        source = {
            "snapshot": draw(st.sampled_from(SNAPSHOTS)),
            "txnNumber": draw(st.sampled_from([*[None, None, 4] * 6, "x"])),
            "ord": draw(st.sampled_from([*[1, 2, 3] * 6, None])),
            "ts_ms": draw(st.sampled_from([*[COMMITTED] * 20, None, "x"])),
        }
        after = None if op == "d" and not rarely(draw, 9) else document()
        value: Any = mongo_change(op, after=after, updated=draw(st.booleans()), **source)
        if rarely(draw, 15):
            value["after"] = draw(st.sampled_from(BROKEN_DOCUMENTS))
        key: Any = (
            {"id": json.dumps(identifier())} if draw(st.integers(0, 10)) else draw(st.sampled_from([{"id": 4}, {}, b"x", None]))
        )
        if schemas and isinstance(key, dict):
            key = {"schema": {}, "payload": key}
        records.append(message(draw, number, {"schema": {}, "payload": value} if schemas else value, key))
    return spec, Side.OBSERVED, records


@settings(max_examples=200, deadline=None)
@given(mongo_cases())
def test_debeziums_documents_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)


# ── the loops are in use ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("feed", ["rows", "rows with schemas", "documents", "reader"])
def test_usual_records_never_reach_the_general_decoder(feed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [field("a"), field("b", FieldType.DECIMAL, wire="text"), field("c", FieldType.TIMESTAMP, wire="iso", maskable=True)]
    spec = pipeline(*fields)
    row = {"id": 1, "a": "é", "b": "1.50", "c": "2026-11-27T02:44:27.123456Z"}
    document = {"_id": {"$numberInt": "1"}, "a": "x", "b": {"$numberDecimal": "1.5"}, "c": {"$date": 5}}
    side, headers = Side.OBSERVED, [("gapwatch-op", b"insert"), ("gapwatch-time", b"5"), ("gapwatch-position", b"6:7")]
    key: Any = {"_id": {"$numberInt": "1"}}
    value: Any = document
    match feed:
        case "rows":
            side, key, value = Side.EXPECTED, {"id": 1}, change("c", after=row)
        case "rows with schemas":
            side, key = Side.EXPECTED, {"schema": {}, "payload": {"id": 1}}
            value = with_schema(change("u", before=row, after=row), [])
        case "documents":
            spec = replace(spec, target=replace(spec.target, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="t")))
            key, value = {"id": "1"}, mongo_change("c", after=document)
    records = [
        Told(RawRecord("t", 0, number, 9, json.dumps(key).encode(), json.dumps(value).encode(), headers)) for number in range(3)
    ]
    decoder = decoder_for(spec, side, CompiledMapping(spec))
    monkeypatch.setattr(type(decoder), "decode", lambda *_: pytest.fail("the general decoder was asked"))
    columns = BatchDecoder(decoder).decode(records)
    assert (len(columns), columns.others) == (3, [])


@pytest.mark.parametrize("stray", ['{"id":5,"schema":{', '{"payload":{"id":5},"schema":{', '{"schema":{},"id":5,"schema":{'])
def test_found_a_key_with_more_than_its_schema_is_read_alike(stray: str) -> None:
    value = json.dumps(with_schema(change("c", after={"id": 1, "a": "x"}), [])).encode()
    usual = '{"schema":{"type":"struct"},"payload":{"id":1}}'
    keys = [usual, usual.replace('{"schema":{', stray, 1), usual[:-1] + ',"id":5}', usual]
    records = [RawRecord("t", 0, number, 9, key.encode(), value, []) for number, key in enumerate(keys)]
    for order in (records, records[1:] + records[:1]):
        numbered = [record._replace(offset=number) for number, record in enumerate(order)]
        assert_read_alike(pipeline(field("a")), Side.EXPECTED, numbered)


def test_found_a_decimal128_is_not_spelt_as_debeziums_strings_are() -> None:
    spec = pipeline(field("total", FieldType.DECIMAL))
    spec = replace(spec, target=replace(spec.target, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="t")))
    value = mongo_change("c", after={"_id": 1, "total": {"$numberDecimal": "NEGATIVE_INFINITY"}})
    assert_read_alike(spec, Side.OBSERVED, [RawRecord("t", 0, 10, APPENDED, b'{"id":"1"}', json.dumps(value).encode(), [])] * 2)
