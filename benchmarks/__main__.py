"""``make bench``: rows of ``docs/performance.md``, each as a ratio to the raw limit of the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import pending, work
from benchmarks.contestants import differing, found
from gapwatch.embedded import EmbeddedStack

ROWS = {1: "ingest", 2: "match", 3: "end to end"}
PENDING_ROWS = (6, 7)
GOALS = {1: 0.45, 2: 0.9, 3: 0.3}
ROUNDS = 3
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
LATE_MS = 3_000  # writes so close to the end are not due yet when the streams stop


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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = sorted(int(row) for row in options.rows.split(","))
    unknown = [row for row in rows if row not in ROWS and row not in PENDING_ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]} yet; rows: {', '.join(map(str, (*ROWS, *PENDING_ROWS)))}")
    rates = [row for row in rows if row in ROWS]
    report = describe(rates, measure(options.keys, rates) if rates else {})
    if set(rows) & set(PENDING_ROWS):
        with EmbeddedStack(parts=("kafka",)) as stack:
            report["rows"] += [row for row in pending.rows(stack.kafka.bootstrap_servers) if row["row"] in rows]
    PAGE.write_text(page(report))
    if options.json:
        print(json.dumps(report))
    else:
        for row in report["rows"]:
            met = "met" if row["met"] else "not met"
            figures = f"{row['value']:>12,.0f} {row['unit']}  {row['ratio']:.2f} × {'R' if row['row'] in ROWS else 'goal'}"
            print(f"{row['row']}  {row['name']:12} {figures}  goal {row['goal']}: {met}")
    return 0


def measure(keys: int, rows: Sequence[int]) -> dict[str, Figures]:
    """Run the contestants that `rows` need in turn, round after round, each round on a broker of its own."""
    names = ("C", "R", "ingest", "match") if set(rows) - {1} else ("C", "R", "ingest")
    results: dict[str, list[dict[str, float]]] = {}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        with EmbeddedStack(parts=("kafka",)) as stack, tempfile.TemporaryDirectory() as directory:
            servers = stack.kafka.bootstrap_servers
            planted = work.produce(servers, keys)
            database = f"sqlite:///{Path(directory) / 'bench.db'}"
            for name in names:
                results.setdefault(name, []).append(_run(name, servers, keys, database))
            if "match" in names:
                _check(found(servers), planted, keys)
            else:
                _check(differing(servers, keys), planted, keys)
    return {
        name: Figures(
            per_cpu_second=median(result["events"] / result["cpu"] for result in rounds),
            peak_rss_mib=median(result["peak_rss_mib"] for result in rounds),
        )
        for name, rounds in results.items()
    }


def _run(name: str, servers: str, keys: int, database: str) -> dict[str, float]:
    core = sorted(os.sched_getaffinity(0))[-1]
    if name in ("C", "R"):
        topics = [servers, str(work.records(keys)), work.SOURCE, work.TARGET, str(work.PARTITIONS)]
        command = ["benchmarks.limits", name, *topics]
    else:
        command = ["benchmarks.contestants", name, servers, str(keys), database]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {name:8} {figures['events'] / figures['cpu']:>12,.0f} events per CPU second", file=sys.stderr)
    return figures


def _check(suspects: set[int], planted: work.Planted, keys: int) -> None:
    """The answer counts, not only the speed: exactly what was planted is suspected, but for what is not due yet."""
    wrong = planted.missing | planted.wrong
    undue = {key for key in wrong if work.START_MS + key * 1_000 // work.PER_SECOND > work.end_time(keys) - LATE_MS}
    if not (wrong - undue <= suspects <= wrong):
        sys.exit(f"wrong answer: {len(wrong - undue - suspects)} missed, {len(suspects - wrong)} invented")


def page(report: dict[str, Any]) -> str:
    """Return ``docs/performance.md`` for the rows that were measured."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        "# Performance",
        "",
        "Written by `make bench`. Ratios to `R`, reading both topics with a typed decode of every record, measured in the same",
        "run on the same core; medians of three rounds; the answer is checked.",
        "",
        f"{report['machine']['cores']} cores; {versions}.",
        "",
        "Rows 6 and 7 stand beside their goal instead, with what the role held at the end.",
        "",
        "| # | what | value | × R, or × goal | goal | peak RSS, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        met = "met" if row["met"] else "not met"
        figures = f"{row['value']:,.0f} {row['unit']} | {row['ratio']:.2f} | {row['goal']}: {met} | {row['peak_rss_mib']:,.0f}"
        lines.append(f"| {row['row']} | {row['name']} | {figures} |")
    return "\n".join(lines) + "\n"


def describe(rows: list[int], measured: dict[str, Figures]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "gapwatch": version("gapwatch"), "faust": version("faust-streaming")},
        "rows": _rates(rows, measured) if rows else [],
    }


def _rates(rows: list[int], measured: dict[str, Figures]) -> list[dict[str, Any]]:
    reference = measured["R"].per_cpu_second
    described = []
    for row in rows:
        parts = [measured[name] for name in {1: ("ingest",), 2: ("match",), 3: ("ingest", "match")}[row]]
        value = 1 / sum(1 / part.per_cpu_second for part in parts)
        described.append(
            {
                "row": row,
                "name": ROWS[row],
                "value": value,
                "unit": "events per CPU second",
                "reference": reference,
                "ratio": value / reference,
                "goal": f"≥ {GOALS[row]} R",
                "met": value / reference >= GOALS[row],
                "peak_rss_mib": sum(part.peak_rss_mib for part in parts),
            }
        )
    return described


if __name__ == "__main__":
    sys.exit(main())
