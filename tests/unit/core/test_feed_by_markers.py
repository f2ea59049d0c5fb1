"""A feed whose events come in no order of time: only markers tell how far it has come."""

from __future__ import annotations

from gapwatch.core.feeds import FeedProgress


def progress(*, by_markers: bool) -> FeedProgress:
    return FeedProgress(topic="t", partition=0, partitions=1, epoch=1, position=0, sent=0, disorder_ms=200, by_markers=by_markers)


def test_events_of_a_tail_or_of_acks_move_no_watermark() -> None:
    feed = progress(by_markers=True)
    feed.streamed(5_000)
    assert feed.watermark == 0
    feed.marked(4_000)
    feed.streamed(9_000)
    assert feed.watermark == 4_000


def test_events_in_commit_order_do() -> None:
    feed = progress(by_markers=False)
    feed.streamed(5_000)
    assert feed.watermark == 4_800
