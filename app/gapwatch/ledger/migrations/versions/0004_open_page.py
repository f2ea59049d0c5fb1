"""An index of open gaps in the order of their pages: what is resolved is many times as much, and need not be passed over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

IS_OPEN = sa.text("state <> 'resolved'")


def upgrade() -> None:
    columns = ["pipeline", "first_seen", "id"]
    op.create_index("ix_gaps_open_page", "gaps", columns, sqlite_where=IS_OPEN, postgresql_where=IS_OPEN)
