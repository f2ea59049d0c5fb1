"""What the doctor says of a connector that captures a collection, by its configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from unittest import mock

import pytest
from pymongo.errors import OperationFailure

from gapwatch.errors import StoreUnreachable
from gapwatch.model.pipeline import FeedKind, FeedSpec, HeartbeatSpec
from gapwatch_connectors.mongodb import MongoPreflight
from gapwatch_connectors.mongodb import preflight as mongodb_preflight
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


@pytest.mark.parametrize(
    ("heartbeat", "levels"),
    [(HeartbeatSpec(), ["warning"]), (HeartbeatSpec(auto=False, topic="beats"), []), (HeartbeatSpec(auto=False), ["ok"])],
    ids=["ours", "somebody else's", "none"],
)
async def test_only_heartbeats_that_are_written_can_be_left_out(heartbeat: HeartbeatSpec, levels: list[str]) -> None:
    async def connector() -> Mapping[str, str]:
        return {"collection.include.list": "shop\\.orders"}

    preflight = MongoPreflight(pipeline(), "mongodb://localhost:1", connector=connector, heartbeat=heartbeat)
    with mock.patch.object(preflight, "_is_sharded", return_value=False):
        advice = await preflight._captured(connector)
    await preflight.close()
    assert [one.level for one in advice] == levels


async def test_what_the_connector_captures_is_unknown_while_kafka_connect_is_away() -> None:
    async def connector() -> Mapping[str, str]:
        raise StoreUnreachable("Kafka Connect does not answer.", store="connect")

    preflight = MongoPreflight(pipeline(), "mongodb://localhost:1", connector=connector)
    advice = await preflight._captured(connector)
    await preflight.close()
    assert [one.level for one in advice] == ["unknown"]


class Local:
    """The database ``local``, of which nothing is to be had."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __getitem__(self, name: str) -> None:
        assert name == "oplog.rs"

    async def command(self, *_: str) -> None:
        raise OperationFailure("Can't use 'local' database through mongos", self.code)


@pytest.mark.parametrize("code", [13, 20, 26, 8000], ids=["no right", "mongos", "no oplog", "hosted"])
async def test_where_no_oplog_is_to_be_seen_its_window_is_not_known_and_the_check_has_looked(code: int) -> None:
    """Through mongos the check failed each time: after stall_after the pipelines of every sharded cluster were UNKNOWN."""
    spec = pipeline(target_feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic="t"))
    preflight = MongoPreflight(spec, f"mongodb://localhost:{code + 1}")
    with mock.patch.object(preflight._mongo, "database", return_value=Local(code)):
        assert await preflight.watch() == []
    await preflight.close()


async def test_a_stream_that_goes_on_slowly_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(mongodb_preflight, "first_batch", long)
    monkeypatch.setattr(mongodb_preflight, "RESUME_SECONDS", 0.01)
    preflight = MongoPreflight(pipeline(), "mongodb://localhost:1", b"a position")
    [advice] = await preflight._resumable()
    await preflight.close()
    assert (advice.level, advice.finding) == ("warning", "")
