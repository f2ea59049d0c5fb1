"""Reads documents of one collection: by key, all of them in ``_id`` order, and what the catalogue says."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from bson import Binary, Decimal128, ObjectId
from bson.binary import UuidRepresentation
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from pymongo import ASCENDING

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import KeyMisfit, StoreError, StoreRefused
from gapwatch.model.pipeline import FieldType, KeyType, PipelineSpec
from gapwatch.ports import ABSENT, DatasetInfo, Key, Read, ScanChunk, StoredRecord
from gapwatch_connectors.mongodb.connection import Document, client, collection, wrapped


def bson_of(kind: KeyType, value: Any) -> Any:
    """Return a decoded key part as MongoDB stores it."""
    if kind is KeyType.OBJECTID:
        return ObjectId(value)
    if kind is KeyType.UUID:
        return Binary.from_uuid(value if isinstance(value, UUID) else UUID(value), UuidRepresentation.STANDARD)
    if kind is KeyType.DECIMAL:
        return Decimal128(value)
    return value


class MongoReader:
    """Implements :class:`gapwatch.ports.DatasetReader` for a pipeline's target collection."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._store = pipeline.target.store
        self._name = pipeline.target.collection
        self._client = client(url)
        self._collection = collection(self._client, self._name)
        self._columns = pipeline.target.key
        self._codec = KeyCodec(pipeline.target.key)
        self._projection: dict[str, int] | None = None
        if all(field.type is not FieldType.INFERRED for field in pipeline.fields):
            self._projection = _projection(CompiledMapping(pipeline).target_paths)
        self._key_projection = _projection([column.path for column in self._columns])

    async def ping(self) -> None:
        with wrapped(self._store):
            hello = await self._client.admin.command("hello")
        if not hello.get("isWritablePrimary"):
            raise StoreRefused(f"MongoDB store {self._store} has no primary.", store=self._store, remedy="Wait for the election.")

    async def clock_offset_ms(self) -> int:
        with wrapped(self._store):
            before = time.time()  # noqa: TID251 - the measurement is of this machine's clock
            hello = await self._client.admin.command("hello")
            after = time.time()  # noqa: TID251
        return int((hello["localTime"].timestamp() - (before + after) / 2) * 1000)

    async def close(self) -> None:
        await self._client.close()

    async def describe(self) -> DatasetInfo:
        database, _, name = self._name.partition(".")
        with wrapped(self._store):
            found = await (await self._client[database].list_collections(filter={"name": name})).to_list()
        if not found:
            raise StoreRefused(
                f"There is no collection {self._name}.",
                store=self._store,
                remedy="Create it, let the sink write once, or correct its name in the pipeline.",
            )
        options = found[0].get("options", {})
        images = bool(options.get("changeStreamPreAndPostImages", {}).get("enabled"))
        return DatasetInfo(identity=str(found[0]["info"].get("uuid", "")), primary_key=("_id",), post_images=images)

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        wanted = list(keys)
        if not wanted:
            return {}
        found: dict[Key, list[StoredRecord]] = {}
        with wrapped(self._store):
            cursor = self._collection.find(self._filter(wanted))
            async for document in cursor:
                record = self._record(document)
                found.setdefault(record.key, []).append(record)
        return {key: _read(found.get(key, [])) for key in wanted}

    def _filter(self, keys: Sequence[Key]) -> Document:
        decoded = [self._codec.decode(key) for key in keys]
        if len(self._columns) == 1:
            column = self._columns[0]
            if column.path.startswith("_id.") and column.path.count(".") == 1:
                # A one-field _id is found by the whole sub-document, through the index of _id.
                part = column.path.partition(".")[2]
                return {"_id": {"$in": [{part: bson_of(column.type, values[0])} for values in decoded]}}
            return {column.path: {"$in": [bson_of(column.type, values[0]) for values in decoded]}}
        return {
            "$or": [
                {column.path: bson_of(column.type, value) for column, value in zip(self._columns, values, strict=True)}
                for values in decoded
            ]
        }

    def _record(self, document: Document) -> StoredRecord:
        try:
            key = self._codec.extract(document)
        except KeyMisfit as error:
            raise StoreRefused(
                f"A document of {self._name} has a key that does not fit: {error.message}",
                store=self._store,
                remedy="Correct the key of the pipeline's target, or the document.",
            ) from error
        identifier = document.get("_id")
        shown = str(identifier) if not isinstance(identifier, dict) else dumps(identifier, json_options=CANONICAL_JSON_OPTIONS)
        return StoredRecord(key=key, fields=document, target_id=shown, raw=document)

    def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = 10_000,
    ) -> AsyncIterator[ScanChunk]:
        return self._scan(content, cursor, lower, upper, chunk)

    async def _scan(
        self, content: bool, after: Any, lower: Key | None, upper: Key | None, chunk: int
    ) -> AsyncIterator[ScanChunk]:
        """Read page by page in the order of ``_id``, which has one order over all types: ``$gt`` with a type bracket has not."""
        try:
            identity = (await self.describe()).identity
        except StoreRefused:
            identity = ""  # no collection: it holds nothing, which `is_empty` proves
        projection = self._projection if content else self._key_projection
        while True:
            try:
                documents = await self._page(after, chunk, projection)
                records = [self._record(document) for document in documents]
            except StoreError:
                yield ScanChunk(records=(), cursor=after, identity=identity, complete=False)
                return
            if documents:
                after = documents[-1]["_id"]
            kept = [r for r in records if (lower is None or r.key >= lower) and (upper is None or r.key < upper)]
            if identity or kept:
                yield ScanChunk(records=kept, cursor=after, identity=identity)
            if len(documents) < chunk:
                return

    async def _page(self, after: Any, chunk: int, projection: dict[str, int] | None) -> list[Document]:
        # `min` on the index compares across all BSON types, unlike `$gt`, which stays inside one type's bracket.
        with wrapped(self._store):
            cursor = self._collection.find({}, {"_id": 1, **projection} if projection is not None else None)
            cursor = cursor.sort("_id", ASCENDING).hint([("_id", ASCENDING)]).limit(chunk + 1)
            if after is not None:
                cursor = cursor.min([("_id", after)])
            documents = await cursor.to_list()
        if after is not None and documents and documents[0]["_id"] == after:
            documents = documents[1:]
        return documents[:chunk]

    async def is_empty(self) -> bool:
        with wrapped(self._store):
            return await self._collection.find_one({}, {"_id": 1}) is None


def _projection(paths: Sequence[str]) -> dict[str, int]:
    """Return a projection of dotted paths; one inside another would be refused, so the outer one stands for both."""
    chosen = [path for path in paths if not any(path != other and path.startswith(f"{other}.") for other in paths)]
    return {path: 1 for path in chosen if path.split(".")[0] != "_id"} | {"_id": 1}


def _read(records: Sequence[StoredRecord]) -> Read | tuple[StoredRecord, ...]:
    if not records:
        return ABSENT
    return records[0] if len(records) == 1 else tuple(records)
