"""Connections to MongoDB: driver errors become ours, once, and never with the password in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidURI,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern

from gapwatch.errors import HistoryLost, StoreRefused, StoreUnreachable

Document = dict[str, Any]
SELECTION_MILLISECONDS = 5_000
SOCKET_MILLISECONDS = 20_000
AUTHENTICATION = frozenset({8000, 18})
RIGHT = frozenset({13})
# Where a position lies outside the oplog, or the stream cannot go on: by code, never by text.
HISTORY = frozenset({280, 286, 136})
# Shutting down, stepping down, not primary …: the server says that it cannot now.
AWAY = frozenset({6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 43, 237, 234, 50})


def client(uri: str) -> AsyncMongoClient[Document]:
    """Return a client that reads from the primary and gives up within seconds; raises StoreRefused for a wrong address."""
    try:
        return AsyncMongoClient(
            uri,
            serverSelectionTimeoutMS=SELECTION_MILLISECONDS,
            connectTimeoutMS=SELECTION_MILLISECONDS,
            socketTimeoutMS=SOCKET_MILLISECONDS,
            tz_aware=True,
            retryReads=True,
            retryWrites=True,
            appname="gapwatch",
        )
    except (InvalidURI, ConfigurationError) as error:
        raise StoreRefused("The address of the MongoDB store is wrong.", remedy="Correct the store's uri.") from error


def collection(mongo: AsyncMongoClient[Document], name: str) -> AsyncCollection[Document]:
    """Return a collection by ``database.collection``: majority reads from the primary, majority and journaled writes."""
    database, _, rest = name.partition(".")
    options: CodecOptions[Document] = CodecOptions(tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO)
    return mongo[database].get_collection(
        rest,
        codec_options=options,
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern("majority"),
        write_concern=WriteConcern("majority", j=True),
    )


@contextmanager
def wrapped(store: str) -> Iterator[None]:
    """Turn pymongo's errors into StoreRefused, StoreUnreachable or HistoryLost."""
    try:
        yield
    except OperationFailure as error:
        raise _ours(store, error) from error
    except (AutoReconnect, ConnectionFailure, NetworkTimeout, ExecutionTimeout) as error:
        raise StoreUnreachable(f"MongoDB store {store} does not answer.", store=store, remedy="Check that it runs.") from error
    except PyMongoError as error:
        raise StoreRefused(f"MongoDB store {store} refused: {type(error).__name__}.", store=store) from error


def _ours(store: str, error: OperationFailure) -> StoreRefused | StoreUnreachable | HistoryLost:
    code = error.code or 0
    name = (error.details or {}).get("codeName", f"code {code}")
    if code in AUTHENTICATION:
        return StoreRefused(
            f"MongoDB store {store} refused the user or the password.", store=store, remedy="Correct them in the store's uri."
        )
    if code in RIGHT:
        return StoreRefused(
            f"MongoDB store {store} refused: the user lacks a right ({name}).",
            store=store,
            remedy="Grant it read on the database.",
        )
    if code in HISTORY:
        return HistoryLost(
            f"The change stream's position lies outside the oplog of store {store} ({name}).",
            remedy="A sweep covers what was missed.",
        )
    if code in AWAY or error.timeout or error.has_error_label("RetryableWriteError"):
        return StoreUnreachable(f"MongoDB store {store} cannot answer now ({name}).", store=store, remedy="Wait for its primary.")
    return StoreRefused(f"MongoDB store {store} refused: {name}.", store=store)
