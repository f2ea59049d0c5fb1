"""What a process need not load, it does not: starting Python is a good part of what a short command or a new worker costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gapwatch.ledger import open_ledger
from gapwatch.ledger.bulk import Bulk


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("gapwatch.roles.ingest.role, gapwatch.kafka.clients, gapwatch.ledger", ("numpy", "aiohttp", "faust", "alembic")),
        ("gapwatch.roles.match.role", ("sqlalchemy", "gapwatch_connectors", "aiohttp")),
        ("gapwatch.wiring.replaying", ("faust", "alembic")),
        ("gapwatch.wiring.service, gapwatch.roles.match.role", ("gapwatch.http", "aiohttp", "psycopg", "pymongo", "alembic")),
    ],
)
def test_a_role_loads_no_more_than_it_needs(modules: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_a_ledger_compiles_what_a_sweep_needs_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Bulk] = []
    monkeypatch.setattr("gapwatch.ledger.bulk.Bulk._compiled", lambda self, *_: made.append(self))
    ledger = open_ledger("sqlite://")
    assert ledger.newest_epoch("t", 0, "id") == 1
    assert made == []
    ledger.close()
