"""A fencing number for every taking of a run and of a part: what an earlier holder does late is told by its lower number."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("runs", "sweep_parts"):
        op.add_column(table, sa.Column("fencing", sa.BigInteger(), nullable=False, server_default="0"))
