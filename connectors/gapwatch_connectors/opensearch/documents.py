"""Source rows as JSON documents: by the declared mapping, complete, nothing defaulted, nothing rounded without being told to."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import MAXYEAR, UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from gapwatch.core.canonical import parse_json, plain_number, quantize
from gapwatch.core.keys import decimal_text, getter
from gapwatch.core.mapping import whole_number
from gapwatch.core.temporal import PER_SECOND, civil_from_days, moment_reader, read_days, rescale
from gapwatch.core.values import MISSING, Instant, JsonText
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FeedKind, FieldSpec, FieldType, PipelineSpec
from gapwatch.ports import Key, StoredRecord
from gapwatch_connectors.opensearch.keys import ID, DocumentIds
from gapwatch_connectors.opensearch.reader import VERSION

Document = dict[str, Any]
_DIGITS: Final = {"s": 0, "ms": 3, "us": 6}
_TIMESPECS: Final = {"s": (1_000_000, "seconds"), "ms": (1_000, "milliseconds"), "us": (1, "microseconds")}
_NO_TEXT: Final = frozenset({bool, int, float, Decimal, datetime, date, type(None)})
# By name, and compared by identity: a look at an enum's member, or for it in a set, takes as long as the rest of a value.
_INT, _FLOAT, _DECIMAL = FieldType.INT, FieldType.FLOAT, FieldType.DECIMAL
_TIMESTAMP, _DATE = FieldType.TIMESTAMP, FieldType.DATE
_ANYTHING: Final = FieldSpec(target="", source="", precision="ms")
_PLAIN_MAX: Final = 30  # digits of a number that is surely written without an exponent
_YEARS: Final = range(10_000)  # what the server's date formats take


def build(pipeline: PipelineSpec, ids: DocumentIds, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Document:
    """Return ``_id`` and all mapped fields. Raises RecordError where one is missing, masked, or has no form in JSON."""
    identifier = ids.id_of(key)
    if identifier is None:
        raise RecordError("unrepresentable", "No _id can hold this key.")
    document: Document = {ID: identifier}
    from_document = pipeline.source.feed.kind is FeedKind.CHANGE_STREAM
    there, placeholder = row.fields, pipeline.source.feed.placeholder
    for spec in fields:
        source = spec.source
        value = there.get(source, MISSING) if "." not in source else getter(source)(there)
        if value is MISSING:
            if from_document:
                continue  # it was read whole: what it lacks, the target's document lacks too
            raise RecordError("field_missing", f"The source row has no column {spec.source}: nothing is written in its place.")
        if _is_masked(value, placeholder):
            raise RecordError("field_masked", f"Column {spec.source} holds Debezium's placeholder: it is not written.")
        if value is None and spec.absent_is_null:
            continue
        _put(document, spec.target, _json(spec, value))
    if pipeline.target.version == VERSION:
        document[VERSION] = _version(pipeline, row)
    return document


def routing_of(document: Mapping[str, Any], path: str) -> str:
    """Return the routing of a document by the field that the pipeline names. Raises RecordError where it has none."""
    value: Any = document
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if value is None or isinstance(value, dict | list | bool):
        raise RecordError("routing_missing", f"The document has no plain value in {path}, which routes it.")
    return str(value) if not isinstance(value, Decimal) else format(value, "f")


def _version(pipeline: PipelineSpec, row: StoredRecord) -> int:
    version = whole_number(getter(pipeline.source.version)(row.fields))
    if version is None or version < 0:
        raise RecordError(
            "version_missing", f"Column {pipeline.source.version} holds no version: nothing is written without one."
        )
    return version


def _is_masked(value: Any, placeholder: str) -> bool:
    if type(value) in _NO_TEXT:
        return False
    if isinstance(value, list | tuple):
        return any(_is_masked(item, placeholder) for item in value)
    return bool(value == placeholder or value == placeholder.encode())


def _put(document: Document, path: str, value: Any) -> None:
    *parents, last = path.split(".") if "." in path else (path,)
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise RecordError("unrepresentable", f"{path} lies inside a field that is mapped as a whole.")
    if last in document:
        raise RecordError("unrepresentable", f"{path} is mapped twice.")
    document[last] = value


def _json(spec: FieldSpec, value: Any) -> Any:
    """Return a driver value as JSON has it: what is read back of it is equal to it."""
    reader = _QUICK.get(type(value))
    quick = MISSING if reader is None else reader(spec, value)
    return _general(spec, value) if quick is MISSING else quick


def _text(spec: FieldSpec, value: str) -> Any:
    return value if spec.type is not _TIMESTAMP and spec.type is not _DATE else MISSING


def _whole(spec: FieldSpec, value: int) -> Any:
    return value if spec.type is _INT else MISSING


def _fraction(spec: FieldSpec, value: float) -> Any:
    return _short(repr(value)) if value and spec.type is _FLOAT else MISSING


def _decimal(spec: FieldSpec, value: Decimal) -> Any:
    """Read a number that has no more places than the field."""
    if not value or spec.type is not _DECIMAL:
        return MISSING
    exponent = value.as_tuple().exponent
    fits = isinstance(exponent, int) and (spec.scale is None or exponent >= -spec.scale)
    return _short(str(value)) if fits else MISSING


def _short(text: str) -> Any:
    """Return a number without zeros at its end, where its text is plain digits."""
    whole, _, broken = text.partition(".")
    if len(text) > _PLAIN_MAX or not (whole.removeprefix("-") + broken).isdigit():
        return MISSING
    return Decimal(text.rstrip("0").rstrip(".")) if broken else Decimal(whole)


def _time(spec: FieldSpec, value: datetime) -> Any:
    """Read a moment of a known zone that needs no rounding, in Python's years in any other zone as well."""
    step, timespec = _TIMESPECS[spec.precision]
    if spec.type is not _TIMESTAMP or value.tzinfo is None or value.microsecond % step or not 1 < value.year < MAXYEAR:
        return MISSING
    return value.astimezone(UTC).isoformat(timespec=timespec)[:-6] + "Z"


_QUICK: Final[Mapping[type, Callable[[FieldSpec, Any], Any]]] = {
    str: _text,
    int: _whole,
    float: _fraction,
    Decimal: _decimal,
    datetime: _time,
    bool: lambda _, value: value,
}


def _general(spec: FieldSpec, value: Any) -> Any:
    """Do as :func:`_json` with any value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and not isinstance(value, Instant):
        return [_json(spec, item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _json(_ANYTHING, item) for name, item in value.items()}
    if callable(convert := getattr(value, "to_decimal", None)):  # bson.Decimal128
        value = convert()
    elif isinstance(raw := getattr(value, "binary", None), bytes) and len(raw) == 12:  # bson.ObjectId
        return raw.hex()
    elif isinstance(value, bytes) and getattr(value, "subtype", 0) == 4 and len(value) == 16:  # bson.Binary
        return str(UUID(bytes=bytes(value)))
    if spec.type in (FieldType.TIMESTAMP, FieldType.DATE) or _is_moment(value):
        return _moment(spec, value)
    if isinstance(value, int | Decimal | float):
        return _number(spec, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, JsonText):
        return _parsed(spec, value.text)
    if isinstance(value, str | UUID | time):
        return str(value)
    raise RecordError("unrepresentable", f"{spec.target}: a value of type {type(value).__name__} cannot be written.")


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime | date | Instant) or type(value).__name__ == "DatetimeMS"


def _number(spec: FieldSpec, value: int | Decimal | float) -> Any:
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise RecordError("unrepresentable", f"{spec.target}: JSON has no {number}.")
    if spec.type is FieldType.TEXT:
        return str(value)
    if spec.type is FieldType.DECIMAL and spec.scale is not None:
        number = quantize(number, spec.scale, spec.rounding)
    return int(number) if isinstance(value, int) else Decimal(plain_number(decimal_text(number)))


def _parsed(spec: FieldSpec, text: str) -> Any:
    try:
        return parse_json(text, strict=True)
    except ValueError as error:
        raise RecordError("unrepresentable", f"{spec.target}: the column holds no JSON, or a number beyond decimals.") from error


def _moment(spec: FieldSpec, value: Any) -> str:
    """Return ISO 8601: a day, or a moment in UTC with the digits that the field says, cut or rounded as it says."""
    if spec.type is FieldType.DATE or (isinstance(value, date) and not isinstance(value, datetime)):
        days = read_days(value)
        if not isinstance(days, int):
            raise RecordError("unrepresentable", f"{spec.target}: {value!r} is no day that JSON could hold.")
        return _day(spec, days)
    moment = moment_reader(spec.timezone, ints_per_second=1_000, ints_zoneless=False)(value)
    if not isinstance(moment, Instant):
        raise RecordError("unrepresentable", f"{spec.target}: {value!r} is no moment that JSON could hold.")
    per_second = PER_SECOND[spec.precision]
    seconds, rest = divmod(rescale(moment.value, moment.per_second, per_second, spec.rounding), per_second)
    days, of_day = divmod(seconds, 86_400)
    clock = f"{of_day // 3_600:02d}:{of_day // 60 % 60:02d}:{of_day % 60:02d}"
    digits = _DIGITS[spec.precision]
    return f"{_day(spec, days)}T{clock}{f'.{rest:0{digits}d}' if digits else ''}Z"


def _day(spec: FieldSpec, days: int) -> str:
    year, month, day = civil_from_days(days)
    if year not in _YEARS:
        raise RecordError("unrepresentable", f"{spec.target}: the year {year} has no form that the index takes.")
    return f"{year:04d}-{month:02d}-{day:02d}"
