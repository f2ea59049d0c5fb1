"""Events as columns: what a stretch of one raw partition says, for one pipeline, in raw order.

Ingest's hot path makes no object per event: decoders append to these lists, and sections are cut out of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.errors import RecordError


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

    def add(self, event: Event, offset: int, append_time: int) -> None:
        """Add one event; offsets must not fall."""
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
