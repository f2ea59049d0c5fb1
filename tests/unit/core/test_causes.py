"""Causes that no fault of the target alone brings about: from what the stream said to what the gap says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from msgspec import structs

from gapwatch.core.confirm import Difference, Presence, Progress, Reading, Reads, WaitAndReadAgain, judge
from gapwatch.core.gaps import evidence, explained, opened, told
from gapwatch.core.judging import EARLY_MAX
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.gap import Cause, Detector, Gap, Kind, State
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import FORMAT, Batch, Letter, Operation, Outcome, Side, VerdictSection
from gapwatch.model.suspect import Heard, Reason, Suspect
from tests.property.test_hotpath import SPECS, Life, Teller
from tests.simulation.world import MAPPING, PIPELINE, START, digest

ABSENT = Reading(presence=Presence.ABSENT)


def raised(*steps: Any, restored: bool = False) -> tuple[Suspect, int]:
    """Return what is suspected after these steps, and when: so long after the first.

    A step is an expected event (a section of its own), a letter, or a control record so many milliseconds later.
    """
    teller, life = Teller(0), Life(SPECS["plain"], event_by_event=False)
    began = teller.clock
    records = [partial(_record, teller, step) for step in (10, *steps, 50, 10_000)]
    for offset, make in enumerate(records):
        if restored:
            life.restart()
        for said in life.matcher.apply(make(), offset, teller.clock):
            if isinstance(said, Suspect):
                return said, said.target_watermark - began
    raise AssertionError("nothing was suspected")


def _record(teller: Teller, step: Any) -> Any:
    if isinstance(step, Letter):
        return Batch(FORMAT, [], [], [step])
    return teller.record(step if isinstance(step, int) else [(Side.EXPECTED, False, [step])])


def missing(source: bytes) -> Reads:
    there = Reading(presence=Presence.PRESENT, identity=source, revision="7")
    return Reads(before=there, target=ABSENT, after=there, differing=(), started_ms=1_000, proven_ms=1_000, ended_ms=1_000)


def proved(suspect: Suspect | None, reads: Reads) -> Difference:
    """Return the difference, after a second grace where the first reading asks for one."""
    verdict = judge(suspect, reads, Progress(), Match.DIGEST)
    if isinstance(verdict, WaitAndReadAgain):
        verdict = judge(suspect, reads, verdict.progress, Match.DIGEST, proven_by_wait=True)
    assert isinstance(verdict, Difference)
    return verdict


def places(suspect: Suspect | None, reads: Reads) -> list[tuple[Any, ...]]:
    rows = evidence(suspect, reads, {}, {})
    return [(row["side"], row["topic"], row["partition"], row["offset"], row.get("read")) for row in rows]


READ = [("source", None, None, None, "present"), ("target", None, None, None, "absent")]


def test_m2_a_write_that_the_topic_never_showed_is_lost_in_stream() -> None:
    suspect, _ = raised((1, Operation.UPSERT, 1, 0, 3))
    reads = missing(digest(5))
    verdict = proved(suspect, reads)
    assert (verdict.kind, verdict.cause) == (Kind.MISSING, Cause.LOST_IN_STREAM)
    assert places(suspect, reads) == [("expected", "src", 0, 0, None), *READ]


def test_m2_a_write_that_the_topic_showed_was_never_written() -> None:
    suspect, _ = raised((1, Operation.UPSERT, 1, 0, 3))
    reads = missing(digest(0))
    assert proved(suspect, reads).cause is Cause.NEVER_WRITTEN
    assert places(suspect, reads) == [("expected", "src", 0, 0, None), *READ]


def letter(operation: Operation, *, major: int = 0, time: int = START, place: int = 9) -> Letter:
    return Letter(PIPELINE, b"key1", operation, "said", 2, place, major, 0, time, "why")


WRITTEN = (1, Operation.UPSERT, 1, 0, 3)  # at position 1, at START + 10
DEAD = letter(Operation.DEAD_LETTERED, major=1, time=START + 15)
REFUSED = letter(Operation.REJECTED, time=START + 100)


@pytest.mark.parametrize("steps", [(WRITTEN, DEAD), (DEAD, WRITTEN), (DEAD, 5, WRITTEN), (WRITTEN, DEAD, DEAD)])
@pytest.mark.parametrize("restored", [False, True])
def test_m2_a_write_that_its_sink_gave_up_is_dead_lettered_at_once(steps: Sequence[Any], restored: bool) -> None:
    """The dead letter repeats the position of its write, before or after the source's feed shows it; nobody waits for a grace."""
    suspect, waited = raised(*steps, restored=restored)
    reads = missing(digest(0))
    assert proved(suspect, reads).cause is Cause.DEAD_LETTERED
    assert places(suspect, reads) == [("expected", "src", 0, 0, None), ("sink", "said", 2, 9, None), *READ]
    assert waited < raised(WRITTEN)[1]


@pytest.mark.parametrize("steps", [(WRITTEN, REFUSED), (REFUSED, WRITTEN), (REFUSED, 5, WRITTEN)])
@pytest.mark.parametrize("restored", [False, True])
def test_m2_a_write_that_the_target_refused_is_rejected_and_keeps_its_grace(steps: Sequence[Any], restored: bool) -> None:
    """An indexer may send it again: only what is still wrong after the grace is raised, with what the target had said."""
    suspect, waited = raised(*steps, restored=restored)
    reads = missing(digest(0))
    assert proved(suspect, reads).cause is Cause.REJECTED
    (said,) = [row for row in evidence(suspect, reads, {}, {}) if row["side"] == "sink"]
    assert (said["operation"], said["reason"], said["position"]) == ("rejected", "why", None)
    assert waited >= raised(WRITTEN)[1]


@pytest.mark.parametrize(
    "said",
    [
        letter(Operation.DEAD_LETTERED, major=0, time=START + 100),
        letter(Operation.REJECTED, time=START - 1),
        Letter(PIPELINE, b"key2", Operation.DEAD_LETTERED, "said", 2, 9, 1, 0, START + 10, ""),
        Letter("others", b"key1", Operation.DEAD_LETTERED, "said", 2, 9, 1, 0, START + 10, ""),
    ],
    ids=["older position", "older time", "another key", "another pipeline"],
)
def test_m2_what_the_sink_said_of_another_write_is_no_cause(said: Letter) -> None:
    suspect, waited = raised(WRITTEN, said)
    assert proved(suspect, missing(digest(0))).cause is Cause.NEVER_WRITTEN
    assert suspect.given_up is None
    assert waited == raised(WRITTEN)[1]


NEWER = (1, Operation.UPSERT, 2, 1, 500)  # at position 2


def told_after(*steps: Any, outcome: Outcome | None = Outcome.GAP, restored: bool = False) -> tuple[Suspect, list[Heard]]:
    """Return the suspect of a write that came late, and what is heard of it once these steps follow its verdict, if any."""
    teller, life = Teller(0), Life(SPECS["plain"], event_by_event=False)
    suspects: list[Suspect] = []
    heard: list[Heard] = []
    for offset, step in enumerate((10, WRITTEN, 50, 10_000, outcome, *steps)):
        if step is None:
            continue
        if restored:
            life.restart()
        of_verdict = isinstance(step, Outcome)
        record = Batch(FORMAT, [], [_verdict(suspects[0], step)]) if of_verdict else _record(teller, step)
        said = life.matcher.apply(record, offset, teller.clock)
        suspects += [one for one in said if isinstance(one, Suspect)]
        heard += [one for one in said if isinstance(one, Heard)]
    assert suspects[0].reason == Reason.UNSATISFIED
    return suspects[0], heard


def _verdict(suspect: Suspect, outcome: Outcome) -> VerdictSection:
    opening = suspect.opening
    token = (opening.epoch, opening.major, opening.minor)
    return VerdictSection(
        pipeline=PIPELINE, keys=[suspect.key], sides=bytes([opening.side]), tokens=[token], outcomes=bytes([int(outcome)])
    )


def a_gap_of(suspect: Suspect, *, cause: Cause | None = None, version: int = 0) -> Gap:
    reads = missing(digest(version))
    gap = opened(
        pipeline=PIPELINE,
        key=suspect.key,
        key_fields={"id": 1},
        difference=proved(suspect, reads),
        reads=reads,
        suspect=suspect,
        detector=Detector.STREAM,
        opened_by=suspect.id,
        values={},
        now=datetime(2026, 11, 28, tzinfo=UTC),
    )
    assert gap.cause is Cause.NEVER_WRITTEN
    return gap if cause is None else structs.replace(gap, cause=cause)


@pytest.mark.parametrize("outcome", [None, Outcome.GAP, Outcome.CLEARED], ids=["no verdict", "gap", "cleared"])
@pytest.mark.parametrize(("letter", "cause"), [(DEAD, Cause.DEAD_LETTERED), (REFUSED, Cause.REJECTED)], ids=["dead", "refused"])
@pytest.mark.parametrize("restored", [False, True])
def test_m2_what_the_sink_says_after_a_write_was_raised_is_told_to_its_gap(
    outcome: Outcome | None, letter: Letter, cause: Cause, restored: bool
) -> None:
    suspect, [heard] = told_after(letter, outcome=outcome, restored=restored)
    gap = a_gap_of(suspect)
    known = explained(gap, heard)
    assert known is not None
    assert (known.cause, known.kind, known.state, known.revision) == (cause, gap.kind, gap.state, gap.revision + 1)
    assert known.evidence[:-1] == gap.evidence
    assert [(row["side"], row["topic"], row["offset"], row["reason"]) for row in known.evidence[-1:]] == [
        ("sink", "said", 9, "why")
    ]
    assert explained(known, heard) is None, "it is known"
    judged = told(suspect, heard)
    assert judged is not None
    assert proved(judged, missing(digest(0))).cause is cause
    assert (judged.id, judged.opening) == (suspect.id, suspect.opening)
    assert told(judged, heard) is None


def test_m2_the_same_letter_is_told_under_one_name() -> None:
    _, heard = told_after(DEAD, DEAD, 10_000, DEAD)
    assert len(heard) == 3
    assert len({one.id for one in heard}) == 1
    _, [other] = told_after(letter(Operation.DEAD_LETTERED, major=1, time=START + 15, place=10))
    assert other.id != heard[0].id


@pytest.mark.parametrize(
    "said",
    [letter(Operation.DEAD_LETTERED, major=0, time=START + 15), letter(Operation.REJECTED, time=START - 100_000)],
    ids=["older position", "older time"],
)
def test_m2_what_the_sink_said_of_an_older_write_explains_no_gap(said: Letter) -> None:
    suspect, [heard] = told_after(said)
    assert explained(a_gap_of(suspect), heard) is None
    assert told(suspect, heard) is None


@pytest.mark.parametrize("cause", [Cause.LOST_IN_STREAM, Cause.OVERWRITTEN, Cause.REJECTED])
def test_m2_a_cause_that_was_proved_is_not_replaced(cause: Cause) -> None:
    suspect, [heard] = told_after(DEAD)
    assert explained(a_gap_of(suspect, cause=cause), heard) is None


def test_m2_a_gap_that_is_over_or_that_only_a_sweep_found_stays_as_it_is() -> None:
    suspect, [heard] = told_after(DEAD)
    gap = a_gap_of(suspect)
    assert explained(structs.replace(gap, state=State.RESOLVED), heard) is None
    assert explained(structs.replace(gap, opened_by=None), heard) is None
    assert explained(structs.replace(gap, event_time=None), heard) is None
    assert explained(structs.replace(gap, opened_by=(int(Side.OBSERVED), 1, 1, 0)), heard) is None


def test_m2_a_letter_in_time_needs_no_telling() -> None:
    teller, life = Teller(0), Life(SPECS["plain"], event_by_event=False)
    said: list[Any] = []
    for offset, step in enumerate((10, WRITTEN, DEAD)):
        said += life.matcher.apply(_record(teller, step), offset, teller.clock)
    assert not [one for one in said if isinstance(one, Heard)]


def test_m2_a_newer_write_is_not_what_the_sink_gave_up() -> None:
    _, heard = told_after(NEWER, DEAD)
    suspect, _ = raised(NEWER)
    assert [explained(a_gap_of(suspect, version=1), one) for one in heard] == [None]


def test_m2_a_dead_letter_moves_no_time_and_opens_nothing() -> None:
    """It stands for itself: neither does a side come further by it, nor is a key known that the source never showed."""
    teller = Teller(0)
    told, untold = (KeyMatcher(0, 1, {PIPELINE: SPECS["plain"]}, fingerprints={PIPELINE: MAPPING}, life="one") for _ in range(2))
    for offset, step in enumerate((0, DEAD, 10_000, 10_000)):
        record = _record(teller, step)
        other = Batch(FORMAT, [], []) if isinstance(record, Batch) else record
        assert told.apply(record, offset, teller.clock) == untold.apply(other, offset, teller.clock)
        assert told.status("one", 0) == untold.status("one", 0)


def test_letters_that_wait_for_their_writes_are_bounded_and_counted() -> None:
    teller = Teller(0)
    matcher = KeyMatcher(0, 1, {PIPELINE: SPECS["plain"]}, fingerprints={PIPELINE: MAPPING}, life="one")
    letters = [Letter(PIPELINE, b"%d" % n, Operation.DEAD_LETTERED, "said", 0, n, n, 0, START, "") for n in range(EARLY_MAX + 7)]
    matcher.apply(Batch(FORMAT, [], [], letters), 0, teller.clock)
    (status,) = matcher.status("one", teller.clock)
    assert status.counters.forgotten == 7
    assert b"said" in matcher.marker()
    matcher.apply(teller.record(10_000), 1, teller.clock)  # the source was read beyond all of them
    assert b"said" not in matcher.marker()


def test_m2_what_only_a_sweep_saw_has_no_known_cause() -> None:
    reads = missing(digest(0))
    assert proved(None, reads).cause is Cause.UNKNOWN
    assert places(None, reads) == READ
