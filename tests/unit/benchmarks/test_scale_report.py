"""From the report of ``make bench`` to the section of the page."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from benchmarks.__main__ import Figures, Measured, event_costs
from benchmarks.pending import PendingFigures
from benchmarks.scale import __main__ as scale
from benchmarks.scale.model import Assumed, Fleet, planned

from tests.unit.benchmarks.test_scale import COSTS

BROKER = {
    "events_per_record": 800.0,
    "raw_bytes": 140.0,
    "packed_bytes": 50.0,
    "changelog_bytes": 30.0,
    "changelog_records": 0.02,
}
PENDING = PendingFigures(keys=1_000_000, bytes_per_key=400.0, resident_mib=450.0, first_event_seconds=2.5, recovery_seconds=6.5)


def figures(rate: float) -> Figures:
    return Figures(per_cpu_second=rate, peak_rss_mib=100.0)


def test_costs_are_those_of_the_rows_that_were_measured() -> None:
    measured = Measured(figures={"ingest": figures(200_000.0), "match": figures(800_000.0)}, broker=BROKER)
    costs = scale.read({"costs": event_costs(measured, PENDING)})
    assert asdict(costs) == BROKER | {"ingest_us": 5.0, "match_us": 1.25, "start_seconds": 2.5, "restore_us": 4.0}


def test_a_report_without_the_rows_that_are_needed_is_refused() -> None:
    with pytest.raises(SystemExit, match="lacks match_us, start_seconds, restore_us"):
        scale.read({"costs": event_costs(Measured(figures={"ingest": figures(2e5)}, broker=BROKER), None)})


def test_a_row_says_what_the_fleet_can_do_and_what_is_full_then() -> None:
    fleet = Fleet(partitions=8, matchers=4, ingesters=1, brokers=3)
    row = scale.row(COSTS, Assumed(), fleet, 0)
    assert row["bottleneck"] == "ingest CPU"
    assert row["rate"] == pytest.approx(0.7 * row["capacity"])
    assert max(row["use"].values()) < 1


def test_the_section_is_the_same_for_the_same_costs() -> None:
    fleet = planned(COSTS, Assumed(), 100_000.0)
    assert fleet is not None
    rows = [scale.row(COSTS, Assumed(), fleet, 100_000.0)]
    text = scale.section(COSTS, Assumed(), rows)
    assert text == scale.section(COSTS, Assumed(), [scale.row(COSTS, Assumed(), fleet, 100_000.0)])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith(f"| 100,000 | {fleet.partitions} | {fleet.matchers} |")
    assert scale.reach(2e6) == "No fleet is found from 2,000,000 events/s on."


def test_what_never_ends_is_null_in_the_report_and_said_in_the_table() -> None:
    row = scale.row(COSTS, Assumed(), Fleet(partitions=4, matchers=1, ingesters=1, brokers=3), 1e4)
    assert (row["pause_seconds"], row["catch_up_seconds"]) == (None, None)
    assert "Infinity" not in json.dumps(row)
    assert scale.section(COSTS, Assumed(), [row]).count("for ever") == 2
