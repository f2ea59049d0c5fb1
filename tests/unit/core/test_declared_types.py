"""Types that somebody declared for columns of another type: an event, the driver and the target are read alike all the same."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from gapwatch.core.envelopes import Event, decoder_for
from gapwatch.core.mapping import CompiledMapping, resolve
from gapwatch.core.values import JsonText
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyColumn, KeyType, PipelineSpec
from gapwatch.model.stream import Operation, Side
from gapwatch.ports import ColumnInfo, DatasetInfo
from tests.unit.core.samples import change, field, pipeline, record, with_schema

DAY = datetime(2026, 1, 2, tzinfo=UTC)
MICROS = int(DAY.timestamp()) * 1_000_000
MILLIS = MICROS // 1_000
DAYS = MICROS // 86_400_000_000


def resolved(kind: FieldType, column: str, *, identity: str = "d", **options: Any) -> PipelineSpec:
    info = tuple(ColumnInfo(name=name, type_name=of, storage="p") for name, of in (("id", "bigint"), ("f", column)))
    return resolve(
        pipeline(field("f", kind, **options)),
        DatasetInfo(identity="1/2", columns=info, primary_key=("id",), replica_identity=identity),
        None,
    )


def written(spec: PipelineSpec, value: Any, *, side: Side = Side.EXPECTED, column: dict[str, Any] | None = None) -> bytes:
    """Return the digest of an event of the row, with the column's schema or without."""
    event: Any = change("c", after={"id": 1, "f": value})
    if column is not None:
        event = with_schema(event, [{**column, "field": "f"}])
    [told] = decoder_for(spec, side, CompiledMapping(spec)).decode(record(event, key={"id": 1}))
    assert isinstance(told, Event)
    return told.digest


def unscaled(number: int) -> str:
    return base64.b64encode(number.to_bytes(8, "big", signed=True)).decode()


def variable(number: int) -> dict[str, Any]:
    return {"scale": 1, "value": unscaled(number)}


@pytest.mark.parametrize(
    ("kind", "column", "sent", "read", "other"),
    [
        (FieldType.FLOAT, "numeric(12,2)", unscaled(1_050), Decimal("10.50"), unscaled(1_051)),
        (FieldType.FLOAT, "numeric", variable(105), Decimal("10.5"), variable(106)),
        (FieldType.DATE, "timestamp without time zone", MICROS, DAY.replace(tzinfo=None), MICROS + 86_400_000_000),
        (FieldType.DATE, "timestamp(3) without time zone", MILLIS, DAY.replace(tzinfo=None), MILLIS + 86_400_000),
        (FieldType.TIMESTAMP, "date", DAYS, date(2026, 1, 2), DAYS + 1),
        (FieldType.JSON, "text", '{"b": 1.0, "a": [2]}', '{"a":[2],"b":1}', '{"b": 1.0, "a": [3]}'),
        (FieldType.JSON, "character varying(80)", "no JSON", "no JSON", "none either"),
    ],
    ids=[
        "float of numeric",
        "float of any numeric",
        "date of us",
        "date of ms",
        "timestamp of date",
        "json of text",
        "of no json",
    ],
)
def test_an_event_is_what_the_driver_reads(kind: FieldType, column: str, sent: Any, read: Any, other: Any) -> None:
    spec = resolved(kind, column, precision="s")
    known = CompiledMapping(spec).canonical_source({"f": read}).digest
    assert written(spec, sent) == known
    assert written(spec, other) != known


def test_a_date_that_changes_in_a_column_of_timestamps_is_a_change() -> None:
    """All of them were beyond Postgres' last day, and equal to each other: an update of nothing else said UNCHANGED."""
    spec = resolved(FieldType.DATE, "timestamp without time zone", identity="f")
    assert spec.source.feed.full_before
    moved = change("u", before={"id": 1, "f": MICROS}, after={"id": 1, "f": MICROS + 86_400_000_000})
    [event] = decoder_for(spec, Side.EXPECTED, CompiledMapping(spec)).decode(record(moved, key={"id": 1}))
    assert isinstance(event, Event)
    assert event.operation is Operation.UPSERT


@pytest.mark.parametrize("held", ['{"a": 1}', {"a": 1}], ids=["as text", "as a document"])
def test_trap_21_json_in_a_column_of_text_is_what_the_target_holds(held: Any) -> None:
    mapping = CompiledMapping(resolved(FieldType.JSON, "text"))
    source = mapping.canonical_source({"f": '{ "a": 1.0 }'})
    assert mapping.differing(source, mapping.canonical_target({"f": held})) == ()


def test_a_declared_timestamp_of_a_date_is_midnight_in_the_declared_zone() -> None:
    spec = resolved(FieldType.TIMESTAMP, "date", timezone="Europe/Berlin")
    mapping = CompiledMapping(spec)
    target = mapping.canonical_target({"f": datetime(2026, 1, 1, 23, tzinfo=UTC)})
    assert written(spec, DAYS) == target.digest == mapping.canonical_source({"f": date(2026, 1, 2)}).digest


def test_trap_18_an_infinite_date_stays_infinite_as_a_timestamp() -> None:
    spec = resolved(FieldType.TIMESTAMP, "date")
    assert written(spec, 2_147_483_647) == CompiledMapping(spec).canonical_source({"f": "infinity"}).digest


@pytest.mark.parametrize("digits", [1, 3, 9, 12, None])
def test_trap_19_single_precision_is_compared_by_the_declared_digits(digits: int | None) -> None:
    mapping = CompiledMapping(resolved(FieldType.FLOAT, "real", digits=digits))
    source = mapping.canonical_source({"f": 0.123456})
    cut = mapping.canonical_target({"f": float(f"{0.123456:.{digits or 9}g}")})
    assert mapping.differing(source, cut) == ()
    assert mapping.differing(source, mapping.canonical_target({"f": 0.5})) == ("f",)


@pytest.mark.parametrize("schemas", [False, True])
@pytest.mark.parametrize(("source", "target"), [("real", "double precision"), ("double precision", "real"), ("real", "real")])
@pytest.mark.parametrize("array", [False, True])
def test_trap_20_single_precision_on_one_side_is_compared_as_such_on_both(
    source: str, target: str, *, schemas: bool, array: bool
) -> None:
    """A table as the target: its own events were read in its own precision, and no write was ever settled by the stream."""
    suffix, key = "[]" if array else "", (KeyColumn(path="id", type=KeyType.INT),)
    spec = resolved(FieldType.INFERRED, source + suffix)
    found = resolved(FieldType.INFERRED, target + suffix).fields[0]
    feed = FeedSpec(kind=FeedKind.DEBEZIUM, topic="t")
    spec = replace(spec, target=replace(spec.target, key=key, feed=feed, wires=((found.wire, found.wire_scale),)))

    def described(kind: str) -> dict[str, Any] | None:
        plain = {"type": "float" if kind == "real" else "double"}
        return ({"type": "array", "items": plain} if array else plain) if schemas else None

    value: Any = [0.1, None] if array else 0.1
    there = written(spec, value, side=Side.OBSERVED, column=described(target))
    assert written(spec, value, column=described(source)) == there
    assert there == CompiledMapping(spec).canonical_target({"f": value}).digest


@pytest.mark.parametrize("held", [['{"a": 1}', None], [{"a": 1}, None]], ids=["as texts", "as documents"])
def test_trap_21_json_in_an_array_is_what_the_target_holds(held: Any) -> None:
    spec = resolved(FieldType.INFERRED, "jsonb[]")
    mapping = CompiledMapping(spec)
    source = mapping.canonical_source({"f": [JsonText('{"a": 1.0}'), None]})
    assert written(spec, ['{"a":1.0}', None]) == source.digest
    assert mapping.differing(source, mapping.canonical_target({"f": held})) == ()
