"""In which topic the heartbeats of a feed arrive."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gapwatch.model.pipeline import FeedKind, FeedSpec, HeartbeatSpec, StoreSpec, StoreType
from gapwatch.roles.ingest.bindings import heartbeat_topics
from tests.unit.core.samples import pipeline


def store(heartbeat: HeartbeatSpec) -> StoreSpec:
    return StoreSpec(name="catalog", type=StoreType.MONGODB, url="mongodb://localhost", heartbeat=heartbeat)


@pytest.mark.parametrize(
    ("topic", "configured", "expected"),
    [
        ("copy.shop.orders", {}, "copy.shop.gapwatch_heartbeats"),
        ("a.b.shop.orders", {}, "a.b.shop.gapwatch_heartbeats"),
        ("copy.shop.orders", {"catalog": "ticks"}, "ticks"),
        ("renamed", {}, None),
        ("shop.orders", {}, None),
        ("workshop.orders", {}, None),
        ("renamed", {"catalog": "ticks"}, "ticks"),
    ],
)
def test_a_captured_collection_has_its_heartbeats_beside_it(topic: str, configured: dict[str, str], expected: str | None) -> None:
    spec = pipeline()
    feed = FeedSpec(kind=FeedKind.DEBEZIUM, topic=topic)
    spec = replace(spec, target=replace(spec.target, store="catalog", collection="shop.orders", feed=feed))
    stores = {"catalog": store(HeartbeatSpec(auto=not configured, topic=configured.get("catalog", "")))}
    assert heartbeat_topics({spec.id: spec}, stores).get(topic) == expected
    silent = {"catalog": store(HeartbeatSpec(auto=False))}
    assert topic not in heartbeat_topics({spec.id: spec}, silent), "nobody writes any: none is looked for"


def test_a_change_stream_has_markers_instead() -> None:
    spec = pipeline()
    spec = replace(spec, target=replace(spec.target, feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic="g.orders")))
    assert "g.orders" not in heartbeat_topics({spec.id: spec}, {})
