"""Feeds in other formats, some with their schemas in a real registry: judged as any other, and lost to no outage of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bson import Binary, Decimal128
from bson.binary import UuidRepresentation
from psycopg.types.json import Jsonb
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack, SchemaRegistryPart
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import create_database, number
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

TABLE = "public.things"
TICKS = "public.ticks"
COLUMNS = {
    "text": "text",
    "amount": "numeric(12,2)",
    "free": "numeric",
    "at": "timestamptz",
    "day": "date",
    "single": "real",
    "double": "double precision",
    "raw": "bytea",
    "doc": "jsonb",
    "uid": "uuid",
    "tags": "text[]",
}
APICURIO = {"avro": "AvroConverter", "json": "ExtJsonConverter"}  # the second writes {"schemaId": …, "payload": …}
UID = uuid.UUID("12345678-1234-5678-9234-567812345678")


@dataclass
class Things:
    """One table, one collection that the test itself keeps, one pipeline between them."""

    stack: EmbeddedStack
    registry: SchemaRegistryPart
    dsn: str
    database: str
    service: Service
    client: MongoClient[dict[str, Any]]  # one: without a delivery a document that is late is a gap

    def insert(self, key: int, **other: Any) -> None:
        values = _row(key) | other
        names, marks = ", ".join(values), ", ".join(f"%({name})s" for name in values)
        with_types = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in values.items()}
        execute_with(self.dsn, f"INSERT INTO {TABLE} ({names}) VALUES ({marks})", with_types)

    def write(self, key: int, **other: Any) -> None:
        document = _document(key) | other
        self.client[self.database].things.replace_one({"_id": document["_id"]}, document, upsert=True)

    def delete(self, key: int) -> None:
        execute(self.dsn, f"DELETE FROM {TABLE} WHERE id = {key}")
        self.client[self.database].things.delete_one({"_id": key})

    def gaps(self) -> dict[int, str]:
        return {gap["key"]["id"]: gap["kind"] for gap in self.service.gaps("things")}


def execute_with(dsn: str, statement: str, values: dict[str, Any]) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statement, values)


def _row(key: int) -> dict[str, Any]:
    return {
        "id": key,
        "text": f"thing {key}",
        "amount": Decimal("1234567.80"),
        "free": Decimal("0.000123"),
        "at": datetime(2026, 3, 4, 5, 6, 7, 891_000, UTC),
        "day": date(2026, 3, 4),
        "single": 0.1,
        "double": 1e300,
        "raw": b"\x00\xff\x10",
        "doc": {"b": [1, 2.5, None], "a": "ü"},
        "uid": UID,
        "tags": ["x", "y z"],
    }


def _document(key: int) -> dict[str, Any]:
    row = _row(key)
    return {name: value for name, value in row.items() if name != "id"} | {
        "_id": key,
        "amount": Decimal128(row["amount"]),
        "free": Decimal128(row["free"]),
        "day": "2026-03-04",
        "raw": Binary(row["raw"]),
        "uid": Binary.from_uuid(UID, UuidRepresentation.STANDARD),
    }


@pytest.fixture(scope="module")
def registry() -> Iterator[SchemaRegistryPart]:
    with EmbeddedStack(parts=("registry",)) as stack:
        yield stack.registry


@pytest.fixture
def things(
    request: pytest.FixtureRequest, stack: EmbeddedStack, registry: SchemaRegistryPart, tmp_path: Path
) -> Iterator[Things]:
    database = create_database(stack, f"{request.param}_{number()}")
    dsn = stack.postgres.dsn(database)
    described = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    execute(dsn, f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, {described})", f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL")
    tables, config = [TABLE], configuration(stack, registry, dsn, database)
    if request.param == "cloudevents":  # Debezium makes none of messages: rows of a table tell the time
        execute(dsn, f"CREATE TABLE {TICKS} (id int PRIMARY KEY, at timestamptz)")
        tables.append(TICKS)
        config["stores"]["shop"]["heartbeat"] = {"topic": f"{database}.{TICKS}"}
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    with client, captured(stack, database, tables, **converters(registry, request.param)):
        service = Service(tmp_path, config)
        made = Things(stack, registry, dsn, database, service, client)
        service.start()
        try:
            service.wait_healthy("things")
            yield made
            service.check_alive()
        finally:
            service.stop()


def converters(registry: SchemaRegistryPart, name: str) -> dict[str, str]:
    """Return what makes a connector write so; Avro as Confluent's converter does: a zero byte, the schema's number, the data."""
    if name == "cloudevents":
        return {
            "value.converter": "io.debezium.converters.CloudEventsConverter",
            "value.converter.json.schemas.enable": "true",
            "heartbeat.action.query": f"INSERT INTO {TICKS} VALUES (1, now()) ON CONFLICT (id) DO UPDATE SET at = now()",
            "heartbeat.interval.ms": "250",
        }
    chosen = {"schema.name.adjustment.mode": "avro", "decimal.handling.mode": "precise"}
    for side in ("key", "value"):
        chosen |= {
            f"{side}.converter": f"io.apicurio.registry.utils.converter.{APICURIO[name]}",
            f"{side}.converter.apicurio.registry.url": registry.native_url,
            f"{side}.converter.apicurio.registry.auto-register": "true",
            f"{side}.converter.apicurio.registry.find-latest": "true",
            f"{side}.converter.apicurio.registry.as-confluent": "true",
            f"{side}.converter.apicurio.registry.use-id": "contentId",
            f"{side}.converter.apicurio.registry.headers.enabled": "false",
        }
    return chosen


def configuration(stack: EmbeddedStack, registry: SchemaRegistryPart, dsn: str, database: str) -> dict[str, Any]:
    return {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "schema_registry": {"url": registry.url},
        "topics": {"prefix": f"gw-{database}", "partitions": 2, "replication": 1},
        "stores": {
            "shop": {"type": "postgres", "dsn": dsn, "heartbeat": {"auto": True, "every": "250ms"}},
            "catalog": {"type": "mongodb", "uri": stack.mongodb.uri},
        },
        "pipelines": {
            "things": {
                "source": {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": f"{database}.{TABLE}"}},
                "target": {
                    "store": "catalog",
                    "collection": f"{database}.things",
                    "key": {"_id": "int"},
                    "feed": {"change_stream": True},
                },
                "delivery": "none",
                "fields": {name: name for name in COLUMNS},
                "grace": "2s",
            }
        },
    }


@pytest.mark.parametrize("things", [*APICURIO, "cloudevents"], indirect=True)
def test_every_type_is_read_as_the_stores_have_it(things: Things) -> None:
    """What is right on both sides is no gap; one that is lost, one that differs, one that is deleted on one side are."""
    service = things.service
    for key in range(1, 6):
        things.insert(key)
        things.write(key)
    things.insert(6, double=float("nan"))
    things.write(6, double=float("nan"))
    things.insert(7, **dict.fromkeys(COLUMNS))
    things.write(7, **dict.fromkeys(COLUMNS))
    things.delete(5)
    things.insert(11)
    things.insert(12)
    things.write(12, tags=["x"])
    things.write(13)
    wait_for(lambda: things.gaps() == {11: "missing", 12: "mismatch", 13: "extra"}, "three gaps", 60)

    def raised() -> int:
        return int(service.view("things")["totals"]["raised"])

    wait_for(lambda: raised() >= 3, "the status to say so", 20)
    assert raised() == 3
    assert service.metric("gapwatch_unparsable_events_total") in (None, 0.0)
    execute(things.dsn, f"ALTER TABLE {TABLE} ADD COLUMN later text")  # another schema, in mid-stream
    things.insert(21, later="z")
    things.write(21)
    things.insert(22, later="z")
    wait_for(lambda: things.gaps().keys() == {11, 12, 13, 22}, "the one that was lost after the schema changed", 60)
    assert things.gaps()[22] == "missing"


@pytest.mark.parametrize("things", ["avro", pytest.param("json", marks=pytest.mark.long)], indirect=True)
def test_a_registry_that_does_not_answer_delays_and_loses_nothing(things: Things) -> None:
    service = things.service
    things.insert(1)
    things.write(1)
    service.stop()
    things.insert(2)
    things.registry.pause()
    try:
        service.start()
        why = f"schema registry at {things.registry.url} did not answer"

        def said() -> bool:
            return any(why in line["reason"] for line in service.lines("all", "raw_topic_unreadable"))

        wait_for(said, "what the log says of it", 60)
        wait_for(lambda: service.view("things")["status"] == "UNKNOWN", "the pipeline to say that it does not know", 60)
    finally:
        things.registry.resume()
    wait_for(lambda: things.gaps() == {2: "missing"}, "the row that was lost meanwhile", 90)
    assert service.metric("gapwatch_unparsable_events_total") in (None, 0.0)
