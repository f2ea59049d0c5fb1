"""Reads documents of one collection: by key, all of them in ``_id`` order, and what the catalogue says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import bson
from bson import CodecOptions, MinKey, ObjectId
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING

from gapwatch.clock import SystemClock
from gapwatch.core.counting import read_beside
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep_contents import PageContents, cut
from gapwatch.errors import KeyMisfit, StoreError, StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import FieldType, KeyType, PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, Clock, ContentChunk, DatasetInfo, Key, KeyChunk, Read, ScanChunk, StoredRecord, Unread
from gapwatch.scans import key_chunk, keys_of, no_changed_at
from gapwatch_connectors.mongodb.bulk import Page, first_batch, page_of_block, page_of_documents, page_of_texts
from gapwatch_connectors.mongodb.connection import OPTIONS, Document, Mongo
from gapwatch_connectors.mongodb.contents import DRIVER, keys_in, options
from gapwatch_connectors.mongodb.keys import SORTED, DocumentKeys

RAW = OPTIONS.with_options(document_class=RawBSONDocument)
MISFITS_MAX: Final = 8  # documents of one look-up that no key can be read of, and whose keys are looked for one by one
SAMPLED_WHOLE_MAX: Final = 200_000  # documents of a collection that is read whole for a sample: some tenths of a second
CURSOR = CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class MongoReader:
    """Implements :class:`gapwatch.ports.DatasetReader` for a pipeline's target collection.

    ``StoredRecord.raw`` is the document's own bytes (a ``RawBSONDocument``). A scan's cursor is extended JSON of an ``_id``.
    """

    def __init__(self, pipeline: PipelineSpec, url: str, *, clock: Clock | None = None) -> None:
        self._store = pipeline.target.store
        self._name = pipeline.target.collection
        self._mongo = Mongo(self._store, url)
        self._keys = DocumentKeys(pipeline.target.key)
        self._clock = clock or SystemClock()
        self._projection: dict[str, int] | None = None
        if all(field.type is not FieldType.INFERRED for field in pipeline.fields):
            self._projection = _projection(CompiledMapping(pipeline).target_paths)
        self._key_projection = _projection(self._keys.paths)
        self._scan_projection = _projection(
            [*self._keys.paths, *read_beside(pipeline, Side.OBSERVED)]
        )  # of keys, and whether they count
        self._changed_at = pipeline.target.changed_at

    async def ping(self) -> None:
        with self._mongo.wrapped():
            hello = await self._mongo.client.admin.command("hello")
        if hello.get("secondary"):
            remedy = "Name the replica set in the store's uri (?replicaSet=NAME), so that the primary is found."
            raise StoreRefused(
                f"MongoDB store {self._store} is a secondary: what it lacks may be lag.", store=self._store, remedy=remedy
            )
        if not hello.get("isWritablePrimary"):
            raise StoreUnreachable(
                f"MongoDB store {self._store} has no primary.", store=self._store, remedy="Wait for its election."
            )

    async def clock_offset_ms(self) -> int:
        with self._mongo.wrapped():
            before = self._clock.now_ms()
            hello = await self._mongo.client.admin.command("hello")
            after = self._clock.now_ms()
        local: float = hello["localTime"].timestamp() * 1000
        return round(local - (before + after) / 2)

    async def close(self) -> None:
        await self._mongo.close()

    async def in_key_order(self) -> bool:
        """Whether the first and the last ``_id`` are such keys: what lies between them in the index is of their kind then.

        The index puts one type after the other, and an ObjectId spelt as text is none.
        """
        if not self._keys.is_ordered_id:
            return False
        ends = []
        with self._mongo.wrapped():
            for direction in (ASCENDING, DESCENDING):
                documents = self._mongo.collection(self._name).find({}, {"_id": 1}, max_time_ms=30_000)
                ends += await documents.sort("_id", direction).hint([("_id", ASCENDING)]).limit(1).to_list()
        return all(self._keys.is_own(document["_id"]) for document in ends)

    async def describe(self) -> DatasetInfo:
        found = await self._catalogue()
        if found is None:
            raise StoreRefused(
                f"There is no collection {self._name}.",
                store=self._store,
                remedy="Create it, let the sink write once, or correct its name in the pipeline.",
            )
        if found.get("type", "collection") != "collection":
            remedy = "Name the collection that it is made of: a view has no change stream and takes no writes."
            raise StoreRefused(f"{self._name} is a {found['type']}, not a collection.", store=self._store, remedy=remedy)
        images = bool(found.get("options", {}).get("changeStreamPreAndPostImages", {}).get("enabled"))
        return DatasetInfo(identity=_identity(found), primary_key=("_id",), post_images=images)

    async def _catalogue(self) -> Document | None:
        database, _, name = self._name.partition(".")
        with self._mongo.wrapped():
            found = await (await self._mongo.database(database).list_collections(filter={"name": name})).to_list()
        return dict(found[0]) if found else None

    # by key

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        """Read documents by key. One that no key can be read of makes unread only what it may be, where such are few."""
        wanted = list(keys)
        condition = self._keys.filter(wanted)
        if condition is None:
            return dict.fromkeys(wanted, ABSENT)
        found: dict[Key, list[StoredRecord]] = {}
        misfits: list[str] = []
        with self._mongo.wrapped():
            for raw in await self._read_now(condition):
                try:
                    record = self._record(bson.decode(raw.raw, OPTIONS), raw)
                except KeyMisfit as error:
                    misfits.append(f"a document was found whose key does not fit: {error.message}")
                except BSONError as error:
                    misfits.append(f"a document was found that cannot be decoded: {type(error).__name__}")
                else:
                    found.setdefault(record.key, []).append(record)
        missing = [key for key in wanted if key not in found]
        reads: dict[Key, Read | tuple[StoredRecord, ...]] = dict.fromkeys(missing, Unread(misfits[0]) if misfits else ABSENT)
        if len(missing) > 1 and 0 < len(misfits) <= MISFITS_MAX:
            half = len(missing) // 2
            reads = {**await self.fetch(missing[:half]), **await self.fetch(missing[half:])}
        return reads | {key: _read(found[key]) for key in wanted if key in found}

    async def _read_now(self, condition: Document) -> list[RawBSONDocument]:
        """Read from the primary, by majority, no older than this call.

        The primary first names its own latest time; the read then waits until the majority has come so far: without that, a
        write that was acknowledged a moment ago might not be seen, and would look lost.
        """
        client = self._mongo.client
        async with client.start_session(causal_consistency=True) as session:
            await client.admin.command("ping", session=session)
            collection = self._mongo.collection(self._name).with_options(codec_options=RAW)
            return await collection.find(condition, session=session, max_time_ms=10_000).to_list()

    def _record(self, document: Document, raw: RawBSONDocument | None = None) -> StoredRecord:
        """Raises KeyMisfit."""
        identifier = document.get("_id")
        shown = dumps(identifier, json_options=CANONICAL_JSON_OPTIONS) if isinstance(identifier, dict) else str(identifier)
        return StoredRecord(key=self._keys.of(document), fields=document, target_id=shown, raw=raw)

    # all of it

    async def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = 10_000,
    ) -> AsyncIterator[ScanChunk]:
        """Read page by page in the order of ``_id``, which is one order over all types."""
        identity = _identity(await self._catalogue())  # "" for no collection: it holds nothing, which `is_empty` proves
        projection = self._projection if content else self._scan_projection
        after: str | None = cursor
        bounds: tuple[Any, Any] | None = None
        while True:
            try:
                bounds = bounds or await self._bounds(lower, upper)
                documents = await self._page(after, chunk, projection, bounds)
                records = [self._record(document) for document in documents]
                if _identity(await self._catalogue()) != identity:
                    raise StoreRefused(f"{self._name} was dropped or created anew during the scan.", store=self._store)
            except (StoreError, KeyMisfit) as error:
                yield ScanChunk(records=(), cursor=after, identity=identity, complete=False, reason=error.message)
                return
            if documents:
                after = dumps(documents[-1]["_id"], json_options=CURSOR)
            kept = [r for r in records if (lower is None or r.key >= lower) and (upper is None or r.key < upper)]
            if identity or kept:
                yield ScanChunk(records=kept, cursor=after, identity=identity)
            if len(documents) < chunk:
                return

    async def _bounds(self, lower: Key | None, upper: Key | None) -> tuple[Any, Any]:
        """Return the ``_id`` where the range begins and the first one behind it, None where the index cannot say."""
        if (lower is None and upper is None) or not await self.in_key_order():
            return None, None
        first, end = (self._keys.id_of(key) if key is not None else None for key in (lower, upper))
        return first, end

    async def scan_contents(
        self, mapping: CompiledMapping, side: Side, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 5_000
    ) -> AsyncGenerator[ContentChunk]:
        """Read page by page as :meth:`scan` does, without a record for each document."""
        identity = _identity(await self._catalogue())
        contents = PageContents(mapping, side, driver=DRIVER)
        decoding = options(mapping)
        bounds: tuple[Any, Any] | None = None
        after: str | None = None
        while True:
            try:
                bounds = bounds or await self._bounds(lower, upper)
                documents = await self._page(after, chunk, self._projection, bounds, decoding)
                keys = keys_in(self._keys, documents)
                if _identity(await self._catalogue()) != identity:
                    raise StoreRefused(f"{self._name} was dropped or created anew during the scan.", store=self._store)
            except (StoreError, KeyMisfit) as error:
                failed = KeyChunk(identity=identity, complete=False, reason=error.message)
                yield ContentChunk(keys=failed, contents=contents.contents((), 0))
                return
            if documents:
                after = dumps(documents[-1]["_id"], json_options=CURSOR)
            found = contents.contents(contents.columns(documents), len(documents))
            kept, found = cut(self._keys.codec, keys, found, lower, upper)
            if identity or len(kept):
                yield ContentChunk(keys=key_chunk(identity, kept), contents=found)
            if len(documents) < chunk:
                return

    async def _page(
        self,
        after: str | None,
        chunk: int,
        projection: dict[str, int] | None,
        bounds: tuple[Any, Any],
        decoding: CodecOptions[Document] = OPTIONS,
    ) -> list[Document]:
        # `min` and `max` on the index compare across all BSON types, unlike `$gt`, which stays inside one type's bracket.
        first, last = bounds
        begin = loads(after, json_options=CURSOR) if after is not None else first
        with self._mongo.wrapped():
            collection = self._mongo.collection(self._name).with_options(codec_options=decoding)
            cursor = collection.find({}, projection, max_time_ms=30_000, batch_size=chunk + 1)
            cursor = cursor.sort("_id", ASCENDING).hint([("_id", ASCENDING)]).limit(chunk + 1)
            if begin is not None:
                cursor = cursor.min([("_id", begin)])
            if last is not None:
                cursor = cursor.max([("_id", last)])
            documents = await cursor.to_list()
        if after is not None and documents and _same(documents[0]["_id"], begin):
            documents = documents[1:]
        return documents[:chunk]

    async def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        """Read ids in the order of ``changed_at``; of an ObjectId, the time inside it counts. The cursor is a value of that."""
        path = self._changed_at
        if not path:
            raise no_changed_at(self._store, self._name)
        identity = _identity(await self._catalogue())
        begin = loads(cursor, json_options=CURSOR) if cursor is not None else since
        if path == "_id" and cursor is None:
            begin = ObjectId.from_datetime(since)
        projection = {**self._key_projection, path: 1}
        after: str | None = cursor
        try:
            with self._mongo.wrapped():
                found = self._mongo.collection(self._name).find({path: {"$gte": begin}}, projection, batch_size=chunk)
                async with found.sort(path, ASCENDING).allow_disk_use(True) as documents:
                    while page := await documents.to_list(chunk):
                        after = dumps(_at(page[-1], path), json_options=CURSOR)
                        yield ScanChunk(records=[self._record(one) for one in page], cursor=after, identity=identity)
            if _identity(await self._catalogue()) != identity:
                raise StoreRefused(f"{self._name} was dropped or created anew during the scan.", store=self._store)
        except (StoreError, KeyMisfit) as error:
            yield ScanChunk(records=(), cursor=after, identity=identity, complete=False, reason=error.message)

    async def scan_keys(
        self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000
    ) -> AsyncIterator[KeyChunk]:
        """Read keys in bulk where the document's id is the key and its type has one width, else document by document."""
        kind = self._keys.columns[0].type
        try:
            first, end = await self._bounds(lower, upper)
        except StoreError:
            first = end = None  # it is seen below
        bounded = (lower is None or first is not None) and (upper is None or end is not None)
        if self._keys.paths != ("_id",) or kind not in (*SORTED, KeyType.TEXT) or not bounded:
            async for found in keys_of(self.scan(content=False, lower=lower, upper=upper, chunk=min(chunk, 10_000))):
                yield found
            return
        identity = _identity(await self._catalogue())
        while True:
            try:
                page = await self._bulk(kind, first, end, chunk)
                if _identity(await self._catalogue()) != identity:
                    raise StoreRefused(f"{self._name} was dropped or created anew during the scan.", store=self._store)
            except (StoreError, KeyMisfit) as error:
                yield KeyChunk(identity=identity, complete=False, reason=error.message)
                return
            if page is None:  # not in one width: from here on one by one
                start = self._keys.codec.encode([first]) if first is not None else None
                async for found in keys_of(self.scan(content=False, lower=start, upper=upper, chunk=min(chunk, 10_000))):
                    yield found
                return
            if identity or page.count:
                yield page.chunk(identity, chunk - 1)
            if page.count < chunk:
                return
            first = page.last

    async def _bulk(self, kind: KeyType, first: Any, end: Any, chunk: int) -> Page | None:
        """Return a page's ids; None where they are not all of one width. Raises KeyMisfit for a text key that is none.

        A full page holds one id more than its chunk may show: the first one of the next page.
        """
        database, _, name = self._name.partition(".")
        command: Document = {
            "find": name,
            "projection": {"_id": 1},
            "sort": {"_id": 1},
            "hint": {"_id": 1},
            "limit": chunk,
            "batchSize": chunk,
            "singleBatch": True,
            "maxTimeMS": 30_000,
            "readConcern": {"level": "majority"},
        }
        if first is not None:
            command["min"] = {"_id": first}
        if end is not None:
            command["max"] = {"_id": end}
        with self._mongo.wrapped():
            reply: Any = await self._mongo.database(database).command(command, codec_options=RAW)
            batch = first_batch(reply["cursor"].raw)
            if kind is not KeyType.TEXT:
                return page_of_block(batch, kind) if batch is not None else None
            page = page_of_texts(batch) if batch is not None else None
            if page is not None:
                return page
            documents = bson.decode(reply["cursor"].raw, OPTIONS)["firstBatch"]
        return page_of_documents(documents, self._keys.of)

    async def sample_keys(self, count: int) -> Sequence[Key]:
        """Return keys of documents that the server takes at random; those that fit no key are passed over.

        Where ``$sample`` comes first, it goes down the collection's tree at random: of 40,000 documents that had just been
        written, it took none at all out of some quarter in three cases of fifty. So a small collection is read whole.
        """
        found = []
        stages: list[Mapping[str, Any]] = [{"$sample": {"size": count}}, {"$project": self._key_projection}]
        if await self.estimate() <= SAMPLED_WHOLE_MAX:
            stages.insert(0, {"$match": {"_id": {"$gte": MinKey()}}})
        with self._mongo.wrapped():
            collection = self._mongo.collection(self._name).with_options(codec_options=OPTIONS)
            async for document in await collection.aggregate(stages, maxTimeMS=30_000):
                try:
                    found.append(self._keys.of(document))
                except KeyMisfit:
                    continue
        return found

    async def is_empty(self) -> bool:
        with self._mongo.wrapped():
            return await self._mongo.collection(self._name).find_one({}, {"_id": 1}) is None

    async def estimate(self) -> int:
        with self._mongo.wrapped():
            return await self._mongo.collection(self._name).estimated_document_count(maxTimeMS=5_000)


def _at(document: Document, path: str) -> Any:
    """Return the value at a dotted path; the query found one there, if need be inside an array."""
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _same(one: Any, other: Any) -> bool:
    """Whether two ids are one, type and all: Python holds True for 1, and a document for one with other field order."""
    return bson.encode({"": one}) == bson.encode({"": other})


def _identity(found: Document | None) -> str:
    return str(found.get("info", {}).get("uuid", "")) if found else ""


def _projection(paths: Sequence[str]) -> dict[str, int]:
    """Return a projection of dotted paths; one inside another would be refused, so the outer one stands for both."""
    chosen = [path for path in paths if not any(path != other and path.startswith(f"{other}.") for other in paths)]
    return {path: 1 for path in chosen if path.split(".")[0] != "_id"} | {"_id": 1}


def _read(records: Sequence[StoredRecord]) -> Read | tuple[StoredRecord, ...]:
    return records[0] if len(records) == 1 else tuple(records)
