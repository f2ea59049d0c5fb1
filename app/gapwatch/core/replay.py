"""Replay: a second driver of the matcher. Old records go in, what they say of a stretch of time comes out; nothing is stored.

Pure. The clock is the records' own, and what is said depends on them and on what was asked alone, so that it can be said again.
Every raised key is closed at once, as confirming would, so that its next write is judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from gapwatch.core.batches import packed
from gapwatch.core.gaps import rfc3339, time_of
from gapwatch.core.keys import KeyCodec
from gapwatch.core.matching import KeyMatcher
from gapwatch.core.reports import SCHEMA_VERSION, key_text, plain
from gapwatch.errors import UsageError
from gapwatch.model.pipeline import FieldSpec, Match, PipelineSpec
from gapwatch.model.stream import (
    FORMAT,
    Batch,
    Control,
    Operation,
    Outcome,
    PackedBatch,
    PackedSection,
    Side,
    VerdictSection,
)
from gapwatch.model.suspect import Hole, Reason, Seen, Suspect

EVER: Final = 1 << 62
LEAD_GRACES: Final = 2  # how many graces are read before a stretch, and after it
NAMED_MAX: Final = 1_000_000  # writes that one replay names
KEYS_MAX: Final = 1_000_000  # keys that one reconciliation reads
_NONE: Final = range(0)
BLIND: Final = frozenset({Reason.TOUCHED, Reason.MAPPING})  # the content is in no event, or cannot be compared: only reads tell


class Verdict(StrEnum):
    """What the streams say of a write that was late."""

    OPEN = "open"  # still so where reading ended
    LATE = "late"  # it, or what replaced it, was shown after it was due
    UNKNOWN = "unknown"  # its story begins before what was read, or no event holds its content


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Which writes are named: by event time in ``[time_from, time_to)``, milliseconds; left out: all.

    ``records``: by their offsets in these feed partitions instead; the times are then those between which such writes lie.
    """

    time_from: int = 0
    time_to: int = EVER
    records: Mapping[tuple[str, int], range] | None = None

    def holds(self, time: int) -> bool:
        return self.time_from <= time < self.time_to

    def names(self, write: Seen) -> bool:
        if self.records is None:
            return self.holds(write.event_time)
        return write.offset in self.records.get((write.feed, write.partition), _NONE)

    def chosen(self, section: PackedSection) -> npt.NDArray[np.bool_]:
        """Return which events of a section are named."""
        if self.records is None:
            column, first, last = section.event_times, self.time_from, self.time_to
        else:
            within = self.records.get((section.feed, section.feed_partition), _NONE)
            column, first, last = section.offsets, within.start, within.stop
        numbers = np.frombuffer(column, "<i8")
        return (numbers >= first) & (numbers < last)

    def touches(self, hole: Hole) -> bool:
        return hole.time_from < self.time_to and hole.time_to >= self.time_from


@dataclass(slots=True, kw_only=True)
class Named:
    """One late write. ``shown_at``: event time of the target's write that put it right; ``confirmed``: the recorded verdict."""

    suspect: Suspect
    unknown: bool
    shown_at: int | None = None
    confirmed: Outcome | None = None

    @property
    def verdict(self) -> Verdict:
        if self.unknown:
            return Verdict.UNKNOWN
        return Verdict.OPEN if self.shown_at is None else Verdict.LATE

    @property
    def order(self) -> tuple[int, bytes, int, int, int, int]:
        opening = self.suspect.opening
        return (opening.event_time, self.suspect.key, opening.side, opening.epoch, opening.major, opening.minor)


@dataclass(slots=True, kw_only=True)
class Found:
    """What a replay said, of one partition or of all.

    ``counts`` are of everything that was read, lead-in and lead-out too: ``expected = settled + superseded + closed + waiting``.
    ``undecided``: keys of the stretch that could not be judged before the log ended, and records that could not be read before
    any feed had spoken (``unread``): no hole stands for them. ``complete``: time passed the lead-out.
    """

    named: list[Named] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    undecided: int = 0
    unread: int = 0
    complete: bool = True
    keys: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Room:
    """What all partitions of one question name and collect together: they are replayed by turns."""

    named: int = 0
    keys: int = 0


class Replay:
    """Drives the matcher of one partition over records that were read again.

    Args:
        spec: The pipeline as it shall judge (:func:`as_asked`).
        fingerprint: Of the mapping whose digests the records hold.
        stretch: Which writes are named.
        partition: Of ``gapwatch.events``; 0 of 1 where raw topics are read.
        partitions: How many there are.
        grace_ms: The grace of a what-if; None: what the records say was in force.
        until: The time (ms) that both watermarks must pass before nothing more is read; EVER: the caller says when.
        whole: The source's log is read from its first record, so that every story begins in what is read.
        led_in: Records from before the stretch are read, so that every feed has spoken by then: of one whose first word comes
            later, what lies before it is missing, and not merely left out.
        keys_max: How many keys of the stretch are collected at most, of all partitions; 0: none are.
        room: That of all partitions; None: this is the only one.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        fingerprint: int,
        stretch: Stretch,
        *,
        partition: int = 0,
        partitions: int = 1,
        grace_ms: int | None = None,
        until: int = EVER,
        whole: bool = False,
        led_in: bool = False,
        keys_max: int = 0,
        room: Room | None = None,
    ) -> None:
        self._id = spec.id
        self._stretch = stretch
        self._grace_ms = grace_ms
        self._until = until
        self._whole = whole
        self._led_in = led_in
        self._keys_max = keys_max
        self._room = room or Room()
        start = 0 if whole else 1  # what has no beginning in what is read is no baseline's: it is unknown
        self._matcher = KeyMatcher(
            partition, partitions, {spec.id: spec}, fingerprints={spec.id: fingerprint}, life="replay", start=start
        )
        self._named: dict[tuple[bytes, int, tuple[int, int, int]], Named] = {}
        self._unshown: dict[bytes, list[Named]] = {}
        self._holes: dict[str, Hole] = {}
        self._begun: set[tuple[int, str, int]] = set()  # feed partitions whose beginning was said
        self._keys: set[bytes] = set()
        self._last = -1
        self._applied = -1
        self._unread = 0  # records of the stretch before which no feed had spoken: of none is it said that they are missing
        self.finished = False

    def take(self, record: PackedBatch | Batch | Control | None, offset: int, append_time: int) -> None:
        """Take the next record, as :meth:`KeyMatcher.apply` does. What lies before the first one is no matter, a gap later is."""
        passed_over = offset - self._last - 1 if self._last >= 0 else 0
        self._last = offset
        if isinstance(record, Control):
            self._apply(self._with_grace(record), passed_over, append_time)
            self.finished = self._is_finished()
        elif record is None:
            self._apply(None, passed_over, append_time)
        else:
            batch = packed(record) if isinstance(record, Batch) else record
            sections = [section for section in batch.sections if section.pipeline == self._id]
            self._collect(sections)
            letters = [letter for letter in batch.letters if letter.pipeline == self._id]
            self._apply(PackedBatch(FORMAT, sections, [], letters), passed_over, append_time)
            self._see_shown(key for section in sections for key in section.keys)
            self._note(batch.verdicts)

    def found(self) -> Found:
        """Return what was said so far."""
        self._see_shown(list(self._unshown))
        self._see_forgotten()
        (status,) = self._matcher.status("replay", 0)
        counters = status.counters
        return Found(
            named=list(self._named.values()),
            holes=list(self._holes.values()),
            counts={
                "expected": counters.expected,
                "observed": counters.observed,
                "settled": counters.settled,
                "superseded": counters.superseded,
                "closed": counters.cleared,
                "waiting": self._matcher.open_writes(self._id),
            },
            undecided=self._waiting() + self._unread + (0 if self.finished else self._matcher.buffered(self._id)),
            unread=self._unread,
            complete=self.finished or self._until == EVER,
            keys=self._keys,
        )

    def _with_grace(self, control: Control) -> Control:
        if self._grace_ms is None:
            return control
        times = [msgspec.structs.replace(one, grace=self._grace_ms) for one in control.pipelines]
        return msgspec.structs.replace(control, pipelines=times)

    def _apply(self, record: PackedBatch | Control | None, passed_over: int, append_time: int) -> None:
        self._applied += 1 + passed_over
        suspects: list[Suspect] = []
        told = False
        for one in self._matcher.apply(record, self._applied, append_time):
            if isinstance(one, Suspect):
                self._name(one)
                suspects.append(one)
            elif isinstance(one, Hole):
                told = True
                if self._stretch.touches(one) and (self._led_in or not self._is_the_beginning(one)):
                    self._holes[one.id] = one
        if record is None and not told and append_time >= self._stretch.time_from:
            self._unread += 1
        if suspects:
            self._applied += 1
            self._matcher.apply(PackedBatch(FORMAT, [], [_closing(self._id, suspects)]), self._applied, append_time)

    def _is_the_beginning(self, hole: Hole) -> bool:
        """Whether the hole is what lies before the first record that was read of a feed: the first one that it has."""
        feed = (hole.side, hole.feed, hole.feed_partition)
        if hole.time_from or hole.reason != "ingest_hole" or not hole.feed or feed in self._begun:
            return False
        self._begun.add(feed)
        return True

    def _name(self, suspect: Suspect) -> None:
        opening = suspect.opening
        if not self._stretch.names(opening):
            return
        story_is_short = opening.side == Side.OBSERVED and suspect.newest_expected is None and not self._whole
        named = Named(suspect=suspect, unknown=story_is_short or suspect.reason in BLIND)
        self._room.named += 1
        if self._room.named > NAMED_MAX:
            raise UsageError(f"More than {NAMED_MAX:,} writes are late in this range.", remedy="Ask for a shorter one, or sweep.")
        self._named[suspect.key, opening.side, (opening.epoch, opening.major, opening.minor)] = named
        self._unshown.setdefault(suspect.key, []).append(named)

    def _see_shown(self, keys: Iterable[bytes]) -> None:
        """Note which named writes the target shows by now, they or what replaced them."""
        if not self._unshown:
            return
        for key in self._unshown.keys() & set(keys):
            shown_at = self._matcher.shown_at(self._id, key)
            if shown_at is not None:
                for named in self._unshown.pop(key):
                    named.shown_at = shown_at

    def _see_forgotten(self) -> None:
        """Of a key that made room for others (`settled_keys_max`) nobody has seen whether the target showed it later."""
        for key, some in self._unshown.items():
            for named in some:
                if named.suspect.newest_expected is not None and not self._matcher.knows(self._id, key):
                    named.unknown = True

    def _note(self, sections: Sequence[VerdictSection]) -> None:
        for section in sections:
            if section.pipeline != self._id:
                continue
            for key, side, token, outcome in zip(section.keys, section.sides, section.tokens, section.outcomes, strict=True):
                named = self._named.get((key, side, (token[0], token[1], token[2])))
                if named is not None:
                    named.confirmed = Outcome(outcome)

    def _collect(self, sections: Sequence[PackedSection]) -> None:
        if not self._keys_max:
            return
        known = len(self._keys)
        for section in sections:
            chosen = self._stretch.chosen(section)
            chosen &= np.frombuffer(section.operations, np.uint8) != Operation.SNAPSHOT
            self._keys.update(section.keys[number] for number in np.flatnonzero(chosen).tolist())
        self._room.keys += len(self._keys) - known
        if self._room.keys > self._keys_max:
            raise UsageError(
                f"More than {self._keys_max:,} keys were written in this range.",
                remedy="Reconcile a shorter one, or start a sweep.",
            )

    def _waiting(self) -> int:
        return self._matcher.waiting(self._id, self._stretch.time_from, self._stretch.time_to)

    def _is_finished(self) -> bool:
        times = self._matcher.times(self._id)
        passed = min(times.source, times.target - 1, times.source_caught_up) >= self._until
        return passed and not self._waiting()


def _closing(pipeline: str, suspects: Sequence[Suspect]) -> VerdictSection:
    openings = [suspect.opening for suspect in suspects]
    return VerdictSection(
        pipeline=pipeline,
        keys=[suspect.key for suspect in suspects],
        sides=bytes(opening.side for opening in openings),
        tokens=[(opening.epoch, opening.major, opening.minor) for opening in openings],
        outcomes=bytes([Outcome.CLEARED]) * len(suspects),
    )


def joined(parts: Iterable[Found]) -> Found:
    """Return what several partitions said as one, in one order."""
    whole = Found()
    for part in parts:
        whole.named += part.named
        whole.holes += part.holes
        whole.undecided += part.undecided
        whole.unread += part.unread
        whole.complete = whole.complete and part.complete
        whole.keys |= part.keys
        for name, count in part.counts.items():
            whole.counts[name] = whole.counts.get(name, 0) + count
    whole.named.sort(key=lambda named: named.order)
    whole.holes = sorted({hole.id: hole for hole in whole.holes}.values(), key=lambda hole: (hole.time_from, hole.id))
    return whole


def as_asked(
    spec: PipelineSpec, *, grace_ms: int | None = None, tolerances: Mapping[str, Decimal] | None = None, recompiled: bool = False
) -> PipelineSpec:
    """Return the pipeline with what a what-if changes. ``recompiled``: digests are made anew, so that any field may be changed.

    Raises UsageError for a field that does not exist, is not compared, or that the records hold as a digest only.
    """
    wanted = dict(tolerances or {})
    known = {one.target: one for one in spec.fields}
    if unknown := wanted.keys() - known.keys():
        raise UsageError(f"Pipeline {spec.id} maps no field {min(unknown)!r}.", remedy=f"Fields: {', '.join(known)}.")
    if wanted and spec.match is not Match.DIGEST:
        raise UsageError(
            f"Pipeline {spec.id} matches by {spec.match.value}: no field is compared, and a tolerance changes nothing.",
            remedy="Leave --tolerance out.",
        )
    for name in sorted(wanted):
        if known[name].tolerance is None and not recompiled:
            raise UsageError(
                f"Field {name} has no tolerance in the configuration: the events hold its digest, not its value.",
                remedy="Replay the raw topics: --of raw.",
            )

    def as_wanted(fields: Iterable[FieldSpec]) -> tuple[FieldSpec, ...]:
        return tuple(replace(one, tolerance=wanted.get(one.target, one.tolerance)) for one in fields)

    tables = tuple(replace(table, fields=as_wanted(table.fields)) for table in spec.source.tables)
    seconds = spec.grace_seconds if grace_ms is None else grace_ms / 1000
    return replace(spec, fields=as_wanted(spec.fields), source=replace(spec.source, tables=tables), grace_seconds=seconds)


# what is shown


def named_record(named: Named, codec: KeyCodec) -> dict[str, Any]:
    """Return one named write as users see it."""
    opening = named.suspect.opening
    fields = codec.fields(named.suspect.key)
    return {
        "key": plain(fields),
        "key_text": key_text(fields),
        "verdict": named.verdict.value,
        "reason": named.suspect.reason,
        "side": Side(opening.side).name.lower(),
        "operation": Operation(opening.operation).name.lower(),
        "event_time": rfc3339(time_of(opening.event_time)),
        "due": rfc3339(time_of(named.suspect.due)),
        "shown_at": rfc3339(time_of(named.shown_at)) if named.shown_at is not None else None,
        "confirmed": named.confirmed.name.lower() if named.confirmed is not None else None,
        "topic": opening.feed,
        "partition": opening.partition,
        "offset": opening.offset,
        "epoch": opening.epoch,
        "position": f"{opening.major}/{opening.minor}",
    }


def hole_record(hole: Hole) -> dict[str, Any]:
    return {
        "side": Side(hole.side).name.lower(),
        "topic": hole.feed,
        "partition": hole.feed_partition,
        "time_from": rfc3339(time_of(hole.time_from)),
        "time_to": rfc3339(time_of(hole.time_to)),
        "reason": hole.reason,
    }


def found_record(found: Found, codec: KeyCodec, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of it as one object; `asked` says what was asked."""
    verdicts = [named.verdict for named in found.named]
    return {
        "schema_version": SCHEMA_VERSION,
        **asked,
        "complete": found.complete,
        "undecided": found.undecided,
        "verdicts": {verdict.value: verdicts.count(verdict) for verdict in Verdict},
        "read": found.counts,
        "holes": [hole_record(hole) for hole in found.holes],
        "named": [named_record(named, codec) for named in found.named],
    }
