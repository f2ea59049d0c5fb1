"""What a replay says of a write is what the live run said, and no more than its records can know."""

from __future__ import annotations

import pytest

from gapwatch.core import replay
from gapwatch.core.replay import Replay, Room, Stretch, Verdict
from gapwatch.errors import UsageError
from gapwatch.model.stream import FORMAT, NO_DELIVERY, Batch, Control, FeedState, Letter, Operation, PipelineTimes, Side
from gapwatch.model.suspect import Reason
from tests.property.test_replay import first_of, live, replayed
from tests.simulation.world import GRACE_MS, MAPPING, PIPELINE, START, pipeline
from tests.unit.core.test_replay_unjudged import SOURCE, SPEC, TARGET, section


def control(clock: int, source: int, target: int) -> Control:
    """Return what an ingester says that has read so many records of either side."""

    def state(side: Side, feed: str, to: int) -> FeedState:
        return FeedState(PIPELINE, int(side), feed, 0, 1, 1, to, to, clock, clock, NO_DELIVERY, 0, [])

    states = [state(Side.EXPECTED, SOURCE, source), state(Side.OBSERVED, TARGET, target)]
    return Control(FORMAT, "one", clock, states, [PipelineTimes(PIPELINE, 0, GRACE_MS)])


def written(start: int, *keys: bytes) -> Batch:
    return Batch(FORMAT, [section(Side.EXPECTED, SOURCE, start, start + len(keys), list(keys))], [])


def shown(start: int, *keys: bytes) -> Batch:
    return Batch(FORMAT, [section(Side.OBSERVED, TARGET, start, start + len(keys), list(keys))], [])


def timed(*records: Batch | Control) -> list[tuple[Batch | Control, int]]:
    return [(record, START + 10 * number) for number, record in enumerate(records)]


def test_j1_what_the_sink_gave_up_is_named_at_once_as_it_was_live() -> None:
    """And put right within the grace, so that without its dead letter nothing would be said of it."""
    letter = Letter(PIPELINE, b"a", Operation.DEAD_LETTERED, "dead", 0, 5, 0, 0, START, "why")
    another = Letter("another", b"a", Operation.DEAD_LETTERED, "dead", 0, 6, 0, 0, START, "why")
    log = timed(
        control(START, 0, 0),
        written(0, b"a"),
        Batch(FORMAT, [], [], [another, letter]),
        control(START + 100, 1, 0),
        shown(0, b"a"),
        control(START + 5 * GRACE_MS, 1, 1),
    )
    found = replayed(log, SPEC)
    assert [(named.suspect.reason, named.verdict) for named in found.named] == [(Reason.DEAD_LETTERED, Verdict.LATE)]
    assert first_of(found) == live(log, SPEC)


def test_a_late_write_whose_key_made_room_for_others_is_unknown() -> None:
    """The target showed it in the end; but by then nobody knew any more what was expected of it."""
    others = [b"other %d" % number for number in range(50)]
    log = timed(
        control(START, 0, 0),
        written(0, b"a"),
        control(START + 2 * GRACE_MS, 1, 0),
        written(1, *others),
        shown(0, *others),
        control(START + 3 * GRACE_MS, 51, 50),
        shown(50, b"a"),
        control(START + 9 * GRACE_MS, 51, 51),
    )
    named = replayed(log, pipeline(settled_keys_max=8), partition=(0, 1)).named
    assert {one.verdict for one in named if one.suspect.opening.side == Side.EXPECTED} == {Verdict.UNKNOWN}
    assert {one.verdict for one in replayed(log, pipeline(), partition=(0, 1)).named} == {Verdict.LATE}


def test_a_key_whose_story_begins_before_what_is_read_is_unknown_however_early_it_was_shown() -> None:
    """The source's first watermark among these records is later; live, where the log begins, that made it the baseline's."""
    log = timed(control(START + 10_000, 0, 0), shown(0, b"a"), control(START + 20_000, 0, 1))
    part = replayed(log, SPEC, whole=False, partition=(0, 1))
    assert [named.verdict for named in part.named] == [Verdict.UNKNOWN]
    assert replayed(log, SPEC, partition=(0, 1)).named == []
    assert live(log, SPEC) == {}


def test_the_partitions_of_one_question_share_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight partitions would hold eight times as many keys as a reconciliation may have."""
    room = Room()
    one, other = (Replay(SPEC, MAPPING, Stretch(), partition=number, partitions=2, keys_max=3, room=room) for number in (0, 1))
    one.take(written(0, b"a", b"b"), 0, START)
    one.take(written(2, b"a"), 1, START)
    other.take(written(0, b"c"), 0, START)
    with pytest.raises(UsageError, match="More than 3 keys were written"):
        other.take(written(1, b"d"), 1, START)
    monkeypatch.setattr(replay, "NAMED_MAX", 1)
    one.take(control(START + 100, 3, 0), 2, START)
    with pytest.raises(UsageError, match="More than 1 writes are late"):
        one.take(control(START + 5 * GRACE_MS, 3, 0), 3, START)
