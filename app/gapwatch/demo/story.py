"""The story of ``gapwatch demo``: a pipeline that looks healthy and is wrong, what Gapwatch says of it, and how it heals.

1. Real parts start: Kafka, Connect with Debezium, Postgres, a MongoDB replica set; a table of orders is captured, and
   Debezium's own MongoDB sink copies it. That sink drops every batch that holds a DELETE.
2. Gapwatch starts, makes its baseline, and watches while a small load writes.
3. The load stops. An independent full comparison of both stores says what is true; what Gapwatch found is held against it.
4. Gapwatch plans a backfill, applies it and verifies. A second comparison says whether both stores agree.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import yaml
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from pymongo import MongoClient

from gapwatch.api_client import Api
from gapwatch.demo.compare import Truth, compare
from gapwatch.demo.load import TABLE, Load, create_table
from gapwatch.embedded import EmbeddedStack, debezium_mongodb_sink_config, postgres_source_config
from gapwatch.errors import GapwatchError

GRACE_SECONDS = 5
SOURCE, SINK = "orders-source", "orders-sink"
PREFIX = "shop"
TOPIC = f"{PREFIX}.{TABLE}"
DEAD_LETTERS = "orders-sink.dlq"
DATABASE, COLLECTION = "catalog", TOPIC.replace(".", "_")
SETTLE_SECONDS_MAX = 90.0
CLASSES = {
    "missing": "missing",
    "extra": "extra",
    "undeleted": "extra",
    "stale": "different",
    "mismatch": "different",
    "ahead": "different",
}


@dataclass(slots=True, kw_only=True)
class Scene:
    """What is shown: the pipeline's own word, Gapwatch's word, and what is happening."""

    act: str = ""
    pipeline_says: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    page: str = ""
    written: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The outcome, as ``--json`` prints it. ``read_everything`` False: something was not read, so nothing is claimed."""

    record: dict[str, Any]
    read_everything: bool

    @property
    def exit_code(self) -> int:
        if not self.read_everything:
            return 3
        right = self.record["missed"] == 0 and self.record["invented"] == 0 and self.record["consistent"]
        return 0 if right else 1


class Story:
    """Runs the demo from start to end; ``show`` is called with every new scene.

    Args:
        seconds: Length of the write load.
        show: Called with the scene whenever it changed.
        say: Called with one line for each step.
    """

    def __init__(self, *, seconds: float, show: Callable[[Scene], None], say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._show = show
        self._say = say
        self.scene = Scene()
        self._directory = tempfile.TemporaryDirectory(prefix="gapwatch-demo-", ignore_cleanup_errors=True)
        self._stack = EmbeddedStack(on_progress=say)
        self._service: subprocess.Popen[bytes] | None = None
        self._admin: AdminClient | None = None

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *_: object) -> None:
        if self._service is not None:
            self._service.send_signal(signal.SIGTERM)
            try:
                self._service.wait(15)
            except subprocess.TimeoutExpired:
                self._service.kill()
                self._service.wait()
        self._stack.stop()
        self._directory.cleanup()

    # the acts

    def play(self) -> Ending:
        self._act("Starting Kafka, Connect, Postgres and MongoDB")
        self._stack.start()
        self._start_pipeline()
        self._act("Starting Gapwatch")
        self._start_service()
        self._wait(self._has_baseline, "Gapwatch's baseline")
        load = Load(dsn=self._dsn)
        self._act(f"Writing for {self._seconds:.0f} seconds")
        load.start()
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            self._refresh(load)
            time.sleep(0.5)
        load.stop()
        self._act("The load has stopped; the pipeline settles")
        self._let_counts_agree(load)
        self._wait(lambda: self._settled(load), "every write to be judged")
        says = self._pipeline_says()
        self._act("The independent comparison")
        before = compare(self._dsn, self._stack.mongodb.uri, DATABASE, COLLECTION)
        found = self._open_gaps()
        verdict = judge(before, found)
        self._say(
            f"In truth {before.total} orders are wrong; Gapwatch found {len(found)}:"
            f" {verdict['missed']} missed, {verdict['invented']} invented."
        )
        run = self._repair()
        self._wait(lambda: self._healed(load), "the pipeline to be green")
        after = compare(self._dsn, self._stack.mongodb.uri, DATABASE, COLLECTION)
        return self._ending(before, after, found, verdict, run, says)

    def stay(self) -> None:
        """Keep everything up, refreshing the screen, until the caller is interrupted."""
        self._act(f"Done. The page stays at {self.scene.page} until Ctrl-C")
        while True:
            self._refresh(None)
            time.sleep(1)

    # the parts

    @property
    def _dsn(self) -> str:
        return self._stack.postgres.dsn(database="shop")

    def _start_pipeline(self) -> None:
        self._act("Creating the table and its pipeline")
        with psycopg.connect(self._stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        create_table(self._dsn)
        connect = self._stack.connect.client
        connect.put_connector(
            SOURCE, postgres_source_config(self._stack.postgres, database="shop", prefix=PREFIX, tables=[TABLE])
        )
        connect.wait_running(SOURCE, timeout_seconds=60)
        connect.put_connector(
            SINK,
            debezium_mongodb_sink_config(self._stack.mongodb, topic=TOPIC, database=DATABASE, dead_letter_topic=DEAD_LETTERS),
        )
        connect.wait_running(SINK, timeout_seconds=60)
        self._admin = AdminClient({"bootstrap.servers": self._stack.kafka.bootstrap_servers})
        self._wait(lambda: self._counts() == (self._counts()[0],) * 2 and self._counts()[0] > 0, "the snapshot to be copied")

    def _start_service(self) -> None:
        directory = Path(self._directory.name)
        port = _free_port()
        config = directory / "gapwatch.yaml"
        config.write_text(yaml.safe_dump(self._configuration(directory, port), sort_keys=False))
        self.scene.page = f"http://127.0.0.1:{port}/"
        with (directory / "gapwatch.log").open("wb") as output:
            self._service = subprocess.Popen(
                [sys.executable, "-m", "gapwatch", "--config", str(config), "run"],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "GAPWATCH_PARENT": str(os.getpid())},
            )
        self._wait(self._service_answers, "Gapwatch to answer")
        self._say(f"The page is at {self.scene.page}")

    def _configuration(self, directory: Path, port: int) -> dict[str, Any]:
        """Return what a user would write into ``gapwatch.yaml`` for this pipeline."""
        return {
            "kafka": {"bootstrap_servers": self._stack.kafka.bootstrap_servers},
            "connect": {"url": self._stack.connect.url},
            "api": {"listen": f"127.0.0.1:{port}"},
            "topics": {"partitions": 4, "replication": 1},
            "database": f"sqlite:///{directory / 'gapwatch.db'}",
            "stores": {
                "shop": {"type": "postgres", "dsn": self._dsn, "heartbeat": {"auto": True, "every": "250ms"}},
                "catalog": {"type": "mongodb", "uri": self._stack.mongodb.uri},
            },
            "pipelines": {
                "orders": {
                    "source": {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": TOPIC}},
                    "target": {
                        "store": "catalog",
                        "collection": f"{DATABASE}.{COLLECTION}",
                        "key": {"_id.id": "int"},
                        "feed": {"change_stream": True},
                    },
                    "fields": {
                        "customer": "customer",
                        "status": "status",
                        "amount": {"from": "amount", "type": "decimal", "scale": 2},
                        "quantity": "quantity",
                    },
                    "grace": f"{GRACE_SECONDS}s",
                    "delivery": {"group": f"connect-{SINK}"},
                    "repair": {"extra": "delete", "undeleted": "delete"},
                }
            },
        }

    def _service_answers(self) -> bool:
        assert self._service is not None
        if self._service.poll() is not None:
            log = (Path(self._directory.name) / "gapwatch.log").read_text(errors="replace")
            raise GapwatchError(f"Gapwatch ended at its start:\n{log[-3000:]}")
        return self._api().alive()

    def _api(self) -> Api:
        return Api(self.scene.page)

    def _has_baseline(self) -> bool:
        self._refresh(None)
        return self.scene.pipeline.get("consistent_through") is not None

    def _counts(self) -> tuple[int, int]:
        with psycopg.connect(self._dsn) as connection:
            row = connection.execute("SELECT count(*) FROM public.orders").fetchone()
        client: MongoClient[dict[str, Any]] = MongoClient(self._stack.mongodb.uri)
        try:
            documents = client[DATABASE][COLLECTION].count_documents({})
        finally:
            client.close()
        assert row is not None
        return int(row[0]), documents

    def _lag(self) -> int:
        """Return how many records the sink has not yet committed."""
        assert self._admin is not None
        group = f"connect-{SINK}"
        future = self._admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group]
        committed = {part.partition: part.offset for part in future.result().topic_partitions if part.topic == TOPIC}
        partitions = self._admin.list_topics(TOPIC).topics[TOPIC].partitions
        ends = self._admin.list_offsets({TopicPartition(TOPIC, number): OffsetSpec.latest() for number in partitions})
        return sum(int(end.result().offset) - max(0, committed.get(part.partition, 0)) for part, end in ends.items())

    def _dead_letters(self) -> int:
        assert self._admin is not None
        topics = self._admin.list_topics().topics
        if DEAD_LETTERS not in topics:
            return 0
        asked = {TopicPartition(DEAD_LETTERS, number): OffsetSpec.latest() for number in topics[DEAD_LETTERS].partitions}
        return sum(int(end.result().offset) for end in self._admin.list_offsets(asked).values())

    def _pipeline_says(self) -> dict[str, Any]:
        status = self._stack.connect.client.status(SINK)
        source, target = self._counts()
        return {
            "connector_state": status["connector"]["state"],
            "task_states": [task["state"] for task in status["tasks"]],
            "lag": self._lag(),
            "dead_letter_records": self._dead_letters(),
            "source_count": source,
            "target_count": target,
        }

    def _let_counts_agree(self, load: Load) -> None:
        """Lose as many inserts as deletes: write transactions that the sink drops until both stores count the same."""
        for _ in range(12):
            self._wait(lambda: self._lag() == 0, "the sink's lag to be 0", refresh=load)
            source, target = self._counts()
            if target > source:
                load.lose_inserts(target - source)
            elif source > target:
                load.lose_deletes(source - target)
            else:
                return
            self._wait(lambda: self._lag() > 0, "the sink to see the write", seconds=5, refresh=load, needed=False)

    def _settled(self, load: Load) -> bool:
        """Whether Gapwatch has judged everything that was written so far."""
        self._refresh(load)
        view = self.scene.pipeline
        if view.get("pending_keys") or view.get("in_transit_keys") or view.get("source_watermark") is None:
            return False
        return (_now() - _time(view["source_watermark"])).total_seconds() < GRACE_SECONDS and self._quiet_for(2 * GRACE_SECONDS)

    def _quiet_for(self, seconds: float) -> bool:
        key = (len(self.scene.gaps), self.scene.written)
        if key != getattr(self, "_quiet_key", None):
            self._quiet_key, self._quiet_since = key, time.monotonic()
        return time.monotonic() - self._quiet_since >= seconds

    def _open_gaps(self) -> list[dict[str, Any]]:
        return self._api().pages("/api/v1/gaps", "gaps", 100_000, pipeline="orders", state="open,repairing,acknowledged")

    def _repair(self) -> dict[str, Any]:
        self._act("Repairing: plan, apply, verify")
        api = self._api()
        planned = api.post("/api/v1/backfills", {"pipeline": "orders", "kinds": list(CLASSES)[:5]})
        run = api.post("/api/v1/backfills", {"plan": planned["id"], "dry_run": False})

        def ended() -> bool:
            nonlocal run
            run = api.get(f"/api/v1/backfills/{run['id']}")
            self._refresh(None)
            return run["state"] not in ("queued", "running")

        self._wait(ended, "the backfill")
        self._say(f"Backfill {run['state']}: {run['counts'].get('verified', 0)} documents written or deleted, and read back.")
        return dict(run)

    def _healed(self, load: Load) -> bool:
        self._refresh(load)
        return self.scene.pipeline.get("status") == "HEALTHY" and not self.scene.gaps

    def _ending(
        self,
        before: Truth,
        after: Truth,
        found: list[dict[str, Any]],
        verdict: dict[str, int],
        run: dict[str, Any],
        says: dict[str, Any],
    ) -> Ending:
        delays = sorted(
            (_time(gap["confirmed_at"]) - _time(gap["event_time"])).total_seconds() for gap in found if gap["event_time"]
        )
        view = self.scene.pipeline
        by_kind: dict[str, int] = {}
        for gap in found:
            by_kind[gap["kind"]] = by_kind.get(gap["kind"], 0) + 1
        record = {
            "schema_version": 1,
            "pipeline_says": says,
            "truth_total": before.total,
            "found_total": len(found),
            "missed": verdict["missed"],
            "invented": verdict["invented"],
            "by_kind": by_kind,
            "repaired": before.total - after.total,
            "verified": run["counts"].get("verified", 0),
            "detection_seconds": {"p50": _quantile(delays, 0.5), "p99": _quantile(delays, 0.99)},
            "consistent_through": view.get("consistent_through"),
            "ended_at": _now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "consistent": after.total == 0 and view.get("status") == "HEALTHY",
            "truth_after_repair": after.total,
            "status": view.get("status"),
        }
        return Ending(record=record, read_everything=view.get("status") != "UNKNOWN")

    # showing and waiting

    def _act(self, text: str) -> None:
        self.scene.act = text
        self._say(text)
        self._show(self.scene)

    def _refresh(self, load: Load | None) -> None:
        if load is not None:
            self.scene.written = load.written
            if load.error is not None:
                raise load.error
        try:
            self.scene.pipeline = self._api().get("/api/v1/pipelines/orders")
            self.scene.gaps = self._open_gaps()
            self.scene.pipeline_says = self._pipeline_says()
        except GapwatchError:
            self.scene.pipeline = {**self.scene.pipeline, "status": "UNKNOWN"}
        self._show(self.scene)

    def _wait(
        self,
        condition: Callable[[], bool],
        what: str,
        *,
        seconds: float = SETTLE_SECONDS_MAX,
        refresh: Load | None = None,
        needed: bool = True,
    ) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                if needed:
                    raise GapwatchError(
                        f"Waited {seconds:.0f} s for {what}, in vain.", remedy="The logs are in the output above."
                    )
                return
            if refresh is not None:
                self._refresh(refresh)
            time.sleep(0.3)


def judge(truth: Truth, found: list[dict[str, Any]]) -> dict[str, int]:
    """Hold the found gaps against the truth: what is wrong and was not found, what was found and is not wrong."""
    claimed = {(int(gap["key"]["id"]), CLASSES.get(gap["kind"], gap["kind"])) for gap in found}
    true = truth.as_pairs()
    return {"missed": len(true - claimed), "invented": len(claimed - true)}


def _quantile(values: list[float], share: float) -> float | None:
    """Return the nearest-rank quantile of sorted `values`, in seconds."""
    if not values:
        return None
    return round(values[min(len(values) - 1, int(share * len(values)))], 3)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _now() -> datetime:
    return datetime.now(UTC)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
