"""Contents of a table: the mapped columns alone, each in the form that costs least to send and to read.

Whole numbers, texts, booleans and floats come in binary, as a scan of rows has them; times in binary as the numbers that they
are, numbers as their text. Any other type comes as the text that the server writes for it, which the driver's own reader of that
type makes the usual value of: ``concat`` calls the type's output function, where a cast to text may do something else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from psycopg import adapt, pq, sql
from psycopg.abc import Loader
from psycopg.types.numeric import Int4BinaryLoader, Int8BinaryLoader

from gapwatch.core.column_parts import USUAL, UTC_NAMES, Handed, Moments
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep_contents import Keys, PageContents, cut
from gapwatch.core.temporal import INFINITY, MICROS, NEGATIVE_INFINITY
from gapwatch.core.values import Instant
from gapwatch.errors import KeyMisfit, StoreError
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyType
from gapwatch.model.stream import Side
from gapwatch.ports import ContentChunk, Key, KeyChunk
from gapwatch.scans import contents_of, key_chunk
from gapwatch_connectors.postgres.catalogue import Column, Table
from gapwatch_connectors.postgres.connection import Connection
from gapwatch_connectors.postgres.lookups import plain
from gapwatch_connectors.postgres.pages import Pages, Selection, idents
from gapwatch_connectors.postgres.values import BINARY

if TYPE_CHECKING:
    from gapwatch_connectors.postgres.reader import PostgresReader

DAYS_TO_2000: Final = 10_957  # Postgres counts from there
MICROS_TO_2000: Final = DAYS_TO_2000 * 86_400 * MICROS
INFINITE: Final = {2**63 - 1: INFINITY, -(2**63): NEGATIVE_INFINITY}
INTS: Final = frozenset({"int2", "int4", "int8"})
NUMBERS: Final = frozenset({FieldType.INT, FieldType.DECIMAL})
AS_NUMBERS: Final[Mapping[str, type[Loader]]] = {
    "timestamptz": Int8BinaryLoader,
    "timestamp": Int8BinaryLoader,
    "date": Int4BinaryLoader,
}


def _moment(micros: int) -> Instant | str:
    return INFINITE.get(micros) or Instant(micros + MICROS_TO_2000, MICROS)


MOMENT: Final = Handed(usual=_moment, moments=Moments(per_second=MICROS, offset=MICROS_TO_2000))
DAY: Final = Handed(usual=lambda days: days + DAYS_TO_2000, days=DAYS_TO_2000)


def handed(column: Column | None, spec: FieldSpec) -> Handed | None:
    """Return how a field's column is handed over where it is sent in binary, or numbers as text; None: as the server's text."""
    internal = column.internal if column is not None else ""
    if internal in BINARY or (internal == "numeric" and spec.type in NUMBERS):
        return USUAL
    if spec.type is FieldType.TIMESTAMP and (
        internal == "timestamptz" or (internal == "timestamp" and spec.timezone in UTC_NAMES)
    ):
        return MOMENT
    return DAY if spec.type is FieldType.DATE and internal == "date" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentColumns:
    """What is read, and what becomes of it: the key's columns first, then one for each field."""

    selection: Selection
    key_values: Sequence[Callable[[Any], Any] | None]  # what makes the usual value; None: it is one
    whole_numbers: bool
    contents: PageContents

    def usual_key(self, values: Sequence[Any]) -> list[Any]:
        return [value if read is None else read(value) for value, read in zip(values, self.key_values, strict=True)]


async def scan_contents(
    reader: PostgresReader,
    mapping: CompiledMapping,
    side: Side,
    *,
    lower: Key | None,
    upper: Key | None,
    chunk: int,
) -> AsyncGenerator[ContentChunk]:
    """Read page by page, as ``PostgresReader.scan`` does."""
    async with reader._connections.connection() as connection:
        table = await reader._read_table(connection)
        columns = await content_columns(connection, reader, table, mapping, side)
    if columns is None:
        rows = reader.scan(content=True, lower=lower, upper=upper, chunk=chunk)
        async with aclosing(contents_of(rows, PageContents(mapping, side))) as chunks:
            async for found in chunks:
                yield found
        return
    empty = columns.contents.contents((), 0)
    pages = Pages(reader, table, columns.selection, lower=lower, upper=upper, chunk=chunk)
    width = len(columns.key_values)
    after: list[str] | None = None
    while True:
        try:
            page = await pages.read(after)
            by_column = list(zip(*page, strict=True))
            keys = _keys(reader, columns, by_column[:width])
        except (StoreError, KeyMisfit) as error:
            failed = KeyChunk(identity=table.identity, complete=False, reason=error.message)
            yield ContentChunk(keys=failed, contents=empty)
            return
        if page:
            after = [plain(value) for value in columns.usual_key(page[-1][:width])]
        kept, contents = cut(reader._codec, keys, columns.contents.contents(by_column[width:], len(page)), lower, upper)
        yield ContentChunk(keys=key_chunk(table.identity, kept), contents=contents)
        if len(page) < chunk:
            break
    reason = await pages.left_out()
    if reason:
        yield ContentChunk(keys=KeyChunk(identity=table.identity, complete=False, reason=reason), contents=empty)


def _keys(reader: PostgresReader, columns: ContentColumns, by_column: Sequence[Sequence[Any]]) -> Keys:
    """Return a page's keys. Raises KeyMisfit."""
    if not by_column:
        return []
    if columns.whole_numbers:
        return np.array(by_column[0], dtype=np.int64)
    encode = reader._codec.encode
    return [encode(columns.usual_key(values)) for values in zip(*by_column, strict=True)]


async def content_columns(
    connection: Connection, reader: PostgresReader, table: Table, mapping: CompiledMapping, side: Side
) -> ContentColumns | None:
    """Return what to read; None where the columns have to come as they are."""
    paths = mapping.side(side).paths
    if (
        connection.info.encoding != "utf-8"
        or not set(paths) <= set(table.columns)
        or not set(reader._names) <= set(table.columns)
    ):
        return None
    known = [table.columns[name] for name in (*reader._names, *paths)]
    width = len(reader._names)
    keys = [USUAL if column.internal in BINARY else None for column in known[:width]]
    fields = [handed(column, spec) for column, spec in zip(known[width:], mapping.fields, strict=True)]
    ways = [*keys, *fields]
    others = [column.name for column, way in zip(known, ways, strict=True) if way is None]
    read = await _readers(connection, reader, others)
    made = [Handed(usual=read[column.name]) if way is None else way for column, way in zip(known, ways, strict=True)]
    return ContentColumns(
        selection=Selection(
            columns=[_sent(column, way) for column, way in zip(known, ways, strict=True)], binary=True, loaders=AS_NUMBERS
        ),
        key_values=[way.usual for way in made[:width]],
        whole_numbers=width == 1 and known[0].internal in INTS and mapping.side(side).codec.columns[0].type is KeyType.INT,
        contents=PageContents(mapping, side, handed=made[width:]),
    )


def _sent(column: Column, way: Handed | None) -> sql.Composable:
    [name] = idents([column.name])
    if way is None:
        return sql.SQL("CASE WHEN {} IS NOT NULL THEN concat({}) END").format(name, name)
    return sql.SQL("{}::text").format(name) if column.internal == "numeric" else name


async def _readers(connection: Connection, reader: PostgresReader, names: Sequence[str]) -> dict[str, Callable[[Any], Any]]:
    """Return by column what makes the usual value of the server's text."""
    if not names:
        return {}
    async with connection.cursor() as cursor:
        await cursor.execute(reader._select(idents(names), []) + sql.SQL(" LIMIT 0"))
        types = [column.type_code for column in cursor.description or ()]
    known = adapt.Transformer(connection)
    return {name: _from_text(known.get_loader(oid, pq.Format.TEXT).load) for name, oid in zip(names, types, strict=True)}


def _from_text(load: Callable[[bytes], Any]) -> Callable[[Any], Any]:
    return lambda text: load(text.encode())
