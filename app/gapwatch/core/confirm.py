"""From a suspect to a verdict: what three reads prove, and when to read again (``design.md`` 6).

Pure. ``roles/repair/confirmer.py`` reads source, target and source again, asks :func:`judge`, and stores what it says.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from gapwatch.model.gap import Cause, Kind
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Outcome, Side
from gapwatch.model.suspect import GivenUp, Reason, Seen, Suspect

SKIPPED = Cause.SKIPPED_BY_POLICY.value
OLD = "the stores take longer to answer than a difference may be old"
RETURNS_MAX = 3  # waits that a document which keeps changing, of a row that is gone, is given
WITH_FIELDS = frozenset({Kind.MISMATCH, Kind.STALE, Kind.AHEAD})  # differences that name fields
READS_MAX = 10  # attempts on a moving source before `superseded`, and counted failures before `unverifiable`


class Presence(Enum):
    """What a read found on one side."""

    PRESENT = "present"
    ABSENT = "absent"
    UNREAD = "unread"
    SEVERAL = "several"  # two or more target documents, or rows of several source tables, carry the key
    EXEMPT = "exempt"  # by the pipeline's rules the target may hold it or not: expired, or left the filter and ignored


class Reading(Struct, frozen=True, kw_only=True):
    """One side as read once, in canonical form.

    ``identity`` is digest and masks together, equal exactly when all mapped fields are. ``revision`` changes with every write
    of the record where the store has such a thing. ``version`` is the declared version column's value.
    """

    presence: Presence
    identity: bytes = b""
    revision: str | None = None
    version: int | None = None
    placeholder: bool = False  # the target holds Debezium's placeholder text in a mapped field
    target_ids: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()  # of a source with several, those that hold the key
    reason: str = ""


class Differ(Protocol):
    """Names the mapped target fields in which the source row and the target document differ (empty: they agree)."""

    def __call__(self) -> tuple[str, ...]: ...


class Reads(Struct, frozen=True, kw_only=True):
    """The three reads of one attempt, in order: source, target, source.

    By our clock: ``started_ms`` before the first one, ``proven_ms`` before the last one (what stood still did so until then at
    least), ``ended_ms`` after it (what it shows was committed by then).
    """

    before: Reading
    target: Reading
    after: Reading
    differing: tuple[str, ...]  # of `target` against `after`; empty when either is not PRESENT
    started_ms: int
    proven_ms: int
    ended_ms: int
    closing: bool = False  # the time that the target keeps the document is about to end: it may be gone already

    @property
    def unread(self) -> str:
        for reading in (self.before, self.target, self.after):
            if reading.presence is Presence.UNREAD:
                return reading.reason or "not read"
        return ""

    @property
    def source_stood_still(self) -> bool:
        return same_record(self.before, self.after)


def same_record(first: Reading, second: Reading) -> bool:
    """Whether two reads of one side show the same write of the record, not merely an equal one, where that can be told."""
    if first.presence is not second.presence:
        return False
    if first.presence not in (Presence.PRESENT, Presence.SEVERAL):
        return True
    if first.revision is not None and second.revision is not None:
        return first.revision == second.revision
    return first.identity == second.identity and first.version == second.version


class Progress(Struct, frozen=True, kw_only=True):
    """What is remembered of a suspect between attempts. ``baseline``, ``shown``: source and target when the wait began."""

    attempts: int = 0
    failures: int = 0
    baseline: Reading | None = None
    shown: Reading | None = None
    waiting_since_ms: int = 0


class Cleared(Struct, frozen=True, kw_only=True):
    reason: str  # late_arrival | no_change | never_present | in_agreement | skipped_by_policy


class Difference(Struct, frozen=True, kw_only=True):
    kind: Kind
    cause: Cause
    fields: tuple[str, ...]
    target_ids: tuple[str, ...] = ()


class WaitAndReadAgain(Struct, frozen=True, kw_only=True):
    """Read again once grace has passed since ``since_ms`` and delivered-through has passed it."""

    progress: Progress
    since_ms: int


class Retry(Struct, frozen=True, kw_only=True):
    """A side was not read: says nothing. Back off and try again."""

    progress: Progress
    reason: str


class Superseded(Struct, frozen=True, kw_only=True):
    pass


class Unverifiable(Struct, frozen=True, kw_only=True):
    reason: str


Judgement = Cleared | Difference | WaitAndReadAgain | Retry | Superseded | Unverifiable


def satisfied(reads: Reads, match: Match) -> bool:
    """Whether the target, as read, satisfies the source as read last."""
    source, target = reads.after.presence, reads.target.presence
    if Presence.UNREAD in (source, target):
        return False  # two sides without a field that differs, as one was not read, do not agree
    if Presence.EXEMPT in (source, target):
        return True
    if source is Presence.ABSENT or target is Presence.ABSENT:
        return source is target
    if Presence.SEVERAL in (source, target):
        return False
    if match is Match.PRESENCE:
        return True
    if match is Match.VERSION and (reads.after.version, reads.target.version) != (None, None):
        return reads.after.version == reads.target.version
    return not reads.differing  # also of two that have no version: there is nothing else to compare


def judge(
    suspect: Suspect | None,
    reads: Reads,
    progress: Progress,
    match: Match,
    *,
    others_were_read: bool = True,
    proven_by_wait: bool = False,
    is_old: bool = False,
) -> Judgement:
    """Say what the three reads of one attempt prove.

    Args:
        suspect: What the stream says; None when a sweep or a re-read of an open gap asks.
        reads: Source, target, source.
        progress: What is remembered from earlier attempts.
        match: The pipeline's match mode.
        others_were_read: Whether other keys of the unread store were read in this batch; only then a failure counts. Not where
            so many were read at once that it took too long.
        proven_by_wait: Whether grace and delivered-through have passed since ``progress.waiting_since_ms``.
        is_old: Whether so long has passed since the reads that a row may have come and gone, and be on its way.
    """
    if reads.unread:
        return _not_read(reads.unread, progress, counts=others_were_read)
    if satisfied(reads, match):
        return Cleared(reason=_why_cleared(suspect, reads))
    if reads.closing:  # nothing is proved until its end is surely past, or was moved by another write
        waiting = replace(progress, baseline=reads.after, waiting_since_ms=reads.ended_ms)
        return WaitAndReadAgain(progress=waiting, since_ms=reads.ended_ms)
    if not reads.source_stood_still:
        return _moved_on(reads, progress)
    if progress.baseline is not None:
        if not same_record(progress.baseline, reads.before) or _may_have_come_back(reads, progress):
            return _moved_on(reads, progress)
        if not proven_by_wait:
            return WaitAndReadAgain(progress=progress, since_ms=progress.waiting_since_ms)
    elif suspect is None or not _is_the_suspected_state(suspect, reads, match):
        return _moved_on(reads, progress)
    if is_old:
        return _not_read(OLD, progress, counts=others_were_read)
    return _difference(suspect, reads, match)


def _not_read(reason: str, progress: Progress, *, counts: bool) -> Judgement:
    failures = progress.failures + (1 if counts else 0)
    if failures >= READS_MAX:
        return Unverifiable(reason=reason)
    return Retry(progress=replace(progress, failures=failures), reason=reason)


def _moved_on(reads: Reads, progress: Progress) -> Judgement:
    """The source is not what it was: what stands there now must be given its own grace."""
    attempts = progress.attempts + 1
    if attempts >= READS_MAX:
        return Superseded()
    return WaitAndReadAgain(
        progress=replace(progress, attempts=attempts, baseline=reads.after, shown=reads.target, waiting_since_ms=reads.ended_ms),
        since_ms=reads.ended_ms,
    )


def _may_have_come_back(reads: Reads, progress: Progress) -> bool:
    """Whether the document changed while its row was absent whenever it was read: it may have come back and gone once more.

    A row that is gone has no date. What somebody else keeps writing is not waited for without end.
    """
    if reads.after.presence is not Presence.ABSENT or progress.shown is None or progress.attempts >= RETURNS_MAX:
        return False
    return not same_record(progress.shown, reads.target)


def _is_the_suspected_state(suspect: Suspect, reads: Reads, match: Match) -> bool:
    """Whether the source holds just the write that is due: then nothing younger can be on its way, and no wait is needed."""
    newest = suspect.newest_expected
    if newest is None:
        return False  # nothing is known of the row: it may have been written, or deleted, just now
    if suspect.opening.side == Side.EXPECTED and newest != suspect.opening:
        return False
    if newest.operation == Operation.DELETE or reads.after.presence is not Presence.PRESENT or not _was_dated(reads):
        return False  # a row that is gone has no date: it may have come back and gone once more since the delete that is known
    if match is Match.VERSION:
        return newest.version is not None and newest.version == reads.after.version
    if not equals_identity(newest.digest, reads.after.identity):
        return False
    # What the event did not carry, or what is compared within a tolerance, may have been written since: where the target shows
    # all that is known of the suspected write, the difference is a younger write's.
    return not equals_identity(newest.digest, reads.target.identity)


def last_covered(suspect: Suspect, outcome: Outcome) -> Seen:
    """Return the newest write that a verdict on this suspect closes.

    An agreement, and a gap, rest on a source that was read after the suspect was said: whatever the stream had shown of it by
    then is judged with it, one verdict for all of them. What says nothing of the source closes the one write that was late.
    """
    opening, newest = suspect.opening, suspect.newest_expected
    if outcome not in (Outcome.CLEARED, Outcome.GAP) or opening.side != Side.EXPECTED or newest is None:
        return opening
    return max(opening, newest, key=lambda seen: (seen.epoch, seen.major, seen.minor))


def _was_dated(reads: Reads) -> bool:
    """Whether the source tells one write of a row from the next; where it does not, only a wait proves that it stood still."""
    return reads.after.revision is not None or reads.after.version is not None


def equals_identity(known: bytes, read: bytes) -> bool:
    """Compare identities of 16-byte parts; a part of zeros in ``known`` was masked in its event and says nothing."""
    if len(known) != len(read) or not known:
        return False
    if known == read:
        return True
    blank = bytes(16)
    return all(known[at : at + 16] in (blank, read[at : at + 16]) for at in range(0, len(known), 16))


def _why_cleared(suspect: Suspect | None, reads: Reads) -> str:
    if Presence.EXEMPT in (reads.after.presence, reads.target.presence):
        return SKIPPED
    if suspect is None:
        return "in_agreement"
    newest, seen = suspect.newest_expected, suspect.newest_observed
    if newest is not None and newest.operation == Operation.DELETE and seen is None and reads.target.presence is Presence.ABSENT:
        return "never_present"
    if newest is not None and newest.digest and any(equals_identity(newest.digest, older) for older in suspect.older):
        return "no_change"
    return "late_arrival"


def _difference(suspect: Suspect | None, reads: Reads, match: Match) -> Difference:
    kind = kind_of(suspect, reads, match)
    return Difference(
        kind=kind,
        cause=cause_of(suspect, reads, kind),
        fields=reads.differing if kind in WITH_FIELDS else (),
        target_ids=reads.target.target_ids,
    )


def kind_of(suspect: Suspect | None, reads: Reads, match: Match) -> Kind:
    """Name the difference from the reads; only ``stale`` and ``undeleted`` need what the stream knows."""
    source, target = reads.after, reads.target
    if Presence.SEVERAL in (source.presence, target.presence):
        return Kind.DUPLICATE
    if source.presence is Presence.ABSENT:
        return Kind.UNDELETED if _deletion_is_known(suspect) else Kind.EXTRA
    if target.presence is Presence.ABSENT:
        return Kind.MISSING
    if source.version is not None and target.version is not None and source.version != target.version:
        return Kind.AHEAD if target.version > source.version else Kind.STALE
    if suspect is not None and any(equals_identity(older, target.identity) for older in suspect.older):
        return Kind.STALE
    return Kind.MISMATCH


def _deletion_is_known(suspect: Suspect | None) -> bool:
    """Whether the stream ever showed the source row: then the document was left over, not put there by somebody else."""
    return suspect is not None and suspect.newest_expected is not None


def cause_of(suspect: Suspect | None, reads: Reads, kind: Kind) -> Cause:
    """Class the cause by evidence; what no evidence names is ``unknown``."""
    if reads.target.placeholder and kind in (Kind.MISMATCH, Kind.STALE):
        return Cause.OVERWRITTEN
    if suspect is None or reads.after.presence is Presence.SEVERAL:
        return Cause.UNKNOWN
    if suspect.reason == Reason.DEAD_LETTERED:
        return Cause.DEAD_LETTERED
    if suspect.reason == Reason.REJECTED:
        return Cause.REJECTED
    if suspect.opening.side == Side.OBSERVED:
        return _cause_of_observed(suspect, kind)
    newest = suspect.newest_expected
    if newest is not None and not _shown_by_stream(newest, reads.after):
        return Cause.LOST_IN_STREAM
    return Cause.NEVER_WRITTEN


def _cause_of_observed(suspect: Suspect, kind: Kind) -> Cause:
    if kind is Kind.UNDELETED:
        return Cause.RESURRECTED
    if kind is Kind.DUPLICATE:
        return Cause.UNKNOWN  # the sink may have made it as well as anybody else
    if suspect.reason == Reason.REGRESSED or kind is Kind.STALE:
        return Cause.OVERWRITTEN
    return Cause.OUT_OF_BAND


def _shown_by_stream(newest: Seen, source: Reading) -> bool:
    if newest.operation == Operation.DELETE:
        return source.presence is Presence.ABSENT
    if source.presence is not Presence.PRESENT:
        return False
    return not newest.digest or equals_identity(newest.digest, source.identity)


def evidence_of(seen: Seen, side: str) -> dict[str, Any]:
    """Render one stream write as evidence that anyone can read back. ``time`` stays in milliseconds until it is shown."""
    return {
        "side": side,
        "topic": seen.feed,
        "partition": seen.partition,
        "offset": seen.offset,
        "position": f"{seen.major}/{seen.minor}",
        "epoch": seen.epoch,
        "operation": Operation(seen.operation).name.lower(),
        "time_ms": seen.event_time,
    }


def evidence_of_sink(said: GivenUp) -> dict[str, Any]:
    """Render what the sink said as evidence; ``position`` is that of the write which it names, where it names one."""
    return {
        "side": "sink",
        "topic": said.feed,
        "partition": said.partition,
        "offset": said.offset,
        "position": f"{said.major}/{said.minor}" if said.operation == Operation.DEAD_LETTERED else None,
        "operation": Operation(said.operation).name.lower(),
        "reason": said.reason or None,
        "time_ms": said.time,
    }
