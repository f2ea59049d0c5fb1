"""What of a Postgres source would lose data or not work: asked by ``doctor`` before a start, and by the watcher while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.resolve import resolve
from gapwatch.errors import ConfigError, KeyMisfit, StoreRefused
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.ports import Advice, DatasetInfo
from gapwatch_connectors.postgres.connection import Connections
from gapwatch_connectors.postgres.reader import PostgresReader


class PostgresPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's source."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._pipeline = pipeline
        self._reader = PostgresReader(pipeline, url)
        self._connections = Connections(pipeline.source.store, url, idle_max=1)
        self._subject = f"{pipeline.id}.source"

    async def check(self) -> Sequence[Advice]:
        try:
            await self._reader.ping()
            info = await self._reader.describe()
        except StoreRefused as error:
            return [self._advice("error", error.message, error.remedy)]
        advice = self._identity(info) + self._mapping(info) + await self._log() + await self._key()
        return advice or [self._advice("ok", f"{self._pipeline.source.table} can be read.")]

    async def close(self) -> None:
        await self._reader.close()
        await self._connections.close()

    def _advice(self, level: str, message: str, remedy: str = "", finding: str = "") -> Advice:
        return Advice(level=level, subject=self._subject, message=message, remedy=remedy, finding=finding)

    def _identity(self, info: DatasetInfo) -> list[Advice]:
        """Judge the replica identity: without one, updates and deletes do not say which row they mean."""
        table = self._pipeline.source.table
        if info.replica_identity == "n" or (info.replica_identity == "d" and not info.primary_key):
            what = "NOTHING" if info.replica_identity == "n" else "DEFAULT without a primary key"
            message = f"{table} has REPLICA IDENTITY {what}: its deletes and updates are lost to every reader of the log."
            return [
                self._advice(
                    "error", message, f"ALTER TABLE {table} REPLICA IDENTITY FULL, or add a primary key.", "replica_identity"
                )
            ]
        if info.replica_identity == "d":
            message = f"{table} has REPLICA IDENTITY DEFAULT: unchanged TOAST columns are missing from its updates."
            return [self._advice("warning", message, f"ALTER TABLE {table} REPLICA IDENTITY FULL proves them by the stream too.")]
        return []

    def _mapping(self, info: DatasetInfo) -> list[Advice]:
        try:
            CompiledMapping(resolve(self._pipeline, info))
        except ConfigError as error:
            return [self._advice("error", f"{problem.place}: {problem.message}", problem.remedy) for problem in error.problems]
        columns = {column.name: column for column in info.columns}
        missing = [column.path for column in self._pipeline.source.key if column.path not in columns]
        if missing:
            return [self._advice("error", f"{self._pipeline.source.table} has no key column {missing[0]}.", "Correct the key.")]
        key = {column.path for column in self._pipeline.source.key}
        if info.primary_key and set(info.primary_key) != key:
            shown = ", ".join(info.primary_key)
            message = f"The pipeline's key is not the primary key ({shown}) of {self._pipeline.source.table}."
            return [self._advice("warning", message, "Use the primary key, or be sure that the key is unique and never null.")]
        return []

    async def _log(self) -> list[Advice]:
        if self._pipeline.source.feed.kind is not FeedKind.DEBEZIUM:
            return []
        async with self._connections.connection() as connection:
            row = await (await connection.execute("SELECT current_setting('wal_level') AS level")).fetchone()
        if row is not None and row["level"] != "logical":
            message = f"wal_level is {row['level']}: Debezium cannot read changes."
            return [self._advice("error", message, "Set wal_level = logical and restart Postgres.")]
        return []

    async def _key(self) -> list[Advice]:
        """Read one row: its key must fit the codec."""
        codec = KeyCodec(self._pipeline.source.key)
        try:
            async for chunk in self._reader.scan(content=False, chunk=10):
                for record in chunk.records:
                    codec.decode(record.key)
                break
        except (StoreRefused, KeyMisfit) as error:
            return [self._advice("error", error.message, "Correct the type of the pipeline's key: keys are never coerced.")]
        return []
