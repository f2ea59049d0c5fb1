"""JSON Schema (2020-12, as in OpenAPI 3.1) of every record that the API answers with. A test checks real answers against it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from gapwatch.model.gap import Cause, Detector, Finding, Kind, Resolution, RunKind, RunState, Severity, State
from gapwatch.model.pipeline import Match

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
MAYBE_TIME: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
MAYBE_COUNT: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}
RATIO: Final[Schema] = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
BOOL: Final[Schema] = {"type": "boolean"}
OBJECT: Final[Schema] = {"type": "object"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Schema]:
    """Return the components by name."""
    gap = _gap()
    return {
        "Gap": _record(gap),
        "GapWithHistory": _record({**gap, "history": _list(ref("Life"))}),
        "Life": _record(_life()),
        "Gaps": _record({"gaps": _list(ref("Gap")), "next_cursor": MAYBE_TEXT, "total": COUNT, "read_at": TIME}),
        "Pipeline": _record(_pipeline()),
        "Pipelines": _page("pipelines", "Pipeline"),
        "Feed": _record(_feed()),
        "Totals": _record(_totals()),
        "Finding": _record(_finding()),
        "Findings": _page("findings", "Finding"),
        "Run": _record(_run()),
        "Sweeps": _page("sweeps", "Run"),
        "Backfills": _page("backfills", "Run"),
        "Replays": _page("replays", "Run"),
        "Repair": _record(_repair()),
        "RepairResumed": _record({"pipeline": TEXT, "automatic_repair": {"const": "resumed"}}),
        "Repairs": _page("repairs", "Repair"),
        "AuditRow": _record(_audit()),
        "Audit": _page("audit", "AuditRow"),
        "KeyStory": _key_story(),
        "Problem": _problem(),
    }


def _record(properties: Mapping[str, Schema]) -> Schema:
    """Every field is there; more may be added to a record one day, so readers allow them."""
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _page(noun: str, item: str) -> Schema:
    return _record({noun: _list(ref(item)), "read_at": TIME})


def _enum(kind: type[StrEnum], *, nullable: bool = False) -> Schema:
    values: list[str | None] = [member.value for member in kind]
    return {"enum": [*values, None]} if nullable else {"type": "string", "enum": values}


def _gap() -> dict[str, Schema]:
    return {
        "schema_version": {"const": 1},
        "id": TEXT,
        "pipeline": TEXT,
        "key": OBJECT,
        "key_text": TEXT,
        "target_id": MAYBE_TEXT,
        "tables": _list(TEXT),
        "kind": _enum(Kind),
        "cause": _enum(Cause),
        "state": _enum(State),
        "detector": _enum(Detector),
        "event_time": MAYBE_TIME,
        "first_seen": TIME,
        "confirmed_at": TIME,
        "resolved_at": MAYBE_TIME,
        "resolution": _enum(Resolution, nullable=True),
        "fields": _list(TEXT),
        "occurrences": COUNT,
        "evidence": _list(OBJECT),
        "note": MAYBE_TEXT,
        "held_since": MAYBE_TIME,
        "revision": COUNT,
    }


def _life() -> dict[str, Schema]:
    return {
        "at": TIME,
        "event": TEXT,
        "actor": TEXT,
        "revision": COUNT,
        "kind": _enum(Kind),
        "cause": _enum(Cause),
        "state": _enum(State),
        "resolution": _enum(Resolution, nullable=True),
        "note": MAYBE_TEXT,
    }


def _pipeline() -> dict[str, Schema]:
    return {
        "id": TEXT,
        "status": {"type": "string", "enum": [severity.name for severity in Severity]},
        "reasons": _list(TEXT),
        "consistent_through": MAYBE_TIME,
        "source_watermark": MAYBE_TIME,
        "target_watermark": MAYBE_TIME,
        "delivered_through": MAYBE_TIME,
        "pending_keys": COUNT,
        "in_transit_keys": COUNT,
        "oldest_in_transit": MAYBE_TIME,
        "oldest_unsettled": MAYBE_TIME,
        "gaps_open": _map(COUNT),
        "grace_seconds": {"type": ["number", "null"], "minimum": 0},
        "coverage": RATIO,
        "feeds": _list(ref("Feed")),
        "findings": _list(ref("Finding")),
        "last_sweep": {"anyOf": [ref("Run"), {"type": "null"}]},
        "baseline": MAYBE_TIME,
        "totals": ref("Totals"),
        "match": _enum(Match),
        "not_proven": MAYBE_TEXT,
        "read_at": TIME,
    }


def _feed() -> dict[str, Schema]:
    return {
        "side": TEXT,
        "topic": TEXT,
        "watermark": MAYBE_TIME,
        "caught_up": BOOL,
        "lag": MAYBE_COUNT,
        "finding": MAYBE_TEXT,
    }


def _totals() -> dict[str, Schema]:
    names = ("expected", "observed", "settled", "superseded", "gap", "cleared", "masked", "late", "raised", "forgotten")
    return {**dict.fromkeys(names, COUNT), "unverifiable": _map(COUNT), "snapshot_reads": _map(COUNT)}


def _finding() -> dict[str, Schema]:
    return {
        "id": TEXT,
        "pipeline": TEXT,
        "finding": _enum(Finding),
        "side": MAYBE_TEXT,
        "feed": MAYBE_TEXT,
        "first_seen": TIME,
        "last_seen": TIME,
        "cleared_at": MAYBE_TIME,
        "message": MAYBE_TEXT,
        "remedy": MAYBE_TEXT,
        "time_from": MAYBE_TIME,
        "time_to": MAYBE_TIME,
        "is_hole": BOOL,
        "covered_by": MAYBE_TEXT,
        "details": OBJECT,
    }


def _run() -> dict[str, Schema]:
    return {
        "id": TEXT,
        "pipeline": TEXT,
        "kind": _enum(RunKind),
        "state": _enum(RunState),
        "requested_at": TIME,
        "requested_by": MAYBE_TEXT,
        "started_at": MAYBE_TIME,
        "ended_at": MAYBE_TIME,
        "progress": RATIO,
        "rate": {"type": ["number", "null"]},
        "eta": MAYBE_TIME,
        "counts": _map({"type": "integer"}),
        "error": MAYBE_TEXT,
        "request": OBJECT,
        "cancel_requested": BOOL,
    }


def _repair() -> dict[str, Schema]:
    return {
        "pipeline": TEXT,
        "key": OBJECT,
        "key_text": TEXT,
        "gap_id": TEXT,
        "kind": _enum(Kind),
        "state": {"type": "string", "enum": ["waiting", "given_up"]},
        "attempts": COUNT,
        "outcome": TEXT,
        "reason": MAYBE_TEXT,
        "first_at": TIME,
        "last_at": TIME,
        "next_at": MAYBE_TIME,
        "run_id": TEXT,
    }


def _audit() -> dict[str, Schema]:
    return {
        "id": TEXT,
        "at": TIME,
        "actor": TEXT,
        "action": TEXT,
        "pipeline": MAYBE_TEXT,
        "key": {"type": ["object", "null"]},
        "run_id": MAYBE_TEXT,
        "gap_id": MAYBE_TEXT,
        "outcome": TEXT,
        "before": MAYBE_TEXT,
        "after": MAYBE_TEXT,
        "reason": MAYBE_TEXT,
    }


def _key_story() -> Schema:
    story = _record(
        {"pipeline": TEXT, "key": OBJECT, "verdict": TEXT, "gaps": _list(ref("Gap")), "audit": _list(ref("AuditRow"))}
    )
    story["properties"] |= {"stores": OBJECT, "stream": OBJECT}
    return story


def _problem() -> Schema:
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": TEXT,
            "instance": TEXT,
            "remedy": MAYBE_TEXT,
            "running_id": MAYBE_TEXT,
            "errors": _list(TEXT),
        },
        "required": ["type", "title", "status", "detail", "instance"],
    }
