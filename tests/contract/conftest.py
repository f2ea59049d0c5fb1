"""Ledgers for the contract suite: every test runs on SQLite and on a real Postgres, each in a database of its own."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from gapwatch.ledger import SqlLedger, open_ledger

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A Postgres of our own on a free loopback port; yields ``postgresql://…/`` without a database name."""
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="gapwatch-pg-"))
    account = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    as_user: dict[str, int] = {"user": account.pw_uid, "group": account.pw_gid} if account else {}
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, **as_user)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr

    run(f"{binaries}/initdb", "-D", str(data), "-U", "gapwatch", "-A", "trust", "-E", "UTF8", "--no-sync")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run(f"{binaries}/pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://gapwatch@127.0.0.1:{port}/"
    finally:
        run(f"{binaries}/pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> str:
    server = shutil.which("postgres")
    folders = [os.environ.get("PG_BIN", ""), str(Path(server).resolve().parent) if server else ""]
    for folder in filter(None, folders):
        if Path(folder, "initdb").exists() and Path(folder, "pg_ctl").exists():
            return folder
    pytest.fail("The ledger's contract needs a real Postgres: set PG_BIN to the folder of initdb and pg_ctl.")


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: str = request.getfixturevalue("postgres_server")
    name = f"ledger_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(f"{server}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}{name}"


@pytest.fixture
def opened() -> Iterator[Callable[[str], SqlLedger]]:
    """Opens ledgers and closes them at the end."""
    ledgers: list[SqlLedger] = []

    def open_(url: str) -> SqlLedger:
        ledgers.append(open_ledger(url))
        return ledgers[-1]

    yield open_
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def ledger(ledger_url: str, opened: Callable[[str], SqlLedger]) -> SqlLedger:
    return opened(ledger_url)
