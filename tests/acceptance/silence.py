"""Ways to make a watched pipeline fall silent without anybody dying."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from confluent_kafka import Consumer

from tests.acceptance.scenery import TABLE, Scene
from tests.acceptance.service import wait_for

SIGNATURES = "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'pg_logical_emit_message'"


def is_stale(scene: Scene) -> bool:
    """Whether the pipeline is UNKNOWN because something is too old; a handover is UNKNOWN for a moment as well."""
    view = scene.service.view()
    return view["status"] == "UNKNOWN" and any(reason.endswith(" s old") for reason in view["reasons"])


@contextmanager
def no_heartbeats(scene: Scene) -> Iterator[None]:
    """Take the right to send heartbeat messages away while the block runs: from everybody who is no superuser."""
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        functions = [f"FUNCTION {row[0]}" for row in connection.execute(SIGNATURES).fetchall()]
        assert functions
        for name in functions:
            connection.execute(f"REVOKE EXECUTE ON {name} FROM PUBLIC")
        try:
            yield
        finally:
            for name in functions:
                connection.execute(f"GRANT EXECUTE ON {name} TO PUBLIC")


@contextmanager
def unread_partitions(scene: Scene) -> Iterator[list[int]]:
    """Join the group of the ingesters and read nothing: the partitions that the group gives us are nobody's. Yields them."""
    topic = f"{scene.database}.{TABLE}"
    consumer = Consumer(
        {
            "bootstrap.servers": scene.stack.kafka.bootstrap_servers,
            "group.id": f"{scene.service.config['topics']['prefix']}.ingest",
            "partition.assignment.strategy": "range",
            "enable.auto.commit": False,
        }
    )
    mine: list[int] = []
    stop = threading.Event()

    def idle() -> None:
        while not stop.is_set():
            consumer.poll(0.1)

    def assigned(_: Consumer, places: list[object]) -> None:
        consumer.assign(places)
        consumer.pause(places)
        mine[:] = [place.partition for place in places]  # type: ignore[attr-defined]

    consumer.subscribe([topic], on_assign=assigned)
    member = threading.Thread(target=idle, name="unread")
    member.start()
    try:
        wait_for(lambda: mine, "partitions that nobody reads", 30)
        yield list(mine)
    finally:
        stop.set()
        member.join()
        consumer.close()
