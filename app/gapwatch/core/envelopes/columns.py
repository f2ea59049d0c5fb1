"""Events as columns: what a stretch of one raw partition says, for one pipeline, in raw order.

Ingest's hot path makes no object per event: decoders append to these lists, and sections are cut out of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter, le, lt
from typing import Any, Final, NamedTuple, Protocol, Self

from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.core.keys import by_partition
from gapwatch.errors import RecordError
from gapwatch.model.stream import Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which optional columns a pipeline's side has at all."""

    masks: bool = False
    values: bool = False
    versions: bool = False
    target_ids: bool = False


EVERYTHING: Final = Shape(masks=True, values=True, versions=True, target_ids=True)


class Refused(NamedTuple):
    """A record that cannot be understood, with the reason."""

    record: RawRecord
    error: RecordError


# What a column holds, and what a time can be in any store of ours: years 1 to 9999, in milliseconds.
LEAST, MOST = -(1 << 63), (1 << 63) - 1
EARLIEST, LATEST = -62_135_596_800_000, 253_402_300_799_999


def fits(event: Event | Truncate | Marker) -> bool:
    """Whether the numbers of an event can be kept: nobody's clock or log has come to others, whatever a record says."""
    if not isinstance(event, Event):
        return EARLIEST <= (event.watermark if isinstance(event, Marker) else event.event_time) <= LATEST
    numbers = (event.major, event.minor) if event.version is None else (event.major, event.minor, event.version)
    return EARLIEST <= event.event_time <= LATEST and min(numbers) >= LEAST and max(numbers) <= MOST


def out_of_range() -> RecordError:
    return RecordError("out_of_range", "A time, a position or a version is beyond what there can be (times are in milliseconds).")


class Columns(Protocol):
    """Events as columns, whoever keeps them: :class:`EventColumns`, or the compiled module. Offsets do not fall."""

    @property
    def offsets(self) -> Sequence[int]: ...
    @property
    def majors(self) -> Sequence[int]: ...
    @property
    def minors(self) -> Sequence[int]: ...
    @property
    def event_times(self) -> Sequence[int]: ...
    @property
    def operations(self) -> Sequence[int]: ...
    @property
    def others(self) -> list[tuple[int, Marker | Truncate | Refused]]: ...

    def __len__(self) -> int: ...

    def add(self, event: Event, offset: int, append_time: int, /) -> None:
        """Add one event; offsets must not fall."""

    def extend(self, other: Self, /) -> None:
        """Add all events of columns of the same kind and shape."""

    def place(self, offset: int, /) -> int:
        """Return the first place whose offset is not below this one."""

    def rising(self, offset_from: int, highest: tuple[int, int], snapshot: int, /) -> tuple[int, int, int] | None:
        """Return the last position and the newest time, where positions rise from `highest` on (one may repeat) and no event
        before `offset_from` or with the operation `snapshot` is among them; None: each has to be looked at, or there is none."""

    def dealt(self, partitions: int, start: int, end: int, /) -> Sequence[Self | None]:
        """Return the events at places from `start` to `end`, by the partition of ``gapwatch.events`` that their key lives in."""


class EventColumns:
    """Columns of equal length; the optional ones are None where the pipeline has no such thing.

    ``others`` holds what is no event: markers, truncations and refused records.
    """

    __slots__ = (
        "append_times",
        "digests",
        "event_times",
        "keys",
        "majors",
        "masks",
        "minors",
        "offsets",
        "operations",
        "others",
        "target_ids",
        "values",
        "versions",
    )

    def __init__(self, shape: Shape) -> None:
        self.keys: list[bytes] = []
        self.operations: list[int] = []
        self.offsets: list[int] = []
        self.majors: list[int] = []
        self.minors: list[int] = []
        self.event_times: list[int] = []
        self.append_times: list[int] = []
        self.digests: list[bytes] = []
        self.masks: list[tuple[bytes, ...]] | None = [] if shape.masks else None
        self.values: list[tuple[str | None, ...]] | None = [] if shape.values else None
        self.versions: list[int | None] | None = [] if shape.versions else None
        self.target_ids: list[bytes] | None = [] if shape.target_ids else None
        self.others: list[tuple[int, Marker | Truncate | Refused]] = []  # by offset

    def __len__(self) -> int:
        return len(self.keys)

    def all(self) -> tuple[list[Any], ...]:
        """Return every column that there is, always in the same order."""
        columns = (
            self.keys,
            self.operations,
            self.offsets,
            self.majors,
            self.minors,
            self.event_times,
            self.append_times,
            self.digests,
            self.masks,
            self.values,
            self.versions,
            self.target_ids,
        )
        return tuple([column for column in columns if column is not None])

    @property
    def fit(self) -> bool:
        """Whether each event fits."""
        if not self.keys:
            return True
        if min(self.event_times) < EARLIEST or max(self.event_times) > LATEST:
            return False
        versions = [version for version in self.versions or () if version is not None]
        return all(min(some) >= LEAST and max(some) <= MOST for some in (self.majors, self.minors, versions) if some)

    def place(self, offset: int, /) -> int:
        return bisect_left(self.offsets, offset)

    def rising(
        self, offset_from: int, highest: tuple[int, int], snapshot: int = Operation.SNAPSHOT, /
    ) -> tuple[int, int, int] | None:
        majors, minors = self.majors, self.minors
        if not majors or self.offsets[0] < offset_from or snapshot in self.operations or (majors[0], minors[0]) < highest:
            return None
        if not all(map(lt, majors, islice(majors, 1, None))):
            positions = list(zip(majors, minors, strict=True))
            if not all(map(le, positions, islice(positions, 1, None))):
                return None
        return majors[-1], minors[-1], max(self.event_times)

    def dealt(self, partitions: int, start: int, end: int, /) -> list[EventColumns | None]:
        keys = self.keys if not start and end == len(self.keys) else self.keys[start:end]
        return [self.picked(places) if places else None for places in by_partition(keys, partitions, start)]

    def picked(self, places: Sequence[int]) -> EventColumns:
        """Return the events at these places, of which there is at least one."""
        first = places[0]
        pick: Callable[[Sequence[Any]], Sequence[Any]] = itemgetter(*places) if len(places) > 1 else lambda items: (items[first],)
        found = EventColumns.__new__(EventColumns)
        found.others = []
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(found, name, None if column is None else list(pick(column)))
        return found

    def events(self) -> Iterator[tuple[Event, int, int]]:
        """Return each event with its offset and append time."""
        count = len(self.keys)
        optional: list[Sequence[Any]] = [
            [None] * count if column is None else column for column in (self.masks, self.values, self.versions, self.target_ids)
        ]
        rows = zip(
            zip(self.keys, self.operations, self.majors, self.minors, self.event_times, self.digests, *optional, strict=True),
            self.offsets,
            self.append_times,
            strict=True,
        )
        return ((Event(*event), offset, append_time) for event, offset, append_time in rows)

    def extend(self, other: EventColumns, /) -> None:
        for mine, theirs in zip(self.all(), other.all(), strict=True):
            mine.extend(theirs)

    def add(self, event: Event, offset: int, append_time: int) -> None:
        self.keys.append(event.key)
        self.operations.append(event.operation)
        self.offsets.append(offset)
        self.majors.append(event.major)
        self.minors.append(event.minor)
        self.event_times.append(event.event_time)
        self.append_times.append(append_time)
        self.digests.append(event.digest)
        if self.masks is not None:
            self.masks.append(event.masks or ())
        if self.values is not None:
            self.values.append(event.values or ())
        if self.versions is not None:
            self.versions.append(event.version)
        if self.target_ids is not None:
            self.target_ids.append(event.target_id or b"")


_COLUMNS: Final = tuple(name for name in EventColumns.__slots__ if name != "others")
