"""Keys that are read without their content, on the real stores: all of them, each once, in bulk or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID

import psycopg
import pymongo
import pytest
from bson import Binary, Decimal128, ObjectId

from gapwatch.core.keys import TEXT_END, KeyCodec
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.sweep_sets import KeyForm
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import UsageError
from gapwatch.model.pipeline import KeyColumn, KeyType, StoreType
from gapwatch.ports import DatasetReader, KeyChunk, KeySampler, StoredRecord
from gapwatch.roles.repair.scanning import refuse_keyless
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.registry import connector_of
from tests.stack import ask
from tests.unit.core.samples import field, pipeline

pytestmark = pytest.mark.integration

TEXTS = (
    *(f"key {number}" for number in range(40)),
    *("A", "a", "ä", "Z", "zz", " lead", "trail ", "naïve", "日本語", "🙂", "\x01", "a\x01b", "tab\there", "%s", "x" * 400),
)


@pytest.fixture(scope="module")
def stores() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(parts=("postgres", "mongodb", "opensearch")) as running:
        yield running


def reader_of(kind: StoreType, address: str, dataset: str, type_: KeyType, path: str = "") -> DatasetReader:
    path = path or ("id" if kind is StoreType.POSTGRES else "_id")
    spec = pipeline(field("v"))
    column = (KeyColumn(path=path, type=type_),)
    spec = replace(spec, source=replace(spec.source, key=column), target=replace(spec.target, collection=dataset, key=column))
    return connector_of(kind).target_reader(spec, address)


async def scanned(kind: StoreType, address: str, dataset: str, type_: KeyType, **options: Any) -> list[KeyChunk]:
    reader = reader_of(kind, address, dataset, type_)
    try:
        async with aclosing(reader.scan_keys(**options)) as chunks:  # type: ignore[type-var]
            return [chunk async for chunk in chunks]
    finally:
        await reader.close()


def keys_in(chunks: Sequence[KeyChunk], type_: KeyType) -> list[bytes]:
    form = KeyForm(KeyCodec([KeyColumn(path="id", type=type_)]))
    found: list[bytes] = []
    for chunk in chunks:
        before = len(found)
        if chunk.texts is not None:
            found += [one + TEXT_END for one in chunk.texts.split(TEXT_END)[:-1]]
        else:
            found += chunk.keys if chunk.block is None else form.keys(chunk.block)
        assert len(chunk) == len(found) - before
    return found


def encoded(values: Sequence[Any], type_: KeyType) -> list[bytes]:
    codec = KeyCodec([KeyColumn(path="id", type=type_)])
    return sorted(codec.encode([value]) for value in values)


def table(stores: EmbeddedStack, name: str, kind: str, values: Sequence[Any]) -> str:
    with psycopg.connect(stores.postgres.dsn(), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (id {kind} PRIMARY KEY, v text)".encode())
        if values:
            cursor.executemany(f"INSERT INTO {name} VALUES (%s, 'v')".encode(), [(value,) for value in values])
    return stores.postgres.dsn()


def collection(stores: EmbeddedStack, name: str, values: Sequence[Any], **options: Any) -> str:
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(stores.mongodb.uri)
    try:
        made = client.shop.create_collection(name, **options)
        if values:
            made.insert_many([{"_id": value} for value in values])
    finally:
        client.close()
    return stores.mongodb.uri


def index(stores: EmbeddedStack, name: str, values: Sequence[str], routing: str = "") -> str:
    node = stores.opensearch
    ask("PUT", f"{node.url}/{name}", {"settings": {"number_of_shards": 3, "number_of_replicas": 0}})
    for value in values:
        ask("PUT", f"{node.url}/{name}/_doc/{quote(value, safe='')}{routing}", {"v": "v"})
    return SearchAddress(scheme="http", hosts=(f"{node.host}:{node.port}",)).encode()


@pytest.mark.parametrize("size", [3, 50, 50_000])
@pytest.mark.parametrize("kind", ["text", "varchar(500)", 'text COLLATE "C"', "char(500)"])
async def test_texts_of_a_table(stores: EmbeddedStack, unique: Callable[[str], str], kind: str, size: int) -> None:
    name = unique("texts")
    values = [value for value in TEXTS if kind != "char(500)" or value == value.rstrip()]
    address = table(stores, name, kind, values)
    chunks = await scanned(StoreType.POSTGRES, address, f"public.{name}", KeyType.TEXT, chunk=size)
    assert all(chunk.complete for chunk in chunks)
    expected = [value.ljust(500) for value in values] if kind == "char(500)" else values
    assert sorted(keys_in(chunks, KeyType.TEXT)) == encoded(expected, KeyType.TEXT)
    assert any(chunk.texts for chunk in chunks) == (kind != "char(500)")


@pytest.mark.parametrize("size", [3, 50, 50_000])
@pytest.mark.parametrize("collation", [None, {"locale": "de", "strength": 2}])
async def test_texts_of_a_collection(
    stores: EmbeddedStack, unique: Callable[[str], str], collation: dict[str, Any] | None, size: int
) -> None:
    """Some hold a zero, which is escaped in a key: theirs is the page that is read one by one, and no other is lost for it."""
    name = unique("texts")
    values = [value for value in TEXTS if collation is None or value not in ("A", "Z")] + ["\0", "key 7\0", "key 7\0\1"]
    if collation is not None:  # which ignores control characters
        values = [value for value in values if value.isprintable()]
    address = collection(stores, name, values, **({"collation": collation} if collation else {}))
    chunks = await scanned(StoreType.MONGODB, address, f"shop.{name}", KeyType.TEXT, chunk=size)
    assert all(chunk.complete for chunk in chunks)
    assert sorted(keys_in(chunks, KeyType.TEXT)) == encoded(values, KeyType.TEXT)
    assert any(chunk.texts for chunk in chunks) or size == 50_000


@pytest.mark.parametrize("size", [3, 50, 10_000])
async def test_texts_of_an_index(stores: EmbeddedStack, unique: Callable[[str], str], size: int) -> None:
    name = unique("texts")
    address = index(stores, name, TEXTS)
    chunks = await scanned(StoreType.OPENSEARCH, address, name, KeyType.TEXT, chunk=size)
    assert all(chunk.complete for chunk in chunks)
    assert sorted(keys_in(chunks, KeyType.TEXT)) == encoded(TEXTS, KeyType.TEXT)
    assert all(chunk.texts is not None for chunk in chunks)


@pytest.mark.parametrize("values", [(), ("",)], ids=["none", "the empty one"])
async def test_of_few_texts_none_is_lost(stores: EmbeddedStack, unique: Callable[[str], str], values: tuple[str, ...]) -> None:
    """A page whose only key is the empty text is not one without any. An index has no such id."""
    name = unique("few")
    places = [
        (StoreType.POSTGRES, f"public.{name}", table(stores, name, "text", values)),
        (StoreType.MONGODB, f"shop.{name}", collection(stores, name, values)),
    ]
    if not values:
        places.append((StoreType.OPENSEARCH, name, index(stores, name, ())))
    for kind, dataset, address in places:
        chunks = await scanned(kind, address, dataset, KeyType.TEXT)
        assert all(chunk.complete and chunk.identity for chunk in chunks), kind
        assert keys_in(chunks, KeyType.TEXT) == encoded(values, KeyType.TEXT), kind


async def test_a_range_of_texts_is_one_of_their_bytes_on_every_store(stores: EmbeddedStack, unique: Callable[[str], str]) -> None:
    """A database may order them otherwise: a range is not read in bulk there."""
    name = unique("texts")
    codec = KeyCodec([KeyColumn(path="id", type=KeyType.TEXT)])
    lower, upper = codec.encode(["Z"]), codec.encode(["key 3"])
    within = [value for value in TEXTS if lower <= codec.encode([value]) < upper]
    for kind, dataset, address in (
        (StoreType.POSTGRES, f"public.{name}", table(stores, name, "text", TEXTS)),
        (StoreType.MONGODB, f"shop.{name}", collection(stores, name, TEXTS)),
        (StoreType.OPENSEARCH, name, index(stores, name, TEXTS)),
    ):
        chunks = await scanned(kind, address, dataset, KeyType.TEXT, lower=lower, upper=upper)
        assert sorted(keys_in(chunks, KeyType.TEXT)) == encoded(within, KeyType.TEXT), kind


async def test_an_id_that_is_no_text_ends_the_scan(stores: EmbeddedStack, unique: Callable[[str], str]) -> None:
    name = unique("texts")
    address = collection(stores, name, [*TEXTS, 7])
    chunks = await scanned(StoreType.MONGODB, address, f"shop.{name}", KeyType.TEXT)
    assert not chunks[-1].complete
    assert "is no text" in chunks[-1].reason


@pytest.mark.parametrize("large", [False, True])
async def test_whole_numbers_of_an_index(stores: EmbeddedStack, unique: Callable[[str], str], *, large: bool) -> None:
    name = unique("numbers")
    numbers = [*range(-3, 30), 2**63 - 1, -(2**63), *([2**63, 2**80] if large else [])]
    address = index(stores, name, [str(number) for number in numbers])
    chunks = await scanned(StoreType.OPENSEARCH, address, name, KeyType.INT, chunk=100)
    assert all(chunk.complete for chunk in chunks)
    assert sorted(keys_in(chunks, KeyType.INT)) == encoded(numbers, KeyType.INT)


@pytest.mark.parametrize("odd", ["007", "+7", "1_000", " 7", "seven", "-0", "٧"])
async def test_trap_26_an_id_of_another_form_is_never_coerced(
    stores: EmbeddedStack, unique: Callable[[str], str], odd: str
) -> None:
    name = unique("numbers")
    address = index(stores, name, ["1", "2", odd])
    chunks = await scanned(StoreType.OPENSEARCH, address, name, KeyType.INT)
    assert not all(chunk.complete for chunk in chunks)
    assert chunks[-1].reason


async def test_routed_documents_are_refused_where_nobody_says_by_what(
    stores: EmbeddedStack, unique: Callable[[str], str]
) -> None:
    name = unique("routed")
    address = index(stores, name, ["1", "2"], routing="?routing=elsewhere")
    chunks = await scanned(StoreType.OPENSEARCH, address, name, KeyType.INT)
    assert "are routed" in chunks[-1].reason


@pytest.mark.parametrize("content", [None, False, True], ids=["keys", "records", "records with content"])
async def test_a_scan_of_an_index_that_is_left_early_holds_no_point_in_time(
    stores: EmbeddedStack, unique: Callable[[str], str], *, content: bool | None
) -> None:
    name = unique("left")
    reader = reader_of(StoreType.OPENSEARCH, index(stores, name, [str(number) for number in range(20)]), name, KeyType.INT)

    def held() -> int:
        statistics = ask("GET", f"{stores.opensearch.url}/{name}/_stats/search")
        return int(statistics["_all"]["total"]["search"]["point_in_time_current"])

    chunks: Any = reader.scan_keys(chunk=2) if content is None else reader.scan(content=content, chunk=2)
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                assert chunk.complete
                break
            assert held() == 1
        assert held() == 0
    finally:
        await reader.close()


@pytest.mark.parametrize("kind", ["a table", "a partitioned table", "a collection"])
async def test_a_sample_is_of_keys_from_all_over(stores: EmbeddedStack, unique: Callable[[str], str], kind: str) -> None:
    name, rows = unique("sampled"), 40_000
    if kind == "a collection":
        store, dataset, address = StoreType.MONGODB, f"shop.{name}", collection(stores, name, range(rows))
    else:
        store, dataset, address = StoreType.POSTGRES, f"public.{name}", stores.postgres.dsn()
        with psycopg.connect(address, autocommit=True) as connection:
            parts = " PARTITION BY HASH (id)" if kind == "a partitioned table" else ""
            connection.execute(f"CREATE TABLE {name} (id int8 PRIMARY KEY, v text){parts}".encode())
            for number in range(3 if parts else 0):
                rest = f"PARTITION OF {name} FOR VALUES WITH (MODULUS 3, REMAINDER {number})"
                connection.execute(f"CREATE TABLE {name}_{number} {rest}".encode())
            connection.execute(f"INSERT INTO {name} SELECT i, 'v' FROM generate_series(0, {rows - 1}) i".encode())
    reader = reader_of(store, address, dataset, KeyType.INT)
    assert isinstance(reader, KeySampler)
    codec = KeyCodec([KeyColumn(path="id", type=KeyType.INT)])
    try:
        numbers = [codec.decode(key)[0] for key in await reader.sample_keys(160)]
    finally:
        await reader.close()
    assert 100 <= len(set(numbers)) <= 1_000
    quarters = [sum(at * rows // 4 <= number < (at + 1) * rows // 4 for number in numbers) for at in range(4)]
    assert sum(quarters) == len(numbers)
    assert min(quarters) > len(numbers) / 16, "none of four parts is much smaller than the others"


@pytest.mark.parametrize("store", [StoreType.POSTGRES, StoreType.MONGODB])
async def test_of_nothing_there_is_no_sample(stores: EmbeddedStack, unique: Callable[[str], str], store: StoreType) -> None:
    name = unique("sampled")
    if store is StoreType.POSTGRES:
        reader = reader_of(store, table(stores, name, "int8", ()), f"public.{name}", KeyType.INT)
    else:
        reader = reader_of(store, collection(stores, name, ()), f"shop.{name}", KeyType.INT)
    assert isinstance(reader, KeySampler)
    try:
        assert await reader.sample_keys(160) == []
    finally:
        await reader.close()


OID, UID = ObjectId("65f000000000000000000000"), UUID("6fa85f64-5717-4562-b3fc-2c963f66afa6")


@pytest.mark.parametrize(
    ("type_", "values", "ordered"),
    [
        (KeyType.INT, [], True),
        (KeyType.INT, [1, 2**40, Decimal128("18446744073709551616")], True),
        (KeyType.INT, [1, 2.0], False),
        (KeyType.INT, [1, "2"], False),
        (KeyType.INT, [1, True], False),
        (KeyType.OBJECTID, [OID, ObjectId("70f000000000000000000000")], True),
        (KeyType.OBJECTID, [OID, "70f000000000000000000000"], False),
        (KeyType.UUID, [Binary.from_uuid(UID)], True),
        (KeyType.UUID, [Binary.from_uuid(UID), str(UUID(int=1))], False),
        (KeyType.UUID, [Binary.from_uuid(UID), Binary(UUID(int=2**127).bytes, 3)], False),
        (KeyType.TEXT, ["a"], False),
    ],
    ids=repr,
)
async def test_ids_come_in_the_order_of_keys_where_all_are_spelt_alike(
    stores: EmbeddedStack, unique: Callable[[str], str], type_: KeyType, values: list[Any], ordered: bool
) -> None:
    name = unique("ordered")
    address = collection(stores, name, values)
    collection(stores, f"{name}_within", [{"id": value} for value in values])
    for dataset, path in ((name, "_id"), (f"{name}_within", "_id.id")):
        reader = reader_of(StoreType.MONGODB, address, f"shop.{dataset}", type_, path)
        try:
            assert await reader.in_key_order() == ordered, path
        finally:
            await reader.close()


async def test_a_key_that_is_not_the_id_comes_in_no_order(stores: EmbeddedStack, unique: Callable[[str], str]) -> None:
    name = unique("ordered")
    address = collection(stores, name, [{"a": 1, "b": 2}])
    for path in ("v", "_id.a.c"):
        reader = reader_of(StoreType.MONGODB, address, f"shop.{name}", KeyType.INT, path)
        try:
            assert not await reader.in_key_order()
        finally:
            await reader.close()


@pytest.mark.parametrize("path", ["_id", "_id.id"])
async def test_trap_27_a_range_of_ids_holds_those_that_are_spelt_otherwise(
    stores: EmbeddedStack, unique: Callable[[str], str], path: str
) -> None:
    """The index puts an ObjectId that is a text before all others, so that a range by the index alone would pass it over."""
    name, low, high = unique("spelt"), ObjectId("65f000000000000000000000"), ObjectId("75f000000000000000000000")
    inside = [low, "70f000000000000000000000", ObjectId("66f000000000000000000000")]
    values = [*inside, high, "60f000000000000000000000"]
    address = collection(stores, name, [value if path == "_id" else {"id": value} for value in values])
    codec = KeyCodec([KeyColumn(path="id", type=KeyType.OBJECTID)])
    reader = reader_of(StoreType.MONGODB, address, f"shop.{name}", KeyType.OBJECTID, path)
    try:
        chunks = [
            chunk async for chunk in reader.scan_keys(lower=codec.encode([str(low)]), upper=codec.encode([str(high)]), chunk=2)
        ]
    finally:
        await reader.close()
    assert all(chunk.complete for chunk in chunks)
    assert sorted(keys_in(chunks, KeyType.OBJECTID)) == encoded([str(value) for value in inside], KeyType.OBJECTID)


@pytest.mark.parametrize("lower", [None, 20])
async def test_a_range_of_ids_inside_a_document(stores: EmbeddedStack, unique: Callable[[str], str], lower: int | None) -> None:
    name = unique("within")
    address = collection(stores, name, [{"id": number} for number in range(50)])
    codec = KeyCodec([KeyColumn(path="id", type=KeyType.INT)])
    reader = reader_of(StoreType.MONGODB, address, f"shop.{name}", KeyType.INT, "_id.id")
    begin = None if lower is None else codec.encode([lower])
    try:
        chunks = [chunk async for chunk in reader.scan_keys(lower=begin, upper=codec.encode([41]), chunk=7)]
    finally:
        await reader.close()
    assert keys_in(chunks, KeyType.INT) == encoded(range(lower or 0, 41), KeyType.INT)


@pytest.mark.parametrize(
    ("kind", "type_", "ordered"),
    [
        ("int8", KeyType.INT, True),
        ("numeric", KeyType.INT, True),
        ("text", KeyType.INT, False),
        ("uuid", KeyType.UUID, True),
        ("text", KeyType.UUID, False),
        ("bytea", KeyType.OBJECTID, True),
        ("text", KeyType.TEXT, False),
    ],
)
async def test_rows_come_in_the_order_of_keys_where_the_column_is_such_a_key(
    stores: EmbeddedStack, unique: Callable[[str], str], kind: str, type_: KeyType, ordered: bool
) -> None:
    name = unique("ordered")
    reader = reader_of(StoreType.POSTGRES, table(stores, name, kind, ()), f"public.{name}", type_)
    try:
        assert await reader.in_key_order() == ordered
    finally:
        await reader.close()


CODECS: dict[
    KeyType, tuple[str, Sequence[Any], Sequence[Any]]
] = {  # a column's type, its values, and the same as ids of documents
    KeyType.INT: ("int8", (-(2**63), -1, 0, 7, 2**53 + 1, 2**63 - 1), (-(2**63), -1, 0, 7, 2**53 + 1, 2**63 - 1)),
    KeyType.TEXT: ("text", TEXTS, TEXTS),
    KeyType.UUID: (
        "uuid",
        [UUID(int=1), UUID(int=2**127), UUID(int=2**128 - 1)],
        [Binary.from_uuid(UUID(int=number)) for number in (1, 2**127, 2**128 - 1)],
    ),
    KeyType.DECIMAL: (
        "numeric(30, 4)",
        [Decimal(text) for text in ("-1.5", "0", "0.0001", "12345678901234567890.1234")],
        [Decimal128(text) for text in ("-1.5", "0", "0.0001", "12345678901234567890.1234")],
    ),
    KeyType.BYTES: ("bytea", [b"", b"\0", b"a\0b", b"\xff" * 40], [b"", b"\0", b"a\0b", b"\xff" * 40]),
    KeyType.OBJECTID: (
        "text",
        ["65f000000000000000000000", "00000000000000000000000a"],
        [ObjectId("65f000000000000000000000"), ObjectId("00000000000000000000000a")],
    ),
}


@pytest.mark.parametrize("type_", list(CODECS))
@pytest.mark.parametrize("store", [StoreType.POSTGRES, StoreType.MONGODB])
async def test_trap_26_keys_of_every_codec_are_the_same_on_both_stores_and_found_again_by_key(
    stores: EmbeddedStack, unique: Callable[[str], str], store: StoreType, type_: KeyType
) -> None:
    """What a scan shows is what a look-up by the same bytes finds, without sampling and without guessing."""
    name = unique("codec")
    kind, values, ids = CODECS[type_]
    if store is StoreType.POSTGRES:
        address, dataset = table(stores, name, kind, values), f"public.{name}"
    else:
        address, dataset = collection(stores, name, ids), f"shop.{name}"
    reader = reader_of(store, address, dataset, type_)
    try:
        chunks = [chunk async for chunk in reader.scan_keys(chunk=3)]
        found = sorted(keys_in(chunks, type_))
        read = await reader.fetch(found)
    finally:
        await reader.close()
    assert all(chunk.complete for chunk in chunks)
    assert found == encoded(values, type_)
    assert all(isinstance(read[key], StoredRecord) for key in found)


@pytest.mark.parametrize("store", [StoreType.POSTGRES, StoreType.MONGODB])
async def test_keys_of_several_columns_are_the_same_on_both_stores_and_found_again_by_key(
    stores: EmbeddedStack, unique: Callable[[str], str], store: StoreType
) -> None:
    name, types = unique("pairs"), (KeyType.INT, KeyType.TEXT)
    pairs = [(number, text) for number in (-1, 0, 300) for text in ("", "a", "ä\0"[:1], "z" * 300)]
    prefix = "" if store is StoreType.POSTGRES else "_id."
    key = tuple(KeyColumn(path=f"{prefix}{path}", type=type_) for path, type_ in zip(("a", "b"), types, strict=True))
    if store is StoreType.POSTGRES:
        address, dataset = stores.postgres.dsn(), f"public.{name}"
        with psycopg.connect(address, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {name} (a int8, b text, v text, PRIMARY KEY (a, b))".encode())
            cursor.executemany(f"INSERT INTO {name} VALUES (%s, %s, 'v')".encode(), pairs)
    else:
        address, dataset = collection(stores, name, [{"a": a, "b": b} for a, b in pairs]), f"shop.{name}"
    spec = pipeline(field("v"))
    spec = replace(spec, source=replace(spec.source, key=key), target=replace(spec.target, collection=dataset, key=key))
    reader, codec = connector_of(store).target_reader(spec, address), KeyCodec(key)
    try:
        chunks = [chunk async for chunk in reader.scan_keys(chunk=5)]
        found = sorted(key for chunk in chunks for key in chunk.keys)
        read = await reader.fetch(found)
    finally:
        await reader.close()
    assert all(chunk.complete for chunk in chunks)
    assert found == sorted(codec.encode(pair) for pair in pairs)
    assert all(isinstance(read[key], StoredRecord) for key in found)


async def test_trap_28_gaps_between_ids_cost_nothing_and_a_sample_is_of_rows(
    stores: EmbeddedStack, unique: Callable[[str], str]
) -> None:
    """Ranges are of what is there: an id of 10^15 beside those from 0 on does not make a thousand ranges of nothing."""
    name, values = unique("sparse"), [*range(2_000), *range(10**15, 10**15 + 2_000)]
    address = table(stores, name, "int8", ())
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"INSERT INTO {name} SELECT unnest(%s::int8[]), 'v'".encode(), (values,))
    reader = reader_of(StoreType.POSTGRES, address, f"public.{name}", KeyType.INT)
    assert isinstance(reader, KeySampler)
    codec = KeyCodec([KeyColumn(path="id", type=KeyType.INT)])
    try:
        sample = [codec.decode(key)[0] for key in await reader.sample_keys(64)]
        chunks = [chunk async for chunk in reader.scan_keys(chunk=500)]
    finally:
        await reader.close()
    assert keys_in(chunks, KeyType.INT) == encoded(values, KeyType.INT)
    assert len(chunks) <= len(values) / 500 + 2
    assert min(sum(number < 10**15 for number in sample), sum(number >= 10**15 for number in sample)) > len(sample) / 8


@pytest.mark.parametrize("index", ["", "CREATE UNIQUE INDEX {0}_key ON {0} (id)", "CREATE INDEX {0}_key ON {0} (id)"])
async def test_a_table_without_a_unique_key_is_refused_with_the_reason(
    stores: EmbeddedStack, unique: Callable[[str], str], index: str
) -> None:
    name = unique("keyless")
    with psycopg.connect(stores.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {name} (id int8 NOT NULL, v text)".encode())
        if index:
            connection.execute(index.format(name).encode())
    spec = pipeline(field("v"))
    spec = replace(spec, source=replace(spec.source, table=f"public.{name}", key=(KeyColumn(path="id", type=KeyType.INT),)))
    source = connector_of(StoreType.POSTGRES).source_reader(spec, stores.postgres.dsn())
    made = cast(PipelineStores, SimpleNamespace(source=source, spec=spec))
    try:
        if "UNIQUE" in index:
            await refuse_keyless(made)
            return
        with pytest.raises(UsageError, match=f"public.{name} has no primary key and no unique index"):
            await refuse_keyless(made)
    finally:
        await source.close()


async def test_trap_45_a_reader_could_not_write_if_it_wanted_to(stores: EmbeddedStack, unique: Callable[[str], str]) -> None:
    """A verifier must never change what it verifies: the connection itself is for reading."""
    name = unique("read")
    reader = cast(Any, reader_of(StoreType.POSTGRES, table(stores, name, "int8", [1]), f"public.{name}", KeyType.INT))
    try:
        async with reader._connections.connection() as connection:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await connection.execute(f"UPDATE {name} SET v = 'w'".encode())
    finally:
        await reader.close()


async def test_trap_44_a_scan_holds_no_snapshot_between_its_chunks_and_waits_for_no_lock(
    stores: EmbeddedStack, unique: Callable[[str], str]
) -> None:
    """A long snapshot keeps vacuum from its work; a lock that somebody holds ends a chunk, in time, and not the store."""
    name = unique("short")
    address = table(stores, name, "int8", range(50))
    reader = cast(Any, reader_of(StoreType.POSTGRES, address, f"public.{name}", KeyType.INT))
    with psycopg.connect(address, autocommit=True) as connection:
        asked = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL"
        )
        held = []
        async with aclosing(reader.scan_keys(chunk=10)) as chunks:
            async for chunk in chunks:
                assert chunk.complete
                held.append(connection.execute(asked.encode(), (f"%{name}%",)).fetchone())
        assert held == [(0,)] * len(held)
        assert len(held) >= 5
        async with reader._connections.connection() as ours:
            shown = [await ours.execute(f"SHOW {limit}".encode()) for limit in ("statement_timeout", "lock_timeout")]
            limits = [await answer.fetchone() for answer in shown]
        await reader.close()
        assert all(row is not None and next(iter(row.values())) != "0" for row in limits)
