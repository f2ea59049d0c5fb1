"""Row 13: what a sweep does to the requests of others. They come by key at a steady rate, without and with a sweep, in turn.

Postgres is asked by pgbench, MongoDB and OpenSearch by ``benchmarks.reader``. The sweep is one that the schedule asks for every
half an hour, or, beside those, one that somebody waits for; all else is as by default. It begins anew until the requests end, and
is pinned to the last core, who asks to the first; the stores have both. Each pair was swept once before, at full speed.
``python -m benchmarks.beside WHAT DIRECTORY PAIR…`` is the sweep.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks import pinned, reader, running, sweeps
from benchmarks.figures import row
from benchmarks.sweep_contestants import DATABASE, Pair, Repair, fill, pipeline
from gapwatch.core.search_address import SearchAddress
from gapwatch.embedded import EmbeddedStack
from gapwatch.model.pipeline import BatchSpec, StoreType, SweepSpec
from gapwatch.roles.collecting import collect_seldom
from gapwatch.roles.repair.leisure import WITHIN, within_seconds

ROWS = 200_000
RATE = 2_000.0
WINDOW_SECONDS, CAPACITY_SECONDS = 11.0, 4.0  # the first second of each does not count
SHARE = 0.5  # of what a store can serve on this machine, where that is less than twice the rate
MOST = 1.3
EVERY_SECONDS = 1_800.0
SWEEPS = {
    "ids": "a scheduled id sweep",
    "content": "a scheduled content sweep",
    "waited": "a content sweep that somebody waits for",
}
TITLES = {StoreType.POSTGRES: "Postgres (pgbench)", StoreType.MONGODB: "MongoDB", StoreType.OPENSEARCH: "OpenSearch"}
SCRIPT = "\\set id random(1, {rows})\nSELECT * FROM {name} WHERE id = :id;\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Medians over the rounds for one store: requests per second that were asked for, and by sweep ("" without) the rest."""

    store: StoreType
    asked: float
    reached: dict[str, float]
    p99_ms: dict[str, float]
    rss_mib: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who is asked, which pair is swept meanwhile, and where pgbench is."""

    store: StoreType
    url: str
    pair: Pair
    pgbench: Path

    def read(self, rate: float, seconds: float) -> dict[str, float]:
        """Ask for so long, at that rate or (0) as fast as it goes; return rate and percentiles."""
        if self.store is StoreType.POSTGRES:
            return self._pgbench(rate, seconds)
        numbers = [str(ROWS), str(rate), str(seconds)]
        command = [sys.executable, "-m", "benchmarks.reader", self.store.value, self.url, self.pair.name, *numbers]
        done = subprocess.run(command, cwd=pinned.ROOT, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=_first_core)
        said: dict[str, float] = json.loads(done.stdout)
        return said

    def _pgbench(self, rate: float, seconds: float) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as directory:
            script = Path(directory) / "read.sql"
            script.write_text(SCRIPT.format(rows=ROWS, name=self.pair.name))
            paced = ["--rate", str(rate)] if rate else []
            command = [str(self.pgbench), "--no-vacuum", "--protocol=prepared", f"--file={script}", *paced]
            command += [f"--client={reader.CLIENTS}", "--jobs=1", f"--time={seconds:.0f}", "--log", "--log-prefix=read"]
            began = time.time_ns() // 1_000
            subprocess.run(
                [*command, self.url],
                cwd=directory,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
                preexec_fn=_first_core,
            )
            text = "".join(path.read_text() for path in Path(directory).glob("read.*[0-9]"))
        took = reader.latencies(text, began + int(reader.WARM_SECONDS * 1e6))
        return reader.figures(took, seconds - reader.WARM_SECONDS)


def _first_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def measure(rounds: int) -> list[Beside]:
    """Ask each store in windows without and with sweeps, round after round."""
    with EmbeddedStack(parts=("postgres", "mongodb", "opensearch")) as stack:
        with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        search = SearchAddress(scheme="http", hosts=(f"{stack.opensearch.host}:{stack.opensearch.port}",)).encode()
        table: dict[str, Any] = {"source": StoreType.POSTGRES, "source_url": stack.postgres.dsn(DATABASE)}
        collected = Pair(name="collected", target=StoreType.MONGODB, target_url=stack.mongodb.uri, **table)
        indexed = Pair(name="indexed", target=StoreType.OPENSEARCH, target_url=search, **table)
        pgbench = Path(f"/proc/{stack.postgres.pid}/exe").resolve().with_name("pgbench")
        print("filling the stores", file=sys.stderr)
        for pair in (collected, indexed):
            fill(pair, rows=ROWS, missing=7, content=True)
            for what in ("ids", "content"):  # a JVM that has never searched compiles, on both cores, while it answers
                sweeps.run(what, pair)
        asked = [
            Asked(store=StoreType.POSTGRES, url=collected.source_url, pair=collected, pgbench=pgbench),
            Asked(store=StoreType.MONGODB, url=collected.target_url, pair=collected, pgbench=pgbench),
            Asked(store=StoreType.OPENSEARCH, url=indexed.target_url, pair=indexed, pgbench=pgbench),
        ]
        return [_beside(one, rounds) for one in asked]


def _beside(asked: Asked, rounds: int) -> Beside:
    capacity = max(asked.read(0, CAPACITY_SECONDS)["rate"] for _ in range(2))  # the JVM is faster the second time
    rate = affordable(capacity)
    print(f"{TITLES[asked.store]}: {capacity:,.0f} requests/s at most, {rate:,.0f} asked for", file=sys.stderr)
    taken: dict[str, list[dict[str, float]]] = {what: [] for what in ("", *SWEEPS)}
    for _ in range(rounds):
        for what, figures in taken.items():
            with _sweeping(what, asked.pair) as pid:
                one = asked.read(rate, WINDOW_SECONDS)
                one["rss"] = running.resident_mib([pid]) if pid else 0.0
            figures.append(one)
            beside = f"{what} swept" if what else "alone"
            print(f"  {beside:14} {one['rate']:8,.0f}/s  p50 {one['p50']:.2f} ms  p99 {one['p99']:.2f} ms", file=sys.stderr)

    def medians(name: str) -> dict[str, float]:
        return {what: median(one[name] for one in figures) for what, figures in taken.items()}

    return Beside(store=asked.store, asked=rate, reached=medians("rate"), p99_ms=medians("p99"), rss_mib=medians("rss"))


def affordable(capacity: float) -> float:
    """Return the rate to ask at: a store that has nothing to spare would be measured at its limit, not beside a sweep."""
    return RATE if capacity * SHARE >= RATE else max(capacity * SHARE // 100 * 100, 100.0)


@contextmanager
def _sweeping(what: str, pair: Pair) -> Iterator[int]:
    """Sweep until the end of the context; yields the process once the first sweep has begun, 0 where nothing is swept."""
    if not what:
        yield 0
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.beside", what, directory, *pair.arguments],
            cwd=pinned.ROOT,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=pinned.pin,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "begun\n":
                sys.exit(f"the sweep of {what} did not begin")
            yield process.pid
            if process.poll() is not None:
                sys.exit(f"the sweep of {what} ended with code {process.returncode}")
        finally:
            process.kill()


async def sweep(what: str, directory: str, pair: Pair) -> None:
    """Sweep again and again, as role repair does it, with a ledger in that directory."""
    collect_seldom()
    scheduled = SweepSpec(every_seconds=EVERY_SECONDS)
    made = Repair(pair, replace(pipeline(pair, BatchSpec()), sweep=scheduled), directory)
    more = {} if what == "waited" else {WITHIN: within_seconds(scheduled, made.clock)}
    print("begun", flush=True)
    for number in count():
        await made.sweep(content=what != "ids", run_id=f"sweep-{number}", **more)


def rows(found: list[Beside]) -> list[dict[str, Any]]:
    """Return row 13 of the report."""
    described = []
    for one in found:
        rate = f"{one.asked:,.0f} reads/s"
        if one.asked < RATE:
            rate += f", as many as this machine serves instead of {RATE:,.0f},"
        for what in SWEEPS:
            name = f"p99 of {rate} beside {SWEEPS[what]}, {TITLES[one.store]}"
            goal, most = ("no goal", float("inf")) if what == "waited" else (f"≤ {MOST} × without", MOST)
            described.append(row(13, name, one.p99_ms[what], "ms", one.p99_ms[""], goal, most, one.rss_mib[what]))
    return described


if __name__ == "__main__":
    asyncio.run(sweep(sys.argv[1], sys.argv[2], Pair.of(sys.argv[3:])))
