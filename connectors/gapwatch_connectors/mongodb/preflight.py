"""What of a MongoDB target would lose data or not work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from pymongo.errors import OperationFailure

from gapwatch.check_ports import Advice, Measure
from gapwatch.clock import SystemClock
from gapwatch.core.envelopes import HEARTBEAT_COLLECTION
from gapwatch.errors import HistoryLost, StoreError, StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import FeedKind, HeartbeatSpec, PipelineSpec
from gapwatch_connectors.mongodb.anchor import NO_OPLOG
from gapwatch_connectors.mongodb.connection import Document, Mongo
from gapwatch_connectors.mongodb.feed import STEP_SECONDS, MongoChangeStream, first_batch
from gapwatch_connectors.mongodb.keys import DocumentKeys
from gapwatch_connectors.mongodb.reader import MongoReader

ConnectorConfig = Callable[[], Awaitable[Mapping[str, str] | None]]
SAMPLE = 10
RESUME_SECONDS = 5.0
WINDOW_SECONDS_MIN = 3_600  # an outage of capture that lasts longer than the oplog's window loses the stream
WINDOW_FRESH_SECONDS = 4.0  # all pipelines of a cluster ask for it every five
FULL_SHARE = 0.9  # before an oplog is that full its window still grows


class MongoPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's target.

    ``connector`` returns the configuration of the Debezium connector that captures it, where one does; ``heartbeat`` says where
    the heartbeats come from that are its time while nobody writes.
    """

    def __init__(
        self,
        pipeline: PipelineSpec,
        url: str,
        position: bytes | None = None,
        *,
        side: str = "target",
        connector: ConnectorConfig | None = None,
        heartbeat: HeartbeatSpec | None = None,
    ) -> None:
        self._heartbeat = heartbeat or HeartbeatSpec()
        self._pipeline = pipeline
        self._connector = connector
        self._url = url
        self._position = position
        self._name = pipeline.target.collection
        self._keys = DocumentKeys(pipeline.target.key)
        self._reader = MongoReader(pipeline, url)
        self._mongo = Mongo(pipeline.target.store, url)
        self._side = side
        self._subject = f"{pipeline.id}.{side}"

    @property
    def name(self) -> str:
        return f"mongodb.{self._side}"

    async def check(self) -> Sequence[Advice]:
        advice: list[Advice] = []
        try:
            await self._reader.ping()
            info = await self._reader.describe()
            if self._pipeline.target.feed.kind is FeedKind.CHANGE_STREAM:
                advice += await self._stream(post_images=info.post_images)
            if self._pipeline.target.feed.kind is FeedKind.DEBEZIUM and self._connector is not None:
                advice += await self._captured(self._connector)
            advice += await self._index()
            advice += await self._documents()
        except StoreRefused as error:
            return [self._advice("error", error.message, error.remedy)]
        return advice or [self._advice("ok", f"{self._name} can be read.")]

    async def watch(self) -> Sequence[Advice]:
        """Leave rights and documents to :meth:`check`: a stream is not opened all the time to learn what its reader knows."""
        return await self._window() if self._pipeline.target.feed.kind is FeedKind.CHANGE_STREAM else []

    async def close(self) -> None:
        await self._reader.close()
        await self._mongo.close()

    def _advice(self, level: str, message: str, remedy: str = "", finding: str = "") -> Advice:
        return Advice(level=level, subject=self._subject, message=message, remedy=remedy, finding=finding)

    async def _stream(self, *, post_images: bool) -> list[Advice]:
        """Open the stream and write one marker: both rights are needed."""
        with self._mongo.wrapped():
            hello = await self._mongo.client.admin.command("hello")
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            message = f"Store {self._pipeline.target.store} is no replica set: it has no change streams."
            return [self._advice("error", message, "Start mongod with --replSet, and initiate it.")]
        stream = MongoChangeStream(self._pipeline, self._url)
        try:
            advice = await self._rights(stream)
        finally:
            await stream.close()
        advice += await self._resumable()
        if not post_images:
            message = f"{self._name} has no post-images: updates are looked up, and may show a later state."
            remedy = "collMod with changeStreamPreAndPostImages: { enabled: true } makes them exact."
            advice.append(self._advice("warning", message, remedy))
        if not self._keys.is_id:
            message = f"Deletes in {self._name} carry only _id: the change stream does not say which {self._keys.paths[0]} went."
            advice.append(self._advice("warning", message, "Keep the key in _id; else sweeps alone find deletes."))
        return advice + await self._window()

    async def _rights(self, stream: MongoChangeStream) -> list[Advice]:
        try:
            await first_batch(stream)
        except StoreUnreachable:
            raise
        except StoreError as error:
            remedy = "Grant find and changeStream on the collection, and a replica set."
            return [self._advice("error", f"No change stream of {self._name}: {error.message}", remedy)]
        try:
            await stream.mark()
        except StoreRefused as error:
            message = f"{error.message} What was read is then known only in steps of {STEP_SECONDS} s and more."
            return [self._advice("warning", message, error.remedy)]
        return []

    async def _is_sharded(self) -> bool:
        with self._mongo.wrapped():
            hello = await self._mongo.client.admin.command("hello")
        return bool(hello.get("msg") == "isdbgrid")

    async def _captured(self, connector: ConnectorConfig) -> list[Advice]:
        if not (self._heartbeat.auto or self._heartbeat.topic):
            message = (
                f"Store {self._pipeline.target.store} has no heartbeats (heartbeat: none): while nobody writes, time stands."
            )
            return [self._advice("ok", message)]
        try:
            config = await connector()
        except StoreError as error:
            message = f"Nobody knows whether the connector captures the heartbeats: {error.message}"
            return [self._advice("unknown", message, error.remedy)]
        return self._heartbeats(config or {}, sharded=await self._is_sharded())

    def _heartbeats(self, config: Mapping[str, str], *, sharded: bool = False) -> list[Advice]:
        """Without heartbeats a collection to which nobody writes has no time; those of one stream prove nothing of another."""
        several = config.get("tasks.max", "1") != "1" and config.get("mongodb.multi.task.enabled") == "true"
        if several or (sharded and config.get("mongodb.connection.mode") == "replica_set"):
            message = "The connector reads several streams: heartbeats, which are in one of them, prove nothing of the others."
            remedy = "Use one task and mongodb.connection.mode=sharded, or write heartbeat: none on the store."
            return [self._advice("error", message, remedy)]
        if self._heartbeat.topic:  # rows of somebody else's: ours are not written
            return []
        database = self._name.partition(".")[0]
        name = f"{database}.{HEARTBEAT_COLLECTION}"
        for option, whole in (("collection.include.list", name), ("database.include.list", database)):
            if _leaves_out(config.get(option, ""), whole):
                message = (
                    f"The connector does not capture {name}, to which Gapwatch writes: while nobody else writes, time stands."
                )
                return [self._advice("warning", message, f"Add {whole.replace('.', chr(92) + '.')} to {option}.")]
        return []

    async def _resumable(self) -> list[Advice]:
        """Say when the stream cannot go on where it was read to."""
        if self._position is None:
            return []
        stream = MongoChangeStream(self._pipeline, self._url)
        try:
            async with asyncio.timeout(RESUME_SECONDS):
                await first_batch(stream, self._position)
        except HistoryLost as error:
            remedy = "Start all the same: a sweep covers what was missed, by itself. A larger oplog outlasts a longer outage."
            return [self._advice("error", error.message, remedy, "history_lost")]
        except TimeoutError:
            message = f"To go on with {self._name} takes its server more than {RESUME_SECONDS:g} s: it looks through its oplog."
            return [self._advice("warning", message, "Start all the same: role capture waits for it.")]
        except StoreRefused:
            return []  # said already
        finally:
            await stream.close()
        return []

    async def _window(self) -> list[Advice]:
        """Say how much time the oplog holds; a full one that holds little is a warning: a position is then soon lost."""
        store = self._pipeline.target.store
        window = await self._mongo.of_cluster("oplog", self._oplog, SystemClock(), seconds=WINDOW_FRESH_SECONDS)
        if window is None:
            return []
        seconds, full = window
        held = Measure(metric="oplog_window_seconds", of=store, value=seconds)
        if not full or seconds >= WINDOW_SECONDS_MIN:
            return [replace(self._advice("ok", f"The oplog of store {store} reaches back {seconds} s."), measure=held)]
        message = f"The oplog of store {store} holds {seconds} s: a longer outage loses the change stream."
        remedy = "Give it more room: replSetResizeOplog with a larger size, or minRetentionHours."
        return [replace(self._advice("warning", message, remedy), measure=held)]

    async def _oplog(self) -> tuple[int, bool] | None:
        """Return how many seconds the oplog holds, and whether it is full (else its window still grows); None: unreadable."""
        oplog = self._mongo.database("local")["oplog.rs"]
        with self._mongo.wrapped():
            try:
                stats: Document = await self._mongo.database("local").command("collStats", "oplog.rs")
                full = stats.get("size", 0) >= FULL_SHARE * stats.get("maxSize", 0)
                ends = [await oplog.find_one({}, {"ts": 1}, sort=[("$natural", direction)]) for direction in (1, -1)]
            except OperationFailure as error:
                if error.code not in NO_OPLOG:
                    raise
                return None
        first, last = ends
        return (int(last["ts"].time - first["ts"].time), full) if first and last else None

    async def _index(self) -> list[Advice]:
        """A key that is not the id is looked up, and kept unique, by an index of its own."""
        if self._keys.is_id:
            return []
        with self._mongo.wrapped():
            indexes = await self._mongo.collection(self._name).index_information()
        key, shown = set(self._keys.paths), ", ".join(self._keys.paths)
        fields = [([name for name, _ in index["key"]], bool(index.get("unique"))) for index in indexes.values()]
        if not any(names[0] in key for names, _ in fields):
            remedy = f"Create a unique index on it: createIndex({{ {self._keys.paths[0]}: 1 }}, {{ unique: true }})."
            return [
                self._advice(
                    "warning", f"No index of {self._name} begins with the key ({shown}): each look-up reads it all.", remedy
                )
            ]
        if not any(unique and set(names) <= key for names, unique in fields):
            message = f"No unique index keeps the key ({shown}) of {self._name} unique: duplicates are possible."
            return [self._advice("warning", message, "Make its index unique.")]
        return []

    async def _documents(self) -> list[Advice]:
        """Read a few documents: their keys must fit the codec."""
        async with aclosing(self._reader.scan(content=False, chunk=SAMPLE)) as chunks:  # type: ignore[type-var]
            first = await anext(chunks, None)
        if first is None or first.complete:
            return []
        await self._reader.ping()  # an outage is no advice
        remedy = f"Correct the key of the pipeline's {self._side}: path and type; keys are never coerced."
        return [self._advice("error", f"The documents of {self._name} do not have the pipeline's key: {first.reason}", remedy)]


def _leaves_out(listed: str, name: str) -> bool:
    """Whether a list of regular expressions, as Debezium reads it, names others and not this one."""
    patterns = [pattern.strip() for pattern in listed.split(",") if pattern.strip()]
    try:
        return bool(patterns) and not any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in patterns)
    except re.error:  # one of Java's that Python does not know
        return False
