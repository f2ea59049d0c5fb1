"""Causes that no fault of the target alone brings about: from what the stream said to what the gap says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from gapwatch.core.confirm import Difference, Presence, Progress, Reading, Reads, WaitAndReadAgain, judge
from gapwatch.core.gaps import evidence
from gapwatch.core.judging import EARLY_MAX
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.gap import Cause, Kind
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import FORMAT, Batch, Letter, Operation, Side
from gapwatch.model.suspect import Suspect
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
