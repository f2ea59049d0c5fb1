"""The file's form: every key, its type and default. What needs more than one key to judge is checked in ``build``."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from gapwatch.config.source import Given

DURATION_SECONDS_MAX = 3_650 * 86_400
_UNITS = {"ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400"}
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_WHOLE = re.compile(r"[-+]?[0-9][0-9_]{0,24}")
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]{0,24}(?:\.[0-9]{0,24})?(?:[eE][-+]?[0-9]{1,3})?")
_SIZES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "kB": 1000, "MB": 1000**2}


def seconds(value: Any) -> Any:
    """Return a duration in seconds; raises ValueError with what to write."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
        if match:
            exact = Decimal(match.group(1)) * Decimal(_UNITS[match.group(2)])
            if exact > DURATION_SECONDS_MAX:
                raise ValueError("a duration is at most 3650d")
            return float(exact)
    raise ValueError("a duration is a number with a unit, like 250ms, 30s, 5m, 48h or 1d")


def size(value: Any) -> Any:
    """Return a size in bytes; raises ValueError with what to write."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,18})\s*(B|KiB|MiB|GiB|kB|MB)?\s*", value)
        if match:
            return int(match.group(1)) * _SIZES[match.group(2) or ""]
    raise ValueError("a size is a number of bytes, or has a unit like 512KiB or 5MiB")


def difference(value: Any) -> Any:
    """Return an exact number; raises ValueError with what to write."""
    try:
        number = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or number < 0:
        raise ValueError("a tolerance is an absolute difference, like 0.01")
    return number


def typed(annotation: Any, value: Given) -> Any:
    """Return what a text means where `annotation` stands; the text itself where it means nothing else."""
    kinds = {annotation, *get_args(annotation)}
    if bool in kinds:
        return _SWITCH.get(value.lower(), value)
    if int in kinds and _WHOLE.fullmatch(value):
        return int(value)
    if float in kinds and _NUMBER.fullmatch(value):
        return float(value)
    return str(value)


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    Field(ge=0),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)\s*$", "examples": ["30s", "250ms"]}),
]
AUTO_GRACE = -1.0  # no duration is negative


def grace(value: Any) -> Any:
    """Return a duration in seconds, `AUTO_GRACE` for auto; raises ValueError with what to write."""
    return AUTO_GRACE if value == "auto" else seconds(value)


Grace = Annotated[
    float,
    BeforeValidator(grace),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)\s*$|^auto$", "examples": ["30s", "auto"]}),
]
Size = Annotated[
    int,
    BeforeValidator(size),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}], "examples": ["5MiB"]}),
]
Positive = Annotated[Duration, Field(gt=0)]
Text = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]
Secret = Annotated[str, Field(min_length=1, json_schema_extra={"writeOnly": True})]
KeyTypeName = Literal["int", "text", "uuid", "objectid", "decimal", "bytes"]
FieldTypeName = Literal[
    "int", "decimal", "float", "text", "bool", "timestamp", "date", "time", "uuid", "objectid", "bytes", "json", "array"
]
PolicyName = Literal["report", "auto", "delete"]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kinds = {field.alias or name: field.annotation for name, field in cls.model_fields.items()}
        return {key: typed(kinds.get(key), value) if isinstance(value, Given) else value for key, value in data.items()}


class Kafka(Form):
    bootstrap_servers: str = Field(min_length=1, description="host:port, comma-separated")
    options: dict[str, Text] = Field(default_factory=dict, description="librdkafka properties: security.protocol, sasl.* …")


class Connect(Form):
    url: str = Field(default="", description="Kafka Connect's REST interface: connector state, discovery, doctor")


class SchemaRegistry(Form):
    url: Secret = Field(
        default="", description="Confluent's API of the schema registry: where feeds in Avro or JSON Schema are read"
    )
    options: dict[str, Text] = Field(
        default_factory=dict, description="properties of Confluent's client: basic.auth.user.info, ssl.ca.location …"
    )


class ApiForm(Form):
    listen: str = Field(default="127.0.0.1:8640", description="address:port of the API and the page")


class Probes(Form):
    listen: str = Field(default="", description="address:port of /livez, /readyz and /metrics of every process; empty: none")


class Topics(Form):
    prefix: str = Field(default="gapwatch", pattern=r"^[A-Za-z0-9._-]+$")
    partitions: int = Field(default=8, ge=1, le=1_000, description="of <prefix>.events: for life")
    replication: int = Field(default=1, ge=1, le=10)


class Heartbeat(Form):
    auto: bool = True
    every: Duration = 1.0
    topic: str = ""


class Store(Form):
    type: Literal["postgres", "mongodb", "opensearch"]
    dsn: Secret | None = None
    uri: Secret | None = None
    hosts: list[str] | None = None
    user: str = ""
    password: Secret | None = None
    api_key: Secret | None = None
    ca: str = Field(default="", description="PEM file of the authority that signed the nodes' certificates")
    client_cert: str = ""
    client_key: str = ""
    heartbeat: Heartbeat | Literal["auto", "none"] = Field(default_factory=Heartbeat)


class Feed(Form):
    """Exactly one of them."""

    debezium: str | None = None
    change_stream: bool | None = None
    topic: str | None = None
    format: Literal["unwrapped", "json"] | None = None
    wrappers: list[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        description="members of a plain topic's records that hold one document, or a list",
    )
    seq_no: bool | None = None
    acks: str | None = None


class Source(Form):
    store: str
    table: str | None = None
    collection: str | None = None
    key: dict[str, KeyTypeName] = Field(min_length=1)
    feed: Feed | None = None
    version: str = ""
    changed_at: str = ""
    where: str | None = None
    on_leave: Literal["delete", "ignore"] | None = None
    tables: list[str] | None = Field(default=None, min_length=2, max_length=100, description="instead of `table` and `feed`")
    topic_pattern: str | None = Field(default=None, description="the topic of each of `tables`: shop.{table}")
    transactions: str | None = Field(default=None, description="Debezium's transaction topic, PREFIX.transaction")
    replica_identity: Literal["require"] = "require"


class Target(Form):
    store: str
    collection: str | None = None
    table: str | None = None
    index: str | None = None
    key: dict[str, KeyTypeName] = Field(min_length=1)
    feed: Feed | Literal["none"]
    version: str = ""
    changed_at: str = ""
    dead_letter_topic: str = ""
    routing: str | None = None
    deleted_when: str | None = None
    keep: str | None = None


class FieldForm(Form):
    from_: str = Field(alias="from", min_length=1)
    type: FieldTypeName | None = None
    scale: int | None = Field(default=None, ge=0, le=100)
    digits: int | None = Field(default=None, ge=1, le=17)
    precision: Literal["s", "ms", "us"] = "ms"
    rounding: Literal["truncate", "round"] = "truncate"
    timezone: str = "UTC"
    tolerance: Annotated[Decimal, BeforeValidator(difference), WithJsonSchema({"type": ["number", "string"]})] | None = None
    multiset: bool = False
    absent_is_null: bool = False
    nfc: bool = False


class Batch(Form):
    documents: int = Field(default=100, ge=1, le=10_000)
    bytes: Size = 5 * 1024 * 1024
    pause: Duration = 0.2
    pace: Literal["fixed", "adaptive"] = Field(default="fixed", description="adaptive: by how fast the target writes, from there")


class Sweep(Form):
    every: Duration | None = None
    cron: str | None = Field(default=None, description="five fields, UTC, instead of `every`")
    start_delay: Duration = 120.0
    lookback: Positive | None = None
    full_every: Positive | None = None
    load: float = Field(default=0.5, gt=0, le=1)
    within: Duration | None = Field(default=None, description="a scheduled sweep may take so long; a quarter of its interval")
    parts: int = Field(default=1, ge=1, le=256)
    batch: Batch = Field(default_factory=Batch)


ModeName = Literal["direct", "debezium", "republish"]


class Repair(Form):
    missing: PolicyName = "report"
    stale: PolicyName = "report"
    mismatch: PolicyName = "report"
    extra: PolicyName = "report"
    undeleted: PolicyName = "report"
    modes: list[ModeName] = Field(
        default=["direct"], min_length=1, description="that backfills may use; the first is the usual one"
    )
    max_documents_per_run: int = Field(default=10_000, ge=1)
    brake_ratio: float = Field(default=0.2, gt=0, le=1)
    max_attempts: int = Field(default=5, ge=1, le=100)
    backoff: Positive = 30.0
    undo: str | None = Field(default=None, min_length=1, description="directory for files of what is overwritten")


class Delivery(Form):
    group: str | None = None
    acks: str | None = None


class Pipeline(Form):
    source: Source
    target: Target
    fields: dict[str, str | FieldForm] = Field(min_length=1)
    match: Literal["digest", "version", "presence"] = "digest"
    grace: Grace = 30.0
    grace_min: Positive | None = None
    grace_max: Positive | None = None
    delivery: Delivery | Literal["none"] | None = None
    sweep: Sweep = Field(default_factory=Sweep)
    repair: Repair = Field(default_factory=Repair)
    disorder: Duration = 0.2
    settle: Duration = 1.0
    clock_skew_max: Duration = 2.0
    stall_after: Positive = 30.0
    lag_limit: Duration | None = None
    history: int = Field(default=64, ge=2, le=10_000)
    settled_keys_max: int = Field(default=1_000_000, ge=1)
    pending_keys_max: int = Field(default=5_000_000, ge=1)
    suspects_max: int = Field(default=100_000, ge=1)
    confirm_again: Positive = 300.0
    pulse: Positive = 0.25
    baseline: Literal["sweep", "assume"] = "sweep"
    coverage_target: float = Field(default=0.999, ge=0, le=1)
    slo: Duration = 900.0
    incident_threshold: int = Field(default=1_000, ge=1)
    evidence: Literal["digest", "fields", "values"] = "fields"
    enabled: bool = True
    maintenance: list[str] = Field(default_factory=list)


class File(Form):
    """``gapwatch.yaml``."""

    kafka: Kafka
    connect: Connect = Field(default_factory=Connect)
    schema_registry: SchemaRegistry = Field(default_factory=SchemaRegistry)
    api: ApiForm = Field(default_factory=ApiForm)
    probes: Probes = Field(default_factory=Probes)
    topics: Topics = Field(default_factory=Topics)
    database: Secret = "sqlite:///gapwatch.db"
    stores: dict[str, Store] = Field(min_length=1)
    pipelines: dict[str, Pipeline] = Field(min_length=1)
