"""What the doctor says of a connector that captures a collection, by its configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gapwatch_connectors.mongodb import MongoPreflight
from tests.unit.core.samples import pipeline


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ({}, None),
        ({"collection.include.list": ""}, None),
        ({"collection.include.list": "shop.orders,shop.gapwatch_heartbeats"}, None),
        ({"collection.include.list": " shop\\.orders , SHOP\\.gapwatch.* "}, None),
        ({"collection.include.list": "shop\\.orders"}, "collection.include.list"),
        ({"database.include.list": "shop"}, None),
        ({"database.include.list": "shops"}, "database.include.list"),
        ({"collection.include.list": "shop.\\p{Alpha}+"}, None),  # of Java alone
    ],
)
async def test_a_connector_that_leaves_heartbeats_out_is_named(config: dict[str, str], option: str | None) -> None:
    spec = pipeline()
    spec = replace(spec, target=replace(spec.target, collection="shop.orders"))
    preflight = MongoPreflight(spec, "mongodb://localhost:1")
    advice = preflight._heartbeats(config)
    await preflight.close()
    assert [one.level for one in advice] == ([] if option is None else ["warning"])
    assert all(one.remedy.endswith(f"to {option}.") for one in advice)


@pytest.mark.parametrize(
    ("config", "sharded", "told"),
    [
        ({"tasks.max": "2"}, True, False),
        ({"tasks.max": "1", "mongodb.multi.task.enabled": "true"}, False, False),
        ({"tasks.max": "2", "mongodb.multi.task.enabled": "true"}, False, True),
        ({"mongodb.connection.mode": "replica_set"}, True, True),
        ({"mongodb.connection.mode": "replica_set"}, False, False),
        ({"tasks.max": "3", "mongodb.connection.mode": "sharded"}, True, False),
    ],
)
async def test_heartbeats_of_one_stream_prove_nothing_of_the_others(config: dict[str, str], sharded: bool, told: bool) -> None:
    preflight = MongoPreflight(pipeline(), "mongodb://localhost:1")
    advice = preflight._heartbeats(config, sharded=sharded)
    await preflight.close()
    assert [one.level for one in advice] == (["error"] if told else [])
