"""Connect's JSON schemas (``schemas.enable=true``), read once per distinct schema: how each column is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gapwatch.core.canonical import item_spec, read_bytes, wire_number
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyType

_WIRES: Final = {
    "org.apache.kafka.connect.data.Decimal": "base64_unscaled",
    "org.apache.kafka.connect.data.Date": "epoch_days",
    "org.apache.kafka.connect.data.Time": "time_ms",
    "org.apache.kafka.connect.data.Timestamp": "epoch_ms",
    "io.debezium.time.Date": "epoch_days",
    "io.debezium.time.Time": "time_ms",
    "io.debezium.time.MicroTime": "time_us",
    "io.debezium.time.NanoTime": "time_ns",
    "io.debezium.time.Timestamp": "epoch_ms",
    "io.debezium.time.MicroTimestamp": "epoch_us",
    "io.debezium.time.NanoTimestamp": "epoch_ns",
    "io.debezium.time.ZonedTimestamp": "iso",
    "io.debezium.time.ZonedTime": "iso",
    "io.debezium.time.IsoDate": "iso",
    "io.debezium.time.IsoTime": "iso",
    "io.debezium.time.IsoTimestamp": "iso",
    "io.debezium.data.VariableScaleDecimal": "variable_scale",
    "io.debezium.data.Json": "json_text",
    "io.debezium.data.Bits": "bits",
}
_TYPES: Final = {
    "base64_unscaled": FieldType.DECIMAL,
    "variable_scale": FieldType.DECIMAL,
    "epoch_days": FieldType.DATE,
    "json_text": FieldType.JSON,
    "bits": FieldType.TEXT,
    "base64": FieldType.BYTES,
    "float32": FieldType.FLOAT,
}
_NAMED_TYPES: Final = {
    "io.debezium.data.Uuid": FieldType.UUID,
    "io.debezium.time.ZonedTimestamp": FieldType.TIMESTAMP,
    "io.debezium.time.ZonedTime": FieldType.TIME,
    "io.debezium.time.IsoDate": FieldType.DATE,
    "io.debezium.time.IsoTime": FieldType.TIME,
    "io.debezium.time.IsoTimestamp": FieldType.TIMESTAMP,
}
_PLAIN_TYPES: Final = {
    "int8": FieldType.INT,
    "int16": FieldType.INT,
    "int32": FieldType.INT,
    "int64": FieldType.INT,
    "double": FieldType.FLOAT,
    "string": FieldType.TEXT,
    "boolean": FieldType.BOOL,
}

Schema = Mapping[str, Any]


def parse(raw: bytes) -> Schema:
    try:
        schema = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("unparsable_schema", f"The record's schema is not JSON: {error}.") from error
    return schema if isinstance(schema, dict) else {}


def columns(schema: Schema, image: str | None = None) -> dict[str, Schema]:
    """Return the column schemas of a row: of the `image` (``after``) inside an envelope, or of a flat record.

    Raises RecordError where it is none of Connect's.
    """
    try:
        fields = schema.get("fields") or ()
        if image is not None:
            inside: Schema = next((field for field in fields if field.get("field") == image), {})
            fields = inside.get("fields") or ()
        return {str(field.get("field")): field for field in fields}
    except (TypeError, AttributeError) as error:
        raise _no_schema() from error


def wire_of(schema: Schema | None, declared: FieldSpec) -> tuple[str, int | None]:
    """Return how a column is encoded, and its scale: what its schema says, else what the catalogue said.

    Raises RecordError where the schema is none of Connect's.
    """
    if schema is None:
        return declared.wire, declared.wire_scale
    try:
        return _described(schema, declared)
    except (TypeError, AttributeError, ValueError) as error:
        raise _no_schema() from error


def _no_schema() -> RecordError:
    return RecordError("unparsable_schema", "The record's schema is none of Connect's.")


def _described(schema: Schema, declared: FieldSpec) -> tuple[str, int | None]:
    name, kind = schema.get("name") or "", schema.get("type")
    parameters = schema.get("parameters") or {}
    if name in _WIRES:
        size = parameters.get("scale", parameters.get("length"))
        return _WIRES[name], None if size is None else int(size)
    if kind == "array":
        element = schema.get("items") or {}
        wire, scale = _described(element, item_spec(declared, declared.wire))
        return f"items:{_element_type(element, wire, declared).value}:{wire}", scale
    if kind in ("float", "double") and declared.type is FieldType.FLOAT:
        return declared.wire if declared.wire == "float32" else "", None  # single precision is the pair's, not one side's
    if kind == "float":
        return "float32", None
    if kind == "bytes":
        return "base64", None
    if kind == "boolean" and declared.wire == "bits":
        return "bits", 1
    if kind == "string" and declared.type is FieldType.BYTES:
        return declared.wire, None  # binary.handling.mode: the schema does not say which text form it is
    return "", None


def _element_type(element: Schema, wire: str, declared: FieldSpec) -> FieldType:
    """The catalogue's word on elements goes first: drivers' values are read by it, and both must be read alike."""
    if declared.wire.startswith("items:"):
        return FieldType(declared.wire.split(":")[1])
    if wire in _TYPES:
        return _TYPES[wire]
    if wire.startswith("epoch_"):
        return FieldType.TIMESTAMP
    if wire.startswith("time_"):
        return FieldType.TIME
    named = _NAMED_TYPES.get(element.get("name") or "")
    return named or _PLAIN_TYPES.get(str(element.get("type")), FieldType.INFERRED)


def key_reader(kind: KeyType, wire: str, scale: int | None) -> Callable[[Any], Any]:
    """Build the function that takes a key column's value out of its encoding, for the codec."""
    if wire in ("base64_unscaled", "variable_scale"):
        return lambda value: wire_number(value, wire, scale)
    if kind is KeyType.BYTES:
        return lambda value: value if (raw := read_bytes(value, wire)) is None else raw
    return as_is


def as_is(value: Any) -> Any:
    return value


def read_keys(readers: Sequence[Callable[[Any], Any]], values: Sequence[Any]) -> list[Any]:
    return [reader(value) for reader, value in zip(readers, values, strict=True)]
