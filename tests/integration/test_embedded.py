"""The real parts themselves: they start, die with their parent, keep their data, and capture changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pymongo
import pytest

from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from tests.stack import ask, captured, execute, read_topic, until

pytestmark = pytest.mark.integration

PARENT = """
import sys, time
from gapwatch.embedded import EmbeddedStack
stack = EmbeddedStack(parts=("postgres", "mongodb", "opensearch"))
stack.start()
print(stack.directory, stack.postgres.pid, stack.mongodb.pid, stack.opensearch.pid, flush=True)
time.sleep(600)
"""


def test_a1_postgres_changes_through_debezium(stack: EmbeddedStack, postgres_database: str) -> None:
    dsn = stack.postgres.dsn(postgres_database)
    execute(dsn, "CREATE TABLE public.t (id bigint PRIMARY KEY, v text)", "ALTER TABLE public.t REPLICA IDENTITY FULL")
    with captured(stack, postgres_database, ["public.t"]) as prefix:
        execute(dsn, "INSERT INTO public.t VALUES (1, 'a')")
        with psycopg.connect(dsn) as connection:
            connection.execute("INSERT INTO public.t VALUES (2, 'rolled back')")
            connection.rollback()
        execute(dsn, "UPDATE public.t SET v = 'b' WHERE id = 1")
        execute(dsn, "DELETE FROM public.t WHERE id = 1")
        events = [event["payload"] for event in read_topic(stack, f"{prefix}.public.t", 3)]
    assert [event["op"] for event in events] == ["c", "u", "d"]
    assert [(event["before"], event["after"]) for event in events] == [
        (None, {"id": 1, "v": "a"}),
        ({"id": 1, "v": "a"}, {"id": 1, "v": "b"}),
        ({"id": 1, "v": "b"}, None),
    ]
    positions = [event["source"]["lsn"] for event in events]
    assert positions == sorted(positions)
    assert len(set(positions)) == 3


def test_nothing_survives_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as output:
        directory, *pids = output.readline().split()
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not any(_runs(pid) for pid in pids), f"processes {pids} to end", 20)
    until(lambda: not Path(directory).exists(), f"{directory} to be removed", 20)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_stacks_at_once_and_data_that_survives_a_kill() -> None:
    with EmbeddedStack(parts=("postgres", "mongodb")) as one, EmbeddedStack(parts=("postgres", "mongodb")) as other:
        assert one.postgres.port != other.postgres.port
        execute(one.postgres.dsn(), "CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (7)")
        client: pymongo.MongoClient[dict[str, int]] = pymongo.MongoClient(one.mongodb.uri)
        try:
            client.shop.kept.with_options(write_concern=pymongo.WriteConcern("majority", j=True)).insert_one({"_id": 7})
            one.postgres.kill()
            one.postgres.start()
            one.mongodb.kill()
            one.mongodb.start()
            with psycopg.connect(one.postgres.dsn()) as connection:
                assert connection.execute("SELECT id FROM kept").fetchall() == [(7,)]
            assert until(lambda: _documents(client), "MongoDB's primary") == [{"_id": 7}]
        finally:
            client.close()
        with psycopg.connect(other.postgres.dsn()) as connection:
            assert connection.execute("SELECT to_regclass('kept')").fetchone() == (None,)


def _documents(client: pymongo.MongoClient[dict[str, int]]) -> list[dict[str, int]]:
    try:
        return list(client.shop.kept.find())
    except pymongo.errors.AutoReconnect:
        return []


def test_a_frozen_part_does_not_answer_and_goes_on_when_it_thaws() -> None:
    with EmbeddedStack(parts=("postgres",)) as stack:
        assert stack.postgres.ready()
        stack.postgres.pause()
        assert not stack.postgres.ready()
        stack.postgres.resume()
        until(stack.postgres.ready, "Postgres to answer again", 20)


def test_opensearch_is_a_cluster_of_processes_whose_replica_takes_over() -> None:
    with EmbeddedStack(parts=("opensearch",)) as stack:
        first, second = stack.opensearch, stack.add_opensearch_node()
        assert first.pid != second.pid
        url = f"{first.url}/kept"
        settings = {"number_of_shards": 1, "number_of_replicas": 1, "index.unassigned.node_left.delayed_timeout": "0s"}
        ask("PUT", url, {"settings": settings})
        ask("PUT", f"{url}/_doc/7?refresh=true", {"v": 7})
        until(lambda: first.get("/_cluster/health/kept")["status"] == "green", "the replica")
        command = {"move": {"index": "kept", "shard": 0, "from_node": first.name, "to_node": second.name}}
        ask("PUT", f"{url}/_settings", {"index.number_of_replicas": 0})
        ask("POST", f"{first.url}/_cluster/reroute", {"commands": [command]} if _primary(first) == first.name else {})
        until(lambda: _primary(first) == second.name, "the primary to be on the second node")
        ask("PUT", f"{url}/_settings", {"index.number_of_replicas": 1})
        until(lambda: first.get("/_cluster/health/kept")["status"] == "green", "the replica")
        second.kill()
        until(lambda: _primary(first) == first.name, "the replica to take over")
        assert first.get("/kept/_doc/7")["_source"] == {"v": 7}
        first.restart()
        assert until(lambda: first.get("/kept/_doc/7"), "the node's data")["_source"] == {"v": 7}


def _primary(node: OpenSearchPart) -> str:
    shards = node.get("/_cat/shards/kept?format=json&h=prirep,state,node")
    return next((str(s["node"]) for s in shards if s["prirep"] == "p" and s["state"] == "STARTED"), "")
