"""A handful of plain events, one after the other: what ``core/hotpath`` does by columns, whose calls cost more than so few.

A service of many quiet pipelines gets sections of two or three events. The common cases are decided on the bytes of the rows; all
else is handed to the general path in its turn, so that the order is that of the events. Properties hold all three against each
other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final

from gapwatch.core.cells import DELAY_BOUNDS_MS
from gapwatch.core.hotpath import LAST_PLAIN, Events, numbers
from gapwatch.core.keyrows import ALONE, AWAITED, LONE, PENDING, REOPENED, SETTLED, KeyRows
from gapwatch.core.keystate import (
    BLANK,
    DELETE,
    HEAD_BYTES,
    UNKNOWN_MAPPING,
    Write,
    event_time_of,
    identities_agree,
    identity_of,
    is_masked,
    pack_head,
    token_of,
)
from gapwatch.core.pipelinestate import PipelineState
from gapwatch.model.stream import PackedSection, Side

FEW: Final = 16  # events of one side of a pipeline in one record; of more, columns are faster
_LATEST: Final = (1 << 63) - 1
_COLUMNS: Final = tuple(Struct(f"<{count}q").unpack for count in range(FEW + 1))


def are_few(sections: Sequence[PackedSection]) -> bool:
    return len(sections) <= FEW and sum([len(section.keys) for section in sections]) <= FEW


def begins_before(section: PackedSection, time: int) -> bool:
    """Whether an event of the section has an earlier event time."""
    count = len(section.keys)
    return bool(
        (min(_COLUMNS[count](section.event_times)) if count < len(_COLUMNS) else numbers(section.event_times).min()) < time
    )


def take_few(pipeline: PipelineState, side: int, sections: Sequence[PackedSection]) -> Events:
    """Take plain sections; yield key and write of what the general path has to take, each before the next event is looked at."""
    return _expect(pipeline, sections) if side == Side.EXPECTED else _observe(pipeline, sections)


def _expect(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    cell, rows, rules = pipeline.cell, pipeline.cell.rows, pipeline.rules
    last = DELETE - 1 if rules.several else LAST_PLAIN
    joins = rules.comparison.by_identity
    updates = joins and not rules.several
    for key, write in _writes(pipeline, sections):
        row = rows.at.get(key)
        if write[0] > last or rows.open >= cell.limits.pending:
            yield key, write
            continue
        if row is None:
            rows.enter(key, write, PENDING)
        elif updates and rows.place_at[row] == SETTLED and _updates(rows, row, write):
            rows.reopen_one(row, write, rules.history)
        elif joins and rows.place_at[row] in LONE and _answers(rows.write_at(row), write):
            rows.join_one(row, write)
            cell.counters.settled += 1
            cell.counters.expected += 1
            continue
        else:
            yield key, write
            continue
        cell.counters.expected += 1
        pipeline.survey.low = min(pipeline.survey.low, event_time_of(write))


def _observe(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    cell, rows = pipeline.cell, pipeline.cell.rows
    by_identity = pipeline.rules.comparison.by_identity
    for key, write in _writes(pipeline, sections):
        row = rows.at.get(key)
        if not by_identity or write[0] > LAST_PLAIN:
            yield key, write
        elif row is None:
            if rows.open >= cell.limits.pending:
                yield key, write
                continue
            rows.enter(key, write, ALONE)
            cell.counters.observed += 1
            pipeline.survey.low = min(pipeline.survey.low, event_time_of(write))
        elif rows.place_at[row] in AWAITED and _answers(held := rows.write_at(row), write) and _follows(rows, row, write):
            rows.settle_one(row, write[:HEAD_BYTES])
            cell.counters.observed += 1
            cell.counters.settled += 1
            cell.delays[bisect_left(DELAY_BOUNDS_MS, event_time_of(write) - event_time_of(held))] += 1
        else:
            yield key, write


def _answers(held: Write, write: Write) -> bool:
    """Whether a key's one write is exactly what came, in all of its fields; a field that neither carries is not proven."""
    return (
        held[0] == write[0]
        and held[2] == write[2] != UNKNOWN_MAPPING
        and held[HEAD_BYTES:] == write[HEAD_BYTES:]
        and (write[4] < 2 or not is_masked(write))
    )


def _follows(rows: KeyRows, row: int, write: Write) -> bool:
    """Whether the target has shown nothing newer of the key."""
    if rows.place_at[row] not in REOPENED:
        return True
    head = rows.head_at(row)
    return not head[0] or token_of(write) > token_of(head)


def _updates(rows: KeyRows, row: int, write: Write) -> bool:
    """Whether it is newer than a settled key's expected write, whole, not what the target shows, nor what was there before."""
    held, head = rows.write_at(row), rows.head_at(row)
    if token_of(write) <= token_of(held) or (write[0] == DELETE) == (write[4] > 0) or (write[4] > 1 and is_masked(write)):
        return False
    known = identity_of(held)
    if head[0] and (head[4] > 0) == (write[4] > 0) and (not write[4] or identities_agree(identity_of(write), known)):
        return False
    older, size = rows.older_at(row), len(known)
    return not size or known not in [older[at : at + size] for at in range(0, len(older), size)]


def _writes(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Iterator[tuple[bytes, Write]]:
    parts, hold = pipeline.cell.rows.parts, pipeline.hold
    for section in sections:
        feed, mapping = pipeline.numbers_of(section)
        number, epoch, masks, digests, at = section.feed_partition, section.epoch, section.masks, section.digests, 0
        column = _COLUMNS[len(section.keys)]
        for place, (key, operation, content, offset, major, minor, time, appended) in enumerate(
            zip(
                section.keys,
                section.operations,
                section.contents,
                column(section.offsets),
                column(section.majors),
                column(section.minors),
                column(section.event_times),
                column(section.append_times),
                strict=True,
            )
        ):
            due = min(max(time, appended) + hold, _LATEST)
            known = parts if content else 0
            write = pack_head(operation, 0, mapping, feed & 255, known, number, epoch, major, minor, offset, time, due)
            if content:
                write += digests[at : at + 16]
                if masks is not None:
                    write += b"".join([mask or BLANK for mask in masks[place]])
            at += 16
            yield key, write
