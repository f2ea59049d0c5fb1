"""A replay by offsets never ends with 0 where records were not judged."""

from __future__ import annotations

from gapwatch.cli.replay import exit_code
from gapwatch.core.keys import KeyCodec
from gapwatch.core.rawreplay import RawFeed, RawReader, Slot
from gapwatch.core.replay import Replay, Stretch, found_record, joined
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch.model.stream import FORMAT, Batch, Control, Section, Side
from tests.simulation.world import MAPPING, PIPELINE, START, pipeline

CODEC = KeyCodec([KeyColumn(path="id", type=KeyType.BYTES)])
SPEC = pipeline()
SOURCE, TARGET = SPEC.source.feed.topic, SPEC.target.feed.topic


def section(side: Side, topic: str, start: int, end: int, keys: list[bytes]) -> Section:
    count = len(keys)
    return Section(
        pipeline=PIPELINE,
        side=int(side),
        feed=topic,
        feed_partition=0,
        epoch=1,
        mapping=MAPPING,
        offset_from=start,
        offset_to=end,
        keys=keys,
        operations=bytes([1] * count),
        offsets=list(range(start, start + count)),
        majors=list(range(start, start + count)),
        minors=[0] * count,
        event_times=[START + start] * count,
        append_times=[START + start] * count,
        digests=[b"d" * 16] * count,
    )


def said(*records: object) -> int:
    replay = Replay(SPEC, MAPPING, Stretch(), partition=0, partitions=1)
    for offset, record in enumerate(records):
        replay.take(record, offset, START + 10 * offset)  # type: ignore[arg-type]
    found = found_record(joined([replay.found()]), CODEC, {})
    return exit_code(found)


BOTH = Batch(FORMAT, [section(Side.EXPECTED, SOURCE, 0, 1, [b"a"]), section(Side.OBSERVED, TARGET, 0, 1, [b"a"])], [])


def test_what_is_right_is_consistent() -> None:
    assert said(BOTH) == 0


def test_writes_that_wait_for_what_comes_before_them_are_not_judged() -> None:
    """An ingester died: [1, 5) comes again only after the end of what was asked; what lies behind it is never judged."""
    assert said(BOTH, Batch(FORMAT, [section(Side.EXPECTED, SOURCE, 5, 6, [b"lost"])], [])) != 0


def test_an_unreadable_record_before_the_first_watermark_is_a_hole() -> None:
    """`_miss` says a hole from the watermark, which is 0 so far: `_is_the_beginning` takes it for what lies before the range."""
    assert said(BOTH, None, BOTH) != 0


def test_an_unreadable_record_before_any_feed_has_spoken_was_not_judged() -> None:
    """The first of the offsets that were asked for: no feed is known yet of which a stretch could be missing."""
    assert said(None, BOTH) != 0
    replay = Replay(SPEC, MAPPING, Stretch(), partition=0, partitions=1)
    replay.take(None, 0, START)
    assert joined([replay.found(), replay.found()]).unread == 2


def test_raw_two_jumps_of_the_slot_over_an_idle_table_are_two_holes() -> None:
    """`_lose_history` says [p, p) each time; FeedTimes takes the second for a repetition of the first (offset_to <= lost_to)."""
    from gapwatch.core.matching import KeyMatcher
    from gapwatch.model.suspect import Hole

    feeds = [
        RawFeed(side=side, topic=topic, decoder=None, starts={0: 7})  # type: ignore[arg-type]
        for side, topic in ((Side.EXPECTED, SOURCE), (Side.OBSERVED, TARGET))
    ]
    reader = RawReader(SPEC, MAPPING, feeds)
    matcher = KeyMatcher(0, 1, {PIPELINE: SPEC}, fingerprints={PIPELINE: MAPPING}, life="x")
    holes = []
    for number in range(6):
        if number in (2, 4):  # a heartbeat number was skipped
            reader._lose_history(START + 100_000 * number, START + 100_000 * number + 50_000)
        for record in reader.read(Slot(end=START + 100_000 * (number + 1), runs={})):
            holes += [
                one for one in matcher.apply(record, matcher.applied + 1, START + 100_000 * (number + 1)) if isinstance(one, Hole)
            ]
    assert [one.time_from for one in holes if one.reason == "slot_jumped"] == [START + 200_000, START + 400_000], holes


def test_what_only_the_target_showed_of_a_key_was_not_judged() -> None:
    """Its write of the source lies before the offsets that were asked for, or there is none: nobody can tell."""
    assert said(Batch(FORMAT, [section(Side.OBSERVED, TARGET, 0, 1, [b"a"])], [])) != 0


def test_raw_a_plain_topic_that_is_quiet_has_the_time_up_to_which_it_was_read() -> None:
    """As an ingester says it; else a replay of the time after its last record would never end."""
    feeds = [
        RawFeed(side=Side.EXPECTED, topic=SOURCE, decoder=None, starts={0: 7}),  # type: ignore[arg-type]
        RawFeed(side=Side.OBSERVED, topic=TARGET, decoder=None, starts={0: 7}, by_append=True),  # type: ignore[arg-type]
    ]
    (said_then,) = RawReader(SPEC, MAPPING, feeds).read(Slot(end=START, runs={}))
    assert isinstance(said_then, Control)
    assert {one.feed: one.watermark for one in said_then.feeds} == {SOURCE: 0, TARGET: START - 200}
