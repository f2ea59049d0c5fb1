"""Canonical key bytes: equal on both sides, reversible, self-delimiting (``design.md`` 2).

Form, per column in declared order: ``int`` a length byte (0x80 ± length) and the big-endian number, so that bytes sort as the
numbers do; ``uuid`` 16 and ``objectid`` 12 raw bytes, sorting as both engines sort them; ``text``, ``bytes`` and ``decimal``
escaped (00 → 00 FF) and ended by 00 01.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
import xxhash

from gapwatch.core.values import MISSING
from gapwatch.errors import KeyMisfit
from gapwatch.model.pipeline import KeyColumn, KeyType

INT_BYTES_MAX: Final = 120
TEXT_END: Final = b"\x00\x01"  # ends a text, and stands nowhere else in it
INT_TEXT: Final = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
DECIMAL_TEXT: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,6})?", re.ASCII)
OBJECTID_TEXT: Final = re.compile(r"[0-9a-fA-F]{24}", re.ASCII)
UUID_TEXT: Final = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}", re.ASCII)
ORDERED: Final = frozenset({KeyType.INT, KeyType.UUID, KeyType.OBJECTID})


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of ``gapwatch.events`` that holds this key."""
    return xxhash.xxh3_64_intdigest(key) % partitions


def by_partition(keys: Sequence[bytes], partitions: int, start: int = 0) -> list[list[int]]:
    """Return, for each partition of ``gapwatch.events``, the places of its keys, counted from `start`; a key is hashed once."""
    places: list[list[int]] = [[] for _ in range(partitions)]
    for place, hashed in enumerate(map(xxhash.xxh3_64_intdigest, keys), start):
        places[hashed % partitions].append(place)
    return places


def dig(document: Any, path: Sequence[str]) -> Any:
    """Follow a dotted path through nested mappings; MISSING where it ends early."""
    for step in path:
        if not isinstance(document, Mapping):
            return MISSING
        document = document.get(step, MISSING)
        if document is MISSING:
            return MISSING
    return document


def getter(path: str) -> Callable[[Mapping[str, Any]], Any]:
    """Build the reader of a column, or of a dotted path inside a document; MISSING where there is nothing."""
    if "." not in path:
        return lambda record: record.get(path, MISSING)
    steps = tuple(path.split("."))

    def get(record: Mapping[str, Any]) -> Any:
        value = record.get(path, MISSING)
        return dig(record, steps) if value is MISSING else value

    return get


class KeyCodec:
    """Encodes and decodes the key of one side of a pipeline.

    Args:
        columns: Key columns in declared order. Both sides of a pipeline declare the same types in the same order.
    """

    def __init__(self, columns: Sequence[KeyColumn]) -> None:
        if not columns:
            raise KeyMisfit("A key needs at least one column.")
        self.columns = tuple(columns)
        self.ordered = all(column.type in ORDERED for column in columns)
        self._encoders = tuple(_ENCODERS[column.type] for column in columns)
        self._decoders = tuple(_DECODERS[column.type] for column in columns)
        self._paths = tuple(tuple(column.path.split(".")) for column in columns)

    def encode(self, values: Sequence[Any]) -> bytes:
        """Return canonical bytes for driver or wire values, one per column; KeyMisfit where one does not fit its type."""
        if len(values) != len(self._encoders):
            raise KeyMisfit(f"The key has {len(values)} values, its codec {len(self._encoders)} columns.")
        try:
            if len(values) == 1:
                return self._encoders[0](values[0])
            return b"".join([encoder(value) for encoder, value in zip(self._encoders, values, strict=True)])
        except _UnfitError as error:
            names = ", ".join(column.path for column in self.columns)
            raise KeyMisfit(f"Key ({names}): {error}.") from None

    def encoder(self, at: int) -> Callable[[Any], bytes]:
        """Return the encoder of one column; it raises a ValueError for what does not fit."""
        return self._encoders[at]

    def decode(self, key: bytes) -> tuple[Any, ...]:
        """Return int, str (text, objectid as 24 hex digits), UUID, Decimal or bytes per column; KeyMisfit for other bytes."""
        values: tuple[Any, ...] = ()
        at = 0
        try:
            for decoder in self._decoders:
                value, at = decoder(key, at)
                values = (*values, value)
            is_ours = at == len(key) and (self._encoders[0](value) if len(values) == 1 else self.encode(values)) == key
        except (IndexError, ValueError, ArithmeticError) as error:
            raise KeyMisfit(f"{key.hex()} is no key of this codec.") from error
        if not is_ours:
            raise KeyMisfit(f"{key.hex()} is no key of this codec.")
        return values

    def fields(self, key: bytes) -> dict[str, Any]:
        """Return the key for people and JSON: column name → int or text (bytes as hex)."""
        return {column.path: _printable(value) for column, value in zip(self.columns, self.decode(key), strict=True)}

    def extract(self, document: Mapping[str, Any]) -> bytes:
        """Return the canonical key of a row or document, by the columns' dotted paths; KeyMisfit where a part is missing."""
        values = []
        for column, path in zip(self.columns, self._paths, strict=True):
            value = document.get(column.path, MISSING)
            if value is MISSING and len(path) > 1:
                value = dig(document, path)
            if value is MISSING:
                raise KeyMisfit(f"Key column {column.path} is missing.")
            values.append(value)
        return self.encode(values)

    def parse(self, text: str) -> bytes:
        """Return the key that a person wrote: the plain value, or for several columns a JSON object or array, or ``a,b``."""
        if len(self.columns) == 1 and not text.startswith("{"):
            return self.encode([_written(self.columns[0].type, text)])
        try:
            written = msgspec.json.decode(text)
        except msgspec.DecodeError:
            written = [_written(column.type, part) for column, part in zip(self.columns, text.split(","), strict=False)]
        if isinstance(written, dict):
            return self.encode([_written(column.type, written.get(column.path)) for column in self.columns])
        values = written if isinstance(written, list) else [written]
        return self.encode([_written(column.type, value) for column, value in zip(self.columns, values, strict=False)])


class _UnfitError(ValueError):
    """Says in words why a value does not fit; becomes a KeyMisfit."""


def _unfit(value: Any, kind: str) -> _UnfitError:
    text = repr(value)
    return _UnfitError(f"{text[:80]} ({type(value).__name__}) does not fit {kind}")


def _written(kind: KeyType, value: Any) -> Any:
    if kind is KeyType.BYTES and isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise KeyMisfit(f"{value[:80]!r} is not hexadecimal.") from None
    return value


def _printable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, int | str) else str(value)


# ── encoders: a driver or wire value → bytes ──────────────────────────────────────────────────────────────────────────────────


def _encode_int(value: Any) -> bytes:
    number: int = value if type(value) is int else _to_int(value)
    if number >= 0:
        size = (number.bit_length() + 7) >> 3
        if size > INT_BYTES_MAX:
            raise _unfit(value, "int (too large)")
        return bytes((0x80 + size,)) + number.to_bytes(size, "big")
    size = ((-number).bit_length() + 7) >> 3
    if size > INT_BYTES_MAX:
        raise _unfit(value, "int (too large)")
    return bytes((0x80 - size,)) + (number + (1 << (8 * size)) - 1).to_bytes(size, "big")


def _to_int(value: Any) -> int:
    """Take ints (not bools), whole numbers of type decimal without decimal places, and their plain text."""
    if isinstance(value, bool):
        raise _unfit(value, "int")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str) and len(value) <= 300 and INT_TEXT.fullmatch(value):
        return int(value)
    number = _decimal_or_none(value)
    if number is not None and number.is_finite() and number.as_tuple().exponent == 0 and len(number.as_tuple().digits) <= 300:
        return int(number)
    raise _unfit(value, "int")


def _decimal_or_none(value: Any) -> Decimal | None:
    if isinstance(value, Decimal):
        return value
    convert = getattr(value, "to_decimal", None)  # bson.Decimal128, which the core does not import
    return convert() if callable(convert) else None


def _escaped(data: bytes) -> bytes:
    return data.replace(b"\x00", b"\x00\xff") + TEXT_END


def _encode_text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _unfit(value, "text")
    return _escaped(value.encode("utf-8", "surrogatepass"))


def _encode_uuid(value: Any) -> bytes:
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, str) and UUID_TEXT.fullmatch(value):
        return bytes.fromhex(value.replace("-", ""))
    if isinstance(value, bytes) and len(value) == 16:
        return bytes(value)
    raise _unfit(value, "uuid")


def _encode_objectid(value: Any) -> bytes:
    if isinstance(value, str) and OBJECTID_TEXT.fullmatch(value):
        return bytes.fromhex(value)
    raw = value if isinstance(value, bytes) else getattr(value, "binary", None)  # bson.ObjectId
    if isinstance(raw, bytes) and len(raw) == 12:
        return bytes(raw)
    raise _unfit(value, "objectid")


def _encode_decimal(value: Any) -> bytes:
    if isinstance(value, bool):
        raise _unfit(value, "decimal")
    number = Decimal(value) if isinstance(value, int) else _decimal_or_none(value)
    if number is None and isinstance(value, str) and len(value) <= 1000 and DECIMAL_TEXT.fullmatch(value):
        number = Decimal(value)
    if number is None or not number.is_finite():
        raise _unfit(value, "decimal")
    return _escaped(decimal_text(number).encode())


def decimal_text(number: Decimal) -> str:
    """Return the one text of a finite number: digits without trailing zeros, then the power of ten where it is not 0."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return "0"
    exponent += len(text) - len(stripped)
    return f"{'-' if sign else ''}{stripped}{f'e{exponent}' if exponent else ''}"


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _unfit(value, "bytes")
    return _escaped(bytes(value))


# ── decoders: (key, position) → (value, next position) ────────────────────────────────────────────────────────────────────────


def _decode_int(key: bytes, at: int) -> tuple[int, int]:
    size = key[at] - 0x80
    end = at + 1 + abs(size)
    if end > len(key):
        raise IndexError(at)
    value = int.from_bytes(key[at + 1 : end], "big")
    return (value, end) if size >= 0 else (value + 1 - (1 << (8 * -size)), end)


def _unescape(key: bytes, at: int) -> tuple[bytes, int]:
    parts = []
    while True:
        zero = key.index(b"\x00", at)
        parts.append(key[at:zero])
        if key[zero + 1] == 0x01:
            return b"\x00".join(parts), zero + 2
        if key[zero + 1] != 0xFF:
            raise ValueError(zero)
        at = zero + 2


def _decode_text(key: bytes, at: int) -> tuple[str, int]:
    raw, at = _unescape(key, at)
    return raw.decode("utf-8", "surrogatepass"), at


def _decode_decimal(key: bytes, at: int) -> tuple[Decimal, int]:
    text, at = _decode_text(key, at)
    return Decimal(text), at


def _fixed(key: bytes, at: int, size: int) -> bytes:
    if at + size > len(key):
        raise IndexError(at)
    return key[at : at + size]


def _decode_uuid(key: bytes, at: int) -> tuple[UUID, int]:
    return UUID(bytes=_fixed(key, at, 16)), at + 16


def _decode_objectid(key: bytes, at: int) -> tuple[str, int]:
    return _fixed(key, at, 12).hex(), at + 12


_ENCODERS: Final[Mapping[KeyType, Callable[[Any], bytes]]] = {
    KeyType.INT: _encode_int,
    KeyType.TEXT: _encode_text,
    KeyType.UUID: _encode_uuid,
    KeyType.OBJECTID: _encode_objectid,
    KeyType.DECIMAL: _encode_decimal,
    KeyType.BYTES: _encode_bytes,
}
_DECODERS: Final[Mapping[KeyType, Callable[[bytes, int], tuple[Any, int]]]] = {
    KeyType.INT: _decode_int,
    KeyType.TEXT: _decode_text,
    KeyType.UUID: _decode_uuid,
    KeyType.OBJECTID: _decode_objectid,
    KeyType.DECIMAL: _decode_decimal,
    KeyType.BYTES: _unescape,
}
