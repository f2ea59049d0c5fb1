"""The resolved configuration, as the core and the roles see it. ``gapwatch.config`` parses and validates into these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum


class KeyType(StrEnum):
    INT = "int"
    TEXT = "text"
    UUID = "uuid"
    OBJECTID = "objectid"
    DECIMAL = "decimal"
    BYTES = "bytes"


class FieldType(StrEnum):
    INT = "int"
    DECIMAL = "decimal"
    FLOAT = "float"
    TEXT = "text"
    BOOL = "bool"
    TIMESTAMP = "timestamp"
    DATE = "date"
    TIME = "time"
    UUID = "uuid"
    OBJECTID = "objectid"
    BYTES = "bytes"
    JSON = "json"
    ARRAY = "array"
    INFERRED = "inferred"  # only before `resolve`: the source's catalogue says what it is


class Rounding(StrEnum):
    TRUNCATE = "truncate"
    ROUND = "round"


class StoreType(StrEnum):
    POSTGRES = "postgres"
    MONGODB = "mongodb"
    OPENSEARCH = "opensearch"


class FeedKind(StrEnum):
    DEBEZIUM = "debezium"
    CHANGE_STREAM = "change_stream"
    TOPIC = "topic"
    SEQ_NO = "seq_no"
    ACKS = "acks"
    NONE = "none"


CAPTURED = frozenset({FeedKind.CHANGE_STREAM, FeedKind.SEQ_NO})  # role `capture` reads the store, and fills the topic
MARKED = frozenset({FeedKind.SEQ_NO, FeedKind.ACKS})  # only markers tell how far time has come, not the events themselves


class Match(StrEnum):
    DIGEST = "digest"
    VERSION = "version"
    PRESENCE = "presence"


class Policy(StrEnum):
    """What to do with a gap of one kind: nothing but say so, repair it at once, or let a person delete the document."""

    REPORT = "report"
    AUTO = "auto"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyColumn:
    """One part of a key. ``path`` is a column name, or a dotted path inside a document (``_id.order_id``).

    ``wire`` and ``wire_scale`` say how a schemaless feed encodes it, as in :class:`FieldSpec`; ``resolve`` fills them in.
    """

    path: str
    type: KeyType
    wire: str = ""
    wire_scale: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One mapped field.

    ``target`` is the dotted path in the target, ``source`` the column (or path) at the source. ``scale`` counts decimal
    places, ``digits`` significant digits of a float, ``precision`` is ``s``, ``ms`` or ``us``. ``tolerance`` is absolute.
    ``maskable`` says that a source event may lack the field (unchanged TOAST); ``wire`` names how a schemaless feed
    encodes it (``epoch_ms``, ``epoch_us``, ``epoch_days``, ``iso``, ``base64_unscaled``, ``text`` …; ``""``: by value).
    Both are filled in by ``resolve`` from the source's catalogue and the connector's configuration.
    """

    target: str
    source: str
    type: FieldType = FieldType.INFERRED
    scale: int | None = None
    digits: int | None = None
    precision: str = "ms"
    rounding: Rounding = Rounding.TRUNCATE
    timezone: str = "UTC"
    tolerance: Decimal | None = None
    multiset: bool = False
    absent_is_null: bool = False
    nfc: bool = False
    maskable: bool = True
    wire: str = ""
    wire_scale: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSpec:
    """Where one side's changes are read. ``topic`` is the Kafka topic (for ``change_stream`` the one that capture fills).

    ``placeholder`` is what Debezium sends for a value that the store's log did not carry; ``full_before`` says that the
    ``before`` image of an update holds every column; ``post_images``: documents are those of the event, not looked up later.
    ``resolve`` fills in the three from the catalogue and the connector's configuration. ``wrappers``: names of the members in
    which producers of a plain topic may wrap one document, or a list of them.
    """

    kind: FeedKind
    topic: str = ""
    format: str = ""
    placeholder: str = "__debezium_unavailable_value"
    full_before: bool = False
    post_images: bool = False
    wrappers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySpec:
    """How far the sink has come: a consumer group's committed offsets, an acks topic, or (both empty) nobody says."""

    group: str = ""
    acks_topic: str = ""

    @property
    def known(self) -> bool:
        return bool(self.group or self.acks_topic)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatSpec:
    """Heartbeat rows of a source store: our logical messages (``auto``), a topic of rows made elsewhere, or none."""

    auto: bool = True
    topic: str = ""
    every_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    name: str
    type: StoreType
    url: str = field(repr=False)  # holds the password; never printed
    heartbeat: HeartbeatSpec = HeartbeatSpec()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """One of several tables of a source. ``resolve`` fills in how its own feed encodes the pipeline's key and fields."""

    table: str
    feed: FeedSpec
    key: tuple[KeyColumn, ...] = ()
    fields: tuple[FieldSpec, ...] = ()
    where_fields: tuple[FieldSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    store: str
    table: str  # "schema.table" or "database.collection"; empty where there are several `tables`
    key: tuple[KeyColumn, ...]
    feed: FeedSpec
    where: str = ""  # a condition of `core/conditions`; rows that do not satisfy it are absent
    where_fields: tuple[FieldSpec, ...] = ()  # what `resolve` found of the columns that it names, in its order
    on_leave: str = "delete"  # or "ignore": what has left the filter may stay at the target, or go
    replica_identity: str = "require"
    version: str = ""  # column that rises with each write, where there is one
    changed_at: str = ""  # column with the time of the last write, for lookback sweeps
    tables: tuple[SourceTable, ...] = ()
    topic_pattern: str = ""  # names the topic of each of `tables`
    transactions: str = ""  # Debezium's transaction topic, which says how many events each transaction has

    @property
    def feeds(self) -> tuple[FeedSpec, ...]:
        """The feed of each table."""
        return tuple(one.feed for one in self.tables) or (self.feed,)

    @property
    def name(self) -> str:
        """The table, or all of them, for people."""
        return self.table or ", ".join(one.table for one in self.tables)

    @property
    def table_of(self) -> Mapping[str, str]:
        """The table by its topic, where there are several."""
        return {one.feed.topic: one.table for one in self.tables}


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    store: str
    collection: str  # "database.collection", "schema.table" or an index
    key: tuple[KeyColumn, ...]
    feed: FeedSpec
    dead_letter_topic: str = ""
    version: str = ""
    routing: str = ""  # path of the mapped field that routes a document (OpenSearch)
    changed_at: str = ""  # path of the field with the time of the last write, for lookback sweeps
    deleted_when: str = ""  # a condition of `core/conditions`; documents that satisfy it are absent
    keep_seconds: float = 0.0  # so long the target keeps a document, from the time in `keep_by`; 0: for ever
    keep_by: str = ""  # path of a mapped field
    also_read: tuple[str, ...] = ()  # paths that are read besides the mapped ones
    wires: tuple[tuple[str, int | None], ...] = ()  # of a table: how its feed encodes each field, with the scale, by `resolve`


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    documents: int = 100
    bytes: int = 5 * 1024 * 1024
    pause_seconds: float = 0.2
    adaptive: bool = False  # size and pause follow what the target can take


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    every_seconds: float | None = None
    cron: str = ""  # five fields, UTC, instead of an interval
    start_delay_seconds: float = 120.0
    lookback_seconds: float | None = None  # scheduled sweeps look back so far; None: at everything
    full_every_seconds: float | None = None  # beside those that look back, one of everything
    load: float = 0.5  # share of the time that a sweep (or each of its parts) may keep a store busy
    within_seconds: float | None = (
        None  # that a scheduled sweep may take; None: a part of the interval; 0: no longer than it must
    )
    parts: int = 1  # ranges of keys that a full sweep is cut into, for workers to share
    batch: BatchSpec = BatchSpec()


class RepairMode(StrEnum):
    """How a backfill brings documents about: it writes them, or has the pipeline deliver them again."""

    DIRECT = "direct"  # guarded writes to the target
    DEBEZIUM = "debezium"  # an incremental snapshot of just these rows
    REPUBLISH = "republish"  # the source's event once more, to its own topic


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSpec:
    missing: Policy = Policy.REPORT
    stale: Policy = Policy.REPORT
    mismatch: Policy = Policy.REPORT
    extra: Policy = Policy.REPORT
    undeleted: Policy = Policy.REPORT
    modes: tuple[RepairMode, ...] = (RepairMode.DIRECT,)  # that may be used; automatic repair takes the first
    max_documents_per_run: int = 10_000
    brake_ratio: float = 0.2
    max_attempts: int = 5
    backoff_seconds: float = 30.0  # after the first failed attempt; each further one doubles it
    undo: str = ""  # directory for files of what is overwritten


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """One source dataset → one target dataset. All durations in seconds."""

    id: str
    source: SourceSpec
    target: TargetSpec
    fields: tuple[FieldSpec, ...]
    match: Match = Match.DIGEST
    delivery: DeliverySpec = DeliverySpec()
    grace_seconds: float = 30.0  # with `grace: auto` the largest one: whatever rests on it waits long enough
    grace_least_seconds: float | None = None  # None: the grace is what was declared
    disorder_seconds: float = 0.2
    settle_seconds: float = 1.0
    clock_skew_max_seconds: float = 2.0
    stall_after_seconds: float = 30.0
    lag_limit_seconds: float | None = None  # None: 2 × grace
    confirm_again_seconds: float = 300.0
    pulse_seconds: float = 0.25
    history: int = 64
    settled_keys_max: int = 1_000_000
    pending_keys_max: int = 5_000_000
    suspects_max: int = 100_000
    baseline: str = "sweep"  # or "assume"
    coverage_target: float = 0.999
    slo_seconds: float = 900.0
    incident_threshold: int = 1_000
    evidence: str = "fields"  # digest | fields | values
    enabled: bool = True
    maintenance: tuple[str, ...] = ()  # windows, as ``core/maintenance`` reads them
    sweep: SweepSpec = SweepSpec()
    repair: RepairSpec = RepairSpec()

    @property
    def lag_limit(self) -> float:
        """Seconds after which the oldest in-transit write is the finding ``sink_lagging``."""
        return 2 * self.grace_seconds if self.lag_limit_seconds is None else self.lag_limit_seconds

    def by_table(self) -> tuple[PipelineSpec, ...]:
        """Return the pipeline as it would be with each of its source tables alone."""
        return tuple(
            replace(
                self,
                fields=one.fields or self.fields,
                source=replace(
                    self.source,
                    table=one.table,
                    feed=one.feed,
                    key=one.key or self.source.key,
                    where_fields=one.where_fields or self.source.where_fields,
                    tables=(),
                ),
            )
            for one in self.source.tables
        ) or (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicsSpec:
    prefix: str = "gapwatch"
    partitions: int = 8
    replication: int = 1

    @property
    def events(self) -> str:
        return f"{self.prefix}.events"

    @property
    def suspects(self) -> str:
        return f"{self.prefix}.suspects"

    @property
    def status(self) -> str:
        return f"{self.prefix}.status"

    @property
    def gaps(self) -> str:
        return f"{self.prefix}.gaps"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.dlq"

    def feed(self, pipeline: str, side: str) -> str:
        return f"{self.prefix}.feed.{pipeline}.{side}"

    def transactional_id(self, feed: str) -> str:
        """Return what the one that fills this feed topic is known as to Kafka."""
        return f"{self.prefix}.capture.{feed.removeprefix(f'{self.prefix}.feed.')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRegistrySpec:
    """Where schemas of Avro and JSON Schema lie. ``options``: properties of Confluent's client."""

    url: str = field(repr=False)  # may hold a password
    place: str  # the address without it
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a password


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a process of Gapwatch needs to know."""

    bootstrap_servers: str
    kafka_options: Mapping[str, str] = field(default_factory=dict, repr=False)  # librdkafka names; may hold a password
    connect_url: str = field(default="", repr=False)  # may hold a password
    schema_registry: SchemaRegistrySpec | None = None
    listen_host: str = "127.0.0.1"
    listen_port: int = 8640
    probes_host: str = ""  # where every process serves probes and metrics; port 0: nowhere
    probes_port: int = 0
    topics: TopicsSpec = TopicsSpec()
    database: str = field(default="sqlite:///gapwatch.db", repr=False)
    stores: Mapping[str, StoreSpec] = field(default_factory=dict)
    pipelines: Mapping[str, PipelineSpec] = field(default_factory=dict)
    file: str = ""  # where it was read, for messages
