"""What the stream told of one key, and what follows from it."""

from __future__ import annotations

from gapwatch.core.keytrace import KeyTrace
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Operation,
    Outcome,
    PipelineTimes,
    Section,
    Side,
    VerdictSection,
)

KEY, OTHER = b"42", b"43"
ONE, TWO = b"1" * 16, b"2" * 16
TOPICS = {Side.EXPECTED: "shop.public.orders", Side.OBSERVED: "gw.feed.orders.target"}


def trace(match: Match = Match.DIGEST) -> KeyTrace:
    return KeyTrace("orders", KEY, match, lambda left, right: left == right)


def event(
    side: Side,
    offset: int,
    digest: bytes = ONE,
    operation: Operation = Operation.UPSERT,
    key: bytes = KEY,
    pipeline: str = "orders",
) -> Batch:
    section = Section(
        pipeline=pipeline,
        side=int(side),
        feed=TOPICS[side],
        feed_partition=3,
        epoch=1,
        mapping=7,
        offset_from=offset,
        offset_to=offset + 1,
        keys=[key],
        operations=bytes([operation]),
        offsets=[offset],
        majors=[offset],
        minors=[0],
        event_times=[1_000],
        append_times=[1_500],
        digests=[b"" if operation is Operation.DELETE else digest],
    )
    return Batch(FORMAT, [section], [])


def verdict(outcome: Outcome, position: int, side: Side = Side.EXPECTED) -> Batch:
    return Batch(
        FORMAT, [], [VerdictSection("orders", [OTHER, KEY], bytes([side] * 2), [(1, position, 0)] * 2, bytes([outcome] * 2))]
    )


def control(delivery: int) -> Control:
    feed = FeedState("orders", int(Side.EXPECTED), TOPICS[Side.EXPECTED], 3, 4, 1, 0, 0, 0, 0, delivery, 0, [])
    return Control(FORMAT, "ingest-1", 9_000, [feed], [PipelineTimes("orders", 10, 2_000)])


def told(*records: Batch | Control) -> KeyTrace:
    made = trace()
    for record in records:
        made.take(record, 9_999)
    return made


def test_m20_the_place_of_every_event_is_shown_newest_first() -> None:
    record = told(event(Side.EXPECTED, 8), event(Side.EXPECTED, 9, key=OTHER), event(Side.OBSERVED, 5)).record()
    assert [(row["side"], row["topic"], row["partition"], row["offset"], row["position"]) for row in record["events"]] == [
        ("observed", "gw.feed.orders.target", 3, 5, "5/0"),
        ("expected", "shop.public.orders", 3, 8, "8/0"),
    ]
    assert record["events"][0]["time"] == "1970-01-01T00:00:01.000Z"
    assert record["events"][0]["appended"] == "1970-01-01T00:00:01.500Z"
    assert record["newest_expected"]["offset"] == 8


def test_m20_nothing_seen_is_unknown() -> None:
    assert told().state == "unknown"
    assert told(event(Side.EXPECTED, 8, pipeline="others")).state == "unknown"
    assert told(event(Side.EXPECTED, 8, operation=Operation.SNAPSHOT)).state == "unknown", "a snapshot read is no write"


def test_m20_settled_is_what_the_target_shows() -> None:
    assert told(event(Side.EXPECTED, 8), event(Side.OBSERVED, 5)).state == "settled"
    assert told(event(Side.EXPECTED, 8), event(Side.OBSERVED, 5, TWO)).state == "pending"
    assert told(event(Side.EXPECTED, 8), event(Side.OBSERVED, 5), event(Side.EXPECTED, 9, TWO)).state == "pending"
    gone = [event(side, 20, operation=Operation.DELETE) for side in Side]
    assert told(event(Side.EXPECTED, 8), *gone).state == "settled"
    assert told(event(Side.EXPECTED, 8), gone[Side.OBSERVED]).state == "pending"


def test_m20_pending_has_a_due_time_and_in_transit_has_none() -> None:
    pending = told(control(NO_DELIVERY), event(Side.EXPECTED, 8))
    assert (pending.state, pending.due()) == ("pending", 1_500 + 2_000 + 10)
    waiting = told(event(Side.EXPECTED, 8), control(8))
    assert (waiting.state, waiting.due()) == ("in_transit", None)
    assert told(event(Side.EXPECTED, 8), control(9)).state == "pending"


def test_m20_a_verdict_closes_what_it_names_and_nothing_newer() -> None:
    closed = told(event(Side.EXPECTED, 8), verdict(Outcome.GAP, 8))
    assert closed.state == "closed"
    assert [(row["outcome"], row["position"]) for row in closed.record()["verdicts"]] == [("gap", "8/0")]
    assert told(event(Side.EXPECTED, 8), verdict(Outcome.GAP, 8), event(Side.EXPECTED, 9, TWO)).state == "pending"
    assert told(event(Side.EXPECTED, 8), verdict(Outcome.CLEARED, 8, Side.OBSERVED)).state == "pending"


def test_m20_an_older_event_that_comes_again_is_not_the_newest() -> None:
    again = told(event(Side.EXPECTED, 9, TWO), event(Side.EXPECTED, 8))
    assert again.newest[Side.EXPECTED].offset == 9
    assert len(again.events) == 2


def test_of_two_tables_the_one_that_came_last_is_the_newest() -> None:
    told = trace()
    told.take(event(Side.EXPECTED, 9), 1_500)
    later = event(Side.EXPECTED, 5, TWO)
    later.sections[0].feed = "shop.public.orders_us"
    told.take(later, 1_600)
    assert told.newest[Side.EXPECTED].topic == "shop.public.orders_us"
    told.take(event(Side.OBSERVED, 1), 1_700)
    assert told.state == "pending", "what the target shows is the other table's row"
