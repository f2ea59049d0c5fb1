"""One SQL database, SQLite or Postgres: connections, transactions, its own clock, and errors as the ports promise them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

from sqlalchemy import BigInteger, Connection, Engine, Table, create_engine, event, literal_column, select
from sqlalchemy import exc as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import ColumnElement

from gapwatch.errors import ConflictError, GapwatchError, StoreError, StoreRefused, StoreUnreachable, UsageError

BUSY_SECONDS: Final = 10
ROWS_PER_TRANSACTION_MAX: Final = 500
RETRIES_MAX: Final = 5
RETRY_PAUSE_SECONDS: Final = 0.02
POOL_SIZE: Final = 4
POOL_OVERFLOW: Final = 8
STATEMENT_SECONDS: Final = 30
CACHE_KIB: Final = 16 * 1024  # of one connection to SQLite: ids are spread over all pages of an index
CHECKPOINT_PAGES: Final = 4_000  # of 4 KiB: how much SQLite's log may hold before it is written into the file

T = TypeVar("T")

# Primary result codes of SQLite (https://sqlite.org/rescode.html): waiting, or freeing space, may change these answers.
_SQLITE_PASSING = frozenset({5, 6, 10, 13, 15})  # BUSY LOCKED IOERR FULL PROTOCOL
# Classes of SQLSTATE, and single states: connection, resources, operator intervention, lock not available, query cancelled.
_PG_PASSING = ("08", "53", "57", "58", "55P03", "25006")
_PG_AGAIN = frozenset({"40001", "40P01"})  # serialization failure, deadlock: the transaction was rolled back, run it again


class Database:
    """Runs transactions. ``read`` and ``write`` take a function of a connection and return what it returns."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.file = _file(url) if self.is_sqlite else None
        self.engine = _sqlite(url, self.file) if self.is_sqlite else _postgres(url)
        self.writes = 0
        self._writer = Lock() if self.is_sqlite else None
        self._numbers = count(1)
        self._told: dict[int, Callable[[], None]] = {}  # by when they came
        self._listeners = count()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that sees one state and never waits for writers."""
        with translated(), self.engine.connect().execution_options(gapwatch_read=True) as connection, connection.begin():
            return work(connection)

    def write(self, work: Callable[[Connection], T], *, counts: bool = True) -> T:
        """Run `work` in a transaction; once more when the database rolled it back in favour of another one.

        Afterwards ``writes`` has grown, unless the write does not count: it tells nobody of anything to do.
        """
        try:
            return self._write(work)
        finally:
            if counts:
                self.writes = next(self._numbers)
                for tell in tuple(self._told.values()):
                    tell()

    def on_write(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Have `tell` called after each write that counts, by its thread; return what ends that."""
        number = next(self._listeners)
        self._told[number] = tell

        def leave() -> None:
            self._told.pop(number, None)

        return leave

    def _write(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(RETRIES_MAX):
            try:
                with translated(), self._turn(), self.engine.begin() as connection:
                    return work(connection)
            except _AgainError as again:
                if attempt == RETRIES_MAX - 1:
                    raise StoreUnreachable(again.message, store="ledger") from again
                time.sleep(RETRY_PAUSE_SECONDS * (attempt + 1))
        raise AssertionError("unreachable")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for this process's other writers: SQLite admits one, and others sleep before they ask again."""
        if self._writer is None:
            yield
            return
        ours = self._writer.acquire(timeout=BUSY_SECONDS)  # else SQLite says what there is to say
        try:
            yield
        finally:
            if ours:
                self._writer.release()

    def now(self) -> ColumnElement[int]:
        """Return SQL for the database's clock in microseconds since the epoch: the one clock that all workers share."""
        if self.is_sqlite:
            return literal_column("CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)", BigInteger())
        return literal_column("CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)", BigInteger())

    def now_us(self, connection: Connection) -> int:
        return int(connection.execute(select(self.now())).scalar_one())

    def insert(self, table: Table) -> Any:
        """Return an INSERT of the dialect, which knows ON CONFLICT and RETURNING (alike in both, of unrelated types)."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        self.engine.dispose()


def parse(url: str) -> tuple[URL, str | None]:
    """Return the URL for SQLAlchemy and the host name that a SQLite URL may carry (``?host=…``)."""
    try:
        parsed = make_url(url)
    except (sa.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise _bad_url() from None  # the cause would show the password
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg"), None
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise _bad_url()
    host = parsed.query.get("host")
    return parsed.difference_update_query(["host"]), host if isinstance(host, str) else None


def _bad_url() -> UsageError:
    return UsageError(
        "The ledger's database URL is not understood.",
        remedy="Use sqlite:///FILE.db, or postgresql://USER:PASSWORD@HOST/DATABASE when several workers share it.",
    )


def _file(url: URL) -> Path | None:
    return Path(url.database).absolute() if url.database and url.database != ":memory:" else None


def _sqlite(url: URL, file: Path | None) -> Engine:
    # In memory there is one database per connection, so there may be only one connection.
    size: dict[str, Any] = (
        {"pool_size": POOL_SIZE, "max_overflow": POOL_OVERFLOW} if file else {"pool_size": 1, "max_overflow": 0}
    )
    engine = create_engine(
        url,
        hide_parameters=True,
        poolclass=QueuePool,
        pool_timeout=STATEMENT_SECONDS,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
        **size,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
            cursor.execute("PRAGMA foreign_keys = ON")
            if file:
                cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            cursor.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            cursor.execute("PRAGMA synchronous = FULL")  # a gap that was acknowledged survives a power cut
        finally:
            cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE: a deferred transaction that turns from reading to writing fails at once when another one wrote meanwhile.
        reading = connection.get_execution_options().get("gapwatch_read")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgres(url: URL) -> Engine:
    # One snapshot per statement for writers (they re-read what they locked); readers ask for one per transaction.
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=STATEMENT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": BUSY_SECONDS,
            "application_name": "gapwatch-ledger",
            "keepalives_idle": STATEMENT_SECONDS,
            "tcp_user_timeout": STATEMENT_SECONDS * 1000,
        },
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        # SET LOCAL, so that it also holds behind a connection pooler.
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
        # A process that is frozen in between would keep its row locks, and nobody could take over what it held.
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'")
        if connection.get_execution_options().get("gapwatch_read"):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    return engine


class _AgainError(StoreUnreachable):
    """The database rolled the transaction back in favour of another one."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLAlchemy's and the drivers' errors into the ledger's. Messages hold no parameter, no row and no URL."""
    try:
        yield
    except GapwatchError:
        raise
    except sa.TimeoutError as error:
        raise StoreUnreachable("The ledger has no free connection.", store="ledger") from error
    except sa.IntegrityError as error:
        raise ConflictError(f"The ledger refused a row that contradicts another one: {_words(error)}.") from error
    except sa.DBAPIError as error:
        raise _store_error(error) from error


def _store_error(error: sa.DBAPIError) -> StoreError:
    words = _words(error)
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        passing = sqlite_code & 0xFF in _SQLITE_PASSING  # the low byte is the primary code
    else:
        state = getattr(error.orig, "sqlstate", None)
        if state in _PG_AGAIN:
            return _AgainError(f"The ledger's transactions keep colliding: {words}.", store="ledger")
        is_operational = isinstance(error, sa.OperationalError | sa.InterfaceError)
        passing = error.connection_invalidated or (state.startswith(_PG_PASSING) if state else is_operational)
    if passing:
        return StoreUnreachable(f"The ledger does not answer: {words}.", store="ledger")
    return StoreRefused(
        f"The ledger refused: {words}.",
        store="ledger",
        remedy="Check that the database of the configuration exists, that its role may write, and that the disk is sound.",
    )


def _words(error: sa.DBAPIError) -> str:
    """Return the driver's first line: what comes after it may show row data."""
    lines = str(error.orig).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error.orig).__name__
