"""What must hold of canonical bytes whatever the value: round trips, equality across wires, difference of what differs."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import assume, given
from hypothesis import strategies as st

from gapwatch.core.canonical import compile_form, generic, plain_number, read_number, small_int
from gapwatch.core.digests import digest
from gapwatch.core.envelopes import Event, decoder_for
from gapwatch.core.envelopes.extjson import decode_document
from gapwatch.core.keys import KeyCodec, decimal_text
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.temporal import civil_from_days, days_from_civil
from gapwatch.core.values import MISSING
from gapwatch.errors import KeyMisfit, RecordError
from gapwatch.model.pipeline import FieldType, KeyColumn, KeyType
from gapwatch.model.stream import Side
from tests.unit.core.samples import change, field, mongo_change, pipeline, record

TEXT = st.text(max_size=30)
INTS = st.integers(-(2**80), 2**80)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.decimals(allow_nan=False, allow_infinity=False)
MOMENTS = st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
KEY_VALUES: dict[KeyType, st.SearchStrategy[Any]] = {
    KeyType.INT: INTS,
    KeyType.TEXT: TEXT,
    KeyType.UUID: st.uuids(),
    KeyType.OBJECTID: st.binary(min_size=12, max_size=12).map(bytes.hex),
    KeyType.DECIMAL: DECIMALS,
    KeyType.BYTES: st.binary(max_size=30),
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INTS | TEXT | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def keys(draw: st.DrawFn) -> tuple[KeyCodec, list[Any]]:
    kinds = draw(st.lists(st.sampled_from(list(KeyType)), min_size=1, max_size=4))
    codec = KeyCodec([KeyColumn(path=f"k{index}", type=kind) for index, kind in enumerate(kinds)])
    return codec, [draw(KEY_VALUES[kind]) for kind in kinds]


@given(keys())
def test_a_key_comes_back_as_it_was(case: tuple[KeyCodec, list[Any]]) -> None:
    codec, values = case
    key = codec.encode(values)
    assert list(codec.decode(key)) == values
    assert codec.encode(codec.decode(key)) == key


@given(keys(), st.data())
def test_keys_are_equal_only_where_all_parts_are(case: tuple[KeyCodec, list[Any]], data: st.DataObject) -> None:
    codec, values = case
    others = [data.draw(KEY_VALUES[column.type]) for column in codec.columns]
    assert (codec.encode(values) == codec.encode(others)) == (values == others)


@given(st.lists(INTS, min_size=2, max_size=20))
def test_int_keys_sort_as_the_numbers_do(numbers: list[int]) -> None:
    codec = KeyCodec([KeyColumn(path="id", type=KeyType.INT)])
    assert codec.ordered
    assert sorted(numbers) == [codec.decode(key)[0] for key in sorted(codec.encode([number]) for number in numbers)]


@given(st.binary(max_size=40), st.sampled_from(list(KeyType)))
def test_any_bytes_are_either_a_key_or_refused(data: bytes, kind: KeyType) -> None:
    codec = KeyCodec([KeyColumn(path="k", type=kind)])
    try:
        values = codec.decode(data)
    except KeyMisfit:
        return
    assert codec.encode(values) == data


@given(DECIMALS, DECIMALS, st.integers(0, 6))
def test_trap_19_numbers_have_one_text_each(left: Decimal, right: Decimal, zeros: int) -> None:
    assert (decimal_text(left) == decimal_text(right)) == (left == right)
    assert Decimal(decimal_text(left)) == left
    assert Decimal(plain_number(decimal_text(left))) == left
    sign, digits, exponent = left.as_tuple()
    assert isinstance(exponent, int)
    padded = Decimal((sign, digits + (0,) * zeros, exponent - zeros))
    assert decimal_text(padded) == decimal_text(left)


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_the_fast_path_of_whole_numbers_says_the_same(number: int) -> None:
    assert small_int(number) == decimal_text(Decimal(number)).encode()


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_equal_where_the_doubles_are(left: float, right: float) -> None:
    form = compile_form(field("f", FieldType.FLOAT))
    assert (form(left) == form(right)) == (left == right)
    assert form(left) == form(Decimal(repr(left))) == form(repr(left))
    assert float(str(read_number(left))) == left


@given(INTS, st.integers(0, 10))
def test_trap_18_connects_decimal_bytes_are_exact(unscaled: int, scale: int) -> None:
    raw = unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)
    spec = field("f", FieldType.DECIMAL, wire="base64_unscaled", wire_scale=scale)
    read = Decimal((int(unscaled < 0), tuple(int(digit) for digit in str(abs(unscaled))), -scale))
    assert compile_form(spec, event=True)(base64.b64encode(raw).decode()) == compile_form(spec)(read)


@given(st.integers(-4_000_000, 4_000_000))
def test_the_calendar_is_its_own_inverse(days: int) -> None:
    assert days_from_civil(*civil_from_days(days)) == days


@given(MOMENTS, st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_one_value_on_every_wire(moment: datetime, offset_minutes: int) -> None:
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    local = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))
    spec = field("f", FieldType.TIMESTAMP, precision="us")
    form = compile_form(spec)
    expected = b"\x02%d" % micros
    assert form(moment) == form(local) == form(local.isoformat()) == form(moment.replace(tzinfo=None)) == expected
    assert compile_form(spec, wire="epoch_us", event=True)(micros) == expected
    assert compile_form(spec, wire="epoch_ns", event=True)(micros * 1_000) == expected


@given(JSON_VALUES, st.randoms(use_true_random=False))
def test_trap_21_json_text_in_any_member_order_is_one_value(value: Any, random: Any) -> None:
    def shuffled(item: Any) -> Any:
        if isinstance(item, dict):
            names = list(item)
            random.shuffle(names)
            return {name: shuffled(item[name]) for name in names}
        return [shuffled(inner) for inner in item] if isinstance(item, list) else item

    form = compile_form(field("f", FieldType.JSON), event=True)
    text = json.dumps(shuffled(value), indent=random.choice([None, 2]), ensure_ascii=random.choice([True, False]))
    assert form(text)[1:] == generic(value)


@given(JSON_VALUES, JSON_VALUES)
def test_different_json_values_differ(left: Any, right: Any) -> None:
    assume(json.dumps(left, sort_keys=True) != json.dumps(right, sort_keys=True))
    assume(not _equal(left, right))
    assert generic(left) != generic(right)


def _equal(left: Any, right: Any) -> bool:
    """JSON equality: 1 is 1.0 and is not true; a float is the number that its shortest text says."""
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None or isinstance(left, str):
        return left is right if not isinstance(left, str) else left == right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return Decimal(repr(left)) == Decimal(repr(right))
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_equal(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)
    return False


@given(st.lists(st.integers() | TEXT | st.none(), max_size=6), st.randoms(use_true_random=False))
def test_a_multiset_forgets_the_order_and_nothing_else(items: list[Any], random: Any) -> None:
    form = compile_form(field("f", FieldType.ARRAY, multiset=True))
    mixed = list(items)
    random.shuffle(mixed)
    assert form(items) == form(mixed)
    assert form([*items, "one more"]) != form(items)


@given(st.lists(st.binary(max_size=5), max_size=5), st.lists(st.binary(max_size=5), max_size=5))
def test_trap_23_digests_are_equal_only_of_equal_parts(left: list[bytes], right: list[bytes]) -> None:
    assert (digest(left) == digest(right)) == (left == right)


ROWS = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "name": st.none() | TEXT,
        "amount": st.none() | DECIMALS,
        "at": st.none() | MOMENTS,
        "uuid": st.none() | st.uuids(),
        "data": JSON_VALUES,
        "raw": st.none() | st.binary(max_size=20),
    }
)
FIELDS = (
    field("name"),
    field("amount", FieldType.DECIMAL, wire="text"),
    field("at", FieldType.TIMESTAMP, wire="epoch_us"),
    field("uuid", FieldType.UUID),
    field("data", FieldType.JSON, wire="json_text"),
    field("raw", FieldType.BYTES, wire="base64"),
)
SPEC = pipeline(*FIELDS)
MAPPING = CompiledMapping(SPEC)
SOURCE = decoder_for(SPEC, Side.EXPECTED, MAPPING)


def debezium_row(row: dict[str, Any]) -> dict[str, Any]:
    """Encode a row as Debezium's connector does, with ``decimal.handling.mode=string`` and schemas off."""

    def encoded(value: Any) -> Any:
        if isinstance(value, Decimal | UUID):
            return str(value)
        if isinstance(value, datetime):
            return _micros(value)
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value

    made = {name: encoded(value) for name, value in row.items()}
    made["data"] = None if row["data"] is None else json.dumps(row["data"])
    return made


def _micros(moment: datetime) -> int:
    return (moment.toordinal() - datetime(1970, 1, 1).toordinal()) * 86_400_000_000 + (  # noqa: DTZ001
        (moment.hour * 3_600 + moment.minute * 60 + moment.second) * 1_000_000 + moment.microsecond
    )


def extended_json(value: Any) -> Any:
    """Encode a value as MongoDB's canonical extended JSON."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return {"$numberLong": str(value)}
    if isinstance(value, float):
        return {"$numberDouble": repr(value)}
    if isinstance(value, Decimal):
        return {"$numberDecimal": str(value)}
    if isinstance(value, datetime):
        return {"$date": {"$numberLong": str(_micros(value) // 1_000)}}
    if isinstance(value, UUID):
        return {"$binary": {"base64": base64.b64encode(value.bytes).decode(), "subType": "04"}}
    if isinstance(value, bytes):
        return {"$binary": {"base64": base64.b64encode(value).decode(), "subType": "00"}}
    if isinstance(value, list):
        return [extended_json(item) for item in value]
    return {name: extended_json(item) for name, item in value.items()}


@given(ROWS)
def test_source_event_source_row_and_target_document_have_one_digest(row: dict[str, Any]) -> None:
    assume(not _has_dollar(row["data"]))
    assume(not isinstance(row["data"], str))  # a text in a document may be JSON text: tested by itself
    (event,) = SOURCE.decode(record(change("c", after=debezium_row(row)), key={"id": row["id"]}))
    assert isinstance(event, Event)
    read = MAPPING.canonical_source(row)
    document = MAPPING.canonical_target(decode_document(json.dumps(extended_json({**row, "_id": row["id"]}))))
    assert event.digest == read.digest
    assert MAPPING.differing(read, document) == ()
    assert read.digest == document.digest
    assert event.key == MAPPING.source.codec.encode([row["id"]]) == MAPPING.target.codec.extract({"_id": row["id"]})


def _has_dollar(value: Any) -> bool:
    if isinstance(value, dict):
        return any(name.startswith("$") or _has_dollar(item) for name, item in value.items())
    return isinstance(value, list) and any(_has_dollar(item) for item in value)


@given(ROWS, st.sampled_from(["name", "amount", "at", "uuid", "raw"]), st.data())
def test_one_changed_field_changes_the_digest_and_is_named(row: dict[str, Any], name: str, data: st.DataObject) -> None:
    values = {"name": TEXT, "amount": DECIMALS, "at": MOMENTS, "uuid": st.uuids(), "raw": st.binary(max_size=20)}
    other = {**row, name: data.draw(values[name] | st.just(MISSING))}
    assume(other[name] != row[name])
    if name == "at" and other[name] is not MISSING and row[name] is not None:
        assume(_micros(other[name]) // 1_000 != _micros(row[name]) // 1_000)
    document = {key: value for key, value in other.items() if value is not MISSING}
    left, right = MAPPING.canonical_source(row), MAPPING.canonical_target(document)
    assume(not isinstance(row["data"], str))
    assert MAPPING.differing(left, right) == (name,)
    assert left.digest != right.digest


TARGET_SPEC = pipeline(field("a", FieldType.JSON), target_feed=SPEC.source.feed)
TARGET = decoder_for(TARGET_SPEC, Side.OBSERVED, CompiledMapping(TARGET_SPEC))


@given(
    st.dictionaries(st.sampled_from(["op", "source", "after", "before", "payload", "schema", "ts_ms"]), JSON_VALUES), JSON_VALUES
)
def test_a6_no_json_makes_a_decoder_fail_in_another_way(value: Any, key: Any) -> None:
    """A broken message is a RecordError with a reason; anything else would stop the partition."""
    for decoder in (SOURCE, TARGET):
        for sent in (value, {**mongo_change("c"), **value}, {**change("c"), **value}):
            with suppress(RecordError):
                assert len(decoder.decode(record(sent, key=key))) <= 1
