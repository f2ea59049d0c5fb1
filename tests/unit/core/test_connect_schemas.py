"""Schemas of a registry become Connect's."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gapwatch.core.connect_schemas import AvroSchema, of_json_schema, plain_avro
from gapwatch.errors import RecordError

DECIMAL: dict[str, Any] = {
    "type": "bytes",
    "scale": 2,
    "precision": 12,
    "connect.version": 1,
    "connect.parameters": {"scale": "2", "connect.decimal.precision": "12"},
    "connect.name": "org.apache.kafka.connect.data.Decimal",
    "logicalType": "decimal",
}
ROW: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "small", "type": {"type": "int", "connect.type": "int16"}},
        {"name": "amount", "type": ["null", DECIMAL], "default": None},
        {"name": "single", "type": ["null", "float"]},
        {"name": "tags", "type": ["null", {"type": "array", "items": ["null", "string"]}]},
    ],
    "connect.name": "shop.public.orders.Value",
}
ENVELOPE: dict[str, Any] = {
    "type": "record",
    "name": "Envelope",
    "namespace": "shop.public.orders",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": ["null", "long"]},
    ],
    "connect.version": 2,
    "connect.name": "shop.public.orders.Envelope",
}
CONNECT_ROW: dict[str, Any] = {
    "type": "struct",
    "name": "shop.public.orders.Value",
    "optional": True,
    "fields": [
        {"type": "int64", "optional": False, "field": "id"},
        {"type": "int16", "optional": False, "field": "small"},
        {
            "type": "bytes",
            "optional": True,
            "name": "org.apache.kafka.connect.data.Decimal",
            "version": 1,
            "parameters": {"scale": "2", "connect.decimal.precision": "12"},
            "field": "amount",
        },
        {"type": "float", "optional": True, "field": "single"},
        {"type": "array", "items": {"type": "string", "optional": True}, "optional": True, "field": "tags"},
    ],
}


def test_an_envelope_in_avro_is_the_struct_that_connect_wrote() -> None:
    """Also a type that is defined before the row and only named after it."""
    fields = [
        {**CONNECT_ROW, "field": "before"},
        {**CONNECT_ROW, "field": "after"},
        {"type": "string", "optional": False, "field": "op"},
        {"type": "int64", "optional": True, "field": "ts_ms"},
    ]
    assert AvroSchema(ENVELOPE).connect == {
        "type": "struct",
        "fields": fields,
        "optional": False,
        "name": "shop.public.orders.Envelope",
        "version": 2,
    }


def test_only_what_json_cannot_hold_is_changed() -> None:
    change = AvroSchema(ENVELOPE).change
    assert change is not None
    row = {"id": 1, "small": 2, "amount": b"\x01", "single": math.nan, "tags": None}
    assert change({"before": None, "after": dict(row), "op": "c", "ts_ms": 1}) == {
        "before": None,
        "after": {**row, "single": "NaN"},
        "op": "c",
        "ts_ms": 1,
    }
    assert AvroSchema({"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}).change is None


@pytest.mark.parametrize(("number", "text"), [(math.inf, "Infinity"), (-math.inf, "-Infinity"), (0.5, 0.5)])
def test_numbers_without_a_word_in_json_are_texts(number: float, text: object) -> None:
    change = AvroSchema({"type": "array", "items": "double"}).change
    assert change is not None
    assert change([number, number]) == [text, text]
    change = AvroSchema({"type": "map", "values": ["null", "double"]}).change
    assert change is not None
    assert change({"a": number, "b": None}) == {"a": text, "b": None}


def test_a_map_whose_keys_are_no_texts_is_a_list_of_pairs() -> None:
    entry = {
        "type": "record",
        "name": "MapEntry",
        "namespace": "io.confluent.connect.avro",
        "fields": [{"name": "key", "type": "int"}, {"name": "value", "type": "double"}],
    }
    schema = AvroSchema({"type": "array", "items": entry})
    assert schema.connect == {
        "type": "map",
        "keys": {"type": "int32", "optional": False},
        "values": {"type": "double", "optional": False},
        "optional": False,
    }
    assert schema.change is not None
    assert schema.change([{"key": 1, "value": 2.5}, {"key": 2, "value": math.nan}]) == [[1, 2.5], [2, "NaN"]]


@pytest.mark.parametrize(
    ("logical", "name", "parameters"),
    [
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 3}, "Decimal", {"scale": "3"}),
        ({"type": "int", "logicalType": "date"}, "Date", None),
        ({"type": "long", "logicalType": "timestamp-micros"}, "MicroTimestamp", None),
    ],
)
def test_avros_own_logical_types_say_what_connects_names_say(logical: Any, name: str, parameters: Any) -> None:
    made = AvroSchema(logical).connect
    assert made["name"].rpartition(".")[2] == name
    assert made.get("parameters") == parameters


def test_enums_and_fixed_bytes_may_be_named_again() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "namespace": "n",
        "fields": [
            {"name": "a", "type": {"type": "enum", "name": "E", "symbols": ["X"]}},
            {"name": "b", "type": "n.E"},
            {"name": "c", "type": {"type": "fixed", "name": "F", "size": 2}},
            {"name": "d", "type": "F"},
        ],
    }
    assert [field["type"] for field in AvroSchema(schema).connect["fields"]] == ["string", "string", "bytes", "bytes"]


def test_definitions_of_other_subjects_are_known() -> None:
    money = {"type": "record", "name": "Money", "namespace": "m", "fields": [{"name": "cents", "type": "long"}]}
    schema = {"type": "record", "name": "R", "fields": [{"name": "price", "type": "m.Money"}]}
    assert AvroSchema(schema, [money]).connect["fields"][0]["name"] == "m.Money"


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (["null", "int", "string"], "A union of 2 types beside null"),
        ("Unknown", "does not define Unknown"),
        ({"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}, "contains itself by R"),
        (7, "is a text, a list or an object"),
    ],
)
def test_what_connect_cannot_say_is_refused_with_the_reason(schema: Any, why: str) -> None:
    with pytest.raises(RecordError, match=why) as raised:
        AvroSchema(schema)
    assert raised.value.reason == "schema_unreadable"


def test_values_are_read_as_they_were_written() -> None:
    plain = plain_avro(ENVELOPE)
    assert "logicalType" not in str(plain)
    assert plain["fields"][0]["type"][1]["fields"][2]["type"][1]["scale"] == 2
    assert "logicalType" in str(ENVELOPE), "the given one stays as it is"


JSON_ROW: dict[str, Any] = {
    "type": "object",
    "title": "shop.public.orders.Value",
    "properties": {
        "tags": {
            "oneOf": [
                {"type": "null"},
                {"type": "array", "connect.index": 4, "items": {"oneOf": [{"type": "null"}, {"type": "string"}]}},
            ]
        },
        "id": {"type": "integer", "connect.index": 0, "connect.type": "int64"},
        "small": {"type": "integer", "connect.index": 1, "connect.type": "int16"},
        "amount": {
            "oneOf": [
                {"type": "null"},
                {
                    "type": "number",
                    "title": "org.apache.kafka.connect.data.Decimal",
                    "connect.index": 2,
                    "connect.type": "bytes",
                    "connect.version": 1,
                    "connect.parameters": {"scale": "2", "connect.decimal.precision": "12"},
                },
            ]
        },
        "single": {"oneOf": [{"type": "null"}, {"type": "number", "connect.index": 3, "connect.type": "float32"}]},
    },
}


def test_a_row_in_json_schema_is_the_struct_that_connect_wrote() -> None:
    assert of_json_schema({"oneOf": [{"type": "null"}, JSON_ROW]}) == CONNECT_ROW
    referring = {"$ref": "#/definitions/Value", "definitions": {"Value": JSON_ROW}}
    assert of_json_schema(referring) == {**CONNECT_ROW, "optional": False}
    assert of_json_schema({"type": ["null", "string"]}) == {"type": "string", "optional": True}


def test_maps_in_json_schema() -> None:
    texts = {"type": "object", "connect.type": "map", "additionalProperties": {"type": "integer", "connect.type": "int32"}}
    assert of_json_schema(texts)["keys"] == {"type": "string", "optional": False}
    assert of_json_schema(texts)["values"] == {"type": "int32", "optional": False}
    entry = {
        "type": "object",
        "properties": {
            "value": {"type": "boolean", "connect.index": 1},
            "key": {"type": "integer", "connect.index": 0, "connect.type": "int8"},
        },
    }
    made = of_json_schema({"type": "array", "connect.type": "map", "items": entry})
    assert (made["type"], made["keys"]["type"], made["values"]["type"]) == ("map", "int8", "boolean")


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": ["string", "integer"]},
        {"type": "nothing"},
        {"$ref": "#/definitions/Gone"},
        {"$ref": "elsewhere.json"},
        {"$ref": "#/definitions/Loop", "definitions": {"Loop": {"$ref": "#/definitions/Loop"}}},
    ],
)
def test_other_json_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(RecordError):
        of_json_schema(schema)
