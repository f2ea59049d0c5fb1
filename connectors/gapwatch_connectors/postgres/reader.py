"""Reads rows of one table on the primary: by key, all of them in key order, and what the catalogue says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from psycopg import sql
from psycopg.rows import tuple_row

from gapwatch.clock import SystemClock
from gapwatch.core.counting import read_beside
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import KeyMisfit, StoreError, StoreRefused
from gapwatch.model.pipeline import FieldType, KeyType, PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.ports import (
    ABSENT,
    Clock,
    ColumnInfo,
    ContentChunk,
    DatasetInfo,
    Key,
    KeyChunk,
    Read,
    ScanChunk,
    StoredRecord,
    Unread,
)
from gapwatch.scans import keys_of, no_changed_at
from gapwatch_connectors.postgres.bulk import BulkColumn, bulk_column
from gapwatch_connectors.postgres.catalogue import Table, read_identity, read_table
from gapwatch_connectors.postgres.connection import PAGE_SECONDS, Connection, Connections
from gapwatch_connectors.postgres.contents import scan_contents
from gapwatch_connectors.postgres.lookups import Lookup, Never, lookups_of, plain
from gapwatch_connectors.postgres.pages import Pages, Selection, idents, in_order
from gapwatch_connectors.postgres.values import BINARY

REVISION: Final = sql.SQL("concat(t.xmin, '/', t.tableoid, '/', t.ctid)")
BLOCK_BYTES: Final = 8_192
TEXTS_PER_PAGE: Final = 20_000  # as long as an index takes them they fill some fifty MiB


class PostgresReader:
    """Implements :class:`gapwatch.ports.DatasetReader` for a pipeline's source table.

    Rows outside the source's ``where`` are read as well: which count is judged by whoever reads, on the columns that are read
    beside the key also in a scan of keys. A scan's cursor is a list of texts, one a key column.
    """

    def __init__(
        self, pipeline: PipelineSpec, url: str, *, clock: Clock | None = None, connections: Connections | None = None
    ) -> None:
        self._store = pipeline.source.store
        self._name = pipeline.source.table
        self._schema, _, self._relation_name = pipeline.source.table.partition(".")
        self._key = pipeline.source.key
        self._codec = KeyCodec(pipeline.source.key)
        self._names = tuple(column.path for column in pipeline.source.key)
        self._beside = read_beside(pipeline, Side.EXPECTED)
        self._changed_at = pipeline.source.changed_at
        self._connections = connections or Connections(self._store, url)
        self._clock = clock or SystemClock()
        self._columns: tuple[str, ...] | None = None
        if all(field.type is not FieldType.INFERRED for field in pipeline.fields):
            self._columns = CompiledMapping(pipeline).source_columns
        self._table: Table | None = None

    @property
    def knows_its_columns(self) -> bool:
        """Whether the pipeline is resolved, so that content is read column by column rather than as it comes."""
        return self._columns is not None

    async def ping(self) -> None:
        async with self._connections.connection() as connection:
            await _primary(connection, self._store)

    async def clock_offset_ms(self) -> int:
        async with self._connections.connection() as connection:
            before = self._clock.now_ms()
            row = await _one(connection, "SELECT extract(epoch FROM clock_timestamp()) * 1000 AS now")
            after = self._clock.now_ms()
        return round(float(row["now"]) - (before + after) / 2)

    async def close(self) -> None:
        await self._connections.close()

    async def in_key_order(self) -> bool:
        """Whether the columns themselves are such keys: of one kept as text, rows come in the order of the texts."""
        async with self._connections.connection() as connection:
            table = await self._read_table(connection)
        return in_order(self._key, self._lookups(table))

    async def describe(self) -> DatasetInfo:
        async with self._connections.connection() as connection:
            return dataset_info(await self._read_table(connection))

    async def _read_table(self, connection: Connection) -> Table:
        self._table = await read_table(connection, self._store, self._name)
        return self._table

    # by key

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        if not keys:
            return {}
        async with self._connections.connection() as connection:
            return await self.fetch_on(connection, keys)

    async def fetch_on(self, connection: Connection, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        """Do as :meth:`fetch`, in what the connection sees."""
        wanted = list(keys)
        await _primary(connection, self._store)
        table = self._table or await self._read_table(connection)
        lookups = self._lookups(table)
        parameters = self._parameters(wanted, lookups)
        names = self._selected(table, content=True)
        rows: list[tuple[Any, ...]] = []
        if parameters[0]:
            rows = await self._rows(connection, self._by_key(names, lookups), parameters)
        found: dict[Key, list[StoredRecord]] = {}
        misfit = ""
        for row in rows:
            try:
                record = self._record(dict(zip(names, row, strict=False)), row[-1])  # the revision comes after the names
            except KeyMisfit as error:
                misfit = f"a row was found whose key does not fit: {error.message}"
                continue
            found.setdefault(record.key, []).append(record)
        missing: Read = Unread(misfit) if misfit else ABSENT
        return {key: _read(found.get(key, ()), missing) for key in wanted}

    def _parameters(self, keys: Sequence[Key], lookups: Sequence[Lookup]) -> list[list[Any]]:
        """Return one array a key column; keys that the columns cannot hold are left out: they are absent."""
        if len(lookups) == 1:
            convert, decode = lookups[0].convert, self._codec.decode
            return [[value for key in keys if (value := convert(decode(key)[0])) is not Never]]
        columns: list[list[Any]] = [[] for _ in lookups]
        for key in keys:
            values = [lookup.convert(value) for lookup, value in zip(lookups, self._codec.decode(key), strict=True)]
            if Never in values:
                continue
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return columns

    def _by_key(self, names: Sequence[str], lookups: Sequence[Lookup]) -> sql.Composed:
        if len(lookups) == 1:
            condition = sql.SQL("{} = ANY (%s::{})").format(lookups[0].left, _array(lookups[0]))
        else:
            left = sql.SQL(", ").join([lookup.left for lookup in lookups])
            arrays = sql.SQL(", ").join([sql.SQL("%s::{}").format(_array(lookup)) for lookup in lookups])
            condition = sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(left, arrays)
        return self._select([*idents(names), REVISION], [condition])

    def _lookups(self, table: Table) -> tuple[Lookup, ...]:
        return lookups_of(self._key, table.columns, store=self._store, table=self._name)

    def _selected(self, table: Table, *, content: bool) -> tuple[str, ...]:
        if not content:
            return tuple(dict.fromkeys([*self._names, *self._beside]))
        return tuple(table.columns) if self._columns is None else self._columns

    def _select(self, columns: Sequence[sql.Composable], conditions: Sequence[sql.Composable]) -> sql.Composed:
        query = sql.SQL("SELECT {} FROM {} t").format(
            sql.SQL(", ").join(columns), sql.Identifier(self._schema, self._relation_name)
        )
        if conditions:
            query += sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions)
        return query

    async def _rows(
        self, connection: Connection, query: sql.Composed, parameters: Sequence[Any], *, binary: bool = False
    ) -> list[tuple[Any, ...]]:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(query, parameters, binary=binary)
            return await cursor.fetchall()

    async def _page(
        self, query: sql.Composed, parameters: Sequence[Any], selection: Selection, table: Table
    ) -> list[tuple[Any, ...]]:
        async with self._connections.connection(seconds=PAGE_SECONDS) as connection:
            await _primary(connection, self._store)
            async with connection.cursor(row_factory=tuple_row) as cursor:
                for name, loader in selection.loaders.items():
                    cursor.adapters.register_loader(name, loader)
                await cursor.execute(query, parameters, binary=selection.binary)
                rows = await cursor.fetchall()
            await self._same(connection, table)
        return rows

    def _record(self, fields: dict[str, Any], revision: str | None = None) -> StoredRecord:
        """Raises KeyMisfit."""
        return StoredRecord(key=self._codec.encode([fields[name] for name in self._names]), fields=fields, revision=revision)

    # all of it

    async def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = 10_000,
    ) -> AsyncIterator[ScanChunk]:
        """Read page by page after the last key, each page one short statement of its own."""
        async with self._connections.connection() as connection:
            table = await self._read_table(connection)
        names = self._selected(table, content=content)
        binary = all(table.columns[name].internal in BINARY for name in names if name in table.columns)
        pages = Pages(self, table, Selection(columns=idents(names), binary=binary), lower=lower, upper=upper, chunk=chunk)
        after: list[str] | None = cursor
        while True:
            try:
                rows = await pages.read(after)
                records = [self._record(dict(zip(names, row, strict=True))) for row in rows]
            except (StoreError, KeyMisfit) as error:
                yield ScanChunk(records=(), cursor=after, identity=table.identity, complete=False, reason=error.message)
                return
            if records:
                after = [plain(records[-1].fields[name]) for name in self._names]
            kept = [r for r in records if (lower is None or r.key >= lower) and (upper is None or r.key < upper)]
            yield ScanChunk(records=kept, cursor=after, identity=table.identity)
            if len(records) < chunk:
                break
        reason = await pages.left_out()
        if reason:
            yield ScanChunk(records=(), cursor=after, identity=table.identity, complete=False, reason=reason)

    def scan_contents(
        self, mapping: CompiledMapping, side: Side, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 5_000
    ) -> AsyncGenerator[ContentChunk]:
        return scan_contents(self, mapping, side, lower=lower, upper=upper, chunk=chunk)

    async def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        """Read keys in the order of ``changed_at``, then of the key; the cursor is both, as texts. An index on it serves."""
        name = self._changed_at
        if not name:
            raise no_changed_at(self._store, self._name)
        async with self._connections.connection() as connection:
            table = await self._read_table(connection)
        begin = _begin(table, name, since, store=self._store)
        self._lookups(table)
        after: list[str] | None = cursor
        while True:
            try:
                rows = await self._changed(table, name, begin, after, chunk)
                records = [self._record(dict(zip(self._names, values, strict=True))) for values, _ in rows]
            except (StoreError, KeyMisfit) as error:
                yield ScanChunk(records=(), cursor=after, identity=table.identity, complete=False, reason=error.message)
                return
            if rows:
                values, at = rows[-1]
                after = [at, *(plain(value) for value in values)]
            yield ScanChunk(records=records, cursor=after, identity=table.identity)
            if len(rows) < chunk:
                return

    async def _changed(
        self, table: Table, name: str, begin: sql.Composed, after: Sequence[str] | None, chunk: int
    ) -> list[tuple[tuple[Any, ...], str]]:
        at, keys = sql.SQL("t.{}").format(sql.Identifier(name)), idents(self._names)
        conditions: list[sql.Composable] = [sql.SQL("{} >= {}").format(at, begin)]
        conditions += [sql.SQL("{} IS NOT NULL").format(key) for key in keys]
        order = sql.SQL(", ").join([at, *keys])
        if after is not None:
            casts = [sql.SQL("%s::{}").format(sql.SQL(table.columns[one].bare)) for one in (name, *self._names)]
            conditions.append(sql.SQL("({}) > ({})").format(order, sql.SQL(", ").join(casts)))
        query = self._select([*keys, sql.SQL("{}::text").format(at)], conditions)
        query += sql.SQL(" ORDER BY {} LIMIT {}").format(order, sql.Literal(chunk))
        async with self._connections.connection(seconds=PAGE_SECONDS) as connection:
            await _primary(connection, self._store)
            rows = await self._rows(connection, query, list(after or ()))
            await self._same(connection, table)
        return [(row[:-1], row[-1]) for row in rows]

    async def scan_keys(
        self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000
    ) -> AsyncIterator[KeyChunk]:
        """Read keys in bulk where the server can hand them over as one value a page, else one by one."""
        async with self._connections.connection() as connection:
            table = await self._read_table(connection)
        column = bulk_column(self._key, table, whole=lower is None and upper is None)
        if column is None:
            async for found in keys_of(self.scan(content=False, lower=lower, upper=upper, chunk=min(chunk, 10_000))):
                yield found
            return
        after: Any = column.after(self._codec.decode(lower)[0]) if lower is not None else None
        last = column.after(self._codec.decode(upper)[0]) if upper is not None else None
        if upper is not None and last is None:
            yield KeyChunk(identity=table.identity)  # no key is below
            return
        size = min(chunk, TEXTS_PER_PAGE) if column.type is KeyType.TEXT else chunk
        while True:
            try:
                page = await self._bulk(table, column, after, last, size)
            except StoreError as error:
                yield KeyChunk(identity=table.identity, complete=False, reason=error.message)
                return
            yield page
            if len(page) < size:
                return
            after = column.cursor(page)

    async def _bulk(self, table: Table, column: BulkColumn, after: Any, last: Any, chunk: int) -> KeyChunk:
        """Return the keys of one page: those above `after`, up to `last`."""
        name = sql.SQL("t.{}").format(sql.Identifier(column.name))
        ends = [(sign, value) for sign, value in ((">", after), ("<=", last)) if value is not None]
        conditions = [sql.SQL("{} {} %s").format(name, sql.SQL(sign)) for sign, _ in ends]
        inner = self._select([sql.SQL("{} AS key").format(name)], conditions)
        inner += sql.SQL(" ORDER BY {} LIMIT {}").format(name, sql.Literal(chunk))
        query = sql.SQL("SELECT string_agg({}, {}) FROM ({}) s").format(sql.SQL(column.form), sql.Literal(column.end), inner)
        async with self._connections.connection(seconds=PAGE_SECONDS) as connection:
            await _primary(connection, self._store)
            found = await self._rows(connection, query, [value for _, value in ends], binary=True)
            await self._same(connection, table)
        return column.chunk(table.identity, found[0][0])

    async def _same(self, connection: Connection, table: Table) -> None:
        """Raise StoreRefused where the table is no longer the one whose scan began."""
        if await read_identity(connection, self._name) != table.identity:
            raise StoreRefused(
                f"{self._name} was truncated, rewritten or created anew during the scan.",
                store=self._store,
                remedy="Scan it again.",
            )

    async def sample_keys(self, count: int) -> Sequence[Key]:
        """Return keys of rows in blocks that the server takes at random; of a small table, all there are."""
        names, table = idents(self._names), sql.Identifier(self._schema, self._relation_name)
        size = sql.SQL("SELECT sum(pg_relation_size(relid)) AS bytes FROM pg_partition_tree({}::regclass)")
        async with self._connections.connection(seconds=PAGE_SECONDS) as connection:
            held = await _one(connection, size.format(sql.Literal(table.as_string())))
            share = min(100.0, 100 * count * BLOCK_BYTES / max(1, int(held["bytes"] or 0)))  # a block for each key
            query = sql.SQL("SELECT {} FROM {} t TABLESAMPLE SYSTEM ({}) WHERE {}").format(
                sql.SQL(", ").join(names),
                table,
                sql.Literal(share),
                sql.SQL(" AND ").join([sql.SQL("{} IS NOT NULL").format(name) for name in names]),
            )
            rows = await self._rows(connection, query, [])
        found = []
        for row in rows[:: max(1, len(rows) // count)]:
            try:
                found.append(self._codec.encode(row))
            except KeyMisfit:
                continue
        return found

    async def is_empty(self) -> bool:
        query = sql.SQL("SELECT NOT EXISTS ({}) AS empty").format(self._select([sql.SQL("1")], []))
        async with self._connections.connection() as connection:
            await _primary(connection, self._store)
            return bool((await _one(connection, query))["empty"])

    async def estimate(self) -> int:
        query = sql.SQL(
            "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint AS rows FROM pg_partition_tree({}::regclass) p"
            " JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf"
        ).format(sql.Literal(sql.Identifier(self._schema, self._relation_name).as_string()))
        async with self._connections.connection() as connection:
            return int((await _one(connection, query))["rows"])


def _begin(table: Table, name: str, since: datetime, *, store: str) -> sql.Composed:
    """Return the earliest value of a column of times, in UTC where it has no zone. Raises StoreRefused for other columns."""
    column = table.columns.get(name)
    if column is None or column.internal not in ("timestamptz", "timestamp", "date"):
        said = f"There is no column {name}." if column is None else f"Column {name} is of type {column.type_name}."
        raise StoreRefused(
            f"{said} A lookback needs the time of the last write.", store=store, remedy="Correct source.changed_at."
        )
    time = sql.SQL("{}::timestamptz").format(sql.Literal(since.isoformat()))
    if column.internal == "timestamptz":
        return time
    return sql.SQL("({} AT TIME ZONE 'UTC')::{}").format(time, sql.SQL(column.internal))


def _array(lookup: Lookup) -> sql.Composable:
    return sql.SQL(f"{lookup.cast}[]")  # a type's name as the catalogue quotes it


async def _primary(connection: Connection, store: str) -> None:
    """Refuse a standby: what it lacks may be lag."""
    refuse_standby(store, standby=(await _one(connection, "SELECT pg_is_in_recovery() AS standby"))["standby"])


def refuse_standby(store: str, *, standby: bool) -> None:
    """Raises StoreRefused for one."""
    if standby:
        raise StoreRefused("The source is a standby.", store=store, remedy="Point the store's dsn at the primary.")


async def _one(connection: Connection, query: Any) -> dict[str, Any]:
    row = await (await connection.execute(query, [])).fetchone()
    assert row is not None
    return dict(row)


def _read(records: Sequence[StoredRecord], missing: Read) -> Read | tuple[StoredRecord, ...]:
    if not records:
        return missing
    return records[0] if len(records) == 1 else tuple(records)


def dataset_info(table: Table) -> DatasetInfo:
    """Return what is resolved against, from what the catalogue says."""
    return DatasetInfo(
        identity=table.identity,
        unique=table.unique,
        columns=tuple(
            ColumnInfo(
                name=column.name,
                type_name=column.type_name,
                storage=column.storage,
                scale=column.scale,
                precision=column.precision,
                nullable=not column.required,
            )
            for column in table.columns.values()
        ),
        primary_key=table.primary_key,
        replica_identity=table.replica_identity,
    )
