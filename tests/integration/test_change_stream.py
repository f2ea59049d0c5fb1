"""Change streams of a real replica set that end, that cannot go on, or that take their time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, WriteConcern

from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import HistoryLost
from gapwatch.feed_ports import NO_KEY, StreamBatch
from gapwatch.model.pipeline import FieldType, PipelineSpec
from gapwatch_connectors.mongodb import connection, feed
from gapwatch_connectors.mongodb.feed import BYTES_PER_BATCH, MongoChangeStream, first_batch
from tests.unit.core.samples import field, pipeline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Database = Any


@pytest.fixture
def database(stack: EmbeddedStack, unique: Callable[[str], str]) -> Iterator[Database]:
    with MongoClient[dict[str, Any]](stack.mongodb.uri) as client:
        found = client[unique("ends")]
        found.create_collection("orders")
        yield found


def spec_of(database: Database) -> PipelineSpec:
    made = pipeline(field("total", FieldType.INT))
    return replace(made, target=replace(made.target, collection=f"{database.name}.orders"))


async def read(stream: MongoChangeStream, token: bytes | None) -> tuple[list[StreamBatch], str]:
    """Return what came before the stream's end, and how that was told."""
    batches: list[StreamBatch] = []
    try:
        async with aclosing(stream.open(token)) as opened:  # type: ignore[type-var]
            async for batch in opened:
                batches.append(batch)  # noqa: PERF401 - they are wanted although it raises
    except HistoryLost as error:
        return batches, error.message
    finally:
        await stream.close()
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda database: database.orders.drop(), "drop"),
        (lambda database: database.orders.rename("aside"), "rename"),
        (lambda database: database.client.drop_database(database.name), "drop"),
    ],
    ids=["drop", "rename", "drop-database"],
)
async def test_a_stream_that_ends_is_lost_history_and_what_came_before_is_read(
    stack: EmbeddedStack, database: Database, end: Callable[[Database], object], said: str
) -> None:
    spec, uri = spec_of(database), stack.mongodb.uri
    stream = MongoChangeStream(spec, uri)
    begun = await first_batch(stream)
    await stream.close()
    database.orders.insert_one({"_id": 1})
    end(database)
    batches, why = await read(MongoChangeStream(spec, uri), begun.token)
    assert [event.key for batch in batches for event in batch.events] == [b'{"_id": {"$numberInt": "1"}}']
    assert f"ended with {said}" in why
    # A process that was killed before it had stored that: at whichever token it goes on, it learns of the end again.
    for batch in batches:
        again, why = await read(MongoChangeStream(spec, uri), batch.token)
        assert why
        for later in again:
            _, why = await read(MongoChangeStream(spec, uri), later.token)
            assert why
    anew = MongoChangeStream(spec, uri)
    try:
        async with aclosing(anew.open(None)) as opened:  # type: ignore[type-var]
            await anext(opened)
            database.orders.insert_one({"_id": 2})
            async for batch in opened:
                if batch.events:
                    assert [event.key for event in batch.events] == [b'{"_id": {"$numberInt": "2"}}']
                    break
    finally:
        await anew.close()


async def test_trap_42_a_batch_of_large_documents_is_bounded_by_bytes(stack: EmbeddedStack, database: Database) -> None:
    """Bounded by count alone, one would hold a thousand documents, however large they are. None is passed over."""
    spec, uri, size = spec_of(database), stack.mongodb.uri, 3 << 20
    stream = MongoChangeStream(spec, uri)
    begun = await first_batch(stream)
    await stream.close()
    for number in range(16):
        database.orders.insert_one({"_id": number, "blob": "x" * size})
    sizes: list[int] = []
    keys: list[bytes] = []
    stream = MongoChangeStream(spec, uri)
    try:
        async with aclosing(stream.open(begun.token)) as opened:  # type: ignore[type-var]
            async for batch in opened:
                sizes.append(sum(len(event.value) for event in batch.events))
                keys += [event.key for event in batch.events]
                if len(keys) >= 16:
                    break
    finally:
        await stream.close()
    assert keys == [b'{"_id": {"$numberInt": "%d"}}' % number for number in range(16)]
    assert max(sizes) < BYTES_PER_BATCH + 2 * size


async def events_of(stream: MongoChangeStream, token: bytes, last: bytes) -> list[tuple[bytes, str, bool]]:
    """Return key and operation of each change up to that of the last key, and whether it has a document."""
    found: list[tuple[bytes, str, bool]] = []
    try:
        async with aclosing(stream.open(token)) as opened:  # type: ignore[type-var]
            async for batch in opened:
                found += [(event.key, dict(event.headers)["gapwatch-op"].decode(), bool(event.value)) for event in batch.events]
                if last in [key for key, *_ in found]:
                    break
    finally:
        await stream.close()
    return found


async def test_a_document_that_cannot_be_decoded_is_touched_and_ends_no_stream(stack: EmbeddedStack, database: Database) -> None:
    """Somebody's driver sent what is no UTF-8, and MongoDB kept it: the stream failed there, and began there again, for ever."""
    spec, uri = spec_of(database), stack.mongodb.uri
    stream = MongoChangeStream(spec, uri)
    begun = await first_batch(stream)
    await stream.close()
    document, key = (bson.encode(one).replace(b"not", b"n\xfft") for one in ({"_id": 1, "v": "not text"}, {"_id": "not text"}))
    database.orders.insert_one(RawBSONDocument(document))
    database.orders.insert_one(RawBSONDocument(key))
    database.orders.update_one({"_id": 1}, {"$set": {"total": 1}})
    database.orders.delete_one({"_id": 1})
    database.orders.insert_one({"_id": 2})
    first, last = b'{"_id": {"$numberInt": "1"}}', b'{"_id": {"$numberInt": "2"}}'
    assert await events_of(MongoChangeStream(spec, uri), begun.token, last) == [
        (first, "update_touched", False),
        (NO_KEY, "update_touched", False),
        (first, "update_touched", False),
        (first, "delete", False),
        (last, "insert", True),
    ]


SLOWLY = {"$match": {"$expr": {"$function": {"body": "function() { sleep(2000); return true; }", "args": [], "lang": "js"}}}}


async def test_a_server_that_looks_for_a_change_longer_than_a_socket_waits_is_waited_for(
    stack: EmbeddedStack, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an outage with many changes of others: each attempt took as long again, until the oplog held the position no more.

    Here the server takes its time for one change; 10 s are some four million of others.
    """
    spec, uri = spec_of(database), stack.mongodb.uri
    stream = MongoChangeStream(spec, uri)
    begun = await first_batch(stream)
    await stream.close()
    database.orders.insert_one({"_id": 1})
    monkeypatch.setattr(feed, "WITHOUT_DESCRIPTION", SLOWLY)
    monkeypatch.setattr(connection, "SOCKET_MILLISECONDS", 1_000)
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.2)
    key = b'{"_id": {"$numberInt": "1"}}'
    assert await events_of(MongoChangeStream(spec, uri), begun.token, key) == [(key, "insert", True)]


def written(uri: str, database: str, number: int) -> None:
    with MongoClient[dict[str, Any]](uri) as client:
        client[database].orders.with_options(write_concern=WriteConcern("majority", j=True)).insert_one({"_id": number})


async def anchored(stream: MongoChangeStream) -> bytes:
    """Return the first position that also names an entry of the oplog."""
    try:
        async with aclosing(stream.open(None)) as opened:  # type: ignore[type-var]
            async for batch in opened:
                if json.loads(batch.token)["anchor"] != {"$numberInt": "0"}:
                    return batch.token
    finally:
        await stream.close()
    raise AssertionError("unreachable")


@pytest.mark.parametrize("set_back", [True, False])
async def test_m4_a_server_whose_files_were_set_back_to_a_snapshot_is_lost_history(tmp_path: Path, set_back: bool) -> None:
    """It went on from the token without a word: no change says that a document is gone, and all before the token was proven."""
    with EmbeddedStack(parts=("mongodb",)) as own:
        mongodb, spec = own.mongodb, pipeline(field("total", FieldType.INT))
        spec = replace(spec, target=replace(spec.target, collection="shop.orders"))
        written(mongodb.uri, "shop", 1)
        mongodb.stop()
        shutil.copytree(mongodb.directory / "data", tmp_path / "snapshot")
        mongodb.start()
        written(mongodb.uri, "shop", 2)
        begun = await anchored(MongoChangeStream(spec, mongodb.uri))
        mongodb.stop()
        if set_back:
            shutil.rmtree(mongodb.directory / "data")
            shutil.copytree(tmp_path / "snapshot", mongodb.directory / "data")
        mongodb.start()
        written(mongodb.uri, "shop", 3)
        again = MongoChangeStream(spec, mongodb.uri)
        if set_back:
            _, why = await read(again, begun)
            assert "set back" in why
        else:
            key = b'{"_id": {"$numberInt": "3"}}'
            assert await events_of(again, begun, key) == [(key, "insert", True)]
