"""Records of ``gapwatch.events``: packing, unpacking, columns, and splitting at the record limits."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeVar, cast

import msgspec

from gapwatch.core.compiledcolumns import CompiledColumns, CompiledSection, listed
from gapwatch.core.envelopes.columns import EVERYTHING, Columns, EventColumns, Shape
from gapwatch.core.envelopes.records import Event
from gapwatch.errors import RecordError
from gapwatch.model.stream import (
    BYTES_PER_RECORD_MAX,
    EVENTS_PER_RECORD_MAX,
    FORMAT,
    Batch,
    Control,
    Letter,
    PackedBatch,
    PackedSection,
    Section,
    Side,
    VerdictSection,
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(PackedBatch | Control)
EVENT_BYTES: Final = 64  # an upper bound of an event's numbers and framing on the wire, without key, digests and values
SECTION_BYTES: Final = 128  # the same of a section's head, without its names
DIGEST_BYTES: Final = 16
_NO_DIGEST: Final = bytes(DIGEST_BYTES)
T = TypeVar("T")


def pack(record: Batch | Control) -> bytes:
    """Return the record's bytes on Kafka."""
    return _ENCODER.encode(packed(record) if isinstance(record, Batch) else record)


def read(data: bytes) -> PackedBatch | Control:
    """Return the record as match takes it; RecordError when the bytes are none of ours, of an unknown format, or torn."""
    try:
        record: PackedBatch | Control = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        raise RecordError("unreadable_batch", f"Not a record of gapwatch.events: {error}.") from error
    if record.format != FORMAT:
        raise RecordError("unknown_format", f"Format {record.format} of gapwatch.events is not known, only {FORMAT}.")
    if isinstance(record, PackedBatch):
        for section in record.sections:
            _check(section)
        for verdict in record.verdicts:
            if len({len(verdict.keys), len(verdict.sides), len(verdict.tokens), len(verdict.outcomes)}) != 1:
                raise RecordError("unreadable_batch", f"A verdict section of {verdict.pipeline} has columns of unequal length.")
    return record


def unpack(data: bytes) -> Batch | Control:
    """Return the record with its columns as lists; RecordError as :func:`read`."""
    record = read(data)
    if isinstance(record, Control):
        return record
    return Batch(record.format, [_unpacked(section) for section in record.sections], record.verdicts, record.letters)


def _check(section: PackedSection) -> None:
    count = len(section.keys)
    numbers = 8 * count
    if (
        len(section.operations) != count
        or len(section.contents) != count
        or len(section.digests) != DIGEST_BYTES * count
        or not len(section.offsets) == len(section.majors) == len(section.minors) == numbers
        or not len(section.event_times) == len(section.append_times) == numbers
        or (section.versions is not None and len(section.versions) != numbers)
        or (section.masks is not None and len(section.masks) != count)
        or (section.values is not None and len(section.values) != count)
        or (section.target_ids is not None and len(section.target_ids) != count)
    ):
        raise RecordError("unreadable_batch", f"A section of {section.pipeline} has columns of unequal length.")


def packed(batch: Batch) -> PackedBatch:
    """Return a batch as it travels."""
    return PackedBatch(batch.format, [packed_section(section) for section in batch.sections], batch.verdicts, batch.letters)


def packed_section(section: Section) -> PackedSection:
    digests = section.digests
    full = all(digests)
    return PackedSection(
        pipeline=section.pipeline,
        side=section.side,
        feed=section.feed,
        feed_partition=section.feed_partition,
        epoch=section.epoch,
        mapping=section.mapping,
        offset_from=section.offset_from,
        offset_to=section.offset_to,
        keys=section.keys,
        operations=section.operations,
        offsets=_numbers(section.offsets),
        majors=_numbers(section.majors),
        minors=_numbers(section.minors),
        event_times=_numbers(section.event_times),
        append_times=_numbers(section.append_times),
        contents=b"\1" * len(digests) if full else bytes(map(bool, digests)),
        digests=b"".join(digests) if full else b"".join([digest or _NO_DIGEST for digest in digests]),
        masks=section.masks,
        values=section.values,
        versions=None if section.versions is None else _numbers(section.versions),
        target_ids=section.target_ids,
    )


def _numbers(column: list[int]) -> bytes:
    return struct.pack(f"<{len(column)}q", *column)


def _unpacked(section: PackedSection) -> Section:
    digests = [section.digests[at : at + DIGEST_BYTES] for at in range(0, len(section.digests), DIGEST_BYTES)]
    return Section(
        pipeline=section.pipeline,
        side=section.side,
        feed=section.feed,
        feed_partition=section.feed_partition,
        epoch=section.epoch,
        mapping=section.mapping,
        offset_from=section.offset_from,
        offset_to=section.offset_to,
        keys=section.keys,
        operations=section.operations,
        offsets=_listed(section.offsets),
        majors=_listed(section.majors),
        minors=_listed(section.minors),
        event_times=_listed(section.event_times),
        append_times=_listed(section.append_times),
        digests=[digest if there else b"" for digest, there in zip(digests, section.contents, strict=True)],
        masks=section.masks,
        values=section.values,
        versions=None if section.versions is None else _listed(section.versions),
        target_ids=section.target_ids,
    )


def _listed(column: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(column) // 8}q", column))


class SectionBuilder:
    """Collects the events of one feed partition for one partition of ``gapwatch.events``, column by column.

    Optional columns are made only when an event has one: a missing version travels as NO_VERSION.
    """

    def __init__(
        self, *, pipeline: str, side: Side, feed: str, feed_partition: int, epoch: int, mapping: int, shape: Shape = EVERYTHING
    ) -> None:
        self.pipeline = pipeline
        self.side = side
        self.feed = feed
        self.feed_partition = feed_partition
        self.epoch = epoch
        self.mapping = mapping
        self._shape = shape
        self._columns: Columns | None = None

    def __len__(self) -> int:
        return 0 if self._columns is None else len(self._columns)

    def add(self, event: Event, offset: int, append_time: int) -> None:
        """Add an event; offsets must not fall."""
        if self._columns is None:
            self._columns = EventColumns(self._shape)
        self._columns.add(event, offset, append_time)

    def take(self, columns: Columns) -> None:
        """Add all of these events, which are this builder's from now on; the columns are of its shape."""
        mine = self._columns
        if mine is None:
            self._columns = columns
        elif type(mine) is type(columns):
            mine.extend(columns)
        else:  # the module reads what the loop in Python did not, or the other way round
            self._columns = _listed_columns(mine, self._shape)
            self._columns.extend(_listed_columns(columns, self._shape))

    def close(self, offset_from: int, offset_to: int) -> Section | CompiledSection:
        """Return the collected events as the section of ``[offset_from, offset_to)`` and begin anew. May be empty of events."""
        if self._columns is None or isinstance(self._columns, EventColumns):
            return self.build(offset_from, offset_to)
        head = (self.pipeline, int(self.side), self.feed, self.feed_partition, self.epoch, self.mapping)
        made, self._columns = cast("CompiledColumns", self._columns), None
        return CompiledSection(head=head, offset_from=offset_from, offset_to=offset_to, columns=made)

    def build(self, offset_from: int, offset_to: int) -> Section:
        """As :meth:`close`, with columns that are lists."""
        made, self._columns = _listed_columns(self._columns or EventColumns(self._shape), self._shape), None
        masks, values, versions, target_ids = made.masks, made.values, made.versions, made.target_ids
        return Section(
            pipeline=self.pipeline,
            side=int(self.side),
            feed=self.feed,
            feed_partition=self.feed_partition,
            epoch=self.epoch,
            mapping=self.mapping,
            offset_from=offset_from,
            offset_to=offset_to,
            keys=made.keys,
            operations=bytes(made.operations),
            offsets=made.offsets,
            majors=made.majors,
            minors=made.minors,
            event_times=made.event_times,
            append_times=made.append_times,
            digests=made.digests,
            masks=masks if masks is not None and any(masks) else None,
            values=values if values is not None and any(values) else None,
            versions=None if versions is None else _versions(versions),
            target_ids=target_ids if target_ids is not None and any(target_ids) else None,
        )


def _listed_columns(columns: Columns, shape: Shape) -> EventColumns:
    if isinstance(columns, EventColumns):
        return columns
    return listed(cast("CompiledColumns", columns), shape)


NO_VERSION: Final = -(1 << 63)  # in a section's version column: this event has none


def _versions(versions: list[int | None]) -> list[int] | None:
    known = [NO_VERSION if version is None else version for version in versions]
    return None if versions.count(None) == len(versions) else known


def split(section: Section, *, events_max: int = EVENTS_PER_RECORD_MAX, bytes_max: int = BYTES_PER_RECORD_MAX) -> list[Section]:
    """Cut a section so that each part keeps the limits and the parts' ranges join without gaps.

    Events of one raw offset stay together (a repetition is recognised by its offset); one that is too large goes alone.
    """
    small = _size(section) <= bytes_max
    if small and len(section.keys) <= events_max:
        return [section]
    cuts = _cuts_by_number(section.offsets, events_max) if small else _cuts_by_size(section, events_max, bytes_max)
    ends = [*cuts[1:], len(section.keys)]
    return [_slice(section, start, end, first=start == 0) for start, end in zip(cuts, ends, strict=True)]


def _cuts_by_number(offsets: Sequence[int], events_max: int) -> list[int]:
    """Return where parts begin: of a section that is too long, and small enough."""
    cuts, end = [0], events_max
    while end < len(offsets):
        start = _begin_of(offsets, end, cuts[-1])
        if start > cuts[-1]:
            cuts.append(start)
            end = start + events_max
        else:  # one raw offset has more events than that
            end += 1
    return cuts


def _cuts_by_size(section: Section, events_max: int, bytes_max: int) -> list[int]:
    """Return where parts begin, event by event: of a section with large ones."""
    cuts = [0]
    size = SECTION_BYTES
    for index in range(len(section.keys)):
        weight = _weight(section, index)
        begun = index > cuts[-1]
        if begun and (index - cuts[-1] >= events_max or size + weight > bytes_max):
            start = _begin_of(section.offsets, index, cuts[-1])
            if start > cuts[-1]:
                cuts.append(start)
                size = SECTION_BYTES + sum(_weight(section, at) for at in range(start, index))
        size += weight
    return cuts


def _begin_of(offsets: Sequence[int], index: int, least: int) -> int:
    """Return the first place, from `least` on, of the events that share the raw offset at `index`."""
    return bisect_left(offsets, offsets[index], least, index)


def _slice(section: Section, start: int, end: int, *, first: bool) -> Section:
    return msgspec.structs.replace(
        section,
        offset_from=section.offset_from if first else section.offsets[start],
        offset_to=section.offset_to if end == len(section.keys) else section.offsets[end],
        keys=section.keys[start:end],
        operations=section.operations[start:end],
        offsets=section.offsets[start:end],
        majors=section.majors[start:end],
        minors=section.minors[start:end],
        event_times=section.event_times[start:end],
        append_times=section.append_times[start:end],
        digests=section.digests[start:end],
        masks=None if section.masks is None else section.masks[start:end],
        values=None if section.values is None else section.values[start:end],
        versions=None if section.versions is None else section.versions[start:end],
        target_ids=None if section.target_ids is None else section.target_ids[start:end],
    )


def emptied(section: Section) -> Section:
    """Return the section with its range and without its events."""
    return msgspec.structs.replace(
        section,
        keys=[],
        operations=b"",
        offsets=[],
        majors=[],
        minors=[],
        event_times=[],
        append_times=[],
        digests=[],
        masks=None,
        values=None,
        versions=None,
        target_ids=None,
    )


def _weight(section: Section, index: int) -> int:
    size = EVENT_BYTES + len(section.keys[index]) + len(section.digests[index])
    if section.masks is not None:
        size += sum(len(mask) + 2 for mask in section.masks[index])
    if section.values is not None:
        size += sum(4 * len(value) + 5 for value in section.values[index] if value is not None)
    if section.target_ids is not None:
        size += len(section.target_ids[index])
    return size


def _size(section: Section) -> int:
    """Return the sum of all weights and the head, column by column."""
    size = SECTION_BYTES + EVENT_BYTES * len(section.keys) + _length(section.keys) + _length(section.digests)
    if section.masks is not None:
        masks = list(chain.from_iterable(section.masks))
        size += sum(map(len, masks)) + 2 * len(masks)
    if section.values is not None:
        values = [value for value in chain.from_iterable(section.values) if value is not None]
        size += 4 * sum(map(len, values)) + 5 * len(values)
    if section.target_ids is not None:
        size += _length(section.target_ids)
    return size


def _length(column: Sequence[bytes]) -> int:
    """Return the sum of their lengths; joining them takes a third of the time of asking each."""
    return len(b"".join(column))


def batches(sections: Iterable[Section], verdicts: Iterable[VerdictSection] = ()) -> Iterator[Batch]:
    """Pack sections (cut where needed) and verdicts into records within the limits, in the given order."""
    parts = [(part, len(part.keys), _size(part)) for section in sections for part in split(section)]
    said = list(verdicts)
    for group in _grouped(parts):
        yield Batch(format=FORMAT, sections=group, verdicts=said)
        said = []
    if said:
        yield Batch(format=FORMAT, sections=[], verdicts=said)


def packed_batches(sections: Iterable[Section | CompiledSection]) -> Iterator[bytes]:
    """Return the records of :func:`batches`, packed; the compiled module's sections may be among them."""
    for group in _grouped(part for section in sections for part in _packed_parts(section)):
        yield _ENCODER.encode(PackedBatch(FORMAT, group, []))


def _packed_parts(section: Section | CompiledSection) -> Iterator[tuple[Any, int, int]]:
    """Return, of a section cut to the limits: packed part, its events, and its weight."""
    if isinstance(section, CompiledSection):
        for made in section.parts(EVENTS_PER_RECORD_MAX, BYTES_PER_RECORD_MAX, SECTION_BYTES, EVENT_BYTES):
            yield msgspec.Raw(made.packed), made.events, made.weight
        return
    size = _size(section)
    parts = [section] if len(section.keys) <= EVENTS_PER_RECORD_MAX and size <= BYTES_PER_RECORD_MAX else split(section)
    for part in parts:
        yield packed_section(part), len(part.keys), size if part is section else _size(part)


def _grouped(parts: Iterable[tuple[T, int, int]]) -> Iterator[list[T]]:
    """Group parts with their events and weights into records within the limits."""
    group: list[T] = []
    events = size = 0
    for part, count, weight in parts:
        if group and (events + count > EVENTS_PER_RECORD_MAX or size + weight > BYTES_PER_RECORD_MAX):
            yield group
            group, events, size = [], 0, 0
        group.append(part)
        events += count
        size += weight
    if group:
        yield group


def letter_batches(letters: Sequence[Letter]) -> Iterator[Batch]:
    """Pack letters into records within the limits, in the given order."""
    batch, size = Batch(format=FORMAT, sections=[], verdicts=[], letters=[]), 0
    for letter in letters:
        weight = EVENT_BYTES + len(letter.key) + 4 * (len(letter.pipeline) + len(letter.feed) + len(letter.reason))
        if batch.letters and (len(batch.letters) >= EVENTS_PER_RECORD_MAX or size + weight > BYTES_PER_RECORD_MAX):
            yield batch
            batch, size = Batch(format=FORMAT, sections=[], verdicts=[], letters=[]), 0
        batch.letters.append(letter)
        size += weight
    if batch.letters:
        yield batch
