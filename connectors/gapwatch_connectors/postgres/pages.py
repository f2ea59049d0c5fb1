"""Pages of a scan: each one short statement, after the last key of the page before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from psycopg.abc import Loader

from gapwatch.errors import StoreError
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch.ports import Key
from gapwatch_connectors.postgres.catalogue import Table
from gapwatch_connectors.postgres.connection import PAGE_SECONDS
from gapwatch_connectors.postgres.lookups import Lookup, Never, plain

if TYPE_CHECKING:
    from gapwatch_connectors.postgres.reader import PostgresReader

SORTED: Final = frozenset({KeyType.INT, KeyType.UUID, KeyType.OBJECTID})  # the database orders them as their key bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a page's rows hold, in which form they are sent, and by type what reads it otherwise than usual."""

    columns: Sequence[sql.Composable]
    binary: bool
    loaders: Mapping[str, type[Loader]] = field(default_factory=dict)


class Pages:
    """The queries of one scan."""

    def __init__(
        self,
        reader: PostgresReader,
        table: Table,
        selection: Selection,
        *,
        lower: Key | None,
        upper: Key | None,
        chunk: int,
    ) -> None:
        self._reader = reader
        self._table = table
        self._lookups = reader._lookups(table)
        self._selection = selection
        self._chunk = chunk
        self._nullable = [name for name in reader._names if not table.columns[name].required]
        self._bounds = list(self._bounded(lower, upper))

    async def read(self, after: Sequence[str] | None) -> list[tuple[Any, ...]]:
        reader, selection = self._reader, self._selection
        names = idents(reader._names)
        conditions = [sql.SQL("{} IS NOT NULL").format(name) for name in idents(self._nullable)]
        parameters: list[Any] = []
        bounds = [*self._bounds, (">", list(after))] if after is not None else self._bounds
        for operator, values in bounds:
            casts = [sql.SQL("%s::{}").format(sql.SQL(self._cast(number))) for number in range(len(names))]
            left, right = sql.SQL(", ").join(names), sql.SQL(", ").join(casts)
            conditions.append(sql.SQL("({}) {} ({})").format(left, sql.SQL(operator), right))
            parameters += values
        query = reader._select(selection.columns, conditions)
        query += sql.SQL(" ORDER BY {} LIMIT {}").format(sql.SQL(", ").join(names), sql.Literal(self._chunk))
        return await reader._page(query, parameters, selection, self._table)

    async def left_out(self) -> str:
        """Return why rows were not read: null is no key."""
        if not self._nullable:
            return ""
        reader = self._reader
        nulls = sql.SQL(" OR ").join([sql.SQL("{} IS NULL").format(name) for name in idents(self._nullable)])
        query = reader._select([sql.SQL("1")], [sql.SQL("({})").format(nulls)]) + sql.SQL(" LIMIT 1")
        try:
            async with reader._connections.connection(seconds=PAGE_SECONDS) as connection:
                found = await reader._rows(connection, query, [])
        except StoreError as error:
            return error.message
        return f"{reader._name} holds rows whose key is null" if found else ""

    def _cast(self, number: int) -> str:
        return self._table.columns[self._reader._names[number]].bare

    def _bounded(self, lower: Key | None, upper: Key | None) -> Iterator[tuple[str, list[str]]]:
        """Yield the bounds that the database can apply itself; the caller applies both anyway."""
        sortable = in_order(self._reader._key, self._lookups)
        for operator, key in ((">=", lower), ("<", upper)):
            if key is None or not sortable:
                continue
            values = [lookup.convert(value) for lookup, value in zip(self._lookups, self._reader._codec.decode(key), strict=True)]
            if Never not in values:
                yield operator, [plain(value) for value in values]


def in_order(key: Sequence[KeyColumn], lookups: Sequence[Lookup]) -> bool:
    """Whether the database orders such columns as their key bytes."""
    return all(column.type in SORTED and lookup.native for column, lookup in zip(key, lookups, strict=True))


def idents(names: Sequence[str]) -> list[sql.Composable]:
    return [sql.SQL("t.{}").format(sql.Identifier(name)) for name in names]
