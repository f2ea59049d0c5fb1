from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gapwatch.core.mapping import resolve
from gapwatch.core.matching import KeyMatcher
from gapwatch.core.resolve import MASKABLE_MAX, joined
from gapwatch.errors import ConfigError
from gapwatch.model.pipeline import FieldType, KeyColumn, KeyType, SourceTable
from gapwatch.ports import ColumnInfo, DatasetInfo

from .samples import field, pipeline


def table(*columns: tuple[str, str, str], identity: str = "d") -> DatasetInfo:
    infos = tuple(ColumnInfo(name=name, type_name=kind, storage=storage) for name, kind, storage in columns)
    return DatasetInfo(identity="1/2", columns=infos, primary_key=("id",), replica_identity=identity)


def one(type_name: str, config: dict[str, str] | None = None, **declared: Any) -> Any:
    spec = pipeline(field("f", declared.pop("type", FieldType.INFERRED), **declared))
    return resolve(spec, table(("id", "bigint", "p"), ("f", type_name, "x")), config).fields[0]


@pytest.mark.parametrize(
    ("type_name", "config", "expected"),
    [
        ("integer", {}, (FieldType.INT, "", None)),
        ("numeric(12,2)", {}, (FieldType.DECIMAL, "base64_unscaled", 2)),
        ("numeric(12,0)", {}, (FieldType.DECIMAL, "base64_unscaled", 0)),
        ("numeric", {}, (FieldType.DECIMAL, "variable_scale", None)),
        ("numeric(12,2)", {"decimal.handling.mode": "string"}, (FieldType.DECIMAL, "text", None)),
        ("numeric(12,2)", {"decimal.handling.mode": "double"}, (FieldType.DECIMAL, "", None)),
        ("real", {}, (FieldType.FLOAT, "float32", None)),
        ("double precision", {}, (FieldType.FLOAT, "", None)),
        ("character varying(20)", {}, (FieldType.TEXT, "", None)),
        ("character varying(20)[]", {}, (FieldType.ARRAY, "items:text:", None)),
        ("app.mood", {}, (FieldType.TEXT, "", None)),
        ("mood", {}, (FieldType.TEXT, "", None)),
        ("timestamp_kind", {}, (FieldType.TEXT, "", None)),
        ("boolean", {}, (FieldType.BOOL, "", None)),
        ("timestamp without time zone", {}, (FieldType.TIMESTAMP, "epoch_us", None)),
        ("timestamp(3) without time zone", {}, (FieldType.TIMESTAMP, "epoch_ms", None)),
        ("timestamp(3) without time zone", {"time.precision.mode": "microseconds"}, (FieldType.TIMESTAMP, "epoch_us", None)),
        ("timestamp without time zone", {"time.precision.mode": "connect"}, (FieldType.TIMESTAMP, "epoch_ms", None)),
        ("timestamp without time zone", {"time.precision.mode": "nanoseconds"}, (FieldType.TIMESTAMP, "epoch_ns", None)),
        ("timestamp with time zone", {"time.precision.mode": "connect"}, (FieldType.TIMESTAMP, "iso", None)),
        ("date", {}, (FieldType.DATE, "epoch_days", None)),
        ("time without time zone", {}, (FieldType.TIME, "time_us", None)),
        ("time(0) without time zone", {}, (FieldType.TIME, "time_ms", None)),
        ("time(0) without time zone", {"time.precision.mode": "adaptive_time_microseconds"}, (FieldType.TIME, "time_us", None)),
        ("time with time zone", {}, (FieldType.TIME, "iso", None)),
        ("uuid", {}, (FieldType.UUID, "", None)),
        ("bytea", {}, (FieldType.BYTES, "base64", None)),
        ("bytea", {"binary.handling.mode": "hex"}, (FieldType.BYTES, "hex", None)),
        ("jsonb", {}, (FieldType.JSON, "json_text", None)),
        ("bit(4)", {}, (FieldType.TEXT, "bits", 4)),
        ("integer[]", {}, (FieldType.ARRAY, "items:int:", None)),
        ("numeric(12,2)[]", {}, (FieldType.ARRAY, "items:decimal:base64_unscaled", 2)),
        ("timestamp(3) with time zone[]", {}, (FieldType.ARRAY, "items:timestamp:iso", None)),
    ],
)
def test_types_and_encodings_come_from_the_catalogue_and_the_connector(
    type_name: str, config: dict[str, str], expected: tuple[FieldType, str, int | None]
) -> None:
    found = one(type_name, config)
    assert (found.type, found.wire, found.wire_scale) == expected
    assert found.scale is None  # comparing at the source's scale would hide what the target has beyond it


@pytest.mark.parametrize(
    "type_name",
    [
        "interval",
        "money",
        "int4range",
        "mood[]",
        "timeslot[]",
        "citext[]",
        "bit(3)[]",
        "bit varying(8)",
        "bit varying",
        "ext.hstore",
        "geometry(Point,4326)",
        "ext.geometry(Point)",
    ],
)
def test_a_type_that_two_readers_show_differently_must_be_declared(type_name: str) -> None:
    with pytest.raises(ConfigError, match="Declare it"):
        one(type_name)
    assert one(type_name, type=FieldType.TEXT).type is FieldType.TEXT


def test_a_declared_text_of_bits_is_read_as_debezium_writes_them() -> None:
    """Debezium leaves out how many there are: 0101 and 101 are one to it, and neither is what the driver shows."""
    found = one("bit varying(8)", type=FieldType.TEXT)
    assert (found.wire, found.wire_scale) == ("bits", 8)


def test_what_was_declared_stays() -> None:
    found = one("numeric(12,2)", type=FieldType.TEXT, wire="text")
    assert (found.type, found.wire) == (FieldType.TEXT, "text")


def test_unknown_columns_and_types_with_two_meanings_are_all_named() -> None:
    spec = pipeline(
        field("a", FieldType.INFERRED), field("b", FieldType.INFERRED), source_key=[KeyColumn(path="x", type=KeyType.INT)]
    )
    with pytest.raises(ConfigError) as caught:
        resolve(spec, table(("id", "bigint", "p"), ("b", "interval", "p")), None)
    assert [problem.place for problem in caught.value.problems] == [
        "pipelines.orders.fields.a",
        "pipelines.orders.fields.b",
        "pipelines.orders.source.key",
    ]


@pytest.mark.parametrize(("identity", "maskable"), [("d", True), ("i", True), ("n", True), ("f", False)])
def test_trap_17_only_large_types_without_full_identity_can_be_masked(identity: str, maskable: bool) -> None:
    spec = pipeline(field("n", FieldType.INFERRED, maskable=True), field("note", FieldType.INFERRED))
    info = table(("id", "bigint", "p"), ("n", "integer", "p"), ("note", "text", "x"), identity=identity)
    found = resolve(spec, info, None)
    assert [item.maskable for item in found.fields] == [False, maskable]
    assert found.source.feed.full_before is (identity == "f")


@pytest.mark.parametrize("count", [MASKABLE_MAX, MASKABLE_MAX + 1])
def test_trap_17_as_many_fields_may_be_masked_as_a_write_holds_digests_of(count: int) -> None:
    """One more was taken, and ended match at the first delete, again and again; before it, any content was as good as another."""
    names = [f"f{number}" for number in range(count)]
    spec = pipeline(*(field(name, FieldType.INFERRED) for name in names))
    columns = [("id", "bigint", "p"), *((name, "text", "x") for name in names)]
    assert not any(one.maskable for one in resolve(spec, table(*columns, identity="f"), None).fields)
    if count > MASKABLE_MAX:
        with pytest.raises(ConfigError) as caught:
            resolve(spec, table(*columns), None)
        assert [problem.place for problem in caught.value.problems] == ["pipelines.orders.fields"]
        return
    resolved = resolve(spec, table(*columns), None)
    rows = KeyMatcher(0, 1, {"orders": resolved}, fingerprints={"orders": 1}, life="one")._pipelines["orders"].cell.rows
    block = np.zeros(1, rows.type)
    block["first"] = rows.parts << 32
    assert int(block["parts"][0]) == rows.parts == count + 1


def test_trap_17_fields_that_one_of_several_tables_leaves_out_count_for_all() -> None:
    half = MASKABLE_MAX // 2 + 1
    fields = tuple(field(f"f{number}", FieldType.TEXT) for number in range(2 * half))
    spec = pipeline(*fields)
    spec = replace(
        spec, source=replace(spec.source, tables=tuple(SourceTable(table=name, feed=spec.source.feed) for name in "ab"))
    )
    masked = [
        replace(spec, fields=tuple(replace(one, maskable=(number < half) is first) for number, one in enumerate(fields)))
        for first in (True, False)
    ]
    with pytest.raises(ConfigError, match="254 are the most"):
        joined(spec, masked)


def test_a_document_store_masks_nothing_and_compares_by_value() -> None:
    found = resolve(pipeline(field("a", FieldType.INFERRED, maskable=True)), DatasetInfo(identity="x", post_images=True), None)
    assert (found.fields[0].type, found.fields[0].maskable) == (FieldType.INFERRED, False)
    assert found.source.feed.post_images is False  # Debezium looks documents up unless it is told otherwise
    config = {"capture.mode.full.update.type": "post_image"}
    assert resolve(pipeline(), DatasetInfo(identity="x", post_images=True), config).source.feed.post_images


def test_the_connectors_placeholder_and_the_keys_encoding_are_taken_over() -> None:
    spec = replace(pipeline(), source=replace(pipeline().source, key=(KeyColumn(path="id", type=KeyType.INT),)))
    found = resolve(spec, table(("id", "numeric(20,0)", "m")), {"unavailable.value.placeholder": "gone"})
    assert found.source.feed.placeholder == "gone"
    assert (found.source.key[0].wire, found.source.key[0].wire_scale) == ("base64_unscaled", 0)
