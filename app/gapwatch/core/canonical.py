"""Canonical bytes of one value (``design.md`` 2): equal exactly when the declared type calls the two values equal.

Null, absent and empty are three values. A value that its type cannot read is not an error here (a target may hold anything):
it keeps a form of its own, equal to the same odd value only. Wire names of :class:`FieldSpec`, in Debezium's encodings:

===================  ==========================================================================================================
``""``, ``text``     by value: JSON number, boolean or text; of a JSON field in a row: JSON as text
``epoch_s|ms|us|ns``  whole number, zone-less wall clock as if UTC (moments in a target document)
``epoch_days``       whole number of days
``time_ms|us|ns``    whole number since midnight
``iso``              ISO 8601 text
``base64_unscaled``  Connect ``Decimal``: base64 of the big-endian unscaled number; ``wire_scale`` decimal places
``variable_scale``   ``{"scale": n, "value": base64}``
``float32``          a single-precision number: both sides are compared as such
``base64``, ``base64url``, ``hex``   bytes as text
``json_text``        JSON as text
``bits``             Connect ``Bits``: base64 of little-endian bytes; ``wire_scale`` counts bits (1: a boolean)
``items:TYPE:WIRE``  an array, and what its elements are
===================  ==========================================================================================================
"""

from __future__ import annotations

import base64
import binascii
import struct
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import MAX_EMAX, MIN_EMIN, ROUND_DOWN, ROUND_HALF_UP, Context, Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final
from uuid import UUID

import msgspec

from gapwatch.core.decimal128 import decimal_of
from gapwatch.core.exact_json import parse_json as parse_json
from gapwatch.core.keys import DECIMAL_TEXT, OBJECTID_TEXT, UUID_TEXT, decimal_text
from gapwatch.core.temporal import PER_SECOND, midnight_reader, moment_reader, read_days, read_time, rescale
from gapwatch.core.values import MISSING, Instant, JsonText, ObjectIdValue, Other
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType, Rounding

VERSION: Final = 1  # of this canonical form; part of every mapping's fingerprint

ABSENT: Final = b"\x00"
NULL: Final = b"\x01"
VALUE: Final = b"\x02"  # then the payload
ODD: Final = b"\x03"  # a value that the type cannot read; then its generic form
DEPTH_MAX: Final = 200  # nesting of JSON and documents

Form = Callable[[Any], bytes]
Payload = Callable[[Any], bytes | None]  # None: the type cannot read this value

SMALL: Final = 10**18
SINGLE_DIGITS: Final = 9  # tell any two numbers of single precision apart
ENCODED_NUMBERS: Final = frozenset({"base64_unscaled", "variable_scale"})
EPOCHS: Final = frozenset({"epoch_s", "epoch_ms", "epoch_us", "epoch_ns"})
_PLAIN_TEXT: Final = (UUID, ObjectIdValue, IPv4Address, IPv6Address, IPv4Network, IPv6Network)  # interfaces are addresses
_EXACT: Final = Context(prec=1_000_000, Emax=MAX_EMAX, Emin=MIN_EMIN)
_SPECIAL: Final = {
    "nan": "NaN",
    "inf": "Infinity",
    "+inf": "Infinity",
    "infinity": "Infinity",
    "+infinity": "Infinity",
    "positive_infinity": "Infinity",
    "positive_infinitiy": "Infinity",  # sic: Debezium's decimal.handling.mode=string
    "-inf": "-Infinity",
    "-infinity": "-Infinity",
    "negative_infinity": "-Infinity",
    "negative_infinitiy": "-Infinity",
}


def compile_form(spec: FieldSpec, *, wire: str | None = None, event: bool = False, json_text: bool = False) -> Form:
    """Build the function from a value to its canonical bytes.

    Args:
        spec: The field, with its type; INFERRED means "by value".
        wire: How the value is encoded, where it is not ``spec.wire``.
        event: Whether values come from a Debezium event (wire encodings) rather than from a driver or a document.
        json_text: Whether a str in a JSON field's place is tried as JSON text first (documents), or is a JSON string (rows).
    """
    wire = spec.wire if wire is None else wire
    payload = _payload(spec, wire, event=event, json_text=json_text)
    absent = NULL if spec.absent_is_null else ABSENT

    def form(value: Any) -> bytes:
        if value is None:
            return NULL
        if value is MISSING or value is msgspec.UNSET:
            return absent
        encoded = payload(value)
        return ODD + generic(value) if encoded is None else VALUE + encoded

    return form


def _payload(spec: FieldSpec, wire: str, *, event: bool, json_text: bool) -> Payload:
    match spec.type:
        case FieldType.INT | FieldType.DECIMAL:
            return _number_payload(spec, wire if event else "")
        case FieldType.FLOAT:
            return _float_payload(spec, wire, event=event)
        case FieldType.TEXT:
            return _text_payload(spec, wire, event=event)
        case FieldType.BOOL:
            return _bool
        case FieldType.TIMESTAMP:
            return _timestamp_payload(spec, wire, event=event)
        case FieldType.DATE:
            return _date_payload(wire, event=event)
        case FieldType.TIME:
            return _time_payload(spec, wire)
        case FieldType.UUID:
            return _uuid
        case FieldType.OBJECTID:
            return _objectid
        case FieldType.BYTES:
            return _bytes_payload(wire)
        case FieldType.JSON:
            by_text = spec.wire == "text"  # a column of text, which need not hold JSON
            return _json_payload(event=event and not by_text, json_text=json_text or by_text)
        case FieldType.ARRAY:
            return _array_payload(spec, wire, event=event, json_text=json_text)
        case _:
            return generic


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_number(value: Any) -> Decimal | str | None:
    """Return the exact number, "NaN", "Infinity" or "-Infinity"; None where it is no number. A float is its shortest text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Decimal(int(value))
    if isinstance(value, Decimal):
        return value if value.is_finite() else _named(value)
    if isinstance(value, float):
        return _SPECIAL.get(text := repr(float(value))) or Decimal(text)
    if isinstance(value, str):
        if len(value) <= 200_000 and DECIMAL_TEXT.fullmatch(value):
            return Decimal(value)
        return _SPECIAL.get(value.lower())
    if not callable(convert := getattr(value, "to_decimal", None)):  # a bson.Decimal128 has it
        return None
    return by_bits if (by_bits := decimal_of(value.bid)) is not None else read_number(convert())


def _named(value: Decimal) -> str:
    if value.is_nan():
        return "NaN"
    return "-Infinity" if value.is_signed() else "Infinity"


def small_int(value: int) -> bytes:
    """Return the same as ``number_text``, faster."""
    text = b"%d" % value
    if text[-1] != 0x30 or not value:
        return text
    stripped = text.rstrip(b"0")
    return b"%be%d" % (stripped, len(text) - len(stripped))


def number_text(value: Any) -> str | None:
    number = read_number(value)
    return number if number is None or isinstance(number, str) else decimal_text(number)


def plain_number(text: str) -> str:
    """Return canonical number text as a person writes it: ``15e-1`` → ``1.5``."""
    if "e" not in text:
        return text
    number = Decimal(text)
    return format(number, "f") if abs(number.adjusted()) < 40 else str(number)


def unscaled(text: Any, scale: int) -> Decimal | None:
    """Return the number that Connect's ``Decimal`` encodes; None where it is no such text."""
    raw = _base64(text)
    if raw is None or scale is None:
        return None
    return Decimal(int.from_bytes(raw, "big", signed=True)).scaleb(-scale, _EXACT)


def wire_number(value: Any, wire: str, scale: int | None) -> Any:
    """Take a number out of its wire encoding; values in other encodings are returned as they are."""
    if wire == "base64_unscaled" and isinstance(value, str):
        decoded = unscaled(value, scale or 0)
        return value if decoded is None else decoded
    if wire == "variable_scale" and isinstance(value, Mapping):
        places = value.get("scale")
        decoded = unscaled(value.get("value"), places) if isinstance(places, int) else None
        return value if decoded is None else decoded
    return value


def quantize(number: Decimal, scale: int, rounding: Rounding) -> Decimal:
    """Cut a number to `scale` decimal places: truncation towards zero, or rounding half away from zero."""
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    if exponent >= -scale:
        return number
    how = ROUND_DOWN if rounding is Rounding.TRUNCATE else ROUND_HALF_UP
    return number.quantize(Decimal(1).scaleb(-scale), rounding=how, context=_EXACT)


def _number_payload(spec: FieldSpec, wire: str) -> Payload:
    scale, rounding, encoded = spec.scale, spec.rounding, wire in ENCODED_NUMBERS
    wire_scale = spec.wire_scale

    def payload(value: Any) -> bytes | None:
        if type(value) is int and -SMALL < value < SMALL:
            return small_int(value)
        if encoded:
            value = wire_number(value, wire, wire_scale)
        number = read_number(value)
        if number is None or isinstance(number, str):
            return None if number is None else number.encode()
        if scale is not None:
            number = quantize(number, scale, rounding)
        return decimal_text(number).encode()

    return payload


def _float_payload(spec: FieldSpec, wire: str, *, event: bool) -> Payload:
    digits, single, encoded = spec.digits, wire == "float32", event and wire in ENCODED_NUMBERS

    def payload(value: Any) -> bytes | None:
        exact = read_number(wire_number(value, wire, spec.wire_scale) if encoded else value)
        if exact is None or isinstance(exact, str):
            return None if exact is None else exact.encode()
        number = float(exact)
        if number in (float("inf"), float("-inf")) or (isinstance(value, int) and Decimal(number) != exact):
            return decimal_text(exact).encode()  # no double at all: never equal to one
        if single:
            number = _single(number)
        text = repr(number) if digits is None and not single else f"{number:.{digits or SINGLE_DIGITS}g}"
        return number_text(text).encode()  # type: ignore[union-attr] # a float's text is a number

    return payload


def _single(number: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return number


# ── text, booleans, bytes, ids ────────────────────────────────────────────────────────────────────────────────────────────────


def _text_payload(spec: FieldSpec, wire: str, *, event: bool) -> Payload:
    nfc, bits = spec.nfc, (spec.wire_scale or 1) if wire == "bits" else None

    def payload(value: Any) -> bytes | None:
        if bits is not None and (isinstance(value, bytes) or (event and isinstance(value, str))):
            text = _bits(value, bits)
        elif isinstance(value, str):
            text = value
        elif isinstance(value, _PLAIN_TEXT):
            text = str(value)
        elif _is_uuid(value):
            text = str(UUID(bytes=bytes(value)))
        elif bits == 1 and isinstance(value, bool):
            text = "1" if value else "0"
        else:
            binary = getattr(value, "binary", None)
            if not isinstance(binary, bytes) or len(binary) != 12:
                return None
            text = binary.hex()
        return (unicodedata.normalize("NFC", text) if nfc else text).encode("utf-8", "surrogatepass")

    return payload


def _bits(value: str | bytes, count: int) -> str:
    raw = value if isinstance(value, bytes) else _base64(value)
    return str(value) if raw is None else format(int.from_bytes(raw, "little"), f"0{count}b")


def _bool(value: Any) -> bytes | None:
    if isinstance(value, str):
        return {"true": b"t", "t": b"t", "false": b"f", "f": b"f"}.get(value.lower())
    if callable(convert := getattr(value, "to_decimal", None)):  # bson.Decimal128
        value = convert()
    if isinstance(value, Decimal) and not value.is_finite():
        return None
    if isinstance(value, bool | int | float | Decimal) and value in (0, 1):
        return b"t" if value else b"f"
    return None


def _base64(value: Any, altchars: bytes | None = None) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        padded = value + "=" * (-len(value) % 4)
        return base64.b64decode(padded, altchars=altchars, validate=True)
    except (binascii.Error, ValueError):
        return None


def read_bytes(value: Any, wire: str) -> bytes | None:
    """Return bytes, also out of their text form (base64 unless `wire` says otherwise); None where there are none."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, UUID):  # what extended JSON makes of binary data that holds one
        return value.bytes
    if wire == "hex" and isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            return None
    return _base64(value, b"-_" if wire == "base64url" else None)


def _bytes_payload(wire: str) -> Payload:
    return lambda value: read_bytes(value, wire)


def _uuid(value: Any) -> bytes | None:
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, str):
        return bytes.fromhex(value.replace("-", "")) if UUID_TEXT.fullmatch(value) else None
    return bytes(value) if isinstance(value, bytes) and len(value) == 16 else None


def _is_uuid(value: Any) -> bool:
    """Whether it is a bson.Binary that holds a UUID."""
    return getattr(value, "subtype", 0) == 4 and isinstance(value, bytes) and len(value) == 16


def _objectid(value: Any) -> bytes | None:
    if isinstance(value, str):
        return bytes.fromhex(value) if OBJECTID_TEXT.fullmatch(value) else None
    raw = value if isinstance(value, bytes) else getattr(value, "binary", None)
    return bytes(raw) if isinstance(raw, bytes) and len(raw) == 12 else None


# ── times ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _timestamp_payload(spec: FieldSpec, wire: str, *, event: bool) -> Payload:
    ints = PER_SECOND[wire.removeprefix("epoch_")] if wire in EPOCHS else 1_000
    read = moment_reader(spec.timezone, ints_per_second=ints, ints_zoneless=event)
    if wire == "epoch_days":
        read = midnight_reader(spec.timezone, read)
    wanted, rounding = PER_SECOND[spec.precision], spec.rounding

    def payload(value: Any) -> bytes | None:
        moment = read(value)
        if moment is None or isinstance(moment, str):
            return None if moment is None else moment.encode()
        return b"%d" % rescale(moment.value, moment.per_second, wanted, rounding)

    return payload


def _date_payload(wire: str, *, event: bool) -> Payload:
    moment = None
    if wire in EPOCHS:  # of a timestamp that is compared as a date
        moment = moment_reader("UTC", ints_per_second=PER_SECOND[wire.removeprefix("epoch_")], ints_zoneless=event)

    def payload(value: Any) -> bytes | None:
        days = read_days(value if moment is None or not isinstance(value, int) else moment(value))
        return None if days is None else str(days).encode()

    return payload


def _time_payload(spec: FieldSpec, wire: str) -> Payload:
    ints = PER_SECOND[wire.removeprefix("time_")] if wire in ("time_ms", "time_us", "time_ns") else 1_000_000
    wanted, rounding = PER_SECOND[spec.precision], spec.rounding

    def payload(value: Any) -> bytes | None:
        moment = read_time(value, ints)
        return None if moment is None else b"%d" % rescale(moment.value, moment.per_second, wanted, rounding)

    return payload


# ── JSON, arrays, anything ────────────────────────────────────────────────────────────────────────────────────────────────────


def _json_payload(*, event: bool, json_text: bool) -> Payload:
    def payload(value: Any) -> bytes | None:
        if isinstance(value, JsonText):
            value = value.text
            must = True
        elif isinstance(value, str) and (event or json_text):
            must = event
            value = str(value)  # BSON's code is a kind of text
        else:
            return generic(value)
        try:
            return generic(parse_json(value))
        except ValueError as error:
            if isinstance(error.__cause__, RecursionError):  # how deep the reader comes depends on where it is called
                raise RecordError("too_deep", f"JSON is nested deeper than {DEPTH_MAX} levels.") from error
            return None if must else generic(value)

    return payload


def item_spec(spec: FieldSpec, wire: str) -> FieldSpec:
    """Return the spec of an array's elements: what ``items:TYPE:WIRE`` says, else by value."""
    kind, _, rest = wire.removeprefix("items:").partition(":") if wire.startswith("items:") else ("inferred", "", "")
    return replace(spec, type=FieldType(kind), wire=rest, absent_is_null=False)


def _array_payload(spec: FieldSpec, wire: str, *, event: bool, json_text: bool) -> Payload:
    element = compile_form(item_spec(spec, wire), event=event, json_text=json_text)
    multiset = spec.multiset

    def encode(items: Any, depth: int) -> bytes:
        if depth > DEPTH_MAX:
            raise RecordError("too_deep", f"An array is nested deeper than {DEPTH_MAX} levels.")
        parts = [b"[" + encode(item, depth + 1) if isinstance(item, list | tuple) else element(item) for item in items]
        if multiset:
            parts.sort()
        return b"".join([struct.pack("<I", len(part)) + part for part in parts])

    return lambda value: encode(value, 0) if isinstance(value, list | tuple) and not isinstance(value, Instant) else None


def generic(value: Any, depth: int = 0) -> bytes:
    """Return the form of a value by itself: canonical JSON with exact numbers, and BSON's other kinds; self-delimiting."""
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(raw), raw)
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, int | float | Decimal):
        return f"d{number_text(value)};".encode()
    if depth > DEPTH_MAX:
        raise RecordError("too_deep", f"A document is nested deeper than {DEPTH_MAX} levels.")
    if isinstance(value, Mapping):
        members = sorted((str(name).encode("utf-8", "surrogatepass"), generic(item, depth + 1)) for name, item in value.items())
        return b"{%b}" % b"".join([b"%d:%b%b" % (len(name), name, item) for name, item in members])
    if isinstance(value, list | tuple) and not isinstance(value, Instant):
        return b"[%b]" % b"".join([generic(item, depth + 1) for item in value])
    return _generic_other(value, depth)


def _generic_other(value: Any, depth: int) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        if _is_uuid(value):
            return b"u" + bytes(value)
        return b"b%d:%b" % (len(value), bytes(value))
    if isinstance(value, UUID):
        return b"u" + value.bytes
    if isinstance(value, datetime | Instant) or type(value).__name__ == "DatetimeMS":
        moment = _ANY_MOMENT(value)
        assert isinstance(moment, Instant)
        return b"T%d;" % rescale(moment.value, moment.per_second, 1_000_000, Rounding.TRUNCATE)
    if isinstance(value, date | time | timedelta):
        return _kind(type(value).__name__, str(value))
    if isinstance(value, Other):
        return _kind(value.kind, value.text)
    if isinstance(value, JsonText):
        return b"j" + generic(value.text)
    if isinstance(binary := getattr(value, "binary", None), bytes) and len(binary) == 12:
        return b"o" + binary
    if callable(convert := getattr(value, "to_decimal", None)):  # bson.Decimal128
        return f"d{number_text(convert())};".encode()
    if callable(convert := getattr(value, "as_doc", None)):  # bson.DBRef
        return generic(convert(), depth + 1)
    return _driver_kind(value)


_ANY_MOMENT: Final = moment_reader("UTC", ints_per_second=1_000, ints_zoneless=False)
_REGEX_FLAGS: Final = (("i", 2), ("l", 4), ("m", 8), ("s", 16), ("u", 32), ("x", 64))  # Python's, in BSON's letters


def _driver_kind(value: Any) -> bytes:
    """BSON's rare kinds as pymongo holds them, in the words that the extended JSON reader uses for them (``Other``)."""
    name = type(value).__name__
    if name == "Timestamp":
        return _kind("timestamp", f"{value.time}:{value.inc}")
    if name == "Regex":
        flags = "".join(letter for letter, bit in _REGEX_FLAGS if value.flags & bit)
        return _kind("regex", f"{value.pattern}/{flags}")
    if name in ("MinKey", "MaxKey"):
        return _kind(name.lower(), "")
    return _kind(name, repr(value))


def _kind(kind: str, text: str) -> bytes:
    return b"x" + generic(kind) + generic(text)
