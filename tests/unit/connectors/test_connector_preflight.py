"""What is said of a sink connector's dead letters, and of a source connector's format."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.errors import StoreUnreachable
from gapwatch.model.pipeline import DeliverySpec
from gapwatch_connectors.debezium.client import Connector, ConnectRest
from gapwatch_connectors.debezium.preflight import ConnectorPreflight
from tests.unit.core.samples import pipeline

TOPIC, HEADERS = "errors.deadletterqueue.topic.name", "errors.deadletterqueue.context.headers.enable"


async def said(config: Mapping[str, str], *, dead_letter_topic: str) -> list[str]:
    spec = pipeline()
    target = replace(spec.target, dead_letter_topic=dead_letter_topic)
    check = ConnectorPreflight(replace(spec, target=target, delivery=DeliverySpec(group="connect-sink")), "http://localhost:1")
    states: Any = {"name": "sink", "state": "RUNNING", "task_states": ("RUNNING",), "trace": ""}
    source = cast("Connector", SimpleNamespace(**states, config={}))
    sink = cast("Connector", SimpleNamespace(**states, config=config))

    async def source_of(_: str) -> Connector:
        return source

    async def sink_of(_: str) -> Connector:
        return sink

    check._rest = cast("ConnectRest", SimpleNamespace(source_of=source_of, sink_of=sink_of))
    advice = await check.check()
    return [f"{one.message} {one.remedy}" for one in advice if one.subject == "orders.target" and one.level != "ok"]


@pytest.mark.parametrize(
    ("config", "named", "expected"),
    [
        ({}, "dead", []),
        ({TOPIC: "dead"}, "", ["gives up into dead, which the pipeline does not read. Write target.dead_letter_topic: dead."]),
        ({TOPIC: "dead"}, "other", ["Write target.dead_letter_topic: dead."]),
        ({TOPIC: "dead"}, "dead", ["Set errors.deadletterqueue.context.headers.enable=true."]),
        ({TOPIC: "dead", HEADERS: "true"}, "dead", []),
    ],
)
async def test_dead_letters_are_to_be_read_and_to_say_where_they_came_from(
    config: dict[str, str], named: str, expected: list[str]
) -> None:
    found = await said(config, dead_letter_topic=named)
    assert len(found) == len(expected)
    assert all(end in text for text, end in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("converter", "given", "expected"),
    [
        ("", {}, ""),
        ("org.apache.kafka.connect.json.JsonConverter", {}, ""),
        ("io.debezium.converters.CloudEventsConverter", {}, "name its topic as heartbeat.topic."),
        ("io.debezium.converters.CloudEventsConverter", {"rows": True}, ""),
        ("io.confluent.connect.avro.AvroConverter", {}, "writes with AvroConverter, whose schemas lie in a registry."),
        ("io.confluent.connect.avro.AvroConverter", {"registry": True}, ""),
        ("io.apicurio.registry.utils.converter.ExtJsonConverter", {}, "Set schema_registry.url."),
        ("io.confluent.connect.protobuf.ProtobufConverter", {"registry": True}, "writes Protobuf, which cannot be read."),
    ],
)
async def test_a_format_that_could_not_be_read_is_named_beforehand(converter: str, given: dict[str, bool], expected: str) -> None:
    check = ConnectorPreflight(replace(pipeline(), delivery=DeliverySpec()), "http://localhost:1", **given)
    config = {"skipped.operations": "none", "offset.mismatch.strategy": "trust_offset", "value.converter": converter}
    states: Any = {"name": "source", "state": "RUNNING", "task_states": ("RUNNING",), "trace": ""}

    async def source_of(_: str) -> Connector:
        return cast("Connector", SimpleNamespace(**states, config=config))

    check._rest = cast("ConnectRest", SimpleNamespace(source_of=source_of))
    errors = [f"{one.message} {one.remedy}" for one in await check.check() if one.level == "error"]
    assert [expected in text for text in errors] == ([True] if expected else [])


ROUTED = {
    "transforms": "other, route",
    "transforms.other.type": "org.apache.kafka.connect.transforms.HoistField$Value",
    "transforms.route.type": "io.debezium.transforms.ByLogicalTableRouter",
    "transforms.route.topic.regex": r"(shop\.public)\.(orders|items).*",
    "transforms.route.topic.replacement": "$1.orders",
    "topic.prefix": "shop",
    "table.include.list": r"public.orders, public\.items, public.people",
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ROUTED, "puts public.items into shop.public.orders as well (transforms.route, ByLogicalTableRouter): one topic for"),
        ({**ROUTED, "table.include.list": "public.orders,public.people"}, ""),
        ({**ROUTED, "transforms.route.topic.replacement": "$1.all"}, ""),
        ({**ROUTED, "transforms.route.topic.replacement": "$9"}, ""),
        ({**ROUTED, "transforms.route.topic.regex": "(?<name>"}, ""),
        ({**ROUTED, "transforms": "other"}, ""),
        ({"connector.class": "io.debezium.connector.mongodb.MongoDbConnector"}, "captures MongoDB, and Debezium's events of a"),
    ],
)
async def test_a6_what_is_not_read_is_named_beforehand_with_a_remedy(config: dict[str, str], expected: str) -> None:
    check = ConnectorPreflight(replace(pipeline(), delivery=DeliverySpec()), "http://localhost:1")
    good = {"skipped.operations": "none", "offset.mismatch.strategy": "trust_offset"}
    connector = Connector(name="source", config={**good, **config}, state="RUNNING", task_states=("RUNNING",))

    async def source_of(_: str) -> Connector:
        return connector

    check._rest = cast("ConnectRest", SimpleNamespace(source_of=source_of))
    errors = [one for one in await check.check() if one.level == "error"]
    assert [expected in one.message and bool(one.remedy) for one in errors] == ([True] if expected else [])


async def test_the_watchers_of_all_pipelines_ask_a_worker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    refused = True

    async def get(rest: ConnectRest, path: str) -> dict[str, Any]:
        asked.append(path)
        await asyncio.sleep(0)
        if refused:
            raise StoreUnreachable("Kafka Connect does not answer.", store="connect")
        return {"sink": {"info": {"config": {}}, "status": {"connector": {"state": "RUNNING"}, "tasks": [{"state": "RUNNING"}]}}}

    monkeypatch.setattr(ConnectRest, "_get", get)
    specs = [replace(pipeline(), id=f"p{number}", delivery=DeliverySpec(group="connect-sink")) for number in range(5)]
    checks = [ConnectorPreflight(spec, "http://localhost:1") for spec in specs]
    failed = await asyncio.gather(*(check.watch() for check in checks), return_exceptions=True)
    assert {type(one) for one in failed} == {StoreUnreachable}
    assert len(asked) == 1
    refused = False
    assert all(await asyncio.gather(*(check.watch() for check in checks)))
    assert len(asked) == 2, "what failed is asked again at once, and by one of them"
    await checks[0].check()
    assert len(asked) > 2, "a doctor asks for himself"
