"""Connect's schemas, made from those of a schema registry.

A record in Avro or JSON Schema becomes what Connect's ``JsonConverter`` writes with ``schemas.enable=true``, so that one set of
decoders reads them all. Made once per schema. What the converters keep beside Avro's and JSON Schema's own words is read:
``connect.name``, ``connect.version``, ``connect.type``, ``connect.parameters``. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gapwatch.errors import RecordError

Schema = dict[str, Any]
Change = Callable[[Any], Any]  # of a value read from Avro, to what Connect's JSON has there

_AVRO: Final = {"int": "int32", "long": "int64", "float": "float", "double": "double", "bytes": "bytes"} | {
    "string": "string",
    "boolean": "boolean",
    "enum": "string",
    "fixed": "bytes",
}
_JSON: Final = {"integer": "int64", "number": "double", "string": "string", "boolean": "boolean"}
_CONNECT_TYPES: Final = {"float32": "float", "float64": "double"}  # as JsonConverter names them
_LOGICAL: Final = {  # of writers other than Connect's converters
    "decimal": "org.apache.kafka.connect.data.Decimal",
    "date": "org.apache.kafka.connect.data.Date",
    "time-millis": "org.apache.kafka.connect.data.Time",
    "time-micros": "io.debezium.time.MicroTime",
    "timestamp-millis": "org.apache.kafka.connect.data.Timestamp",
    "timestamp-micros": "io.debezium.time.MicroTimestamp",
    "timestamp-nanos": "io.debezium.time.NanoTimestamp",
    "uuid": "io.debezium.data.Uuid",
}
_ENTRY: Final = "MapEntry"  # a map whose keys are no texts is an array of those


def unreadable(why: str) -> RecordError:
    """Return the error for a schema that has no counterpart in Connect, or that nobody can read."""
    return RecordError("schema_unreadable", why)


class AvroSchema:
    """One Avro schema with the definitions that it refers to.

    ``connect``: Connect's schema. ``change``: what has to be done to a value that was read without logical types, None: nothing.

    Raises:
        RecordError: It has no counterpart: a union of several types, a record that contains itself, an unknown name.
    """

    def __init__(self, schema: Any, definitions: Sequence[Any] = ()) -> None:
        self._names: dict[str, tuple[Any, str]] = {}
        self._open: list[str] = []
        for definition in definitions:
            self._translate(definition, "")
        self.connect, self.change = self._translate(schema, "")

    def _translate(self, schema: Any, space: str) -> tuple[Schema, Change | None]:
        if isinstance(schema, list):
            return self._union(schema, space)
        if isinstance(schema, str):
            return self._named(schema, space)
        if not isinstance(schema, dict):
            raise unreadable(f"An Avro schema is a text, a list or an object, not {schema!r:.60}.")
        kind = schema.get("type")
        if isinstance(kind, list | dict):
            return self._translate(kind, space)
        if kind == "record":
            return self._record(schema, space)
        if kind == "array":
            return self._array(schema, space)
        if kind == "map":
            values, change = self._translate(schema.get("values"), space)
            keys = {"type": "string", "optional": False}
            return _named({"type": "map", "keys": keys, "values": values}, schema), change and _of_values(change)
        if kind in ("enum", "fixed"):
            self._names[_full(schema, space)] = (schema, space)
        elif kind not in _AVRO:
            return self._named(str(kind), space)
        return _named(_typed({"type": _AVRO[str(kind)]}, schema), schema), _finite if kind in ("float", "double") else None

    def _union(self, branches: Sequence[Any], space: str) -> tuple[Schema, Change | None]:
        others = [branch for branch in branches if branch != "null"]
        if len(others) != 1:
            raise unreadable(f"A union of {len(others)} types beside null has no counterpart here.")
        schema, change = self._translate(others[0], space)
        if len(others) == len(branches):
            return schema, change
        return {**schema, "optional": True}, change and _unless_null(change)

    def _named(self, name: str, space: str) -> tuple[Schema, Change | None]:
        if name in _AVRO:
            return {"type": _AVRO[name], "optional": False}, _finite if name in ("float", "double") else None
        full = name if "." in name or not space else f"{space}.{name}"
        full = full if full in self._names else name
        if full not in self._names or full in self._open:
            raise unreadable(f"The Avro schema {'contains itself by' if full in self._open else 'does not define'} {name}.")
        return self._translate(*self._names[full])

    def _record(self, schema: Mapping[str, Any], space: str) -> tuple[Schema, Change | None]:
        full = _full(schema, space)
        inner = full.rpartition(".")[0]
        self._names[full] = (schema, space)
        self._open.append(full)
        fields, changes = [], {}
        for field in schema.get("fields") or ():
            translated, change = self._translate(field.get("type"), inner)
            fields.append({**translated, "field": field.get("name")})
            if change is not None:
                changes[str(field.get("name"))] = change
        self._open.pop()
        return _named({"type": "struct", "fields": fields}, {"connect.name": full, **schema}), _of_fields(changes)

    def _array(self, schema: Mapping[str, Any], space: str) -> tuple[Schema, Change | None]:
        items, change = self._translate(schema.get("items"), space)
        if str(items.get("name", "")).rpartition(".")[2] == _ENTRY and [f["field"] for f in items["fields"]] == ["key", "value"]:
            key, value = ({name: part for name, part in field.items() if name != "field"} for field in items["fields"])
            return _named({"type": "map", "keys": key, "values": value}, schema), _pairs(change)
        return _named({"type": "array", "items": items}, schema), change and _of_items(change)


def plain_avro(schema: Any) -> Any:
    """Return an Avro schema without logical types: what is read with it is what was written, for Connect's schema to explain."""
    if isinstance(schema, list):
        return [plain_avro(one) for one in schema]
    if isinstance(schema, dict):
        return {name: plain_avro(part) for name, part in schema.items() if name != "logicalType"}
    return schema


def of_json_schema(schema: Any) -> Schema:
    """Return Connect's schema for a JSON Schema. Raises RecordError where it has no counterpart."""
    return _of_json(schema, schema if isinstance(schema, dict) else {}, 0)


def _of_json(schema: Any, root: Mapping[str, Any], depth: int) -> Schema:
    if not isinstance(schema, dict) or depth > 64:
        raise unreadable("A JSON Schema is an object that does not contain itself.")
    if "$ref" in schema:
        return _of_json(_referred(str(schema["$ref"]), root), root, depth + 1)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            others = [one for one in schema[word] if not (isinstance(one, dict) and one.get("type") == "null")]
            if len(others) != 1:
                raise unreadable(f"A {word} of {len(others)} types beside null has no counterpart here.")
            optional = len(others) < len(schema[word])
            return {**_of_json(others[0], root, depth + 1), **({"optional": True} if optional else {})}
    kind = schema.get("type")
    if isinstance(kind, list):
        others = [one for one in kind if one != "null"]
        if len(others) != 1:
            raise unreadable(f"A value of {len(others)} types beside null has no counterpart here.")
        return {**_of_json({**schema, "type": others[0]}, root, depth + 1), "optional": len(others) < len(kind)}
    described = {"connect.name": schema["title"], **schema} if "title" in schema else schema
    if kind == "array":
        items = _of_json(schema.get("items") or {"type": "string"}, root, depth + 1)
        if schema.get("connect.type") == "map" and items["type"] == "struct" and len(items["fields"]) == 2:
            key, value = ({name: part for name, part in field.items() if name != "field"} for field in items["fields"])
            return _named({"type": "map", "keys": key, "values": value}, described)
        return _named({"type": "array", "items": items}, described)
    if kind == "object" and schema.get("connect.type") == "map":
        values = _of_json(schema.get("additionalProperties") or {"type": "string"}, root, depth + 1)
        return _named({"type": "map", "keys": {"type": "string", "optional": False}, "values": values}, described)
    if kind == "object":
        properties = sorted((schema.get("properties") or {}).items(), key=lambda item: _index(item[1]))
        fields = [{**_of_json(inner, root, depth + 1), "field": name} for name, inner in properties]
        return _named({"type": "struct", "fields": fields}, described)
    if kind not in _JSON:
        raise unreadable(f"JSON Schema's type {kind!r:.40} has no counterpart here.")
    return _named(_typed({"type": _JSON[str(kind)]}, schema), described)


def _index(schema: Any) -> int:
    """Return where a property stood in its struct; of an optional one, that stands with its type."""
    if not isinstance(schema, dict):
        return 0
    inner = [schema, *(one for word in ("oneOf", "anyOf") for one in schema.get(word, ()) if isinstance(one, dict))]
    return next((int(one["connect.index"]) for one in inner if "connect.index" in one), 0)


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    if not reference.startswith("#/") or found is None:
        raise unreadable(f"The JSON Schema does not hold {reference!r:.80}.")
    return found


def _full(schema: Mapping[str, Any], space: str) -> str:
    name, inner = str(schema.get("name")), schema.get("namespace", space)
    return name if "." in name or not inner else f"{inner}.{name}"


def _typed(made: Schema, schema: Mapping[str, Any]) -> Schema:
    kind = schema.get("connect.type")
    return {"type": _CONNECT_TYPES.get(kind, kind)} if isinstance(kind, str) else made


def _named(made: Schema, schema: Mapping[str, Any]) -> Schema:
    """Give a schema the name, version and parameters that stand beside its type."""
    made["optional"] = False
    name, logical = schema.get("connect.name"), schema.get("logicalType")
    parameters = dict(schema.get("connect.parameters") or {})
    if name is None and logical in _LOGICAL:
        name = _LOGICAL[str(logical)]
        if logical == "decimal":
            parameters = {"scale": str(schema.get("scale", 0))}
    if name is not None:
        made["name"] = str(name)
    if schema.get("connect.version") is not None:
        made["version"] = schema["connect.version"]
    if parameters:
        made["parameters"] = parameters
    return made


# what JSON cannot hold as it is


def _finite(value: Any) -> Any:
    """Return a number, or its name where JSON has none for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _unless_null(change: Change) -> Change:
    return lambda value: None if value is None else change(value)


def _of_items(change: Change) -> Change:
    return lambda values: [change(value) for value in values]


def _of_values(change: Change) -> Change:
    return lambda values: {name: change(value) for name, value in values.items()}


def _of_fields(changes: Mapping[str, Change]) -> Change | None:
    if not changes:
        return None
    listed = tuple(changes.items())

    def changed(record: dict[str, Any]) -> dict[str, Any]:
        for name, change in listed:
            record[name] = change(record[name])
        return record

    return changed


def _pairs(change: Change | None) -> Change:
    def listed(entries: Sequence[dict[str, Any]]) -> list[list[Any]]:
        made = entries if change is None else [change(entry) for entry in entries]
        return [[entry["key"], entry["value"]] for entry in made]

    return listed
