"""Keys inside documents: found as MongoDB finds them, and never of another type than the pipeline says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations, product
from typing import Any, Final
from uuid import UUID

from bson import Binary, Decimal128, Int64, ObjectId
from bson.binary import UuidRepresentation

from gapwatch.core.keys import KeyCodec, dig
from gapwatch.core.values import MISSING
from gapwatch.errors import KeyMisfit
from gapwatch.model.pipeline import KeyColumn, KeyType

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
INT32_MAX: Final = 2**31 - 1
UUID_SUBTYPE: Final = 4
PARTS_ORDERED_MAX: Final = 3  # an embedded id is compared with its fields in order: so many parts are tried in every order
# What a document may hold where the pipeline declares a type. A text "42" is not the number 42: two documents, two keys.
HELD: Final[Mapping[KeyType, tuple[type, ...]]] = {
    KeyType.INT: (int, Decimal128),
    KeyType.DECIMAL: (int, Decimal128),
    KeyType.TEXT: (str,),
    KeyType.UUID: (Binary, UUID, str),
    KeyType.OBJECTID: (ObjectId, str),
    KeyType.BYTES: (bytes,),
}

# What MongoDB orders as its key bytes, as long as it is kept as that.
SORTED: Final[Mapping[KeyType, tuple[type, ...]]] = {
    KeyType.INT: (int, Decimal128),
    KeyType.UUID: (UUID, Binary),
    KeyType.OBJECTID: (ObjectId,),
}


class Never:
    """A key that no document can have: proved absent without asking."""


def bson_of(kind: KeyType, value: Any) -> Any:
    """Return a decoded key part as MongoDB stores it, ``Never`` where BSON has no such value."""
    if kind is KeyType.INT:
        if INT64_MIN <= value <= INT64_MAX:
            return value if abs(value) <= INT32_MAX else Int64(value)
        return _decimal(value)
    if kind is KeyType.OBJECTID:
        return ObjectId(value)
    if kind is KeyType.UUID:
        return Binary.from_uuid(value if isinstance(value, UUID) else UUID(value), UuidRepresentation.STANDARD)
    if kind is KeyType.DECIMAL:
        return _decimal(value)
    if kind is KeyType.TEXT and any("\ud800" <= char <= "\udfff" for char in value):
        return Never
    return value


def _decimal(value: Any) -> Any:
    """Return a Decimal128 where it holds the number exactly: 34 digits."""
    try:
        return Decimal128(str(value))
    except (ArithmeticError, ValueError):
        return Never


class DocumentKeys:
    """The key of a pipeline's target: out of documents, and into filters."""

    def __init__(self, columns: Sequence[KeyColumn]) -> None:
        self.columns = tuple(columns)
        self.codec = KeyCodec(columns)
        self.paths = tuple(column.path for column in columns)
        self.is_id = all(path.split(".")[0] == "_id" for path in self.paths)
        self._parts = tuple(path.partition(".")[2] for path in self.paths)
        self._whole_id = self.is_id and all(part and "." not in part for part in self._parts)

    @property
    def is_ordered_id(self) -> bool:
        """Whether the key is the ``_id``, or its only field, of a type that MongoDB can order as the key bytes."""
        return len(self.columns) == 1 and self.columns[0].type in SORTED and (self.paths == ("_id",) or self._whole_id)

    def is_own(self, identifier: Any) -> bool:
        """Whether an ``_id`` holds the key's own BSON type, and no other spelling of it."""
        value = identifier
        if self._whole_id:
            if not isinstance(identifier, Mapping) or tuple(identifier) != self._parts:
                return False
            value = identifier[self._parts[0]]
        if isinstance(value, Binary) and value.subtype != UUID_SUBTYPE:
            return False
        return isinstance(value, SORTED[self.columns[0].type]) and not isinstance(value, bool)

    def of(self, document: Mapping[str, Any]) -> bytes:
        """Return a document's key. Raises KeyMisfit where a part is missing or of another type: keys are never coerced."""
        identifier = document.get("_id", MISSING)
        if self._whole_id and isinstance(identifier, Mapping) and set(identifier) != set(self._parts):
            raise KeyMisfit(f"_id has the fields {', '.join(identifier)} instead of {', '.join(self._parts)}.")
        for column in self.columns:
            value = dig(document, column.path.split("."))
            if value is MISSING:
                raise KeyMisfit(f"Key {column.path} is missing.")
            if isinstance(value, bool) or not isinstance(value, HELD[column.type]):
                raise KeyMisfit(f"Key {column.path}: {value!r:.80} ({type(value).__name__}) is no {column.type.value}.")
            if isinstance(value, Binary) and column.type is KeyType.UUID and value.subtype != UUID_SUBTYPE:
                raise KeyMisfit(f"Key {column.path}: binary of subtype {value.subtype} is no uuid (4).")
        key = self.codec.extract(document)
        for number, column in enumerate(self.columns):
            value = dig(document, column.path.split("."))
            is_text = isinstance(value, str) and column.type in (KeyType.UUID, KeyType.OBJECTID)
            if is_text and value not in self._spellings((self.values(key) or [])[number], number):
                raise KeyMisfit(f"Key {column.path}: {value!r} mixes upper and lower case: it could not be found again.")
        return key

    def values(self, key: bytes) -> list[Any] | None:
        """Return the key's parts as BSON, None where no document can have it."""
        values = [bson_of(column.type, value) for column, value in zip(self.columns, self.codec.decode(key), strict=True)]
        return None if Never in values else values

    def id_of(self, key: bytes) -> Any:
        """Return the ``_id`` that a key of an ordered one stands for, None where no document can have it."""
        values = self.values(key)
        if values is None:
            return None
        return {self._parts[0]: values[0]} if self._whole_id else values[0]

    def filter(self, keys: Sequence[bytes]) -> dict[str, Any] | None:
        """Return what finds all documents with one of the keys, None where there can be none."""
        decoded = [values for key in keys if (values := self.values(key)) is not None]
        if not decoded:
            return None
        if self._whole_id and len(self._parts) <= PARTS_ORDERED_MAX:
            # An embedded id is found by the whole of it, through the index of _id, which knows the order of its fields.
            return {"_id": {"$in": [form for values in decoded for form in self._ids(values)]}}
        if len(self.paths) == 1:
            return {self.paths[0]: {"$in": [form for values in decoded for form in self._spellings(values[0], 0)]}}
        return {
            "$or": [
                {path: {"$in": self._spellings(values[number], number)} for number, path in enumerate(self.paths)}
                for values in decoded
            ]
        }

    def _ids(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        spelt = product(*(self._spellings(value, number) for number, value in enumerate(values)))
        orders = list(permutations(range(len(values))))
        return [{self._parts[n]: parts[n] for n in order} for parts in spelt for order in orders]

    def _spellings(self, value: Any, number: int) -> list[Any]:
        """Return the values that are the same key: UUIDs and ObjectIds may be kept as text in the usual forms."""
        kind = self.columns[number].type
        if kind is KeyType.UUID:
            text = str(UUID(bytes=bytes(value)))
            return [value, text, text.upper(), text.replace("-", ""), text.replace("-", "").upper()]
        return [value, str(value), str(value).upper()] if kind is KeyType.OBJECTID else [value]
