"""Events that the source's own topic lost: nothing but the count of their transaction tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gapwatch.embedded import EmbeddedStack, postgres_source_config
from tests.acceptance.scenery import Scene
from tests.acceptance.service import wait_for
from tests.acceptance.shared import during
from tests.acceptance.test_tables import COLUMNS, EU, US, copied, insert

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

OTHER = "public.other"
METADATA = {"provide.transaction.metadata": "true"}
DROP = {
    "transforms": "drop",
    "transforms.drop.type": "org.apache.kafka.connect.transforms.Filter",
    "transforms.drop.predicate": "lost",
    "predicates": "lost",
    "predicates.lost.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
    "predicates.lost.pattern": r".*\.public\.(orders_us|other)",
}


def transaction(scene: Scene, *statements: str) -> str:
    """Run statements in one transaction; return its id."""
    with psycopg.connect(scene.dsn) as connection:
        for statement in statements:
            connection.execute(statement)
        row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return str(row[0])


def drop_from_now_on(stack: EmbeddedStack, database: str, tables: Sequence[str]) -> None:
    """Replace the connector by one that goes on where it stood, and loses the records of some topics."""
    client, name = stack.connect.client, f"source-{database}"
    config = postgres_source_config(stack.postgres, database=database, prefix=database, tables=tables)

    def slot_is(active: bool) -> bool:
        with psycopg.connect(stack.postgres.dsn()) as connection:
            query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
            row = connection.execute(query, (config["slot.name"],)).fetchone()
        return row == (active,)

    client.delete(name)
    wait_for(lambda: slot_is(False), "the connector to let its slot go", 30)
    client.put_connector(name, config | METADATA | DROP)
    client.wait_running(name)
    wait_for(lambda: slot_is(True), "the connector to take its slot again", 60)


def told(scene: Scene) -> list[str]:
    """Return what was said of transactions, also what a sweep has covered since."""
    findings = scene.service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
    return [finding["message"] for finding in findings if finding["message"].startswith("transaction ")]


def test_m12_a_dropped_event_is_named_by_its_transaction(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """One of three events never reaches its topic, nor do those of a table that nobody watches: one finding, of the one."""
    tables = (EU, US, OTHER)
    prepare = [f"CREATE TABLE {table} {COLUMNS}" for table in tables]
    prepare += [f"ALTER TABLE {table} REPLICA IDENTITY FULL" for table in tables]
    prepare += [insert(table, number, number) for number, table in enumerate(tables, 1)]
    source: dict[str, Any] = {
        "tables": [EU, US],
        "topic_pattern": f"{postgres_database}.{{table}}",
        "transactions": f"{postgres_database}.transaction",
    }
    with copied(stack, postgres_database, tmp_path, prepare, tables, source, **METADATA) as scene:
        scene.service.wait_healthy()
        counted = "gapwatch_transactions_total"
        transaction(scene, insert(EU, 10, 10), insert(US, 11, 11), insert(OTHER, 12, 12))
        wait_for(lambda: 11 in scene.documents(), "the first transaction to be copied", 40)  # what is sent again cannot lose it
        wait_for(lambda: scene.service.metric(counted, outcome="complete"), "a transaction to be counted", 40)
        assert told(scene) == []

        drop_from_now_on(stack, postgres_database, tables)
        lost = transaction(scene, insert(EU, 20, 20), insert(EU, 21, 21), insert(US, 22, 22))
        wanted = f"transaction {lost} wrote 1 times to {US}; 1 of its events (number 1) is not in {postgres_database}.{US}"
        wait_for(lambda: told(scene) == [wanted], wanted, 120)

        scene.service.restart("all")
        transaction(scene, insert(EU, 30, 30), insert(OTHER, 31, 31))
        complete = scene.service
        wait_for(lambda: complete.ready()[0] and complete.metric(counted, outcome="complete"), "counting to go on", 60)
        during(3, lambda: told_only(scene, wanted))
        found = wait_for(scene.service.gaps, "the sweep to find the row that the stream never showed", 90)
        assert [(gap["key"], gap["kind"], gap["tables"]) for gap in found] == [({"id": 22}, "missing", [US])]
        assert [(gap["detector"], gap["cause"]) for gap in found] == [("sweep", "unknown")], "no event of it is any evidence"
        told_only(scene, wanted)


def told_only(scene: Scene, message: str) -> None:
    assert told(scene) == [message]
