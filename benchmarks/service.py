"""Rows 15 and 16: what the whole service costs with ten pipelines, idle and at 1,000 events a second each.

It is ``gapwatch run`` as its users run it: all roles, match in a child process, every option as it is by default. CPU is that
of all its processes, and so is memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import running, traffic
from benchmarks.figures import row
from gapwatch.embedded import EmbeddedStack, debezium_mongodb_sink_config, postgres_source_config
from gapwatch.errors import GapwatchError

PIPELINES = 10
EVENTS_PER_SECOND = 1_000  # of each pipeline, both sides together
HEALTHY_SECONDS, SETTLE_SECONDS, MEASURED_SECONDS = 300.0, 45.0, 60.0
IDLE_CORE, IDLE_MIB, BUSY_CORE = 0.03, 300.0, 0.3
SINK = "orders-sink"
ROWS_EACH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cores that the service kept busy, what it held at the end, and the rate of events meanwhile."""

    cores: float
    resident_mib: float
    rate: float = 0.0


def measure_idle(seconds: float = MEASURED_SECONDS) -> Cost:
    """Ten tables, captured and copied by connectors, and nobody writes."""
    with EmbeddedStack() as stack, tempfile.TemporaryDirectory() as directory:
        _connect(stack)
        service = running.Service(stack, Path(directory), _idle_configuration(stack))
        service.start()
        try:
            _wait_healthy(service)
            return _cost(service, SETTLE_SECONDS, seconds)
        finally:
            service.stop()


def measure_busy(seconds: float = MEASURED_SECONDS) -> Cost:
    """Ten pipelines with synthetic events; one document of a thousand is lost, and confirmed as missing."""
    rate = PIPELINES * EVENTS_PER_SECOND
    plan = traffic.Plan(pipelines=PIPELINES, rate=rate, seconds=SETTLE_SECONDS + seconds + 5, group=f"connect-{SINK}")
    with EmbeddedStack(parts=("kafka", "postgres", "mongodb")) as stack, tempfile.TemporaryDirectory() as directory:
        print("filling the stores", file=sys.stderr)
        traffic.fill(stack, plan)
        service = running.Service(stack, Path(directory), traffic.configuration(stack, plan))
        service.start()
        try:
            time.sleep(running.FIRST_SECONDS)
            producing = traffic.start(stack, plan)
            cost = _cost(service, SETTLE_SECONDS, seconds)
            produced = traffic.ended(producing)
            _check_gaps(service, produced, before=produced.begun + int(seconds * 1000))
            return Cost(cores=cost.cores, resident_mib=cost.resident_mib, rate=produced.rate)
        finally:
            service.stop()


def _connect(stack: EmbeddedStack) -> None:
    """Make the tables, and the connectors that capture and copy them."""
    names = [f"orders_{number}" for number in range(PIPELINES)]
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {traffic.DATABASE}")
    with psycopg.connect(stack.postgres.dsn(traffic.DATABASE), autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, customer text, status text, quantity int)")
            connection.execute(f"ALTER TABLE {name} REPLICA IDENTITY FULL")
            connection.execute(f"INSERT INTO {name} SELECT i, 'customer ' || i, 'new', i FROM generate_series(1, {ROWS_EACH}) i")
    tables = [f"public.{name}" for name in names]
    connect = stack.connect.client
    connect.put_connector(
        "orders-source", postgres_source_config(stack.postgres, database=traffic.DATABASE, prefix="shop", tables=tables)
    )
    connect.wait_running("orders-source")
    topics = ",".join(f"shop.{table}" for table in tables)
    sink = debezium_mongodb_sink_config(stack.mongodb, topic=topics, database="catalog", dead_letter_topic=f"{SINK}.dlq")
    connect.put_connector(SINK, sink)
    connect.wait_running(SINK)


def _idle_configuration(stack: EmbeddedStack) -> dict[str, Any]:
    fields = {name: name for name in ("customer", "status", "quantity")}
    return {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "connect": {"url": stack.connect.url},
        "topics": {"replication": 1},
        "stores": {
            "shop": {"type": "postgres", "dsn": stack.postgres.dsn(traffic.DATABASE)},
            "catalog": {"type": "mongodb", "uri": stack.mongodb.uri},
        },
        "pipelines": {
            f"orders_{number}": {
                "source": {
                    "store": "shop",
                    "table": f"public.orders_{number}",
                    "key": {"id": "int"},
                    "feed": {"debezium": f"shop.public.orders_{number}"},
                },
                "target": {
                    "store": "catalog",
                    "collection": f"catalog.shop_public_orders_{number}",
                    "key": {"_id.id": "int"},
                    "feed": {"change_stream": True},
                },
                "fields": fields,
                "delivery": {"group": f"connect-{SINK}"},
            }
            for number in range(PIPELINES)
        },
    }


def _wait_healthy(service: running.Service) -> None:
    until = time.monotonic() + HEALTHY_SECONDS
    statuses: list[str] = []
    while time.monotonic() < until:
        service.check()
        try:
            statuses = [str(one["status"]) for one in service.api.get("/api/v1/pipelines")["pipelines"]]
        except GapwatchError:
            statuses = []
        if len(statuses) == PIPELINES and set(statuses) == {"HEALTHY"}:
            return
        time.sleep(1.0)
    sys.exit(f"not all pipelines were HEALTHY within {HEALTHY_SECONDS:g} s: {statuses}\n{service.said('all')}")


def _cost(service: running.Service, settle: float, seconds: float) -> Cost:
    time.sleep(settle)
    pids = service.pids()
    before, began = [running.cpu_seconds([pid]) for pid in pids], time.monotonic()
    time.sleep(seconds)
    if service.pids() != pids:
        sys.exit(f"a process of the service was started anew meanwhile:\n{service.said('all')}")
    wall = time.monotonic() - began
    used = [(running.cpu_seconds([pid]) - at) / wall for pid, at in zip(pids, before, strict=True)]
    resident = [running.resident_mib([pid]) for pid in pids]
    for pid, cores, mib in zip(pids, used, resident, strict=True):
        print(f"  process {pid}: {cores:.4f} of a core, {mib:.0f} MiB", file=sys.stderr)
    return Cost(cores=sum(used), resident_mib=sum(resident))


def _check_gaps(service: running.Service, produced: traffic.Produced, before: int) -> None:
    """What was lost early enough is a gap by now, and nothing else is one."""
    lost = {(f"orders_{pipeline}", key): at for pipeline, key, at in produced.lost}
    gaps = {(gap["pipeline"], int(gap["key"]["id"])) for gap in service.api.pages("/api/v1/gaps", "gaps", 100_000)}
    missed, invented = {place for place, at in lost.items() if at < before} - gaps, gaps - lost.keys()
    if missed or invented:
        sys.exit(f"wrong answer: {len(missed)} of {len(lost)} missed, {len(invented)} invented")


def rows(idle: Cost | None, busy: Cost | None) -> list[dict[str, Any]]:
    """Return rows 15 and 16 of the report, as far as they were measured."""
    described: list[dict[str, Any]] = []
    if idle is not None:
        title = f"whole service, {PIPELINES} idle pipelines"
        described += [
            _row(15, f"{title}: CPU", 100 * idle.cores, "% of a core", 100 * IDLE_CORE, idle),
            _row(15, f"{title}: memory", idle.resident_mib, "MiB", IDLE_MIB, idle),
        ]
    if busy is not None:
        title = f"whole service, {PIPELINES} pipelines, {busy.rate / PIPELINES:,.0f} events/s each"
        described.append(_row(16, title, busy.cores, "cores", BUSY_CORE, busy))
    return described


def _row(number: int, name: str, value: float, unit: str, most: float, cost: Cost) -> dict[str, Any]:
    return row(number, name, value, unit, most, f"≤ {most:g} {unit}", 1.0, cost.resident_mib)


def measure(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Measure those of rows 15 and 16 that are asked for."""
    return rows(measure_idle() if 15 in numbers else None, measure_busy() if 16 in numbers else None)
