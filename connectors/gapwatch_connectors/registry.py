"""Which connector serves which type of store. Third parties add theirs by the entry-point group ``gapwatch.connectors``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import entry_points

from gapwatch.check_ports import Memory, Preflight
from gapwatch.errors import UsageError
from gapwatch.feed_ports import FeedReader, HeartbeatWriter
from gapwatch.model.pipeline import HeartbeatSpec, PipelineSpec, StoreType
from gapwatch.ports import DatasetReader, TargetWriter

ENTRY_POINTS = "gapwatch.connectors"
ConnectorConfig = Callable[[], Awaitable[Mapping[str, str] | None]]


class Connector:
    """What a store type can do; a method that it does not have raises UsageError with its name.

    A driver is imported at its first use: that takes up to half a second, which no other store's users should pay.
    """

    def __init__(self, kind: StoreType) -> None:
        self._kind = kind

    def source_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        raise self._no("be a source")

    def target_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        raise self._no("be a target")

    def target_writer(self, pipeline: PipelineSpec, url: str) -> TargetWriter:
        raise self._no("be repaired")

    def feed_reader(self, pipeline: PipelineSpec, url: str) -> FeedReader:
        """Return the reader of the target's own feed."""
        raise self._no("be followed by a change stream")

    def source_feed_reader(self, pipeline: PipelineSpec, url: str) -> FeedReader:
        raise self._no("be followed by a change stream as a source")

    def heartbeat_writer(self, store: str, url: str, sender: str, database: str = "") -> HeartbeatWriter | None:
        """Return None where the store type needs no heartbeats of ours.

        `database`: that of a collection which Debezium captures; "" for everything else.
        """
        return None

    def source_preflight(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> Preflight:
        """Return the check of a source; `connector` returns the configuration of the connector that captures it."""
        raise self._no("be a source")

    def history(
        self,
        pipeline: PipelineSpec,
        url: str,
        connector: ConnectorConfig | None,
        memory: Memory,
        *,
        side: str = "source",
    ) -> Preflight | None:
        """Return what sees, while Gapwatch runs, what changed since it looked last at one side; None where nothing has to."""
        return None

    def target_preflight(
        self,
        pipeline: PipelineSpec,
        url: str,
        position: bytes | None = None,
        connector: ConnectorConfig | None = None,
        heartbeat: HeartbeatSpec | None = None,
    ) -> Preflight:
        """Return the check of a target.

        `position` is where its own change stream was read to, None before the first start; `connector` returns the
        configuration of the connector that captures it, where one does; `heartbeat` says where its heartbeats come from.
        """
        raise self._no("be a target")

    def _no(self, what: str) -> UsageError:
        return UsageError(f"A store of type {self._kind.value} cannot {what} yet.")


class PostgresConnector(Connector):
    def source_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        from gapwatch_connectors import postgres

        return postgres.PostgresTables(pipeline, url) if pipeline.source.tables else postgres.PostgresReader(pipeline, url)

    def heartbeat_writer(self, store: str, url: str, sender: str, database: str = "") -> HeartbeatWriter | None:
        from gapwatch_connectors import postgres

        return postgres.PostgresHeartbeat(store, url, sender)

    def source_preflight(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> Preflight:
        from gapwatch_connectors import postgres

        return postgres.PostgresSourcePreflight(pipeline, url, connector)

    def history(
        self,
        pipeline: PipelineSpec,
        url: str,
        connector: ConnectorConfig | None,
        memory: Memory,
        *,
        side: str = "source",
    ) -> Preflight | None:
        from gapwatch_connectors import postgres

        seen = pipeline if side == "source" else postgres.as_source(pipeline)
        return postgres.PostgresHistory(seen, url, connector, memory, side=side)

    def target_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        from gapwatch_connectors import postgres

        return postgres.PostgresTargetReader(pipeline, url)

    def target_writer(self, pipeline: PipelineSpec, url: str) -> TargetWriter:
        from gapwatch_connectors import postgres

        return postgres.PostgresWriter(pipeline, url)

    def target_preflight(
        self,
        pipeline: PipelineSpec,
        url: str,
        position: bytes | None = None,
        connector: ConnectorConfig | None = None,
        heartbeat: HeartbeatSpec | None = None,
    ) -> Preflight:
        from gapwatch_connectors import postgres

        return postgres.PostgresTargetPreflight(pipeline, url, connector)


class MongoConnector(Connector):
    def source_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        from gapwatch_connectors import mongodb

        return mongodb.MongoReader(mongodb.as_target(pipeline), url)

    def source_feed_reader(self, pipeline: PipelineSpec, url: str) -> FeedReader:
        from gapwatch_connectors import mongodb

        return mongodb.MongoChangeStream(mongodb.as_target(pipeline), url)

    def source_preflight(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> Preflight:
        from gapwatch_connectors import mongodb

        return mongodb.MongoPreflight(mongodb.as_target(pipeline), url, side="source")

    def target_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        from gapwatch_connectors import mongodb

        return mongodb.MongoReader(pipeline, url)

    def target_writer(self, pipeline: PipelineSpec, url: str) -> TargetWriter:
        from gapwatch_connectors import mongodb

        return mongodb.MongoWriter(pipeline, url)

    def feed_reader(self, pipeline: PipelineSpec, url: str) -> FeedReader:
        from gapwatch_connectors import mongodb

        return mongodb.MongoChangeStream(pipeline, url)

    def heartbeat_writer(self, store: str, url: str, sender: str, database: str = "") -> HeartbeatWriter | None:
        from gapwatch_connectors import mongodb

        return mongodb.MongoHeartbeat(store, url, sender, database) if database else None

    def target_preflight(
        self,
        pipeline: PipelineSpec,
        url: str,
        position: bytes | None = None,
        connector: ConnectorConfig | None = None,
        heartbeat: HeartbeatSpec | None = None,
    ) -> Preflight:
        from gapwatch_connectors import mongodb

        return mongodb.MongoPreflight(pipeline, url, position, connector=connector, heartbeat=heartbeat)


class OpenSearchConnector(Connector):
    def target_reader(self, pipeline: PipelineSpec, url: str) -> DatasetReader:
        from gapwatch_connectors.opensearch.reader import OpenSearchReader

        return OpenSearchReader(pipeline, url)

    def target_writer(self, pipeline: PipelineSpec, url: str) -> TargetWriter:
        from gapwatch_connectors.opensearch.writer import OpenSearchWriter

        return OpenSearchWriter(pipeline, url)

    def feed_reader(self, pipeline: PipelineSpec, url: str) -> FeedReader:
        from gapwatch_connectors.opensearch.feed import OpenSearchTail

        return OpenSearchTail(pipeline, url)

    def target_preflight(
        self,
        pipeline: PipelineSpec,
        url: str,
        position: bytes | None = None,
        connector: ConnectorConfig | None = None,
        heartbeat: HeartbeatSpec | None = None,
    ) -> Preflight:
        from gapwatch_connectors.opensearch.preflight import OpenSearchPreflight

        return OpenSearchPreflight(pipeline, url, position)


CONNECTORS: Mapping[StoreType, Connector] = {
    StoreType.POSTGRES: PostgresConnector(StoreType.POSTGRES),
    StoreType.MONGODB: MongoConnector(StoreType.MONGODB),
    StoreType.OPENSEARCH: OpenSearchConnector(StoreType.OPENSEARCH),
}


def connector_of(kind: StoreType) -> Connector:
    """Return the connector of a store type; raises UsageError when there is none."""
    found = CONNECTORS.get(kind)
    if found is not None:
        return found
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == kind.value:
            made: Connector = entry.load()(kind)
            return made
    raise UsageError(f"There is no connector for stores of type {kind.value}.")
