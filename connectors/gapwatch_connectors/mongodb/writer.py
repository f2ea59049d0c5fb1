"""Guarded writes: insert where nothing was, replace or delete exactly what was read. Nothing newer is ever overwritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from bson import Binary, Decimal128, Int64
from bson.binary import UuidRepresentation
from bson.errors import BSONError
from pymongo.errors import DuplicateKeyError, WriteError

from gapwatch.core.keys import KeyCodec
from gapwatch.core.values import JsonText
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec
from gapwatch.ports import Key, StoredRecord, WriteItem, WriteResult
from gapwatch_connectors.mongodb.connection import Document, client, collection, wrapped
from gapwatch_connectors.mongodb.reader import bson_of

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
PLACEHOLDER = "__debezium_unavailable_value"


class MongoWriter:
    """Implements :class:`gapwatch.ports.TargetWriter` for a pipeline's target collection."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._store = pipeline.target.store
        self._collection = collection(client(url), pipeline.target.collection)
        self._columns = pipeline.target.key
        self._codec = KeyCodec(pipeline.target.key)

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        return [await self._one(item) for item in items]

    async def _one(self, item: WriteItem) -> WriteResult:
        try:
            with wrapped(self._store):
                return await self._guarded(item)
        except BSONError as error:
            return WriteResult(key=item.key, outcome="failed", reason=str(error))

    async def _guarded(self, item: WriteItem) -> WriteResult:
        target = self._collection
        try:
            if not isinstance(item.replaces, StoredRecord):
                assert item.document is not None, "what is not there cannot be deleted"
                await target.insert_one(dict(item.document))
                return WriteResult(key=item.key, outcome="written")
            read = item.replaces.raw
            guard = {"_id": read["_id"], "$expr": {"$eq": ["$$ROOT", {"$literal": read}]}}
            if item.document is None:
                changed = (await target.delete_one(guard)).deleted_count
            else:
                changed = (await target.replace_one(guard, {**item.document, "_id": read["_id"]})).matched_count
        except DuplicateKeyError:
            return WriteResult(key=item.key, outcome="guard_failed", reason="a document with this id is there by now")
        except WriteError as error:
            return WriteResult(key=item.key, outcome="failed", reason=_reason(error))
        if not changed:
            return WriteResult(key=item.key, outcome="guard_failed", reason="the document is not what was read any more")
        return WriteResult(key=item.key, outcome="written")

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        document: Document = {}
        for column, value in zip(self._columns, self._codec.decode(key), strict=True):
            _put(document, column.path, bson_of(column.type, value))
        for spec in fields:
            if spec.source not in row.fields:
                raise RecordError(
                    "field_missing", f"The source row has no column {spec.source}: nothing is written in its place."
                )
            value = row.fields[spec.source]
            if value == PLACEHOLDER:
                raise RecordError("field_masked", f"Column {spec.source} holds Debezium's placeholder: it is not written.")
            if value is None and spec.absent_is_null:
                continue
            if spec.target.split(".")[0] != "_id":
                _put(document, spec.target, _bson(spec, value))
        return document


def _put(document: Document, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    document[last] = value


def _bson(spec: FieldSpec, value: Any) -> Any:
    """Return a driver value as the target stores it; raises RecordError where BSON has no such value."""
    if value is None or isinstance(value, bool | str | bytes | float):
        return value
    if isinstance(value, int):
        if abs(value) > INT64_MAX:
            raise RecordError("unrepresentable", f"{spec.target}: {value} does not fit 64 bits.")
        return (
            Decimal128(Decimal(value)) if spec.type is FieldType.DECIMAL else (value if abs(value) <= INT32_MAX else Int64(value))
        )
    if isinstance(value, Decimal):
        try:
            return Decimal128(value)
        except (ArithmeticError, ValueError) as error:
            raise RecordError("unrepresentable", f"{spec.target}: {value} has more digits than a Decimal128.") from error
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, UUID):
        return Binary.from_uuid(value, UuidRepresentation.STANDARD)
    if isinstance(value, JsonText):
        import json

        return json.loads(value.text, parse_float=lambda text: Decimal128(Decimal(text)))
    if isinstance(value, list | tuple):
        return [_bson(spec, item) for item in value]
    raise RecordError("unrepresentable", f"{spec.target}: a value of type {type(value).__name__} cannot be written.")


def _reason(error: WriteError) -> str:
    details = error.details or {}
    return str(details.get("errmsg") or error)[:300]
