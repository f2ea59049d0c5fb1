"""Values that have no Python type of their own, as the core hands them about. Drivers' own types are known by their shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple


class _Missing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final[Any] = _Missing()  # the field is not there at all; null is None


class Instant(NamedTuple):
    """A moment in UTC: ``value`` units since the epoch, ``per_second`` units a second. May lie outside Python's years."""

    value: int
    per_second: int


@dataclass(frozen=True, slots=True)
class ObjectIdValue:
    """Twelve bytes of a BSON ObjectId; ``binary`` as in ``bson.ObjectId``."""

    binary: bytes

    def __str__(self) -> str:
        return self.binary.hex()


@dataclass(frozen=True, slots=True)
class JsonText:
    """JSON that is still text: a plain str in a JSON column's place is a JSON string."""

    text: str


@dataclass(frozen=True, slots=True)
class Other:
    """A BSON value of a kind that no other store has (regular expression, timestamp, min key …), as kind and text."""

    kind: str
    text: str
