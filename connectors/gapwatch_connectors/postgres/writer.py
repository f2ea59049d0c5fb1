"""Guarded writes to a table: insert where no row has the key, update or delete exactly the row version that was read.

A row version is told by ``xmin``, table and place: any write since, by whomever, makes the guard fail. Values travel as text and
are read by the column's own type, so that an enum, a domain or a range is written like a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import errors, sql

from gapwatch.core.keys import KeyCodec
from gapwatch.core.temporal import NEGATIVE_INFINITY
from gapwatch.core.values import JsonText
from gapwatch.errors import RecordError, StoreError, StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec
from gapwatch.ports import Key, StoredRecord, WriteItem, WriteResult
from gapwatch_connectors.postgres.catalogue import Table, read_table
from gapwatch_connectors.postgres.connection import PAGE_SECONDS, Connection, Connections
from gapwatch_connectors.postgres.lookups import Lookup, Never, lookups_of, plain
from gapwatch_connectors.postgres.reader import REVISION

THERE: Final = "a row with this key is there by now"
CHANGED: Final = "the row is not what was read any more"
UNANSWERED: Final = "the store did not answer: it may have been written"
REASON_MAX: Final = 300
Row = Mapping[str, Any]
# Operational to the driver, but of one row: somebody holds it, or wrote it at the same moment.
_ONE_ROW: Final = (errors.LockNotAvailable, errors.QueryCanceled, errors.DeadlockDetected, errors.SerializationFailure)
_ADDRESSES: Final = (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)


class PostgresWriter:
    """Implements :class:`gapwatch.ports.TargetWriter` for a target table. Columns that are not mapped are left alone."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._store = pipeline.target.store
        self._name = pipeline.target.collection
        self._schema, _, self._relation = self._name.partition(".")
        self._key = pipeline.target.key
        self._codec = KeyCodec(pipeline.target.key)
        self._fields = {spec.target: spec for spec in pipeline.fields}
        self._placeholder = pipeline.source.feed.placeholder
        self._connections = Connections(self._store, url, read_only=False)

    async def close(self) -> None:
        await self._connections.close()

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        """Return the target's row by column. Raises RecordError where a value is missing, masked or cannot be written."""
        values = self._codec.decode(key)
        made: dict[str, Any] = {column.path: value for column, value in zip(self._key, values, strict=True)}
        for spec in fields:
            if spec.target in made:
                continue
            if spec.source not in row.fields:
                raise RecordError(
                    "field_missing", f"The source row has no column {spec.source}: nothing is written in its place."
                )
            value = row.fields[spec.source]
            if _is_masked(value, self._placeholder):
                raise RecordError("field_masked", f"Column {spec.source} holds Debezium's placeholder: it is not written.")
            text_of(spec, value)
            made[spec.target] = value
        return made

    def kept(self, document: StoredRecord) -> str:
        """Return the row's mapped columns as texts that Postgres reads: it overwrites no others."""
        key = {column.path for column in self._key}
        texts = {
            name: plain(value) if name in key else shown_of(self._fields[name], value)
            for name, value in document.fields.items()
            if name in key or name in self._fields
        }
        return json.dumps(texts, ensure_ascii=False)

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        """Apply each item under its guard, each in a transaction of its own. Raises StoreError when none was answered for."""
        results: list[WriteResult] = []
        try:
            async with self._connections.connection(seconds=PAGE_SECONDS) as connection:
                table = await read_table(connection, self._store, self._name)
                lookups = lookups_of(self._key, table.columns, store=self._store, table=self._name)
                self._unique(table)
                for item in items:
                    result = await self._one(connection, table, lookups, item)
                    results.append(result)
        except StoreError as error:
            if not results or not isinstance(error, StoreUnreachable):
                raise
        return [*results, *(_failed(item.key, UNANSWERED) for item in items[len(results) :])]

    def _unique(self, table: Table) -> Sequence[str]:
        """Return columns that are unique. Raises StoreRefused where nothing keeps a second row with a key out."""
        names = [column.path for column in self._key]
        found = next((unique for unique in table.unique if unique <= set(names)), None)
        if found is None:
            shown = ", ".join(names)
            remedy = f"CREATE UNIQUE INDEX ON {self._name} ({shown}): a repair must not make a second row."
            raise StoreRefused(f"No unique index of {self._name} is on ({shown}).", store=self._store, remedy=remedy)
        return sorted(found)

    async def _one(self, connection: Connection, table: Table, lookups: Sequence[Lookup], item: WriteItem) -> WriteResult:
        if not isinstance(item.replaces, StoredRecord):
            assert item.document is not None, "what is not there cannot be deleted"
            statement, parameters = self._insert(table, item.document)
        else:
            found = self._where(item, lookups, item.replaces.revision or "")
            if found is None:
                return WriteResult(key=item.key, outcome="guard_failed", reason=CHANGED)
            condition, guards = found
            statement, parameters = self._change(table, item.document, condition, guards)
        try:
            done = await connection.execute(statement, parameters)
        except _ONE_ROW as error:
            return _failed(item.key, _reason(error))
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            return _failed(item.key, _reason(error))
        if done.rowcount:
            return WriteResult(key=item.key, outcome="written")
        return WriteResult(
            key=item.key, outcome="guard_failed", reason=CHANGED if isinstance(item.replaces, StoredRecord) else THERE
        )

    def _insert(self, table: Table, row: Row) -> tuple[sql.Composed, list[Any]]:
        names = [name for name in row if not table.columns[name].generated]
        statement = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT ({}) DO NOTHING").format(
            self._table,
            _list(sql.Identifier(name) for name in names),
            _list(sql.Placeholder() for _ in names),
            _list(sql.Identifier(name) for name in self._unique(table)),
        )
        return statement, self._texts(row, names)

    def _change(
        self, table: Table, row: Row | None, condition: sql.Composable, guards: Sequence[Any]
    ) -> tuple[sql.Composed, list[Any]]:
        key = {column.path for column in self._key}
        if row is None:
            return sql.SQL("DELETE FROM {} t WHERE {}").format(self._table, condition), [*guards]
        names = [name for name in row if name not in key and not table.columns[name].generated]
        changes = _list(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder()) for name in names)
        statement = sql.SQL("UPDATE {} t SET {} WHERE {}").format(self._table, changes, condition)
        return statement, [*self._texts(row, names), *guards]

    def _texts(self, row: Row, names: Sequence[str]) -> list[str | None]:
        key = {column.path for column in self._key}
        return [plain(row[name]) if name in key else text_of(self._fields[name], row[name]) for name in names]

    def _where(self, item: WriteItem, lookups: Sequence[Lookup], revision: str) -> tuple[sql.Composed, list[Any]] | None:
        """Return what finds the row version that was read; None where no row can have the key."""
        values = [lookup.convert(value) for lookup, value in zip(lookups, self._codec.decode(item.key), strict=True)]
        if Never in values:
            return None
        parts = [sql.SQL("{} = {}::{}").format(one.left, sql.Placeholder(), sql.SQL(one.cast)) for one in lookups]
        guard = sql.SQL("{} = {}").format(REVISION, sql.Placeholder())
        return sql.SQL(" AND ").join([*parts, guard]), [*values, revision]

    @property
    def _table(self) -> sql.Identifier:
        return sql.Identifier(self._schema, self._relation)


def text_of(spec: FieldSpec, value: Any) -> str | None:
    """Return a value of Postgres' driver as Postgres reads it. Raises RecordError where it is not written so."""
    if isinstance(value, Decimal) and spec.type is FieldType.INT and value != value.to_integral_value():
        raise RecordError("unrepresentable", f"{spec.target}: {value} is no whole number, and is not rounded to one.")
    return shown_of(spec, value)


def shown_of(spec: FieldSpec, value: Any) -> str | None:
    """Return a value of Postgres' driver as Postgres reads it, whatever the field's type. Raises RecordError where none does."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return _array(spec, value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, JsonText):
        return value.text
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _era(value) if spec.type in (FieldType.TIMESTAMP, FieldType.DATE) else value
    if isinstance(value, (int, Decimal, UUID, *_ADDRESSES)):
        return str(value)
    raise RecordError("unrepresentable", f"{spec.target}: a value of type {type(value).__name__} cannot be written.")


def _era(text: str) -> str:
    """Return ISO text as Postgres reads it: the year 0 is 1 BC."""
    if text == NEGATIVE_INFINITY or not text.startswith(("-", "0000-")):
        return text  # an infinity, 24:00:00, a year of five digits
    year, _, rest = text.removeprefix("-").partition("-")
    return f"{int(year) + 1:04d}-{rest} BC"


def _array(spec: FieldSpec, values: Sequence[Any]) -> str:
    """Return an array's text; every element is quoted, which means its text as it is."""
    parts = []
    for value in values:
        if isinstance(value, list | tuple):
            parts.append(_array(spec, value))
            continue
        text = shown_of(spec, value)
        parts.append("NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(parts) + "}"


def _is_masked(value: Any, placeholder: str) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_masked(item, placeholder) for item in value)
    return bool(value == placeholder or value == placeholder.encode())


def _list(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _failed(key: Key, reason: str) -> WriteResult:
    return WriteResult(key=key, outcome="failed", reason=reason)


def _reason(error: psycopg.Error) -> str:
    """Return why the server refused: the constraint and the column, never the row's values."""
    diag = error.diag
    if diag.constraint_name:
        return f"{type(error).__name__}: constraint {diag.constraint_name}"[:REASON_MAX]
    if diag.column_name:
        return f"{type(error).__name__}: column {diag.column_name}"[:REASON_MAX]
    return type(error).__name__
