"""What every target's connector promises (``ports.py``), on the real store: reads by key, scans, guarded writes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pymongo
import pytest
from bson.json_util import loads
from msgspec import structs

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.sweep_sets import KeyForm
from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from gapwatch.errors import RecordError, StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import FieldType, PipelineSpec, StoreType
from gapwatch.ports import ABSENT, DatasetReader, ScanChunk, StoredRecord, TargetWriter, WriteItem
from gapwatch_connectors.registry import connector_of
from tests.stack import ask
from tests.unit.core.samples import field, pipeline

pytestmark = pytest.mark.integration

FIELDS = (
    field("customer"),
    field("total", FieldType.DECIMAL),
    field("placed", FieldType.TIMESTAMP),
    field("ship.city"),
    field("tags", FieldType.ARRAY, absent_is_null=True),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One store to test: how a test writes to it without our connector, and where nobody answers."""

    kind: StoreType
    address: str
    silent: str
    dataset: str
    put: Callable[[int, Mapping[str, Any]], object]
    create: Callable[[], object]
    drop: Callable[[], object]
    restore: Callable[[str], object]  # what a person would do with what was kept
    key: str = "_id"

    @property
    def is_table(self) -> bool:
        return self.kind is StoreType.POSTGRES


@pytest.fixture(scope="session")
def document_stores() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(parts=("mongodb", "opensearch")) as running:
        yield running


def address_of(node: OpenSearchPart) -> str:
    return SearchAddress(scheme="http", hosts=(f"{node.host}:{node.port}",)).encode()


COLUMNS = {
    "id": "bigint PRIMARY KEY",
    "customer": "text",
    "total": "numeric",
    "placed": "timestamptz",
    "ship.city": "text",
    "tags": "text[]",
    "at": "timestamptz",
    "n": "int",
    "gone": "int",
}


def table(dsn: str) -> Place:
    def sql(statement: str, *values: Any) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statement.encode(), values)

    def put(number: int, document: Mapping[str, Any]) -> None:
        flat = {"id": number, **document}
        flat |= {f"ship.{name}": value for name, value in flat.pop("ship", {}).items()}
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        changes = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in COLUMNS)
        values = ", ".join(["%s"] * len(COLUMNS))
        sql(
            f"INSERT INTO orders ({names}) VALUES ({values}) ON CONFLICT (id) DO UPDATE SET {changes}",
            *(flat.get(name) for name in COLUMNS),
        )

    def restore(kept: str) -> None:
        texts = json.loads(kept)
        names, values = ", ".join(f'"{name}"' for name in texts), ", ".join(["%s"] * len(texts))
        sql(f"INSERT INTO orders ({names}) VALUES ({values})", *texts.values())

    columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    return Place(
        kind=StoreType.POSTGRES,
        address=dsn,
        silent="postgresql://nobody@127.0.0.1:1/nowhere",
        dataset="public.orders",
        put=put,
        create=lambda: sql(f"CREATE TABLE orders ({columns})"),
        drop=lambda: sql("DROP TABLE orders"),
        restore=restore,
        key="id",
    )


@pytest.fixture(params=["mongodb", "opensearch", "postgres"])
def place(request: pytest.FixtureRequest, unique: Callable[[str], str]) -> Iterator[Place]:
    name = unique("orders")
    if request.param == "postgres":
        running: EmbeddedStack = request.getfixturevalue("stack")
        yield table(running.postgres.dsn(request.getfixturevalue("postgres_database")))
        return
    document_stores: EmbeddedStack = request.getfixturevalue("document_stores")
    if request.param == "opensearch":
        node = document_stores.opensearch
        yield Place(
            kind=StoreType.OPENSEARCH,
            address=address_of(node),
            silent=SearchAddress(scheme="http", hosts=("127.0.0.1:1",)).encode(),
            dataset=name,
            put=lambda key, document: ask("PUT", f"{node.url}/{name}/_doc/{key}", document),
            create=lambda: ask("PUT", f"{node.url}/{name}", {"settings": {"number_of_shards": 3, "number_of_replicas": 0}}),
            drop=lambda: ask("DELETE", f"{node.url}/{name}"),
            restore=lambda kept: ask("PUT", f"{node.url}/{name}/_doc/1", kept.partition('"_source":')[2][:-1].encode()),
        )
        return
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(document_stores.mongodb.uri)
    try:
        yield Place(
            kind=StoreType.MONGODB,
            address=document_stores.mongodb.uri,
            silent="mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300",
            dataset=f"shop.{name}",
            put=lambda key, document: client.shop[name].replace_one({"_id": key}, dict(document), upsert=True),
            create=lambda: client.shop.create_collection(name),
            drop=lambda: client.shop.drop_collection(name),
            restore=lambda kept: client.shop[name].insert_one(loads(kept)),
        )
    finally:
        client.close()


def spec_of(place: Place) -> PipelineSpec:
    spec = pipeline(*FIELDS)
    key = (replace(spec.target.key[0], path=place.key),)
    return replace(spec, target=replace(spec.target, collection=place.dataset, key=key, changed_at="at"))


@pytest.fixture
async def reader(place: Place) -> AsyncIterator[DatasetReader]:
    made = connector_of(place.kind).target_reader(spec_of(place), place.address)
    yield made
    await made.close()


@pytest.fixture
async def writer(place: Place) -> AsyncIterator[TargetWriter]:
    made = connector_of(place.kind).target_writer(spec_of(place), place.address)
    yield made
    await made.close()


CODEC = KeyCodec(pipeline().target.key)


def key(number: int) -> bytes:
    return CODEC.encode([number])


async def chunks_of(reader: DatasetReader, **options: Any) -> list[ScanChunk]:
    async with aclosing(reader.scan(**options)) as chunks:  # type: ignore[type-var]
        return [chunk async for chunk in chunks]


def numbers(chunks: Sequence[ScanChunk]) -> list[int]:
    return sorted(CODEC.decode(record.key)[0] for chunk in chunks for record in chunk.records)


def row(number: int, **changed: Any) -> StoredRecord:
    fields = {
        "id": number,
        "customer": f"c{number}",
        "total": Decimal("12.50"),
        "placed": "2026-03-01T10:20:30.456Z",
        "ship.city": "Wien",
        "tags": ["a", "b"],
    }
    return StoredRecord(key=key(number), fields={**fields, **changed}, revision="1")


async def test_one_entry_for_each_key_and_absence_only_where_it_was_proved(place: Place, reader: DatasetReader) -> None:
    place.create()
    place.put(1, {"customer": "a"})
    found = await reader.fetch([key(1), key(2), key(1)])
    assert set(found) == {key(1), key(2)}
    present = found[key(1)]
    assert isinstance(present, StoredRecord)
    assert present.fields["customer"] == "a"
    assert found[key(2)] is ABSENT


async def test_trap_32_a_read_shows_what_was_written_a_moment_ago(place: Place, reader: DatasetReader) -> None:
    place.create()
    for number in range(50):
        place.put(1, {"customer": f"c{number}"})
        found = (await reader.fetch([key(1)]))[key(1)]
        assert isinstance(found, StoredRecord)
        assert found.fields["customer"] == f"c{number}"


async def test_lesson_17_an_outage_is_no_absence(place: Place) -> None:
    away = connector_of(place.kind).target_reader(spec_of(place), place.silent)
    try:
        with pytest.raises(StoreUnreachable):
            await away.ping()
        with pytest.raises(StoreUnreachable):
            await away.fetch([key(1)])
        with pytest.raises(StoreUnreachable):
            await away.is_empty()
        try:
            chunks = await chunks_of(away, content=False)
        except StoreUnreachable:
            return
        assert not all(chunk.complete for chunk in chunks)
    finally:
        await away.close()


async def test_what_is_not_there_is_refused_by_name(place: Place, reader: DatasetReader) -> None:
    with pytest.raises(StoreRefused) as refused:
        await reader.describe()
    assert refused.value.remedy


async def test_a_scan_shows_every_document_once_in_any_size_of_chunk(place: Place, reader: DatasetReader) -> None:
    place.create()
    for number in range(25):
        place.put(number, {"customer": f"c{number}", "ship": {"city": "Wien"}})
    for size in (1, 7, 100):
        chunks = await chunks_of(reader, content=True, chunk=size)
        assert all(chunk.complete for chunk in chunks)
        assert numbers(chunks) == list(range(25))
        assert {chunk.identity for chunk in chunks} == {(await reader.describe()).identity}
        assert all(record.fields["customer"] for chunk in chunks for record in chunk.records)
    assert numbers(await chunks_of(reader, content=False, lower=key(5), upper=key(9))) == [5, 6, 7, 8]


async def test_d13_a_scan_goes_on_after_its_cursor(place: Place, reader: DatasetReader) -> None:
    place.create()
    for number in range(30):
        place.put(number, {"customer": "c"})
    whole = await chunks_of(reader, content=False, chunk=4)
    for cut in range(len(whole) - 1):
        rest = await chunks_of(reader, content=False, chunk=4, cursor=whole[cut].cursor)
        assert numbers([*whole[: cut + 1], *rest]) == list(range(30))


@pytest.mark.parametrize("content", [False, True])
async def test_lesson_26_a_scan_under_write_load_misses_nothing_that_stays(
    place: Place, reader: DatasetReader, content: bool
) -> None:
    """Documents move between pages while it reads; what is there all the time is shown, once or more, and nothing is made up."""
    place.create()
    for number in range(60):
        place.put(number, {"customer": "c"})
    ended, written = threading.Event(), list[int]()

    def write() -> None:
        while not ended.is_set():
            place.put(len(written) % 60, {"customer": f"c{len(written)}"})
            written.append(1)

    load = asyncio.create_task(asyncio.to_thread(write))
    try:
        while len(written) <= 3:  # it is written to meanwhile, however slow that is
            for size in (3, 7, 20):
                chunks = await chunks_of(reader, content=content, chunk=size)
                assert all(chunk.complete for chunk in chunks)
                assert set(numbers(chunks)) == set(range(60))
            if load.done():
                await load
    finally:
        ended.set()
    await load


async def test_keys_alone_come_within_both_ends(place: Place, reader: DatasetReader) -> None:
    place.create()
    for number in range(30):
        place.put(number, {"customer": "c"})
    form = KeyForm(CODEC)
    for lower, upper, size in ((None, None, 7), (5, 20, 7), (None, 20, 100), (28, None, 3), (50, 60, 10)):
        ends = {"lower": key(lower) if lower is not None else None, "upper": key(upper) if upper is not None else None}
        async with aclosing(reader.scan_keys(**ends, chunk=size)) as chunks:  # type: ignore[type-var]
            found = [one async for chunk in chunks for one in (chunk.keys if chunk.block is None else form.keys(chunk.block))]
        first, last = lower if lower is not None else 0, upper if upper is not None else 30
        assert sorted(CODEC.decode(one)[0] for one in found) == [number for number in range(30) if first <= number < last]


async def test_d12_what_changed_since_comes_and_nothing_older(place: Place, reader: DatasetReader) -> None:
    place.create()
    now = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
    for number in range(60):
        at = now - timedelta(hours=number)
        place.put(number, {"customer": "c", "at": at.isoformat() if place.kind is StoreType.OPENSEARCH else at})
    place.put(99, {"customer": "nobody says when"})
    async with aclosing(reader.scan_changed(now - timedelta(hours=48), chunk=10)) as chunks:  # type: ignore[type-var]
        found = [chunk async for chunk in chunks]
    assert all(chunk.complete for chunk in found)
    assert numbers(found) == list(range(49)), "the hour itself is in it"
    for cut in range(len(found) - 1):
        rest = reader.scan_changed(now - timedelta(hours=48), cursor=found[cut].cursor, chunk=10)
        async with aclosing(rest) as chunks:  # type: ignore[type-var]
            after = [chunk async for chunk in chunks]
        assert set(numbers([*found[: cut + 1], *after])) == set(range(49))


async def test_emptiness_is_proved_and_identity_tells_a_new_dataset(place: Place, reader: DatasetReader) -> None:
    place.create()
    assert await reader.is_empty()
    first = (await reader.describe()).identity
    for content in (False, True):
        chunks = await chunks_of(reader, content=content)
        assert numbers(chunks) == []
        assert all(chunk.complete for chunk in chunks)
    place.put(1, {"customer": "a"})
    assert not await reader.is_empty()
    place.drop()
    place.create()
    assert (await reader.describe()).identity != first


async def test_what_is_written_is_what_is_read_back(place: Place, reader: DatasetReader, writer: TargetWriter) -> None:
    place.create()
    spec = spec_of(place)
    source = row(1)
    document = writer.document(key(1), source, spec.fields)
    [result] = await writer.write([WriteItem(key=key(1), document=document, replaces=ABSENT)])
    assert result.outcome == "written"
    found = (await reader.fetch([key(1)]))[key(1)]
    assert isinstance(found, StoredRecord)
    if not place.is_table:  # a table's driver has values of its own
        assert dict(found.fields) == dict(document)
    mapping = CompiledMapping(spec)
    assert mapping.differing(mapping.canonical_source(source.fields), mapping.canonical_target(found.fields)) == ()


async def test_d7_nothing_is_written_over_something_newer(place: Place, reader: DatasetReader, writer: TargetWriter) -> None:
    place.create()
    place.put(1, {"customer": "old"})
    place.put(2, {"customer": "kept"})
    read = await reader.fetch([key(1), key(2)])
    first, second = read[key(1)], read[key(2)]
    assert isinstance(first, StoredRecord)
    assert isinstance(second, StoredRecord)
    place.put(1, {"customer": "newer"})
    items = [
        WriteItem(key=key(1), document={place.key: first.fields[place.key], "customer": "ours"}, replaces=first),
        WriteItem(key=key(1), document=None, replaces=first),
        WriteItem(key=key(2), document={place.key: second.fields[place.key], "customer": "ours"}, replaces=ABSENT),
    ]
    assert [result.outcome for result in await writer.write(items)] == ["guard_failed"] * 3
    found = await reader.fetch([key(1), key(2)])
    assert [getattr(found[key(n)], "fields", {}).get("customer") for n in (1, 2)] == ["newer", "kept"]


async def test_d10_removed_fields_are_removed_and_documents_deleted(
    place: Place, reader: DatasetReader, writer: TargetWriter
) -> None:
    place.create()
    place.put(1, {"customer": "a", "tags": ["x"], "gone": 1})
    place.put(2, {"customer": "b"})
    read = await reader.fetch([key(1), key(2)])
    first, second = read[key(1)], read[key(2)]
    assert isinstance(first, StoredRecord)
    assert isinstance(second, StoredRecord)
    document = writer.document(key(1), row(1, tags=None), spec_of(place).fields)
    results = await writer.write(
        [WriteItem(key=key(1), document=document, replaces=first), WriteItem(key=key(2), document=None, replaces=second)]
    )
    assert [result.outcome for result in results] == ["written", "written"]
    found = await reader.fetch([key(1), key(2)])
    fields = dict(getattr(found[key(1)], "fields", {}))
    assert fields["tags"] is None if place.is_table else fields == dict(document)
    assert document.get("tags") is None
    assert found[key(2)] is ABSENT


async def test_what_is_kept_of_a_document_writes_it_again(place: Place, reader: DatasetReader, writer: TargetWriter) -> None:
    place.create()
    document = writer.document(key(1), row(1, total=Decimal("0.1000000000000000000001")), spec_of(place).fields)
    await writer.write([WriteItem(key=key(1), document=document, replaces=ABSENT)])
    read = (await reader.fetch([key(1)]))[key(1)]
    assert isinstance(read, StoredRecord)
    kept = writer.kept(read)
    assert json.loads(kept), "it is JSON"
    await writer.write([WriteItem(key=key(1), document=None, replaces=read)])
    place.restore(kept)
    again = (await reader.fetch([key(1)]))[key(1)]
    assert isinstance(again, StoredRecord)
    assert dict(again.fields) == dict(read.fields)


@pytest.mark.parametrize("wrong", [{"customer": "__debezium_unavailable_value"}, {"placed": object()}])
async def test_lesson_21_no_defaulted_and_no_partial_document(place: Place, writer: TargetWriter, wrong: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        writer.document(key(1), row(1, **wrong), spec_of(place).fields)
    lacking = row(1)
    partial = {name: value for name, value in lacking.fields.items() if name != "total"}
    with pytest.raises(RecordError):
        writer.document(key(1), structs.replace(lacking, fields=partial), spec_of(place).fields)
