"""The ledger's tables. ``migrations/versions`` creates them; a test compares the two on both databases."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    literal_column,
    text,
)

from gapwatch.ledger.types import Json, KeyBytes, Place, UtcTime, Words, serial

HEAD: Final = "0007"  # the newest migration; a test compares it with the folder

metadata = MetaData()

# Partial indexes are used only where the query repeats their condition literally: bind parameters hide it from SQLite.
RESOLVED: Final = literal_column("'resolved'", String())
IS_OPEN_SQL: Final = "state <> 'resolved'"
IS_RESOLVED_SQL: Final = "state = 'resolved'"
IS_ACTIVE_SQL: Final = "state IN ('queued', 'running')"
IS_UNCLEARED_SQL: Final = "cleared_at IS NULL"

meta = Table("meta", metadata, Column("name", String(64), primary_key=True), Column("value", Json(), nullable=False))

gaps = Table(
    "gaps",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("pipeline", String(255), nullable=False),
    Column("key", KeyBytes(), nullable=False),
    Column("key_hash", KeyBytes(), nullable=False),  # xxh3_128
    Column("key_fields", Json(), nullable=False),
    Column("target_id", Words()),
    Column("kind", String(32), nullable=False),
    Column("cause", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("detector", String(32), nullable=False),
    Column("event_time", UtcTime()),
    Column("first_seen", UtcTime(), nullable=False),
    Column("confirmed_at", UtcTime(), nullable=False),
    Column("resolved_at", UtcTime()),
    Column("resolution", String(32)),
    Column("fields", Json(), nullable=False),
    Column("occurrences", Integer(), nullable=False),
    Column("evidence", Json(), nullable=False),
    Column("note", Words(), nullable=False),
    Column("opened_by", Json()),
    Column("revision", Integer(), nullable=False),
    Column("held_since", UtcTime()),
    # At most one open gap per key, whoever found it.
    Index(
        "uq_gaps_open_key",
        "pipeline",
        Place(),
        unique=True,
        sqlite_where=text(IS_OPEN_SQL),
        postgresql_where=text(IS_OPEN_SQL),
    ),
    # Answers the summary that every status needs without touching the rows.
    Index(
        "ix_gaps_open_summary",
        "pipeline",
        "kind",
        "state",
        "confirmed_at",
        "event_time",
        "held_since",
        sqlite_where=text(IS_OPEN_SQL),
        postgresql_where=text(IS_OPEN_SQL),
    ),
    # Pages of open gaps, whatever history the table keeps.
    Index(
        "ix_gaps_open_page",
        "pipeline",
        "first_seen",
        "id",
        sqlite_where=text(IS_OPEN_SQL),
        postgresql_where=text(IS_OPEN_SQL),
    ),
    Index("ix_gaps_page", "first_seen", "id"),
    Index("ix_gaps_pipeline_page", "pipeline", "first_seen", "id"),
    Index("ix_gaps_key", "pipeline", Place()),
    Index("ix_gaps_resolved", "resolved_at", sqlite_where=text(IS_RESOLVED_SQL), postgresql_where=text(IS_RESOLVED_SQL)),
)

gap_life = Table(
    "gap_life",
    metadata,
    Column("id", serial(), primary_key=True, autoincrement=True),
    Column("gap_id", String(64), ForeignKey("gaps.id", ondelete="CASCADE"), nullable=False),
    Column("at", UtcTime(), nullable=False),
    Column("event", String(32), nullable=False),
    Column("actor", Words(), nullable=False),
    Column("revision", Integer(), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("cause", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("resolution", String(32)),
    Column("note", Words(), nullable=False),
    UniqueConstraint("gap_id", "revision", name="uq_gap_life_revision"),
    sqlite_autoincrement=True,
)

# Totals ever, kept apart from the rows they count, so that retention never makes a counter go back.
gap_totals = Table(
    "gap_totals",
    metadata,
    Column("what", String(16), primary_key=True),  # detected | resolved
    Column("pipeline", String(255), primary_key=True),
    Column("label", String(32), primary_key=True),  # kind | resolution
    Column("detector", String(32), primary_key=True),  # "" for resolutions
    Column("total", BigInteger(), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", serial(), primary_key=True, autoincrement=True),
    Column("key", String(64), nullable=False),
    Column("payload", KeyBytes(), nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, or a late outbox_done would delete another row
)

findings = Table(
    "findings",
    metadata,
    Column("number", serial(), primary_key=True, autoincrement=True),
    Column("id", String(255), nullable=False),
    Column("pipeline", String(255), nullable=False),
    Column("finding", String(32), nullable=False),
    Column("side", String(32), nullable=False),
    Column("feed", Words(), nullable=False),
    Column("first_seen", UtcTime(), nullable=False),
    Column("last_seen", UtcTime(), nullable=False),
    Column("cleared_at", UtcTime()),
    Column("message", Words(), nullable=False),
    Column("remedy", Words(), nullable=False),
    Column("time_from", UtcTime()),
    Column("time_to", UtcTime()),
    Column("is_hole", Boolean(), nullable=False),
    Column("covered_by", String(64)),
    Column("details", Json(), nullable=False),
    Index(
        "uq_findings_open",
        "pipeline",
        "finding",
        "side",
        "feed",
        "id",
        unique=True,
        sqlite_where=text(IS_UNCLEARED_SQL),
        postgresql_where=text(IS_UNCLEARED_SQL),
    ),
    Index("ix_findings_id", "id"),
    Index("ix_findings_cleared", "cleared_at"),
    sqlite_autoincrement=True,
)

unverifiable = Table(
    "unverifiable",
    metadata,
    Column("pipeline", String(255), primary_key=True),
    Column("key_hash", KeyBytes(), primary_key=True),
    Column("key", KeyBytes(), nullable=False),
    Column("oldest", UtcTime(), nullable=False),
    Column("newest", UtcTime(), nullable=False),
    Column("reason", Words(), nullable=False),
    Index("ix_unverifiable_oldest", "pipeline", "oldest"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("pipeline", String(255), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("requested_at", UtcTime(), nullable=False),
    Column("started_at", UtcTime()),
    Column("ended_at", UtcTime()),
    Column("progress", Float()),
    Column("counts", Json(), nullable=False),
    Column("error", Words()),
    Column("request", Json(), nullable=False),
    Column("requested_by", Words(), nullable=False),
    Column("cursor", Json(), nullable=False),
    Column("cancel_requested", Boolean(), nullable=False),
    Column("holder", Words()),
    Column("lease_us", BigInteger()),  # how long the holder asked for, so that every update renews by as much
    Column("lease_until", BigInteger()),  # by the database's clock, microseconds
    Column("fencing", BigInteger(), nullable=False, server_default="0"),  # one more with every taking
    # Never two of one pipeline and kind at once, on any number of workers.
    Index(
        "uq_runs_active",
        "pipeline",
        "kind",
        unique=True,
        sqlite_where=text(IS_ACTIVE_SQL),
        postgresql_where=text(IS_ACTIVE_SQL),
    ),
    Index("ix_runs_recent", "pipeline", "kind", "requested_at", "id"),
    Index("ix_runs_requested", "requested_at", "id"),
)

# Ranges of keys of a sweep that several workers share.
sweep_parts = Table(
    "sweep_parts",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer(), primary_key=True),
    Column("lower", KeyBytes()),
    Column("upper", KeyBytes()),
    Column("state", String(32), nullable=False),
    Column("counts", Json(), nullable=False),
    Column("error", Words()),
    Column("cursor", Json(), nullable=False),
    Column("holder", Words()),
    Column("lease_us", BigInteger()),
    Column("lease_until", BigInteger()),
    Column("fencing", BigInteger(), nullable=False, server_default="0"),  # one more with every taking
    Index("ix_sweep_parts_state", "state"),
)

audit = Table(
    "audit",
    metadata,
    Column("number", serial(), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("at", UtcTime(), nullable=False),
    Column("actor", Words(), nullable=False),
    Column("action", String(64), nullable=False),
    Column("pipeline", String(255), nullable=False),
    Column("key", KeyBytes()),
    Column("key_hash", KeyBytes()),
    Column("key_fields", Json()),
    Column("run_id", String(64)),
    Column("gap_id", String(64)),
    Column("outcome", String(64), nullable=False),
    Column("before", Words()),
    Column("after", Words()),
    Column("reason", Words(), nullable=False),
    Index("ix_audit_at", "at"),
    Index("ix_audit_pipeline", "pipeline", "at"),
    Index("ix_audit_key", "pipeline", Place()),
    Index("ix_audit_run", "run_id"),
    sqlite_autoincrement=True,
)

# Open gaps whose repair did not come off; next_at NULL: given up.
repairs = Table(
    "repairs",
    metadata,
    Column("gap_id", String(64), ForeignKey("gaps.id", ondelete="CASCADE"), primary_key=True),
    Column("pipeline", String(255), nullable=False),
    Column("attempts", Integer(), nullable=False),
    Column("tries", Integer(), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("reason", Words(), nullable=False),
    Column("first_at", UtcTime(), nullable=False),
    Column("last_at", UtcTime(), nullable=False),
    Column("next_at", UtcTime()),
    Column("run_id", String(64), nullable=False),
    Index("ix_repairs_pipeline", "pipeline", "next_at"),
)

epochs = Table(
    "epochs",
    metadata,
    Column("feed", String(512), primary_key=True),
    Column("partition", Integer(), primary_key=True),
    Column("topic_id", String(64), primary_key=True),
    Column("begins_at", BigInteger(), primary_key=True),
    Column("number", Integer(), nullable=False),
    UniqueConstraint("feed", "partition", "number", name="uq_epochs_number"),
)

facts = Table("facts", metadata, Column("name", String(512), primary_key=True), Column("value", Json(), nullable=False))

leases = Table(
    "leases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("holder", Words(), nullable=False),
    Column("fencing", BigInteger(), nullable=False),
    Column("expires_us", BigInteger(), nullable=False),  # by the database's clock; 0: released
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Words(), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("scopes", Json(), nullable=False),
    Column("created_at", UtcTime(), nullable=False),
    Column("created_by", Words(), nullable=False),
    Column("expires_at", UtcTime()),
    Column("revoked_at", UtcTime()),
)
