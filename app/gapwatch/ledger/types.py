"""Column types that mean the same on SQLite and Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec
import xxhash
from sqlalchemy import BigInteger, Integer, LargeBinary, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ColumnElement
from sqlalchemy.types import TypeDecorator, TypeEngine

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
WHOLE_BYTES: Final = 24  # of a key that stands in indexes as it is
BEGINNING_BYTES: Final = 16  # of a longer one, before its hash


@lru_cache(maxsize=4_096)  # the rows of one batch share their times
def to_us(time: datetime) -> int:
    """Return an aware time as whole microseconds since the epoch, exactly."""
    assert time.tzinfo is not None, "times are aware"
    return (time - EPOCH) // _MICROSECOND


@lru_cache(maxsize=4_096)
def from_us(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


class UtcTime(TypeDecorator[datetime]):
    """A UTC time as microseconds since the epoch: exact, sortable, and comparable with the database's own clock in SQL."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_us(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_us(int(value))


class Json(TypeDecorator[Any]):
    """JSON in a text column. Not JSONB: that refuses U+0000, which MongoDB keys and documents may hold."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value, enc_hook=str).decode()

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any:
        return None if value is None else msgspec.json.decode(value)


class Words(TypeDecorator[str]):
    """Text that people read. What a database cannot hold (U+0000 on Postgres, lone surrogates) is shown by a sign instead."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return words(value)


def words(value: str | None) -> str | None:
    """Return a text as every database can hold it."""
    if value is None or (value.isascii() and "\x00" not in value):
        return value
    return value.replace("\x00", "\u2400").encode("utf-8", "replace").decode()


def serial() -> TypeEngine[int]:
    """Return the type of a rising number; SQLite counts by itself only in a column declared INTEGER."""
    return BigInteger().with_variant(Integer(), "sqlite")


KeyBytes = LargeBinary


def key_hash(key: bytes) -> bytes:
    return xxhash.xxh3_128_digest(key)


def place_of(key: bytes) -> bytes:
    """Return what indexes hold of a key, as :class:`Place` makes it; no two keys have one.

    Keys that come one after the other are neighbours there: of hashes alone, a transaction of 2,000 keys changed every page.
    A long key ends in its hash, as an index of Postgres holds no long ones.
    """
    return key if len(key) <= WHOLE_BYTES else key[:BEGINNING_BYTES] + key_hash(key)


class Place(ColumnElement[bytes]):
    """SQL for :func:`place_of` of the columns ``key`` and ``key_hash``: indexes that hold it serve who says just the same."""

    inherit_cache = True
    type = KeyBytes()


@compiles(Place)
def _place(_element: Place, compiler: Any, **_more: Any) -> str:
    joined = f"substr(key, 1, {BEGINNING_BYTES}) || key_hash"
    if compiler.dialect.name == "sqlite":
        joined = f"CAST({joined} AS BLOB)"
    return f"(CASE WHEN length(key) <= {WHOLE_BYTES} THEN key ELSE {joined} END)"
