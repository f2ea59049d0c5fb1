"""Connections to Postgres: driver errors become ours, once, and never with the password in them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, dict_row

from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch_connectors.postgres.values import register

CONNECT_SECONDS = 5
ANSWER_SECONDS = 10.0  # for a read by key, or of the catalogue
PAGE_SECONDS = 35.0  # for a page of a scan; the server gives it up a little earlier
STATEMENT_MILLISECONDS = 30_000
LOCK_MILLISECONDS = 5_000  # nobody's ALTER TABLE has to wait behind a read of ours that itself waits
CONNECTIONS_MAX = 4
Connection = psycopg.AsyncConnection[Any]

_REMEDIES: dict[type[psycopg.Error], str] = {
    errors.InvalidPassword: "Correct the user or the password in the store's dsn.",
    errors.InvalidAuthorizationSpecification: "Correct the user in the store's dsn, or pg_hba.conf.",
    errors.InvalidCatalogName: "Correct the database in the store's dsn.",
    errors.InsufficientPrivilege: "Grant the user USAGE on the schema and SELECT on the table.",
    errors.UndefinedTable: "Create the table, or correct its name in the pipeline.",
    errors.InvalidSchemaName: "Correct the schema in the pipeline's table.",
    errors.UndefinedColumn: "Correct the column's name in the pipeline.",
    errors.SyntaxError: "Correct the condition in the pipeline's source.",
}
# The server's words at the door: before a connection stands the driver knows no SQLSTATE.
_AT_THE_DOOR = ("password authentication failed", "no pg_hba.conf entry", "does not exist", "is not permitted to log in")
_SAFE_HOST = re.compile(r"[\w.,:/-]*", re.ASCII)  # anything else may be a part of a password that was not escaped


def where(dsn: str) -> str:
    """Return host, port and database of a connection string, for messages; never a part of the password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "the configured address"
    shown = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
    return shown if _SAFE_HOST.fullmatch(shown) else "the configured address"


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
    text = (error.diag.message_primary or str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return StoreRefused(f"Postgres at {where(dsn)} refused: {text}.", store=store, remedy=remedy)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StoreUnreachable(f"Postgres at {where(dsn)} does not answer: {text}.", store=store, remedy="Check that it runs.")
    return StoreRefused(
        f"Postgres at {where(dsn)} refused: {text}.", store=store, remedy="Compare the pipeline's source with the table."
    )


def _no_connection(store: str, dsn: str, error: psycopg.Error) -> StoreRefused | StoreUnreachable:
    lines = str(error).splitlines()
    said = next((line for line in lines if any(part in line for part in _AT_THE_DOOR)), None)
    if isinstance(error, psycopg.OperationalError) and said is not None:
        reason = said.rsplit("FATAL:", 1)[-1].strip().rstrip(".")
        remedy = "Correct user, password and database in the store's dsn."
        return StoreRefused(f"Postgres at {where(dsn)} refused: {reason}.", store=store, remedy=remedy)
    return _ours(store, dsn, error)


class Connections:
    """A few connections to one database, opened when needed; a broken one is dropped, with those that idle beside it.

    Not psycopg's pool: that one hides why no connection could be made, and a wrong password has to be told from an outage.
    """

    def __init__(self, store: str, dsn: str, *, idle_max: int = 2, read_only: bool = True) -> None:
        self.store = store
        self.dsn = dsn
        self._idle: list[Connection] = []
        self._idle_max = idle_max
        self._read_only = read_only
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)

    @asynccontextmanager
    async def connection(self, *, seconds: float = ANSWER_SECONDS) -> AsyncIterator[Connection]:
        """Yield a connection in autocommit mode with dict rows, UTC, and exact values.

        The block ends with StoreUnreachable when it takes longer than `seconds`: a server that was stopped closes nothing.
        """
        with wrapped(self.store, self.dsn):
            async with asyncio.timeout(seconds), self._places:
                connection = self._idle.pop() if self._idle else await self._open()
                healthy = False
                try:
                    yield connection
                    healthy = True
                except psycopg.OperationalError:
                    await self.close()
                    raise
                finally:
                    usable = healthy and not connection.closed and len(self._idle) < self._idle_max
                    if usable and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                        self._idle.append(connection)
                    else:
                        await connection.close()

    async def _open(self) -> Connection:
        settings = {
            "timezone": "UTC",
            "datestyle": "ISO",
            "statement_timeout": STATEMENT_MILLISECONDS,
            "lock_timeout": LOCK_MILLISECONDS,
            "default_transaction_read_only": "on" if self._read_only else "off",
        }
        try:
            connection: psycopg.AsyncConnection[TupleRow] = await psycopg.AsyncConnection.connect(
                self.dsn,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                application_name="gapwatch",
                options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
                keepalives_idle=5,
                tcp_user_timeout=10_000,
            )
        except psycopg.ProgrammingError:
            # The driver's message quotes the string, password and all: it is not kept as the cause either.
            raise StoreRefused(
                f"The dsn of store {self.store} cannot be read.",
                store=self.store,
                remedy="Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ in the password.",
            ) from None
        except psycopg.Error as error:
            if where(self.dsn) == "the configured address":
                raise StoreUnreachable(
                    f"Postgres of store {self.store} cannot be reached at the configured address.",
                    store=self.store,
                    remedy="Correct the store's dsn; an @ in the password is written %40.",
                ) from None
            raise _no_connection(self.store, self.dsn, error) from error
        connection.row_factory = dict_row  # type: ignore[assignment]
        register(connection)
        return connection

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()
