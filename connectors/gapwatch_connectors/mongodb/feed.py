"""MongoDB's change stream, with markers that prove how far it was read.

A marker is a note in the oplog (``appendOplogNote``), or, without that right, a small document of ours on the same cluster. We
note our clock T, write the marker, and once the stream's resume token has passed its time, everything committed before T was
read. Without either right the token's own time has to do: it moves with the cluster's traffic, every ten seconds without any.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

import bson
import structlog
from bson import Timestamp
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.errors import OperationFailure

from gapwatch.clock import SystemClock
from gapwatch.errors import HistoryLost, StoreRefused
from gapwatch.feed_ports import NO_KEY, ChangeEvent, StreamBatch
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock
from gapwatch_connectors.mongodb.anchor import FIELD, Anchor
from gapwatch_connectors.mongodb.connection import OPTIONS, Document, Mongo, Note, u64
from gapwatch_connectors.mongodb.tokens import cluster_time, operation_index

log = structlog.get_logger(__name__)

EVENTS_PER_BATCH: Final = 1_000
BYTES_PER_BATCH: Final = 16 * 1024 * 1024  # the change that reaches it is the batch's last
WITHOUT_DESCRIPTION: Final = {"$project": {"updateDescription": 0}}  # nobody reads it, and with it a change may be above 16 MiB
AWAIT_MILLISECONDS: Final = 50
REST_SECONDS: Final = 0.25  # at most, between two looks at a stream in which nothing happens
QUIET_AFTER_SECONDS: Final = 30.0  # without an event
QUIET_SECONDS: Final = 2.0  # then at most, and between markers at least; less where ``stall_after`` is short
LOOKS_PER_STALL: Final = 15
LONGER: Final = 2  # times as long, where somebody wakes it
MARKERS_MAX: Final = 10_000  # a stream that is far behind keeps no more; the oldest ones prove least
STEP_SECONDS: Final = 10
MARKER_COLLECTION: Final = "gapwatch_markers"
ENDED: Final = frozenset({"drop", "rename", "dropDatabase", "invalidate"})
OPERATIONS: Final = {"insert": "insert", "replace": "replace", "delete": "delete"}
NOT_ALLOWED: Final = frozenset({13, 59, 115, 8000})  # unauthorized, no such command, not supported, not on this service
EXACT: Final = CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
RAW: Final = OPTIONS.with_options(document_class=RawBSONDocument)


class MongoChangeStream:
    """Implements :class:`gapwatch.feed_ports.FeedReader` for a pipeline's target collection."""

    def __init__(self, pipeline: PipelineSpec, url: str, *, clock: Clock | None = None) -> None:
        self._store = pipeline.target.store
        self._name = pipeline.target.collection
        self._pulse = pipeline.pulse_seconds
        self._quiet_seconds = self._unwoken = min(QUIET_SECONDS, pipeline.stall_after_seconds / LOOKS_PER_STALL)
        self._stirring = asyncio.Event()  # it was woken since its last rest began
        self._mongo = Mongo(self._store, url)
        self._patient = Mongo(self._store, url, patient=True)  # of the stream itself
        self._clock = clock or SystemClock()
        self._may_note = True
        self._may_mark = True
        self._anchor = Anchor(self._mongo, self._name, self._clock)
        self._markers: deque[tuple[int, int]] = deque(maxlen=MARKERS_MAX)  # our clock, cluster time of the marker
        self._next_marker = 0.0
        self._stirred = self._clock.monotonic()  # when the newest event came, or the stream began
        self._opened = 0.0  # what was noted before proves nothing of this stream
        self._at_time: tuple[int, int] = (0, 0)
        self._proven_clock = 0

    async def close(self) -> None:
        await self._mongo.close()
        await self._patient.close()

    def may_rest(self) -> None:
        self._quiet_seconds = LONGER * self._unwoken

    def wake(self) -> None:
        """End a rest, and take none for a while: what is written at the source should soon be seen here."""
        self._stir()
        self._stirring.set()

    def _stir(self) -> None:
        self._stirred = self._clock.monotonic()
        self._next_marker = min(self._next_marker, self._stirred + self._pulse)

    async def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        images = await self._post_images()
        begun = self._resumed(token) if token is not None else None
        if begun is not None:
            await self._anchor.must_hold(cluster_time(begun))
        stream = await self._mongo.patiently(self._watch(begun, images=images))
        self._opened = self._clock.monotonic()
        async with stream:
            while True:
                events, ended = await self._mongo.patiently(self._read(stream, images=images))
                position = stream.resume_token
                if events and ended:
                    position = loads(events[-1].token.decode())  # what comes after them is said below
                if position is not None:
                    await self._anchor.hold(cluster_time(position))
                    yield StreamBatch(
                        events=events,
                        token=_encoded({**position, FIELD: self._anchor.time}),
                        watermark=self._proven(position),
                        requests=self._mongo.asked(),
                    )
                if ended:
                    remedy = "A sweep covers what follows; reading begins anew by itself."
                    raise HistoryLost(f"The change stream of {self._name} ended with {ended}.", remedy=remedy)
                if events:
                    self._stir()
                else:
                    await self._rest()
                await self._mark()  # not before the first batch: a watermark must come after a position to go on from

    async def _watch(self, position: Document | None, *, images: bool) -> AsyncChangeStream[RawBSONDocument]:
        options: dict[str, Any] = {
            "full_document": "whenAvailable" if images else "updateLookup",
            "max_await_time_ms": AWAIT_MILLISECONDS,
            "batch_size": EVENTS_PER_BATCH,
        }
        if position is not None:
            options["resume_after"] = position
        with self._mongo.wrapped():
            collection = self._patient.collection(self._name).with_options(codec_options=RAW)
            return await collection.watch([WITHOUT_DESCRIPTION], **options)

    def _resumed(self, token: bytes) -> Document:
        try:
            found: Any = loads(token.decode())
        except (ValueError, TypeError, BSONError):
            found = None
        if not isinstance(found, dict) or not cluster_time(found):
            raise HistoryLost(
                f"The stored position of {self._name} is no resume token.", remedy="A sweep covers what was missed."
            )
        self._anchor.time = int(found.pop(FIELD, 0))  # positions that older releases stored have none
        return found

    async def _read(self, stream: AsyncChangeStream[RawBSONDocument], *, images: bool) -> tuple[list[ChangeEvent], str]:
        """Return the changes that are there now, and the kind of the one that ends the stream, if it came."""
        events: list[ChangeEvent] = []
        size = 0
        with self._mongo.wrapped():
            while len(events) < EVENTS_PER_BATCH and size < BYTES_PER_BATCH:
                change = await stream.try_next()
                if change is None:
                    break
                kind = change["operationType"]
                if kind != "update" and kind not in OPERATIONS:
                    return events, str(kind)
                events.append(self._event(change, images=images))
                size += len(events[-1].value)
        return events, ""

    async def _post_images(self) -> bool:
        database, _, name = self._name.partition(".")
        with self._mongo.wrapped():
            found = await (await self._mongo.database(database).list_collections(filter={"name": name})).to_list()
        return bool(found and found[0].get("options", {}).get("changeStreamPreAndPostImages", {}).get("enabled"))

    def _event(self, change: RawBSONDocument, *, images: bool) -> ChangeEvent:
        """Return a change. It goes without what cannot be decoded: MongoDB keeps what a driver sends as text, whatever it is."""
        kind = change["operationType"]
        document, readable = _decoded(change.get("fullDocument"))
        key, known = _decoded(change["documentKey"])
        if kind == "update":
            operation = "update_touched" if document is None else ("update" if images else "update_lookup")
        else:
            operation = OPERATIONS[kind]
        cluster: Timestamp = change["clusterTime"]
        time_ms = int(change["wallTime"].timestamp() * 1000) if "wallTime" in change else cluster.time * 1000
        headers = [
            ("gapwatch-op", operation.encode()),
            ("gapwatch-time", str(time_ms).encode()),
            ("gapwatch-position", f"{u64(cluster)}:{self._minor(cluster, change['_id'])}".encode()),
        ]
        event = ChangeEvent(
            key=_encoded(key) if known else NO_KEY,
            value=_encoded(document) if document is not None else b"",
            headers=headers,
            event_time=time_ms,
            token=_encoded(change["_id"]),
        )
        if readable and known:
            return event
        log.warning("change_unreadable", collection=self._name)
        return event.touched()

    def _minor(self, cluster: Timestamp, token: Mapping[str, Any]) -> int:
        """Return the event's place among those of one cluster time: operations of a transaction share theirs.

        The token says it, so that a stream resumed inside a transaction numbers on. Of an unknown layout, arrival has to do.
        """
        index = operation_index(token)
        if index is not None:
            return index
        now = u64(cluster)
        number = self._at_time[1] + 1 if self._at_time[0] == now else 0
        self._at_time = (now, number)
        return number

    # markers

    async def _rest(self) -> None:
        """Wait for the next marker's time: nothing that came in between could be proven before it."""
        longest = max(self._quiet_seconds, REST_SECONDS) if self._quiet() else REST_SECONDS
        until = self._next_marker - self._clock.monotonic() if self._may_mark else longest
        if until > 0:
            await self._sleep(min(until, longest))

    async def _sleep(self, seconds: float) -> None:
        """Wait so long, or until somebody wakes it."""
        self._stirring.clear()
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._stirring.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    def _quiet(self) -> bool:
        return self._clock.monotonic() - self._stirred > QUIET_AFTER_SECONDS

    async def _mark(self) -> None:
        """Write a marker once a pulse; what it proves is known when the stream has passed it."""
        if not self._may_mark or self._clock.monotonic() < self._next_marker:
            return
        try:
            self._next_marker = await self.mark() + (max(self._pulse, self._quiet_seconds) if self._quiet() else self._pulse)
        except StoreRefused:
            self._may_mark = False

    async def mark(self) -> float:
        """Write a marker now, or take the one that another stream of the cluster has just written; return when it was written.

        Raises StoreRefused when no way of writing one is allowed.
        """
        at, clock = self._clock.monotonic(), self._clock.now_ms()
        with self._mongo.wrapped():
            note = await self._note(max(self._opened, at - self._pulse / 2)) if self._may_note else None
            self._may_note = note is not None
            if note is None:
                self._markers.append((clock, await self._document()))
                return at
            self._markers.append((note.clock_ms, note.cluster_time))
            return note.at

    async def _note(self, newer_than: float) -> Note | None:
        """Return a note in the oplog; None where that is not allowed."""
        try:
            return await self._mongo.note(self._clock, newer_than=newer_than)
        except OperationFailure as error:
            if error.code not in NOT_ALLOWED:
                raise
            return None

    async def _document(self) -> int:
        """Write a document of ours beside the watched collection."""
        database = self._name.partition(".")[0]
        markers = self._mongo.collection(f"{database}.{MARKER_COLLECTION}")
        async with self._mongo.client.start_session() as session:
            try:
                await markers.update_one({"_id": self._name}, {"$inc": {"n": 1}}, upsert=True, session=session)
            except OperationFailure as error:
                if error.code not in NOT_ALLOWED:
                    raise
                raise StoreRefused(
                    f"Store {self._store} allows no markers: no appendOplogNote, and no write to {database}.{MARKER_COLLECTION}.",
                    store=self._store,
                    remedy="Grant the action appendOplogNote on the cluster, or readWrite on that collection.",
                ) from error
            assert session.operation_time is not None
            return u64(session.operation_time)

    def _proven(self, token: Mapping[str, Any]) -> int:
        """Return up to when everything was read: our clock at the newest marker that the token has passed, 0 for none yet."""
        passed = cluster_time(token)
        while self._markers and self._markers[0][1] <= passed:
            self._proven_clock = self._markers.popleft()[0]
        if not self._may_mark:
            step = (passed >> 32) * 1000 - 1
            if step >= self._proven_clock + STEP_SECONDS * 1000:
                self._proven_clock = step
        return self._proven_clock


async def first_batch(stream: MongoChangeStream, token: bytes | None = None) -> StreamBatch:
    """Open a stream, from now where no token is given, and return its first batch: a change stream can be read."""
    async with aclosing(stream.open(token)) as batches:  # type: ignore[type-var]
        return await anext(batches)


def _decoded(raw: RawBSONDocument | None) -> tuple[Document | None, bool]:
    """Return a document, None where there is none, and whether it could be decoded."""
    try:
        return (bson.decode(raw.raw, OPTIONS) if raw is not None else None), True
    except BSONError:
        return None, False


def _encoded(value: Any) -> bytes:
    return dumps(value, json_options=EXACT).encode()
