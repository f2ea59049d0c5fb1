"""Guarded writes: insert where nothing was, replace or delete exactly what was read. Nothing newer is ever overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import bson
from bson.errors import BSONError
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteConcernError, WriteError

from gapwatch.errors import StoreUnreachable
from gapwatch.model.pipeline import FeedKind, FieldSpec, PipelineSpec
from gapwatch.ports import Key, StoredRecord, WriteItem, WriteResult
from gapwatch_connectors.mongodb.connection import OPTIONS, Document, Mongo
from gapwatch_connectors.mongodb.documents import build
from gapwatch_connectors.mongodb.keys import DocumentKeys

AT_ONCE: Final = 8  # guarded replacements in flight: a bulk would not say which of them found what they expected
DUPLICATE: Final = frozenset({11000, 11001, 12582})
UNSENDABLE: Final = (BSONError, OverflowError, UnicodeError, RecursionError)  # what the driver says of what BSON cannot hold
THERE: Final = "a document with this key is there by now"
CHANGED: Final = "the document is not what was read any more"


class MongoWriter:
    """Implements :class:`gapwatch.ports.TargetWriter` for a pipeline's target collection."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._mongo = Mongo(pipeline.target.store, url)
        self._name = pipeline.target.collection
        self._keys = DocumentKeys(pipeline.target.key)
        self._placeholder = pipeline.source.feed.placeholder
        of_documents = pipeline.source.feed.kind is FeedKind.CHANGE_STREAM
        self._copied_key = tuple(column.path for column in pipeline.source.key) if of_documents else ()

    async def close(self) -> None:
        await self._mongo.close()

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        """Apply each item under its guard. Raises StoreUnreachable when the store answered for none of them.

        Where only some were answered for, the others fail with a reason: whether they were written is for the next read.
        """
        results: dict[int, WriteResult] = {}
        away: list[StoreUnreachable] = []
        inserts = [n for n, item in enumerate(items) if not isinstance(item.replaces, StoredRecord) and self._keys.is_id]
        others = sorted(set(range(len(items))).difference(inserts))
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with places:
                results[number] = await self._one(items[number])

        for outcome in await asyncio.gather(
            self._insert(items, inserts, results), *(one(number) for number in others), return_exceptions=True
        ):
            if isinstance(outcome, StoreUnreachable):
                away.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        if away and not results:
            raise away[0]
        unanswered = "the store did not answer: it may have been written"
        return [results.get(n) or _failed(item.key, unanswered) for n, item in enumerate(items)]

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        return build(self._keys, key, row, fields, self._placeholder, copied_key=self._copied_key)

    def kept(self, document: StoredRecord) -> str:
        """Return canonical extended JSON: `mongoimport` reads it back."""
        return dumps(bson.decode(document.raw.raw, OPTIONS), json_options=CANONICAL_JSON_OPTIONS)

    @property
    def _collection(self) -> AsyncCollection[Document]:
        return self._mongo.collection(self._name)

    async def _insert(self, items: Sequence[WriteItem], numbers: Sequence[int], results: dict[int, WriteResult]) -> None:
        """Insert all at once, unordered: a refused document holds up no other."""
        if not numbers:
            return
        documents = []
        for number in numbers:
            document = items[number].document
            assert document is not None, "what is not there cannot be deleted"
            documents.append(dict(document))
        found: dict[int, WriteResult] = {}
        with self._mongo.wrapped():
            try:
                await self._collection.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                found = _of_bulk(error, [items[number].key for number in numbers])
            except UNSENDABLE:  # the driver refuses one of them, before it sends any
                found = {at: await self._one(items[number]) for at, number in enumerate(numbers)}
        for at, number in enumerate(numbers):
            results[number] = found.get(at) or WriteResult(key=items[number].key, outcome="written")

    async def _one(self, item: WriteItem) -> WriteResult:
        with self._mongo.wrapped():
            try:
                return await self._guarded(item)
            except DuplicateKeyError:
                return WriteResult(key=item.key, outcome="guard_failed", reason=THERE)
            except WriteConcernError as error:
                return _failed(item.key, f"not confirmed by the majority: {_reason(error.details, error)}")
            except WriteError as error:
                return _failed(item.key, _reason(error.details, error))
            except UNSENDABLE as error:
                return _failed(item.key, str(error)[:300])

    async def _guarded(self, item: WriteItem) -> WriteResult:
        target = self._collection
        if not isinstance(item.replaces, StoredRecord):
            assert item.document is not None, "what is not there cannot be deleted"
            return await self._inserted(item.key, dict(item.document))
        read = item.replaces.raw
        guard = {"_id": read["_id"], "$expr": {"$eq": ["$$ROOT", {"$literal": read}]}}
        if item.document is None:
            changed = (await target.delete_one(guard)).deleted_count
        else:
            changed = (await target.replace_one(guard, {"_id": read["_id"], **_without_id(item.document)})).matched_count
        if not changed:
            return WriteResult(key=item.key, outcome="guard_failed", reason=CHANGED)
        return WriteResult(key=item.key, outcome="written")

    async def _inserted(self, key: Key, document: Document) -> WriteResult:
        """Insert where no document has the key. Where the key is not the id, the id alone would let a second one in."""
        if self._keys.is_id:
            await self._collection.insert_one(document)
            return WriteResult(key=key, outcome="written")
        condition = self._keys.filter([key])
        assert condition is not None, "a document was built of it"
        is_new = {"$eq": [{"$type": "$_id"}, "missing"]}
        stage = {"$replaceWith": {"$cond": [is_new, {"$literal": document}, "$$ROOT"]}}
        done = await self._collection.update_one(condition, [stage], upsert=True)
        if done.upserted_id is None:
            return WriteResult(key=key, outcome="guard_failed", reason=THERE)
        return WriteResult(key=key, outcome="written")


def _of_bulk(error: BulkWriteError, keys: Sequence[Key]) -> dict[int, WriteResult]:
    """Return the results that are not plain successes, by position in the batch."""
    details = error.details or {}
    found: dict[int, WriteResult] = {}
    for refused in details.get("writeErrors", ()):
        at = refused["index"]
        if refused.get("code") in DUPLICATE:
            found[at] = WriteResult(key=keys[at], outcome="guard_failed", reason=THERE)
        else:
            found[at] = _failed(keys[at], _reason(refused, error))
    for concern in details.get("writeConcernErrors", ()):
        for at, key in enumerate(keys):
            found.setdefault(at, _failed(key, f"not confirmed by the majority: {_reason(concern, error)}"))
    return found


def _without_id(document: Mapping[str, Any]) -> Document:
    return {name: value for name, value in document.items() if name != "_id"}


def _failed(key: Key, reason: str) -> WriteResult:
    return WriteResult(key=key, outcome="failed", reason=reason)


def _reason(details: Mapping[str, Any] | None, error: Exception) -> str:
    """Return why the server refused: its words, and of a validator the rules that were broken, without the row's values."""
    said = dict(details or {})
    text = str(said.get("errmsg") or error)
    rules = dict.fromkeys(_rules(said.get("errInfo", {}).get("details")))
    return (f"{text} ({', '.join(rules)})" if rules else text)[:300]


def _rules(details: Any) -> Iterator[str]:
    if isinstance(details, Mapping):
        if "propertyName" in details:
            yield str(details["propertyName"])
        elif "operatorName" in details:
            yield str(details["operatorName"])
        for inner in details.values():
            yield from _rules(inner)
    elif isinstance(details, list):
        for inner in details:
            yield from _rules(inner)
