"""What a content sweep compares of a page of rows or documents: one 16-byte digest of each content, computed column by column.

Byte for byte what ``CompiledMapping.canonical_source`` and ``canonical_target`` make of each record (a property test compares
them), without a record, a part or a form of its own for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import xxhash

from gapwatch.core.canonical import Form
from gapwatch.core.column_parts import PLAIN, USUAL, ColumnParts, Driver, Handed
from gapwatch.core.keys import KeyCodec, getter
from gapwatch.core.mapping import CompiledMapping, value_text
from gapwatch.core.sweep_sets import DIGEST, Array, objects
from gapwatch.errors import RecordError
from gapwatch.model.stream import Side

Keys = Sequence[bytes] | Array
Columns = Sequence[Sequence[Any]]  # one a mapped field, in mapping order

# A value without a canonical form; then its side: it equals none of the other side's, and is read by key.
UNREADABLE: Final = b"\x05"


class PageContents:
    """The contents of pages of one side of a pipeline.

    Args:
        mapping: The pipeline's.
        side: Which side's rows or documents are read.
        driver: The types of the store's driver.
        handed: By field, how its column is handed over; empty: all as the driver usually does.
    """

    def __init__(self, mapping: CompiledMapping, side: Side, *, driver: Driver = PLAIN, handed: Sequence[Handed] = ()) -> None:
        self._mapping = mapping
        self._side = side
        self._forms = mapping.side(side).forms
        self._handed = tuple(handed) or (USUAL,) * len(self._forms)
        self.columns = ColumnsOf(mapping.side(side).paths)

        def parts(places: Sequence[int], *, framed: bool) -> list[tuple[int, ColumnParts]]:
            return [
                (
                    at,
                    ColumnParts(
                        mapping.fields[at],
                        self._forms[at],
                        framed=framed,
                        driver=driver,
                        handed=self._handed[at],
                        unreadable=UNREADABLE + bytes([side]),
                    ),
                )
                for at in places
            ]

        self._fixed = parts(mapping.fixed_at, framed=True)
        self._masks = parts(mapping.mask_at, framed=False)

    def contents(self, columns: Columns, count: int) -> Array:
        """Return one content a record, as ``sweep_sets.digests`` and ``objects`` lay them out."""
        if not count:
            return np.empty(0, dtype=object if self._mapping.tolerances else DIGEST)
        identities = self._identities(columns, count)
        if self._mapping.tolerances:
            return objects(list(zip(identities, self._values(columns), strict=True)))
        if self._masks:
            identities = list(map(xxhash.xxh3_128_digest, identities))
        return np.frombuffer(b"".join(identities), dtype=DIGEST)

    def _identities(self, columns: Columns, count: int) -> list[bytes]:
        digest, join = xxhash.xxh3_128_digest, b"".join
        if self._fixed:
            parts = [encode(columns[at]) for at, encode in self._fixed]
            found = list(map(digest, map(join, zip(*parts, strict=True))))
        else:
            found = [digest(b"")] * count
        if not self._masks:
            return found
        masks = [list(map(digest, encode(columns[at]))) for at, encode in self._masks]
        return list(map(join, zip(found, *masks, strict=True)))

    def _values(self, columns: Columns) -> list[tuple[str | None, ...]]:
        """Return the texts of toleranced fields."""
        texts = []
        for at in self._mapping.value_at:
            form, usual = self._forms[at], self._handed[at].usual
            usually = columns[at] if usual is None else [v if v is None else usual(v) for v in columns[at]]
            texts.append([self._text(form, value) for value in usually])
        return list(zip(*texts, strict=True))

    def _text(self, form: Form, value: Any) -> str | None:
        try:
            return value_text(form(value))
        except RecordError:
            return f"unreadable at the {self._side.name}"


def cut(codec: KeyCodec, keys: Keys, contents: Array, lower: bytes | None, upper: bytes | None) -> tuple[Keys, Array]:
    """Return the keys within ``[lower, upper)``, canonical ones or a block of whole numbers, with their contents."""
    if lower is None and upper is None:
        return keys, contents
    if isinstance(keys, np.ndarray):
        first, end = (None if one is None else codec.decode(one)[0] for one in (lower, upper))
        inside = np.ones(len(keys), dtype=bool)
        inside &= True if first is None else keys >= first
        inside &= True if end is None else keys < end
        return keys[inside], contents[inside]
    places = [at for at, key in enumerate(keys) if (lower is None or key >= lower) and (upper is None or key < upper)]
    return [keys[at] for at in places], contents[places]


class ColumnsOf:
    """Columns of documents: what each holds at the paths of the mapped fields."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [(path, getter(path)) for path in paths]

    def __call__(self, documents: Sequence[Mapping[str, Any]]) -> Columns:
        return [self._column(path, get, documents) for path, get in self._paths]

    @staticmethod
    def _column(path: str, get: Callable[[Mapping[str, Any]], Any], documents: Sequence[Mapping[str, Any]]) -> list[Any]:
        try:
            return [document[path] for document in documents]
        except KeyError:  # it lies deeper, or one document is without it
            return [get(document) for document in documents]
