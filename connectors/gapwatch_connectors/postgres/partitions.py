"""The checks of a source's tables together: of each by itself, and whether partitions publish to the topics that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from gapwatch.check_ports import Advice
from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch_connectors.postgres.connection import Connection, Connections
from gapwatch_connectors.postgres.preflight import ConnectorConfig, PostgresPreflight

# Of every partitioned table that one of the tables is or belongs to: its name, its leaves, and which of them are published.
_TREES: Final = """
WITH named AS (SELECT to_regclass(name) AS id FROM unnest(%(tables)s::text[]) name),
     roots AS (SELECT DISTINCT pg_partition_root(id) AS id FROM named WHERE id IS NOT NULL),
     leaves AS (SELECT r.id AS root, l.relid AS leaf, concat(n.nspname, '.', c.relname) AS name,
                       EXISTS (SELECT FROM pg_publication_tables t WHERE (t.schemaname, t.tablename) = (n.nspname, c.relname))
                         AS published
                  FROM roots r, pg_partition_tree(r.id) l JOIN pg_class c ON c.oid = l.relid
                  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE l.isleaf AND l.relid <> r.id)
SELECT concat(n.nspname, '.', c.relname) AS name,
       EXISTS (SELECT FROM pg_publication_tables t WHERE (t.schemaname, t.tablename) = (n.nspname, c.relname)) AS published,
       array_agg(l.name ORDER BY l.name) AS leaves, bool_or(l.published) AS leaves_published
  FROM leaves l JOIN pg_class c ON c.oid = l.root JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1, 2
"""
FINDING: Final = "schema_changed"


class PostgresSourcePreflight:
    """Implements :class:`gapwatch.ports.Preflight` for all tables of a source; arguments as :class:`PostgresPreflight`."""

    def __init__(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> None:
        self._pipeline = pipeline
        self._tables = {one.source.table: PostgresPreflight(one, url, connector) for one in pipeline.by_table()}
        self._connections = Connections(pipeline.source.store, url, idle_max=1)

    @property
    def name(self) -> str:
        return "postgres.source"

    async def check(self) -> Sequence[Advice]:
        return await self._together({table: await one.check() for table, one in self._tables.items()}, refused="error")

    async def watch(self) -> Sequence[Advice]:
        return await self._together({table: await self._watch(one) for table, one in self._tables.items()}, refused="unknown")

    async def _watch(self, one: PostgresPreflight) -> Sequence[Advice]:
        """A table that is refused to us hides nothing of the others."""
        try:
            return await one.watch()
        except StoreRefused as error:
            return [self._refused("unknown", error)]

    def _refused(self, level: str, error: StoreRefused) -> Advice:
        return Advice(level=level, subject=f"{self._pipeline.id}.source", message=error.message, remedy=error.remedy)

    async def _together(self, said: Mapping[str, Sequence[Advice]], *, refused: str) -> Sequence[Advice]:
        found: dict[Advice, None] = {}
        for table, of_it in said.items():
            for advice in of_it:
                found[replace(advice, table=table) if table in advice.message else advice] = None
        if self._pipeline.source.feed.kind is FeedKind.DEBEZIUM:
            try:
                async with self._connections.connection() as connection:
                    found |= dict.fromkeys(await self._partitions(connection))
            except StoreRefused as error:
                if all(advice.level != refused or advice.finding for advice in found):  # else that was said already
                    found[self._refused(refused, error)] = None
        return list(found)

    async def close(self) -> None:
        for check in self._tables.values():
            await check.close()
        await self._connections.close()

    async def _partitions(self, connection: Connection) -> list[Advice]:
        """A partition publishes under its own name or its root's, and each has a topic of its own."""
        trees = await (await connection.execute(_TREES, {"tables": list(self._tables)})).fetchall()
        advice = []
        for tree in trees:
            root, unwatched = tree["name"], [leaf for leaf in tree["leaves"] if leaf not in self._tables]
            if root not in self._tables and unwatched:
                message = f"Partition {unwatched[0]} of {root} is not watched, and others of it are."
                advice.append(self._advice(root, message, "Add it to the source's `tables`."))
            if root in self._tables and tree["leaves_published"] and not tree["published"]:
                message = f"The partitions of {root} publish each under its own name: their changes come in other topics."
                remedy = "ALTER PUBLICATION … SET (publish_via_partition_root = true), or list the partitions as `tables`."
                advice.append(self._advice(root, message, remedy))
        return advice

    def _advice(self, table: str, message: str, remedy: str) -> Advice:
        subject = f"{self._pipeline.id}.source"
        return Advice(level="error", subject=subject, message=message, remedy=remedy, finding=FINDING, table=table)
