"""Gaps, findings, holes and statuses, as they are stored, shown and published (``product.md`` 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from msgspec import Struct


class Kind(StrEnum):
    MISSING = "missing"
    STALE = "stale"
    MISMATCH = "mismatch"
    EXTRA = "extra"
    UNDELETED = "undeleted"
    DUPLICATE = "duplicate"
    AHEAD = "ahead"


class Cause(StrEnum):
    LOST_IN_STREAM = "lost_in_stream"
    NEVER_WRITTEN = "never_written"
    REJECTED = "rejected"
    DEAD_LETTERED = "dead_lettered"
    OVERWRITTEN = "overwritten"
    RESURRECTED = "resurrected"
    OUT_OF_BAND = "out_of_band"
    SKIPPED_BY_POLICY = "skipped_by_policy"
    UNKNOWN = "unknown"


class State(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    SNOOZED = "snoozed"
    REPAIRING = "repairing"
    RESOLVED = "resolved"


class Resolution(StrEnum):
    LATE_ARRIVAL = "late_arrival"
    BACKFILLED = "backfilled"
    SUPERSEDED = "superseded"
    DELETED_AT_SOURCE = "deleted_at_source"
    ACCEPTED = "accepted"
    MANUAL = "manual"


class Detector(StrEnum):
    STREAM = "stream"
    SWEEP = "sweep"
    REPLAY = "replay"
    CANARY = "canary"
    MANUAL = "manual"


class Finding(StrEnum):
    """Stream findings: what is wrong with a feed, rather than with a key."""

    SLOT_LOST = "slot_lost"
    SLOT_JUMPED = "slot_jumped"
    HISTORY_LOST = "history_lost"
    LOG_TRUNCATED = "log_truncated"
    TOPIC_RECREATED = "topic_recreated"
    PARTITIONS_ADDED = "partitions_added"
    FEED_STALLED = "feed_stalled"
    DELIVERY_UNKNOWN = "delivery_unknown"
    CONNECTOR_FAILED = "connector_failed"
    SINK_LAGGING = "sink_lagging"
    DLQ_GROWING = "dlq_growing"
    SCHEMA_CHANGED = "schema_changed"
    REPLICA_IDENTITY = "replica_identity"
    TRUNCATED = "truncated"
    INGEST_HOLE = "ingest_hole"
    MAPPING_CHANGED = "mapping_changed"
    MAPPING_SUSPECT = "mapping_suspect"
    CLOCK_SKEW = "clock_skew"
    INCIDENT = "incident"


class Severity(IntEnum):
    """Order of pipeline statuses: the worst one is shown."""

    SKIPPED = 0
    HEALTHY = 1
    WARNING = 2
    UNKNOWN = 3
    ERROR = 4
    CRITICAL = 5


class Gap(Struct, frozen=True, kw_only=True):
    """One confirmed difference of one key. ``key`` holds canonical bytes, ``key_fields`` what a person reads.

    ``opened_by`` is the token (side, epoch, major, minor) that raised it, None for a sweep's. ``revision`` counts changes;
    a change is stored only against the revision that was read. ``evidence`` are plain objects, see ``product.md`` 3.
    ``held_since`` stands in for an unknown ``event_time``: the start of the last completed sweep before the one that found it;
    beside one, it is the earlier time from which the target was wrong already.
    """

    id: str
    pipeline: str
    key: bytes
    key_fields: dict[str, Any]
    target_id: str | None
    kind: Kind
    cause: Cause
    state: State
    detector: Detector
    event_time: datetime | None
    first_seen: datetime
    confirmed_at: datetime
    resolved_at: datetime | None = None
    resolution: Resolution | None = None
    fields: tuple[str, ...] = ()
    occurrences: int = 1
    evidence: tuple[dict[str, Any], ...] = ()
    note: str = ""
    opened_by: tuple[int, int, int, int] | None = None
    revision: int = 1
    held_since: datetime | None = None


class GapName(Struct, frozen=True):
    """Which gap it is, and of what kind: all that a plan keeps of it. Of a hundred thousand, evidence alone would be 150 MiB."""

    id: str
    key: bytes
    key_fields: dict[str, Any]
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class GapSummary:
    """Per pipeline: open gaps (states open, acknowledged, snoozed, repairing) by kind; what holds consistent-through.

    ``holding_since`` is the smallest time from which one of those gaps holds it (event time or ``held_since``), None where
    there is none; ``holding_unknown`` says that one of them has neither: consistent-through is then undefined.
    """

    open_by_kind: Mapping[str, int] = field(default_factory=dict)
    alerting: int = 0  # states open and repairing
    oldest_alerting: datetime | None = None  # confirmed_at
    holding_since: datetime | None = None
    holding_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GapBurst:
    """Open gaps of one pipeline that were first seen since some time: how many of each kind, and the first few of them."""

    by_kind: Mapping[str, int] = field(default_factory=dict)
    since: datetime | None = None  # when the first of them was seen
    samples: Sequence[Mapping[str, Any]] = ()  # ``gap`` (its id), ``kind``, ``key``

    @property
    def count(self) -> int:
        return sum(self.by_kind.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRecord:
    """A stream finding. ``position_from/to`` are printable; a finding that can mean loss has a time range and is a hole."""

    id: str
    pipeline: str
    finding: Finding
    side: str
    feed: str
    first_seen: datetime
    last_seen: datetime
    cleared_at: datetime | None = None
    message: str = ""
    remedy: str = ""
    time_from: datetime | None = None
    time_to: datetime | None = None
    is_hole: bool = False
    covered_by: str | None = None  # the sweep that covered the hole
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ongoing(self) -> bool:
        """Whether the hole still grows: what it may lose is not over, so no sweep can cover it yet."""
        return self.is_hole and bool(self.details.get("ongoing"))


class RunKind(StrEnum):
    SWEEP = "sweep"
    BACKFILL = "backfill"
    REPLAY = "replay"
    CHECK = "check"


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    INCONCLUSIVE = "inconclusive"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One sweep, backfill, replay or check. ``request`` says what was asked, ``counts`` what came of it.

    ``fencing``: how often it had been taken when this was read; a holder's own number is the one that it took the run with.
    """

    id: str
    pipeline: str
    kind: RunKind
    state: RunState
    requested_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    progress: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    request: dict[str, Any] = field(default_factory=dict)
    requested_by: str = ""
    cursor: dict[str, Any] = field(default_factory=dict)
    cancel_requested: bool = False
    fencing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPart:
    """A range of keys of a sweep that workers share. ``lower``: its first key, ``upper``: the first one behind it; None: no end.

    ``state``, ``counts``, ``error``, ``cursor`` and ``fencing`` are a run's, of this range alone.
    """

    run_id: str
    number: int
    lower: bytes | None
    upper: bytes | None
    state: RunState = RunState.QUEUED
    counts: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    cursor: dict[str, Any] = field(default_factory=dict)
    fencing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRecord:
    """An open gap whose repair did not come off: how often, why, and when it is tried again (None: not by itself).

    ``attempts`` counts failures of the document itself; ``tries`` also what says nothing of it (a store did not answer, somebody
    else wrote at the same moment), and makes the pauses longer. ``gap`` is the gap as it is now; None where a record is stored.
    """

    gap_id: str
    pipeline: str
    attempts: int
    tries: int
    outcome: str
    reason: str
    first_at: datetime
    last_at: datetime
    next_at: datetime | None
    run_id: str
    gap: Gap | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPressure:
    """What automatic repair has before it and behind it. Keys and documents of the kinds that it repairs.

    ``waiting`` gaps are open and not given up; ``handled`` keys were tried since then, of which ``failed`` failed; ``written``
    counts gaps that are resolved since their document was written.
    """

    waiting: int = 0
    handled: int = 0
    failed: int = 0
    written: int = 0


class AuditRow(Struct, frozen=True, kw_only=True):
    """Who did what to which document, with what came of it. ``before``/``after`` are digests or values, as `evidence` says."""

    id: str
    at: datetime
    actor: str
    action: str  # backfill_write, backfill_undo, gap_ack, sweep_start, token_create …
    pipeline: str
    key: bytes | None
    key_fields: dict[str, Any] | None
    run_id: str | None
    gap_id: str | None
    outcome: str  # planned | written | already_newer | vanished | failed | …
    before: str | None = None
    after: str | None = None
    reason: str = ""
