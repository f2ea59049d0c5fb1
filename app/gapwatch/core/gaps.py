"""The life of a gap: opened, found again, changed, resolved. Pure; ``roles/repair`` stores what is returned here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import xxhash
from msgspec import structs
from msgspec.structs import replace

from gapwatch.core.confirm import WITH_FIELDS, Difference, Presence, Reads, evidence_of, evidence_of_sink, kind_of
from gapwatch.model.gap import Cause, Detector, Gap, Kind, Resolution, State
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Side
from gapwatch.model.suspect import GivenUp, Heard, Reason, Seen, Suspect

UNEXPLAINED: Final = frozenset({Cause.NEVER_WRITTEN, Cause.UNKNOWN})  # the sink may say why after the gap was opened
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
READ: Final = ("source", "target")  # sides of evidence that were read; the others are the stream's
REFUSED: Final = "repair refused: "  # how the note of a gap begins whose repair was refused


def gap_id(pipeline: str, key: bytes, opened_by: str) -> str:
    """Return the deterministic id of the gap that `opened_by` (a suspect's id, or a run's) opened for `key`."""
    parts = b"".join(len(part).to_bytes(4, "big") + part for part in (pipeline.encode(), key, opened_by.encode()))
    return "gap_" + xxhash.xxh3_128_hexdigest(parts)


def gap_id_in_order(pipeline: str, key: bytes, opened_by: str, now: datetime) -> str:
    """Return the id of a gap that no suspect raised: it begins with its time, so that many go to one place in their indexes.

    Nobody relies on its being the same once more: a key's open gap is found by the key.
    """
    return f"gap_{(now - EPOCH) // MICROSECOND:014x}{gap_id(pipeline, key, opened_by)[4:22]}"


def time_of(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@lru_cache(maxsize=1_024)  # what was read at once has one time
def time_text(milliseconds: int) -> str:
    return rfc3339(time_of(milliseconds))


def opened(
    *,
    pipeline: str,
    key: bytes,
    key_fields: Mapping[str, Any],
    difference: Difference,
    reads: Reads,
    suspect: Suspect | None,
    detector: Detector,
    opened_by: str,
    values: Mapping[str, Mapping[str, Any]],
    now: datetime,
    held_since: datetime | None = None,
    tables: Mapping[str, str] | None = None,
) -> Gap:
    """Return a new gap. ``values`` holds, per side, what ``evidence: values`` asks to show (else empty).

    ``tables``: the source's table by its topic, where there are several.
    """
    opening = suspect.opening if suspect else None
    return Gap(
        id=gap_id(pipeline, key, opened_by) if suspect else gap_id_in_order(pipeline, key, opened_by, now),
        pipeline=pipeline,
        key=key,
        key_fields=dict(key_fields),
        target_id=difference.target_ids[0] if difference.target_ids else None,
        kind=difference.kind,
        cause=difference.cause,
        state=State.OPEN,
        detector=detector,
        event_time=time_of(opening.event_time) if opening and opening.event_time else None,
        first_seen=now,
        confirmed_at=now,
        fields=difference.fields,
        evidence=tuple(evidence(suspect, reads, values, tables or {}, stale=difference.kind is Kind.STALE)),
        opened_by=(opening.side, opening.epoch, opening.major, opening.minor) if opening else None,
        held_since=time_of(suspect.since) if suspect and suspect.since else held_since,
    )


def found_again(known: Gap, latest: Gap) -> Gap:
    """Return an open gap as it stands after another finding of the same key: what is true now, since when it was first."""
    if latest.opened_by is None and _coarse(latest.kind) is _coarse(known.kind):
        # Two reads without the stream cannot tell stale from mismatch, nor undeleted from extra: what was proved stays.
        latest = replace(latest, kind=known.kind, cause=known.cause, evidence=known.evidence)
    elif latest.opened_by is None:  # what the stream showed is as true as before
        latest = replace(latest, evidence=(*_of_the_stream(known), *latest.evidence))
    again = latest.opened_by is not None and latest.opened_by != known.opened_by
    times = [time for time in (known.event_time, latest.event_time) if time is not None]
    return replace(
        known,
        kind=latest.kind,
        cause=known.cause if latest.cause is Cause.UNKNOWN else latest.cause,
        fields=latest.fields,
        target_id=latest.target_id or known.target_id,
        event_time=min(times, default=None),
        held_since=min((time for time in (known.held_since, latest.held_since) if time is not None), default=None),
        evidence=latest.evidence,
        occurrences=known.occurrences + (1 if again else 0),
        opened_by=latest.opened_by or known.opened_by,
        revision=known.revision + 1,
    )


def _of_the_stream(gap: Gap) -> list[dict[str, Any]]:
    return [row for row in gap.evidence if row["side"] not in READ]


def _coarse(kind: Kind) -> Kind:
    return {Kind.STALE: Kind.MISMATCH, Kind.UNDELETED: Kind.EXTRA}.get(kind, kind)


def reopened(known: Gap, latest: Gap) -> Gap:
    """Return a resolved gap that the same write opened once more."""
    return replace(
        latest,
        first_seen=known.first_seen,
        occurrences=known.occurrences + 1,
        note=known.note,
        revision=known.revision + 1,
    )


def changed(known: Gap, latest: Gap) -> bool:
    """Whether storing `latest` over `known` would say anything new."""
    kind = known.kind if latest.opened_by is None and _coarse(latest.kind) is _coarse(known.kind) else latest.kind
    return (known.kind, known.fields, known.target_id, known.opened_by) != (
        kind,
        latest.fields,
        latest.target_id or known.target_id,
        latest.opened_by or known.opened_by,
    )


def looks_changed(known: Gap, reads: Reads, match: Match) -> bool:
    """Whether stores that do not agree differ otherwise by now than a gap says: what was missing is there, and wrong."""
    kind = kind_of(None, reads, match)
    fields = reads.differing if kind in WITH_FIELDS else ()
    return _coarse(kind) is not _coarse(known.kind) or fields != known.fields


def explained(known: Gap, heard: Heard) -> Gap | None:
    """Return an open gap whose write the sink gave up, as it says only now; None where it means another, or that is known."""
    opening, time = known.opened_by, known.event_time
    if known.state is State.RESOLVED or known.cause not in UNEXPLAINED or opening is None or time is None:
        return None
    if opening[0] != Side.EXPECTED or not _is_meant(heard, opening[2:], time):
        return None
    dead = heard.given_up.operation == Operation.DEAD_LETTERED
    cause = Cause.DEAD_LETTERED if dead else Cause.REJECTED
    return replace(known, cause=cause, evidence=(*known.evidence, _sink_row(heard.given_up)), revision=known.revision + 1)


def told(suspect: Suspect, heard: Heard) -> Suspect | None:
    """Return a suspect that is under judgement with what the sink says of its write only now; None as for :func:`explained`."""
    opening = suspect.opening
    if suspect.given_up is not None or suspect.reason != Reason.UNSATISFIED:
        return None
    if not _is_meant(heard, (opening.major, opening.minor), time_of(opening.event_time)):
        return None
    dead = heard.given_up.operation == Operation.DEAD_LETTERED
    return structs.replace(suspect, reason=Reason.DEAD_LETTERED if dead else Reason.REJECTED, given_up=heard.given_up)


def _is_meant(heard: Heard, position: tuple[int, ...], time: datetime) -> bool:
    """Whether the sink had the write when it said so: it is the one that is named, or an older one."""
    said = heard.given_up
    if said.operation == Operation.DEAD_LETTERED:
        return position <= (said.major, said.minor) and time <= time_of(said.time)
    return time <= time_of(said.time + heard.skew)


def resolved(known: Gap, resolution: Resolution, now: datetime, *, note: str = "") -> Gap:
    return replace(
        known,
        state=State.RESOLVED,
        resolution=resolution,
        resolved_at=now,
        note=note or known.note,
        revision=known.revision + 1,
    )


def repairing(known: Gap) -> Gap:
    """Return an open gap that a backfill has in hand."""
    return replace(known, state=State.REPAIRING, revision=known.revision + 1)


def set_down(known: Gap, refused: str) -> Gap:
    """Return a gap that a backfill had in hand and did not resolve; ``refused`` says why, unless a person left a note."""
    note = f"{REFUSED}{refused}" if refused and (not known.note or known.note.startswith(REFUSED)) else known.note
    return replace(known, state=State.OPEN, note=note, revision=known.revision + 1)


def held_from(known: Gap, since: datetime) -> Gap | None:
    """Return an open gap whose target may have been wrong since an earlier time; None where it says as much already.

    One that knows no time at all holds everything.
    """
    times = [time for time in (known.event_time, known.held_since) if time is not None]
    if not times or min(times) <= since:
        return None
    return replace(known, held_since=since, revision=known.revision + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """For which state of the source row (its revision) a difference was proved, and when, in milliseconds."""

    revision: str
    at_ms: int


def proof_of(gap: Gap) -> Proof | None:
    """Return what a gap's evidence proves; None where the source's row was absent, or has no revision."""
    for row in gap.evidence:
        if row.get("side") == "source" and row.get("read") == Presence.PRESENT.value and row.get("position"):
            return Proof(revision=row["position"], at_ms=int(datetime.fromisoformat(row["time"]).timestamp() * 1000))
    return None


def by_hand(known: Gap, action: str, *, note: str, resolution: Resolution, now: datetime) -> Gap:
    """Return a gap as a person changed it: ``ack``, ``snooze`` or ``resolve``."""
    if action == "resolve":
        return resolved(known, resolution, now, note=note)
    state = {"ack": State.ACKNOWLEDGED, "snooze": State.SNOOZED}[action]
    return replace(known, state=state, note=note or known.note, revision=known.revision + 1)


def awakened(known: Gap) -> Gap:
    """Return a gap whose snooze is over: as it was found, and open."""
    return replace(known, state=State.OPEN, revision=known.revision + 1)


def resolution_of(known: Gap, reads: Reads, *, written_by_backfill: bool) -> Resolution:
    """Say how a gap whose key now agrees on both sides came to an end."""
    if written_by_backfill:
        return Resolution.BACKFILLED
    if Presence.EXEMPT in (reads.after.presence, reads.target.presence):
        return Resolution.SUPERSEDED
    if reads.after.presence is Presence.ABSENT and known.kind not in (Kind.EXTRA, Kind.UNDELETED):
        return Resolution.DELETED_AT_SOURCE
    return Resolution.LATE_ARRIVAL


def evidence(
    suspect: Suspect | None,
    reads: Reads,
    values: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, str],
    *,
    stale: bool = False,
) -> list[dict[str, Any]]:
    """Return evidence objects: what the stream showed, with offsets, and what the three reads found, with times.

    Where the pipeline declares versions, both sides' are in it; of a `stale` target also for how long it has been behind, as far
    as the stream knows.
    """
    rows = [_stream_row(seen, tables) for seen in _seen(suspect)]
    if suspect is not None and suspect.given_up is not None:
        rows.append(_sink_row(suspect.given_up))
    for side, reading in zip(READ, (reads.after, reads.target), strict=True):
        row: dict[str, Any] = {
            "side": side,
            "topic": None,
            "partition": None,
            "offset": None,
            "position": reading.revision,
            "time": time_text(reads.proven_ms),
            "read": reading.presence.value,
        }
        if reading.reason:  # by which rule it counts as absent
            row["reason"] = reading.reason
        if reading.version is not None:
            row["version"] = reading.version
        if stale and side == READ[1] and (since := _behind_since(suspect)):
            row["behind_seconds"] = round(max(0, reads.proven_ms - since) / 1000, 3)
        if reading.target_ids:
            row["target_ids"] = list(reading.target_ids)
        if reading.tables:
            row["tables"] = list(reading.tables)
        if values.get(side):
            row["values"] = dict(values[side])
        rows.append(row)
    return rows


def _behind_since(suspect: Suspect | None) -> int:
    """Return the time of the write that the target lacks, in milliseconds; 0 where nobody knows it."""
    if suspect is None:
        return 0
    return suspect.since or suspect.opening.event_time


def _seen(suspect: Suspect | None) -> list[Seen]:
    if suspect is None:
        return []
    candidates = (suspect.opening, suspect.newest_expected, suspect.newest_observed)
    unique: list[Seen] = []
    for seen in candidates:
        if seen is not None and seen not in unique:
            unique.append(seen)
    return unique


def _stream_row(seen: Seen, tables: Mapping[str, str]) -> dict[str, Any]:
    row = evidence_of(seen, Side(seen.side).name.lower())
    row["time"] = rfc3339(time_of(row.pop("time_ms")))
    if seen.feed in tables and seen.side == Side.EXPECTED:
        row["tables"] = [tables[seen.feed]]
    return row


def _sink_row(given_up: GivenUp) -> dict[str, Any]:
    said = evidence_of_sink(given_up)
    return said | {"time": rfc3339(time_of(said.pop("time_ms")))}


def tables_of(gap: Gap) -> list[str]:
    """Return the tables, of several, that hold the gap's row, or else held it as far as the stream knows."""
    if not any("tables" in row for row in gap.evidence):
        return []
    read = [table for row in gap.evidence if row.get("side") == "source" for table in row.get("tables", ())]
    seen = [table for row in gap.evidence if row.get("side") == "expected" for table in row.get("tables", ())]
    return list(dict.fromkeys(read or seen[-1:]))


def rfc3339(time: datetime) -> str:
    """Return `time` in UTC as RFC 3339 with milliseconds and ``Z``."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
