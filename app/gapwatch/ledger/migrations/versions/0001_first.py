"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _meta()
    _gaps()
    _gap_life()
    _gap_totals()
    _outbox()
    _findings()
    _unverifiable()
    _runs()
    _audit()
    _epochs()
    _facts()
    _leases()
    _tokens()


def _meta() -> None:
    op.create_table(
        "meta",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _gaps() -> None:
    op.create_table(
        "gaps",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_fields", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text()),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("cause", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("detector", sa.String(32), nullable=False),
        sa.Column("event_time", sa.BigInteger()),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at", sa.BigInteger()),
        sa.Column("resolution", sa.String(32)),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("occurrences", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("opened_by", sa.Text()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("held_since", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_gaps_key", "gaps", ["pipeline", "key_hash"])
    op.create_index(
        "ix_gaps_open_summary",
        "gaps",
        ["pipeline", "kind", "state", "confirmed_at", "event_time", "held_since"],
        sqlite_where=sa.text("state <> 'resolved'"),
        postgresql_where=sa.text("state <> 'resolved'"),
    )
    op.create_index("ix_gaps_page", "gaps", ["first_seen", "id"])
    op.create_index("ix_gaps_pipeline_page", "gaps", ["pipeline", "first_seen", "id"])
    op.create_index("ix_gaps_resolved", "gaps", ["resolved_at"])
    op.create_index(
        "uq_gaps_open_key",
        "gaps",
        ["pipeline", "key_hash"],
        unique=True,
        sqlite_where=sa.text("state <> 'resolved'"),
        postgresql_where=sa.text("state <> 'resolved'"),
    )


def _gap_life() -> None:
    op.create_table(
        "gap_life",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("gap_id", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("cause", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("resolution", sa.String(32)),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["gap_id"], ["gaps.id"], ondelete="CASCADE"),
        sa.UniqueConstraint("gap_id", "revision", name="uq_gap_life_revision"),
        sqlite_autoincrement=True,
    )


def _gap_totals() -> None:
    op.create_table(
        "gap_totals",
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("label", sa.String(32), nullable=False),
        sa.Column("detector", sa.String(32), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("what", "pipeline", "label", "detector"),
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )


def _findings() -> None:
    op.create_table(
        "findings",
        sa.Column("number", SERIAL, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("finding", sa.String(32), nullable=False),
        sa.Column("side", sa.String(32), nullable=False),
        sa.Column("feed", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False),
        sa.Column("cleared_at", sa.BigInteger()),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("remedy", sa.Text(), nullable=False),
        sa.Column("time_from", sa.BigInteger()),
        sa.Column("time_to", sa.BigInteger()),
        sa.Column("is_hole", sa.Boolean(), nullable=False),
        sa.Column("covered_by", sa.String(64)),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_findings_cleared", "findings", ["cleared_at"])
    op.create_index("ix_findings_id", "findings", ["id"])
    op.create_index(
        "uq_findings_open",
        "findings",
        ["pipeline", "finding", "side", "feed", "id"],
        unique=True,
        sqlite_where=sa.text("cleared_at IS NULL"),
        postgresql_where=sa.text("cleared_at IS NULL"),
    )


def _unverifiable() -> None:
    op.create_table(
        "unverifiable",
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("oldest", sa.BigInteger(), nullable=False),
        sa.Column("newest", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "key_hash"),
    )
    op.create_index("ix_unverifiable_oldest", "unverifiable", ["pipeline", "oldest"])


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("progress", sa.Float()),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("lease_us", sa.BigInteger()),
        sa.Column("lease_until", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_runs_recent", "runs", ["pipeline", "kind", "requested_at", "id"])
    op.create_index("ix_runs_requested", "runs", ["requested_at", "id"])
    op.create_index(
        "uq_runs_active",
        "runs",
        ["pipeline", "kind"],
        unique=True,
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("number", SERIAL, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("key", sa.LargeBinary()),
        sa.Column("key_hash", sa.LargeBinary()),
        sa.Column("key_fields", sa.Text()),
        sa.Column("run_id", sa.String(64)),
        sa.Column("gap_id", sa.String(64)),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("before", sa.Text()),
        sa.Column("after", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_key", "audit", ["pipeline", "key_hash"])
    op.create_index("ix_audit_pipeline", "audit", ["pipeline", "at"])
    op.create_index("ix_audit_run", "audit", ["run_id"])


def _epochs() -> None:
    op.create_table(
        "epochs",
        sa.Column("feed", sa.String(512), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("topic_id", sa.String(64), nullable=False),
        sa.Column("begins_at", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("feed", "partition", "topic_id", "begins_at"),
        sa.UniqueConstraint("feed", "partition", "number", name="uq_epochs_number"),
    )


def _facts() -> None:
    op.create_table(
        "facts",
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("fencing", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
    )
