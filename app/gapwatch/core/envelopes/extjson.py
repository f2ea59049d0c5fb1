"""MongoDB extended JSON, read without the driver: canonical, relaxed, and the older strict form that Debezium writes keys in."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

import msgspec

from gapwatch.core.canonical import DEPTH_MAX
from gapwatch.core.temporal import MICROS, moment_reader
from gapwatch.core.values import Instant, ObjectIdValue, Other
from gapwatch.errors import RecordError

_DECODER: Final = msgspec.json.Decoder()
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MOMENT: Final = moment_reader("UTC", ints_per_second=1_000, ints_zoneless=False)


def decode(data: bytes | str | msgspec.Raw) -> Any:
    """Parse extended JSON text; wrappers such as ``{"$oid": …}`` are left as they are, see :func:`unwrap`."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("unparsable_json", f"Not extended JSON: {error}.") from error


def decode_document(data: bytes | str, names: Collection[str] | None = None) -> Mapping[str, Any]:
    """Parse the text of a document and turn its values into Python values or those of ``core.values``.

    `names`: the members that matter; no other is read, so none can be malformed.
    """
    try:
        members = _MEMBERS.decode(data)
    except msgspec.ValidationError as error:
        raise RecordError("unparsable_document", f"The extended JSON is no document: {error}.") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("unparsable_json", f"Not extended JSON: {error}.") from error
    if len(members) <= 2 and next(iter(members), "") in _WRAPPERS:
        raise RecordError("unparsable_document", "The extended JSON is a value, no document.")
    wanted = members if names is None else [name for name in names if name in members]
    return {name: unwrap(decode(members[name])) for name in wanted}


def unwrap(value: Any, depth: int = 0) -> Any:
    """Turn parsed extended JSON into values; RecordError where a wrapper holds what it cannot hold, or it is nested too deep."""
    if depth > DEPTH_MAX:
        raise RecordError("too_deep", f"A document is nested deeper than {DEPTH_MAX} levels.")
    if isinstance(value, dict):
        first = next(iter(value), "")
        alone = len(value) == 1 or (len(value) == 2 and _BESIDE.get(first) in value)
        if alone and first[:1] == "$" and (reader := _WRAPPERS.get(first)) is not None:
            try:
                return reader(value)
            except (ValueError, TypeError, KeyError, AttributeError, InvalidOperation, binascii.Error) as error:
                raise RecordError("unparsable_document", f"Extended JSON {first} is malformed.") from error
        return {name: unwrap(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [unwrap(item, depth + 1) for item in value]
    return value


def _date(value: dict[str, Any]) -> Instant:
    inner = value["$date"]
    if isinstance(inner, dict):
        return Instant(int(inner["$numberLong"]), 1_000)
    if isinstance(inner, int):
        return Instant(inner, 1_000)
    moment = _MOMENT(inner)
    if not isinstance(moment, Instant):
        raise ValueError(inner)
    return moment if moment.per_second <= MICROS else Instant(moment.value * 1_000 // moment.per_second, 1_000)


def _binary(value: dict[str, Any]) -> bytes | UUID:
    inner = value["$binary"]
    text, kind = (inner["base64"], inner["subType"]) if isinstance(inner, dict) else (inner, value["$type"])
    raw = base64.b64decode(text, validate=True)
    subtype = kind if isinstance(kind, int) else int(kind, 16)
    return UUID(bytes=raw) if subtype == 4 and len(raw) == 16 else raw


def _object_id(value: dict[str, Any]) -> ObjectIdValue:
    raw = bytes.fromhex(value["$oid"])
    if len(raw) != 12:
        raise ValueError(value)
    return ObjectIdValue(raw)


def _regex(value: dict[str, Any]) -> Other:
    inner = value.get("$regularExpression") or {"pattern": value["$regex"], "options": value.get("$options", "")}
    return Other("regex", f"{inner['pattern']}/{''.join(sorted(inner['options']))}")


def _timestamp(value: dict[str, Any]) -> Other:
    inner = value["$timestamp"]
    return Other("timestamp", f"{int(inner['t'])}:{int(inner['i'])}")


def _pointer(value: dict[str, Any]) -> Any:
    return {name: unwrap(item) for name, item in value.items()}  # a DBRef is a document like any other


# What may stand beside a wrapper; with anything else it is a document, whose names somebody began with a dollar.
_BESIDE: Final = {"$binary": "$type", "$regex": "$options", "$code": "$scope"}
_WRAPPERS: Final[Mapping[str, Callable[[dict[str, Any]], Any]]] = {
    "$oid": _object_id,
    "$numberInt": lambda value: int(value["$numberInt"]),
    "$numberLong": lambda value: int(value["$numberLong"]),
    "$numberDouble": lambda value: float(value["$numberDouble"]),
    "$numberDecimal": lambda value: Decimal(value["$numberDecimal"]),
    "$date": _date,
    "$binary": _binary,
    "$uuid": lambda value: UUID(value["$uuid"]),
    "$timestamp": _timestamp,
    "$regularExpression": _regex,
    "$regex": _regex,
    "$symbol": lambda value: str(value["$symbol"]),
    "$code": lambda value: str(value["$code"]),
    "$minKey": lambda value: Other("minkey", ""),
    "$maxKey": lambda value: Other("maxkey", ""),
    "$undefined": lambda value: None,
    "$dbPointer": lambda value: _pointer(value["$dbPointer"]),
}
