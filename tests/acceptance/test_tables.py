"""Several tables into one collection: shards of one table, and a table's partitions, each as it publishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Copier
from tests.acceptance.scenery import Scene, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import during, gaps_of, lose
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

EU, US, ASIA = TABLES = ("public.orders_eu", "public.orders_us", "public.orders_asia")
COLUMNS = "(id bigint PRIMARY KEY, seq bigint NOT NULL, v text)"


@contextmanager
def copied(
    stack: EmbeddedStack,
    database: str,
    directory: Path,
    prepare: Sequence[str],
    tables: Sequence[str],
    source: dict[str, Any],
    **connector: str,
) -> Iterator[Scene]:
    """Yield a pipeline from `tables` to one collection; nothing is waited for."""
    dsn = stack.postgres.dsn(database)
    execute(dsn, *prepare)
    with captured(stack, database, tables, **connector) as prefix:
        topics = rf"^{prefix}\.public\.orders.*"
        copier = Copier(stack.kafka.bootstrap_servers, topics, f"copier-{database}", stack.mongodb.uri, database, "orders")
        source = {"store": "shop", "key": {"id": "int"}, **source}
        config = configuration(stack, dsn, database, copier.group, source=source, fields={"seq": "seq", "v": "v"})
        scene = Scene(stack, dsn, database, copier, Service(directory, config))
        copier.start()
        try:
            scene.service.start()
            wait_for(lambda: scene.service.view()["status"], "the API to answer", 60)
            yield scene
            scene.service.check_alive()
        finally:
            copier.stop()
            scene.service.stop()


def insert(table: str, number: int, seq: int, value: str = "a") -> str:
    return f"INSERT INTO {table} VALUES ({number}, {seq}, '{value}')"


def told(scene: Scene, *keys: int) -> dict[int, tuple[str, list[str]]]:
    return {gap["key"]["id"]: (gap["kind"], sorted(gap["tables"])) for gap in gaps_of(scene.service, *keys)}


def only(scene: Scene, *keys: int) -> None:
    """Nothing else becomes a gap, although grace has passed twice."""

    def look() -> None:
        assert {gap["key"]["id"] for gap in scene.service.gaps()} == set(keys)

    during(5, look)


def test_m24_three_tables_and_one_collection(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """Gaps name the right table, an extra document none; two rows with one key are found by the sweep and by the stream."""
    prepare = [f"CREATE TABLE {table} {COLUMNS}" for table in TABLES]
    prepare += [f"ALTER TABLE {table} REPLICA IDENTITY FULL" for table in TABLES]
    for table, first in ((EU, 1), (ASIA, 201)):  # that of us has no topic before its first row
        prepare.append(f"INSERT INTO {table} SELECT i, i, 'old' FROM generate_series({first}, {first + 9}) i")
    prepare.append(insert(ASIA, 7, 7, "of asia"))  # of eu, too
    source = {"tables": list(TABLES), "topic_pattern": f"{postgres_database}.{{table}}"}
    with copied(stack, postgres_database, tmp_path, prepare, TABLES, source) as scene:
        collided = wait_for(lambda: gaps_of(scene.service, 7), "the baseline to find the key that two rows have", 90)
        assert [(gap["kind"], gap["detector"], sorted(gap["tables"])) for gap in collided] == [("duplicate", "sweep", [ASIA, EU])]
        assert len(scene.service.gaps()) == 1
        scene.sql(f"DELETE FROM {ASIA} WHERE id = 7")  # which the copier takes for the end of eu's row
        wait_for(lambda: told(scene, 7) == {7: ("missing", [EU])}, "the row that lost its document", 60)
        scene.sql(f"UPDATE {EU} SET v = 'again' WHERE id = 7")
        scene.service.wait_healthy()

        scene.copier.rules.update({1_001: lose, 1_002: lose})
        scene.sql(insert(US, 150, 1_001), f"UPDATE {ASIA} SET seq = 1002 WHERE id = 205")
        scene.sql(f"DELETE FROM {EU} WHERE id = 5")
        wait_for(lambda: 5 not in scene.documents(), "the row's document to go", 20)  # a sink has an order of its own
        scene.sql(insert(ASIA, 5, 1_003, "moved"))
        with scene.mongo() as client:
            client[scene.database].orders.insert_one({"_id": 999, "seq": 0, "v": "nobody's"})
        scene.sql(insert(US, 2, 1_004, "of us"))  # of eu, too
        wanted = {2: ("duplicate", sorted([EU, US])), 150: ("missing", [US]), 205: ("stale", [ASIA]), 999: ("extra", [])}
        wait_for(lambda: told(scene, *wanted) == wanted, f"{wanted}", 60)
        assert gaps_of(scene.service, 2)[0]["detector"] == "stream"
        evidence = [row for row in gaps_of(scene.service, 150)[0]["evidence"] if row["side"] == "expected"]
        assert [(row["topic"], row["tables"]) for row in evidence] == [(f"{postgres_database}.{US}", [US])]
        only(scene, *wanted)

        plan = scene.service.answer("backfill", "plan", "orders", "--kinds", "missing")[1]
        planned = plan[0] if isinstance(plan, list) else plan
        code, _ = scene.service.answer("backfill", "apply", planned["id"], "--yes", "--wait")
        assert code == 0
        assert scene.documents()[150] == {"_id": 150, "seq": 1_001, "v": "a"}
        code, runs = scene.service.answer("sweep", "start", "orders", "--content", "--wait")
        assert code == 1, runs
        assert set(told(scene, *wanted)) == {2, 205, 999}
        assert {gap["key"]["id"] for gap in scene.service.gaps()} == {2, 205, 999}


PARTITIONED = [
    f"CREATE TABLE public.orders {COLUMNS.replace(' PRIMARY KEY', '')} PARTITION BY RANGE (id)",
    "CREATE TABLE public.orders_low PARTITION OF public.orders FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE public.orders_high PARTITION OF public.orders FOR VALUES FROM (100) TO (1000)",
    "ALTER TABLE public.orders ADD PRIMARY KEY (id)",
    *(f"ALTER TABLE public.orders{name} REPLICA IDENTITY FULL" for name in ("", "_low", "_high")),
    "INSERT INTO public.orders SELECT i, i, 'old' FROM generate_series(91, 110) i",
]


@pytest.mark.parametrize("publishes", [pytest.param("root", marks=pytest.mark.long), "leaf"])
def test_m24_partitions_publish_by_root_or_leaf(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, publishes: str
) -> None:
    """Read by its root or by its leaves, a row that moves from partition to partition opens nothing, and a lost one is found."""
    leaves = ("public.orders_low", "public.orders_high")
    root = publishes == "root"
    publication = f"CREATE PUBLICATION {postgres_database} FOR TABLE public.orders"
    prepare = [*PARTITIONED, f"{publication} WITH (publish_via_partition_root = {str(root).lower()})"]
    source: dict[str, Any] = {"table": "public.orders", "feed": {"debezium": f"{postgres_database}.public.orders"}}
    if not root:
        source = {"tables": list(leaves), "topic_pattern": f"{postgres_database}.{{table}}"}
    tables = ["public.orders"] if root else [*leaves, "public.orders"]
    connector = {"publication.autocreate.mode": "disabled"}
    with copied(stack, postgres_database, tmp_path, prepare, tables, source, **connector) as scene:
        scene.service.wait_healthy()
        scene.copier.rules[1_001] = lose
        scene.sql("INSERT INTO public.orders VALUES (120, 1001, 'a')")
        scene.sql("UPDATE public.orders SET id = 130, seq = 1002 WHERE id = 95")
        wanted = {120: ("missing", [] if root else ["public.orders_high"])}
        wait_for(lambda: told(scene, 120) == wanted, f"{wanted}", 40)
        wait_for(lambda: 130 in scene.documents(), "the row that moved", 20)
        only(scene, 120)
        assert scene.service.command("doctor").returncode == 0
        if not root:
            scene.sql("CREATE TABLE public.orders_top PARTITION OF public.orders FOR VALUES FROM (1000) TO (2000)")
            message = "Partition public.orders_top of public.orders is not watched, and others of it are."
            wait_for(lambda: message in str(scene.service.view()["findings"]), message, 30)
            scene.service.config["pipelines"]["orders"]["source"] = {
                **{name: value for name, value in source.items() if name not in ("tables", "topic_pattern")},
                "store": "shop",
                "key": {"id": "int"},
                "table": "public.orders",
                "feed": {"debezium": f"{postgres_database}.public.orders"},
            }
            scene.service.write()
            said = scene.service.command("doctor")
            assert said.returncode == 2
            assert "The partitions of public.orders publish each under its own name" in said.stdout
