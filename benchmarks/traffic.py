"""The traffic of rows 5 and 16: both sides' events at a rate, stamped when they are produced; and stores that hold the same.

The events are those of the work of reference, of one pipeline or of several: a write at the source, and a tenth of a second
later the copier's. One document of a thousand never arrives; its row is inserted when it is written, all others are there from
the beginning. Everything but numbers and times repeats after a thousand keys, so that the producer does not take the cores that
it shares with what is measured.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from bson import Decimal128, Int64
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from pymongo import MongoClient

from benchmarks.pinned import ROOT
from benchmarks.work import STATUSES
from gapwatch.embedded import EmbeddedStack

DATABASE = "bench"
PARTITIONS = 4
RESIDUES, MISSING = 1_000, 500  # of every thousand keys this one has no document
LAG_SECONDS = 0.1
TICK_SECONDS = 0.005
COMMIT_SECONDS = 0.5
PLACED = datetime(2026, 1, 1, tzinfo=UTC)
FIELDS: dict[str, Any] = {
    "customer": "customer",
    "amount": {"from": "amount", "type": "decimal", "scale": 2},
    "status": "status",
    "quantity": "quantity",
    "updated_at": "updated_at",
    "version": "version",
}
ROWS_SQL = """
SELECT i::bigint AS id, 'customer-' || i % {residues} AS customer, (i % {residues} + 0.5)::numeric(12, 2) AS amount,
       (array['new', 'paid', 'shipped', 'done'])[1 + i % {residues} % 4] AS status, (i % {residues} % 97)::int AS quantity,
       '{placed}'::timestamptz + i % {residues} * interval '1 second' AS updated_at,
       'order note ' || i % {residues} AS note, (1 + i % {residues} % 5)::int AS version
  FROM generate_series({first}, {last}) i
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``rate``: raw events a second, of all pipelines together. ``group``: as which the copier commits; empty: it does not."""

    pipelines: int
    rate: int
    seconds: float
    group: str = ""

    @property
    def writes(self) -> int:
        """Return how many writes there are at the source, in all."""
        return int(self.rate / 2 * self.seconds)

    @property
    def keys(self) -> int:
        """Return how many keys a pipeline has, at least as many as are written."""
        return -(-self.writes // self.pipelines)

    @property
    def names(self) -> list[str]:
        return [f"orders_{number}" for number in range(self.pipelines)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What went out: the first and the last write's time in milliseconds, raw events, and when each lost write was made."""

    begun: int
    ended: int
    events: int
    lost: Sequence[tuple[int, int, int]]  # pipeline, key, time

    @property
    def rate(self) -> float:
        return self.events * 1000 / (self.ended - self.begun)


def source_topic(name: str) -> str:
    return f"bench.public.{name}"


def target_topic(name: str) -> str:
    return f"catalog.{DATABASE}.{name}"


def configuration(stack: EmbeddedStack, plan: Plan, **pipeline: Any) -> dict[str, Any]:
    """Return the configuration that a user would write for these pipelines, with `pipeline` in each."""
    delivery: Any = {"group": plan.group} if plan.group else "none"
    return {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "topics": {"replication": 1},
        "stores": {
            "shop": {"type": "postgres", "dsn": stack.postgres.dsn(DATABASE)},
            "catalog": {"type": "mongodb", "uri": stack.mongodb.uri},
        },
        "pipelines": {
            name: {
                "source": {
                    "store": "shop",
                    "table": f"public.{name}",
                    "key": {"id": "int"},
                    "feed": {"debezium": source_topic(name)},
                },
                "target": {
                    "store": "catalog",
                    "collection": f"{DATABASE}.{name}",
                    "key": {"_id": "int"},
                    "feed": {"debezium": target_topic(name)},
                },
                "fields": FIELDS,
                "delivery": delivery,
                "baseline": "assume",
                **pipeline,
            }
            for name in plan.names
        },
    }


# ── stores ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fill(stack: EmbeddedStack, plan: Plan) -> None:
    """Create the topics, and tables and collections with everything but what will be lost."""
    _create_topics(stack.kafka.bootstrap_servers, plan)
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    documents = [document(number) for number in range(RESIDUES) if number != MISSING]
    with psycopg.connect(stack.postgres.dsn(DATABASE), autocommit=True) as connection:
        for name in plan.names:
            connection.execute(f"CREATE TABLE {name} AS {rows_sql(0, plan.keys - 1)} WHERE i % {RESIDUES} <> {MISSING}")
            connection.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
            for start in range(0, plan.keys, RESIDUES):
                batch = [{**one, "_id": Int64(one["_id"] + start)} for one in documents if one["_id"] + start < plan.keys]
                if batch:
                    client[DATABASE][name].insert_many(batch, ordered=False)
        connection.execute("VACUUM ANALYZE")
    client.close()


def rows_sql(first: int, last: int) -> str:
    """Return the query that makes these rows."""
    return ROWS_SQL.format(first=first, last=last, residues=RESIDUES, placed=PLACED.isoformat())


def document(number: int) -> dict[str, Any]:
    """Return what the copier makes of a row."""
    residue = number % RESIDUES
    return {
        "_id": number,
        "customer": f"customer-{residue}",
        "amount": Decimal128(f"{residue}.50"),
        "status": STATUSES[residue % 4],
        "quantity": residue % 97,
        "updated_at": PLACED + timedelta(seconds=residue),
        "note": f"order note {residue}",
        "version": 1 + residue % 5,
    }


def _create_topics(servers: str, plan: Plan) -> None:
    names = [topic(name) for name in plan.names for topic in (source_topic, target_topic)]
    admin = AdminClient({"bootstrap.servers": servers})  # held until all is answered
    made = admin.create_topics([NewTopic(name, num_partitions=PARTITIONS, replication_factor=1) for name in names])
    for future in made.values():
        future.result()


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def source_template(residue: int) -> bytes:
    """Return a write at the source, with places for: key, time, LSN − 56, LSN, pipeline, key, LSN, time."""
    unscaled = residue * 100 + 50
    after = {
        "id": "@",
        "customer": f"customer-{residue}",
        "amount": base64.b64encode(unscaled.to_bytes(4)).decode(),  # as Debezium writes decimals where nobody asks it not to
        "status": STATUSES[residue % 4],
        "quantity": residue % 97,
        "updated_at": (PLACED + timedelta(seconds=residue)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "note": f"order note {residue}",
        "version": 1 + residue % 5,
    }
    source = {
        "version": "3.6.3.Final",
        "connector": "postgresql",
        "name": "bench",
        "ts_ms": "@",
        "snapshot": "false",
        "db": DATABASE,
        "sequence": '["%d","%d"]',
        "schema": "public",
        "table": "orders_%d",
        "txId": "@",
        "lsn": "@",
        "xmin": None,
    }
    return _template({"before": None, "after": after, "source": source, "transaction": None, "op": "c", "ts_ms": "@"})


def target_template(residue: int) -> bytes:
    """Return the copier's write as Debezium tells of it, with places for: key, time, pipeline, ordinal, time, time."""
    made = document(residue)
    after = {
        **made,
        "_id": {"$numberLong": "%d"},
        "amount": {"$numberDecimal": str(made["amount"])},
        "updated_at": {"$date": int(made["updated_at"].timestamp() * 1000)},
    }
    source = {
        "version": "3.6.3.Final",
        "connector": "mongodb",
        "name": "catalog",
        "ts_ms": "@",
        "snapshot": "false",
        "db": DATABASE,
        "collection": "orders_%d",
        "ord": "@",
        "lsid": None,
        "txnNumber": None,
        "wallTime": "@",
    }
    text = json.dumps(after, separators=(",", ":"))
    envelope = {"before": None, "after": text, "updateDescription": None, "source": source, "op": "c", "ts_ms": "@"}
    return _template({**envelope, "transaction": None})


def _template(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode().replace(b'"@"', b"%d")


# ── the producer ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Traffic:
    """Sends the writes of a plan. Writes go round the pipelines; so do keys round the partitions of each."""

    def __init__(self, servers: str, dsn: str, plan: Plan) -> None:
        self._plan = plan
        self._rows = psycopg.connect(dsn, autocommit=True)
        self._producer = Producer(
            {"bootstrap.servers": servers, "linger.ms": 5, "compression.type": "lz4", "queue.buffering.max.messages": 500_000}
        )
        self._copier = Consumer({"bootstrap.servers": servers, "group.id": plan.group or "bench", "enable.auto.commit": False})
        self._sources = [source_template(residue) for residue in range(RESIDUES)]
        self._targets = [target_template(residue) for residue in range(RESIDUES)]
        self._topics = [(source_topic(name), target_topic(name)) for name in plan.names]
        self._copied = [[0] * PARTITIONS for _ in plan.names]
        self._lost: list[tuple[int, int, int]] = []
        self._events = 0

    def run(self) -> Produced:
        """Send everything at its time."""
        plan, written, copied, committed = self._plan, 0, 0, 0.0
        begun, began = time.time_ns() // 1_000_000, time.monotonic()
        while copied < plan.writes:
            elapsed = time.monotonic() - began
            until = min(int(elapsed * plan.rate / 2), plan.writes)
            for number in range(written, until):
                self._write(number)
            written = until
            until = min(max(int((elapsed - LAG_SECONDS) * plan.rate / 2), 0), written)
            for number in range(copied, until):
                self._copy(number)
            copied = until
            self._producer.poll(0)
            if plan.group and elapsed > committed + COMMIT_SECONDS:
                committed = elapsed
                self._commit()
            time.sleep(TICK_SECONDS)
        ended = time.time_ns() // 1_000_000
        self._producer.flush()
        self._copier.close()
        self._rows.close()
        return Produced(begun=begun, ended=ended, events=self._events, lost=self._lost)

    def _write(self, number: int) -> None:
        key, pipeline = divmod(number, self._plan.pipelines)
        if key % RESIDUES == MISSING:
            self._rows.execute(f"INSERT INTO {self._plan.names[pipeline]} {rows_sql(key, key)}")
        now, lsn = time.time_ns() // 1_000_000, 28_280_000 + number * 100
        value = self._sources[key % RESIDUES] % (key, now, lsn - 56, lsn, pipeline, key, lsn, now)
        self._producer.produce(self._topics[pipeline][0], key=b'{"id":%d}' % key, value=value, partition=key % PARTITIONS)
        self._events += 1
        if key % RESIDUES == MISSING:
            self._lost.append((pipeline, key, now))

    def _copy(self, number: int) -> None:
        key, pipeline = divmod(number, self._plan.pipelines)
        self._copied[pipeline][key % PARTITIONS] += 1
        if key % RESIDUES == MISSING:
            return
        now = time.time_ns() // 1_000_000
        value = self._targets[key % RESIDUES] % (key, now, pipeline, number + 1, now, now)
        self._producer.produce(self._topics[pipeline][1], key=b'{"id":"%d"}' % key, value=value, partition=key % PARTITIONS)
        self._events += 1

    def _commit(self) -> None:
        """Say how far the copier has come, as a sink does."""
        positions = [
            TopicPartition(self._topics[pipeline][0], partition, offset)
            for pipeline, offsets in enumerate(self._copied)
            for partition, offset in enumerate(offsets)
        ]
        self._copier.commit(offsets=positions, asynchronous=True)
        self._copier.poll(0)


def start(stack: EmbeddedStack, plan: Plan) -> subprocess.Popen[str]:
    """Start the producer as a process of its own."""
    arguments = [stack.kafka.bootstrap_servers, stack.postgres.dsn(DATABASE), json.dumps(asdict(plan))]
    command = [sys.executable, "-m", "benchmarks.traffic", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> Produced:
    """Wait for the producer; return what it did."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the producer ended with code {process.returncode}")
    said: dict[str, Any] = json.loads(output)
    return Produced(**{**said, "lost": [(pipeline, key, at) for pipeline, key, at in said["lost"]]})


if __name__ == "__main__":
    print(json.dumps(asdict(Traffic(sys.argv[1], sys.argv[2], Plan(**json.loads(sys.argv[3]))).run())))
