"""MongoDB's change stream, with markers that prove how far it was read.

A marker is a note in the oplog (``appendOplogNote``), or, without that right, a small document of ours on the same cluster. We
note our clock T, write the marker, and once the stream's resume token has passed its time, everything committed before T was
read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from bson import Timestamp
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads
from pymongo.errors import OperationFailure

from gapwatch.errors import HistoryLost, StoreRefused
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import ChangeEvent, StreamBatch
from gapwatch_connectors.mongodb.connection import Document, client, collection, wrapped

EVENTS_PER_BATCH = 1_000
AWAIT_MILLISECONDS = 50
MARKER_COLLECTION = "gapwatch_markers"
ENDED = frozenset({"drop", "rename", "dropDatabase", "invalidate"})
OPERATIONS = {"insert": "insert", "replace": "replace", "delete": "delete"}


class MongoChangeStream:
    """Implements :class:`gapwatch.ports.FeedReader` for a pipeline's target collection."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._store = pipeline.target.store
        self._name = pipeline.target.collection
        self._pulse = pipeline.pulse_seconds
        self._client = client(url)
        self._collection = collection(self._client, self._name)
        self._may_note = True
        self._markers: deque[tuple[int, int]] = deque()  # our clock, cluster time of the marker
        self._next_marker = 0.0
        self._in_transaction: tuple[int, int] = (0, 0)
        self._proven_clock = 0

    def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        return self._batches(token)

    async def close(self) -> None:
        await self._client.close()

    async def _batches(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        images = await self._post_images()
        options: dict[str, Any] = {
            "full_document": "whenAvailable" if images else "updateLookup",
            "max_await_time_ms": AWAIT_MILLISECONDS,
            "batch_size": EVENTS_PER_BATCH,
        }
        if token is not None:
            options["resume_after"] = loads(token.decode())
        with wrapped(self._store):
            stream = await self._collection.watch(**options)
        async with stream:
            while True:
                await self._mark()
                events: list[ChangeEvent] = []
                open_transaction = False  # its events share a cluster time, so that a position lies only after all of them
                with wrapped(self._store):
                    while len(events) < EVENTS_PER_BATCH or open_transaction:
                        change = await stream.try_next()
                        if change is None:
                            break
                        events.append(self._event(change, stream.resume_token, images=images))
                        open_transaction = "txnNumber" in change
                    position = stream.resume_token
                if position is None:
                    continue
                yield StreamBatch(events=events, token=_encoded(position), watermark=self._proven(position))

    async def _post_images(self) -> bool:
        database, _, name = self._name.partition(".")
        with wrapped(self._store):
            found = await (await self._client[database].list_collections(filter={"name": name})).to_list()
        return bool(found and found[0].get("options", {}).get("changeStreamPreAndPostImages", {}).get("enabled"))

    def _event(self, change: Document, token: Any, *, images: bool) -> ChangeEvent:
        kind = change["operationType"]
        if kind in ENDED:
            raise HistoryLost(f"The collection {self._name} ended with {kind}.", remedy="A sweep covers what follows.")
        document = change.get("fullDocument")
        if kind == "update":
            operation = "update_touched" if document is None else ("update" if images else "update_lookup")
        else:
            operation = OPERATIONS[kind]
        cluster: Timestamp = change["clusterTime"]
        time_ms = int(change["wallTime"].timestamp() * 1000) if "wallTime" in change else cluster.time * 1000
        headers = [
            ("gapwatch-op", operation.encode()),
            ("gapwatch-time", str(time_ms).encode()),
            ("gapwatch-position", f"{_u64(cluster)}:{self._minor(cluster)}".encode()),
        ]
        return ChangeEvent(
            key=_encoded(change["documentKey"]),
            value=_encoded(document) if document is not None else b"",
            headers=headers,
            event_time=time_ms,
            token=_encoded(token),
        )

    def _minor(self, cluster: Timestamp) -> int:
        """Return the event's number among those of one cluster time: operations of a transaction share theirs."""
        now = _u64(cluster)
        number = self._in_transaction[1] + 1 if self._in_transaction[0] == now else 0
        self._in_transaction = (now, number)
        return number

    async def _mark(self) -> None:
        """Write a marker once a pulse; what it proves is known when the stream has passed it."""
        if time.monotonic() < self._next_marker:  # noqa: TID251 - paces a loop
            return
        self._next_marker = time.monotonic() + self._pulse  # noqa: TID251
        await self.mark()

    async def mark(self) -> None:
        """Write a marker now. Raises StoreRefused when no way of writing one is allowed."""
        clock = time.time_ns() // 1_000_000  # noqa: TID251 - the marker is of this machine's clock
        with wrapped(self._store):
            cluster = await self._note()
        self._markers.append((clock, cluster))

    async def _note(self) -> int:
        if self._may_note:
            try:
                said = await self._client.admin.command("appendOplogNote", 1, data={"gapwatch": "marker"})
                return _u64(said["operationTime"])
            except OperationFailure as error:
                if error.code != 13:
                    raise
                self._may_note = False
        database = self._name.partition(".")[0]
        markers = collection(self._client, f"{database}.{MARKER_COLLECTION}")
        async with self._client.start_session() as session:
            try:
                await markers.update_one({"_id": self._name}, {"$inc": {"n": 1}}, upsert=True, session=session)
            except OperationFailure as error:
                if error.code != 13:
                    raise
                raise StoreRefused(
                    f"Store {self._store} allows no markers: no appendOplogNote, and no write to {database}.{MARKER_COLLECTION}.",
                    store=self._store,
                    remedy="Grant the action appendOplogNote on the cluster, or readWrite on that collection.",
                ) from error
            assert session.operation_time is not None
            return _u64(session.operation_time)

    def _proven(self, token: Any) -> int:
        """Return the clock of the newest marker that the resume token has passed, 0 for none yet."""
        passed = _token_time(token)
        while self._markers and self._markers[0][1] <= passed:
            self._proven_clock = self._markers.popleft()[0]
        return self._proven_clock


def _encoded(value: Any) -> bytes:
    return dumps(value, json_options=CANONICAL_JSON_OPTIONS).encode()


def _u64(stamp: Timestamp) -> int:
    return (stamp.time << 32) | stamp.inc


def _token_time(token: Any) -> int:
    """Return the cluster time that a resume token begins with: a key string of one timestamp (type byte 0x82, eight bytes)."""
    raw = bytes.fromhex(token["_data"][:18])
    if raw[0] != 0x82:
        return 0
    return int.from_bytes(raw[1:9], "big")
