"""What has a pipeline deliver rows again, by mode, from the real parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import Message

from gapwatch.core.envelopes import decoder_for
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import StoreRefused
from gapwatch.kafka.clients import AckedProducer, RawConsumer
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.model.pipeline import RepairMode, Settings
from gapwatch.model.stream import Side
from gapwatch.ports import Clock
from gapwatch.roles.repair.resending import Republisher, Resender, ResendRequest, Signaller
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.debezium import ConnectRest, signal_topic, snapshot_signal


class Resenders:
    """``consumer``: makes one that hands messages on as they came; ``readable``: translates one of those for a decoder."""

    def __init__(
        self,
        settings: Settings,
        consumer: Callable[[], RawConsumer],
        producer: Callable[[], AckedProducer],
        readable: Callable[[Message], Any],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._consumer = consumer
        self._producer = producer
        self._readable = readable
        self._clock = clock

    def __call__(self, stores: PipelineStores, mode: RepairMode) -> Resender:
        if mode is RepairMode.REPUBLISH:
            tables = stores.spec.by_table()
            decoders = {table.source.feed.topic: decoder_for(table, Side.EXPECTED, CompiledMapping(table)) for table in tables}
            return Republisher(decoders, self._consumer(), self._producer(), self._readable, self._clock)
        return Signaller(partial(self._signal, stores), self._producer())

    async def _signal(self, stores: PipelineStores, requests: Sequence[ResendRequest], run_id: str) -> tuple[str, bytes, bytes]:
        spec = stores.spec
        if len(spec.by_table()) > 1:
            raise StoreRefused(f"Mode debezium cannot be used with several tables, as {spec.id} has.", store="connect")
        connector = await ConnectRest(self._settings.connect_url).source_of(spec.source.feed.topic)
        if connector is None:
            raise StoreRefused(f"No connector on Kafka Connect writes {spec.source.feed.topic}.", store="connect")
        where = signal_topic(connector.name, connector.config)
        facts = (await TopicAdmin(self._settings).describe([where.topic])).get(where.topic)
        if facts is None or facts.partitions != 1:
            found = "does not exist" if facts is None else f"has {facts.partitions} partitions"
            remedy = "Create it with one partition, before the connector starts."
            raise StoreRefused(f"The signal topic {where.topic} {found}.", store="kafka", remedy=remedy)
        keys = [stores.codec.decode(request.key) for request in requests]
        return where.topic, where.key.encode(), snapshot_signal(run_id, spec.source.table, spec.source.key, keys)
