"""Heartbeat rows that arrive in one piece after a broker outage prove nothing of data that is still on its way.

Kafka's record timestamp (CreateTime) is when Connect's producer *accumulated* the record, not when the broker had it. After an
outage one produce request carries one batch per partition: all heartbeat rows of a minute fit one batch, the data does not.
"""

from __future__ import annotations

from gapwatch.core.feeds import Check, FeedProgress, HeartbeatRows, StandingEnd
from tests.unit.core.test_feeds import progress, row


def test_rows_that_were_held_back_together_prove_nothing_yet() -> None:
    rows = HeartbeatRows(settle_ms=1_000, disorder_ms=200)
    feed: FeedProgress = progress()
    # The brokers are away from 0 to 60 s. Connect accumulates a row a second, and 6,000 changes (committed every 10 ms).
    # They come back at 60 s: the first request holds the batch of all rows, and the first 100 changes (until 1 s).
    for second in range(61):
        rows.read(row(second, second * 1_000))
    proven = rows.proven
    feed.streamed(990)  # the changes of the first batch
    feed.read_to(110)
    end = StandingEnd(still_ms=500)
    for step in range(20):  # the rest comes batch by batch, and the end of the log moves all the time
        clock = 60_050 + 200 * step
        feed.check(Check(end=110 + 100 * step, clock=clock, proven=end.proven(110 + 100 * step, clock, proven)))
        feed.read_to(110 + 100 * step)
    unread = 1_000  # commit time of the first change that still waits in Connect's producer
    assert feed.watermark <= unread, f"the watermark is {feed.watermark}, but the change committed at {unread} was not read"
    for step in range(20, 25):  # it is all there
        clock = 60_050 + 200 * step
        feed.check(Check(end=2_010, clock=clock, proven=end.proven(2_010, clock, proven)))
        feed.read_to(2_010)
    assert feed.watermark == proven


def test_what_was_proven_holds_of_an_end_that_stood_still_since() -> None:
    end = StandingEnd(still_ms=500)
    assert [end.proven(7, 1_000 + 200 * step, 10 * step) for step in range(6)] == [0, 0, 0, 0, 10, 20]
    assert end.proven(8, 2_200, 60) == 0
    assert end.proven(8, 2_700, 70) == 60
