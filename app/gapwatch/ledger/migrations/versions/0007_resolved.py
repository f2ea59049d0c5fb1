"""The index of when gaps were resolved holds those that are: nobody asks it for others. A version before goes on beside it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

IS_RESOLVED = sa.text("state = 'resolved'")


def upgrade() -> None:
    op.drop_index("ix_gaps_resolved", "gaps")
    op.create_index("ix_gaps_resolved", "gaps", ["resolved_at"], sqlite_where=IS_RESOLVED, postgresql_where=IS_RESOLVED)
