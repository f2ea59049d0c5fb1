"""Brings a ledger's schema to what this version of Gapwatch needs, or says exactly why it may not.

The order, all of it under a lock that only one process on any machine can hold (Postgres: an advisory lock; SQLite: a lock file):

1. a revision that this version does not know is refused: a newer Gapwatch wrote it;
2. a marker left by an unfinished migration is judged: where the revision still is the one it started from, the database rolled
   the step back (both have transactional DDL) and it is tried again, three times at most; all else is dirty, refused by name;
3. the marker is committed, then the steps and the marker's removal in one transaction;
4. every table and column that the code writes is looked up in the database.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, inspect, text

from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.ledger.database import Database, translated
from gapwatch.ledger.tables import HEAD, meta, metadata

LOCK_SECONDS: Final = 60
LOCK_PAUSE_SECONDS: Final = 0.1
ADVISORY_LOCK: Final = 7_221_908_640_001  # any number that nobody else uses on that database
RECOVERIES_MAX: Final = 3
MARKER_TABLE: Final = "schema_change"


def prepare(database: Database, host: str) -> None:
    """Migrate and check. Raises StoreRefused (with a remedy) when the schema or the host does not fit."""
    if database.is_sqlite:
        with _lock(database):  # even to look: a new file's switch to WAL does not wait for others that do the same
            if not _is_current(database):
                _migrate(database)
    elif not _is_current(database):
        with _lock(database):
            _migrate(database)
    _verify(database)
    if database.file is not None:
        database.write(lambda connection: _claim_host(connection, host))


def revisions(database: Database) -> tuple[str | None, str]:
    """Return the schema's revision (None: nothing is there) and the one that this version needs; changes nothing."""
    return database.read(_revision), HEAD


def _is_current(database: Database) -> bool:
    """Whether nothing is to be done: then alembic, which is slow to import, is not needed at all."""

    def look(connection: Connection) -> bool:
        return _revision(connection) == HEAD and _marker(connection) is None

    return database.read(look)


def _migrate(database: Database) -> None:
    revision = database.read(_revision)
    if revision is not None and revision not in _known_revisions():
        raise StoreRefused(
            f"The ledger's schema is at revision {revision}, which this version of Gapwatch does not know (it knows {HEAD}).",
            store="ledger",
            remedy="Start the newer Gapwatch that made it, or restore the ledger from before the upgrade.",
        )
    marker = database.read(_marker)
    attempt = _judge_marker(marker, revision) if marker is not None else 1
    if revision == HEAD and marker is None:
        return  # another process was faster
    database.write(lambda connection: _set_marker(connection, revision, attempt))
    database.write(_upgrade)


def _judge_marker(marker: Mapping[str, Any], revision: str | None) -> int:
    """Return the number of the next attempt; raises StoreRefused when the state is dirty."""
    before, after, attempts = marker["from"], marker["to"], int(marker["attempts"])
    change = f"from {before or 'nothing'} to {after}"
    remedy = f"Restore the ledger from a backup, or finish the change by hand and drop the table {MARKER_TABLE}."
    if revision != before:
        raise StoreRefused(
            f"The ledger's schema is dirty: the migration {change} did not end, and the revision is {revision or 'none'}.",
            store="ledger",
            remedy=remedy,
        )
    if attempts >= RECOVERIES_MAX:
        raise StoreRefused(
            f"The ledger's schema is dirty: the migration {change} was tried {attempts} times and did not end.",
            store="ledger",
            remedy=remedy,
        )
    return attempts + 1


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.execute(text(f"DROP TABLE {MARKER_TABLE}"))


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "gapwatch.ledger:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if revision is None else str(revision)


def _marker(connection: Connection) -> Mapping[str, Any] | None:
    if not inspect(connection).has_table(MARKER_TABLE):
        return None
    row = connection.execute(text(f"SELECT before, after, attempts FROM {MARKER_TABLE}")).one_or_none()  # noqa: S608
    return None if row is None else {"from": row.before, "to": row.after, "attempts": row.attempts}


def _set_marker(connection: Connection, before: str | None, attempts: int) -> None:
    connection.execute(
        text(f"CREATE TABLE IF NOT EXISTS {MARKER_TABLE} (before VARCHAR(32), after VARCHAR(32), attempts INTEGER NOT NULL)")
    )
    connection.execute(text(f"DELETE FROM {MARKER_TABLE}"))  # noqa: S608
    connection.execute(
        text(f"INSERT INTO {MARKER_TABLE} (before, after, attempts) VALUES (:before, :after, :attempts)"),  # noqa: S608
        {"before": before, "after": HEAD, "attempts": attempts},
    )


def _verify(database: Database) -> None:
    """Refuse to start on a database that lacks a column which the code writes."""

    def missing(connection: Connection) -> list[str]:
        inspector = inspect(connection)
        tables = set(inspector.get_table_names())
        lacking: list[str] = []
        for table in metadata.sorted_tables:
            if table.name not in tables:
                lacking.append(table.name)
                continue
            columns = {column["name"] for column in inspector.get_columns(table.name)}
            lacking += [f"{table.name}.{column.name}" for column in table.columns if column.name not in columns]
        return lacking

    lacking = database.read(missing)
    if lacking:
        raise StoreRefused(
            f"The ledger's schema says revision {HEAD} but lacks {', '.join(lacking)}.",
            store="ledger",
            remedy="Somebody changed it by hand: restore it from a backup, or let Gapwatch make a new database.",
        )


def _claim_host(connection: Connection, host: str) -> None:
    """Write our host into a SQLite file, or refuse: WAL needs shared memory, so one file serves one machine only."""
    row = connection.execute(meta.select().where(meta.c.name == "host")).one_or_none()
    if row is None:
        connection.execute(meta.insert().values(name="host", value=host))
    elif row.value != host:
        raise StoreRefused(
            f"The ledger's SQLite file belongs to host {row.value!r}, and this is {host!r}.",
            store="ledger",
            remedy="Use Postgres when several machines share a ledger;"
            f" where the file was moved, or a container has changed its name, add ?host={row.value} to the URL.",
        )


@contextmanager
def _lock(database: Database) -> Iterator[None]:
    if not database.is_sqlite:
        with _advisory_lock(database):
            yield
    elif database.file is not None:
        with _file_lock(f"{database.file}.lock"):
            yield
    else:
        yield  # in memory: nobody else has it


@contextmanager
def _advisory_lock(database: Database) -> Iterator[None]:
    with translated(), database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(int(LOCK_SECONDS / LOCK_PAUSE_SECONDS)):
            if connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK}).scalar_one():
                break
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            raise _locked()
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": ADVISORY_LOCK})


@contextmanager
def _file_lock(path: str) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreRefused(
            f"The ledger's lock file cannot be made: {error.strerror}.",
            store="ledger",
            remedy="The folder of the SQLite file must exist, and Gapwatch must be allowed to write there.",
        ) from error
    try:
        for _ in range(int(LOCK_SECONDS / LOCK_PAUSE_SECONDS)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_SECONDS)
        else:
            raise _locked()
        yield
    finally:
        os.close(descriptor)  # releases the lock; the file stays, or two processes might lock two files of one name


def _locked() -> StoreUnreachable:
    return StoreUnreachable("Another process has been changing the ledger's schema for a minute.", store="ledger")
