"""Open gaps whose repair did not come off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "repairs",
        sa.Column("gap_id", sa.String(64), sa.ForeignKey("gaps.id", ondelete="CASCADE"), nullable=False),
        sa.Column("pipeline", sa.String(255), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger()),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("gap_id"),
    )
    op.create_index("ix_repairs_pipeline", "repairs", ["pipeline", "next_at"])
