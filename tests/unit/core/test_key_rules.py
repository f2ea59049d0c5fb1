"""Single keys through the whole matcher: the traps of ordering and windows, each told as it happened elsewhere."""

from __future__ import annotations

import pytest

from gapwatch.core import pipelinestate
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import FORMAT, NO_DELIVERY, Control, Lost, Operation, Outcome, Side
from gapwatch.model.suspect import Hole, Reason, Said, Suspect
from tests.simulation.bench import KEY, Bench, only
from tests.simulation.world import GRACE_MS, START, pipeline
from tests.unit.core.test_feeds import progress

LATE = GRACE_MS + 1


# ── order ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_trap_1_a_lower_lsn_of_a_later_commit_is_the_newer_write() -> None:
    """Debezium emits transactions in commit order, each event with its own LSN: the second one went back from 200 to 100."""
    bench, feed = Bench(), progress()
    bench.expect(1, 100, place=90, minor=200)
    bench.expect(2, 200, place=250, minor=100)
    assert not feed.jumped(90, 200, 100)
    assert not feed.jumped(250, 100, 200), "no broken history either"
    bench.observe(1, 250)
    assert bench.unsettled == 200, "the older one arrived, the newer one is asked for"
    assert only(bench.streams(200 + LATE)).opening.major == 250
    bench.observe(2, 9_000)
    assert (bench.status.counters.settled, bench.status.counters.repeated) == (2, 0)


def test_trap_1_writes_of_one_transaction_keep_their_order() -> None:
    bench = Bench()
    for number, lsn in ((1, 300), (2, 310), (3, 320)):
        bench.expect(number, 100, place=90, minor=lsn)
    bench.expect(2, 100, place=90, minor=310)  # the connector was killed and repeats itself
    bench.observe(3, 200)
    assert bench.unsettled is None
    assert bench.status.counters.repeated == 1


@pytest.mark.parametrize("arrives", ["old_stays", "new_is_missing", "both"])
def test_trap_2_both_halves_of_a_changed_primary_key_are_asked_for(arrives: str) -> None:
    """Delete of the old and create of the new one stand at one position: deduplicated by it, one of the two had vanished."""
    bench = Bench()
    bench.expect(1, 10, key=b"old", place=1)
    bench.observe(1, 20, key=b"old")
    bench.expect(None, 100, key=b"old", place=7, minor=9)
    bench.expect(1, 100, key=b"new", place=7, minor=9)
    if arrives != "old_stays":
        bench.observe(None, 150, key=b"old")
    if arrives != "new_is_missing":
        bench.observe(1, 150, key=b"new")
    raised = {one.key for one in bench.streams(100 + LATE) if isinstance(one, Suspect)}
    assert raised == {"old_stays": {b"old"}, "new_is_missing": {b"new"}, "both": set()}[arrives]


def test_lesson_31_the_second_half_of_a_pair_finds_nothing_to_do() -> None:
    """Both sides triggered matching; the second found "already part of a match", failed, and was delivered again for ever."""
    bench = Bench()
    bench.expect(1, 100, place=5)
    bench.observe(1, 150, place=5)
    for _ in range(10):
        bench.observe(1, 150, place=5)
        bench.expect(1, 100, place=5)
    counters = bench.status.counters
    assert (counters.expected, counters.observed, counters.settled, counters.repeated) == (1, 1, 1, 20)
    assert bench.streams(100 + 10 * LATE) == []


# ── what an event does not carry ──────────────────────────────────────────────────────────────────────────────────────────────


def test_trap_17_a_masked_field_is_compared_with_what_was_last_known_of_it() -> None:
    """The update does not carry the large column: the target must still show the one that was written before."""
    bench = Bench()
    bench.expect(1, 100, masks=[77])
    bench.observe(1, 150, masks=[77])
    bench.expect(2, 200, masks=[None])
    bench.observe(2, 250, masks=[88])
    assert bench.unsettled == 200
    assert only(bench.streams(250 + LATE)).reason == Reason.UNSATISFIED
    bench.observe(2, 5_000, masks=[77])
    assert bench.status.counters.masked == 0
    assert bench.unsettled is None


def test_trap_17_a_masked_field_that_nobody_knows_settles_and_is_counted_as_unproven() -> None:
    bench = Bench()
    bench.expect(2, 200, masks=[None])
    bench.observe(2, 250, masks=[88])
    assert (bench.unsettled, bench.status.counters.settled, bench.status.counters.masked) == (None, 1, 1)
    bench.expect(3, 300, masks=[None])
    bench.observe(4, 350, masks=[88])
    assert bench.unsettled == 300, "what is not masked differs"


# ── a re-snapshot in mid-stream ───────────────────────────────────────────────────────────────────────────────────────────────


def test_trap_3_a_re_snapshot_of_known_rows_opens_nothing_and_regresses_nothing() -> None:
    """Debezium repeats the table as reads, at old and at new positions, behind the newest write as well."""
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 150)
    bench.expect(2, 200)
    bench.observe(2, 250)
    for place, value in ((0, 1), (1, 1), (7, 2), (8, 2)):
        bench.expect(value, 300, operation=Operation.SNAPSHOT, place=place)
    bench.streams(300 + 10 * LATE)
    assert bench.suspects == []
    assert bench.unsettled is None
    assert bench.status.counters.expected == 2
    assert bench.status.counters.snapshot_reads["expected"] == 2, "those at old positions are repetitions"


def test_trap_3_a_re_snapshot_of_rows_that_nobody_knew_opens_nothing() -> None:
    bench = Bench()
    for number in range(20):
        bench.expect(number, 100, key=b"row-%d" % number, operation=Operation.SNAPSHOT)
    bench.streams(100 * LATE)
    assert bench.suspects == []
    assert (bench.status.counters.expected, bench.status.pending) == (0, 0)


def test_trap_3_an_open_write_is_not_closed_by_a_snapshot_read_of_the_source() -> None:
    bench = Bench()
    bench.expect(1, 100)
    bench.expect(1, 200, operation=Operation.SNAPSHOT)
    suspect = only(bench.streams(100 + LATE))
    assert (suspect.reason, suspect.opening.event_time) == (Reason.UNSATISFIED, START + 100)


def test_trap_3_a_write_that_the_snapshot_had_seen_is_still_asked_for() -> None:
    """The snapshot stands at a later position than a write which the topic shows only after it: no repetition of anything."""
    bench = Bench()
    bench.expect(1, 50, place=1)
    bench.observe(1, 60)
    bench.expect(2, 300, operation=Operation.SNAPSHOT, place=150)
    bench.expect(2, 100, place=100)
    suspect = only(bench.streams(300 + LATE))
    assert suspect.opening.major == 100
    fresh = Bench()
    fresh.expect(2, 300, operation=Operation.SNAPSHOT, place=150)
    fresh.expect(2, 100, place=100)
    assert only(fresh.streams(300 + LATE)).opening.major == 100


def test_trap_3_a_snapshot_read_explains_what_the_target_showed_and_no_more() -> None:
    bench = Bench()
    bench.observe(5, 100)
    bench.expect(5, 150, operation=Operation.SNAPSHOT)
    bench.streams(100 + 2 * LATE)
    assert bench.suspects == []
    bench.observe(6, 5_000)
    assert only(bench.streams(5_000 + LATE)).reason == Reason.UNEXPLAINED


# ── the age of a difference ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_trap_6_a_hot_row_that_never_arrives_is_found_at_the_age_of_its_first_write() -> None:
    """A plain reset at each event would hide it for ever: it is written every half grace, and the target shows nothing."""
    bench = Bench()
    at = 0
    found: list[Said] = []
    while not found and at < 20 * GRACE_MS:
        bench.expect(at, at)
        at += GRACE_MS // 2
        found = bench.streams(at)
    suspect = only(found)
    assert (suspect.opening.event_time, suspect.due) == (START, START + GRACE_MS)
    assert suspect.newest_expected is not None
    assert suspect.newest_expected.event_time > suspect.opening.event_time
    assert at <= GRACE_MS + GRACE_MS, "found at once, although it kept on moving"


def test_trap_6_a_hot_row_that_makes_progress_is_no_old_gap() -> None:
    """It is never equal to the source for a thousand writes: one version behind at every look, and never late."""
    bench = Bench(pipeline(history=8))
    at = 0
    for number in range(1_000):
        bench.expect(number, at)
        if number:
            bench.observe(number - 1, at + 10)
        at += GRACE_MS - 100
        assert bench.streams(at) == []
    assert bench.status.counters.settled + bench.status.counters.superseded == 999
    assert bench.unsettled is not None
    assert bench.unsettled >= at - GRACE_MS, "and consistent-through keeps up with it"


def test_trap_6_progress_moves_the_age_to_the_oldest_version_that_is_still_unsatisfied() -> None:
    bench = Bench()
    for number in range(5):
        bench.expect(number, number * 500)
    bench.observe(2, 1_600)
    assert bench.unsettled == 1_500
    assert only(bench.streams(1_500 + LATE)).opening.event_time == START + 1_500


def test_the_target_is_wrong_since_it_was_overwritten_whatever_is_written_afterwards() -> None:
    """Consistent-through must not step over the stretch between the stranger's write and the next one of the source."""
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 150)
    bench.observe(99, 3_000)
    assert bench.unsettled == 3_000
    bench.expect(2, 5_000)
    assert bench.unsettled == 3_000
    suspect = only(bench.streams(5_000 + LATE))
    assert (suspect.opening.event_time, suspect.since) == (START + 5_000, START + 3_000)
    bench.observe(2, 9_000)
    assert bench.unsettled is None


def test_a_strangers_write_that_is_read_late_holds_its_own_time() -> None:
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 150)
    bench.expect(2, 5_000)
    bench.observe(99, 3_000)
    assert bench.unsettled == 3_000
    bench.restart()
    assert bench.unsettled == 3_000
    bench.observe(2, 5_100)
    assert bench.unsettled is None


# ── what is expected now ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", [Outcome.CLEARED, Outcome.GAP, Outcome.UNVERIFIABLE])
def test_trap_5_a_verdict_clears_its_version_and_never_the_key(outcome: Outcome) -> None:
    """Compare-and-clear: a write that came while the verdict was on its way is still asked for."""
    bench = Bench()
    bench.expect(1, 100)
    suspect = only(bench.streams(100 + LATE))
    bench.expect(2, 3_000)
    bench.verdict(suspect, outcome)
    later = only(bench.streams(3_000 + LATE))
    assert (later.opening.event_time, later.id != suspect.id) == (START + 3_000, True)


def test_a_verdict_that_was_read_before_a_write_of_the_target_does_not_excuse_it() -> None:
    """Raised, overwritten, raised again; then comes the answer to the first raise, which never saw the stranger's write."""
    spec = pipeline(confirm_again_seconds=10.0)
    bench = Bench(spec)
    bench.expect(1, 100)
    bench.observe(7, 120)
    suspect = only(bench.streams(100 + LATE))
    bench.observe(8, 11_000)
    again = only(bench.streams(100 + LATE + 10_000))
    assert (again.id, again.raised_again) == (suspect.id, True)
    bench.verdict(suspect, Outcome.CLEARED)
    assert only(bench.streams(30_000)).opening.event_time == START + 11_000


def test_trap_8_a_row_that_is_never_equal_at_any_look_settles_by_version() -> None:
    """`match: version`: the target is at or above what is expected, whatever it shows at the instant of a look."""
    bench = Bench(pipeline(match=Match.VERSION))
    at = 0
    for number in range(0, 400, 2):
        bench.expect(number, at, version=number)
        bench.observe(number + 1, at + 10, version=number + 1)
        bench.expect(number + 1, at + 5, version=number + 1)
        at += GRACE_MS // 3
        assert bench.streams(at) == []
    bench.streams(at + 5 * LATE)
    assert bench.suspects == []
    assert bench.unsettled is None


def test_trap_8_a_row_that_matched_and_diverged_again_between_two_looks_is_settled() -> None:
    """By digest: each version was shown once. No look ever finds both sides equal, and no write is lost."""
    bench = Bench()
    at = 0
    for number in range(300):
        bench.expect(number, at)
        bench.observe(number, at + 20)
        bench.expect(10_000 + number, at + 30)
        assert bench.streams(at + 40) == []
        assert bench.unsettled is not None
        bench.observe(10_000 + number, at + 50)
        at += GRACE_MS // 2
    bench.streams(at + 5 * LATE)
    assert bench.suspects == []
    assert bench.status.counters.settled == 600


def test_trap_8_a_version_below_the_expected_one_settles_nothing() -> None:
    bench = Bench(pipeline(match=Match.VERSION))
    bench.expect(5, 100, version=5)
    bench.observe(5, 110, version=4)
    suspect = only(bench.streams(100 + LATE))
    assert suspect.newest_expected is not None
    assert suspect.newest_expected.version == 5


# ── windows ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_trap_37_no_unmatched_row_before_both_streams_passed_its_due_time() -> None:
    """Left joins emitted spurious rows before grace had elapsed: in stream time of one side, or of a clock."""
    bench = Bench()
    bench.expect(1, 1_000)
    due = 1_000 + GRACE_MS
    for source, target in ((10**9, due), (due - 1, 10**9), (10**9, 0), (0, 10**9)):
        each = Bench()
        each.expect(1, 1_000)
        assert each.streams(1_000, source=source, target=target) == []
    assert bench.streams(due, source=due, target=due) == [], "passed is more than reached"
    assert only(bench.streams(due, source=due, target=due + 1)).due == START + due


def test_trap_37_what_arrives_after_it_was_raised_takes_the_suspicion_back() -> None:
    bench = Bench()
    bench.expect(1, 1_000)
    only(bench.streams(1_000 + LATE))
    bench.observe(1, 1_000 + LATE + 5)
    assert (bench.status.raised, bench.unsettled) == (0, None)
    assert bench.status.counters.settled == 1
    assert bench.restart() == []


def test_trap_38_a_replay_of_old_topics_closes_no_window_before_its_event() -> None:
    """Ten days of records, read in a moment: Faust's wall clock would call every key stale at once."""
    bench = Bench()
    day = 86_400_000
    for number in range(0, 10 * day, day // 4):
        bench.expect(number, number)
        assert bench.streams(number) == []
        bench.observe(number, number + 500)
        assert bench.streams(number + 600) == []
    assert bench.suspects == []


def test_trap_38_an_outage_closes_no_window() -> None:
    """The target's feed is away for an hour while the source goes on; then its events come, all in time."""
    bench = Bench()
    hour = 3_600_000
    for number in range(0, hour, 60_000):
        bench.expect(number, number, key=b"row-%d" % number)
        assert bench.streams(number, target=0) == []
    for number in range(0, hour, 60_000):
        bench.observe(number, number + 500, key=b"row-%d" % number)
    assert bench.streams(hour + 10 * LATE) == []


@pytest.mark.parametrize("position", [NO_DELIVERY, 0])
def test_trap_38_due_times_are_there_again_after_a_restore(position: int) -> None:
    """Faust forgot to expire what it had restored: such a window never closed. Pending, in transit and raised keys are found."""
    spec = pipeline(delivery=position != NO_DELIVERY, confirm_again_seconds=10.0)
    bench = Bench(spec)
    bench.delivery = position
    bench.streams(1)
    bench.expect(1, 100, key=b"pending")
    bench.expect(1, 100, key=b"raised")
    if position != NO_DELIVERY:
        bench.streams(200 + LATE)
        assert (bench.suspects, bench.status.in_transit) == ([], 2)
    assert bench.restart() == []
    bench.delivery = 2 if position != NO_DELIVERY else NO_DELIVERY
    bench.streams(300 + LATE)
    found = [*bench.streams(300 + LATE), *bench.streams(400 + 3 * LATE)]
    said = {one.key for one in bench.suspects}
    assert said == {b"pending", b"raised"}, found
    assert {one.key for one in bench.restart() if isinstance(one, Suspect)} == said
    again = bench.streams(400 + 3 * LATE + 20_000)
    assert {one.key for one in again if isinstance(one, Suspect) and one.raised_again} == said


def test_lesson_10_a_pending_write_is_looked_at_again_without_any_traffic_on_its_key() -> None:
    """One event, then nothing but time: it was "pending" for ever, as nobody ever came back to it."""
    bench = Bench()
    bench.expect(1, 100)
    for at in range(200, GRACE_MS, 250):
        assert bench.streams(at) == []
    bench.restart()
    assert only(bench.streams(100 + LATE)).key == KEY
    assert bench.streams(100 + 2 * LATE) == [], "raised once, while somebody may be confirming it"
    again = only(bench.streams(100 + LATE + 300_000))
    assert again.raised_again, "and again when nobody answered"


# ── looked-up documents ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lesson_33_a_document_newer_than_its_event_is_not_called_unexplained() -> None:
    """The look-up shows a version that the source's feed has not brought yet: its time is the source's, not the target's."""
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(3, 150, operation=Operation.LOOKED_UP)
    assert bench.streams(200, source=140, target=200 + 10 * LATE) == [], "the source is not read as far: v3 may be on its way"
    bench.expect(2, 110)
    bench.expect(3, 120)
    bench.streams(200 + 10 * LATE)
    assert bench.suspects == []
    assert bench.unsettled is None


def test_lesson_33_a_look_up_of_one_version_settles_no_other() -> None:
    """Of three versions the looked-up document shows the second: the third is still to come, and is found when it does not."""
    bench = Bench()
    for number in (1, 2, 3):
        bench.expect(number, number * 100)
    bench.observe(2, 350, operation=Operation.LOOKED_UP)
    assert bench.status.counters.settled == 1
    assert bench.unsettled == 300
    assert only(bench.streams(300 + LATE)).opening.event_time == START + 300


def test_lesson_33_a_document_that_no_version_explains_is_found_although_it_was_looked_up() -> None:
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 150)
    bench.observe(77, 200, operation=Operation.LOOKED_UP)
    assert only(bench.streams(200 + LATE)).reason == Reason.UNEXPLAINED


def test_lesson_33_a_source_that_looks_up_expects_what_it_saw_and_the_older_state_settles_nothing() -> None:
    bench = Bench()
    bench.expect(2, 100, operation=Operation.LOOKED_UP)  # the event of version 1, with the document of version 2
    bench.observe(1, 150)
    assert bench.unsettled == 100
    bench.expect(2, 160)
    bench.observe(2, 170)
    bench.streams(200 + 10 * LATE)
    assert bench.suspects == []
    assert bench.unsettled is None


# ── what was deleted while nobody read ────────────────────────────────────────────────────────────────────────────────────────


def test_trap_36_a_delete_whose_records_were_compacted_away_is_a_hole_and_not_nothing() -> None:
    """Ingest came back after delete.retention.ms: neither delete nor tombstone is in the topic any more."""
    bench = Bench()
    bench.expect(1, 100)
    bench.observe(1, 150)
    bench.streams(1_000)
    bench.pass_over(Side.EXPECTED, 4)
    bench.streams(90_000, lost=[Lost(1, 5, 0, 0, "ingest_hole")])
    (hole,) = bench.holes
    assert (hole.side, hole.time_from) == (Side.EXPECTED, START + 1_000)
    assert bench.status.holes[-1] == hole, "it holds consistent-through until a sweep has compared both sides, orphans included"
    assert [one.id for one in bench.status.holes if one.time_from] == [hole.id]


def test_a_lost_range_is_unsettled_from_the_watermark_on_and_not_from_its_append_time() -> None:
    """A record that cannot be parsed was committed before it was appended: only the watermark says how long before."""
    bench = Bench()
    bench.streams(1_000)
    bench.pass_over(Side.EXPECTED, 1)
    bench.streams(50_000, lost=[Lost(0, 1, START + 40_000, START + 40_000, "unparsable")])
    (hole,) = bench.holes
    assert (hole.time_from, hole.time_to) == (START + 1_000, START + 40_000)


# ── records of gapwatch.events that are gone ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["unreadable", "absent"])
def test_a_missing_record_of_events_is_a_hole_although_later_ranges_pass_over_it(how: str) -> None:
    """The control record after a lost section covers its range: without a word, the write in it would never be asked for."""
    bench = Bench()
    bench.streams(500)
    bench.section(Side.EXPECTED, 1, 600)  # was in the record that is gone
    if how == "unreadable":
        said = bench.apply(None)
    else:
        states = [bench.state(Side.EXPECTED, 1_000), bench.state(Side.OBSERVED, 1_000)]
        said = bench.apply(Control(FORMAT, "one", START + 1_000, states, []), skip=1)
    holes = [one for one in said if isinstance(one, Hole)]
    assert {(one.side, one.time_from) for one in holes} == {(0, START + 500), (1, START + 500)}
    bench.streams(2_000)
    bench.restart()
    assert {hole.id for hole in holes} <= {hole.id for hole in bench.status.holes}


def test_a_complete_log_of_events_has_no_such_hole() -> None:
    bench = Bench()
    for at in range(100, 2_000, 100):
        bench.expect(at, at)
        bench.observe(at, at)
        bench.streams(at)
    assert bench.holes == []


def test_delivered_through_claims_nothing_of_writes_that_came_since_the_last_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Very many keys are surveyed only now and then: a write that is in transit since must hold it all the same."""
    monkeypatch.setattr(pipelinestate, "SURVEY_KEYS", 2)
    bench = Bench(pipeline(delivery=True))
    bench.delivery = 0
    for number in range(4):
        bench.expect(number, 100 + number, key=b"row-%d" % number)
    bench.delivery = 4
    bench.streams(1_000)
    assert bench.status.delivered_through == START + 1_000
    bench.expect(9, 1_500, key=b"late")
    bench.streams(5_000)
    assert bench.status.in_transit == 0, "not surveyed again"
    assert bench.status.delivered_through <= START + 1_500


def test_the_oldest_unsettled_time_between_two_surveys_is_never_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelinestate, "SURVEY_KEYS", 2)
    bench = Bench()
    for number in range(4):
        bench.expect(1, 3_000 + number, key=b"row-%d" % number)
    bench.expect(1, 100)
    bench.observe(1, 150)
    bench.expect(2, 5_000)
    assert bench.unsettled == 3_000
    bench.observe(99, 2_000)
    assert bench.unsettled == 2_000


def test_a_newer_write_in_transit_holds_delivered_through_behind_an_older_one_that_was_lost() -> None:
    """The sink had passed the first and lost it; the second is on its way: whoever waits for deliveries must wait for it."""
    bench = Bench(pipeline(delivery=True))
    bench.delivery = 0
    bench.expect(1, 100)
    bench.expect(2, 500)
    bench.delivery = 1
    bench.streams(9_000)
    assert (bench.status.delivered_through, bench.status.oldest_in_transit) == (START + 500, START + 500)
    assert bench.status.in_transit == 0, "the key itself is waiting for a write that the sink had passed"
    bench.delivery = 2
    bench.streams(9_500)
    assert (bench.status.delivered_through, bench.status.oldest_in_transit) == (START + 9_500, None)
