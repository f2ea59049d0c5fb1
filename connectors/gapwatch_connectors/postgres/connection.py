"""Connections to Postgres: driver errors become ours, once, and never with the password in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import set_json_loads

from gapwatch.core.values import JsonText
from gapwatch.errors import StoreRefused, StoreUnreachable

CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 30_000
Connection = psycopg.AsyncConnection[Any]

_REMEDIES: dict[type[psycopg.Error], str] = {
    errors.InvalidPassword: "Correct the user or the password in the store's dsn.",
    errors.InvalidAuthorizationSpecification: "Correct the user in the store's dsn, or pg_hba.conf.",
    errors.InvalidCatalogName: "Correct the database in the store's dsn.",
    errors.InsufficientPrivilege: "Grant the user USAGE on the schema and SELECT on the table.",
    errors.UndefinedTable: "Create the table, or correct its name in the pipeline.",
    errors.InvalidSchemaName: "Correct the schema in the pipeline's table.",
    errors.UndefinedColumn: "Correct the column's name in the pipeline.",
}


def where(dsn: str) -> str:
    """Return host and database of a connection string, for messages; never the password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return urlsplit(dsn).hostname or "postgres"
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


@contextmanager
def wrapped(store: str, dsn: str) -> Iterator[None]:
    """Turn psycopg's errors into StoreRefused or StoreUnreachable."""
    try:
        yield
    except psycopg.Error as error:
        raise _ours(store, dsn, error) from error
    except (OSError, TimeoutError) as error:
        raise StoreUnreachable(f"Postgres at {where(dsn)} does not answer.", store=store, remedy="Check that it runs.") from error


def _ours(store: str, dsn: str, error: psycopg.Error) -> StoreRefused | StoreUnreachable:
    text = (error.diag.message_primary or str(error)).strip().splitlines()[0]
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return StoreRefused(f"Postgres at {where(dsn)} refused: {text}.", store=store, remedy=remedy)
    refused = ("password authentication failed", "no pg_hba.conf entry", "does not exist")
    if isinstance(error, psycopg.OperationalError) and any(part in str(error) for part in refused):
        # Before a connection stands the driver knows no SQLSTATE, so the server's words have to do.
        said = next(line for line in str(error).splitlines() if any(part in line for part in refused))
        reason = said.rsplit("FATAL:", 1)[-1].strip()
        remedy = "Correct user, password and database in the store's dsn."
        return StoreRefused(f"Postgres at {where(dsn)} refused: {reason}.", store=store, remedy=remedy)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StoreUnreachable(f"Postgres at {where(dsn)} does not answer: {text}.", store=store, remedy="Check that it runs.")
    return StoreRefused(f"Postgres at {where(dsn)} refused: {text}.", store=store)


class Connections:
    """A few connections to one database, opened when needed; a broken one is dropped."""

    def __init__(self, store: str, dsn: str, *, idle_max: int = 2) -> None:
        self.store = store
        self.dsn = dsn
        self._idle: list[Connection] = []
        self._idle_max = idle_max

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Yield a connection in autocommit mode with dict rows, UTC, and exact JSON."""
        with wrapped(self.store, self.dsn):
            connection = self._idle.pop() if self._idle else await self._open()
            healthy = False
            try:
                yield connection
                healthy = True
            finally:
                usable = healthy and not connection.closed and len(self._idle) < self._idle_max
                if usable and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                    self._idle.append(connection)
                else:
                    await connection.close()

    async def _open(self) -> Connection:
        connection: psycopg.AsyncConnection[TupleRow] = await psycopg.AsyncConnection.connect(
            self.dsn,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="gapwatch",
            options=f"-c timezone=UTC -c statement_timeout={STATEMENT_MILLISECONDS} -c datestyle=ISO",
            keepalives_idle=5,
            tcp_user_timeout=10_000,
        )
        connection.row_factory = dict_row  # type: ignore[assignment]
        set_json_loads(lambda text: JsonText(text if isinstance(text, str) else bytes(text).decode()), connection)
        return connection

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()
