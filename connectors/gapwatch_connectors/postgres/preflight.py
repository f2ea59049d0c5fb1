"""What of a Postgres source would lose data or not work: asked by ``doctor`` before a start, and by the watcher while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from gapwatch.check_ports import Advice, Measure
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.resolve import resolve
from gapwatch.errors import ConfigError, StoreError, StoreRefused
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.ports import DatasetInfo
from gapwatch_connectors.postgres.catalogue import Slot, Table, of_table
from gapwatch_connectors.postgres.looks import Answer, Looks, Question
from gapwatch_connectors.postgres.lookups import lookups_of
from gapwatch_connectors.postgres.reader import PostgresReader, dataset_info, refuse_standby

SAMPLE = 10
ConnectorConfig = Callable[[], Awaitable[Mapping[str, str] | None]]


class PostgresPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's source.

    Args:
        pipeline: As configured, or resolved.
        url: The store's dsn.
        connector: Returns the Debezium connector's configuration, whose slot and publication are then looked at; without it,
            or where there is none, all of the database's slots are. Raises StoreError where nobody could say.
    """

    def __init__(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> None:
        self._pipeline = pipeline
        self._table = pipeline.source.table
        self._reader = PostgresReader(pipeline, url)
        self._looks = Looks(pipeline.source.store, url)
        self._connector = connector
        self._subject = f"{pipeline.id}.source"
        self._known: Mapping[str, str] | None = None  # the connector's configuration, as it was seen last
        self._judged: tuple[Table, Sequence[Advice], Sequence[Advice], bool] | None = (
            None  # the last table, and what is said of it
        )
        self._types: dict[str, tuple[Any, ...]] = {}  # of the mapped columns, as of the first check

    @property
    def name(self) -> str:
        return "postgres.source"

    async def check(self) -> Sequence[Advice]:
        try:
            said, changed = await self._looked(self._looks.alone)
            rows = [] if changed else await self._rows()
        except StoreRefused as error:
            return [self._advice("error", error.message, error.remedy)]
        return [*said, *rows] or [self._advice("ok", f"{self._table} can be read.")]

    async def watch(self) -> Sequence[Advice]:
        said, _ = await self._looked(self._looks.together)
        return said or [self._advice("ok", f"{self._table} can be read.")]

    async def _looked(self, look: Callable[[Question], Awaitable[Answer]]) -> tuple[list[Advice], bool]:
        """Return what catalogue, log and connector say, and whether the table is another one than the mapping wants."""
        captured = self._pipeline.source.feed.kind is FeedKind.DEBEZIUM
        config, unknown = await self._configured() if captured else (None, None)
        published = {(_publication(config), self._table)} if config is not None else ()
        asked = Question(tables=frozenset({self._table}), log=True, slots=captured, published=frozenset(published))
        answer = await look(asked)
        refuse_standby(self._pipeline.source.store, standby=answer.standby)
        table = of_table(answer.tables, self._pipeline.source.store, self._table)
        if self._judged is None or self._judged[0] != table:
            self._judged = (table, *self._judge(table))
        _, before, after, changed = self._judged
        return [*before, *(self._log(answer, table, config, unknown) if captured else ()), *after], changed

    def _judge(self, table: Table) -> tuple[Sequence[Advice], Sequence[Advice], bool]:
        """Return what is said of a table, in two parts, and whether it is another one than the mapping wants."""
        changed = self._mapping(dataset_info(table))
        return [*self._identity(table), *changed], [] if changed else self._columns(table), bool(changed)

    async def close(self) -> None:
        await self._reader.close()
        await self._looks.close()

    def _advice(self, level: str, message: str, remedy: str = "", finding: str = "") -> Advice:
        return Advice(level=level, subject=self._subject, message=message, remedy=remedy, finding=finding)

    # what the log carries

    def _identity(self, table: Table) -> list[Advice]:
        """Judge the replica identity: without one, updates and deletes do not say which row they mean."""
        kind, name = table.replica_identity, self._table
        if kind == "f" or self._pipeline.source.feed.kind in (FeedKind.TOPIC, FeedKind.NONE):
            return []
        full = f"ALTER TABLE {name} REPLICA IDENTITY FULL"
        if kind == "n" or not table.identity_columns:
            what = "NOTHING" if kind == "n" else "DEFAULT without a primary key"
            message = f"{name} has REPLICA IDENTITY {what}: its deletes and updates are lost to every reader of the log."
            return [self._advice("error", message, f"{full}, or add a primary key.", "replica_identity")]
        beyond = [column.path for column in self._pipeline.source.key if column.path not in table.identity_columns]
        if beyond:
            carried = ", ".join(table.identity_columns)
            message = f"Deletes of {name} carry only ({carried}): without {beyond[0]} nobody knows which key they mean."
            return [self._advice("error", message, f"{full}, or use ({carried}) as the key.", "replica_identity")]
        message = f"{name} has REPLICA IDENTITY {'DEFAULT' if kind == 'd' else 'USING INDEX'}: "
        message += "unchanged TOAST columns are missing from its updates."
        return [self._advice("warning", message, f"{full} proves them by the stream too.")]

    async def _configured(self) -> tuple[Mapping[str, str] | None, StoreError | None]:
        """Return the connector's configuration, and where nobody has ever said it, why not."""
        try:
            config = await self._connector() if self._connector is not None else None
        except StoreError as error:
            if self._known is None:
                return None, error
            config = None
        self._known = config or self._known  # a connector that was removed since had a slot, too
        return self._known, None

    def _log(
        self, answer: Answer, table: Table, config: Mapping[str, str] | None, unknown: StoreError | None = None
    ) -> list[Advice]:
        if answer.wal_level != "logical":
            message = f"wal_level is {answer.wal_level}: Debezium cannot read changes."
            return [self._advice("error", message, "Set wal_level = logical and restart Postgres.")]
        if unknown is not None:
            message = f"Nobody knows which replication slot is the connector's: {unknown.message}"
            return [self._advice("unknown", message, unknown.remedy, "slot_lost")]
        slots = answer.slots
        if config is None:
            return [advice for slot in slots for advice in self._slot(slot)]
        name = config.get("slot.name", "debezium")
        advice = [advice for slot in slots if slot.name == name for advice in self._slot(slot)]
        if all(slot.name != name for slot in slots):
            message = f"There is no replication slot {name}: what is written until there is one is not captured."
            advice.append(self._advice("error", message, "Start the connector; a sweep covers the time in between.", "slot_lost"))
        return advice + self._published(answer, _publication(config), table)

    def _slot(self, slot: Slot) -> list[Advice]:
        if slot.lost:
            message = f"Replication slot {slot.name} is lost: Postgres removed log that it still needed."
            remedy = "Drop it, let the connector make a new one, and sweep; raise max_slot_wal_keep_size."
            return [self._advice("error", message, remedy, "slot_lost")]
        if slot.retained_bytes is None:
            return []
        held = Measure(metric="replication_slot_retained_bytes", of=self._pipeline.id, value=slot.retained_bytes)
        if slot.wal_status == "unreserved":
            message = f"Replication slot {slot.name} is about to be lost: it holds back {slot.retained_bytes} bytes of log."
            return [
                replace(
                    self._advice("warning", message, "Let its connector catch up, or raise max_slot_wal_keep_size."), measure=held
                )
            ]
        return [
            replace(
                self._advice("ok", f"Replication slot {slot.name} holds back {slot.retained_bytes} bytes of log."), measure=held
            )
        ]

    def _published(self, answer: Answer, publication: str, table: Table) -> list[Advice]:
        """Look for the table in the publication: whole rows, all of them, every kind of write."""
        rows = answer.published.get((publication, self._table), ())
        if not rows:
            message = f"{self._table} is not in the publication {publication}: its changes are not sent."
            return [self._advice("error", message, f"ALTER PUBLICATION {publication} ADD TABLE {self._table}.")]
        advice = []
        mapped = {spec.source for spec in self._pipeline.fields} | {column.path for column in self._pipeline.source.key}
        wanted = {name for name in mapped if name in table.columns and not table.columns[name].generated}
        for row in rows:
            missing = sorted(wanted - set(row.columns or wanted))
            if missing:
                message = f"The publication {publication} does not send column {missing[0]} of {self._table}."
                advice.append(self._advice("error", message, "Add it to the publication's column list, or leave the field out."))
            if row.filter:
                message = f"The publication {publication} sends only some rows of {self._table}: {row.filter}."
                advice.append(self._advice("warning", message, "Remove the filter, or repeat it as the source's `where`."))
            if not row.whole:
                message = f"The publication {publication} does not send all of insert, update and delete."
                remedy = f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')."
                advice.append(self._advice("error", message, remedy))
        return advice

    # key and fields

    def _mapping(self, info: DatasetInfo) -> list[Advice]:
        try:
            resolved = resolve(self._pipeline, info)
            CompiledMapping(resolved)
        except ConfigError as error:
            return [
                self._advice("error", f"{problem.place}: {problem.message}", problem.remedy, "schema_changed")
                for problem in error.problems
            ]
        types = {spec.source: (spec.type, spec.scale, spec.precision) for spec in resolved.fields}
        self._types = self._types or types
        return [
            self._advice(
                "error",
                f"Column {name} of {self._table} is of another type now; its values are still read as {before[0].value}.",
                "Restart Gapwatch; it then reads the column by its new type.",
                "schema_changed",
            )
            for name, before in self._types.items()
            if types[name] != before
        ]

    def _columns(self, table: Table) -> list[Advice]:
        key = [column.path for column in self._pipeline.source.key]
        try:
            lookups = lookups_of(self._pipeline.source.key, table.columns, store=self._pipeline.source.store, table=self._table)
        except StoreRefused as error:  # a column that is not there, or cannot hold such keys: that was looked at
            return [self._advice("error", error.message, error.remedy)]
        advice = []
        if not any(unique <= set(key) for unique in table.unique):
            message = f"({', '.join(key)}) is not unique in {self._table}: several rows would be one key."
            advice.append(self._advice("error", message, "Use the primary key, or add a unique index."))
        elif table.primary_key and set(table.primary_key) != set(key):
            message = f"The pipeline's key is not the primary key ({', '.join(table.primary_key)}) of {self._table}."
            advice.append(self._advice("warning", message, "Use the primary key, or be sure that the key never changes."))
        for name in key:
            if not table.columns[name].required:
                message = f"Key column {name} of {self._table} may be null: such rows have no key and are not compared."
                advice.append(self._advice("warning", message, f"ALTER TABLE {self._table} ALTER COLUMN {name} SET NOT NULL."))
        for name, lookup in zip(key, lookups, strict=True):
            if not lookup.native:
                message = f"Key column {name} ({table.columns[name].type_name}) is looked up without its index."
                advice.append(
                    self._advice("warning", message, "Declare the key by the column's own type, or index the expression.")
                )
        for spec in self._pipeline.fields:
            column = table.columns.get(spec.source)
            if column is not None and column.generated:
                message = f"Column {column.name} is generated: pgoutput does not send it."
                advice.append(
                    self._advice("warning", message, f"Leave the field {spec.target} out, or compute it in the target.")
                )
        return advice

    async def _rows(self) -> list[Advice]:
        """Read some rows: the rights are there, the condition is right, and the keys fit the codec."""
        async with aclosing(self._reader.scan(content=self._reader.knows_its_columns, chunk=SAMPLE)) as chunks:  # type: ignore[type-var]
            first = await anext(chunks)
        if first.complete:
            return []
        await self._reader.ping()  # an outage is no advice
        return [self._advice("error", first.reason, "Correct the pipeline's key or condition: keys are never coerced.")]


def _publication(config: Mapping[str, str]) -> str:
    return config.get("publication.name", "dbz_publication")
