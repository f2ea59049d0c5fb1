"""Source rows as BSON documents: by the declared mapping, complete, nothing defaulted, nothing rounded without being told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import MAXYEAR, UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from bson import Binary, DatetimeMS, Decimal128, Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.errors import BSONError

from gapwatch.core.decimal128 import DIGITS_MAX, bytes_of
from gapwatch.core.keys import OBJECTID_TEXT, decimal_text, getter
from gapwatch.core.temporal import moment_reader, rescale
from gapwatch.core.values import MISSING, Instant, JsonText
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType
from gapwatch.ports import Key, StoredRecord
from gapwatch_connectors.mongodb.keys import INT32_MAX, INT64_MAX, INT64_MIN, DocumentKeys, Never, bson_of

Document = dict[str, Any]
MILLIS: Final = 1_000
TIMES: Final = frozenset({FieldType.TIMESTAMP, FieldType.DATE})

_READ: Final = frozenset({*TIMES, FieldType.OBJECTID})
# By name, and compared by identity: a look at an enum's member, or for it in a set, takes as long as the rest of a value.
_INT, _DECIMAL = FieldType.INT, FieldType.DECIMAL
_TIMESTAMP, _DATE, _OBJECTID = FieldType.TIMESTAMP, FieldType.DATE, FieldType.OBJECTID
_AS_IT_IS: Final = (bool, bytes)  # tuples of types, since a union would be made anew for every value
_UNLESS_READ: Final = (str, float)
_NO_TEXT: Final = (int, float, Decimal, date, type(None))
_getter = lru_cache(maxsize=4_096)(getter)


@lru_cache(maxsize=256)
def _moment_reader(zone: str) -> Callable[[Any], Any]:
    return moment_reader(zone, ints_per_second=MILLIS, ints_zoneless=False)


def build(
    keys: DocumentKeys,
    key: Key,
    row: StoredRecord,
    fields: Sequence[FieldSpec],
    placeholder: str,
    *,
    copied_key: Sequence[str] = (),
) -> Document:
    """Return the target's document. Raises RecordError where a field is missing, masked, or has no form in BSON.

    ``copied_key``: the row is a document with its key at these paths, in the order of the key's columns. All its values are
    copied as they are: where the pipeline says `uuid`, a text stays a text, or the sink's document would be another one.
    """
    from_document = bool(copied_key)
    document: Document = {}
    if from_document:
        _copy_key(document, keys, row, copied_key)
    else:
        _put_key(document, keys, key)
    there, paths, is_id = row.fields, keys.paths, keys.is_id
    for spec in fields:
        source, target = spec.source, spec.target
        value = there.get(source, MISSING) if "." not in source else _getter(source)(there)
        if value is MISSING and from_document:
            continue  # it was read whole: what it lacks, the target's document lacks too
        if value is MISSING:
            raise RecordError("field_missing", f"The source row has no column {spec.source}: nothing is written in its place.")
        if _is_masked(value, placeholder):
            raise RecordError("field_masked", f"Column {spec.source} holds Debezium's placeholder: it is not written.")
        if value is None and spec.absent_is_null:
            continue
        inside_id = is_id and (target == "_id" or target.startswith("_id."))
        if not inside_id and target not in paths:
            _put(document, target, value if from_document else _bson(spec, value))
    return document


def _put_key(document: Document, keys: DocumentKeys, key: Key) -> None:
    for column, value in zip(keys.columns, keys.codec.decode(key), strict=True):
        stored = bson_of(column.type, value)
        if stored is Never:
            raise RecordError("unrepresentable", f"Key {column.path}: BSON has no such value.")
        _put(document, column.path, stored)


def _copy_key(document: Document, keys: DocumentKeys, row: StoredRecord, paths: Sequence[str]) -> None:
    if keys.is_id and tuple(paths) == keys.paths:
        document["_id"] = row.fields["_id"]  # the whole of it: an embedded one is another one with its fields in another order
        return
    for path, there in zip(paths, keys.paths, strict=True):
        _put(document, there, getter(path)(row.fields))


def _is_masked(value: Any, placeholder: str) -> bool:
    if type(value) is str:
        return bool(value == placeholder)
    if isinstance(value, _NO_TEXT):
        return False
    if isinstance(value, str):
        return value == placeholder
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


def _bson(spec: FieldSpec, value: Any) -> Any:
    """Return a driver value in the declared type; raises RecordError where BSON has no such value."""
    kind, declared = type(value), spec.type
    if kind is str or kind is float:
        if declared is not _TIMESTAMP and declared is not _DATE and declared is not _OBJECTID:
            return value
    elif kind is bool:
        return value
    elif kind is int:
        if declared is _INT and -INT32_MAX <= value <= INT32_MAX:
            return value
    elif kind is Decimal:
        if declared is _DECIMAL:
            return _decimal(spec.target, value)
    elif kind is datetime and declared is _TIMESTAMP and _is_plain(value):
        return value.astimezone(UTC)
    return _general(spec, value)


def _is_plain(moment: datetime) -> bool:
    """Whether a time is whole milliseconds, of a known zone, and in Python's years in any other zone as well."""
    return moment.tzinfo is not None and moment.microsecond % MILLIS == 0 and 1 < moment.year < MAXYEAR


def _general(spec: FieldSpec, value: Any) -> Any:
    if value is None or isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, _UNLESS_READ) and spec.type not in _READ:
        return value
    if isinstance(value, list | tuple) and not isinstance(value, Instant):
        return [_bson(spec, item) for item in value]
    if spec.type is FieldType.TEXT and isinstance(value, UUID | Decimal):
        return str(value)
    if spec.type in TIMES or isinstance(value, datetime | date | Instant):
        return _moment(spec, value)
    if spec.type is FieldType.OBJECTID and isinstance(value, str) and OBJECTID_TEXT.fullmatch(value):
        return ObjectId(value)
    if isinstance(value, int | Decimal):
        return _number(spec, value)
    if isinstance(value, UUID):
        return Binary.from_uuid(value, UuidRepresentation.STANDARD)
    if isinstance(value, JsonText):
        return _json(spec, value.text)
    if isinstance(value, str | float):
        return value
    raise RecordError("unrepresentable", f"{spec.target}: a value of type {type(value).__name__} cannot be written.")


def _number(spec: FieldSpec, value: int | Decimal) -> Any:
    if spec.type is FieldType.FLOAT:
        return float(value)
    whole = isinstance(value, int) or (spec.type is FieldType.INT and value.is_finite() and value == value.to_integral_value())
    if not whole or spec.type is FieldType.DECIMAL:
        return _decimal(spec.target, Decimal(value))
    if not INT64_MIN <= value <= INT64_MAX:
        raise RecordError("unrepresentable", f"{spec.target}: {Decimal(value):.6g} does not fit 64 bits.")
    number = int(value)
    return number if abs(number) <= INT32_MAX else Int64(number)


def _decimal(path: str, value: Decimal) -> Decimal128:
    """Return a Decimal128; it holds 34 digits, and what has more is not cut."""
    plain = str(value)
    if len(plain) > DIGITS_MAX and value.is_finite() and len(value.as_tuple().digits) > DIGITS_MAX:
        plain = decimal_text(value)  # without trailing zeros, which need no digits
    whole, _, broken = plain.partition(".")
    digits = whole.removeprefix("-") + broken
    if len(digits) <= DIGITS_MAX and digits.isdigit():  # no exponent: as the driver makes it, without its context of decimals
        return Decimal128.from_bid(bytes_of(int(digits), len(broken), negative=whole.startswith("-")))
    try:
        return Decimal128(plain)
    except (ArithmeticError, ValueError) as error:
        raise RecordError("unrepresentable", f"{path}: {value} does not fit a Decimal128.") from error


def _moment(spec: FieldSpec, value: Any) -> Any:
    """Return a BSON date: whole milliseconds, cut or rounded as the field says."""
    zone = "UTC" if spec.type is FieldType.DATE else spec.timezone  # a day is kept as its midnight UTC
    moment = _moment_reader(zone)(value)
    if not isinstance(moment, Instant):
        raise RecordError("unrepresentable", f"{spec.target}: {value!r} is no BSON date.")
    millis = rescale(moment.value, moment.per_second, MILLIS, spec.rounding)
    if not INT64_MIN <= millis <= INT64_MAX:
        raise RecordError("unrepresentable", f"{spec.target}: {value!r} is no BSON date.")
    try:
        return DatetimeMS(millis).as_datetime().replace(tzinfo=UTC)
    except (BSONError, ValueError, OverflowError):
        return DatetimeMS(millis)  # a year that Python does not have


def _json(spec: FieldSpec, text: str) -> Any:
    """Return JSON as BSON, its numbers exact."""

    def whole(digits: str) -> Any:
        number = Decimal(digits)  # of any length, where an int is not
        if INT64_MIN <= number <= INT64_MAX:
            return int(number) if abs(number) <= INT32_MAX else Int64(number)
        return _decimal(spec.target, number)

    def broken(digits: str) -> Any:
        return _decimal(spec.target, Decimal(digits))

    try:
        read: Mapping[str, Any] | Any = json.loads(text, parse_int=whole, parse_float=broken)
    except (ValueError, ArithmeticError, RecursionError) as error:
        said = "the column holds no JSON, or one that is nested too deep or has a number beyond all decimals"
        raise RecordError("unrepresentable", f"{spec.target}: {said}.") from error
    return read
