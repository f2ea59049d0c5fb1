"""Ledgers for the contract suite: every test runs on SQLite and on a real Postgres, each in a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gapwatch.embedded import EmbeddedStack
from gapwatch.ledger import SqlLedger, open_ledger


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    stack: EmbeddedStack = request.getfixturevalue("stack")
    name: str = request.getfixturevalue("postgres_database")
    return stack.postgres.dsn(name)


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
