"""Keys as document ids: text in one form for each key, found again in the usual other ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from gapwatch.core.canonical import plain_number
from gapwatch.core.keys import KeyCodec, decimal_text
from gapwatch.errors import KeyMisfit
from gapwatch.model.pipeline import KeyColumn, KeyType

ID: Final = "_id"
ID_BYTES_MAX: Final = 512  # what the server takes


class DocumentIds:
    """The key of a pipeline's target: out of a document's ``_id``, and back."""

    def __init__(self, columns: Sequence[KeyColumn]) -> None:
        self.codec = KeyCodec(columns)
        self._kind = columns[0].type

    def of(self, identifier: str) -> bytes:
        """Return the key of an ``_id``. Raises KeyMisfit where it is of another form than the declared type: never coerced."""
        key = self.codec.encode([identifier])
        if identifier not in self.spellings(key):
            raise KeyMisfit(f"_id {identifier[:80]!r} is no usual form of its {self._kind.value}: it could not be found again.")
        return key

    def id_of(self, key: bytes) -> str | None:
        """Return the ``_id`` that a document of this key is written with; None where no document can have it."""
        spellings = self.spellings(key)
        return spellings[0] if spellings else None

    def spellings(self, key: bytes) -> list[str]:
        """Return every ``_id`` that is this key, the one that is written first; none where no document can have it."""
        value = self.codec.decode(key)[0]
        return [text for text in _texts(self._kind, value) if _is_possible(text)]


def _texts(kind: KeyType, value: Any) -> list[str]:
    if kind is KeyType.UUID:
        text = str(value if isinstance(value, UUID) else UUID(value))
        return [text, text.upper(), text.replace("-", ""), text.replace("-", "").upper()]
    if kind is KeyType.OBJECTID:
        return list(dict.fromkeys((str(value), str(value).upper())))
    if kind is KeyType.DECIMAL:
        return [plain_number(decimal_text(value))]
    return [] if kind is KeyType.BYTES else [str(value)]  # an id is text: bytes have no one form in it


def _is_possible(text: str) -> bool:
    try:
        return 0 < len(text.encode()) <= ID_BYTES_MAX
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
