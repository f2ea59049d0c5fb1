"""Contents that are read for a sweep, on the real stores: those of every record as a scan of records reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pymongo
import pytest
from bson import Binary, Decimal128, Int64, ObjectId

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.sweep_sets import KeyForm, digests
from gapwatch.embedded import EmbeddedStack
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyColumn, KeyType, PipelineSpec, Rounding, StoreType
from gapwatch.model.stream import Side
from gapwatch.ports import ContentChunk, ContentReader, DatasetReader
from gapwatch_connectors.registry import connector_of
from tests.stack import ask
from tests.unit.core.samples import field, pipeline

pytestmark = pytest.mark.integration

# By type of a column, what is written into it.
COLUMNS: dict[str, Sequence[str]] = {
    "int2": ("7", "-32768"),
    "int8": ("9223372036854775807", "1000"),
    "numeric": ("NaN", "Infinity", "123456789012345678901234567890.1234567890", "-0.50", "1e30"),
    "numeric(12,2)": ("3000.00", "0.05", "-12.30"),
    "money": ("12.50", "-3"),
    "bool": ("true", "false"),
    "float4": ("0.1", "NaN", "-Infinity", "3e38"),
    "float8": ("0.1", "-0", "1e23", "123.25", "5e-324", "Infinity"),
    "text": ("", "é" * 700, "12.50", "2026-01-02T03:04:05.6Z", "\x01"),
    "varchar(20)": ("short", "trail  "),
    "char(8)": ("padded", ""),
    "name": ("a name",),
    '"char"': ("x",),
    "bytea": ("\\x00ff", "\\x", "\\x" + "ab" * 16),
    "uuid": ("6f1c0a3e-0f3b-4b1e-9d5b-1f2e3d4c5b6a",),
    "timestamptz": (
        "2026-01-02 03:04:05.678901+02",
        "infinity",
        "-infinity",
        "0044-03-15 12:00:00 BC",
        "294276-12-31 23:59:59.999999",
    ),
    "timestamp": ("2026-03-29 02:30:00.000999", "infinity", "4713-01-01 00:00:00 BC", "1969-12-31 23:59:59.9999"),
    "date": ("2026-01-02", "infinity", "-infinity", "0001-01-01 BC", "5874897-12-31"),
    "time": ("12:30:01.5", "24:00:00"),
    "timetz": ("12:30:01+02",),
    "interval": ("1 year 2 mons", "-3 days 04:05:06.7"),
    "jsonb": ('{"b": 1.0, "a": [null, 1e2]}', '"text"', "null"),
    "json": ('{"b": 1.50, "b": 2}', "12"),
    "int8[]": ("{1,2,NULL}", "{}"),
    "text[]": ('{"a","b c",NULL}', "{{a,b},{c,d}}"),
    "numeric[]": ("{1.50,NaN}",),
    "timestamptz[]": ("{2026-01-02 03:04:05+00,infinity}",),
    "inet": ("10.0.0.1", "10.0.0.0/8", "::ffff:10.0.0.1"),
    "cidr": ("10.0.0.0/8",),
    "bit(4)": ("1010",),
    "int4range": ("[1,5)", "empty"),
    "point": ("(1,2)",),
    "tsvector": ("a fat cat",),
    "mood": ("fine", "so so"),
    "price": ("12.5",),
}


@pytest.fixture(scope="module")
def stores() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(parts=("postgres", "mongodb", "opensearch")) as running:
        yield running


Contents = dict[bytes, Any]


async def read_twice(
    reader: DatasetReader, spec: PipelineSpec, side: Side, *, size: int, **ends: Any
) -> tuple[Contents, Contents]:
    """Return what a scan of records reads, and what a scan of contents does, by key."""
    mapping = CompiledMapping(spec)
    codec = mapping.side(side).codec
    canonical = mapping.canonical_source if side is Side.EXPECTED else mapping.canonical_target
    usual: Contents = {}
    async with aclosing(reader.scan(content=True, chunk=size, **ends)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            assert chunk.complete, chunk.reason
            for record in chunk.records:
                made = canonical(record.fields)
                usual[record.key] = (made.identity, made.values) if mapping.tolerances else digests([made.identity]).tolist()[0]
    assert isinstance(reader, ContentReader)
    found: Contents = {}
    async with aclosing(reader.scan_contents(mapping, side, chunk=size, **ends)) as contents:
        async for one in contents:
            assert one.keys.complete, one.keys.reason
            keys = _keys(codec, one)
            assert len(keys) == len(one.keys) == len(one.contents)
            found |= dict(zip(keys, one.contents.tolist(), strict=True))
    return usual, found


def _keys(codec: KeyCodec, chunk: ContentChunk) -> list[bytes]:
    if chunk.keys.texts is not None:
        return [codec.encode([text]) for text in chunk.keys.texts.decode().split("\0\x01")[:-1]]
    return list(chunk.keys.keys) if chunk.keys.block is None else KeyForm(codec).keys(chunk.keys.block)


def every_type(column: str, **options: Any) -> list[FieldSpec]:
    """A field of every type that reads one column."""
    kinds = [kind for kind in FieldType if kind is not FieldType.INFERRED]
    return [field(f"{column}_{kind.value}", kind, source=column, **options) for kind in kinds]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "us", "scale": 1, "maskable": True},
        {"timezone": "Europe/Berlin", "precision": "s", "rounding": Rounding.ROUND},
    ],
    ids=["plain", "masked", "zoned"],
)
@pytest.mark.parametrize("kind", COLUMNS)
async def test_every_column_type_as_every_field_type(
    stores: EmbeddedStack, unique: Callable[[str], str], kind: str, options: dict[str, Any]
) -> None:
    name, values = unique("columns"), [*COLUMNS[kind], None]
    with psycopg.connect(stores.postgres.dsn(), autocommit=True) as connection:
        for made in ("TYPE mood AS ENUM ('fine', 'so so')", "DOMAIN price AS numeric(8,2)"):
            try:
                connection.execute(f"CREATE {made}".encode())
            except psycopg.errors.DuplicateObject:
                pass
        connection.execute(f"CREATE TABLE {name} (id int8 PRIMARY KEY, v {kind})".encode())
        for number, value in enumerate(values):
            connection.execute(f"INSERT INTO {name} VALUES (%s, CAST(CAST(%s AS text) AS {kind}))".encode(), (number, value))
    spec = pipeline(*every_type("v", **options))
    spec = replace(spec, source=replace(spec.source, table=f"public.{name}"))
    reader = connector_of(StoreType.POSTGRES).source_reader(spec, stores.postgres.dsn())
    try:
        usual, found = await read_twice(reader, spec, Side.EXPECTED, size=3)
        assert found == usual
        assert len(usual) == len(values)
    finally:
        await reader.close()


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("int4", KeyType.INT),
        ("numeric", KeyType.INT),
        ("uuid", KeyType.UUID),
        ("text", KeyType.TEXT),
        ("numeric", KeyType.DECIMAL),
    ],
)
async def test_keys_of_a_table_and_its_ends(
    stores: EmbeddedStack, unique: Callable[[str], str], kind: str, type_: KeyType
) -> None:
    name = unique("keyed")
    made = "md5(i::text)::uuid" if kind == "uuid" else "i"
    with psycopg.connect(stores.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {name} (id {kind}, v numeric(9,3), at timestamptz)".encode())
        rows = f"INSERT INTO {name} SELECT {made}, i / 8.0, now() FROM generate_series(1, 40) i"
        connection.execute(rows.encode())
    column = (KeyColumn(path="id", type=type_),)
    fields = (field("v", FieldType.DECIMAL, tolerance=Decimal("0.1")), field("at", FieldType.TIMESTAMP))
    spec = pipeline(*fields, source_key=column, target_key=(KeyColumn(path="_id", type=type_),))
    spec = replace(spec, source=replace(spec.source, table=f"public.{name}"))
    reader = connector_of(StoreType.POSTGRES).source_reader(spec, stores.postgres.dsn())
    try:
        usual, found = await read_twice(reader, spec, Side.EXPECTED, size=7)
        assert found == usual
        assert len(usual) == 40
        if kind == "int4":
            codec = KeyCodec(column)
            ends = {"lower": codec.encode([5]), "upper": codec.encode([15])}
            usual, found = await read_twice(reader, spec, Side.EXPECTED, size=7, **ends)
            assert found == usual
            assert len(usual) == 10
    finally:
        await reader.close()


DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"a": 1, "b": {"c": 1.5}},
    {"a": Int64(2**40), "b": {"c": Decimal128("12.50")}},
    {"a": "text", "b": {"c": Decimal128("NaN")}},
    {"a": datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC), "b": {"c": Decimal128("-0.001")}},
    {"a": True, "b": {"c": Binary(b"x" * 16, 4)}},
    {"a": ObjectId(b"0" * 12), "b": {"c": [1, datetime(2026, 1, 2, tzinfo=UTC)]}},
    {"a": None, "b": 5},
    {},
)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("type_", [KeyType.INT, KeyType.OBJECTID, KeyType.TEXT])
async def test_documents_of_a_collection(stores: EmbeddedStack, unique: Callable[[str], str], type_: KeyType, zone: str) -> None:
    name = unique("documents")
    made: Callable[[int], Any] = {
        KeyType.INT: lambda number: Int64(number) if number % 2 else number,
        KeyType.OBJECTID: lambda number: ObjectId(number.to_bytes(12, "big")),
        KeyType.TEXT: lambda number: f"key {number:02d}",
    }[type_]
    with pymongo.MongoClient[dict[str, Any]](stores.mongodb.uri) as client:
        client.shop[name].insert_many([{"_id": made(number), **one} for number, one in enumerate(DOCUMENTS * 5)])
    column = (KeyColumn(path="_id", type=type_),)
    fields = [*every_type("a", timezone=zone), *every_type("b", timezone=zone)]
    fields = [replace(one, target=one.source, source=one.target) if one.type is FieldType.TEXT else one for one in fields]
    spec = pipeline(*fields, field("b.c", FieldType.DECIMAL), source_key=column, target_key=column)
    spec = replace(spec, target=replace(spec.target, collection=f"shop.{name}"))
    reader = connector_of(StoreType.MONGODB).target_reader(spec, stores.mongodb.uri)
    codec = KeyCodec(column)
    try:
        usual, found = await read_twice(reader, spec, Side.OBSERVED, size=6)
        assert found == usual
        assert len(usual) == 40
        ends = {"lower": codec.encode([made(10)]), "upper": codec.encode([made(20)])}
        usual, found = await read_twice(reader, spec, Side.OBSERVED, size=6, **ends)
        assert found == usual
        assert len(usual) == 10
    finally:
        await reader.close()


async def test_documents_of_an_index(stores: EmbeddedStack, unique: Callable[[str], str]) -> None:
    name, node = unique("documents"), stores.opensearch
    ask(
        "PUT",
        f"{node.url}/{name}",
        {"settings": {"number_of_shards": 2, "number_of_replicas": 0}, "mappings": {"dynamic": False}},
    )
    values = (1, 1.5, "12.50", "2026-01-02T03:04:05.678Z", True, None, [1, 2], {"c": 0.05}, 1e23, 12345678901234567890)
    for number in range(30):
        ask("PUT", f"{node.url}/{name}/_doc/{number}", {"a": values[number % len(values)], "b": {"c": number / 8}})
    column = (KeyColumn(path="_id", type=KeyType.INT),)
    spec = pipeline(field("a", FieldType.DECIMAL), field("b.c", FieldType.FLOAT), field("_id", FieldType.INT), target_key=column)
    spec = replace(spec, target=replace(spec.target, collection=name))
    address = SearchAddress(scheme="http", hosts=(f"{node.host}:{node.port}",)).encode()
    reader = connector_of(StoreType.OPENSEARCH).target_reader(spec, address)
    codec = KeyCodec(column)
    try:
        usual, found = await read_twice(reader, spec, Side.OBSERVED, size=7)
        assert found == usual
        assert len(usual) == 30
        usual, found = await read_twice(reader, spec, Side.OBSERVED, size=7, lower=codec.encode([10]), upper=codec.encode([20]))
        assert found == usual
        assert len(usual) == 10
    finally:
        await reader.close()
