"""The stores of every pipeline, with its mapping resolved, and the checks that may be made of them."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import structlog

from gapwatch.check_ports import Preflight
from gapwatch.clock import SystemClock
from gapwatch.core.conditions import paths_of
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.resolve import joined, resolve, resolve_target
from gapwatch.errors import StoreError
from gapwatch.kafka.schema_registry import RegistryPreflight
from gapwatch.ledger import SqlLedger
from gapwatch.model.pipeline import (
    DeliverySpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    PipelineSpec,
    Settings,
    SourceTable,
    StoreType,
    TargetSpec,
)
from gapwatch.model.stream import Side
from gapwatch.ports import Clock
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.debezium import SHARED_SECONDS, ConnectorPreflight, ConnectRest
from gapwatch_connectors.registry import connector_of

log = structlog.get_logger(__name__)

RESOLVE_SECONDS = 2.0


def new_id() -> str:
    return uuid.uuid4().hex


def host() -> str:
    return socket.gethostname()


class Stores:
    """Implements :class:`gapwatch.roles.stores.StoreProvider`: connections are made and mappings resolved at first use."""

    def __init__(self, settings: Settings, ledger: SqlLedger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._made: dict[str, PipelineStores] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def stores(self, pipeline: str) -> PipelineStores:
        async with self._locks.setdefault(pipeline, asyncio.Lock()):
            if pipeline not in self._made:
                self._made[pipeline] = await self._make(self._settings.pipelines[pipeline])
            return self._made[pipeline]

    async def _make(self, spec: PipelineSpec) -> PipelineStores:
        from gapwatch.roles.viewed import viewed  # with numpy

        resolved = await resolved_pipeline(self._settings, self._ledger, spec)
        source_store = self._settings.stores[spec.source.store]
        target_store = self._settings.stores[spec.target.store]
        source, target = connector_of(source_store.type), connector_of(target_store.type)
        mapping, clock = CompiledMapping(resolved), SystemClock()
        read, shown = source.source_reader(resolved, source_store.url), target.target_reader(resolved, target_store.url)
        return PipelineStores(
            spec=resolved,
            mapping=mapping,
            codec=KeyCodec(resolved.source.key),
            source=viewed(read, mapping.counting, Side.EXPECTED, clock),
            target=viewed(shown, mapping.counting, Side.OBSERVED, clock),
            writer=target.target_writer(resolved, target_store.url),
        )

    async def close(self) -> None:
        for made in self._made.values():
            for part in (made.source, made.target, made.writer):
                await part.close()
        self._made.clear()


def resolved_fact(pipeline: str) -> str:
    """Return the name of the fact that holds a pipeline's types."""
    return f"resolved/{pipeline}"


async def resolved_pipeline(settings: Settings, ledger: SqlLedger, spec: PipelineSpec) -> PipelineSpec:
    """Return the pipeline with its types from the source's catalogue; from what is stored of it while the source is away."""
    fact = resolved_fact(spec.id)
    try:
        resolved = joined(spec, [await _described(settings, one) for one in spec.by_table()])
        resolved = await _with_target(settings, resolved)
        stored = {
            "target": msgspec.to_builtins(resolved.target),
            "fields": msgspec.to_builtins(resolved.fields),
            "feed": msgspec.to_builtins(resolved.source.feed),
            "tables": msgspec.to_builtins(resolved.source.tables),
            "where": msgspec.to_builtins(resolved.source.where_fields),
        }
        await asyncio.to_thread(ledger.set_fact, fact, stored)
        return resolved
    except StoreError as error:
        if not error.retriable:
            raise
        known = await stored_pipeline(settings, ledger, spec)
        if known is None:
            raise
        return known


async def stored_pipeline(settings: Settings, ledger: SqlLedger, spec: PipelineSpec) -> PipelineSpec | None:
    """Return the pipeline with the types that were stored of it; None where there are none, or it is another one by now."""
    known: Any = await asyncio.to_thread(ledger.fact, resolved_fact(spec.id))
    if known is None:
        return None
    fields = msgspec.convert(known["fields"], tuple[FieldSpec, ...], strict=False)
    tables = msgspec.convert(known.get("tables", []), tuple[SourceTable, ...], strict=False)
    where = msgspec.convert(known.get("where", []), tuple[FieldSpec, ...], strict=False)
    target = _target_as_known(settings, spec, known)
    same = (
        [field.target for field in fields] == [field.target for field in spec.fields]
        and [table.table for table in tables] == [table.table for table in spec.source.tables]
        and tuple(field.source for field in where) == paths_of(spec.source.where)
    )
    if target is None or not same:
        return None
    feed = msgspec.convert(known["feed"], type(spec.source.feed), strict=False)
    source = replace(spec.source, feed=feed, tables=tables, where_fields=where)
    return replace(spec, fields=fields, source=source, target=target)


def _target_as_known(settings: Settings, spec: PipelineSpec, known: Mapping[str, Any]) -> TargetSpec | None:
    """Return the target with what is stored of its table's encodings; None where it is another one by now."""
    if settings.stores[spec.target.store].type is not StoreType.POSTGRES:
        return spec.target
    if "target" not in known:
        return None
    target = msgspec.convert(known["target"], TargetSpec, strict=False)
    same = (target.collection, [column.path for column in target.key], target.feed.topic, len(target.wires))
    if same != (spec.target.collection, [one.path for one in spec.target.key], spec.target.feed.topic, len(spec.fields)):
        return None
    return replace(spec.target, key=target.key, feed=target.feed, wires=target.wires)


async def _with_target(settings: Settings, spec: PipelineSpec) -> PipelineSpec:
    """Return a pipeline with what the catalogue says of a target that is a table."""
    store = settings.stores[spec.target.store]
    if store.type is not StoreType.POSTGRES:
        return spec
    reader = connector_of(store.type).target_reader(spec, store.url)
    try:
        return resolve_target(spec, await reader.describe(), await _known_config(settings, spec.target.feed))
    finally:
        await reader.close()


async def _described(settings: Settings, spec: PipelineSpec) -> PipelineSpec:
    """Return a pipeline of one table with what its store's catalogue and its connector say."""
    store = settings.stores[spec.source.store]
    reader = connector_of(store.type).source_reader(spec, store.url)
    try:
        return resolve(spec, await reader.describe(), await _known_config(settings, spec.source.feed))
    finally:
        await reader.close()


async def _known_config(settings: Settings, feed: FeedSpec) -> Mapping[str, str] | None:
    """Return the configuration of a feed's connector; None, which stands for its defaults, while Kafka Connect does not say."""
    try:
        return await connector_config(settings, feed)
    except StoreError:
        return None


async def connector_config(settings: Settings, feed: FeedSpec) -> Mapping[str, str] | None:
    """Return the configuration of a feed's connector, None where there is none. Raises StoreError: nobody could say."""
    if not settings.connect_url or feed.kind is not FeedKind.DEBEZIUM:
        return None
    connector = await ConnectRest(settings.connect_url, shared_seconds=SHARED_SECONDS).source_of(feed.topic)
    return connector.config if connector is not None else None


async def resolved_settings(settings: Settings, ledger: SqlLedger, clock: Clock) -> Settings:
    """Return the settings with resolved pipelines; waits while a source that was never described does not answer."""
    resolved: dict[str, PipelineSpec] = {}
    enabled = {name: spec for name, spec in settings.pipelines.items() if spec.enabled}
    while len(resolved) < len(enabled):
        for name, spec in enabled.items():
            if name in resolved:
                continue
            try:
                resolved[name] = await resolved_pipeline(settings, ledger, spec)
            except StoreError as error:
                if not error.retriable:
                    raise
                log.warning("source_not_described", pipeline=name, reason=str(error))
        if resolved:
            break  # the others are taken up at the next start of the role
        await clock.sleep(RESOLVE_SECONDS)
    return replace(settings, pipelines=resolved)


async def stored_settings(settings: Settings, ledger: SqlLedger, names: Sequence[str]) -> Settings | None:
    """Return the settings with these pipelines, as somebody has just resolved and stored them; None where one is missing."""
    resolved: dict[str, PipelineSpec] = {}
    for name in names:
        spec = settings.pipelines.get(name)
        known = await stored_pipeline(settings, ledger, spec) if spec is not None else None
        if known is None:
            return None
        resolved[name] = known
    return replace(settings, pipelines=resolved)


def preflights(settings: Settings, spec: PipelineSpec, position: bytes | None = None) -> list[Preflight]:
    """Return every check of one pipeline: source, target (can its feed go on at `position`?), connectors."""
    source, target = settings.stores[spec.source.store], settings.stores[spec.target.store]
    of_source, of_target = (partial(connector_config, settings, feed) for feed in (spec.source.feeds[0], spec.target.feed))
    beats = (
        {"heartbeat": target.heartbeat} if target.type is StoreType.MONGODB else {}
    )  # what is said of others does not depend on it
    checks: list[Preflight] = [
        connector_of(source.type).source_preflight(spec, source.url, of_source),
        connector_of(target.type).target_preflight(spec, target.url, position, of_target, **beats),
    ]
    if settings.schema_registry is not None:
        checks.append(RegistryPreflight(spec.id, settings.schema_registry, SystemClock()))
    if settings.connect_url:
        first, *others = spec.by_table()
        said = {"registry": settings.schema_registry is not None, "rows": bool(source.heartbeat.topic)}
        alone = [first, *(replace(one, delivery=DeliverySpec()) for one in others)]
        checks += [ConnectorPreflight(one, settings.connect_url, **said) for one in alone]
        if target.type is StoreType.POSTGRES and spec.target.feed.kind is FeedKind.DEBEZIUM:
            from gapwatch_connectors.postgres import as_source  # with its driver

            captured = replace(as_source(spec), delivery=DeliverySpec())
            said = {"registry": settings.schema_registry is not None, "rows": bool(target.heartbeat.topic)}
            checks.append(ConnectorPreflight(captured, settings.connect_url, "target", **said))
    return checks
