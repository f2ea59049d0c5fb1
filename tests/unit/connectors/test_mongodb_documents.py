"""Documents copied from documents: what the sink would write, key and all, though the pipeline compares keys in one spelling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, ObjectId

from gapwatch.core.keys import KeyCodec
from gapwatch.model.pipeline import FeedKind, FieldType, KeyColumn, KeyType, PipelineSpec
from gapwatch.ports import StoredRecord, TargetWriter
from gapwatch_connectors.mongodb import MongoWriter
from tests.unit.core.samples import field, pipeline

UUID_TEXT = "6F2C0A54-9F0A-4D0E-8A48-2F5D9C1E7B11"


def spec_of(*sources: KeyColumn, targets: tuple[str, ...] = (), of_documents: bool = True) -> PipelineSpec:
    spec = pipeline(field("v", FieldType.TEXT))
    paths = targets or tuple(column.path for column in sources)
    kind = FeedKind.CHANGE_STREAM if of_documents else FeedKind.DEBEZIUM
    return replace(
        spec,
        source=replace(spec.source, key=sources, feed=replace(spec.source.feed, kind=kind)),
        target=replace(
            spec.target,
            key=tuple(replace(column, path=path) for column, path in zip(sources, paths, strict=True)),
        ),
    )


@pytest.fixture
async def written() -> AsyncIterator[Callable[[PipelineSpec, dict[str, Any]], Any]]:
    """Return what a repair would write for a document of the source."""
    made: list[TargetWriter] = []

    def write(spec: PipelineSpec, source: dict[str, Any]) -> Any:
        writer = MongoWriter(spec, "mongodb://127.0.0.1:1")
        made.append(writer)
        key = KeyCodec(spec.source.key).extract(source)
        return writer.document(key, StoredRecord(key=key, fields=source), spec.fields)

    yield write
    for writer in made:
        await writer.close()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (KeyType.UUID, UUID_TEXT),
        (KeyType.UUID, UUID_TEXT.lower().replace("-", "")),
        (KeyType.UUID, Binary(bytes(range(16)), 4)),
        (KeyType.OBJECTID, "507f1f77bcf86cd799439011"),
        (KeyType.OBJECTID, ObjectId("507f1f77bcf86cd799439011")),
        (KeyType.INT, Int64(5)),
        (KeyType.INT, Decimal128("5")),
        (KeyType.DECIMAL, Decimal128("1.50")),
    ],
)
async def test_a_key_is_copied_in_the_form_that_it_has_at_the_source(written: Any, kind: KeyType, value: Any) -> None:
    spec = spec_of(KeyColumn(path="_id", type=kind))
    document = written(spec, {"_id": value, "v": "a"})
    assert document == {"_id": value, "v": "a"}
    assert type(document["_id"]) is type(value)


async def test_an_embedded_id_keeps_the_order_of_its_fields(written: Any) -> None:
    columns = (KeyColumn(path="_id.a", type=KeyType.INT), KeyColumn(path="_id.b", type=KeyType.TEXT))
    document = written(spec_of(*columns), {"_id": {"b": "x", "a": 1}, "v": "a"})
    assert list(document["_id"].items()) == [("b", "x"), ("a", 1)]


async def test_a_key_under_another_name_is_copied_part_by_part(written: Any) -> None:
    columns = (KeyColumn(path="tenant", type=KeyType.UUID), KeyColumn(path="number", type=KeyType.INT))
    document = written(
        spec_of(*columns, targets=("_id.tenant", "_id.number")), {"_id": 9, "number": Int64(3), "tenant": UUID_TEXT, "v": "a"}
    )
    assert document == {"_id": {"tenant": UUID_TEXT, "number": 3}, "v": "a"}


async def test_a_row_of_a_table_has_its_key_in_the_declared_type(written: Any) -> None:
    spec = spec_of(KeyColumn(path="id", type=KeyType.UUID), targets=("_id",), of_documents=False)
    document = written(spec, {"id": UUID_TEXT, "v": "a"})
    assert isinstance(document["_id"], Binary)
