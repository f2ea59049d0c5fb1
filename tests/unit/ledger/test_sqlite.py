"""What only SQLite has: one file for one host, several processes, a process that dies, and errors by code."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text

from gapwatch.errors import StoreRefused, StoreUnreachable, UsageError
from gapwatch.ledger import SqlLedger, database, open_ledger
from gapwatch.ports import GapFilter
from tests.ledger_samples import gap, opening

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(file: Path) -> Iterator[SqlLedger]:
    opened = open_ledger(f"sqlite:///{file}", host="here")
    yield opened
    opened.close()


def process(code: str, *arguments: str) -> subprocess.Popen[str]:
    header = "\n".join(
        (
            "import sys",
            "from dataclasses import replace",
            "from gapwatch.ledger import open_ledger",
            "from tests.ledger_samples import *",
        )
    )
    return subprocess.Popen(
        [sys.executable, "-c", header + code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_file_is_in_wal_mode_and_durable(ledger: SqlLedger) -> None:
    def pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]

    assert ledger._db.read(pragmas) == ["wal", 2, 1, 10_000]


def test_a_file_belongs_to_one_host(ledger: SqlLedger, file: Path) -> None:
    with pytest.raises(StoreRefused, match="belongs to host 'here', and this is 'there'") as refused:
        open_ledger(f"sqlite:///{file}", host="there")
    assert "?host=here" in refused.value.remedy
    open_ledger(f"sqlite:///{file}?host=here", host="there").close()


def test_two_processes_write_one_file_at_once(ledger: SqlLedger, file: Path) -> None:
    code = """
ledger = open_ledger(sys.argv[1], host="here")
print("ready", flush=True)
sys.stdin.readline()
mine = int(sys.argv[2])
stood = 0
for number in range(1, 151):
    stood += sum(ledger.store_gaps([opening(structs.replace(gap(number * 10 + mine), key=gap(number).key))]))
print(stood, flush=True)
ledger.close()
"""
    children = [process(code, f"sqlite:///{file}", str(number)) for number in (1, 2)]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        outputs = []
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            outputs.append(child.communicate(timeout=120)[0])
            assert child.returncode == 0
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert sum(int(output) for output in outputs) == 150
    assert ledger.count_gaps(GapFilter()) == 150
    assert ledger.outbox_size() == 150


@pytest.mark.parametrize("dies_before", ["INSERT INTO gap_life", "INSERT INTO outbox", "INSERT INTO gap_totals", "COMMIT"])
def test_a_process_killed_between_two_statements_leaves_nothing_half(ledger: SqlLedger, file: Path, dies_before: str) -> None:
    code = """
import os, signal
from sqlalchemy import event
ledger = open_ledger(sys.argv[1], host="here")
ledger.store_gaps([opening(gap(1))])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "COMMIT":
    event.listen(ledger._db.engine, "commit", die)
else:
    event.listen(ledger._db.engine, "before_cursor_execute", lambda c, cur, sql, *_: sql.startswith(sys.argv[2]) and die())
ledger.store_gaps([opening(gap(2))])
print("survived", flush=True)
"""
    child = process(code, f"sqlite:///{file}", dies_before)
    output = child.communicate(timeout=60)[0]
    assert output == ""
    assert child.returncode == -signal.SIGKILL
    assert ledger.gap(gap(2).id) is None
    assert ledger.gap_history(gap(2).id) == []
    assert [row.key for row in ledger.outbox(10)] == [gap(1).id]
    assert ledger.gap_counts() == {("orders", "missing", "stream"): 1}
    assert ledger.store_gaps([opening(gap(2))]) == [True], "and the next one goes on"


def test_a_locked_file_is_unreachable_not_refused(ledger: SqlLedger, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    impatient = open_ledger(f"sqlite:///{file}", host="here")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StoreUnreachable, match="locked"):
            impatient.set_fact("a", 1)
        assert impatient.fact("a") is None, "readers see the state before, without waiting"
    finally:
        other.execute("ROLLBACK")
        other.close()
    impatient.set_fact("a", 1)
    impatient.close()


def test_a_file_that_is_no_database_is_refused(file: Path) -> None:
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreRefused, match="not a database"):
        open_ledger(f"sqlite:///{file}")


def test_a_missing_folder_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="lock file") as refused:
        open_ledger(f"sqlite:///{tmp_path}/missing/ledger.db")
    assert "folder" in refused.value.remedy


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "sqlite", "", "postgresql://u:secret@h:notaport/d"])
def test_h3_an_unknown_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_ledger(url)
    assert "secret" not in str(refused.value)


def test_h3_an_unreachable_postgres_shows_no_password() -> None:
    with pytest.raises(StoreUnreachable) as unreachable:
        open_ledger("postgresql://ada:secret@127.0.0.1:1/ledger")
    assert "secret" not in str(unreachable.value)


def test_a_ledger_in_memory_serves_all_threads() -> None:
    ledger = open_ledger("sqlite://")
    ledger.store_gaps([opening(gap())])
    assert ledger.gap(gap().id) == gap()
    ledger.close()


def test_the_summary_is_answered_from_its_index(ledger: SqlLedger) -> None:
    statements: list[str] = []
    event.listen(ledger._db.engine, "before_cursor_execute", lambda _c, _cur, sql, *_: statements.append(sql))
    ledger.gap_summary("orders")
    query = next(sql for sql in statements if sql.startswith("SELECT"))

    def plan(connection: Connection) -> str:
        return " ".join(str(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", ("orders",)).all())

    assert "COVERING INDEX ix_gaps_open_summary" in ledger._db.read(plan)
