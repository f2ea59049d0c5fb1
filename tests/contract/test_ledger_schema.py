"""Migrations: they make what the code writes, under a lock, and a state that does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from msgspec import structs
from sqlalchemy import Connection, text

from gapwatch.errors import StoreRefused
from gapwatch.ledger import SqlLedger, schema
from gapwatch.ledger.bulk import Bulk
from gapwatch.ledger.database import Database, parse
from gapwatch.ledger.tables import HEAD, metadata
from gapwatch.ledger.types import WHOLE_BYTES, Place
from gapwatch.model.gap import State
from gapwatch.ports import GapFilter
from tests.ledger_samples import at, audit_row, gap, opening

pytestmark = pytest.mark.integration
Opener = Callable[[str], SqlLedger]
IN_KEY_ORDER = ("uq_gaps_open_key", "ix_gaps_key", "ix_audit_key")  # what Alembic cannot compare: of an expression


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


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping")
def test_the_migrations_make_exactly_what_the_code_knows(ledger: SqlLedger) -> None:
    with ledger._db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        ours = [
            difference
            for difference in compare_metadata(context, metadata)
            if getattr(difference[1], "name", "") not in {schema.MARKER_TABLE, *IN_KEY_ORDER}
        ]
    assert ours == []


def test_indexes_in_the_order_of_keys_hold_what_the_code_looks_for(ledger: SqlLedger) -> None:
    where = "sql FROM sqlite_master" if ledger._db.is_sqlite else "indexdef FROM pg_indexes"
    with ledger._db.engine.connect() as connection:
        made = [row[0] or "" for row in connection.execute(text(f"SELECT {where}"))]
        place = str(Place().compile(dialect=connection.dialect))
    assert ledger._db.is_sqlite == ("CAST" in place)
    for name in IN_KEY_ORDER:
        (index,) = [one for one in made if f"INDEX {name} ON " in one]
        assert ("UNIQUE" in index) == name.startswith("uq_")
        assert _bare(place) in _bare(index)


def _bare(sql: str) -> str:
    """Return SQL without what Postgres writes otherwise."""
    return "".join(sql.replace("(", "").replace(")", "").split()).lower()


def test_a_ledger_of_0005_is_upgraded_with_its_rows(ledger_url: str, opened: Opener) -> None:
    keys = [b"short", bytes(WHOLE_BYTES), bytes(WHOLE_BYTES + 1), b"keys with one beginning, 1", b"keys with one beginning, 2"]
    old = [gap(number, key=key) for number, key in enumerate(keys)]
    over = [gap(100 + number, key=key, state=State.RESOLVED, resolved_at=at(9)) for number, key in enumerate(keys)]
    said = [audit_row(number, key=key) for number, key in enumerate(keys)]
    database = Database(parse(ledger_url)[0])
    database.write(lambda connection: _upgrade_to(connection, "0005"))
    database.write(lambda connection: (Bulk(database).open(connection, [*over, *old]), Bulk(database).audit(connection, said)))
    database.close()

    ledger = opened(ledger_url)
    assert ledger._db.read(schema._revision) == HEAD
    assert ledger.open_gaps_for("orders", keys) == {one.key: one for one in old}
    for number, one in enumerate(old):
        page = ledger.gaps(GapFilter(pipeline="orders", key=one.key))
        assert {found.id for found in page.gaps} == {one.id, over[number].id}
        assert list(ledger.audit_rows(pipeline="orders", key=one.key)) == [said[number]]
        assert ledger.store_gaps([opening(structs.replace(one, id=f"{one.id}_again"))]) == [False]


def _upgrade_to(connection: Connection, revision: str) -> None:
    config = schema._config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


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
