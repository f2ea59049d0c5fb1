"""``make simulate-scale``: what a fleet beyond this machine would do, and where its next bottleneck is, up to 10 M events/s."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks import page, pending, pinned
from benchmarks.scale import model
from benchmarks.scale.model import Assumed, Costs, Fleet

RATES = (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
COLUMNS = (
    "events/s",
    "partitions",
    "matchers",
    "ingesters",
    "brokers",
    "events a record",
    "mean delay, ms",
    "can do, events/s",
    "full first",
    "a matcher lost: pause, s",
    "catch-up, s",
)
SHORT_KEYS = 50_000
SHORT_PENDING = 200_000


def main() -> int:
    """Read or measure the costs; print the plan, or one JSON object; write the section of the page."""
    parser = argparse.ArgumentParser(prog="make simulate-scale", description=__doc__)
    parser.add_argument("--bench", type=Path, help="what `make bench` printed with --json and rows 1,2,3,6,7")
    parser.add_argument("--fleet", default="", help="PARTITIONS,MATCHERS,INGESTERS,BROKERS instead of a plan")
    for name in fields(Assumed):
        parser.add_argument(f"--{name.name.replace('_', '-')}", type=type(name.default), default=name.default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pinned.begin()
    assumed = Assumed(**{name.name: getattr(options, name.name) for name in fields(Assumed)})
    costs = read(json.loads(options.bench.read_text())) if options.bench else measured()
    if options.fleet:
        partitions, matchers, ingesters, brokers = (int(part) for part in options.fleet.split(","))
        fleets = {0: Fleet(partitions=partitions, matchers=matchers, ingesters=ingesters, brokers=brokers, feeds=ingesters)}
    else:
        fleets = {rate: fleet for rate in RATES if (fleet := model.planned(costs, assumed, rate))}
    rows = [row(costs, assumed, fleet, rate) for rate, fleet in fleets.items()]
    ends = None if options.fleet else model.plan_stops_at(costs, assumed, RATES[0], RATES[-1])
    if options.json:
        print(
            json.dumps(
                {"schema_version": 1, "costs": asdict(costs), "assumed": asdict(assumed), "rows": rows, "no_fleet_from": ends}
            )
        )
        return 0
    text = section(costs, assumed, rows)
    if not options.fleet:
        text = f"{text}\n\n{reach(ends)}"
        page.write("simulate-scale", text)
    print(text)
    return 0


def read(report: dict[str, Any]) -> Costs:
    """Return the costs of a report of ``make bench``. Exits where rows are missing that they come from."""
    missing = [name.name for name in fields(Costs) if name.name not in report.get("costs", {})]
    if missing:
        sys.exit(f'the report lacks {", ".join(missing)}: make it with make bench ARGS="--rows 1,2,3,6,7 --json"')
    return Costs(**{name.name: float(report["costs"][name.name]) for name in fields(Costs)})


def measured() -> Costs:
    """Measure the costs in one short round."""
    from benchmarks.__main__ import event_costs, measure
    from gapwatch.embedded import EmbeddedStack

    found = measure(SHORT_KEYS, (1, 2, 3), rounds=1)
    with EmbeddedStack(parts=("kafka",)) as stack:
        waiting = pending.measure_pending(stack.kafka.bootstrap_servers, SHORT_PENDING)
    return read({"costs": event_costs(found, waiting)})


def row(costs: Costs, assumed: Assumed, fleet: Fleet, rate: float) -> dict[str, Any]:
    """Describe a fleet at a rate; with rate 0 at 70 % of what it can do."""
    most = model.capacity(costs, assumed, fleet)
    rate = rate or most * model.FULL
    at_most = model.load(costs, assumed, fleet, most)
    now, loss = model.load(costs, assumed, fleet, rate), model.loss_of_a_matcher(costs, assumed, fleet, rate)
    return {
        "rate": rate,
        **asdict(fleet),
        "use": now.use,
        "events_per_record": now.events_per_record,
        "delay_seconds": _finite(now.delay_seconds),
        "capacity": most,
        "bottleneck": at_most.bottleneck,
        "pause_seconds": _finite(loss.pause_seconds),
        "catch_up_seconds": _finite(loss.catch_up_seconds),
    }


def _finite(seconds: float) -> float | None:
    """Return None for what never ends: JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def _shown(seconds: float | None, *, scale: int = 1, digits: int = 0) -> str:
    return "for ever" if seconds is None else f"{seconds * scale:,.{digits}f}"


def section(costs: Costs, assumed: Assumed, rows: list[dict[str, Any]]) -> str:
    """Return the section of ``docs/performance.md``."""
    lines = [
        f"Measured: {costs.ingest_us:.2f} µs of ingest and {costs.match_us:.2f} µs of match an event,",
        f"{costs.events_per_record:.0f} events a record; {costs.raw_bytes:.0f} bytes of raw topics an event,",
        f"{costs.packed_bytes:.0f} of `gapwatch.events`, {costs.changelog_bytes:.0f} of the changelog;",
        f"{costs.start_seconds:.1f} s to start a worker and {costs.restore_us:.1f} µs to read a pending key.",
        f"Assumed: {assumed.match_record_us:.0f} µs of match and {assumed.send_record_us:.0f} µs of ingest a record;",
        f"a broker writes {assumed.broker_write_bytes / 1e6:.0f} MB/s with its replicas,",
        f"sends {assumed.broker_send_bytes / 1e6:.0f} MB/s, answers {assumed.broker_requests:,.0f} requests/s;",
        f"{assumed.replication} replicas, a session of {assumed.session_seconds:.0f} s, {assumed.pending_seconds:.0f} s pending.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for found in rows:
        cells = [
            f"{found[name]:,.0f}" for name in ("rate", "partitions", "matchers", "ingesters", "brokers", "events_per_record")
        ]
        cells += [_shown(found["delay_seconds"], scale=1_000), f"{found['capacity']:,.0f}", found["bottleneck"]]
        cells += [_shown(found["pause_seconds"], digits=1), _shown(found["catch_up_seconds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reach(ends: float | None) -> str:
    """Say how far plans go."""
    return f"No fleet is found from {ends:,.0f} events/s on." if ends else "A fleet is found for every rate up to 10 M events/s."


if __name__ == "__main__":
    sys.exit(main())
