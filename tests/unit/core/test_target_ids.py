"""Several documents of the target under one key: two live ones are a `duplicate`, which the stream itself raises."""

from __future__ import annotations

import msgspec
import pytest

from gapwatch.core.confirm import Presence, Reading, Reads, cause_of, kind_of
from gapwatch.core.keystate import KeyState, compact_settled, settled_state
from gapwatch.core.targetids import TARGET_IDS_MAX
from gapwatch.model.gap import Cause, Kind
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Outcome, Side
from gapwatch.model.suspect import Reason, Suspect
from tests.simulation.bench import KEY, Bench, only
from tests.simulation.world import GRACE_MS, PIPELINE, pipeline

LATE = GRACE_MS + 1


def settled() -> Bench:
    """Return a key that the target has right, in the document `a`."""
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 200, target_id=b"a")
    assert bench.unsettled is None
    return bench


@pytest.mark.parametrize("match", [Match.DIGEST, Match.PRESENCE])
def test_b7_two_equal_documents_of_one_key_are_raised_by_the_stream_and_both_are_named(match: Match) -> None:
    bench = Bench(pipeline(match=match))
    bench.expect(1, 100)
    bench.observe(1, 200, target_id=b"a")
    bench.observe(1, 300, target_id=b"b")
    assert bench.unsettled == 300, "equal to what is expected, and still one too many"
    assert bench.streams(300 + LATE - 1) == []
    suspect = only(bench.streams(300 + LATE))
    assert (suspect.reason, suspect.opening.side, suspect.opening.event_time % 1000) == (Reason.DUPLICATE, Side.OBSERVED, 300)
    assert suspect.target_ids == ["a", "b"]
    assert bench.status.counters.settled == 1


def test_b7_one_document_written_again_and_again_is_none() -> None:
    bench = settled()
    for at in range(300, 900, 100):
        bench.expect(at, at)
        bench.observe(at, at + 20, target_id=b"a")
    assert bench.unsettled is None
    assert bench.streams(900 + LATE) == []


@pytest.mark.parametrize("goes", [b"a", b"b"])
def test_b7_a_document_that_takes_the_others_place_is_none(goes: bytes) -> None:
    """What is left shows what is expected: neither a second one nor a deletion that nobody asked for."""
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    bench.observe(None, 400, target_id=goes)
    assert bench.unsettled is None
    assert bench.streams(400 + LATE) == []
    bench.observe(None, 5_000, target_id={b"a": b"b", b"b": b"a"}[goes])
    assert only(bench.streams(5_000 + LATE)).opening.operation == Operation.DELETE, "now none is left"


def test_b7_what_is_left_may_be_the_wrong_one() -> None:
    bench = settled()
    bench.observe(2, 300, target_id=b"b")
    bench.observe(None, 400, target_id=b"a")
    suspect = only(bench.streams(400 + LATE))
    assert (suspect.reason, suspect.target_ids) == (Reason.UNEXPLAINED, ["b"])


def test_b7_a_hot_key_does_not_put_its_duplicate_off() -> None:
    """Writes of the one document never end, and never are a grace old; the other one is due all the same."""
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    for at in range(400, 300 + LATE, 100):
        bench.expect(at, at)
        bench.observe(at, at + 50, target_id=b"a")
    bench.expect(9, 300 + LATE)
    suspect = only(bench.streams(300 + LATE))
    assert (suspect.reason, suspect.opening.event_time % 1000) == (Reason.DUPLICATE, 300)
    raised = bench.status.counters.raised
    bench.observe(9, 300 + LATE + 50, target_id=b"a")
    assert bench.streams(400 + LATE) == []
    assert bench.status.counters.raised == raised, "it stays raised, and is raised no second time"


def test_b7_while_the_sink_has_the_newest_write_to_deliver_a_duplicate_waits() -> None:
    bench = Bench(pipeline(delivery=True))
    bench.delivery = 1
    bench.expect(1, 100)
    bench.observe(1, 200, target_id=b"a")
    bench.expect(2, 250)
    bench.observe(2, 300, target_id=b"b")
    assert bench.streams(300 + LATE) == []
    bench.delivery = 2
    assert bench.streams(9_000) == [], "the sink has passed it just now"
    assert only(bench.streams(9_001)).reason == Reason.DUPLICATE


@pytest.mark.parametrize("outcome", [Outcome.CLEARED, Outcome.GAP, Outcome.UNVERIFIABLE])
def test_b7_a_verdict_ends_it_and_a_third_document_is_news(outcome: Outcome) -> None:
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    bench.verdict(only(bench.streams(300 + LATE)), outcome)
    assert bench.unsettled is None
    if outcome is Outcome.GAP:
        assert not len(bench.matcher._pipelines[PIPELINE].cell.rows), "the ledger holds it"
        return
    bench.expect(2, 5_000)
    bench.observe(2, 5_050, target_id=b"a")
    assert bench.streams(5_050 + LATE) == [], "it was read: a write of either says nothing new of how many there are"
    bench.observe(2, 9_000, target_id=b"c")
    assert only(bench.streams(9_000 + LATE)).target_ids == ["a", "b", "c"]


def test_b7_what_came_after_the_raise_is_not_judged_with_it() -> None:
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    suspect = only(bench.streams(300 + LATE))
    bench.observe(1, 4_000, target_id=b"c")
    bench.verdict(suspect, Outcome.CLEARED)
    assert bench.unsettled == 4_000
    assert only(bench.streams(4_000 + LATE)).opening.major == 2


def test_b7_a_late_write_is_judged_before_and_with_a_duplicate() -> None:
    bench = settled()
    bench.expect(2, 250)
    bench.observe(1, 300, target_id=b"b")
    suspect = only(bench.streams(250 + LATE))
    assert (suspect.opening.side, suspect.reason, suspect.target_ids) == (Side.EXPECTED, Reason.UNSATISFIED, ["a", "b"])
    bench.verdict(suspect, Outcome.CLEARED)
    assert bench.unsettled is None


def test_b7_a_superseded_verdict_leaves_it_raised() -> None:
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    bench.verdict(only(bench.streams(300 + LATE)), Outcome.SUPERSEDED)
    assert bench.unsettled == 300


def test_b7_what_a_snapshot_shows_is_no_news_and_what_is_written_beside_it_is() -> None:
    bench = Bench()
    bench.expect(1, 100)
    for name in (b"a", b"b"):
        bench.observe(1, 200, target_id=name, operation=Operation.SNAPSHOT)
    assert bench.unsettled is None
    bench.observe(1, 300, target_id=b"c")
    assert bench.unsettled == 300


def test_b7_documents_from_before_the_source_was_read_are_the_baselines() -> None:
    bench = Bench()
    bench.matcher._pipelines[PIPELINE].start = 1 << 60
    for name in (b"a", b"b"):
        bench.observe(1, 300, target_id=name)
    bench.expect(1, 350)
    assert bench.streams(9_000) == []
    assert bench.unsettled is None


def test_b7_a_repetition_does_not_bring_a_document_back() -> None:
    bench = settled()
    bench.observe(1, 300, target_id=b"b", place=5)
    bench.observe(None, 400, target_id=b"b", place=6)
    bench.observe(1, 300, target_id=b"b", place=5)  # the reader repeats itself
    assert bench.status.counters.repeated == 1
    assert bench.unsettled is None


def test_b7_beyond_eight_the_key_stays_raised_until_it_was_read() -> None:
    bench = settled()
    names = [b"%d" % number for number in range(TARGET_IDS_MAX + 3)]
    for number, name in enumerate(names):
        bench.observe(1, 300 + number, target_id=name)
    suspect = only(bench.streams(300 + LATE))
    assert len(suspect.target_ids) == TARGET_IDS_MAX
    for number, shown in enumerate(suspect.target_ids):
        bench.observe(None, 5_000 + number, target_id=shown.encode())
    assert bench.unsettled is not None, "those that were let go may still be there"
    bench.restart()
    assert bench.unsettled is not None
    bench.verdict(only(bench.streams(5_100 + LATE)), Outcome.CLEARED)
    assert bench.unsettled is None


def test_b7_what_is_known_of_documents_survives_a_restart() -> None:
    bench = settled()
    bench.restart()
    bench.observe(1, 300, target_id=b"b")
    bench.restart()
    suspect = only(bench.streams(300 + LATE))
    (again,) = bench.restart()
    assert isinstance(again, Suspect)
    assert (again.id, again.target_ids, again.raised_again) == (suspect.id, ["a", "b"], True)


def test_m26_a_state_of_before_is_read_and_learns_its_documents_with_their_next_writes() -> None:
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 200)
    bench.expect(1, 210, key=b"open")
    bench.observe(2, 220, key=b"open")
    written = bench.matcher.marker
    bench.matcher.marker = lambda: msgspec.msgpack.encode({**msgspec.msgpack.decode(written()), "format": 4})  # type: ignore[method-assign]
    bench.restart()
    bench.observe(1, 300, target_id=b"a")
    assert bench.unsettled == 210
    bench.observe(1, 400, target_id=b"b")
    bench.verdict(only(bench.streams(210 + LATE)), Outcome.CLEARED)
    assert only(bench.streams(400 + LATE)).target_ids == ["a", "b"]
    assert len(KeyState().packed()) == 10, "a key whose documents nobody names is stored as ever"


def test_a_settled_key_with_ids_is_kept_packed() -> None:
    bench = settled()
    held, is_open = bench.matcher._pipelines[PIPELINE].cell.rows.held(KEY)
    assert isinstance(held, bytes)
    assert not is_open
    assert compact_settled(settled_state(held)) == held
    assert len(held) < 700


def test_b7_what_the_stream_knows_of_a_duplicate_is_no_cause() -> None:
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    suspect = only(bench.streams(300 + LATE))
    source = Reading(presence=Presence.PRESENT, identity=b"x" * 16, revision="1")
    target = Reading(presence=Presence.SEVERAL, target_ids=("a", "b"))
    reads = Reads(before=source, target=target, after=source, differing=(), started_ms=0, proven_ms=0, ended_ms=0)
    kind = kind_of(suspect, reads, Match.DIGEST)
    assert (kind, cause_of(suspect, reads, kind)) == (Kind.DUPLICATE, Cause.UNKNOWN)


def test_suspects_of_earlier_versions_name_no_documents() -> None:
    bench = settled()
    bench.observe(1, 300, target_id=b"b")
    suspect = msgspec.to_builtins(only(bench.streams(300 + LATE)))
    del suspect["target_ids"]
    assert msgspec.convert(suspect, Suspect).target_ids == []
