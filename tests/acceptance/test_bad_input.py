"""Bad input: ``gapwatch doctor`` names each before anything starts, with cause and remedy in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from bson.json_util import dumps
from confluent_kafka import Consumer
from pymongo import MongoClient

from gapwatch.core.envelopes import Event, RawRecord, decoder_for
from gapwatch.core.mapping import CompiledMapping
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import RecordError
from gapwatch.ledger import open_ledger
from gapwatch.model.pipeline import FeedKind, FeedSpec
from gapwatch.model.stream import Side
from tests.acceptance.oplog import roll_over, small_oplog
from tests.acceptance.scenery import CREATE, TABLE, configuration
from tests.stack import captured, execute, read_topic, until
from tests.unit.core.samples import field, pipeline

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

Configure = Callable[[dict[str, Any]], None]


@pytest.fixture
def doctor(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> Callable[[Configure], tuple[int, str]]:
    """Return a function that runs ``gapwatch doctor`` on a good configuration after one change to it."""
    dsn = stack.postgres.dsn(postgres_database)
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL")
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        client[postgres_database].create_collection("orders")
    finally:
        client.close()
    config = configuration(stack, dsn, postgres_database, "none")
    config["database"] = f"sqlite:///{tmp_path / 'gapwatch.db'}"
    del config["connect"]

    def run(change: Configure) -> tuple[int, str]:
        change(config)
        file = tmp_path / "gapwatch.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [sys.executable, "-m", "gapwatch", "--config", str(file), "doctor"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


Doctor = Callable[[Configure], tuple[int, str]]


def test_good_input_is_not_refused(doctor: Doctor) -> None:
    code, said = doctor(lambda config: None)
    assert code == 0, said


def test_bad_input_wrong_password(doctor: Doctor, stack: EmbeddedStack, postgres_database: str) -> None:
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE \"{postgres_database}\" LOGIN PASSWORD 'right'")
    hba = stack.postgres.directory / "data" / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f'host all "{postgres_database}" 127.0.0.1/32 scram-sha-256\n{before}')
    try:
        with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
        wrong = stack.postgres.dsn(postgres_database, user=postgres_database, password="s3cret-wrong")
        code, said = doctor(lambda config: config["stores"]["shop"].update(dsn=wrong))
    finally:
        hba.write_text(before)
        with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
    assert code == 2, said
    assert f'refused: password authentication failed for user "{postgres_database}"' in said
    assert "Correct user, password and database in the store's dsn." in said
    assert "s3cret-wrong" not in said


def test_bad_input_missing_table(doctor: Doctor) -> None:
    code, said = doctor(lambda config: config["pipelines"]["orders"]["source"].update(table="public.nothing"))
    assert code == 2, said
    assert "error    orders.source: There is no table public.nothing. Create it, correct its name in the pipeline" in said


def test_bad_input_missing_topic(doctor: Doctor) -> None:
    feed = {"debezium": "nobody.public.orders"}
    code, said = doctor(lambda config: config["pipelines"]["orders"]["source"].update(feed=feed))
    assert code == 0, said  # a table without writes has no topic yet: a warning, not an error
    assert "warning  orders.source: There is no topic nobody.public.orders. Correct the feed, or start its connector" in said


def test_bad_input_key_codec_mismatch(doctor: Doctor, stack: EmbeddedStack, postgres_database: str) -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        client[postgres_database].orders.insert_one({"_id": "not a number"})
    finally:
        client.close()
    code, said = doctor(lambda config: None)
    assert code == 2, said
    assert "orders.target: " in said
    assert "keys are never coerced" in said


def test_bad_input_replica_identity_that_loses_deletes(doctor: Doctor, stack: EmbeddedStack, postgres_database: str) -> None:
    execute(stack.postgres.dsn(postgres_database), f"ALTER TABLE {TABLE} REPLICA IDENTITY NOTHING")
    code, said = doctor(lambda config: None)
    assert code == 2, said
    assert f"{TABLE} has REPLICA IDENTITY NOTHING: its deletes and updates are lost to every reader of the log." in said
    assert f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL, or add a primary key." in said


def test_bad_input_malformed_yaml(tmp_path: Path) -> None:
    file = tmp_path / "gapwatch.yaml"
    file.write_text("kafka: [\nstores: }")
    done = subprocess.run(
        [sys.executable, "-m", "gapwatch", "--config", str(file), "doctor"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Not valid YAML" in done.stderr
    assert "line 2" in done.stderr


def test_bad_input_unknown_key(doctor: Doctor) -> None:
    code, said = doctor(lambda config: config["pipelines"]["orders"].update(grase="5s"))
    assert code == 2, said
    assert "pipelines.orders.grase: There is no such key. Did you mean `grace`?" in said


def collection(database: str, name: str, **feed: Any) -> dict[str, Any]:
    return {"store": "catalog", "collection": f"{database}.{name}", "key": {"_id": "int"}, "feed": feed}


def test_a6_bad_input_feeds_that_are_not_read_are_refused_by_name_with_a_remedy(doctor: Doctor, postgres_database: str) -> None:
    """Before anything is asked of a store; the next record of such a feed would say the same."""
    copy = {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": "copy.public.orders"}}
    index = {"store": "catalog", "collection": f"{postgres_database}.copy", "key": {"_id": "int"}, "feed": {"seq_no": True}}
    debezium, followed = (
        collection(postgres_database, "orders", **feed) for feed in ({"debezium": "a"}, {"change_stream": True})
    )
    for source, target, expected in (
        (
            debezium,
            collection(postgres_database, "copy", change_stream=True),
            "source.feed: A collection is followed by its change stream; any other source feed of it is not supported yet."
            " Write { change_stream: true }.",
        ),
        (
            followed,
            copy,
            "source.store: A pipeline from mongodb to postgres is not supported yet. The target of a mongodb source must be a"
            " mongodb or an opensearch store.",
        ),
        (
            followed,
            index,
            "target.feed.seq_no: A target feed of kind seq_no is not supported yet. Use debezium, a plain topic, or",
        ),
    ):
        code, said = doctor(lambda config: config["pipelines"]["orders"].update(source=source, target=target))  # noqa: B023
        assert code == 2, said
        assert expected in " ".join(said.split()), said


def test_a6_bad_input_one_topic_for_several_tables(doctor: Doctor, stack: EmbeddedStack, postgres_database: str) -> None:
    """A connector really routes two tables into one topic: the doctor names it, and so does the first record of the other one."""
    database, items = postgres_database, "public.items"
    execute(stack.postgres.dsn(database), f"CREATE TABLE {items} (id bigint PRIMARY KEY, seq bigint, v text)")
    topic = f"{database}.{TABLE}"
    route = {
        "type": "io.debezium.transforms.ByLogicalTableRouter",
        "topic.regex": rf"{database}\.public\..*",
        "topic.replacement": topic,
    }
    options = {"transforms": "route", **{f"transforms.route.{name}": value for name, value in route.items()}}
    with captured(stack, database, [TABLE, items], **options):
        execute(
            stack.postgres.dsn(database),
            f"INSERT INTO {TABLE} (id, seq) VALUES (1, 1)",
            f"INSERT INTO {items} (id, seq, v) VALUES (1, 1, 'of another table')",
        )
        code, said = doctor(lambda config: config.update(connect={"url": stack.connect.url}))
        assert code == 2, said
        assert f"Connector source-{database} puts {items} into {topic} as well (transforms.route, ByLogicalTableRouter)" in said
        assert "Leave each table its own topic, and list them as source.tables." in said
        refused = (
            f"The record is of {database}.{items}, and ByLogicalTableRouter put it into the topic of {TABLE}: one topic for"
            " several tables is not read. Leave each table its own topic, and list them as source.tables."
        )
        assert judged(stack, topic, 2) == {"1": 1, refused: 1}


def judged(stack: EmbeddedStack, topic: str, count: int) -> Counter[str]:
    """Return what the decoder of the pipeline's source makes of a topic's records: ids of keys, or why they are refused."""
    read_topic(stack, topic, count)  # they have come
    spec = pipeline(field("v"), source_feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=topic))
    mapping, said = CompiledMapping(spec), Counter[str]()
    decoder = decoder_for(spec, Side.EXPECTED, mapping)
    consumer = Consumer(
        {"bootstrap.servers": stack.kafka.bootstrap_servers, "group.id": "tests", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe([topic])
        for _ in range(count):
            message = consumer.poll(90)
            assert message is not None
            assert message.error() is None, message.error()
            try:
                events = decoder.decode(RawRecord.of(message))
                said.update(str(mapping.source.codec.decode(event.key)[0]) for event in events if isinstance(event, Event))
            except RecordError as error:
                said[error.message] += 1
    finally:
        consumer.close()
    return said


@dataclass(frozen=True)
class Locked:
    """A MongoDB with access control, and a resume token from before its oplog rolled over."""

    uri: str  # of a user who may read and follow everything, and write nothing
    token: str


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with small_oplog() as running:
        client: MongoClient[dict[str, Any]] = MongoClient(running.mongodb.uri)
        try:
            client.shop.create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
            with client.shop.orders.watch() as stream:
                client.shop.orders.insert_one({"_id": 1})
                until(stream.try_next, "the change")
                token = dumps(stream.resume_token)
            roll_over(running.mongodb.uri)
            client.admin.command("createUser", "reader", pwd="s3cret", roles=["readAnyDatabase"])
        finally:
            client.close()
        key = tmp_path_factory.mktemp("key") / "key"
        key.write_text("a2V5IG9mIGEgdGVzdCBhbmQgb2Ygbm90aGluZyBlbHNl")
        key.chmod(0o600)
        running.mongodb.options = ("--keyFile", str(key))
        running.mongodb.restart()
        yield Locked(f"mongodb://reader:s3cret@{running.mongodb.host}:{running.mongodb.port}/?replicaSet=rs0", token)


def test_bad_input_change_stream_history_lost(doctor: Doctor, locked: Locked) -> None:
    def away_for_too_long(config: dict[str, Any]) -> None:
        follow(config, locked.uri)
        ledger = open_ledger(config["database"])
        try:
            ledger.set_fact(f"resume/{config['topics']['prefix']}.feed.orders.target", {"token": locked.token})
        finally:
            ledger.close()

    code, said = doctor(away_for_too_long)
    assert code == 2, said
    message = "The change stream's position lies outside the oplog of store catalog (ChangeStreamHistoryLost)."
    remedy = "Start all the same: a sweep covers what was missed, by itself. A larger oplog outlasts a longer outage."
    assert f"error    orders.target: {message} {remedy}" in said


def follow(config: dict[str, Any], uri: str) -> None:
    config["stores"]["catalog"].update(uri=uri)
    config["pipelines"]["orders"]["target"]["collection"] = "shop.orders"


def test_bad_input_no_right_to_write_markers(doctor: Doctor, locked: Locked) -> None:
    code, said = doctor(lambda config: follow(config, locked.uri))
    assert code == 0, said  # it works all the same, more slowly: a warning
    message = "Store catalog allows no markers: no appendOplogNote, and no write to shop.gapwatch_markers."
    remedy = "Grant the action appendOplogNote on the cluster, or readWrite on that collection."
    assert f"warning  orders.target: {message} What was read is then known only in steps of 10 s and more. {remedy}" in said
    assert "error" not in said
    assert "s3cret" not in said
    code, said = doctor(lambda config: follow(config, locked.uri.replace("s3cret", "wr0ng")))
    assert code == 2, said
    assert "MongoDB store catalog refused the user or the password. Correct them in the store's uri." in said
    assert "wr0ng" not in said


def test_bad_input_stores_that_do_not_answer_are_undecided(doctor: Doctor) -> None:
    code, said = doctor(lambda config: config["stores"]["catalog"].update(uri="mongodb://127.0.0.1:1/?replicaSet=rs0"))
    assert code == 3, said
    assert "unknown" in said
    assert "does not answer" in said
