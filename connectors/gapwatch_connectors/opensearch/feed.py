"""The observed side by a tail over ``_seq_no``: OpenSearch has no change stream. The rule is in ``core/seqno.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gapwatch.clock import SystemClock
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.seqno import NOTHING, Position, Window
from gapwatch.errors import StoreBusy, StoreUnreachable
from gapwatch.feed_ports import ChangeEvent, StreamBatch
from gapwatch.model.pipeline import FieldType, PipelineSpec
from gapwatch.ports import Clock
from gapwatch_connectors.opensearch.connection import Json, Search, encode, path
from gapwatch_connectors.opensearch.index import IN_ORDER, PRIMARY, Dataset, Index
from gapwatch_connectors.opensearch.keys import ID
from gapwatch_connectors.opensearch.reader import VERSION

EVENTS_PER_BATCH: Final = 1_000
FEWER: Final = 10  # by how much a page shrinks that its node has no room for
ROUND_SECONDS_MIN: Final = 0.5  # each round with new writes refreshes the index, which costs its writers a little
STATS: Final = ",".join(
    ("indices.*.uuid", *(f"indices.*.shards.*.{part}" for part in ("routing", "seq_no", "commit.user_data.history_uuid")))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """What the primaries say of themselves, by shard: up to which number all is done, and of which history that number is."""

    uuid: str
    shards: Mapping[int, int]
    histories: Mapping[int, str]


class OpenSearchTail:
    """Implements :class:`gapwatch.feed_ports.FeedReader` for a pipeline's target index.

    The watermark is our clock from before a round took the global checkpoints. A resume token is a :class:`Position`.
    """

    def __init__(self, pipeline: PipelineSpec, url: str, *, clock: Clock | None = None) -> None:
        self._name = pipeline.target.collection
        self._index: Index | None = None  # the concrete one, as of the round: an alias may lead to another one at any time
        self._copies = 0  # of its shards, replicas too, that were started then
        self._search = Search(pipeline.target.store, url)
        self._dataset = Dataset(self._search, self._name)
        self._clock = clock or SystemClock()
        self._interval = max(ROUND_SECONDS_MIN, pipeline.pulse_seconds)
        self._source: Json = True
        if all(field.type is not FieldType.INFERRED for field in pipeline.fields):
            self._source = [name for name in CompiledMapping(pipeline).target_paths if name not in (ID, VERSION)]

    async def close(self) -> None:
        await self._search.close()

    async def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        now = self._clock.now_ms()
        if token is None:
            first = await self._checkpoints()
            position = Position(uuid=first.uuid, round=now, shards=first.shards, histories=first.histories)
        else:
            position = Position.decode(token)
        watermark = now if token is None else 0
        yield self._batch((), position, watermark)
        while True:
            now = self._clock.now_ms()
            position = position.begin(now)
            found = await self._checkpoints()
            position.must_be(found.uuid, self._name)
            position = position.continued(found.histories, self._name)
            windows = position.windows(found.shards)
            if windows:
                await self._refresh()
            for window in windows:
                async for hits in self._pages(window):
                    position = position.read(window.shard, hits[-1]["_seq_no"])
                    events = [_event(hit, window.shard, position.round, now) for hit in hits]
                    yield self._batch(events, position, watermark)
                position = position.read(window.shard, window.through)
            watermark = now
            yield self._batch((), position, watermark)
            await self._clock.sleep(self._interval)

    def _batch(self, events: Sequence[ChangeEvent], position: Position, watermark: int) -> StreamBatch:
        return StreamBatch(events=events, token=position.encode(), watermark=watermark, requests=self._search.asked())

    async def _checkpoints(self) -> Checkpoints:
        """Return each primary's global checkpoint. Raises StoreUnreachable where a primary is away."""
        index = await self._dataset.resolve()
        answer = await self._search.request(
            "GET", path(index.name, "_stats", "docs"), params={"level": "shards", "filter_path": STATS}
        )
        found = answer.get("indices", {}).get(index.name, {})
        primaries = {
            int(shard): copy
            for shard, copies in found.get("shards", {}).items()
            for copy in copies
            if copy["routing"]["primary"]
            and copy["routing"]["state"] == "STARTED"
            and {"seq_no", "commit"} <= copy.keys()  # one that is just being closed says nothing of itself
        }
        shards = {shard: int(copy["seq_no"]["global_checkpoint"]) for shard, copy in primaries.items()}
        if len(shards) != index.shards or min(shards.values()) < NOTHING:
            raise self._away(f"{len(shards)} of {index.shards} primaries are there")
        self._index = index
        self._copies = sum(copy["routing"]["state"] == "STARTED" for copies in found["shards"].values() for copy in copies)
        histories = {shard: str(copy["commit"]["user_data"]["history_uuid"]) for shard, copy in primaries.items()}
        return Checkpoints(uuid=str(found["uuid"]), shards=shards, histories=histories)

    async def _refresh(self) -> None:
        """Make what was written before the checkpoints visible, in every copy that was there then.

        Counted by shards alone, replicas of others would make up for a primary that went away since.
        """
        await self._dataset.refresh(self._index or await self._dataset.resolve(), copies=self._copies)

    async def _pages(self, window: Window) -> AsyncIterator[Sequence[Json]]:
        """Yield the documents of a window, ascending. One that changes meanwhile leaves it, and comes in a later one."""
        params = {
            "preference": f"_shards:{window.shard}|{PRIMARY}",
            "allow_partial_search_results": False,
            "request_cache": False,
        }
        assert self._index is not None, "a window comes of its checkpoints"
        where = path(self._index.name, "_search")
        after, size = window.after, EVENTS_PER_BATCH
        while after < window.through:
            body: dict[str, Any] = {
                "size": size,
                "query": {"range": {"_seq_no": {"gt": after, "lte": window.through}}},
                "sort": IN_ORDER,
                "seq_no_primary_term": True,
                "version": True,
                "track_total_hits": False,
                "_source": self._source,
            }
            try:
                answer = await self._search.request("POST", where, params=params, body=body)
            except StoreBusy:  # it may have no room for so many documents: asked for again as they are, they never came
                if size == 1:
                    raise
                size = max(1, size // FEWER)
                continue
            shards, hits = answer["_shards"], answer["hits"]["hits"]
            if answer["timed_out"] or shards["failed"] or shards["successful"] != 1:
                raise self._away(f"shard {window.shard} did not answer whole")
            if hits:
                after = hits[-1]["_seq_no"]
                yield hits
            if len(hits) < size:
                return

    def _away(self, reason: str) -> StoreUnreachable:
        return StoreUnreachable(
            f"{self._name} cannot be followed: {reason}.", store=self._search.store, remedy="Wait for its shards."
        )


def _event(hit: Json, shard: int, number: int, time_ms: int) -> ChangeEvent:
    """Return a document, without its content where that is no Unicode: half of a surrogate pair, which an index keeps."""
    try:
        value = encode(hit.get("_source", {}))
    except UnicodeEncodeError:
        value = b""
    headers = [
        ("gapwatch-op", b"index"),
        ("gapwatch-time", str(time_ms).encode()),
        ("gapwatch-position", f"{number}:{hit['_seq_no']}".encode()),
        ("gapwatch-version", str(hit[VERSION]).encode()),
        ("gapwatch-shard", f"{shard}:{hit['_primary_term']}:{hit['_seq_no']}".encode()),
    ]
    event = ChangeEvent(key=encode({ID: hit["_id"]}), value=value, headers=headers, event_time=time_ms, token=b"")
    return event if value else event.touched()
