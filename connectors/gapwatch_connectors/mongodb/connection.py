"""Connections to MongoDB: driver errors become ours, once, and never with the password in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from bson import CodecOptions, Timestamp
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
)
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent
from pymongo.read_concern import ReadConcern

from gapwatch.errors import HistoryLost, StoreRefused, StoreUnreachable
from gapwatch.ports import Clock

T = TypeVar("T")
Document = dict[str, Any]
SELECTION_MILLISECONDS = 5_000
SOCKET_MILLISECONDS = 10_000  # a server that was stopped closes nothing
PATIENT_MILLISECONDS = 600_000  # until a server has found a change in its oplog, of which it reads some 400,000 entries a second
PATIENCE_SECONDS = 10.0  # between two looks whether such a server still lives
AUTHENTICATION = frozenset({8000, 18, 11})
RIGHT = frozenset({13})
# Where a position lies outside the oplog, or is none of this cluster's: by code, never by text.
HISTORY = frozenset({280, 286, 136, 260, 50811})
TOO_LARGE = frozenset({10334})
NO_REPLICA_SET = frozenset({40573})
# Shutting down, stepping down, not primary …: the server says that it cannot now.
AWAY = frozenset({6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 43, 237, 234, 50, 133, 134, 202, 96})
OPTIONS: CodecOptions[Document] = CodecOptions(tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


@dataclass(slots=True)
class _Count:
    """How many commands somebody had sent."""

    number: int = 0


_ASKING: ContextVar[_Count | None] = ContextVar("asking", default=None)


class _Listener(CommandListener):
    """Counts commands for whoever sends them: the driver calls it where they are sent."""

    def started(self, event: CommandStartedEvent) -> None:
        count = _ASKING.get()
        if count is not None:
            count.number += 1

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Counted when it began."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Counted when it began."""


_LISTENER = _Listener()


@dataclass(frozen=True, slots=True)
class Note:
    """A note in the oplog. What was committed before `clock_ms`, our time before it was written, comes before `cluster_time`."""

    clock_ms: int
    cluster_time: int
    at: float  # by the monotonic clock


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was asked for all who want it, once: a store that is away keeps them waiting together, not one after the other."""

    at: float  # before it was asked, by the monotonic clock
    task: asyncio.Task[Any]

    def serves(self, newer_than: float) -> bool:
        failed = self.task.done() and (self.task.cancelled() or self.task.exception() is not None)
        return self.at > newer_than and not failed


@dataclass(slots=True)
class _Shared:
    """A client and how many use it. Each client watches its servers by itself, which forty of them make 3 % of a core."""

    client: AsyncMongoClient[Document]
    users: int = 0
    answers: dict[str, _Answer] = field(default_factory=dict)

    async def answer(self, name: str, ask: Callable[[], Coroutine[Any, Any, T]], clock: Clock, *, newer_than: float) -> T:
        """Return what was asked after then by whoever came first; his failure is everybody's who waits for it."""
        known = self.answers.get(name)
        if known is None or not known.serves(newer_than):
            known = self.answers[name] = _Answer(clock.monotonic(), asyncio.create_task(ask(), name=f"mongodb-{name}"))
            known.task.add_done_callback(_looked_at)
        return cast(T, await asyncio.shield(known.task))

    async def close(self) -> None:
        for answer in self.answers.values():
            answer.task.cancel()
        await self.client.close()


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Nobody may be left who waits for it; then its failure is nobody's."""
    if not task.cancelled():
        task.exception()


_Name = tuple[str, bool]  # the uri, and whether it is patient
_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Name, _Shared]] = WeakKeyDictionary()  # by loop


class Mongo:
    """A user of a store's client, opened at the first use inside a loop: a wrong address is then an answer like any other.

    ``patient``: it waits for minutes for a server that answers nothing: to be used inside another one's :meth:`patiently` only.
    """

    def __init__(self, store: str, uri: str, *, patient: bool = False) -> None:
        self.store = store
        self._uri = uri
        self._client = uri, patient
        self._clients: dict[_Name, _Shared] = {}  # those of our loop, once one is in use
        self._asked = _Count()

    def asked(self) -> int:
        """Return how many requests were made inside :meth:`wrapped` since this was asked last."""
        count, self._asked.number = self._asked.number, 0
        return count

    @property
    def client(self) -> AsyncMongoClient[Document]:
        """The client: gives up within seconds. Raises StoreRefused for a wrong address."""
        if not self._clients:
            clients = _SHARED.setdefault(asyncio.get_running_loop(), {})
            if self._client not in clients:
                clients[self._client] = _Shared(client=self._open())
            clients[self._client].users += 1
            self._clients = clients
        return self._clients[self._client].client

    def _open(self) -> AsyncMongoClient[Document]:
        try:
            return AsyncMongoClient(
                self._uri,
                serverSelectionTimeoutMS=SELECTION_MILLISECONDS,
                connectTimeoutMS=SELECTION_MILLISECONDS,
                socketTimeoutMS=PATIENT_MILLISECONDS if self._client[1] else SOCKET_MILLISECONDS,
                tz_aware=True,
                retryReads=True,
                retryWrites=True,
                appname="gapwatch",
                maxPoolSize=None,  # whoever has many pipelines has as many readers
                event_listeners=[_LISTENER],
            )
        except (PyMongoError, ValueError, TypeError):
            # The driver's message may quote the address, password and all: it is not kept as the cause either.
            raise StoreRefused(
                f"The uri of store {self.store} cannot be read.",
                store=self.store,
                remedy="Write mongodb://USER:PASSWORD@HOST:PORT/?replicaSet=NAME, with %40 for an @ in the password.",
            ) from None

    async def note(self, clock: Clock, *, newer_than: float) -> Note:
        """Return a note in the oplog that was written after then, by the monotonic clock: all users of the client share them.

        Raises OperationFailure where notes are not allowed.
        """
        client = self.client

        async def write() -> Note:
            clock_ms, at = clock.now_ms(), clock.monotonic()
            said = await client.admin.command("appendOplogNote", 1, data={"gapwatch": "marker"})
            return Note(clock_ms=clock_ms, cluster_time=u64(said["operationTime"]), at=at)

        return await self._clients[self._client].answer("note", write, clock, newer_than=newer_than)

    async def of_cluster(self, name: str, ask: Callable[[], Coroutine[Any, Any, T]], clock: Clock, *, seconds: float) -> T:
        """Return what the cluster says to everybody alike, asked for at most so long ago by whichever user of the client."""
        _ = self.client
        return await self._clients[self._client].answer(name, ask, clock, newer_than=clock.monotonic() - seconds)

    async def patiently(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what some work with a patient client returns: however long it takes, while the primary lives and is the same.

        Raises StoreUnreachable when it does not.
        """
        primary, task = await self.client.primary, asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=PATIENCE_SECONDS))[0]:
                with self.wrapped():
                    await self.client.admin.command("ping")
                if await self.client.primary != primary:
                    raise StoreUnreachable(f"MongoDB store {self.store} has another primary now.", store=self.store)
            return task.result()
        finally:
            if not task.done():
                task.add_done_callback(_looked_at)
                task.cancel()
                await asyncio.wait({task}, timeout=PATIENCE_SECONDS)  # it may wish to close what answers no more

    def database(self, name: str) -> AsyncDatabase[Document]:
        return self.client[name]

    def collection(self, name: str) -> AsyncCollection[Document]:
        """Return a collection by ``database.collection``: majority reads from the primary, majority and journaled writes."""
        database, _, rest = name.partition(".")
        return self.client[database].get_collection(
            rest,
            codec_options=OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", j=True, wtimeout=SOCKET_MILLISECONDS),
        )

    @contextmanager
    def wrapped(self) -> Iterator[None]:
        """Count the requests made inside for :meth:`asked`, and turn errors into ours."""
        before = _ASKING.get()
        _ASKING.set(self._asked)
        try:
            with wrapped(self.store):
                yield
        finally:
            _ASKING.set(before)

    async def close(self) -> None:
        if not self._clients:
            return
        clients, self._clients = self._clients, {}
        shared = clients[self._client]
        shared.users -= 1
        if not shared.users:
            del clients[self._client]
            closing = asyncio.create_task(shared.close())
            closing.add_done_callback(_looked_at)
            await asyncio.wait({closing}, timeout=PATIENCE_SECONDS)  # it takes leave of a server that may answer no more


def u64(stamp: Timestamp) -> int:
    """Return a cluster time as one number."""
    return (stamp.time << 32) | stamp.inc


@contextmanager
def wrapped(store: str) -> Iterator[None]:
    """Turn pymongo's errors into StoreRefused, StoreUnreachable or HistoryLost."""
    try:
        yield
    except OperationFailure as error:
        raise _ours(store, error) from error
    except (AutoReconnect, ConnectionFailure, NetworkTimeout, ExecutionTimeout, OSError) as error:
        raise StoreUnreachable(f"MongoDB store {store} does not answer.", store=store, remedy="Check that it runs.") from error
    except (PyMongoError, BSONError, OverflowError) as error:
        raise StoreRefused(
            f"MongoDB store {store} refused: {type(error).__name__}.", store=store, remedy="Compare the pipeline with the store."
        ) from error


def _ours(store: str, error: OperationFailure) -> StoreRefused | StoreUnreachable | HistoryLost:
    code = error.code or 0
    name = (error.details or {}).get("codeName", f"code {code}")
    refusals = {
        AUTHENTICATION: ("refused the user or the password.", "Correct them in the store's uri."),
        RIGHT: (f"refused: the user lacks a right ({name}).", "Grant it read on the database."),
        TOO_LARGE: ("refused: a change is larger than 16 MiB.", "Turn off pre- or post-images of such documents, or split them."),
        NO_REPLICA_SET: ("has no change streams: it is no replica set.", "Start mongod with --replSet, and initiate it."),
    }
    for codes, (message, remedy) in refusals.items():
        if code in codes:
            return StoreRefused(f"MongoDB store {store} {message}", store=store, remedy=remedy)
    if code in HISTORY:
        return HistoryLost(
            f"The change stream's position lies outside the oplog of store {store} ({name}).",
            remedy="A sweep covers what was missed.",
        )
    if code in AWAY or error.timeout or error.has_error_label("RetryableWriteError"):
        return StoreUnreachable(f"MongoDB store {store} cannot answer now ({name}).", store=store, remedy="Wait for its primary.")
    return StoreRefused(f"MongoDB store {store} refused: {name}.", store=store, remedy="Compare the pipeline with the store.")
