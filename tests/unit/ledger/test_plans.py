"""Which index a look-up goes by: one that reads the whole history is a hundred times as slow, and nothing else would say so."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Kind
from gapwatch.ports import GapFilter

NOW = datetime(2026, 11, 28, tzinfo=UTC)
OPEN = ("open", "acknowledged", "snoozed")
KEY = b"\x80\x07"


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (lambda ledger: ledger.audit_rows(pipeline="orders", key=KEY, limit=20), "ix_audit_key"),
        (lambda ledger: ledger.audit_rows(pipeline="orders", limit=20), "ix_audit_pipeline"),
        (lambda ledger: ledger.audit_rows(run_id="one", limit=20), "ix_audit_run"),
        (lambda ledger: ledger.audited_keys("one", action="backfill_plan"), "ix_audit_run"),
        (lambda ledger: ledger.gaps(GapFilter(pipeline="orders", key=KEY)), "ix_gaps_key"),
        (lambda ledger: ledger.gaps(GapFilter(pipeline="orders", states=OPEN), limit=200), "ix_gaps_open_page"),
        (lambda ledger: ledger.gaps(GapFilter(pipeline="orders"), limit=200), "ix_gaps_pipeline_page"),
        (lambda ledger: ledger.gap_names(GapFilter(pipeline="orders", states=OPEN), limit=200), "ix_gaps_open_page"),
        (lambda ledger: ledger.open_gaps_for("orders", [KEY]), "uq_gaps_open_key"),
        (lambda ledger: ledger.repairable("orders", frozenset(Kind), now=NOW, limit=1), "ix_gaps_open_page"),
    ],
)
def test_a_look_up_goes_by_its_index(ledger: SqlLedger, tmp_path: Path, asked: Callable[[SqlLedger], Any], index: str) -> None:
    said: list[tuple[str, Sequence[Any]]] = []
    engine = ledger._db.engine
    event.listen(engine, "before_cursor_execute", lambda _, __, statement, values, ___, ____: said.append((statement, values)))
    asked(ledger)
    statements = [(statement, values) for statement, values in said if statement.startswith("SELECT")]
    assert len(statements) == 1
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statements[0][0]}", tuple(statements[0][1])).fetchall()
    assert f"INDEX {index} (" in plan[0][3], plan
