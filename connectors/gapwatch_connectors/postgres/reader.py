"""Reads rows of one table on the primary: by key, all of them in key order, and what the catalogue says."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from psycopg import sql

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import KeyMisfit, StoreError, StoreRefused
from gapwatch.model.pipeline import FieldType, KeyType, PipelineSpec
from gapwatch.ports import ABSENT, ColumnInfo, DatasetInfo, Key, Read, ScanChunk, StoredRecord
from gapwatch_connectors.postgres.connection import Connection, Connections

_CATALOGUE = """
SELECT c.oid, pg_relation_filenode(c.oid) AS filenode, c.relreplident AS identity,
       (SELECT array_agg(a.attname ORDER BY array_position(i.indkey::int2[], a.attnum))
          FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
         WHERE i.indrelid = c.oid AND i.indisprimary) AS primary_key
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
_COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type_name, a.attstorage::text AS storage, a.attnotnull,
       CASE WHEN a.atttypid = 'numeric'::regtype AND a.atttypmod > 4 THEN ((a.atttypmod - 4) >> 16) & 65535 END AS precision,
       CASE WHEN a.atttypid = 'numeric'::regtype AND a.atttypmod > 4 THEN (a.atttypmod - 4) & 65535 END AS scale
  FROM pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_ARRAYS = {
    KeyType.INT: "numeric[]",
    KeyType.TEXT: "text[]",
    KeyType.UUID: "uuid[]",
    KeyType.OBJECTID: "text[]",
    KeyType.DECIMAL: "numeric[]",
    KeyType.BYTES: "bytea[]",
}


class PostgresReader:
    """Implements :class:`gapwatch.ports.DatasetReader` for a pipeline's source table."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._store = pipeline.source.store
        self._table = pipeline.source.table
        self._schema, _, self._name = pipeline.source.table.partition(".")
        self._codec = KeyCodec(pipeline.source.key)
        self._connections = Connections(self._store, url)
        self._columns: tuple[str, ...] | None = None
        if all(field.type is not FieldType.INFERRED for field in pipeline.fields):
            self._columns = CompiledMapping(pipeline).source_columns
        self._keys = tuple(column.path for column in pipeline.source.key)
        self._types = tuple(column.type for column in pipeline.source.key)

    @property
    def _relation(self) -> sql.Composable:
        return sql.Identifier(self._schema, self._name)

    async def ping(self) -> None:
        async with self._connections.connection() as connection:
            await _primary(connection, self._store)

    async def clock_offset_ms(self) -> int:
        async with self._connections.connection() as connection:
            before = time.time()  # noqa: TID251 - the measurement is of this machine's clock
            row = await _one(connection, "SELECT extract(epoch FROM clock_timestamp()) AS now")
            after = time.time()  # noqa: TID251
        return int((float(row["now"]) - (before + after) / 2) * 1000)

    async def close(self) -> None:
        await self._connections.close()

    async def describe(self) -> DatasetInfo:
        async with self._connections.connection() as connection:
            cursor = await connection.execute(_CATALOGUE, (self._schema, self._name))
            found = await cursor.fetchone()
            if found is None:
                raise StoreRefused(
                    f"There is no table {self._table}.",
                    store=self._store,
                    remedy="Create it, correct its name in the pipeline, or grant USAGE on its schema.",
                )
            columns = await (await connection.execute(_COLUMNS, (found["oid"],))).fetchall()
        identity = found["identity"]
        return DatasetInfo(
            identity=f"{found['oid']}/{found['filenode']}",
            columns=tuple(
                ColumnInfo(
                    name=column["name"],
                    type_name=column["type_name"],
                    storage=column["storage"],
                    scale=column["scale"],
                    precision=column["precision"],
                    nullable=not column["attnotnull"],
                )
                for column in columns
            ),
            primary_key=tuple(found["primary_key"] or ()),
            replica_identity=identity.decode() if isinstance(identity, bytes) else str(identity),
        )

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        wanted = list(keys)
        if not wanted:
            return {}
        decoded = [self._codec.decode(key) for key in wanted]
        condition, parameters = self._condition(decoded)
        query = sql.SQL(
            'SELECT {columns}, t.xmin::text AS "gapwatch xmin", t.ctid::text AS "gapwatch ctid" FROM {table} t WHERE {condition}'
        )
        async with self._connections.connection() as connection:
            await _primary(connection, self._store)
            cursor = await connection.execute(
                query.format(columns=self._selected(), table=self._relation, condition=condition), parameters
            )
            rows = await cursor.fetchall()
        found: dict[Key, list[StoredRecord]] = {}
        for row in rows:
            record = self._record(row)
            found.setdefault(record.key, []).append(record)
        return {key: _read(found.get(key, [])) for key in wanted}

    def _condition(self, keys: Sequence[tuple[Any, ...]]) -> tuple[sql.Composable, list[Any]]:
        """Return a condition that an index on the key can serve, and its parameters: one array per key column."""
        columns = list(zip(*keys, strict=True))
        arrays: list[Any] = [list(column) for column in columns]
        if len(self._keys) == 1:
            cast = sql.SQL(self._cast(0))
            return sql.SQL("t.{} = ANY (%s::{})").format(sql.Identifier(self._keys[0]), cast), arrays
        names = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in self._keys)
        casts = sql.SQL(", ").join(sql.SQL("%s::" + self._cast(number)) for number in range(len(self._keys)))
        return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(names, casts), arrays

    def _cast(self, number: int) -> str:
        kind = self._types[number]
        # Integer columns are compared as bigint, so that their index serves; what does not fit bigint cannot be in one.
        return "bigint[]" if kind is KeyType.INT else _ARRAYS[kind]

    def _selected(self, *, content: bool = True) -> sql.Composable:
        if content and self._columns is None:
            return sql.SQL("t.*")
        names = self._columns if content and self._columns is not None else self._keys
        return sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in names)

    def _record(self, row: dict[str, Any]) -> StoredRecord:
        xmin, ctid = row.pop("gapwatch xmin", None), row.pop("gapwatch ctid", None)
        try:
            key = self._codec.encode([row[name] for name in self._keys])
        except KeyMisfit as error:
            raise StoreRefused(
                f"A row of {self._table} has a key that does not fit: {error.message}",
                store=self._store,
                remedy="Correct the type of the pipeline's key.",
            ) from error
        return StoredRecord(key=key, fields=row, revision=f"{xmin}/{ctid}" if xmin is not None else None)

    def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = 10_000,
    ) -> AsyncIterator[ScanChunk]:
        return self._scan(content, cursor, lower, upper, chunk)

    async def _scan(
        self, content: bool, cursor: Any, lower: Key | None, upper: Key | None, chunk: int
    ) -> AsyncIterator[ScanChunk]:
        """Read page by page after the last key, each page one short statement."""
        identity = (await self.describe()).identity
        after = cursor
        while True:
            try:
                rows = await self._page(content, after, chunk)
            except StoreError:
                yield ScanChunk(records=(), cursor=after, identity=identity, complete=False)
                return
            records = [self._record(row) for row in rows]
            if rows:
                after = [rows[-1][name] for name in self._keys]
            kept = [r for r in records if (lower is None or r.key >= lower) and (upper is None or r.key < upper)]
            yield ScanChunk(records=kept, cursor=after, identity=identity)
            if len(rows) < chunk:
                return

    async def _page(self, content: bool, after: Sequence[Any] | None, chunk: int) -> list[dict[str, Any]]:
        order = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in self._keys)
        condition: sql.Composable = sql.SQL("true")
        if after is not None:
            condition = sql.SQL("({}) > ({})").format(order, sql.SQL(", ").join([sql.Placeholder()] * len(self._keys)))
        query = sql.SQL("SELECT {columns} FROM {table} t WHERE {condition} ORDER BY {order} LIMIT {limit}").format(
            columns=self._selected(content=content),
            table=self._relation,
            condition=condition,
            order=order,
            limit=sql.Literal(chunk),
        )
        async with self._connections.connection() as connection:
            return await (await connection.execute(query, list(after) if after is not None else None)).fetchall()

    async def is_empty(self) -> bool:
        query = sql.SQL("SELECT NOT EXISTS (SELECT 1 FROM {}) AS empty").format(self._relation)
        async with self._connections.connection() as connection:
            return bool((await _one(connection, query))["empty"])


async def _primary(connection: Connection, store: str) -> None:
    """Refuse a standby: what it lacks may be lag."""
    if (await _one(connection, "SELECT pg_is_in_recovery() AS standby"))["standby"]:
        raise StoreRefused("The source is a standby.", store=store, remedy="Point the store's dsn at the primary.")


async def _one(connection: Connection, query: Any) -> dict[str, Any]:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return dict(row)


def _read(records: Sequence[StoredRecord]) -> Read | tuple[StoredRecord, ...]:
    if not records:
        return ABSENT
    return records[0] if len(records) == 1 else tuple(records)
