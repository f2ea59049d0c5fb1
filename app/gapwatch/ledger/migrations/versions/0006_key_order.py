"""Indexes by key hold keys in their order. A version before goes on beside it, with slower look-ups.

What they hold is made of the columns ``key`` and ``key_hash``, which every version writes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

IS_OPEN = sa.text("state <> 'resolved'")


def upgrade() -> None:
    joined = "substr(key, 1, 16) || key_hash"
    if op.get_bind().dialect.name == "sqlite":
        joined = f"CAST({joined} AS BLOB)"
    columns: list[str | sa.TextClause] = ["pipeline", sa.text(f"(CASE WHEN length(key) <= 24 THEN key ELSE {joined} END)")]
    op.drop_index("uq_gaps_open_key", "gaps")
    op.drop_index("ix_gaps_key", "gaps")
    op.drop_index("ix_audit_key", "audit")
    op.create_index("uq_gaps_open_key", "gaps", columns, unique=True, sqlite_where=IS_OPEN, postgresql_where=IS_OPEN)
    op.create_index("ix_gaps_key", "gaps", columns)
    op.create_index("ix_audit_key", "audit", columns)
