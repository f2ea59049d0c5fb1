"""What is seen of a real Postgres that loses what its log should carry: another slot, another timeline, other storage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from gapwatch.check_ports import Advice, Memory
from gapwatch.embedded import EmbeddedStack
from gapwatch.embedded.parts import DATABASE_USER
from gapwatch.model.pipeline import SourceTable
from gapwatch_connectors.postgres import PostgresHistory
from tests.simulation.stores import VirtualClock
from tests.unit.core.samples import pipeline

pytestmark = pytest.mark.integration

SLOT, OTHER = "history", "history_2"
TABLE = "public.orders"
PARTS = "public.parts"
DECODE = f"SELECT count(*) FROM pg_logical_slot_get_binary_changes('{SLOT}', NULL, NULL, {{options}})"
OPTIONS = "'proto_version', '1', 'publication_names', 'everything'"


class Watched:
    """One table of a database of its own, its slot, and the check with what it remembers."""

    def __init__(self, stack: EmbeddedStack, database: str) -> None:
        self.stack = stack
        self.database = database
        self.clock = VirtualClock()
        self.facts: dict[str, Any] = {}
        self.proven_ms = 1_000
        self.user = DATABASE_USER
        self.config: Mapping[str, str] | None = {"slot.name": SLOT}  # of the connector; None: there is none
        self.history = self.made()
        self.sql(
            f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY)",
            f"CREATE TABLE {PARTS} (id bigint PRIMARY KEY) PARTITION BY RANGE (id)",
            f"CREATE TABLE {PARTS}_1 PARTITION OF {PARTS} FOR VALUES FROM (0) TO (1000)",
            "CREATE PUBLICATION everything FOR ALL TABLES",
            f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')",
        )

    def made(self) -> PostgresHistory:
        """Return the check as it is after a restart."""
        memory = Memory(
            recall=self.facts.get,
            remember=self.facts.__setitem__,
            now_ms=self.clock.now_ms,
            proven_ms=lambda: self.proven_ms,
        )
        spec = pipeline()
        tables = tuple(SourceTable(table=name, feed=spec.source.feed) for name in (TABLE, PARTS))
        spec = replace(spec, source=replace(spec.source, tables=tables))

        async def config() -> Mapping[str, str] | None:
            return self.config

        return PostgresHistory(spec, self.stack.postgres.dsn(self.database, self.user), config, memory)

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.stack.postgres.dsn(self.database), autocommit=True) as session:
            for statement in statements:
                session.execute(statement)

    def write(self, first: int, last: int) -> None:
        self.sql(f"INSERT INTO {TABLE} SELECT generate_series({first}, {last})")

    def read(self) -> None:
        """Read the slot to its end, as a connector would."""
        self.sql(DECODE.format(options=OPTIONS))

    def make_again(self) -> None:
        self.sql(f"SELECT pg_drop_replication_slot('{SLOT}')", f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")

    def look(self, *, restarted: bool = False) -> list[Advice]:
        """Look once, five seconds after the last time."""

        async def once() -> list[Advice]:
            await self.clock.sleep(5)
            if restarted:
                await self.history.close()
                self.history = self.made()
            found = list(await self.history.watch())
            await self.history.close()
            return found

        return asyncio.run(once())


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStack]:
    """A Postgres of our own: it is killed, and promoted."""
    with EmbeddedStack(parts=["postgres"]) as stack:
        yield stack


@pytest.fixture
def watched(server: EmbeddedStack, unique: Callable[[str], str]) -> Iterator[Watched]:
    name = unique("history")
    with psycopg.connect(server.postgres.dsn(), autocommit=True) as session:
        session.execute(f'CREATE DATABASE "{name}"')
    one = Watched(server, name)
    yield one
    one.sql(f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ('{SLOT}', '{OTHER}')")


def said(found: list[Advice]) -> list[tuple[str, str, int, int]]:
    return [(one.finding, one.message, one.hole_from_ms, one.hole_to_ms) for one in found]


def another_slot(watched: Watched) -> str:
    return f"Replication slot {SLOT} cannot be told from one that was dropped and made again: writes may never have been sent."


def test_trap_9_a_slot_that_was_made_again_is_another_one(watched: Watched) -> None:
    """Its counters began anew, whatever was written meanwhile; the hole begins where everything was proven before."""
    watched.write(1, 10)
    watched.write(11, 20)
    watched.read()
    assert watched.look() == []
    watched.proven_ms = 7_000
    watched.make_again()
    watched.write(21, 30)
    watched.read()
    watched.proven_ms = 9_000  # the stream went on before anybody looked
    ((finding, message, begin, end),) = said(watched.look())
    assert finding == "slot_jumped"
    assert message == f"Replication slot {SLOT} was dropped and made again: writes may never have been sent."
    assert (begin, end) == (1_000, watched.clock.now_ms())
    assert said(watched.look(restarted=True)) == [(finding, message, begin, end)]  # the ledger takes it once


@pytest.mark.parametrize("since", [0, 5], ids=["nothing", "as much"])
def test_trap_9_a_slot_that_was_made_again_and_has_decoded_as_much_since_may_be_another_one(watched: Watched, since: int) -> None:
    """Only where it begins tells. Two of our heartbeats may follow each other, with writes in between that nobody sends."""
    assert watched.look() == []
    watched.make_again()
    for number in range(since):
        watched.write(number, number)
        watched.read()
    assert [message for _, message, _, _ in said(watched.look())] == [another_slot(watched)]


def test_trap_9_a_slot_that_was_made_again_while_nobody_ran(watched: Watched) -> None:
    watched.write(1, 10)
    watched.read()
    watched.write(11, 20)
    watched.read()
    watched.look()
    watched.make_again()
    assert [finding for finding, *_ in said(watched.look(restarted=True))] == ["slot_jumped"]


@pytest.mark.parametrize("restarted", [False, True], ids=["in one life", "while nobody ran"])
def test_trap_9_a_slot_of_another_name_begins_where_the_log_ended_then(watched: Watched, restarted: bool) -> None:
    """The connector keeps its offsets, gets another `slot.name`, and never sends what was written before that slot was made."""
    watched.look()
    watched.proven_ms = 7_000
    watched.look()
    watched.write(1, 10)
    watched.config = None  # it is taken away, and comes back
    assert watched.look(restarted=restarted) == []
    watched.config = {"slot.name": OTHER}
    assert watched.look() == [], "as long as there is no such slot, the old one counts"
    watched.proven_ms = 9_000
    watched.sql(f"SELECT pg_create_logical_replication_slot('{OTHER}', 'pgoutput')")
    if not restarted:
        watched.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    ((finding, message, begin, end),) = said(watched.look(restarted=restarted))
    assert finding == "slot_jumped"
    assert message == f"The connector reads replication slot {OTHER} instead of {SLOT}: writes may never have been sent."
    assert (begin, end) == (7_000, watched.clock.now_ms())
    assert said(watched.look(restarted=restarted)) == [(finding, message, begin, end)]


def test_a_first_slot_whose_name_changes_before_there_is_one_is_none_that_was_read(watched: Watched) -> None:
    watched.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    assert watched.look() == []
    watched.config = {"slot.name": OTHER}
    watched.sql(f"SELECT pg_create_logical_replication_slot('{OTHER}', 'pgoutput')")
    assert watched.look() == []


def test_a_slot_that_was_moved_on_by_hand_passed_over_writes(watched: Watched) -> None:
    watched.look()
    watched.write(1, 10)
    watched.sql("SELECT pg_switch_wal()", f"SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())")
    (advice,) = watched.look()
    assert advice.finding == "slot_jumped"


def test_a_slot_that_is_read_that_is_not_and_that_outlives_a_crash_is_the_same(watched: Watched) -> None:
    for number in range(5):
        watched.write(10 * number, 10 * number + 9)
        assert watched.look() == []
        watched.read()
        assert watched.look(restarted=number % 2 == 0) == []
    watched.stack.postgres.kill()
    watched.stack.postgres.start()
    assert watched.look() == []
    watched.write(100, 110)
    watched.read()
    assert watched.look() == []


@pytest.mark.parametrize(
    "statement", [f"TRUNCATE {TABLE}", f"VACUUM FULL {TABLE}", f"TRUNCATE {PARTS}_1", f"DROP TABLE {PARTS}_1"]
)
def test_storage_that_was_replaced_is_a_hole_whatever_the_connector_sends(watched: Watched, statement: str) -> None:
    watched.write(1, 10)
    watched.look()
    watched.sql(statement)
    (advice,) = watched.look()
    table = PARTS if PARTS in statement else TABLE
    assert advice.finding == "truncated"
    assert advice.message == f"The storage of {table} was replaced: it was emptied, or rewritten."
    assert advice.table == table
    assert (advice.hole_from_ms, advice.hole_to_ms) == (1_000, watched.clock.now_ms())


def test_a_partition_that_is_added_and_rows_that_are_deleted_replace_nothing(watched: Watched) -> None:
    watched.write(1, 10)
    watched.look()
    watched.sql(
        f"CREATE TABLE {PARTS}_2 PARTITION OF {PARTS} FOR VALUES FROM (1000) TO (2000)",
        f"INSERT INTO {PARTS} VALUES (1), (1001)",
        f"DELETE FROM {TABLE}",
        f"VACUUM {TABLE}",
        f"ALTER TABLE {TABLE} ADD COLUMN v text",
    )
    assert watched.look() == []


def test_a_server_that_does_not_say_which_it_is_is_looked_at_all_the_same(watched: Watched) -> None:
    """As some hosted ones do; read by a user who may do nothing but SELECT."""
    user, functions = f"reader_{watched.database}", "FUNCTION pg_control_system(), pg_control_checkpoint()"
    watched.sql(f"CREATE ROLE {user} LOGIN", f"GRANT SELECT ON {TABLE} TO {user}", f"REVOKE EXECUTE ON {functions} FROM PUBLIC")
    watched.user = user
    try:
        assert watched.look(restarted=True) == []
        watched.sql(f"TRUNCATE {TABLE}")
        assert [one.finding for one in watched.look()] == ["truncated"]
    finally:
        watched.sql(f"GRANT EXECUTE ON {functions} TO PUBLIC")


def test_a_server_that_took_over_is_another_timeline(watched: Watched) -> None:
    """Last in this file: the server goes through recovery, and is promoted."""
    watched.look()
    part = watched.stack.postgres
    part.stop()
    (part.directory / "data" / "standby.signal").touch(mode=0o666)
    part.start()
    assert watched.look() == []
    watched.sql("SELECT pg_promote()")
    (advice,) = watched.look()
    assert advice.finding == "slot_jumped"
    assert advice.message.startswith("The timeline of the source went from 1 to 2: another server took over")
