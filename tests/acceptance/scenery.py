"""A watched pipeline for one test: a table, its connector, a copier, and Gapwatch beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Copier
from tests.acceptance.service import Service, wait_for
from tests.stack import captured, execute

TABLE = "public.orders"
AMOUNT = {"from": "amount", "type": "decimal", "scale": 2}
FIELDS = {
    "seq": "seq",
    "v": "v",
    "amount": AMOUNT,
    "big": "big",
}
CREATE = f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, seq bigint NOT NULL, v text, amount numeric(12,2), big text)"


@dataclass
class Scene:
    stack: EmbeddedStack
    dsn: str
    database: str
    copier: Copier
    service: Service

    def sql(self, *statements: str) -> None:
        execute(self.dsn, *statements)

    def insert(self, number: int, seq: int, value: str = "a", amount: str = "1.00") -> None:
        self.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES ({number}, {seq}, '{value}', {amount})")

    def rows(self) -> dict[int, Any]:
        with psycopg.connect(self.dsn) as connection:
            return {row[0]: row for row in connection.execute(f"SELECT id, seq, v, amount FROM {TABLE}").fetchall()}

    def documents(self) -> dict[Any, dict[str, Any]]:
        client: MongoClient[dict[str, Any]] = MongoClient(self.stack.mongodb.uri)
        try:
            return {document["_id"]: document for document in client[self.database].orders.find()}
        finally:
            client.close()

    def mongo(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(self.stack.mongodb.uri)


def configuration(
    stack: EmbeddedStack, dsn: str, database: str, group: str, *, grace: str = "2s", partitions: int = 2, **pipeline: Any
) -> dict[str, Any]:
    """Return a configuration for the table and collection ``orders`` of one test."""
    return {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "connect": {"url": stack.connect.url},
        "topics": {"prefix": f"gw-{database}", "partitions": partitions, "replication": 1},
        "stores": {
            "shop": {"type": "postgres", "dsn": dsn, "heartbeat": {"auto": True, "every": "250ms"}},
            "catalog": {"type": "mongodb", "uri": stack.mongodb.uri},
        },
        "pipelines": {
            "orders": {
                "source": {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": f"{database}.{TABLE}"}},
                "target": {
                    "store": "catalog",
                    "collection": f"{database}.orders",
                    "key": {"_id": "int"},
                    "feed": {"change_stream": True},
                },
                "fields": FIELDS,
                "grace": grace,
                "delivery": {"group": group},
                **pipeline,
            }
        },
    }


@contextmanager
def watched(
    stack: EmbeddedStack,
    database: str,
    directory: Path,
    *,
    before: Sequence[str] = (),
    identity: str = "FULL",
    roles: Sequence[str] = ("all",),
    connector: dict[str, str] | None = None,
    wait: bool = True,
    reader: str = "",
    copied: int = 0,
    beside: Mapping[str, dict[str, Any]] | None = None,
    ledger: str = "",
    heartbeat: Mapping[str, Any] | str = "",
    **pipeline: Any,
) -> Iterator[Scene]:
    """Yield a pipeline that is HEALTHY: `before` are statements that run before anything is captured.

    ``reader``: the name of a new user, who may do nothing but SELECT; Gapwatch reads as that one. ``copied``: how many documents
    are there before Gapwatch starts. ``beside``: further pipelines over the same data, by what they have of their own.
    ``ledger``: its database, else a file.
    ``heartbeat``: the source's, where it is not ours.
    """
    dsn = stack.postgres.dsn(database)
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY {identity}", *before)
    if reader:
        execute(dsn, f"CREATE ROLE {reader} LOGIN", f"GRANT SELECT ON {TABLE} TO {reader}")
    read_by = stack.postgres.dsn(database, reader) if reader else dsn
    options = {"decimal.handling.mode": "string", **(connector or {})}
    with captured(stack, database, [TABLE], **options) as prefix:
        group = f"copier-{database}"
        copier = Copier(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, stack.mongodb.uri, database, "orders")
        config = configuration(stack, read_by, database, group, **pipeline)
        if heartbeat:
            config["stores"]["shop"]["heartbeat"] = heartbeat
        config["pipelines"] |= {name: config["pipelines"]["orders"] | own for name, own in (beside or {}).items()}
        config |= {"database": ledger} if ledger else {}
        service = Service(directory, config)
        scene = Scene(stack, dsn, database, copier, service)
        copier.start()
        try:
            if copied:
                wait_for(lambda: len(scene.documents()) == copied, f"{copied} documents", 60)
            service.start(roles)
            if wait:
                service.wait_healthy()
            yield scene
            service.check_alive()
        finally:
            copier.stop()
            service.stop()
