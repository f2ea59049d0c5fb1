"""Change streams of a real replica set that end: what they are read of was dropped, renamed, or its database is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import HistoryLost
from gapwatch.feed_ports import StreamBatch
from gapwatch.model.pipeline import FieldType, PipelineSpec
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
