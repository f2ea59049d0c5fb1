"""The records that users see: one JSON object per gap, pipeline, run and finding (``product.md`` 3). Changes only add fields.

Times are RFC 3339 in UTC; an empty value is None, never absent; lists and maps may be empty. Everything returned is made of
dict, list, str, int, float, bool and None only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from gapwatch.core.gaps import tables_of
from gapwatch.model.gap import AuditRow, FindingRecord, Gap, RepairRecord, Run
from gapwatch.model.view import FeedView, PipelineView, Totals

SCHEMA_VERSION = 1
TAKEN = ("source_keys", "target_keys", "keys", "records", "handled")  # counts that say how far a run has come
_PLAIN = frozenset({str, int, bool, type(None)})
_spaced = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes it anew each time
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_name = str.__str__  # of a StrEnum: its value, five times as fast as by ``value``
EVENTS = frozenset({"opened", "updated", "resolved", "acknowledged", "snoozed", "reopened", "repairing", "repair_refused"})


def rfc3339(time: datetime | None) -> str | None:
    """Return an aware `time` as RFC 3339 in UTC, as precise as it is (milliseconds at least), or None."""
    if time is None:
        return None
    assert time.tzinfo is not None, "times are aware"
    return _rfc3339(time if time.tzinfo is UTC else time.astimezone(UTC))


@lru_cache(maxsize=4_096)  # the gaps of one batch share their times
def _rfc3339(utc: datetime) -> str:
    return utc.isoformat(timespec="microseconds" if utc.microsecond % 1000 else "milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Return `value` made of JSON types only: exact decimals and odd floats as text, bytes in hex, times as RFC 3339."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return rfc3339(value if value.tzinfo else value.replace(tzinfo=UTC))
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(name): item if type(item) in _PLAIN else plain(item) for name, item in value.items()}
    if isinstance(value, AbstractSet):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)  # Decimal, UUID, ObjectId …: their own exact text


def _is_plain(row: dict[str, Any]) -> bool:
    """Whether :func:`plain` would return it as it is; evidence is made of texts and whole numbers."""
    return _PLAIN.issuperset(map(type, row.values()))


def key_text(fields: Mapping[str, Any]) -> str:
    """Return a key as one line of text, as a person writes it: its parts in order, with commas between.

    Exact where a reader of the JSON number may not be (integers above 2**53 in a browser).
    """
    if len(fields) == 1:
        [value] = fields.values()
        if type(value) is int or type(value) is str:
            return str(value)
    parts = [plain(value) for value in fields.values()]
    return ",".join(part if isinstance(part, str) else str(part) if type(part) is int else _spaced(part) for part in parts)


def gap_record(gap: Gap) -> dict[str, Any]:
    """Return the gap's record; ``key_text``, ``tables``, ``note``, ``held_since`` and ``revision`` were added to the first."""
    return _gap_record(gap, is_plain=_says_plainly(gap))


def _says_plainly(gap: Gap) -> bool:
    return _is_plain(gap.key_fields) and all(map(_is_plain, gap.evidence))


def _gap_record(gap: Gap, *, is_plain: bool) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "id": gap.id,
        "pipeline": gap.pipeline,
        "key": dict(gap.key_fields) if is_plain else plain(gap.key_fields),
        "key_text": key_text(gap.key_fields),
        "target_id": gap.target_id or None,
        "tables": tables_of(gap),
        "kind": _name(gap.kind),
        "cause": _name(gap.cause),
        "state": _name(gap.state),
        "detector": _name(gap.detector),
        "event_time": rfc3339(gap.event_time),
        "first_seen": rfc3339(gap.first_seen),
        "confirmed_at": rfc3339(gap.confirmed_at),
        "resolved_at": rfc3339(gap.resolved_at),
        "resolution": _name(gap.resolution) if gap.resolution else None,
        "fields": list(gap.fields),
        "occurrences": gap.occurrences,
        "evidence": list(gap.evidence) if is_plain else [row if _is_plain(row) else plain(row) for row in gap.evidence],
        "note": gap.note or None,
        "held_since": rfc3339(gap.held_since),
        "revision": gap.revision,
    }


def run_record(run: Run, now: datetime | None = None) -> dict[str, Any]:
    """Return a run's record; ``rate`` and ``eta`` say how fast it is and when it will have ended, as far as that can be told."""
    rate, eta = pace_of(run, now)
    return {
        "id": run.id,
        "pipeline": run.pipeline,
        "kind": run.kind.value,
        "state": run.state.value,
        "requested_at": rfc3339(run.requested_at),
        "requested_by": _text(run.requested_by),
        "started_at": rfc3339(run.started_at),
        "ended_at": rfc3339(run.ended_at),
        "progress": run.progress,
        "rate": rate,
        "eta": rfc3339(eta),
        "counts": dict(run.counts),
        "error": _text(run.error),
        "request": plain(run.request),
        "cancel_requested": run.cancel_requested,
    }


def pace_of(run: Run, now: datetime | None) -> tuple[float | None, datetime | None]:
    """Return how many keys (documents, records) a run has taken a second since it began, and when it will have ended.

    Args:
        run: The run, on its way or ended.
        now: The time; None: it is not known, and so neither is the end of what is on its way.
    """
    until = run.ended_at or now
    if run.started_at is None or until is None:
        return None, None
    passed = (until - run.started_at).total_seconds()
    if passed <= 0:
        return None, None
    taken = max((run.counts.get(name, 0) for name in TAKEN), default=0)
    rate = round(taken / passed, 3) if taken else None
    if run.ended_at is not None or not run.progress:
        return rate, None
    return rate, until + timedelta(seconds=passed * (1 - run.progress) / run.progress)


def repair_record(record: RepairRecord) -> dict[str, Any]:
    """Return a failed repair's record, with what it takes from its gap."""
    gap = record.gap
    assert gap is not None, "a record is shown with its gap"
    return {
        "pipeline": record.pipeline,
        "key": plain(gap.key_fields),
        "key_text": key_text(gap.key_fields),
        "gap_id": record.gap_id,
        "kind": gap.kind.value,
        "state": "given_up" if record.next_at is None else "waiting",
        "attempts": record.attempts,
        "outcome": record.outcome,
        "reason": _text(record.reason),
        "first_at": rfc3339(record.first_at),
        "last_at": rfc3339(record.last_at),
        "next_at": rfc3339(record.next_at),
        "run_id": record.run_id,
    }


def finding_record(record: FindingRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "pipeline": record.pipeline,
        "finding": record.finding.value,
        "side": _text(record.side),
        "feed": _text(record.feed),
        "first_seen": rfc3339(record.first_seen),
        "last_seen": rfc3339(record.last_seen),
        "cleared_at": rfc3339(record.cleared_at),
        "message": _text(record.message),
        "remedy": _text(record.remedy),
        "time_from": rfc3339(record.time_from),
        "time_to": rfc3339(record.time_to),
        "is_hole": record.is_hole,
        "covered_by": _text(record.covered_by),
        "details": plain(record.details),
    }


def pipeline_record(view: PipelineView) -> dict[str, Any]:
    return {
        "id": view.id,
        "status": view.status,
        "reasons": list(view.reasons),
        "consistent_through": rfc3339(view.consistent_through),
        "source_watermark": rfc3339(view.source_watermark),
        "target_watermark": rfc3339(view.target_watermark),
        "delivered_through": rfc3339(view.delivered_through),
        "pending_keys": view.pending_keys,
        "in_transit_keys": view.in_transit_keys,
        "oldest_in_transit": rfc3339(view.oldest_in_transit),
        "oldest_unsettled": rfc3339(view.oldest_unsettled),
        "gaps_open": dict(view.gaps_open),
        "grace_seconds": view.grace_seconds,
        "coverage": view.coverage,
        "feeds": [_feed_record(feed) for feed in view.feeds],
        "findings": [finding_record(finding) for finding in view.findings],
        "last_sweep": run_record(view.last_sweep) if view.last_sweep else None,
        "baseline": rfc3339(view.baseline),
        "totals": _totals_record(view.totals),
        "match": view.match,
        "not_proven": view.not_proven,
        "read_at": rfc3339(view.read_at),
    }


def audit_record(row: AuditRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": rfc3339(row.at),
        "actor": row.actor,
        "action": row.action,
        "pipeline": _text(row.pipeline),
        "key": plain(row.key_fields) if row.key_fields is not None else None,
        "run_id": _text(row.run_id),
        "gap_id": _text(row.gap_id),
        "outcome": row.outcome,
        "before": _text(row.before),
        "after": _text(row.after),
        "reason": _text(row.reason),
    }


def gap_event(gap: Gap, event: str, at: datetime) -> dict[str, Any]:
    """Return the CloudEvents 1.0 envelope (structured mode) of one change of a gap, for ``<prefix>.gaps``.

    ``id`` is the same however often the change is published: a reader drops repetitions by (source, id).
    """
    return _gap_event(gap, event, at, is_plain=_says_plainly(gap))


def _gap_event(gap: Gap, event: str, at: datetime, *, is_plain: bool) -> dict[str, Any]:
    assert event in EVENTS, event
    return {
        "specversion": "1.0",
        "id": f"{gap.id}/{gap.revision}",
        "source": _source(gap.pipeline),
        "type": f"gapwatch.gap.{event}.v1",
        "subject": gap.id,
        "time": rfc3339(at),
        "datacontenttype": "application/json",
        "data": _gap_record(gap, is_plain=is_plain),
    }


@lru_cache(maxsize=256)
def _source(pipeline: str) -> str:
    return f"/gapwatch/pipelines/{quote(pipeline, safe='')}"


def encode(record: Mapping[str, Any]) -> bytes:
    """Return a record as compact UTF-8 JSON."""
    return _json(record).encode("utf-8", "replace")


def gap_event_bytes(gap: Gap, event: str, at: datetime) -> bytes:
    """Return :func:`gap_event` exactly as :func:`encode` does; msgspec, ten times as fast, spells all but floats alike."""
    if is_plain := _says_plainly(gap):
        try:
            return _encoded(_plain_event(gap, event, at))
        except UnicodeEncodeError:  # a lone surrogate
            pass
    return encode(_gap_event(gap, event, at, is_plain=is_plain))


class _GapData(Struct, frozen=True, gc=False):
    """:func:`gap_record` of a gap that says all plainly, in its order: a third of what a dictionary costs."""

    schema_version: int
    id: str
    pipeline: str
    key: dict[str, Any]
    key_text: str
    target_id: str | None
    tables: list[str]
    kind: str
    cause: str
    state: str
    detector: str
    event_time: str | None
    first_seen: str | None
    confirmed_at: str | None
    resolved_at: str | None
    resolution: str | None
    fields: tuple[str, ...]
    occurrences: int
    evidence: tuple[dict[str, Any], ...]
    note: str | None
    held_since: str | None
    revision: int


class _GapEvent(Struct, frozen=True, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str | None
    datacontenttype: str
    data: _GapData


_TYPES = {event: f"gapwatch.gap.{event}.v1" for event in EVENTS}
_encoded = msgspec.json.Encoder().encode


def _plain_event(gap: Gap, event: str, at: datetime) -> _GapEvent:
    fields, resolved_at, resolution = gap.key_fields, gap.resolved_at, gap.resolution
    data = _GapData(
        SCHEMA_VERSION,
        gap.id,
        gap.pipeline,
        fields,
        key_text(fields),
        gap.target_id or None,
        tables_of(gap),
        _name(gap.kind),
        _name(gap.cause),
        _name(gap.state),
        _name(gap.detector),
        rfc3339(gap.event_time),
        rfc3339(gap.first_seen),
        rfc3339(gap.confirmed_at),
        rfc3339(resolved_at) if resolved_at is not None else None,
        _name(resolution) if resolution else None,
        gap.fields,
        gap.occurrences,
        gap.evidence,
        gap.note or None,
        rfc3339(gap.held_since),
        gap.revision,
    )
    name = f"{gap.id}/{gap.revision}"
    return _GapEvent("1.0", name, _source(gap.pipeline), _TYPES[event], gap.id, rfc3339(at), "application/json", data)


def _feed_record(feed: FeedView) -> dict[str, Any]:
    return {
        "side": feed.side,
        "topic": feed.topic,
        "watermark": rfc3339(feed.watermark),
        "caught_up": feed.caught_up,
        "lag": feed.lag,
        "finding": _text(feed.finding),
    }


def _totals_record(totals: Totals) -> dict[str, Any]:
    return {
        "expected": totals.expected,
        "observed": totals.observed,
        "settled": totals.settled,
        "superseded": totals.superseded,
        "gap": totals.gap,
        "cleared": totals.cleared,
        "masked": totals.masked,
        "unverifiable": dict(totals.unverifiable),
        "late": totals.late,
        "raised": totals.raised,
        "forgotten": totals.forgotten,
        "snapshot_reads": dict(totals.snapshot_reads),
    }


def _text(value: str | None) -> str | None:
    return value or None
