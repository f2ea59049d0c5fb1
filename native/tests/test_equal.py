"""The compiled module says of every record what the Python loops and the general decoder say. Run by ``make native``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import gapwatch_native
from hypothesis import given, settings
from tests.property.test_compiled import Told, add_alone, mongo_cases, row_cases, said

from gapwatch.core.compiledcolumns import CompiledColumns, listed
from gapwatch.core.envelopes import INTERFACE, BatchDecoder, Columns, EventColumns, RawRecord, decoder_for
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Side

EXAMPLES = 200


def read_by(spec: PipelineSpec, side: Side, records: Sequence[RawRecord], native: Any) -> list[Any]:
    """Return all that a decoder with or without the module says of two batches."""
    batches = BatchDecoder(decoder_for(spec, side, CompiledMapping(spec), native))
    told = []
    for part in (records[: len(records) // 2], records[len(records) // 2 :]):
        columns = batches.decode([Told(record) for record in part])
        told.append((as_lists(columns, batches.shape).all(), [said(item) for item in columns.others]))
    return told


def as_lists(columns: Columns, shape: Shape) -> EventColumns:
    return columns if isinstance(columns, EventColumns) else listed(cast("CompiledColumns", columns), shape)


def read_one_by_one(spec: PipelineSpec, side: Side, records: Sequence[RawRecord]) -> list[Any]:
    general = decoder_for(spec, side, CompiledMapping(spec))
    told = []
    for part in (records[: len(records) // 2], records[len(records) // 2 :]):
        columns = EventColumns(general.shape)
        for record in part:
            add_alone(general, record, columns)
        told.append((columns.all(), [said(item) for item in columns.others]))
    return told


def assert_read_alike(spec: PipelineSpec, side: Side, records: Sequence[RawRecord]) -> None:
    native = read_by(spec, side, records, gapwatch_native)
    assert native == read_by(spec, side, records, None)
    assert native == read_one_by_one(spec, side, records)


def test_the_module_is_the_one_that_this_version_uses() -> None:
    assert gapwatch_native.INTERFACE == INTERFACE


@settings(max_examples=EXAMPLES, deadline=None)
@given(row_cases())
def test_rows_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)


@settings(max_examples=EXAMPLES, deadline=None)
@given(mongo_cases())
def test_documents_are_read_alike(case: tuple[PipelineSpec, Side, list[RawRecord]]) -> None:
    assert_read_alike(*case)
