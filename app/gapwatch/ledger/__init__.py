"""The ledger: gaps and their life, findings, runs, audit, epochs, facts, leases and tokens, in SQLite or Postgres."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from gapwatch.ledger.database import Database, parse
from gapwatch.ledger.facts import FactQueries
from gapwatch.ledger.findings import FindingQueries
from gapwatch.ledger.gaps import GapQueries
from gapwatch.ledger.parts import SweepPartQueries
from gapwatch.ledger.repairs import RepairQueries
from gapwatch.ledger.retention import Limit, Retention, RetentionQueries
from gapwatch.ledger.runs import RunQueries
from gapwatch.ledger.schema import prepare, revisions
from gapwatch.ledger.tokens import SCOPES, TokenQueries, TokenRecord

__all__ = ["SCOPES", "Limit", "Retention", "SqlLedger", "TokenRecord", "inspected", "is_new", "open_ledger"]


class SqlLedger(
    GapQueries, FindingQueries, RunQueries, SweepPartQueries, RepairQueries, FactQueries, TokenQueries, RetentionQueries
):
    """Implements :class:`gapwatch.ports.Ledger`. Safe to use from many threads; made by :func:`open_ledger`.

    Beyond the port: ``count_gaps``, ``counts_by_state``, ``outbox_size``, ``holds``, ``prune`` and the tokens.
    """

    def writes(self) -> int:
        """Return a number that grows when this process has written; see the port."""
        return self._db.writes

    def on_write(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Have `tell` called after each write that counts; see the port."""
        return self._db.on_write(tell)

    def close(self) -> None:
        self._db.close()


def is_new(url: str) -> bool:
    """Whether the ledger is a SQLite file that nobody has made yet: there is nothing to ask it. Raises UsageError."""
    parsed, _ = parse(url)
    return parsed.get_backend_name() == "sqlite" and not (parsed.database and Path(parsed.database).exists())


def open_ledger(url: str, *, host: str | None = None) -> SqlLedger:
    """Open the ledger at `url`, bringing its schema up to date under a lock.

    Args:
        url: ``sqlite:///FILE`` (relative), ``sqlite:////FILE`` (absolute) or ``postgresql://…``. A SQLite URL may end in
            ``?host=NAME``, which stands for this machine's name where that changes (containers).
        host: This machine's name; by default the one that the system says. Only a SQLite file asks for it.

    Raises:
        UsageError: the URL is none of these.
        StoreUnreachable: the database does not answer, or somebody holds the lock for too long.
        StoreRefused: no right, a dirty or newer schema, or a SQLite file of another host.
    """
    parsed, named = parse(url)
    database = Database(parsed)
    try:
        prepare(database, named or host or socket.gethostname())
    except BaseException:
        database.close()
        raise
    return SqlLedger(database)


def inspected(url: str) -> tuple[str | None, str, SqlLedger]:
    """Return the revision of a ledger's schema, the one that this version needs, and the ledger as it stands, to be read only.

    Nothing is made or migrated. Raises as :func:`open_ledger`.
    """
    parsed, _ = parse(url)
    database = Database(parsed)
    try:
        revision, needed = revisions(database)
    except BaseException:
        database.close()
        raise
    return revision, needed, SqlLedger(database)
