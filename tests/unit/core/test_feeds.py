"""Ingest's side of time: what was missed is said, with the time from which on it was missed; silence of a topic is no lag."""

from __future__ import annotations

from gapwatch.core.envelopes import HeartbeatRow
from gapwatch.core.feeds import Check, FeedProgress, HeartbeatRows
from gapwatch.core.watermarks import FeedTimes
from gapwatch.model.stream import NO_DELIVERY, Lost, Side


def progress(**more: object) -> FeedProgress:
    fields: dict[str, object] = {
        "topic": "shop.public.orders",
        "partition": 0,
        "partitions": 1,
        "epoch": 1,
        "position": 10,
        "sent": 10,
        "disorder_ms": 200,
    }
    return FeedProgress(**(fields | more))  # type: ignore[arg-type]


def row(number: int | None, time: int, *, sender: str = "a", append: int | None = None) -> HeartbeatRow:
    return HeartbeatRow(number, sender, time, time, 0, None, time if append is None else append)


def test_trap_36_offsets_that_a_compacted_log_passes_over_are_declared_lost() -> None:
    """A delete and its tombstone were compacted away while nobody read: the log just goes on at a later offset."""
    feed = progress(compacted=True)
    feed.arrived([10])
    feed.read_to(11)
    assert feed.lost == []
    feed.arrived([15])
    feed.read_to(16)
    feed.arrived([20])
    assert feed.lost == [Lost(11, 20, 0, 0, "ingest_hole")], "one stretch, however many pieces"


def test_trap_36_what_was_compacted_before_the_first_start_is_the_baselines() -> None:
    feed = progress(compacted=True, history_to=100)
    for offset in (40, 90, 100):
        feed.arrived([offset])
        feed.read_to(offset + 1)
    assert feed.lost == []
    feed.arrived([103])
    assert feed.lost == [Lost(101, 103, 0, 0, "ingest_hole")]


def test_offsets_that_transactions_take_are_no_loss_in_a_log_that_is_not_compacted() -> None:
    feed = progress()
    feed.arrived([15])
    assert feed.lost == []


def test_a_skipped_heartbeat_row_breaks_the_history_since_the_row_before_it() -> None:
    """The slot was re-created while the connector was away for an hour: what is missing began when the last row was written."""
    rows = HeartbeatRows(settle_ms=1_000, disorder_ms=200)
    assert rows.read(row(7, 50_000)) is None
    assert rows.read(row(8, 51_000)) is None
    assert rows.read(row(90, 3_600_000)) == 50_800
    assert rows.read(row(91, 3_601_000)) is None


def test_a_repeated_row_and_another_sender_break_nothing() -> None:
    rows = HeartbeatRows(settle_ms=1_000, disorder_ms=200)
    for number in (7, 8, 7, 8, 9):
        assert rows.read(row(number, 50_000 + number)) is None
    assert rows.read(row(500, 60_000, sender="b")) is None
    assert rows.read(row(None, 61_000)) is None


def test_rows_that_a_connector_repeats_prove_nothing_before_they_came_again() -> None:
    """Seed 33 of the simulation: it was killed after a row had arrived and before a change that precedes it had; it sent both
    again, the row after it at the same moment, and that change was the last to arrive."""
    rows = HeartbeatRows(settle_ms=1_000, disorder_ms=200)
    rows.read(row(7, 50_000))
    rows.read(row(8, 51_000))
    assert rows.proven == 49_800
    rows.read(row(8, 51_000, append=60_000))
    rows.read(row(9, 52_000, append=60_001))
    assert rows.proven == 49_800
    rows.read(row(10, 53_000, append=61_000))
    assert rows.proven == 50_800
    rows.read(row(11, 54_000, append=61_001))
    assert rows.proven == 51_800


def test_lesson_19_an_idle_topic_moves_its_times_by_heartbeats_alone() -> None:
    """No record of its own for a day; lag was "time since the last event". Rows prove the time, the log's end proves the rest."""
    rows, feed = HeartbeatRows(settle_ms=1_000, disorder_ms=200), progress()
    for second in range(0, 86_400, 60):
        now = second * 1_000
        rows.read(row(second // 60, now))
        feed.check(Check(end=10, clock=now, proven=rows.proven))
        feed.read_to(10)
    assert feed.caught_up == now
    assert now - feed.watermark <= 61_000
    assert feed.position == 10


def test_lesson_19_a_topic_that_is_not_read_to_its_end_proves_nothing_however_alive_it_looks() -> None:
    rows, feed = HeartbeatRows(settle_ms=1_000, disorder_ms=200), progress()
    for second in range(100):
        rows.read(row(second, second * 1_000))
        feed.check(Check(end=11, clock=second * 1_000, proven=rows.proven))
    assert (feed.caught_up, feed.watermark) == (0, 0)
    feed.read_to(11)
    assert feed.caught_up == 99_000


def test_all_that_was_lost_is_a_hole_in_whatever_order_it_was_found() -> None:
    """Two pipelines read one topic: what the second one's mapping refuses is found after all that the first one's does."""
    feed, times = progress(), FeedTimes()
    feed.compacted = True
    feed.arrived([10, 11, 12, 13, 16])
    feed.lose(12, 13, "unparsable", time_from=3, time_to=3)
    feed.lose(11, 12, "unparsable", time_from=2, time_to=2)
    feed.read_to(17)
    state = feed.state("orders", Side.EXPECTED, delivery=NO_DELIVERY, delivery_clock=0)
    key = ("orders", int(Side.EXPECTED), feed.topic, 0)
    first, *holes = times.admit(key, state, 6_000, 30_000).holes
    assert first.offset_from == -1
    assert [(hole.offset_from, hole.offset_to) for hole in holes] == [(11, 12), (12, 13), (14, 16)]
    assert times.admit(key, state, 6_001, 30_000).holes == [], "said once more"
