"""Rows 8 to 12: sweeps and backfills, beside the raw reads and the naive algorithm of the same run.

``make bench ARGS="--rows 8,9,10,11,12"`` prepares the stores; each contestant (``sweep_contestants``) runs in a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from statistics import median
from typing import Any

import psycopg

from benchmarks.sweep_contestants import DATABASE, Pair, fill, putter
from gapwatch.core.search_address import SearchAddress
from gapwatch.embedded import EmbeddedStack
from gapwatch.model.pipeline import KeyType, StoreType

REPAIRED_OF, REPAIRED = 133_433, 102_349  # what an old job once had to repair
PLAINLY = 100_075  # documents that are written plainly beside it: those of the rows whose number is no multiple of 4


def run(what: str, pair: Pair) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep_contestants", what, *pair.arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {what:12} {pair.name:12} {figures['wall']:8.2f} s  {figures['net_mib']:6.0f} MiB", file=sys.stderr)
    return figures


Found = dict[tuple[str, str], dict[str, float]]  # contestant and pair: medians


def measure(keys: int, rounds: int, rows: Collection[int]) -> Found:
    """Run what these rows need, round after round; return medians by contestant and pair."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def take(what: str, pair: Pair, name: str = "") -> dict[str, Any]:
        figures = run(what, pair)
        found.setdefault((what, name or pair.label or pair.name), []).append(figures)
        return figures

    with EmbeddedStack(parts=("postgres", "mongodb", "opensearch")) as stack:
        with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        search = SearchAddress(scheme="http", hosts=(f"{stack.opensearch.host}:{stack.opensearch.port}",)).encode()
        table: dict[str, Any] = {"source": StoreType.POSTGRES, "source_url": stack.postgres.dsn(DATABASE)}
        collection: dict[str, Any] = {"target": StoreType.MONGODB, "target_url": stack.mongodb.uri}
        index: dict[str, Any] = {"target": StoreType.OPENSEARCH, "target_url": search}
        swept = _filled(keys, table, collection, index, stack.mongodb.uri) if 8 in rows else []
        contents = Pair(name="contents", **table, **collection)
        if 9 in rows:
            fill(contents, rows=keys // 5, missing=7, content=True)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for pair in swept:
                for what in ("read_source", "read_target", "ids", *(["naive"] if pair.name == "ids" else [])):
                    take(what, pair)
            for what in ("read_both", "content") if 9 in rows else ():
                take(what, contents)
            for what, target, count, missing in _repairs(rows, collection, index):
                pair = Pair(name=f"{what}_{target['target'].value}_{number}", **table, **target)
                fill(pair, rows=count, missing=missing, content=True)
                name = pair.name.rpartition("_")[0]
                if what == "repair":
                    take("write_plain", pair, name)
                    beside = Pair(name=f"least_{target['target'].value}_{number}", **table, **target)
                    fill(beside, rows=count, missing=missing, content=True)
                    take("least", beside, name)
                one = take(what, pair, name)
                assert (one["answer"]["missing"], one["answer"]["verified"]) == (missing, missing), one
    numbers = ("wall", "seconds", "rss_mib", "net_mib")
    return {name: {what: median(one[what] for one in taken) for what in numbers} for name, taken in found.items()}


def _filled(keys: int, table: Any, collection: Any, index: Any, uri: str) -> list[Pair]:
    """Fill the pairs whose ids are swept: one order on both engines, texts, and an index behind either store."""
    print("filling the stores", file=sys.stderr)
    pairs = [
        Pair(name="ids", **table, **collection),
        Pair(name="names", key=KeyType.TEXT, **table, **collection),
        Pair(name="indexed", **table, **index),
    ]
    for pair in pairs:
        fill(pair, rows=keys, missing=7, content=False)
    copied = Pair(name="indexed", label="documents", source=StoreType.MONGODB, source_url=uri, **index)
    put = putter(StoreType.MONGODB, uri, "indexed")
    for start in range(1, keys + 1, 20_000):
        put([{"_id": number} for number in range(start, min(start + 20_000, keys + 1))])
    return [*pairs, copied]


def _repairs(rows: Collection[int], collection: Any, index: Any) -> Iterator[tuple[str, Any, int, int]]:
    if {10, 11} & set(rows):
        yield "repair", collection, REPAIRED_OF, REPAIRED
        yield "repair", index, REPAIRED_OF, REPAIRED
    if 12 in rows:
        yield "repair_paced", collection, 1_967, 117


SWEPT = (
    ("ids", "whole numbers, Postgres and MongoDB", 1.3),
    ("names", "texts, Postgres and MongoDB", 2.0),
    ("indexed", "Postgres and OpenSearch", 2.0),
    ("documents", "MongoDB and OpenSearch", 2.0),
)


def report(found: Found, keys: int) -> list[dict[str, Any]]:
    """Return the rows of the report."""
    rows = []
    for name, title, most in SWEPT:
        if ("ids", name) in found:
            one, slower = found["ids", name], _slower(found, name)
            rows.append(
                _row(8, f"id sweep, {title}, {keys:,} a side", one["wall"], slower, f"≤ {most} × the slower read", most, one)
            )
            rows.append(_memory(8, "its memory above the imports", one["net_mib"], 128, one))
    if ("naive", "ids") in found:
        one = found["naive", "ids"]
        rows.append(
            _row(8, "beside it: both id sets in memory", one["wall"], _slower(found, "ids"), "no goal", float("inf"), one)
        )
    if ("content", "contents") in found:
        one, both = found["content", "contents"], found["read_both", "contents"]
        rows.append(_row(9, f"content sweep, {keys // 5:,} rows", one["wall"], both["wall"], "≤ 2 × reading both", 2.0, one))
        rows.append(_memory(9, "its memory", one["rss_mib"], 400, one))
    for target in ("mongodb", "opensearch"):
        if ("repair", f"repair_{target}") in found:
            one, plain = found["repair", f"repair_{target}"], found["write_plain", f"repair_{target}"]
            as_many = plain["seconds"] * REPAIRED / PLAINLY
            rows.append(_row(10, f"backfill, {target}", one["seconds"], as_many, "≤ 2 × plain writing", 2.0, one))
            bound = found["least", f"repair_{target}"]
            title = f"beside it: read, written, read again and audited, no more, {target}"
            rows.append(_row(10, title, bound["seconds"], as_many, "no goal", float("inf"), bound))
            title = f"{REPAIRED:,} of {REPAIRED_OF:,} found, written, verified, {target}"
            rows.append(_row(11, title, one["wall"], 15, "≤ 15 s", 1.0, one))
            rows.append(_memory(11, "its memory", one["rss_mib"], 400, one))
    if ("repair_paced", "repair_paced_mongodb") in found:
        one = found["repair_paced", "repair_paced_mongodb"]
        rows.append(_row(12, "117 of 1,967 found, written, verified, paced", one["wall"], 1.5, "≤ 1.5 s", 1.0, one))
    return rows


def _slower(found: Found, name: str) -> float:
    return max(found["read_source", name]["wall"], found["read_target", name]["wall"])


def _memory(number: int, name: str, mib: float, most: float, figures: Mapping[str, float]) -> dict[str, Any]:
    return {**_row(number, name, mib, most, f"≤ {most:.0f} MiB", 1.0, figures), "unit": "MiB"}


def _row(
    number: int, name: str, value: float, reference: float, goal: str, most: float, figures: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "row": number,
        "name": name,
        "value": value,
        "unit": "s",
        "reference": reference,
        "ratio": value / reference,
        "goal": goal,
        "met": value / reference <= most,
        "peak_rss_mib": figures["rss_mib"],
    }
