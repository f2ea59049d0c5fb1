"""Row 14: the command ``gapwatch replay verdicts``, whole, over all records of the events topic that an ingester made.

By offsets: the work's event times lie long before its records were appended, so a range of time would find none. The command
runs in a process of its own, on one core, with its start-up, the configuration, and the attempt to ask a source that does not
answer for its types, which it then takes from the ledger. Its answer must be exactly the planted keys, each as an open write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from benchmarks import contestants, pinned, work
from benchmarks.answers import check, limit
from gapwatch.ledger import open_ledger
from gapwatch.wiring.stores import resolved_fact

GOAL = 0.35
CLOSED_PORT: Final = 1  # where no source answers

CONFIG = """\
kafka: {{ bootstrap_servers: "{servers}" }}
topics: {{ prefix: {prefix}, partitions: {partitions} }}
database: "{database}"
stores:
  shop: {{ type: postgres, dsn: "postgresql://bench@127.0.0.1:{closed_port}/shop" }}
  catalog: {{ type: mongodb, uri: "mongodb://127.0.0.1:{closed_port}/" }}
pipelines:
  orders:
    source: {{ store: shop, table: public.orders, key: {{ id: int }}, feed: {{ debezium: {source} }} }}
    target: {{ store: catalog, collection: catalog.orders, key: {{ _id: int }}, feed: {{ debezium: {target} }} }}
    fields: {{ {fields} }}
    grace: 1s
    delivery: none
    baseline: assume
"""


def config(servers: str, database: str) -> str:
    """Return the benchmark's pipeline as a person would write it down."""
    return CONFIG.format(
        servers=servers,
        database=database,
        prefix=work.PREFIX,
        partitions=work.EVENTS_PARTITIONS,
        closed_port=CLOSED_PORT,
        source=work.SOURCE,
        target=work.TARGET,
        fields=", ".join(f"{one.target}: {one.source}" for one in work.settings(servers, database).pipelines["orders"].fields),
    )


def store_types(database: str) -> None:
    """Store what a service stores of the source's types."""
    spec = work.settings("", database).pipelines["orders"]
    known = {"fields": spec.fields, "feed": spec.source.feed, "tables": (), "where": (), "target": spec.target}
    ledger = open_ledger(database)
    ledger.set_fact(resolved_fact(spec.id), msgspec.to_builtins(known))
    ledger.close()


def run(
    servers: str, keys: int, database: str, planted: work.Planted, directory: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures of ``R`` and of the replay. Raises CouldNotRunError; ends where the answer is wrong."""
    file, answer = directory / "gapwatch.yaml", directory / "answer.json"
    file.write_text(config(servers, database))
    store_types(database)
    ends = contestants.ends_of(servers, work.settings(servers, "").topics.events)
    raw = pinned.run(limit("R", servers, keys))
    begin, end = (",".join(f"{number}:{at}" for number, at in offsets.items()) for offsets in (dict.fromkeys(ends, 0), ends))
    arguments = ["--config", str(file), "replay", "verdicts", "orders", "--from", begin, "--to", end, "--output", "json"]
    replay = pinned.run([sys.executable, "-m", "benchmarks.command", str(work.records(keys)), str(answer), *arguments])
    for name, figures in (("R", raw), ("replay", replay)):
        print(f"  {name:16} {figures['events'] / figures['cpu']:>10,.0f} events per CPU second", file=sys.stderr)
    found = json.loads(answer.read_text())
    if said := shortfall(found, keys):
        sys.exit(f"wrong answer: {said}")
    check(named(found), planted, keys)
    return raw, replay


def shortfall(found: Mapping[str, Any], keys: int) -> str:
    """Say why an answer is not one of the whole work; nothing where it is."""
    read = (found["read"]["expected"], found["read"]["observed"])
    if read != (keys, work.records(keys) - keys):
        return f"{read[0]} and {read[1]} writes were read"
    verdicts = {row["verdict"] for row in found["named"]}
    if verdicts - {"open"}:
        return f"writes are {', '.join(sorted(verdicts))}"
    return "stretches are missing" if found["holes"] or not found["complete"] else ""


def named(found: Mapping[str, Any]) -> set[int]:
    """Return the keys that an answer names."""
    return {int(row["key"]["id"]) for row in found["named"]}


def rows(found: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return row 14 of the report; `found`: ``R`` and the replay of every round."""
    reference, value = (median(pair[at]["events"] / pair[at]["cpu"] for pair in found) for at in (0, 1))
    return [
        {
            "row": 14,
            "name": "replay: verdicts",
            "value": value,
            "unit": "events per CPU second",
            "reference": reference,
            "ratio": value / reference,
            "goal": f"≥ {GOAL} R",
            "met": value / reference >= GOAL,
            "peak_rss_mib": median(pair[1]["peak_rss_mib"] for pair in found),
        }
    ]
