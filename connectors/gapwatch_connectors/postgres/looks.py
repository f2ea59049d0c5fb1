"""What checks ask of a database's catalogue: those of all pipelines that ask at about the same time, in the same statements."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from gapwatch.clock import SystemClock
from gapwatch.jointly import Jointly
from gapwatch_connectors.postgres.catalogue import Server, Slot, Table, read_files, read_server, read_slots, read_tables
from gapwatch_connectors.postgres.connection import Connection, Connections

_LOG: Final = "SELECT pg_is_in_recovery() AS standby, current_setting('wal_level') AS level"
# Column lists and row filters are there from Postgres 15 on; a partitioned table may be listed by its partitions.
_PUBLISHED: Final = """
WITH asked AS (
    SELECT a.publication, concat(a.schema, '.', a.name) AS name, c.oid AS id
      FROM unnest(%(publications)s::text[], %(schemas)s::text[], %(names)s::text[]) a (publication, schema, name)
      JOIN pg_namespace n ON n.nspname = a.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = a.name),
members AS (
    SELECT publication, name, id::oid AS relation FROM asked
    UNION SELECT publication, name, l.relid::oid FROM asked, pg_partition_tree(id::regclass) l),
listed AS MATERIALIZED (
    SELECT t.pubname, c.oid AS relation, to_jsonb(t) ->> 'rowfilter' AS filter,
           ARRAY (SELECT jsonb_array_elements_text(to_jsonb(t) -> 'attnames')) AS columns
      FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
     WHERE t.pubname = ANY(%(publications)s::text[]))
SELECT m.publication, m.name, p.pubinsert AND p.pubupdate AND p.pubdelete AS whole, l.filter, l.columns
  FROM members m JOIN listed l ON l.pubname = m.publication AND l.relation = m.relation
  JOIN pg_publication p ON p.pubname = m.publication
"""
# Of every partitioned table that one of the tables is or belongs to: its name, its leaves, and which of them are published.
_TREES: Final = """
WITH named AS (SELECT concat(a.schema, '.', a.name) AS name, to_regclass(format('%%I.%%I', a.schema, a.name)) AS id
                 FROM unnest(%(schemas)s::text[], %(names)s::text[]) a (schema, name)),
     roots AS (SELECT pg_partition_root(id) AS id, array_agg(name) AS asked FROM named WHERE id IS NOT NULL GROUP BY 1),
     leaves AS (SELECT r.id AS root, r.asked, l.relid AS leaf, concat(n.nspname, '.', c.relname) AS name,
                       EXISTS (SELECT FROM pg_publication_tables t WHERE (t.schemaname, t.tablename) = (n.nspname, c.relname))
                         AS published
                  FROM roots r, pg_partition_tree(r.id) l JOIN pg_class c ON c.oid = l.relid
                  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE l.isleaf AND l.relid <> r.id)
SELECT concat(n.nspname, '.', c.relname) AS name, l.asked,
       EXISTS (SELECT FROM pg_publication_tables t WHERE (t.schemaname, t.tablename) = (n.nspname, c.relname)) AS published,
       array_agg(l.name ORDER BY l.name) AS leaves, bool_or(l.published) AS leaves_published
  FROM leaves l JOIN pg_class c ON c.oid = l.root JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one look asks for. ``published``: publication and table. Tables are named ``schema.table``."""

    tables: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    trees: frozenset[str] = frozenset()
    published: frozenset[tuple[str, str]] = frozenset()
    log: bool = False
    slots: bool = False
    server: bool = False

    def __or__(self, other: Question) -> Question:
        return Question(
            tables=self.tables | other.tables,
            files=self.files | other.files,
            trees=self.trees | other.trees,
            published=self.published | other.published,
            log=self.log or other.log,
            slots=self.slots or other.slots,
            server=self.server or other.server,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How a publication sends a table, or one of its partitions. ``columns`` empty: all of them."""

    whole: bool
    filter: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A partitioned table. ``asked``: the tables of the question that are it, or parts of it."""

    name: str
    asked: frozenset[str]
    published: bool
    leaves: tuple[str, ...]
    leaves_published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was asked for, and perhaps more. A table that is not there is in none of them."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trees: Sequence[Tree] = ()
    published: Mapping[tuple[str, str], Sequence[Published]] = field(default_factory=dict)
    standby: bool = False
    wal_level: str = ""
    slots: Sequence[Slot] = ()
    server: Server | None = None


async def read(connection: Connection, asked: Question) -> Answer:
    """Ask, in one statement for each kind of thing; the server before its slots, its slots before files."""
    log = await (await connection.execute(_LOG)).fetchone() if asked.log else None
    return Answer(
        standby=bool(log and log["standby"]),
        wal_level=log["level"] if log else "",
        tables=await read_tables(connection, sorted(asked.tables)) if asked.tables else {},
        server=await read_server(connection) if asked.server else None,
        slots=await read_slots(connection) if asked.slots else (),
        files=await read_files(connection, sorted(asked.files)) if asked.files else {},
        published=await _published(connection, sorted(asked.published)) if asked.published else {},
        trees=await _trees(connection, sorted(asked.trees)) if asked.trees else (),
    )


async def _published(connection: Connection, asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Published]]:
    names = [table.partition(".") for _, table in asked]
    parameters = {
        "publications": [publication for publication, _ in asked],
        "schemas": [schema for schema, _, _ in names],
        "names": [name for _, _, name in names],
    }
    found: dict[tuple[str, str], list[Published]] = {}
    for row in await (await connection.execute(_PUBLISHED, parameters)).fetchall():
        one = Published(whole=bool(row["whole"]), filter=row["filter"], columns=tuple(row["columns"] or ()))
        found.setdefault((row["publication"], row["name"]), []).append(one)
    return found


async def _trees(connection: Connection, tables: Sequence[str]) -> list[Tree]:
    names = [table.partition(".") for table in tables]
    parameters = {"schemas": [schema for schema, _, _ in names], "names": [name for _, _, name in names]}
    rows = await (await connection.execute(_TREES, parameters)).fetchall()
    return [Tree(**{**row, "asked": frozenset(row["asked"]), "leaves": tuple(row["leaves"])}) for row in rows]


class _Database:
    """What the checks of one database share, in one event loop."""

    def __init__(self, store: str, dsn: str) -> None:
        self.users = 0
        self.connections = Connections(store, dsn, idle_max=1)
        self.looks = Jointly[Question, Answer](self._look, SystemClock())

    async def _look(self, asked: Sequence[Question]) -> Answer:
        together = Question()
        for one in asked:
            together |= one
        async with self.connections.connection() as connection:
            return await read(connection, together)


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Database]] = WeakKeyDictionary()  # by loop and dsn


class Looks:
    """The looks of one check: by its own connection, or with those of the other checks of its database."""

    def __init__(self, store: str, dsn: str) -> None:
        self._store = store
        self._dsn = dsn
        self._connections = Connections(store, dsn, idle_max=1)
        self._databases: dict[str, _Database] | None = None  # those of our loop, once one is in use

    async def alone(self, asked: Question) -> Answer:
        async with self._connections.connection() as connection:
            return await read(connection, asked)

    async def together(self, asked: Question) -> Answer:
        """Return what :meth:`alone` would; no answer is older than its question."""
        return await self._database().looks.ask(asked, lambda: self.alone(asked))

    async def close(self) -> None:
        await self._connections.close()
        if self._databases is None:
            return
        databases, self._databases = self._databases, None
        database = databases[self._dsn]
        database.users -= 1
        if not database.users:
            del databases[self._dsn]
            database.looks.close()
            await database.connections.close()

    def _database(self) -> _Database:
        if self._databases is None:
            self._databases = _SHARED.setdefault(asyncio.get_running_loop(), {})
            if self._dsn not in self._databases:
                self._databases[self._dsn] = _Database(self._store, self._dsn)
            self._databases[self._dsn].users += 1
        return self._databases[self._dsn]
