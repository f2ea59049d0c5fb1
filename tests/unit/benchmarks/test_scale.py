"""The model of more machines: bounds that hold whatever the costs, and figures that were counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from benchmarks.scale.model import (
    BROKERS_MAX,
    CATCH_UP_SECONDS,
    FULL,
    Assumed,
    Costs,
    Fleet,
    capacity,
    load,
    loss_of_a_matcher,
    plan_stops_at,
    planned,
    records_per_second,
)

COSTS = Costs(
    ingest_us=5.0,
    match_us=1.5,
    events_per_record=1_000.0,
    raw_bytes=150.0,
    packed_bytes=60.0,
    changelog_bytes=40.0,
    changelog_records=0.01,
    start_seconds=2.0,
    restore_us=4.0,
)
ASSUMED = Assumed()
FLEET = Fleet(partitions=8, matchers=4, ingesters=4, brokers=3)
RATES = (1_000.0, 50_000.0, 400_000.0, 2_000_000.0)


def test_bytes_on_the_brokers_are_those_counted_by_hand() -> None:
    use = load(COSTS, ASSUMED, FLEET, 100_000.0).use
    control = 4 * 8 * 4 * 600.0  # ingesters, partitions, pulses a second, bytes
    assert use["broker writes"] == pytest.approx((100_000 * 250 + control) * 3 / (3 * 150e6))
    assert use["changelog writes"] == pytest.approx(100_000 * 40 * 3 / (3 * 150e6))


def test_match_pays_for_events_and_for_records() -> None:
    one = Fleet(partitions=1, matchers=1, ingesters=1, brokers=3)
    records = 1_000_000 / 5_000 + 4  # full polls, and the pulses
    expected = 1.5 - 65 / 1_000 + records * 65 / 1e6
    assert load(COSTS, ASSUMED, one, 1_000_000.0).use["match CPU"] == pytest.approx(expected)


@pytest.mark.parametrize("rate", RATES)
def test_more_partitions_make_more_and_emptier_records(rate: float) -> None:
    found = [records_per_second(replace(FLEET, partitions=partitions), rate) for partitions in (1, 4, 16, 64, 256)]
    assert found == sorted(found)
    assert found[-1] <= rate


@pytest.mark.parametrize("rate", RATES)
def test_nothing_gets_emptier_with_a_higher_rate(rate: float) -> None:
    less, more = load(COSTS, ASSUMED, FLEET, rate).use, load(COSTS, ASSUMED, FLEET, rate * 1.5).use
    assert all(more[name] >= less[name] for name in less)


def test_matchers_without_a_partition_serve_nothing() -> None:
    assert load(COSTS, ASSUMED, replace(FLEET, matchers=8), 1e5).use["match CPU"] == pytest.approx(
        load(COSTS, ASSUMED, replace(FLEET, matchers=20), 1e5).use["match CPU"]
    )


def test_the_busiest_matcher_counts_where_partitions_do_not_divide_evenly() -> None:
    even = load(COSTS, ASSUMED, replace(FLEET, matchers=4), 1e5).use["match CPU"]
    uneven = load(COSTS, ASSUMED, replace(FLEET, matchers=5), 1e5).use["match CPU"]
    assert uneven == pytest.approx(even)  # 8 partitions on 5 matchers: one of them still has two


def test_ingesters_beyond_the_raw_partitions_take_no_work() -> None:
    few = load(COSTS, ASSUMED, replace(FLEET, ingesters=4, feeds=2), 1e5).use["ingest CPU"]
    assert few >= 2 * load(COSTS, ASSUMED, replace(FLEET, ingesters=4, feeds=4), 1e5).use["ingest CPU"] * 0.999


def test_the_capacity_fills_one_resource_and_no_other_further() -> None:
    most = capacity(COSTS, ASSUMED, FLEET)
    full = load(COSTS, ASSUMED, FLEET, most)
    assert full.use[full.bottleneck] == pytest.approx(1.0)
    assert max(full.use.values()) == full.use[full.bottleneck]


def test_more_of_the_bottleneck_moves_it() -> None:
    thin = replace(FLEET, ingesters=1)
    assert load(COSTS, ASSUMED, thin, capacity(COSTS, ASSUMED, thin)).bottleneck == "ingest CPU"
    wide = replace(FLEET, ingesters=16)
    assert capacity(COSTS, ASSUMED, wide) > 2 * capacity(COSTS, ASSUMED, thin)
    assert load(COSTS, ASSUMED, wide, capacity(COSTS, ASSUMED, wide)).bottleneck == "broker writes"


def test_the_delay_grows_without_bound_as_match_fills_up() -> None:
    one = Fleet(partitions=1, matchers=1, ingesters=8, brokers=50)
    most = capacity(COSTS, ASSUMED, one)
    assert load(COSTS, ASSUMED, one, most).bottleneck == "match CPU"
    delays = [load(COSTS, ASSUMED, one, most * share).delay_seconds for share in (0.9, 0.99, 0.999)]
    assert delays == sorted(delays)
    assert load(COSTS, ASSUMED, one, most * 1.01).delay_seconds == math.inf


def test_a_lost_matcher_is_caught_up_with_what_the_others_have_left() -> None:
    fleet = Fleet(partitions=4, matchers=2, ingesters=4, brokers=20)
    rate = 300_000.0
    loss = loss_of_a_matcher(COSTS, ASSUMED, fleet, rate)
    pending = rate * ASSUMED.pending_seconds / 4 * 2
    assert loss.pause_seconds == pytest.approx(10 + 2 + pending * 4e-6)
    use = load(COSTS, ASSUMED, replace(fleet, matchers=1), rate).use["match CPU"]
    assert loss.catch_up_seconds == pytest.approx(loss.pause_seconds * use / (1 - use))


def test_a_single_matcher_and_an_overloaded_rest_never_catch_up() -> None:
    assert loss_of_a_matcher(COSTS, ASSUMED, replace(FLEET, matchers=1), 1e4).catch_up_seconds == math.inf
    two = Fleet(partitions=4, matchers=2, ingesters=4, brokers=20)
    assert loss_of_a_matcher(COSTS, ASSUMED, two, 900_000.0).catch_up_seconds == math.inf


@pytest.mark.parametrize("rate", [10_000.0, 100_000.0, 1_000_000.0])
def test_a_plan_keeps_its_promises(rate: float) -> None:
    fleet = planned(COSTS, ASSUMED, rate)
    assert fleet is not None
    assert max(load(COSTS, ASSUMED, fleet, rate).use.values()) <= FULL
    assert loss_of_a_matcher(COSTS, ASSUMED, fleet, rate).catch_up_seconds <= CATCH_UP_SECONDS
    assert fleet == planned(COSTS, ASSUMED, rate)


def test_where_no_fleet_is_found_is_told() -> None:
    slow = replace(ASSUMED, broker_write_bytes=1e6)
    enough = BROKERS_MAX * 1e6 * FULL / 3 / 250  # events a second that so slow brokers can write
    stops = plan_stops_at(COSTS, slow, 1_000.0, 10_000_000.0)
    assert stops is not None
    assert enough * 0.85 <= stops <= enough * 1.11
    assert planned(COSTS, slow, stops) is None
    assert plan_stops_at(COSTS, ASSUMED, 10_000.0, 100_000.0) is None
