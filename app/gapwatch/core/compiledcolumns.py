"""Columns that the compiled module keeps, and sections of them: packed as ``core/batches`` packs its own, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec

from gapwatch.core.envelopes.columns import Columns, EventColumns, Shape

Head = tuple[str, int, str, int, int, int]  # pipeline, side, feed, its partition, epoch, mapping


class CompiledColumns(Columns, Protocol):
    """The module's columns: they count, cut and pack themselves."""

    def size(self, start: int, end: int, /) -> int:
        """Return the weight of the events at these places, without what every event weighs at least."""

    def cuts(self, events_max: int, bytes_max: int, head_bytes: int, event_bytes: int, /) -> list[int]:
        """Return where the parts begin of a section of all events; see ``batches.split``."""

    def pack(self, head: Head, offsets: tuple[int, int], start: int, end: int, /) -> bytes:
        """Return the msgpack of a ``PackedSection`` of the events at these places, out of a section of all of them."""

    def lists(self) -> Mapping[str, Any]:
        """Return all columns by name: lists; masks, values and target ids are msgpack, None where there is no such column."""


class Part(NamedTuple):
    """A piece of a section, within the limits of a record."""

    packed: bytes
    events: int
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledSection:
    """A :class:`~gapwatch.model.stream.Section` whose columns the module keeps."""

    head: Head
    offset_from: int
    offset_to: int
    columns: CompiledColumns

    def parts(self, events_max: int, bytes_max: int, head_bytes: int, event_bytes: int) -> Iterator[Part]:
        """Return the section cut so that each part keeps the limits and the parts' ranges join without gaps."""
        columns, count = self.columns, len(self.columns)
        cuts = columns.cuts(events_max, bytes_max, head_bytes, event_bytes)
        firsts = [self.offset_from, *(columns.offsets[cut] for cut in cuts[1:])]
        ends = [*firsts[1:], self.offset_to]
        for start, end, offset_from, offset_to in zip(cuts, [*cuts[1:], count], firsts, ends, strict=True):
            weight = head_bytes + event_bytes * (end - start) + columns.size(start, end)
            yield Part(columns.pack(self.head, (offset_from, offset_to), start, end), end - start, weight)


_MASKS = msgspec.msgpack.Decoder(list[tuple[bytes, ...]])
_VALUES = msgspec.msgpack.Decoder(list[tuple[str | None, ...]])
_TARGET_IDS = msgspec.msgpack.Decoder(list[bytes])


def listed(columns: CompiledColumns, shape: Shape) -> EventColumns:
    """Return columns of the module as lists, without what is no event."""
    lists = columns.lists()
    made = EventColumns(shape)
    made.keys, made.operations, made.offsets = lists["keys"], lists["operations"], lists["offsets"]
    made.majors, made.minors, made.event_times = lists["majors"], lists["minors"], lists["event_times"]
    made.append_times, made.digests, made.versions = lists["append_times"], lists["digests"], lists["versions"]
    masks, values, target_ids = lists["masks"], lists["values"], lists["target_ids"]
    made.masks = None if masks is None else _MASKS.decode(masks)
    made.values = None if values is None else _VALUES.decode(values)
    made.target_ids = None if target_ids is None else _TARGET_IDS.decode(target_ids)
    return made
