"""What of the connectors would lose data or not work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from gapwatch.check_ports import Advice
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch_connectors.debezium.client import Connector, ConnectRest

FLUSH_SECONDS_DEFAULT: Final = 60.0
SHARED_SECONDS: Final = 2.0  # the watchers of all pipelines ask a worker once, not each for itself
MONGODB_SOURCE: Final = "io.debezium.connector.mongodb.MongoDbConnector"
ROUTER: Final = "ByLogicalTableRouter"
LOSSY_SINK: Final = "io.debezium.connector.mongodb.MongoDbSinkConnector"
REGISTERED: Final = frozenset({"AvroConverter", "JsonSchemaConverter", "ExtJsonConverter"})
NO_SNAPSHOT: Final = frozenset({"no_data", "never"})


class ConnectorPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for the connectors of one pipeline.

    ``registry``: whether a schema registry is named; ``rows``: whether heartbeats are rows of a table instead of messages;
    ``side``: which side of the pipeline its source's connector captures: a target that is a table has one, too.
    """

    def __init__(
        self, pipeline: PipelineSpec, url: str, side: str = "source", /, *, registry: bool = False, rows: bool = False
    ) -> None:
        self._side = side
        self._pipeline = pipeline
        self._registry = registry
        self._rows = rows
        self._rest = ConnectRest(url)
        self._watched = ConnectRest(url, shared_seconds=SHARED_SECONDS)

    @property
    def name(self) -> str:
        return f"connect.{self._side}.{self._pipeline.source.feed.topic}"

    async def check(self) -> Sequence[Advice]:
        return await self._looked(self._rest)

    async def watch(self) -> Sequence[Advice]:
        return await self._looked(self._watched)

    async def _looked(self, rest: ConnectRest) -> Sequence[Advice]:
        advice: list[Advice] = []
        pipeline = self._pipeline
        if pipeline.source.feed.kind is FeedKind.DEBEZIUM:
            source = await rest.source_of(pipeline.source.feed.topic)
            if source is None:
                message = f"No connector on Kafka Connect writes {pipeline.source.feed.topic}."
                advice.append(self._advice("source", "warning", message, "Register one (see debezium/), or correct the topic."))
            else:
                advice += [*self._state("source", source), *self._source(source)]
        if pipeline.delivery.group.startswith("connect-"):
            sink = await rest.sink_of(pipeline.delivery.group)
            if sink is None:
                message = f"No connector is behind the delivery group {pipeline.delivery.group}."
                advice.append(self._advice("target", "warning", message, "Correct delivery.group, or register the sink."))
            else:
                advice += [*self._state("target", sink), *self._sink(sink)]
        return advice or [self._advice("source", "ok", "Its connectors run.")]

    async def close(self) -> None:
        return None

    def _advice(self, side: str, level: str, message: str, remedy: str = "", finding: str = "") -> Advice:
        table = self._pipeline.source.table if side == "source" else ""
        subject = f"{self._pipeline.id}.{self._side if side == 'source' else side}"
        return Advice(level=level, subject=subject, message=message, remedy=remedy, finding=finding, table=table)

    def _state(self, side: str, connector: Connector) -> Iterator[Advice]:
        states = (connector.state, *connector.task_states)
        if "FAILED" in states:
            reason = connector.trace or f"state {connector.state}, tasks {', '.join(connector.task_states) or 'none'}"
            message = f"Connector {connector.name} does not run: {reason.rstrip('.')}."
            yield self._advice(side, "error", message, "Look at its trace, mend it, restart it.", "connector_failed")
        elif not connector.task_states or "PAUSED" in states or "STOPPED" in states:
            shown = f"state {connector.state}, tasks {', '.join(connector.task_states) or 'none'}"
            message = f"Connector {connector.name} does not run: {shown}."
            yield self._advice(side, "warning", message, "Resume it; what it does not read meanwhile is in transit.")

    # the source

    def _source(self, connector: Connector) -> Iterator[Advice]:
        config, name = connector.config, connector.name
        if config.get("connector.class") == MONGODB_SOURCE:
            message = f"Connector {name} captures MongoDB, and Debezium's events of a collection are not read as a source."
            remedy = (
                "Write source: { collection: …, feed: { change_stream: true } }: Gapwatch follows a collection by itself. For a"
                " table, name the topic of its own connector."
            )
            yield self._advice("source", "error", message, remedy)
            return
        if config.get("decimal.handling.mode") == "double":
            message = f"Connector {name} sends decimals as doubles: digits are lost before anyone can compare them."
            yield self._advice("source", "error", message, "Set decimal.handling.mode to precise or string.")
        failures = config.get("event.processing.failure.handling.mode", "fail")
        if failures != "fail":
            message = f"Connector {name} drops events that it cannot process (event.processing.failure.handling.mode={failures})."
            yield self._advice("source", "error", message, "Set event.processing.failure.handling.mode to fail.")
        if config.get("skipped.operations", "t") not in ("none", ""):
            skipped = config.get("skipped.operations", "t")
            message = f"Connector {name} skips operations ({skipped}): a TRUNCATE goes unseen."
            level = "warning" if skipped == "t" else "error"
            yield self._advice("source", level, message, "Set skipped.operations to none.")
        if config.get("tombstones.on.delete", "true") == "false":
            message = f"Connector {name} sends no tombstones: sinks that delete by them, and compaction, keep deleted rows."
            yield self._advice("source", "warning", message, "Set tombstones.on.delete to true.")
        if config.get("offset.mismatch.strategy", "no_validation") != "trust_offset":
            message = f"Connector {name} goes on silently where its slot has moved past its offset: what lies between is lost."
            yield self._advice("source", "warning", message, "Set offset.mismatch.strategy to trust_offset.")
        if self._pipeline.source.transactions and config.get("provide.transaction.metadata", "false") != "true":
            message = f"Connector {name} says nothing of transactions: {self._pipeline.source.transactions} stays empty."
            yield self._advice("source", "error", message, "Set provide.transaction.metadata to true.")
        if config.get("snapshot.mode") in NO_SNAPSHOT and self._pipeline.baseline == "assume":
            message = f"Connector {name} takes no snapshot and the baseline is assumed: nobody compares what was there before."
            yield self._advice("source", "warning", message, "Set the pipeline's baseline to sweep.")
        yield from self._format(connector)
        yield from self._tables(connector)
        yield from self._columns(connector)
        yield from self._key(connector)
        yield from self._routed(connector)

    def _format(self, connector: Connector) -> Iterator[Advice]:
        name = connector.config.get("value.converter", "").rpartition(".")[2]
        if name == "CloudEventsConverter" and not self._rows:
            message = (
                f"Connector {connector.name} sends CloudEvents, which leave out the heartbeats of Gapwatch: its time would stand."
            )
            remedy = (
                "Let heartbeat.action.query write a table that the connector captures, and name its topic as heartbeat.topic."
            )
            yield self._advice("source", "error", message, remedy)
        elif name in REGISTERED and not self._registry:
            message = f"Connector {connector.name} writes with {name}, whose schemas lie in a registry."
            yield self._advice("source", "error", message, "Set schema_registry.url.")
        elif "Protobuf" in name:
            message = f"Connector {connector.name} writes Protobuf, which cannot be read."
            yield self._advice("source", "error", message, "Let it write JSON, or Avro with a schema registry.")

    def _tables(self, connector: Connector) -> Iterator[Advice]:
        table = self._pipeline.source.table
        included, excluded = connector.config.get("table.include.list", ""), connector.config.get("table.exclude.list", "")
        if not _chosen(included, excluded, table):
            message = f"Connector {connector.name} does not capture {table}."
            yield self._advice("source", "error", message, "Correct its table.include.list or table.exclude.list.")

    def _columns(self, connector: Connector) -> Iterator[Advice]:
        """Columns that are left out, masked or cut on the way cannot be compared."""
        table = self._pipeline.source.table
        included, excluded = connector.config.get("column.include.list", ""), connector.config.get("column.exclude.list", "")
        mapped = [column.path for column in self._pipeline.source.key] + [spec.source for spec in self._pipeline.fields]
        for column in dict.fromkeys(mapped):
            place = f"{table}.{column}"
            if not _chosen(included, excluded, place):
                message = f"Connector {connector.name} does not send column {column}."
                yield self._advice("source", "error", message, "Correct its column lists, or leave the field out.")
            for option, pattern in connector.config.items():
                if option.startswith(("column.mask.", "column.truncate.to.")) and _matches(pattern, place):
                    message = f"Connector {connector.name} changes column {column} on the way ({option})."
                    yield self._advice("source", "error", message, "Leave the field out: it can never be equal.")

    def _key(self, connector: Connector) -> Iterator[Advice]:
        """The records' key decides their partition: all changes of one key have to be in one, in order."""
        wanted = {column.path for column in self._pipeline.source.key}
        for rule in connector.config.get("message.key.columns", "").split(";"):
            pattern, _, columns = rule.strip().rpartition(":")
            if not pattern or not _matches(pattern, self._pipeline.source.table):
                continue
            used = {column.strip() for column in columns.split(",")}
            if not used <= wanted:
                message = (
                    f"Connector {connector.name} keys its records by ({', '.join(sorted(used))}), not by the pipeline's key."
                )
                remedy = "Remove message.key.columns, or use the same columns: one key's changes must not be spread."
                yield self._advice("source", "error", message, remedy)

    def _routed(self, connector: Connector) -> Iterator[Advice]:
        """One topic for several tables is not read: a key says nothing without its table."""
        for name in connector.config.get("transforms", "").split(","):
            option = f"transforms.{name.strip()}"
            if connector.config.get(f"{option}.type", "").rpartition(".")[2] != ROUTER:
                continue
            others = [table for table in self._beside(connector) if self._goes_to(connector, option, table)]
            if others:
                message = (
                    f"Connector {connector.name} puts {', '.join(others)} into {self._pipeline.source.feed.topic} as well"
                    f" ({option}, {ROUTER}): one topic for several tables is not read."
                )
                remedy = "Leave each table its own topic, and list them as source.tables."
                yield self._advice("source", "error", message, remedy)

    def _beside(self, connector: Connector) -> list[str]:
        """Return what else the connector captures, as its list says it: tables, or patterns of them."""
        listed = connector.config.get("table.include.list", "").split(",")
        included = [table.strip().replace("\\.", ".") for table in listed]
        return [table for table in included if table and table != self._pipeline.source.table]

    def _goes_to(self, connector: Connector, option: str, table: str) -> bool:
        """Whether a router puts a table's changes into our topic. A pattern that Python does not know is left alone."""
        pattern, into = (connector.config.get(f"{option}.{part}", "") for part in ("topic.regex", "topic.replacement"))
        try:
            found = re.fullmatch(pattern, f"{connector.captures}.{table}")
            routed = found.expand(re.sub(r"\$(\d)", r"\\\1", into)) if found else ""
        except (re.error, IndexError):
            return False
        return routed == self._pipeline.source.feed.topic

    # the sink

    def _sink(self, connector: Connector) -> Iterator[Advice]:
        config, name = connector.config, connector.name
        if config.get("errors.tolerance") == "all" and not config.get("errors.deadletterqueue.topic.name"):
            message = f"Connector {name} drops records that it cannot write (errors.tolerance=all, and no dead-letter topic)."
            yield self._advice("target", "error", message, "Set errors.deadletterqueue.topic.name, or errors.tolerance to none.")
        yield from self._letters(connector)
        if config.get("connector.class") == LOSSY_SINK:
            message = f"Connector {name} is of a class that swallows every failed batch and commits its offsets."
            yield self._advice("target", "warning", message, "Use com.mongodb.kafka.connect.MongoSinkConnector.")
        if self._pipeline.grace_seconds < FLUSH_SECONDS_DEFAULT:
            message = (
                f"A write that {name} loses is found after its next commit, every offset.flush.interval.ms of the worker"
                f" ({FLUSH_SECONDS_DEFAULT:.0f} s if not set), which no interface shows."
            )
            remedy = f"Set offset.flush.interval.ms to {self._pipeline.grace_seconds * 1000:.0f} (the grace) or less."
            yield self._advice("target", "ok", message, remedy)

    def _letters(self, connector: Connector) -> Iterator[Advice]:
        """What the sink gives up is read as evidence, where the pipeline names the topic and records say where they came from."""
        topic = connector.config.get("errors.deadletterqueue.topic.name", "")
        if not topic:
            return
        if topic != self._pipeline.target.dead_letter_topic:
            message = f"Connector {connector.name} puts what it gives up into {topic}, which the pipeline does not read."
            yield self._advice("target", "warning", message, f"Write target.dead_letter_topic: {topic}.")
        elif connector.config.get("errors.deadletterqueue.context.headers.enable", "false").lower() != "true":
            message = f"Connector {connector.name} does not say where a dead letter came from, nor why it is one."
            yield self._advice("target", "warning", message, "Set errors.deadletterqueue.context.headers.enable=true.")


def _chosen(included: str, excluded: str, name: str) -> bool:
    """Whether a pair of lists lets the name through; a pattern that Python does not know counts for it."""
    if included and not _matches(included, name, unknown=True):
        return False
    return not (excluded and _matches(excluded, name))


def _matches(patterns: str, name: str, *, unknown: bool = False) -> bool:
    """Whether one of Debezium's comma-separated, anchored, case-blind patterns is the whole of the name."""
    for pattern in re.split(r"(?<!\\),", patterns):
        try:
            if re.fullmatch(pattern.strip(), name, re.IGNORECASE):
                return True
        except re.error:  # a pattern of Java's that Python does not know
            if unknown:
                return True
    return False
