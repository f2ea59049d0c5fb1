"""``make bench``: rows of ``docs/performance.md``, each as a ratio to the raw limit of the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import beside, costs, delay, handover, page, pending, pinned, regrouped, service, sweeps, work
from benchmarks.answers import check, limit
from benchmarks.contestants import MATCH_NATIVE, NATIVE, NATIVE_PREFIX, differing, found
from gapwatch import native
from gapwatch.embedded import EmbeddedStack
from gapwatch.ledger import open_ledger

ROWS = {1: "ingest", 2: "match", 3: "end to end"}
PENDING_ROWS = (6, 7)
SWEEP_ROWS = (8, 9, 10, 11, 12)
RELATIVE = (*ROWS, 14)  # to R; all others have a reference of their own
SERVICE_ROWS = (5, 13, 15, 16)
GOALS = {1: 0.45, 2: 0.9, 3: 0.3}
NATIVE_GOALS = {1: 1.0, 2: 2.0, 3: 0.65}
ROUNDS = 3
PENDING_KEYS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians over all rounds."""

    per_cpu_second: float
    peak_rss_mib: float


def main() -> int:
    """Measure the rows asked for, check the answer, print a table or one JSON object; 1 when the answer is wrong."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rows", default="1,2,3", help="comma-separated")
    parser.add_argument("--keys", type=int, default=500_000, help="keys a side (500,000: the work of reference)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are shown")
    parser.add_argument("--ids", type=int, default=1_000_000, help="ids a side of row 8 (10,000,000: the work of reference)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pinned.begin()
    rows = sorted(int(row) for row in options.rows.split(","))
    there = sorted(row for family in FAMILIES.values() for row in family.rows)
    unknown = [row for row in rows if row not in there]
    if unknown:
        parser.error(f"there is no row {unknown[0]} yet; rows: {', '.join(map(str, there))}")
    keys = options.keys if set(rows) - set(SWEEP_ROWS) else options.ids
    report: dict[str, Any] = {**describe(), "keys": keys, "rounds": options.rounds, "costs": {}, "rows": []}
    for name, family in FAMILIES.items():
        wanted = [row for row in rows if row in family.rows]
        if wanted:
            measured = family.measure(options, wanted)
            mine = [row for row in measured.rows if row["row"] in wanted]
            page.write(name, section({**report, "keys": measured.keys, "machine": machine(), "rows": mine}))
            report["rows"] += mine
            report["costs"] |= measured.costs
    report["machine"] = machine()
    report["rows"].sort(key=lambda row: row["row"])
    if options.json:
        print(json.dumps(report))
    else:
        for row in report["rows"]:
            met = "met" if row["met"] else "not met"
            against = "R" if row["row"] in RELATIVE else "its reference"
            figures = f"{row['value']:>12,.{decimals(row)}f} {row['unit']}  {row['ratio']:.2f} × {against}"
            print(f"{row['row']}  {row['name']:18} {figures}  goal {row['goal']}: {met}")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a family measured: rows of the report, how many keys a side they are of, and costs of events."""

    rows: list[dict[str, Any]]
    keys: int
    costs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Rows that are measured together, and fill one section of the page: what another family measured stays as it is."""

    rows: Collection[int]
    measure: Callable[[argparse.Namespace, list[int]], Rows]


def streams(options: argparse.Namespace, rows: list[int]) -> Rows:
    """Measure rows 1 to 3, 6 and 7."""
    rates = [row for row in rows if row in ROWS]
    measured = measure(options.keys, rates, options.rounds) if rates else Measured()
    found = None
    if set(rows) & set(PENDING_ROWS):
        with EmbeddedStack(parts=("kafka",)) as stack:
            found = pending.measure_pending(stack.kafka.bootstrap_servers, PENDING_KEYS)
    described = [*(_rates(rates, measured.figures) if rates else []), *(pending.rows(found) if found else [])]
    return Rows(rows=described, keys=options.keys, costs=event_costs(measured, found))


def regroup(options: argparse.Namespace, rows: list[int]) -> Rows:
    """Measure rows 4, 14 and 17; workers share more than one of them needs for its start."""
    keys = options.keys * (regrouped.SHARED_TIMES if {regrouped.SHARED_ROW, handover.ROW} & set(rows) else 1)
    return Rows(rows=regrouped.measure(keys, options.rounds, rows), keys=keys)


def sweep(options: argparse.Namespace, rows: list[int]) -> Rows:
    """Measure rows 8 to 12."""
    return Rows(rows=sweeps.report(sweeps.measure(options.ids, options.rounds, rows), options.ids), keys=options.ids)


def serve(options: argparse.Namespace, rows: list[int]) -> Rows:
    """Measure rows 5, 13, 15 and 16."""
    return Rows(rows=measure_service(rows, options.rounds), keys=0)


FAMILIES = {  # by the section of the page
    "bench": Family(rows=(*ROWS, *PENDING_ROWS), measure=streams),
    "bench-workers": Family(rows=regrouped.ROWS, measure=regroup),
    "bench-sweeps": Family(rows=SWEEP_ROWS, measure=sweep),
    "bench-service": Family(rows=SERVICE_ROWS, measure=serve),
}


def measure_service(rows: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure what stands beside no raw limit: delays, others' requests, and the cost of the whole service."""
    return [
        *(delay.rows(delay.measure()) if 5 in rows else []),
        *(beside.rows(beside.measure(rounds)) if 13 in rows else []),
        *service.measure(rows),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """By contestant; and what an event cost the broker, where match took part."""

    figures: dict[str, Figures] = field(default_factory=dict)
    broker: dict[str, float] = field(default_factory=dict)


def measure(keys: int, rows: Sequence[int], rounds: int = ROUNDS) -> Measured:
    """Run the contestants that `rows` need in turn, round after round, each round on a broker of its own."""
    broker: dict[str, float] = {}
    there = native.find({**os.environ, "GAPWATCH_NATIVE": ""}).module is not None
    matched = bool(set(rows) - {1})
    names = ["C", "R", "ingest", *(["match"] if matched else [])]
    names += [name for name in (NATIVE, MATCH_NATIVE) if there and (name == NATIVE or matched)]
    results: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        with EmbeddedStack(parts=("kafka",)) as stack, tempfile.TemporaryDirectory() as directory:
            servers = stack.kafka.bootstrap_servers
            planted = work.produce(servers, keys)
            database = f"sqlite:///{Path(directory) / 'bench.db'}"
            open_ledger(database).close()  # a service seldom finds none
            for name in names:
                results.setdefault(name, []).append(_run(name, servers, keys, database))
            if there:
                check(differing(servers, keys, NATIVE_PREFIX), planted, keys)
            if MATCH_NATIVE in names:
                check(found(servers, NATIVE_PREFIX), planted, keys)
            if "match" in names:
                check(found(servers), planted, keys)
                assert stack.directory is not None
                broker = costs.of_broker(servers, stack.directory, keys)
            else:
                check(differing(servers, keys), planted, keys)
    figures = {
        name: Figures(
            per_cpu_second=median(result["events"] / result["cpu"] for result in runs),
            peak_rss_mib=median(result["peak_rss_mib"] for result in runs),
        )
        for name, runs in results.items()
    }
    return Measured(figures=figures, broker=broker)


def event_costs(measured: Measured, found: pending.PendingFigures | None) -> dict[str, float]:
    """Return what `make simulate-scale` counts with, as far as it was measured."""
    described = dict(measured.broker)
    for role in ("ingest", "match"):
        if role in measured.figures:
            described[f"{role}_us"] = 1e6 / measured.figures[role].per_cpu_second
    if found is not None:
        restored = max(found.recovery_seconds - found.first_event_seconds, 0.0)
        described |= {"start_seconds": found.first_event_seconds, "restore_us": restored * 1e6 / found.keys}
    return described


def _run(name: str, servers: str, keys: int, database: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.contestants", name, servers, str(keys), database]
    if name in ("C", "R"):
        command = limit(name, servers, keys)
    figures = pinned.run(command, environment={"GAPWATCH_NATIVE": "1" if name in (NATIVE, MATCH_NATIVE) else "0"})
    print(f"  {name:14} {figures['events'] / figures['cpu']:>12,.0f} events per CPU second", file=sys.stderr)
    return figures


def section(report: dict[str, Any]) -> str:
    """Return the section of ``docs/performance.md`` for the rows that were measured."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    keys = f"{report['keys']:,} keys a side," if report["keys"] else ""
    lines = [
        f"{report['machine']['cores']} cores, {report['machine']['system']}; {versions}; {keys}".rstrip(),
        f"{report['rounds']} rounds; load of the machine at the end: {report['machine']['load']:.1f}.",
        "",
        "| # | what | value | × R, or × its reference | goal | peak RSS, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        met = "met" if row["met"] else "not met"
        value = f"{row['value']:,.{decimals(row)}f} {row['unit']}"
        figures = f"{value} | {row['ratio']:.2f} | {row['goal']}: {met} | {row['peak_rss_mib']:,.0f}"
        lines.append(f"| {row['row']} | {row['name']} | {figures} |")
    return "\n".join(lines) + "\n"


def decimals(row: dict[str, Any]) -> int:
    """Return how many decimal places of a value are worth showing."""
    return 2 if row["value"] < 10 else 1 if row["value"] < 100 else 0


def machine() -> dict[str, Any]:
    """Say what this ran on, and how busy it was: the load average of the last minute."""
    return {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def describe() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "gapwatch": version("gapwatch"), "faust": version("faust-streaming")},
    }


def _rates(rows: list[int], measured: dict[str, Figures]) -> list[dict[str, Any]]:
    reference = measured["R"].per_cpu_second
    described = []
    columns = [(row, ROWS[row], ("ingest", "match"), GOALS[row]) for row in rows]
    if NATIVE in measured:
        columns += [(row, f"{ROWS[row]}, native", (NATIVE, MATCH_NATIVE), NATIVE_GOALS[row]) for row in rows]
    for row, title, (first, second), goal in sorted(columns):
        parts = [measured[name] for name in {1: (first,), 2: (second,), 3: (first, second)}[row]]
        value = 1 / sum(1 / part.per_cpu_second for part in parts)
        described.append(
            {
                "row": row,
                "name": title,
                "value": value,
                "unit": "events per CPU second",
                "reference": reference,
                "ratio": value / reference,
                "goal": f"≥ {goal} R",
                "met": value / reference >= goal,
                "peak_rss_mib": sum(part.peak_rss_mib for part in parts),
            }
        )
    return described


if __name__ == "__main__":
    sys.exit(main())
