"""Alembic's entry: runs in process, on the connection and in the transaction that ``ledger/schema.py`` opened."""

from __future__ import annotations

from alembic import context

from gapwatch.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # on SQLite as well: our transactions begin with BEGIN IMMEDIATE
    render_as_batch=True,
)
context.run_migrations()
