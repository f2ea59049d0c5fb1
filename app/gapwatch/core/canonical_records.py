"""Canonical forms of many records at once: byte for byte what ``CompiledMapping`` makes of each, field by field.

A record that has none (it is nested too deep) comes out as the error that says so, and takes no other one with it.
Measured: of the repair of a missing document, making its row and its document canonical was a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from gapwatch.core.column_parts import ColumnParts
from gapwatch.core.mapping import Canonical, CompiledMapping
from gapwatch.core.sweep_contents import ColumnsOf
from gapwatch.errors import RecordError
from gapwatch.model.stream import Side

MANY: Final = 20  # fewer records are made one by one


class CanonicalRecords:
    """Makes records of one side canonical, as its driver reads them."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._mapping = mapping
        self._side = mapping.side(side)
        self._columns = ColumnsOf(self._side.paths)
        self._parts = [ColumnParts(spec, form, framed=False) for spec, form in zip(mapping.fields, self._side.forms, strict=True)]

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> Sequence[Canonical | RecordError]:
        if len(records) >= MANY:
            try:
                parts = [encode(column) for encode, column in zip(self._parts, self._columns(records), strict=True)]
                return [self._mapping.canonical(one) for one in zip(*parts, strict=True)]
            except RecordError:  # of one of them
                pass
        return [self._one(record) for record in records]

    def _one(self, record: Mapping[str, Any]) -> Canonical | RecordError:
        try:
            return self._mapping.canonical(self._side.parts(record))
        except RecordError as error:
            return error


@lru_cache(maxsize=256)  # two a pipeline
def canonical_records(mapping: CompiledMapping, side: Side) -> CanonicalRecords:
    """Return what makes records of this side of the mapping canonical; the same one each time."""
    return CanonicalRecords(mapping, side)
