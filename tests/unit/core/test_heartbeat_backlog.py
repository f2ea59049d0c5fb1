"""Heartbeat rows that arrive in one piece after a broker outage prove nothing of data that is still on its way.

Kafka's record timestamp (CreateTime) is when Connect's producer *accumulated* the record, not when the broker had it. After an
outage one produce request carries one batch per partition: all heartbeat rows of a minute fit one batch, the data does not.
"""

from __future__ import annotations

from gapwatch.core.feeds import Check, FeedProgress, Follower, HeartbeatRows, StandingEnd
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


def test_an_end_that_never_stands_still_is_proved_by_a_record_that_was_sent_after_the_rows() -> None:
    """An incremental snapshot for a minute: reads only, which prove no time themselves, ten a second, and a row a second."""
    rows, feed, end, follower = HeartbeatRows(settle_ms=1_000, disorder_ms=200), progress(), StandingEnd(still_ms=500), Follower()
    for tenth in range(600):
        now = 100 * tenth
        if tenth % 10 == 0:
            rows.read(row(tenth // 10, now))
        feed.read_to(110 + tenth)
        feed.created = now
        feed.check(Check(end=111 + tenth, clock=now, proven=end.proven(111 + tenth, now, rows.proven)))
        feed.marked(follower.proven(feed.created, rows))
        assert feed.watermark >= now - 4_500, "the end moves all the time, and time stands"
        assert feed.watermark <= now


def test_a_record_that_was_sent_before_a_row_says_nothing_of_what_the_row_proves() -> None:
    rows = HeartbeatRows(settle_ms=1_000, disorder_ms=200)
    assert rows.proven_before(1) is None, "no row yet"
    for second in range(1, 5):
        rows.read(row(second, second * 1_000))
    assert rows.proven_before(4_001) is None, "whether the connector had started again shows in its next row"
    assert rows.proven_before(4_000) == 2_800
    assert rows.proven_before(3_999) == 1_800
    assert rows.proven_before(1_999) == 0
    assert Follower().proven(0, rows) == 0, "the broker's time tells nothing of when a record was sent"


def test_what_a_connector_repeats_after_its_start_proves_nothing_of_what_it_had_not_delivered() -> None:
    """A change committed at 1,500 was not acknowledged when the connector died; it repeats what lies before it, and a row."""
    rows, follower = HeartbeatRows(settle_ms=1_000, disorder_ms=200), Follower()
    for second in range(1, 6):
        rows.read(row(second, second * 1_000))
    repeated = 20_000  # CreateTime of a record before that change, sent once more
    assert follower.proven(repeated, rows) == 0
    rows.read(row(2, 2_000, append=20_100))
    assert follower.proven(repeated, rows) == 0, "the watermark passed a change that nobody has read"
    for second in range(3, 9):
        rows.read(row(second, second * 1_000, append=20_100 + 1_000 * (second - 2)))
    assert follower.proven(25_000, rows) == 0, "nothing is said of the record that was repeated, and it waits no more"
    rows.read(row(9, 26_000, append=26_100))
    assert follower.proven(26_050, rows) == 4_800, "the row of 5,000 was sent more than a second before that that came at 25,000"


def test_what_was_proven_holds_of_an_end_that_stood_still_since() -> None:
    end = StandingEnd(still_ms=500)
    assert [end.proven(7, 1_000 + 200 * step, 10 * step) for step in range(6)] == [0, 0, 0, 0, 10, 20]
    assert end.proven(8, 2_200, 60) == 0
    assert end.proven(8, 2_700, 70) == 60
