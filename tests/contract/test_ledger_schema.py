"""Migrations: they make what the code writes, under a lock, and a state that does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from gapwatch.errors import StoreRefused
from gapwatch.ledger import SqlLedger, schema
from gapwatch.ledger.database import Database, parse
from gapwatch.ledger.tables import HEAD, metadata
from tests.ledger_samples import gap, opening

pytestmark = pytest.mark.integration
Opener = Callable[[str], SqlLedger]


def execute(url: str, *statements: str) -> None:
    database = Database(parse(url)[0])
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    database.close()


def leave_marker(url: str, before: str | None, attempts: int) -> None:
    database = Database(parse(url)[0])
    database.write(lambda connection: schema._set_marker(connection, before, attempts))
    database.close()


def test_the_migrations_make_exactly_what_the_code_knows(ledger: SqlLedger) -> None:
    with ledger._db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        ours = [
            difference
            for difference in compare_metadata(context, metadata)
            if getattr(difference[1], "name", "") != schema.MARKER_TABLE
        ]
    assert ours == []


def test_head_is_the_newest_migration() -> None:
    scripts = ScriptDirectory.from_config(schema._config())
    assert scripts.get_heads() == [HEAD]


def test_k5_opening_again_changes_nothing(ledger_url: str, opened: Opener) -> None:
    opened(ledger_url).store_gaps([opening(gap())])
    assert opened(ledger_url).gap(gap().id) == gap()


def test_many_open_a_new_ledger_at_once(ledger_url: str, opened: Opener) -> None:
    with ThreadPoolExecutor(6) as pool:
        ledgers = list(pool.map(opened, [ledger_url] * 6))
    assert ledgers[0].store_gaps([opening(gap())]) == [True]
    assert all(ledger.gap(gap().id) == gap() for ledger in ledgers)


def test_a_schema_of_a_newer_version_is_refused(ledger_url: str, opened: Opener) -> None:
    opened(ledger_url)
    execute(ledger_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreRefused, match="9999, which this version of Gapwatch does not know"):
        opened(ledger_url)


def test_lesson_41_a_column_that_is_not_there_is_named_at_the_start(ledger_url: str, opened: Opener) -> None:
    opened(ledger_url)
    execute(ledger_url, "ALTER TABLE gaps DROP COLUMN target_id", "DROP TABLE tokens")
    with pytest.raises(StoreRefused, match=r"lacks gaps\.target_id, tokens"):
        opened(ledger_url)


def test_lesson_41_a_dirty_schema_is_named_and_refused(ledger_url: str, opened: Opener) -> None:
    opened(ledger_url)
    leave_marker(ledger_url, None, 1)  # a change from nothing to 0001 that "did not end", although the revision is 0001
    with pytest.raises(StoreRefused, match=f"dirty: the migration from nothing to {HEAD} did not end") as refused:
        opened(ledger_url)
    assert "backup" in refused.value.remedy


def test_k5_a_migration_that_was_rolled_back_is_tried_again_three_times_at_most(ledger_url: str, opened: Opener) -> None:
    leave_marker(ledger_url, None, 2)
    assert opened(ledger_url).store_gaps([opening(gap())]) == [True]

    execute(ledger_url, *(f"DROP TABLE {table.name}" for table in reversed(metadata.sorted_tables)), "DROP TABLE alembic_version")
    leave_marker(ledger_url, None, 3)
    with pytest.raises(StoreRefused, match="tried 3 times"):
        opened(ledger_url)


def test_a_migration_that_fails_leaves_nothing_but_its_mark(
    ledger_url: str, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_end(connection: object) -> None:
        original(connection)  # type: ignore[arg-type]
        raise RuntimeError("the power went")

    original = schema._upgrade
    monkeypatch.setattr(schema, "_upgrade", fail_at_the_end)
    with pytest.raises(RuntimeError, match="power"):
        opened(ledger_url)
    database = Database(parse(ledger_url)[0])
    assert database.read(schema._revision) is None
    assert database.read(schema._marker) == {"from": None, "to": HEAD, "attempts": 1}
    database.close()
    monkeypatch.undo()
    assert opened(ledger_url).store_gaps([opening(gap())]) == [True]


def test_while_one_migrates_nobody_else_does(ledger_url: str, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "LOCK_SECONDS", 0.3)
    database = Database(parse(ledger_url)[0])
    with schema._lock(database), pytest.raises(Exception, match="changing the ledger's schema"):
        opened(ledger_url)
    database.close()
    assert opened(ledger_url).store_gaps([opening(gap())]) == [True]
