"""A table without writes has no topic: a feed of zero partitions, which is no hole when its topic appears."""

from __future__ import annotations

from typing import Any

from gapwatch.core.watermarks import FeedTimes
from gapwatch.model.stream import NO_DELIVERY, NO_TOPIC, FeedState, Side

FEED = "shop.public.orders"


def state(number: int, **changes: Any) -> FeedState:
    fields: dict[str, Any] = {
        "pipeline": "orders",
        "side": int(Side.EXPECTED),
        "feed": FEED,
        "feed_partition": number,
        "partitions": 0 if number == NO_TOPIC else 2,
        "epoch": 0 if number == NO_TOPIC else 1,
        "offset_from": 0,
        "offset_to": 0,
        "watermark": 5_000,
        "caught_up": 5_000,
        "delivery": NO_DELIVERY,
        "delivery_clock": 0,
        "lost": [],
    }
    return FeedState(**{**fields, **changes})


def admit(times: FeedTimes, number: int, **changes: Any) -> list[Any]:
    return times.admit(("orders", int(Side.EXPECTED), FEED, number), state(number, **changes), 6_000, 30_000).holes


def test_a_feed_without_a_topic_has_a_watermark() -> None:
    times = FeedTimes()
    admit(times, NO_TOPIC)
    assert times.watermark("orders", Side.EXPECTED, [FEED]) == 5_000


def test_its_topic_is_no_hole_when_it_appears() -> None:
    times = FeedTimes()
    admit(times, NO_TOPIC)
    assert admit(times, 0) == []
    assert times.watermark("orders", Side.EXPECTED, [FEED]) == 0, "partition 1 has not spoken yet"
    assert admit(times, 1, watermark=4_000) == []
    assert times.watermark("orders", Side.EXPECTED, [FEED]) == 4_000, "the topic's partitions speak for themselves"


def test_a_log_whose_beginning_is_gone_is_a_hole_all_the_same() -> None:
    times = FeedTimes()
    admit(times, NO_TOPIC)
    assert len(admit(times, 0, offset_from=7, offset_to=9)) == 1


def test_a_first_start_on_an_existing_topic_is_a_hole() -> None:
    assert len(admit(FeedTimes(), 0)) == 1
