"""The effective configuration, printed without secrets; and the file's JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import yaml

from gapwatch.config import forms
from gapwatch.config.opensearch import store_tree
from gapwatch.model.pipeline import (
    CAPTURED,
    DeliverySpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    PipelineSpec,
    SchemaRegistrySpec,
    Settings,
    SourceSpec,
    StoreSpec,
    StoreType,
    TargetSpec,
)

MASK = "***"
SECRET_OPTION = re.compile(r"password|secret|token|user\.info|key\.pem|jaas|oauthbearer\.config", re.IGNORECASE)
_ACCOUNT = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)@([^@]*)$", re.DOTALL)
_QUERY_SECRET = re.compile(r"(?i)([?&;][^=&;]*(?:password|secret|token|api_key|authmechanismproperties)[^=&;]*=)[^&;]*")
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def mask_url(url: str) -> str:
    """Return `url` with its password, and passwords in its query, replaced by ``***``; all of it where it cannot be told."""
    if "@" in url:
        parts = _ACCOUNT.match(url)
        if parts is None:
            return MASK
        user, separator, _ = parts[2].partition(":")
        url = f"{parts[1]}{user}{separator}{MASK if separator else ''}@{parts[3]}"
    return _QUERY_SECRET.sub(rf"\g<1>{MASK}", url)


def duration(seconds: float) -> str:
    """Return a duration as the file has it: the largest unit that it is a whole number of, else milliseconds."""
    exact = Decimal(repr(seconds))
    for unit, size in _UNITS:
        if exact >= size and exact % size == 0:
            return f"{int(exact / size)}{unit}"
    return f"{(exact * 1000).normalize():f}ms"


def _masked(options: Mapping[str, str]) -> dict[str, str]:
    return {name: MASK if SECRET_OPTION.search(name) else value for name, value in sorted(options.items())}


def _schema_registry(spec: SchemaRegistrySpec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    urls = ",".join(mask_url(url.strip()) for url in spec.url.split(","))
    return {"schema_registry": {"url": urls, "options": _masked(spec.options)}}


def render(settings: Settings) -> str:
    """Return everything in force as ``gapwatch.yaml`` would say it, defaults included, secrets masked."""
    options = _masked(settings.kafka_options)
    topics = settings.topics
    tree: dict[str, Any] = {
        "kafka": {"bootstrap_servers": settings.bootstrap_servers, "options": options},
        "connect": {"url": mask_url(settings.connect_url)},
        **_schema_registry(settings.schema_registry),
        "api": {"listen": _listen(settings.listen_host, settings.listen_port)},
        "probes": {"listen": _listen(settings.probes_host, settings.probes_port) if settings.probes_port else ""},
        "topics": {"prefix": topics.prefix, "partitions": topics.partitions, "replication": topics.replication},
        "database": settings.database if settings.database.startswith("sqlite") else mask_url(settings.database),
        "stores": {name: _store(store) for name, store in settings.stores.items()},
        "pipelines": {
            name: _pipeline(pipeline, settings.stores[pipeline.target.store].type)
            for name, pipeline in settings.pipelines.items()
        },
    }
    return yaml.safe_dump(_escaped(tree), sort_keys=False, allow_unicode=True, width=120)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``gapwatch.yaml`` (before ``${…}`` is filled in, values may be text)."""
    schema = forms.File.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gapwatch.yaml", **schema}


def _listen(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    return value.replace("$", "$$") if isinstance(value, str) else value


def _store(store: StoreSpec) -> dict[str, Any]:
    if store.type is StoreType.OPENSEARCH:
        return {"type": store.type.value, **store_tree(store.url, MASK)}
    option = "dsn" if store.type is StoreType.POSTGRES else "uri"
    tree: dict[str, Any] = {"type": store.type.value, option: mask_url(store.url)}
    beat = store.heartbeat
    if beat.auto:
        tree["heartbeat"] = {"auto": True, "every": duration(beat.every_seconds)}
    else:
        tree["heartbeat"] = {"auto": False, "topic": beat.topic, "every": duration(beat.every_seconds)}
    return tree


def _delivery(spec: DeliverySpec) -> dict[str, str] | str:
    if spec.acks_topic:
        return {"acks": spec.acks_topic}
    return {"group": spec.group} if spec.group else "none"


def _pipeline(spec: PipelineSpec, store: StoreType) -> dict[str, Any]:
    sweep, repair = spec.sweep, spec.repair
    tree: dict[str, Any] = {
        "source": _source(spec.source),
        "target": _target(spec.target, store),
        "fields": {field.target: _field(field) for field in spec.fields},
        "match": spec.match.value,
        **_grace(spec),
        "delivery": _delivery(spec.delivery),
        "sweep": {
            "start_delay": duration(sweep.start_delay_seconds),
            "load": sweep.load,
            "parts": sweep.parts,
            "batch": {
                "documents": sweep.batch.documents,
                "bytes": sweep.batch.bytes,
                "pause": duration(sweep.batch.pause_seconds),
                "pace": "adaptive" if sweep.batch.adaptive else "fixed",
            },
        },
        "repair": {
            **{name: getattr(repair, name).value for name in ("missing", "stale", "mismatch", "extra", "undeleted")},
            "modes": [mode.value for mode in repair.modes],
            "max_documents_per_run": repair.max_documents_per_run,
            "brake_ratio": repair.brake_ratio,
            "max_attempts": repair.max_attempts,
            "backoff": duration(repair.backoff_seconds),
            **({"undo": repair.undo} if repair.undo else {}),
        },
    }
    if sweep.every_seconds is not None:
        tree["sweep"] = {"every": duration(sweep.every_seconds), **tree["sweep"]}
    if sweep.cron:
        tree["sweep"] = {"cron": sweep.cron, **tree["sweep"]}
    if sweep.within_seconds is not None:
        tree["sweep"]["within"] = duration(sweep.within_seconds)
    if sweep.lookback_seconds is not None and sweep.full_every_seconds is not None:
        tree["sweep"] |= {"lookback": duration(sweep.lookback_seconds), "full_every": duration(sweep.full_every_seconds)}
    for name in ("disorder", "settle", "clock_skew_max", "stall_after", "lag_limit", "confirm_again", "pulse", "slo"):
        seconds = getattr(spec, f"{name}_seconds")
        if seconds is not None:
            tree[name] = duration(seconds)
    for name in ("history", "settled_keys_max", "pending_keys_max", "suspects_max", "baseline", "coverage_target"):
        tree[name] = getattr(spec, name)
    if spec.maintenance:
        tree["maintenance"] = list(spec.maintenance)
    return {**tree, "incident_threshold": spec.incident_threshold, "evidence": spec.evidence, "enabled": spec.enabled}


def _grace(spec: PipelineSpec) -> dict[str, Any]:
    if spec.grace_least_seconds is None:
        return {"grace": duration(spec.grace_seconds)}
    bounds = {"grace_min": duration(spec.grace_least_seconds), "grace_max": duration(spec.grace_seconds)}
    return {"grace": "auto", **bounds}


def _source(spec: SourceSpec) -> dict[str, Any]:
    version = {name: value for name in ("version", "changed_at", "transactions") if (value := getattr(spec, name))}
    dataset = "collection" if spec.feed.kind is FeedKind.CHANGE_STREAM else "table"
    where: dict[str, Any] = {dataset: spec.table, "key": _key(spec.key), "feed": _feed(spec.feed)}
    if spec.tables:
        tables = [one.table for one in spec.tables]
        where = {"tables": tables, "topic_pattern": spec.topic_pattern, "key": _key(spec.key)}
    if spec.where:
        where |= {"where": spec.where, "on_leave": spec.on_leave}
    return {"store": spec.store, **where, "replica_identity": spec.replica_identity, **version}


def _target(spec: TargetSpec, store: StoreType) -> dict[str, Any]:
    dataset = {StoreType.OPENSEARCH: "index", StoreType.POSTGRES: "table"}.get(store, "collection")
    tree = {"store": spec.store, dataset: spec.collection, "key": _key(spec.key), "feed": _feed(spec.feed)}
    options = {
        "version": spec.version,
        "changed_at": spec.changed_at,
        "dead_letter_topic": spec.dead_letter_topic,
        "routing": spec.routing,
        "deleted_when": spec.deleted_when,
        "keep": f"{duration(spec.keep_seconds)} by {spec.keep_by}" if spec.keep_by else "",
    }
    return {**tree, **{name: value for name, value in options.items() if value}}


def _key(columns: Sequence[KeyColumn]) -> dict[str, str]:
    return {column.path: column.type.value for column in columns}


def _feed(spec: FeedSpec) -> Mapping[str, Any] | str:
    if spec.kind is FeedKind.NONE:
        return "none"
    if spec.kind in CAPTURED:
        return {spec.kind.value: True}
    wrappers = {"wrappers": list(spec.wrappers)} if spec.wrappers else {}
    return {spec.kind.value: spec.topic, **({"format": spec.format} if spec.format else {}), **wrappers}


def _field(spec: FieldSpec) -> Mapping[str, Any] | str:
    plain = FieldSpec(target=spec.target, source=spec.source)
    if spec == plain:
        return spec.source
    tree: dict[str, Any] = {"from": spec.source}
    if spec.type is not FieldType.INFERRED:
        tree["type"] = spec.type.value
    for name in ("scale", "digits", "precision", "rounding", "timezone", "tolerance", "multiset", "absent_is_null", "nfc"):
        value = getattr(spec, name)
        if value != getattr(plain, name):
            tree[name] = str(value) if isinstance(value, Decimal | str) else value
    return tree
