"""Rows 5, 13, 15 and 16: what is pure in them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmarks import beside, delay, reader, service, traffic
from benchmarks.figures import percentile, row

from gapwatch.core.envelopes import decoder_for
from gapwatch.core.envelopes.records import Event, RawRecord
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import (
    DeliverySpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    KeyType,
    PipelineSpec,
    SourceSpec,
    StoreType,
    TargetSpec,
)
from gapwatch.model.stream import Side

KEY = 7_500
KINDS = (
    FieldSpec(target="customer", source="customer", type=FieldType.TEXT, maskable=False),
    FieldSpec(target="amount", source="amount", type=FieldType.DECIMAL, scale=2, wire="base64_unscaled", wire_scale=2),
    FieldSpec(target="status", source="status", type=FieldType.TEXT, maskable=False),
    FieldSpec(target="quantity", source="quantity", type=FieldType.INT),
    FieldSpec(target="updated_at", source="updated_at", type=FieldType.TIMESTAMP, wire="iso"),
    FieldSpec(target="version", source="version", type=FieldType.INT),
)
SPEC = PipelineSpec(
    id="orders_0",
    source=SourceSpec(
        store="shop",
        table="public.orders_0",
        key=(KeyColumn(path="id", type=KeyType.INT),),
        feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=traffic.source_topic("orders_0")),
    ),
    target=TargetSpec(
        store="catalog",
        collection="bench.orders_0",
        key=(KeyColumn(path="_id", type=KeyType.INT),),
        feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=traffic.target_topic("orders_0")),
    ),
    fields=tuple(replace(one, maskable=False) for one in KINDS),
    delivery=DeliverySpec(),
)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 0.99, 3.0), ([1.0, 2.0], 0.5, 1.0), (range(1, 101), 0.99, 99.0), (range(100, 0, -1), 0.5, 50.0), ([1, 2], 0.0, 1)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_a_row_is_met_up_to_its_limit() -> None:
    assert row(1, "a", 13.0, "ms", 10.0, "≤ 1.3 × without", 1.3)["met"]
    assert not row(1, "a", 13.1, "ms", 10.0, "≤ 1.3 × without", 1.3)["met"]
    assert row(1, "a", 99.0, "ms", 1.0, "no goal")["met"]


def decoded(side: Side, key: bytes, value: bytes, topic: str) -> Event:
    record = RawRecord(topic=topic, partition=0, offset=0, timestamp=5, key=key, value=value, headers=())
    [event] = decoder_for(SPEC, side, CompiledMapping(SPEC)).decode(record)
    assert isinstance(event, Event)
    return event


def test_both_sides_tell_of_the_same_document() -> None:
    residue = KEY % traffic.RESIDUES
    source = traffic.source_template(residue) % (KEY, 1_000, 44, 100, 0, KEY, 100, 1_000)
    target = traffic.target_template(residue) % (KEY, 1_100, 0, 1, 1_100, 1_100)
    assert json.loads(source)["source"]["table"] == json.loads(target)["source"]["collection"] == "orders_0"
    expected = decoded(Side.EXPECTED, b'{"id":%d}' % KEY, source, traffic.source_topic("orders_0"))
    observed = decoded(Side.OBSERVED, b'{"id":"%d"}' % KEY, target, traffic.target_topic("orders_0"))
    assert (expected.key, expected.digest) == (observed.key, observed.digest)
    assert (expected.event_time, observed.event_time) == (1_000, 1_100)


def test_a_plan_has_as_many_keys_as_it_writes() -> None:
    plan = traffic.Plan(pipelines=3, rate=1_000, seconds=1.0)
    assert (plan.writes, plan.keys) == (500, 167)


def test_delays_count_from_the_write() -> None:
    assert delay.delays({(0, 1): 1_000, (0, 2): 5_000}, {(0, 1): 2_500, (0, 2): 5_100, (0, 3): 1}) == [1.5, 0.1]


def test_row_5_stands_beside_w() -> None:
    found = delay.Delays(suspects=[1.5] * 99 + [1.95], gaps=[2.8], published=[9.0], wait=1.2, rate=9_998.4, resident_mib=5)
    by_name = {one["name"]: one for one in delay.rows(found)}
    assert by_name["write → suspect, p99 of 100, at 9,998 raw events/s"]["met"]
    assert by_name["write → suspect, p99 of 100, at 9,998 raw events/s"]["goal"] == "p99 ≤ W + 0.7 s, W = 1.20 s"
    assert not by_name["write → gap, p99 of 1, at 9,998 raw events/s"]["met"]
    assert by_name["write → gap on the topic of gaps, p99 of 1, at 9,998 raw events/s"]["goal"] == "no goal"


def test_pgbench_says_when_transactions_ended_and_what_they_took() -> None:
    log = "0 1 500 0 10 999999 3\n1 1 1500 0 11 0 9\n0 2 250 0 12 5 1\n"
    assert reader.latencies(log, 11_000_000) == [0.0015, 0.00025]


def test_reads_have_a_rate_and_latencies() -> None:
    took = reader.read(lambda key: key, 0, 10, 0.0, 0.0, -1.0)  # its time was over before it began
    assert took == []
    assert reader.figures([0.001, 0.003], 2.0) == {"rate": 1.0, "p50": 1.0, "p99": 3.0}


@pytest.mark.parametrize(("capacity", "rate"), [(9_000.0, 2_000.0), (4_000.0, 2_000.0), (2_790.0, 1_300.0), (90.0, 100.0)])
def test_a_store_is_asked_for_no_more_than_it_can_spare(capacity: float, rate: float) -> None:
    assert beside.affordable(capacity) == rate


def test_row_13_compares_with_the_same_rate_alone() -> None:
    found = beside.Beside(
        store=StoreType.OPENSEARCH,
        asked=900.0,
        reached={"": 900.0, "ids": 900.0, "content": 890.0, "waited": 890.0},
        p99_ms={"": 2.0, "ids": 2.5, "content": 3.0, "waited": 9.0},
        rss_mib={"": 0.0, "ids": 100.0, "content": 110.0, "waited": 110.0},
    )
    ids, content, waited = beside.rows([found])
    assert (ids["ratio"], ids["met"], content["met"]) == (1.25, True, False)
    assert waited["goal"] == "no goal"
    assert "900 reads/s, as many as this machine serves instead of 2,000," in ids["name"]


def test_rows_15_and_16_are_there_as_far_as_they_were_measured() -> None:
    idle, busy = service.Cost(cores=0.029, resident_mib=301.0), service.Cost(cores=0.31, resident_mib=320.0, rate=9_990.0)
    assert [(one["row"], one["met"]) for one in service.rows(idle, busy)] == [(15, True), (15, False), (16, False)]
    assert service.rows(None, None) == []
