"""The records of ``gapwatch.events``: packed sections, control records and verdicts (``design.md`` 2).

A record on the wire is the msgpack of one :class:`PackedBatch` or :class:`Control`, made and read by ``core/batches.py``.
Times are milliseconds since the epoch, UTC. Columns of one section have equal length.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

FORMAT = 2
EVENTS_PER_RECORD_MAX = 1_000
BYTES_PER_RECORD_MAX = 256 * 1024


class Side(IntEnum):
    EXPECTED = 0  # seen at the source
    OBSERVED = 1  # seen at the target


class Operation(IntEnum):
    """What an event says of its key. The values are the bytes of a section's ``operations`` column."""

    UPSERT = 1  # the state after the write is known: `digests` holds it
    DELETE = 2
    SNAPSHOT = 3  # a read, not a write: refreshes what is known, opens nothing
    TOUCHED = 4  # changed, content unknown (a change stream's update without a document)
    UNCHANGED = 5  # an update whose mapped digest equals its own before image: opens nothing
    LOOKED_UP = 6  # UPSERT whose document may be newer than the event
    DEAD_LETTERED = 7  # of a letter: the sink itself gave the write up
    REJECTED = 8  # of a letter: the target refused an item of the sink's bulk


class Outcome(IntEnum):
    """What confirming said of a raised key. The values are the bytes of a verdict section's ``outcomes`` column."""

    CLEARED = 1
    GAP = 2
    SUPERSEDED = 3
    UNVERIFIABLE = 4


class Token(NamedTuple):
    """The order of writes of one key on one side: ``(epoch, major, minor)``, never a clock.

    Debezium Postgres: (last commit LSN, LSN). MongoDB: (cluster time as 64 bits, ordinal << 32 | operation in the transaction).
    A feed without an order of its own: (raw offset, 0).
    """

    epoch: int
    major: int
    minor: int


class Section(msgspec.Struct, array_like=True, gc=False):
    """Events of one feed partition for one partition of ``gapwatch.events``, in raw offset order.

    ``[offset_from, offset_to)`` is the raw range that this section covers *for this partition*, without gaps: the next one
    begins where this one ends. ``digests[i]`` is 16 bytes over the never-masked fields (``b""`` for anything but an upsert,
    snapshot or look-up). ``masks[i]`` holds one 16-byte digest per maskable field in mapping order (``b""``: the event does
    not carry it). ``values[i]`` holds the canonical text of each toleranced field (None: null or absent).
    """

    pipeline: str
    side: int
    feed: str
    feed_partition: int
    epoch: int
    mapping: int
    offset_from: int
    offset_to: int
    keys: list[bytes]
    operations: bytes
    offsets: list[int]
    majors: list[int]
    minors: list[int]
    event_times: list[int]
    append_times: list[int]
    digests: list[bytes]
    masks: list[tuple[bytes, ...]] | None = None
    values: list[tuple[str | None, ...]] | None = None
    versions: list[int] | None = None
    target_ids: list[bytes] | None = None


class PackedSection(msgspec.Struct, array_like=True, gc=False):
    """A :class:`Section` as it travels: columns of numbers are little-endian arrays of 64 bits, so that nobody makes an object
    of a number to read it. ``contents``: 1 per event that has a digest; ``digests``: 16 bytes per event, zeros where it has none.
    """

    pipeline: str
    side: int
    feed: str
    feed_partition: int
    epoch: int
    mapping: int
    offset_from: int
    offset_to: int
    keys: list[bytes]
    operations: bytes
    offsets: bytes
    majors: bytes
    minors: bytes
    event_times: bytes
    append_times: bytes
    contents: bytes
    digests: bytes
    masks: list[tuple[bytes, ...]] | None = None
    values: list[tuple[str | None, ...]] | None = None
    versions: bytes | None = None
    target_ids: list[bytes] | None = None


class VerdictSection(msgspec.Struct, array_like=True, gc=False):
    """What ``repair`` decided of raised keys. Each names the token (and its side) that raised the key; repeating is harmless."""

    pipeline: str
    keys: list[bytes]
    sides: bytes
    tokens: list[tuple[int, int, int]]
    outcomes: bytes


class Letter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the sink itself says of a write that it did not get into the target. Evidence: it moves no time and has no range.

    ``feed``, ``partition``, ``offset`` are where it stands itself: in the sink's dead-letter topic, or among the indexer's acks.
    DEAD_LETTERED names the source's write by ``(major, minor)``, and ``time`` is that write's event time; REJECTED names none,
    and ``time`` is the indexer's clock before the bulk. ``reason``: a class or code of the error. Repeating it is harmless.
    """

    pipeline: str
    key: bytes
    operation: int
    feed: str
    partition: int
    offset: int
    major: int
    minor: int
    time: int
    reason: str


class Lost(msgspec.Struct, array_like=True, gc=False):
    """A stretch of one feed partition that nobody can judge: raw offsets ``[offset_from, offset_to)``, store times between."""

    offset_from: int
    offset_to: int
    time_from: int
    time_to: int
    reason: str  # a stream finding's name: ingest_hole, log_truncated, topic_recreated, slot_jumped …


class FeedState(msgspec.Struct, array_like=True, gc=False):
    """One feed partition, as its ingester sees it. ``watermark``/``caught_up``: 0 = not yet known.

    ``delivery`` is the sink's position in this feed partition (expected side only): NO_DELIVERY where the pipeline has none,
    UNKNOWN_DELIVERY where it should have one and nobody could read it. ``delivery_clock`` is the ingester's clock of that read.
    """

    pipeline: str
    side: int
    feed: str
    feed_partition: int
    partitions: int
    epoch: int
    offset_from: int
    offset_to: int
    watermark: int
    caught_up: int
    delivery: int
    delivery_clock: int
    lost: list[Lost]


NO_TOPIC = -1  # partition number in the FeedState of a feed whose topic does not exist yet
NO_DELIVERY = -1
UNKNOWN_DELIVERY = -2


class PipelineTimes(msgspec.Struct, array_like=True, gc=False):
    """What ingest sends on per pipeline: measured clock skew and the grace in force (so that replay knows both)."""

    pipeline: str
    skew: int
    grace: int


class Batch(msgspec.Struct, array_like=True, tag="b", gc=False):
    format: int
    sections: list[Section]
    verdicts: list[VerdictSection]
    letters: list[Letter] = []


class PackedBatch(msgspec.Struct, array_like=True, tag="b", gc=False):
    """A :class:`Batch` as it travels."""

    format: int
    sections: list[PackedSection]
    verdicts: list[VerdictSection]
    letters: list[Letter] = []


class Control(msgspec.Struct, array_like=True, tag="c", gc=False):
    """One per ingester and partition of ``gapwatch.events``, every pulse; after every event that it speaks of."""

    format: int
    ingester: str
    clock: int
    feeds: list[FeedState]
    pipelines: list[PipelineTimes]
