"""How a key is looked up in a column of some type: so that what is not found is proved absent, not merely spelt differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from psycopg import sql

from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch_connectors.postgres.catalogue import Column

_INTS: Final = frozenset({"int2", "int4", "int8"})
_TEXTS: Final = frozenset({"text", "varchar", "bpchar", "name", "citext"})
_INT8_MIN, _INT8_MAX = -(2**63), 2**63 - 1


class Never:
    """A value that no row of the column can have: proved absent without asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """``left`` is compared with parameters of type ``cast``; ``convert`` makes them, or returns ``Never``.

    ``native``: the column's own order and spelling are those of the canonical key, so that an index serves.
    """

    left: sql.Composable
    cast: str
    convert: Callable[[Any], Any]
    native: bool


def lookups_of(key: Sequence[KeyColumn], columns: Mapping[str, Column], *, store: str, table: str) -> tuple[Lookup, ...]:
    """Return one lookup a key column. Raises StoreRefused where a column is missing or cannot hold such keys."""
    found = []
    for column in key:
        known = columns.get(column.path)
        if known is None:
            raise StoreRefused(f"{table} has no key column {column.path}.", store=store, remedy="Correct the pipeline's key.")
        lookup = _lookup(column, known)
        if lookup is None:
            raise StoreRefused(
                f"Key column {column.path} of {table} has the type {known.type_name}, which holds no {column.type.value} keys.",
                store=store,
                remedy="Correct the type of the pipeline's key: keys are never coerced.",
            )
        found.append(lookup)
    return tuple(found)


def _lookup(key: KeyColumn, column: Column) -> Lookup | None:
    own = sql.SQL("t.{}").format(sql.Identifier(column.name))
    internal = column.internal
    if key.type in (KeyType.INT, KeyType.DECIMAL):
        return _number(key.type, own, internal)
    if key.type is KeyType.TEXT:
        if internal in ("uuid", "bytea", "bool", "float4", "float8", "numeric", "oid", *_INTS):
            return None
        native = internal in _TEXTS
        left = own if native else sql.SQL("{}::text").format(own)  # an enum would refuse a label that it does not have
        return Lookup(left=left, cast=column.bare if native else "text", convert=_text, native=native)
    if key.type is KeyType.BYTES:
        return Lookup(left=own, cast="bytea", convert=_same, native=True) if internal == "bytea" else None
    return _identifier(key.type, own, internal)


def _number(kind: KeyType, own: sql.Composable, internal: str) -> Lookup | None:
    if internal in _INTS:
        return Lookup(left=own, cast="bigint", convert=_bigint, native=kind is KeyType.INT)
    if internal == "numeric":
        return Lookup(left=own, cast="numeric", convert=_same, native=kind is KeyType.INT)
    if internal in _TEXTS and kind is KeyType.INT:  # one number has one plain text
        return Lookup(left=own, cast="text", convert=str, native=False)
    return None


def _identifier(kind: KeyType, own: sql.Composable, internal: str) -> Lookup | None:
    """UUIDs and ObjectIds: as text they may be spelt in several ways, so that the column is brought to one."""
    raw = (lambda value: value.bytes) if kind is KeyType.UUID else bytes.fromhex
    if internal == "bytea":
        return Lookup(left=own, cast="bytea", convert=raw, native=True)
    if internal == "uuid" and kind is KeyType.UUID:
        return Lookup(left=own, cast="uuid", convert=_same, native=True)
    if internal not in _TEXTS:
        return None
    text = (lambda value: value.hex) if kind is KeyType.UUID else str
    left = "lower(replace({}::text, '-', ''))" if kind is KeyType.UUID else "lower({}::text)"
    return Lookup(left=sql.SQL(left).format(own), cast="text", convert=text, native=False)


def _same(value: Any) -> Any:
    return value


def _bigint(value: Any) -> Any:
    if isinstance(value, Decimal):
        if value != value.to_integral_value():
            return Never
        value = int(value)
    return value if _INT8_MIN <= value <= _INT8_MAX else Never


def _text(value: str) -> Any:
    """Postgres' text holds neither NUL nor lone surrogates."""
    return Never if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value) else value


def plain(value: Any) -> str:
    """Return a driver value of a key column as text that Postgres reads back: what a cursor of a scan is made of."""
    return "\\x" + bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)
