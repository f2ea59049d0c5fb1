from __future__ import annotations

import base64
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps

from gapwatch.core.canonical import ABSENT, NULL, ODD, compile_form, parse_json
from gapwatch.core.envelopes.extjson import decode_document
from gapwatch.core.values import MISSING, Instant, JsonText
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldType, Rounding

from .samples import field


def form(kind: FieldType, value: Any, *, event: bool = False, json_text: bool = False, **options: Any) -> bytes:
    return compile_form(field("f", kind, **options), event=event, json_text=json_text)(value)


def base64_of(number: int) -> str:
    size = number.bit_length() // 8 + 1
    return base64.b64encode(number.to_bytes(size, "big", signed=True)).decode()


@pytest.mark.parametrize("kind", list(FieldType))
def test_null_absent_and_empty_are_three_values(kind: FieldType) -> None:
    assert form(kind, None) == NULL
    assert form(kind, MISSING) == ABSENT
    assert form(kind, "") not in (NULL, ABSENT)
    assert form(kind, MISSING, absent_is_null=True) == NULL


@pytest.mark.parametrize("value", [3000, Decimal("3000.00"), "3000.0", 3000.0, Decimal128("3E+3"), Int64(3000), "3e3"])
def test_trap_19_one_number_has_one_form(value: Any) -> None:
    assert form(FieldType.DECIMAL, value) == form(FieldType.DECIMAL, 3000)


def test_b4_numbers_beyond_double_precision_differ() -> None:
    assert form(FieldType.DECIMAL, Decimal("1e23")) != form(FieldType.DECIMAL, 10**23 + 1)
    assert form(FieldType.INT, 2**53) != form(FieldType.INT, 2**53 + 1)
    assert form(FieldType.DECIMAL, 1e23) == form(FieldType.DECIMAL, 10**23)  # a double's value is its shortest text


@pytest.mark.parametrize("number", [0, 1, -1, 127, 128, -128, -129, 1_001, -1_001, 10**30, -(10**30)])
def test_trap_18_connects_decimals_are_read_out_of_their_bytes(number: int) -> None:
    options: dict[str, Any] = {"wire": "base64_unscaled", "wire_scale": 2}
    expected = form(FieldType.DECIMAL, Decimal(number).scaleb(-2))
    assert form(FieldType.DECIMAL, base64_of(number), event=True, **options) == expected
    variable = {"scale": 2, "value": base64_of(number)}
    assert form(FieldType.DECIMAL, variable, event=True, wire="variable_scale") == expected


def test_digits_that_look_like_base64_are_a_number_in_a_document() -> None:
    assert form(FieldType.DECIMAL, "1234", wire="base64_unscaled", wire_scale=2) == form(FieldType.DECIMAL, 1234)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("NaN", [float("nan"), Decimal("NaN"), "NaN", "NAN", Decimal128("NaN")]),
        ("Infinity", [float("inf"), Decimal("Infinity"), "Infinity", "POSITIVE_INFINITIY", Decimal128("Infinity")]),
        ("-Infinity", [float("-inf"), Decimal("-Infinity"), "-Infinity", "NEGATIVE_INFINITY"]),
    ],
)
def test_trap_18_special_numbers_are_named_and_never_null(name: str, values: list[Any]) -> None:
    for kind in (FieldType.DECIMAL, FieldType.FLOAT):
        assert {form(kind, value) for value in values} == {b"\x02" + name.encode()}


def test_scale_cuts_and_rounds() -> None:
    cut: dict[str, Any] = {"scale": 2}
    rounded: dict[str, Any] = {"scale": 2, "rounding": Rounding.ROUND}
    assert form(FieldType.DECIMAL, Decimal("10.019"), **cut) == form(FieldType.DECIMAL, Decimal("10.01"), **cut)
    assert form(FieldType.DECIMAL, Decimal("10.015"), **rounded) == form(FieldType.DECIMAL, Decimal("10.02"), **rounded)
    assert form(FieldType.DECIMAL, Decimal("-0.001"), **cut) == form(FieldType.DECIMAL, 0, **cut)
    assert form(FieldType.DECIMAL, Decimal("10.019")) != form(FieldType.DECIMAL, Decimal("10.01"))


def test_trap_19_floats_compare_by_shortest_text_or_by_digits() -> None:
    assert form(FieldType.FLOAT, 0.1) == form(FieldType.FLOAT, Decimal("0.1")) == form(FieldType.FLOAT, "0.1")
    assert form(FieldType.FLOAT, 0.1) != form(FieldType.FLOAT, 0.1 + 2**-56)
    assert form(FieldType.FLOAT, 1 / 3, digits=3) == form(FieldType.FLOAT, 0.3331, digits=3)
    assert form(FieldType.FLOAT, 10) == form(FieldType.FLOAT, 10.0)
    assert form(FieldType.FLOAT, -0.0) == form(FieldType.FLOAT, 0.0)
    assert form(FieldType.FLOAT, 2**53 + 1) != form(FieldType.FLOAT, float(2**53))
    assert form(FieldType.FLOAT, Decimal("1e400")) != form(FieldType.FLOAT, float("inf"))


def test_single_precision_is_compared_as_such() -> None:
    as_double = 0.10000000149011612  # what a double holds after a sink widened 0.1f
    assert form(FieldType.FLOAT, as_double, wire="float32") == form(FieldType.FLOAT, 0.1, wire="float32")
    assert form(FieldType.FLOAT, as_double) != form(FieldType.FLOAT, 0.1)


def test_trap_20_text_is_never_taken_for_another_type() -> None:
    assert form(FieldType.TEXT, 5) != form(FieldType.TEXT, "5")
    assert form(FieldType.TEXT, 5)[:1] == ODD
    assert form(FieldType.INT, "five")[:1] == ODD
    assert form(FieldType.INT, "five") != form(FieldType.INT, "six")
    assert form(FieldType.INT, True) != form(FieldType.INT, 1)
    assert form(FieldType.BOOL, 1) == form(FieldType.BOOL, True) == form(FieldType.BOOL, "true")
    assert form(FieldType.BOOL, 2)[:1] == ODD


def test_network_addresses_are_their_text() -> None:
    for value in (ip_address("10.0.0.1"), ip_interface("10.0.0.1/24"), ip_network("10.0.0.0/24")):
        assert form(FieldType.TEXT, value) == form(FieldType.TEXT, str(value))


def test_text_is_normalised_only_when_asked() -> None:
    assert form(FieldType.TEXT, "e\u0301") != form(FieldType.TEXT, "\u00e9")
    assert form(FieldType.TEXT, "e\u0301", nfc=True) == form(FieldType.TEXT, "\u00e9", nfc=True)
    assert form(FieldType.TEXT, "a ") != form(FieldType.TEXT, "a")


# ── times ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

MOMENT = datetime(2024, 9, 10, 20, 26, 40, 123_456, tzinfo=UTC)
MICROS = 1_726_000_000_123_456


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (MOMENT, ""),
        (MOMENT.replace(tzinfo=None), ""),
        (MOMENT.astimezone(timezone(timedelta(hours=-7))), ""),
        (MICROS, "epoch_us"),
        (MICROS * 1_000, "epoch_ns"),
        ("2024-09-10T20:26:40.123456Z", "iso"),
        ("2024-09-10T22:26:40.123456+02:00", "iso"),
        ("2024-09-10 22:26:40.123456+02", ""),
        ("2024-09-10T20:26:40.123456000Z", ""),
        (Instant(MICROS, 1_000_000), ""),
    ],
)
def test_one_moment_has_one_form_on_every_wire(value: Any, wire: str) -> None:
    assert form(FieldType.TIMESTAMP, value, precision="us", wire=wire) == b"\x02%d" % MICROS
    assert form(FieldType.TIMESTAMP, value, precision="us", wire=wire, event=True) == b"\x02%d" % MICROS


def test_trap_19_timestamps_meet_at_the_pairs_precision() -> None:
    mongo = MOMENT.replace(microsecond=123_000)
    assert form(FieldType.TIMESTAMP, MOMENT) == form(FieldType.TIMESTAMP, mongo)
    late = MOMENT.replace(microsecond=123_500)
    assert form(FieldType.TIMESTAMP, late, rounding=Rounding.ROUND) == form(
        FieldType.TIMESTAMP, MOMENT.replace(microsecond=124_000), rounding=Rounding.ROUND
    )
    assert form(FieldType.TIMESTAMP, late) == form(FieldType.TIMESTAMP, mongo)


def test_truncation_before_1970_drops_digits_and_does_not_round_up() -> None:
    early = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert form(FieldType.TIMESTAMP, early) == b"\x02-1"
    assert form(FieldType.TIMESTAMP, -1, wire="epoch_us", event=True) == b"\x02-1"


def test_zone_less_values_are_read_in_the_declared_zone() -> None:
    berlin: dict[str, Any] = {"timezone": "Europe/Berlin"}
    expected = form(FieldType.TIMESTAMP, datetime(2024, 7, 1, 10, tzinfo=UTC))
    assert form(FieldType.TIMESTAMP, datetime(2024, 7, 1, 12), **berlin) == expected  # noqa: DTZ001
    assert form(FieldType.TIMESTAMP, "2024-07-01 12:00:00", **berlin) == expected
    wall_clock = int(datetime(2024, 7, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
    assert form(FieldType.TIMESTAMP, wall_clock, wire="epoch_us", event=True, **berlin) == expected
    assert form(FieldType.TIMESTAMP, datetime(2024, 7, 1, 10, tzinfo=UTC), **berlin) == expected


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        ("infinity", ""),
        (9_223_372_036_825_200_000, "epoch_us"),
        (9_223_372_036_825_200, "epoch_ms"),
        (9_223_372_036_825_200_000, "epoch_ms"),
        (2**63 - 1, "epoch_ns"),
        ("+292278994-08-16T23:00:00Z", "iso"),
    ],
)
def test_trap_18_postgres_infinity_is_a_name_on_every_wire(value: Any, wire: str) -> None:
    assert form(FieldType.TIMESTAMP, value, wire=wire, event=True) == b"\x02infinity"


def test_years_beyond_pythons_are_exact() -> None:
    assert form(FieldType.TIMESTAMP, "10000-01-01T00:00:00Z", precision="s") == b"\x02253402300800"
    assert form(FieldType.TIMESTAMP, 253_402_300_800_000, wire="epoch_ms", precision="s", event=True) == b"\x02253402300800"


def test_a_moment_beyond_pythons_years_as_the_driver_holds_it() -> None:
    far = DatetimeMS(253_402_300_800_000)
    assert form(FieldType.TIMESTAMP, far) == form(FieldType.TIMESTAMP, "10000-01-01T00:00:00Z")


@pytest.mark.parametrize("value", ["2024-02-30", "2024-13-01T00:00:00Z", "2024-01-01T25:00:00Z", "yesterday", 1.5, True])
def test_what_is_no_timestamp_keeps_a_form_of_its_own(value: Any) -> None:
    assert form(FieldType.TIMESTAMP, value)[:1] == ODD


def test_dates_and_times_of_day() -> None:
    day = form(FieldType.DATE, date(2024, 2, 29))
    assert day == form(FieldType.DATE, 19_782, wire="epoch_days", event=True) == form(FieldType.DATE, "2024-02-29")
    assert day == form(FieldType.DATE, datetime(2024, 2, 29, tzinfo=UTC))
    assert day != form(FieldType.DATE, datetime(2024, 2, 29, 0, 0, 1, tzinfo=UTC))
    noon = form(FieldType.TIME, time(12, 0, 0, 5_000))
    assert noon == form(FieldType.TIME, 43_200_005_000, wire="time_us", event=True) == form(FieldType.TIME, "12:00:00.005")
    assert noon == form(FieldType.TIME, 43_200_005, wire="time_ms", event=True)
    assert form(FieldType.TIME, "24:00:00") == form(FieldType.TIME, 86_400_000_000, wire="time_us", event=True)
    assert form(FieldType.TIME, "04:05:11-08") == form(FieldType.TIME, "12:05:11Z")


# ── ids, bytes, JSON, arrays ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_and_bytes_from_driver_and_wire() -> None:
    one = UUID("8c1a9f10-0b0e-4c3a-9d52-0a8b8f3f7a11")
    assert form(FieldType.UUID, one) == form(FieldType.UUID, str(one).upper()) == form(FieldType.UUID, Binary(one.bytes, 4))
    assert form(FieldType.OBJECTID, ObjectId("5f" * 12)) == form(FieldType.OBJECTID, "5F" * 12)
    for text, wire in (("AP/+", "base64"), ("AP_-", "base64url"), ("00fffe", "hex")):
        assert form(FieldType.BYTES, text, wire=wire, event=True) == form(FieldType.BYTES, b"\x00\xff\xfe")
    assert form(FieldType.BYTES, "no base64!")[:1] == ODD
    assert form(FieldType.TEXT, "BQ==", wire="bits", wire_scale=4, event=True) == form(FieldType.TEXT, "0101")
    assert form(FieldType.TEXT, True, wire="bits", wire_scale=1, event=True) == form(FieldType.TEXT, "1")


def test_trap_21_json_is_compared_by_value() -> None:
    wire = '{"b": 1.0, "a": [1, 2.50, null, {"y": "\\u00e9", "x": true}]}'
    row = {"a": [1, Decimal("2.5"), None, {"x": True, "y": "é"}], "b": 1}
    expected = form(FieldType.JSON, row)
    assert form(FieldType.JSON, wire, event=True) == expected
    assert form(FieldType.JSON, JsonText(wire)) == expected
    assert form(FieldType.JSON, wire, json_text=True) == expected
    assert form(FieldType.JSON, {**row, "c": None}) != expected
    assert form(FieldType.JSON, {"a": row["a"][::-1], "b": 1}) != expected  # type: ignore[index]


def test_trap_21_json_numbers_are_exact() -> None:
    assert form(FieldType.JSON, "[1e23]", event=True) != form(FieldType.JSON, "[100000000000000000000001]", event=True)
    assert form(FieldType.JSON, "[0.1000000000000000055]", event=True) != form(FieldType.JSON, "[0.1]", event=True)


def test_a_json_string_is_no_json_text() -> None:
    assert form(FieldType.JSON, "5") != form(FieldType.JSON, 5)
    assert form(FieldType.JSON, '"5"', event=True) == form(FieldType.JSON, "5")
    assert form(FieldType.JSON, "{broken", event=True)[:1] == ODD


def test_trap_22_arrays_keep_their_order_unless_they_are_multisets() -> None:
    assert form(FieldType.ARRAY, [1, 2, 2]) != form(FieldType.ARRAY, [2, 1, 2])
    assert form(FieldType.ARRAY, [1, 2, 2], multiset=True) == form(FieldType.ARRAY, [2, 1, 2], multiset=True)
    assert form(FieldType.ARRAY, [1, 2, 2], multiset=True) != form(FieldType.ARRAY, [1, 1, 2], multiset=True)
    assert form(FieldType.ARRAY, []) != form(FieldType.ARRAY, [None])
    assert form(FieldType.ARRAY, [["a"], ["b"]]) != form(FieldType.ARRAY, [["a", "b"]])


def test_array_elements_are_read_by_their_type() -> None:
    wire: dict[str, Any] = {"wire": "items:decimal:base64_unscaled", "wire_scale": 2}
    assert form(FieldType.ARRAY, [base64_of(1_050), None], event=True, **wire) == form(
        FieldType.ARRAY, [Decimal("10.5"), None], **wire
    )
    moments: dict[str, Any] = {"wire": "items:timestamp:epoch_us"}
    assert form(FieldType.ARRAY, [MICROS], event=True, **moments) == form(FieldType.ARRAY, [MOMENT], **moments)


def test_a_document_reads_the_same_from_the_driver_and_as_extended_json() -> None:
    document = {
        "id": ObjectId("5f" * 12),
        "long": Int64(2**40),
        "double": 1.5,
        "whole": 3.0,
        "decimal": Decimal128("10.00"),
        "when": datetime(2024, 9, 10, 20, 26, 40, 123_000, tzinfo=UTC),
        "old": datetime(1950, 1, 1, tzinfo=UTC),
        "far": DatetimeMS(253_402_300_800_000),
        "raw": b"\x00\xff",
        "uuid": Binary(UUID("8c1a9f10-0b0e-4c3a-9d52-0a8b8f3f7a11").bytes, 4),
        "stamp": Timestamp(1_726_000_000, 7),
        "pattern": Regex("^a", "im"),
        "most": MaxKey(),
        "inner": {"list": [1, None, True, {"deep": "x"}], "nan": float("nan")},
    }
    text = dumps(document, json_options=CANONICAL_JSON_OPTIONS)
    for name, value in document.items():
        assert form(FieldType.INFERRED, decode_document(text)[name]) == form(FieldType.INFERRED, value), name


def test_kinds_that_are_not_equal_stay_apart_by_value() -> None:
    values: list[Any] = [1, True, "1", b"1", [1], {"1": 1}, ObjectId("31" * 12), "31" * 12, None, {}, [], "", Instant(1, 1_000)]
    assert len({form(FieldType.INFERRED, value) for value in values}) == len(values)


def test_nesting_has_a_limit() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    for kind in (FieldType.JSON, FieldType.ARRAY):
        with pytest.raises(RecordError) as caught:
            form(kind, deep)
        assert caught.value.reason == "too_deep"


BEYOND = "1e99999999999999999999"  # JSON knows no limits, and a column of type json keeps what was written into it


def test_trap_21_a_number_beyond_all_decimals_is_a_value_of_its_own() -> None:
    """It raised what nobody catches: one row ended ingest, each sweep and each confirmation, again and again."""
    wire = f'{{"a": {BEYOND}, "b": 1.50}}'
    expected = form(FieldType.JSON, wire, event=True)
    assert expected == form(FieldType.JSON, JsonText(wire)) == form(FieldType.JSON, wire, json_text=True)
    for other in (f'{{"a": -{BEYOND}, "b": 1.50}}', f'{{"a": "{BEYOND}", "b": 1.50}}', f'{{"a": {BEYOND}, "b": 1.51}}'):
        assert form(FieldType.JSON, other, event=True) != expected
    assert form(FieldType.DECIMAL, parse_json(BEYOND))[:1] == ODD
    assert parse_json("[1.50]", strict=True) == [Decimal("1.5")]
    with pytest.raises(ValueError, match="beyond all decimals"):
        parse_json(BEYOND, strict=True)


@pytest.mark.parametrize("levels", [300, 5_000])
@pytest.mark.parametrize("as_json_text", [False, True])
def test_json_text_that_is_too_deep_is_refused_however_deep_it_is(levels: int, *, as_json_text: bool) -> None:
    """How far the reader comes depends on where it is called: the same text was now a value, now none."""
    text = "[" * levels + "]" * levels
    with pytest.raises(RecordError) as caught:
        form(FieldType.JSON, JsonText(text) if as_json_text else text, event=True)
    assert caught.value.reason == "too_deep"


@pytest.mark.parametrize("kind", [FieldType.UUID, FieldType.TEXT, FieldType.BYTES, FieldType.INFERRED])
def test_binary_data_that_holds_a_uuid_reads_the_same_from_the_driver_and_as_extended_json(kind: FieldType) -> None:
    """What the stream called equal, a sweep called a mismatch, or the other way round."""
    one = UUID("8c1a9f10-0b0e-4c3a-9d52-0a8b8f3f7a11")
    driver = Binary(one.bytes, 4)
    read = decode_document(dumps({"v": driver}, json_options=CANONICAL_JSON_OPTIONS))["v"]
    assert form(kind, read) == form(kind, driver)
    meant: dict[FieldType, Any] = {FieldType.TEXT: str(one), FieldType.BYTES: one.bytes}
    assert form(kind, driver) == form(kind, meant.get(kind, one))


@pytest.mark.parametrize(("text", "meant"), [("1", True), ("0.00", False), ("2", None), ("NaN", None), ("sNaN", None)])
def test_a_decimal_as_a_boolean_reads_the_same_from_the_driver_and_as_extended_json(text: str, meant: bool | None) -> None:
    driver = Decimal128(text)
    read = decode_document(f'{{"v": {{"$numberDecimal": "{text}"}}}}')["v"]
    assert form(FieldType.BOOL, read) == form(FieldType.BOOL, driver)
    if meant is None:
        assert form(FieldType.BOOL, driver)[:1] == ODD
    else:
        assert form(FieldType.BOOL, driver) == form(FieldType.BOOL, meant)
