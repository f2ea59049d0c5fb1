"""Reads documents of one index: by id in real time, all of them shard by shard, and what the index says of itself."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from gapwatch.clock import SystemClock
from gapwatch.core.counting import read_beside
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep_contents import PageContents, cut
from gapwatch.errors import KeyMisfit, StoreError, StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import FieldType, PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, Clock, ContentChunk, DatasetInfo, Key, KeyChunk, Read, ScanChunk, StoredRecord, Unread
from gapwatch.scans import keys_of, no_changed_at
from gapwatch_connectors.opensearch.connection import Json, Search, error_type, path
from gapwatch_connectors.opensearch.index import IN_ORDER, PRIMARY, Dataset, Index
from gapwatch_connectors.opensearch.keys import ID, DocumentIds
from gapwatch_connectors.opensearch.pages import ID_FIELDS, IDS, Answer, chunk_of_ids, of_hits, of_ids

GETS_PER_REQUEST: Final = 500
PAGE_MAX: Final = 10_000  # the server's index.max_result_window
KEEP_ALIVE: Final = "5m"
VERSION: Final = "_version"  # as a target's version: the document's external version


def has_external_version(version: int, seq_no: int) -> bool:
    """Whether a version came from outside: the server's own counts writes, each of which took a sequence number."""
    return version > seq_no + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a document was read, and which write of it: what a guarded write names (``StoredRecord.raw``)."""

    index: str
    id: str
    routing: str | None
    seq_no: int
    primary_term: int
    version: int

    @property
    def has_external_version(self) -> bool:
        return has_external_version(self.version, self.seq_no)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """Hits of one primary, the scan's cursors before and behind them, and why they are not all (``reason``)."""

    hits: Sequence[Any]
    before: tuple[int, int]
    cursor: tuple[int, int]
    identity: str
    reason: str = ""


class OpenSearchReader:
    """Implements :class:`gapwatch.ports.DatasetReader` for a pipeline's target index.

    Look-ups are realtime gets from primaries, never searches. A scan reads one shard after the other in the order of ``_seq_no``,
    from a point in time; its cursor is (shard, last ``_seq_no``): a document that changes meanwhile moves behind it, so that no
    later scan passes over it.
    """

    def __init__(self, pipeline: PipelineSpec, url: str, *, clock: Clock | None = None) -> None:
        self._store = pipeline.target.store
        self._search = Search(self._store, url)
        self._dataset = Dataset(self._search, pipeline.target.collection)
        self._ids = DocumentIds(pipeline.target.key)
        self._kind = pipeline.target.key[0].type
        self._clock = clock or SystemClock()
        self._routed = bool(pipeline.target.routing)
        self._changed_at = pipeline.target.changed_at
        self._versioned = pipeline.target.version == VERSION
        self._beside = list(read_beside(pipeline, Side.OBSERVED))
        self._source: Json = True
        if all(field.type is not FieldType.INFERRED for field in pipeline.fields):
            self._source = [name for name in CompiledMapping(pipeline).target_paths if name not in (ID, VERSION)]

    async def in_key_order(self) -> bool:
        return False

    async def ping(self) -> None:
        await self._search.request("GET", "/")

    async def clock_offset_ms(self) -> int:
        before = self._clock.now_ms()
        answer = await self._search.request("GET", "/_nodes/_local/stats/http", params={"filter_path": "nodes.*.timestamp"})
        after = self._clock.now_ms()
        [node] = answer["nodes"].values()
        timestamp: int = node["timestamp"]
        return round(timestamp - (before + after) / 2)

    async def close(self) -> None:
        await self._search.close()

    async def describe(self) -> DatasetInfo:
        return DatasetInfo(identity=(await self._dataset.resolve()).identity, primary_key=(ID,))

    # by key

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        """Get every key by all of its spellings; where documents are routed, from every shard: nobody knows their routing."""
        index = await self._dataset.resolve()
        routings: Sequence[str | None] = await self._dataset.probes(index) if self._routed else [None]
        wanted = list(dict.fromkeys(keys))
        asked = [(key, id_, routing) for key in wanted for id_ in self._ids.spellings(key) for routing in routings]
        found: dict[Key, list[StoredRecord]] = {}
        unread: dict[Key, Unread] = {}
        for start in range(0, len(asked), GETS_PER_REQUEST):
            page = asked[start : start + GETS_PER_REQUEST]
            for (key, id_, _), answer in zip(page, await self._get(index, page), strict=True):
                read = self._read(key, id_, answer)
                if isinstance(read, StoredRecord):
                    found.setdefault(key, []).append(read)
                elif isinstance(read, Unread):
                    unread[key] = read
        return {key: unread.get(key) or _of(found.get(key, ())) for key in wanted}

    async def _get(self, index: Index, page: Sequence[tuple[Key, str, str | None]]) -> Sequence[Json]:
        body = {"docs": [{"_id": id_} | ({"routing": routing} if routing else {}) for _, id_, routing in page]}
        answer = await self._search.request(
            "POST", path(index.name, "_mget"), params={"realtime": True, "preference": PRIMARY}, body=body
        )
        documents: Sequence[Json] = answer["docs"]
        if len(documents) != len(page):
            raise StoreUnreachable(
                f"OpenSearch store {self._store} answered {len(documents)} of {len(page)} look-ups.", store=self._store
            )
        return documents

    def _read(self, key: Key, id_: str, answer: Json) -> Read:
        """Absent only where the shard says that it looked, and found nothing."""
        if answer.get("_id") != id_ or "error" in answer or not isinstance(answer.get("found"), bool):
            return Unread(error_type(answer) or "the look-up was not answered")
        if not answer["found"]:
            return ABSENT
        if "_source" not in answer:
            return Unread("the index does not keep _source: its documents cannot be compared")
        return self._record(key, answer)

    def _record(self, key: Key, hit: Json) -> StoredRecord:
        place = Place(
            index=hit["_index"],
            id=hit["_id"],
            routing=hit.get("_routing"),
            seq_no=hit["_seq_no"],
            primary_term=hit["_primary_term"],
            version=hit[VERSION],
        )
        version = {VERSION: place.version} if self._versioned else {}
        return StoredRecord(
            key=key,
            fields={ID: place.id, **hit.get("_source", {}), **version},
            revision=f"{place.primary_term}/{place.seq_no}",
            target_id=place.id if place.routing in (None, place.id) else f"{place.id} (routing {place.routing})",
            raw=place,
        )

    # all of it

    async def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = PAGE_MAX,
    ) -> AsyncIterator[ScanChunk]:
        """Read shard by shard; a shard that did not answer whole, or another index under the name, ends the scan incomplete."""
        async with aclosing(self._scan(content=content, cursor=cursor, chunk=chunk, only=[])) as chunks:
            async for found in chunks:
                records = [r for r in found.records if (lower is None or r.key >= lower) and (upper is None or r.key < upper)]
                yield replace(found, records=records)

    async def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        """Read shard by shard, in the order of ``_seq_no``, what has a later time in ``changed_at``: a field of type date."""
        if not self._changed_at:
            raise no_changed_at(self._store, self._dataset.name)
        only = [{"range": {self._changed_at: {"gte": since.isoformat(), "format": "strict_date_optional_time"}}}]
        async with aclosing(self._scan(content=False, cursor=cursor, chunk=chunk, only=only)) as chunks:
            async for found in chunks:
                yield found

    async def _scan(self, *, content: bool, cursor: Any, chunk: int, only: Sequence[Json]) -> AsyncGenerator[ScanChunk]:
        body: dict[str, Any] = {
            "seq_no_primary_term": True,
            "version": True,
            "_source": self._source if content else self._beside or False,
        }
        async with aclosing(self._pages(body, cursor, min(chunk, PAGE_MAX), only=only)) as pages:
            async for page in pages:
                records: list[StoredRecord] = []
                try:
                    records = [self._scanned(hit) for hit in page.hits]
                except (StoreError, KeyMisfit) as error:
                    yield ScanChunk(records=(), cursor=page.before, identity=page.identity, complete=False, reason=error.message)
                    return
                yield ScanChunk(
                    records=records, cursor=page.cursor, identity=page.identity, complete=not page.reason, reason=page.reason
                )

    async def scan_contents(
        self, mapping: CompiledMapping, side: Side, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 5_000
    ) -> AsyncGenerator[ContentChunk]:
        """Read shard by shard as :meth:`scan` does, without a record for each document."""
        contents = PageContents(mapping, side)
        paths = mapping.side(side).paths
        versioned = self._versioned and VERSION in paths
        body = {"_source": self._source, "version": versioned}
        async with aclosing(self._pages(body, None, min(chunk, PAGE_MAX))) as pages:
            async for page in pages:
                try:
                    for hit in page.hits:
                        self._check_routing(hit["_id"], hit.get("_routing"))
                    keys = chunk_of_ids(self._kind, [hit["_id"] for hit in page.hits], page.identity, self._ids.of)
                    if lower is not None or upper is not None:
                        keys = KeyChunk(identity=page.identity, keys=[self._ids.of(hit["_id"]) for hit in page.hits])
                except (StoreError, KeyMisfit) as error:
                    failed = KeyChunk(identity=page.identity, complete=False, reason=error.message)
                    yield ContentChunk(keys=failed, contents=contents.contents((), 0))
                    return
                documents = [hit.get("_source", {}) for hit in page.hits]
                if ID in paths:
                    documents = [{ID: hit["_id"], **one} for hit, one in zip(page.hits, documents, strict=True)]
                if versioned:
                    documents = [{**one, VERSION: hit[VERSION]} for hit, one in zip(page.hits, documents, strict=True)]
                found = contents.contents(contents.columns(documents), len(documents))
                if lower is not None or upper is not None:
                    inside, found = cut(self._ids.codec, keys.keys, found, lower, upper)
                    keys = replace(keys, keys=list(inside))
                yield ContentChunk(keys=replace(keys, complete=not page.reason, reason=page.reason), contents=found)

    async def _pages(
        self, body: Mapping[str, Any], cursor: Any, size: int, *, only: Sequence[Json] = (), ids: bool = False
    ) -> AsyncGenerator[_Page]:
        """Yield pages of hits, at last one without any; where something was not read, that one says what.

        Nothing goes on from the cursor of a scan of ids, so it takes them in the order that costs the server least.
        """
        first, after = cursor or (0, -1)
        identity = ""
        at: tuple[int, int] = (first, after)
        try:
            index = await self._dataset.resolve()
            identity = index.identity
            await self._dataset.refresh(index)
            for shard in range(first, index.shards):
                at = (shard, after if shard == first else -1)
                query = {"bool": {"filter": [{"range": {"_seq_no": {"gt": at[1]}}}, *only]}}
                order = {"sort": ["_shard_doc"]} if ids else {"sort": IN_ORDER, "query": query}
                search = {**body, **order, "size": size}
                async with aclosing(self._shard(index, shard, search, ids=ids)) as answers:
                    async for answer in answers:
                        before, at = at, (shard, answer.last)
                        yield _Page(hits=answer.hits, before=before, cursor=at, identity=identity)
                if (await self._dataset.resolve()).identity != identity:
                    raise StoreRefused(f"{self._dataset.name} was created anew during the scan.", store=self._store)
            yield _Page(hits=(), before=at, cursor=(index.shards, -1), identity=identity)
        except StoreError as error:
            yield _Page(hits=(), before=at, cursor=at, identity=identity, reason=error.message)

    async def _shard(self, index: Index, shard: int, body: dict[str, Any], *, ids: bool) -> AsyncGenerator[Answer]:
        """Yield the pages of one primary. Raises StoreUnreachable where they are not all that it holds."""
        params: dict[str, Any] = {"allow_partial_search_results": False} | ({"filter_path": ID_FIELDS} if ids else {})
        async with self._point_in_time(index, shard) as point:
            read, total = 0, math.inf
            while read < total:
                page = {**body, "pit": {"id": point, "keep_alive": KEEP_ALIVE}, "track_total_hits": total == math.inf}
                said = await self._search.search(params, page, IDS if ids else None)
                answer = of_ids(said) if ids else of_hits(said)
                if not answer.whole or (total == math.inf and answer.total is None):
                    raise self._short(index, shard, "it did not answer whole")
                total = answer.total if total == math.inf and answer.total is not None else total
                if not answer.hits:
                    break
                read += len(answer.hits)
                body["search_after"] = [answer.last]
                yield answer
            if read != total:
                raise self._short(index, shard, f"{read} of its {total} documents were read")

    @asynccontextmanager
    async def _point_in_time(self, index: Index, shard: int) -> AsyncIterator[str]:
        """Hold the documents of one primary as they are now: pages of a search alone would lose those that move meanwhile."""
        params = {"keep_alive": KEEP_ALIVE, "preference": f"_shards:{shard}|{PRIMARY}", "allow_partial_pit_creation": False}
        answer = await self._search.request("POST", path(index.name, "_search", "point_in_time"), params=params)
        point = answer["pit_id"]
        try:
            if answer["_shards"]["failed"] or answer["_shards"]["successful"] != 1:
                raise self._short(index, shard, "no point in time was given")
            yield point
        finally:
            try:
                await self._search.request("DELETE", "/_search/point_in_time", body={"pit_id": [point]})
            except StoreError:  # it lapses by itself
                pass

    def _scanned(self, hit: Json) -> StoredRecord:
        """Raises KeyMisfit; StoreRefused where a look-up by id would not find the document."""
        self._check_routing(hit["_id"], hit.get("_routing"))
        return self._record(self._ids.of(hit["_id"]), hit)

    def _check_routing(self, id_: str, routing: str | None) -> None:
        if not self._routed and routing not in (None, id_):
            raise StoreRefused(
                f"Documents of {self._dataset.name} are routed: a look-up by _id alone does not find them.",
                store=self._store,
                remedy="Name what routes them: target.routing.",
            )

    def _short(self, index: Index, shard: int, reason: str) -> StoreUnreachable:
        return StoreUnreachable(f"Shard {shard} of {index.name}: {reason}.", store=self._store, remedy="Wait for its shards.")

    async def scan_keys(
        self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = PAGE_MAX
    ) -> AsyncIterator[KeyChunk]:
        """Read ids alone, in bulk where all are wanted."""
        if lower is not None or upper is not None:
            async with aclosing(keys_of(self.scan(content=False, lower=lower, upper=upper, chunk=chunk))) as chunks:
                async for found in chunks:
                    yield found
            return
        async with aclosing(self._pages({"_source": False}, None, min(chunk, PAGE_MAX), ids=True)) as pages:
            async for page in pages:
                try:
                    for hit in page.hits:
                        if hit.routing is not None:
                            self._check_routing(hit.id, hit.routing)
                    keys = chunk_of_ids(self._kind, [hit.id for hit in page.hits], page.identity, self._ids.of)
                except (StoreError, KeyMisfit) as error:
                    yield KeyChunk(identity=page.identity, complete=False, reason=error.message)
                    return
                yield replace(keys, complete=not page.reason, reason=page.reason)

    async def is_empty(self) -> bool:
        """Count on every primary: a search that finds nothing proves nothing."""
        return await self._dataset.count(await self._dataset.resolve()) == 0

    async def estimate(self) -> int:
        """Return about how many documents there are, without a refresh; for progress only."""
        index = await self._dataset.resolve()
        answer = await self._search.request("POST", path(index.name, "_count"))
        return int(answer["count"])


def _of(records: Sequence[StoredRecord]) -> Read | tuple[StoredRecord, ...]:
    if not records:
        return ABSENT
    return records[0] if len(records) == 1 else tuple(records)
