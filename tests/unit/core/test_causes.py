"""Causes that no fault of the target alone brings about: from what the stream said to what the gap says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gapwatch.core.confirm import Difference, Presence, Progress, Reading, Reads, WaitAndReadAgain, judge
from gapwatch.core.gaps import evidence
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.gap import Cause, Kind
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Side
from gapwatch.model.suspect import Suspect
from tests.property.test_hotpath import SPECS, Teller
from tests.simulation.world import MAPPING, PIPELINE, digest

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
ABSENT = Reading(presence=Presence.ABSENT)


def raised(*events: tuple[int, Operation, int, int, int]) -> tuple[Suspect, int]:
    """Return what is suspected after these expected events, each a section of its own, and when: so long after the first."""
    teller = Teller(0)
    matcher = KeyMatcher(0, 1, {PIPELINE: SPECS["plain"]}, fingerprints={PIPELINE: MAPPING}, life="one")
    began = teller.clock
    records = [teller.record(0), *(teller.record([(Side.EXPECTED, False, [event])]) for event in events)]
    records += [teller.record(step) for step in (1, 10_000)]
    for offset, record in enumerate(records):
        for said in matcher.apply(record, offset, teller.clock):
            if isinstance(said, Suspect):
                return said, said.target_watermark - began
    raise AssertionError("nothing was suspected")


def missing(source: bytes) -> Reads:
    there = Reading(presence=Presence.PRESENT, identity=source, revision="7")
    return Reads(before=there, target=ABSENT, after=there, differing=(), started_ms=1_000)


def proved(suspect: Suspect | None, reads: Reads) -> Difference:
    """Return the difference, after a second grace where the first reading asks for one."""
    verdict = judge(suspect, reads, Progress(), Match.DIGEST)
    if isinstance(verdict, WaitAndReadAgain):
        verdict = judge(suspect, reads, verdict.progress, Match.DIGEST, proven_by_wait=True)
    assert isinstance(verdict, Difference)
    return verdict


def places(suspect: Suspect | None, reads: Reads) -> list[tuple[Any, ...]]:
    rows = evidence(suspect, reads, {}, NOW, {})
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


def test_m2_a_write_that_its_sink_gave_up_is_dead_lettered_at_once() -> None:
    """The dead letter repeats the position of its write; nobody waits for a grace after it."""
    suspect, waited = raised((1, Operation.UPSERT, 1, 0, 3), (1, Operation.DEAD_LETTERED, 0, 0, 3))
    reads = missing(digest(0))
    assert proved(suspect, reads).cause is Cause.DEAD_LETTERED
    assert places(suspect, reads)[0] == ("expected", "src", 0, 0, None)
    assert waited < raised((1, Operation.UPSERT, 1, 0, 3))[1]


def test_m2_what_only_a_sweep_saw_has_no_known_cause() -> None:
    reads = missing(digest(0))
    assert proved(None, reads).cause is Cause.UNKNOWN
    assert places(None, reads) == READ
