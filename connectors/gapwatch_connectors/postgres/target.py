"""A table as a target: it is read and examined like one that is a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from msgspec import structs

from gapwatch.check_ports import Advice
from gapwatch.core.conditions import paths_of
from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import FieldSpec, PipelineSpec, SourceSpec
from gapwatch.ports import StoredRecord
from gapwatch_connectors.postgres.catalogue import read_table
from gapwatch_connectors.postgres.connection import Connections
from gapwatch_connectors.postgres.lookups import plain
from gapwatch_connectors.postgres.partitions import PostgresSourcePreflight
from gapwatch_connectors.postgres.preflight import ConnectorConfig
from gapwatch_connectors.postgres.reader import PostgresReader

_RIGHTS: Final = """
SELECT name FROM unnest(ARRAY ['INSERT', 'UPDATE', 'DELETE']) name WHERE NOT has_table_privilege(%(table)s::oid, name)
"""


def as_source(pipeline: PipelineSpec) -> PipelineSpec:
    """Return the pipeline with its target in the source's place, fields under their names at the target."""
    target = pipeline.target
    mapped = {field.target: field for field in pipeline.fields}
    source = SourceSpec(
        store=target.store,
        table=target.collection,
        key=target.key,
        feed=target.feed,
        version=target.version,
        changed_at=target.changed_at,
        where=target.deleted_when,
        where_fields=tuple(
            replace(mapped.get(path, FieldSpec(target=path, source=path)), source=path) for path in paths_of(target.deleted_when)
        ),
    )
    wires = target.wires or [(field.wire, field.wire_scale) for field in pipeline.fields]
    fields = tuple(
        replace(field, source=field.target, wire=wire, wire_scale=scale)
        for field, (wire, scale) in zip(pipeline.fields, wires, strict=True)
    )
    return replace(pipeline, source=source, fields=fields)


class PostgresTargetReader(PostgresReader):
    """Implements :class:`gapwatch.ports.DatasetReader` for a pipeline's target table."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        super().__init__(as_source(pipeline), url)

    def _record(self, fields: dict[str, Any], revision: str | None = None) -> StoredRecord:
        return structs.replace(super()._record(fields, revision), target_id=shown(fields, self._names))


class PostgresTargetPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's target table: what is asked of a source, and of repairs.

    Args:
        pipeline: The pipeline, with its types.
        url: The target's.
        connector: Returns the configuration of the connector that captures the target; without it all of the database's
            slots are looked at.
    """

    def __init__(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> None:
        self._pipeline = pipeline
        self._check = PostgresSourcePreflight(as_source(pipeline), url, connector)
        self._connections = Connections(pipeline.target.store, url, idle_max=1)

    async def check(self) -> Sequence[Advice]:
        subject = f"{self._pipeline.id}.target"
        found = self._of_target(await self._check.check())
        if any(advice.level == "error" for advice in found):
            return found
        target = self._pipeline.target
        try:
            async with self._connections.connection() as connection:
                table = await read_table(connection, target.store, target.collection)
                rows = await (await connection.execute(_RIGHTS, {"table": table.oid})).fetchall()
        except StoreRefused as error:
            return [*found, Advice(level="error", subject=subject, message=error.message, remedy=error.remedy)]
        if rows:
            rights = ", ".join(row["name"] for row in rows)
            message = f"The account may not {rights} on {target.collection}: nothing can be repaired there."
            remedy = f"GRANT {rights} ON {target.collection}, or leave repairs to others."
            found.append(Advice(level="warning", subject=subject, message=message, remedy=remedy))
        return found

    @property
    def name(self) -> str:
        return "postgres.target"

    async def watch(self) -> Sequence[Advice]:
        return self._of_target(await self._check.watch())

    def _of_target(self, said: Sequence[Advice]) -> list[Advice]:
        return [replace(advice, subject=f"{self._pipeline.id}.target") for advice in said]

    async def close(self) -> None:
        await self._check.close()
        await self._connections.close()


def shown(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return what a person would look up: the key's values."""
    return ", ".join(plain(fields[name]) for name in names)
