"""What ``match`` says: suspects (``gapwatch.suspects``, JSON) and status records (``gapwatch.status``, JSON, compacted)."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Reason:
    """Why a key was raised. Plain strings on the wire."""

    UNSATISFIED = "unsatisfied"  # an expected write is late
    REGRESSED = "regressed"  # the target went back to an older version
    UNEXPLAINED = "unexplained"  # the target shows what no expected version explains
    TOUCHED = "touched"  # changed, content unknown
    MAPPING = "mapping"  # digests of different mappings cannot be compared
    DEAD_LETTERED = "dead_lettered"  # the sink put the write into its dead-letter topic
    DUPLICATE = "duplicate"  # the target has two documents of the key
    REJECTED = "rejected"  # the target refused the write, as its indexer says
    HOLE = "hole"  # not a key: a stretch of the stream


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One write as the stream showed it: where anyone can read it back."""

    side: int
    feed: str
    partition: int
    offset: int
    epoch: int
    major: int
    minor: int
    operation: int
    event_time: int
    digest: bytes = b""
    version: int | None = None  # the declared version column's, where the pipeline has one


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """What the sink said of a write that it did not get into the target, and where: a ``stream.Letter`` without its key."""

    operation: int
    feed: str
    partition: int
    offset: int
    major: int
    minor: int
    time: int
    reason: str = ""


class Suspect(msgspec.Struct, frozen=True, kw_only=True, tag="suspect"):
    """A raised key. ``id`` is deterministic (pipeline, key, opening token), so repeating it changes nothing.

    ``opening`` is the write that raised it: the oldest unsatisfied expected one, or the unexplained observed one. Its token
    and side are what a verdict names. ``newest_expected``/``newest_observed`` and ``older`` (digests of older known versions,
    newest first, at most ``history``) let confirm name kind and cause.
    """

    id: str
    pipeline: str
    partition: int  # of gapwatch.events: where the verdict goes
    key: bytes
    reason: str
    opening: Seen
    newest_expected: Seen | None
    newest_observed: Seen | None
    older: list[bytes]
    due: int
    source_watermark: int
    target_watermark: int
    since: int = 0  # event time from which the target is wrong, where that is before the opening write; 0: with it
    raised_again: bool = False
    given_up: GivenUp | None = None  # what the sink said last of a write that is not settled
    target_ids: list[str] = []  # the target's documents of the key, as the stream showed them, where their ids are not the key


class Hole(msgspec.Struct, frozen=True, kw_only=True, tag="hole"):
    """A stretch of the stream whose writes nobody can judge one by one; a sweep covers it.

    ``time_from`` 0: nobody knows its beginning. ``first_to``: such holes are joined in it, and the first one ended then.
    """

    id: str
    pipeline: str
    side: int
    feed: str
    feed_partition: int
    time_from: int
    time_to: int
    reason: str
    first_to: int = 0


class Heard(msgspec.Struct, frozen=True, kw_only=True, tag="heard"):
    """What the sink said of a key's write that had been raised, or judged, before: an open gap of it learns its cause.

    ``id`` is deterministic. ``skew``: milliseconds by which the sink's clock, in what names no write, may be behind the source's.
    """

    id: str
    pipeline: str
    key: bytes
    given_up: GivenUp
    skew: int = 0


class Limit(StrEnum):
    """Limits whose overflow is a hole: what a hole's ``reason`` says of it."""

    PENDING_KEYS = "pending_keys_max"
    SUSPECTS = "suspects_max"
    REORDER = "reorder_max"


Said = Suspect | Hole | Heard  # what lies on the topic


class FeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    side: int
    feed: str
    feed_partition: int
    partitions: int
    epoch: int
    reached: int
    watermark: int
    caught_up: int
    delivery: int


class Counters(msgspec.Struct, kw_only=True):
    """Totals since the state began, part of the checkpointed state. Every expected write ends in exactly one class."""

    expected: int = 0
    observed: int = 0
    settled: int = 0
    superseded: int = 0
    gap: int = 0
    cleared: int = 0  # settled by a confirm read rather than by an observed event
    masked: int = 0  # of the settled ones: a field was in no event, so that nothing but a content sweep proves it
    unverifiable: dict[str, int] = msgspec.field(default_factory=dict)
    unchanged: int = 0
    late: int = 0
    repeated: int = 0
    snapshot_reads: dict[str, int] = msgspec.field(default_factory=dict)  # by side
    raised: int = 0
    forgotten: int = 0  # keys that made room for others: settled ones (a read more, never a verdict), unexplained ones (a hole)


class Closed(msgspec.Struct, frozen=True):
    """Expected writes that are in a class for good, counted over some time. ``masked`` ones are among the settled."""

    settled: int = 0
    superseded: int = 0
    gap: int = 0
    masked: int = 0
    unverifiable: int = 0


class PartitionStatus(msgspec.Struct, kw_only=True):
    """One pipeline in one partition of ``gapwatch.events``, once a second. 0 times: not known. None: there is none.

    The reader keeps, per pipeline and partition, the record with the highest ``input_offset``; ``written_at``: writer's clock.
    """

    pipeline: str
    partition: int
    partitions: int
    worker: str
    input_offset: int
    written_at: int
    source_watermark: int
    target_watermark: int
    source_caught_up: int
    target_caught_up: int
    delivered_through: int
    oldest_unsettled: int | None  # event time of the oldest pending, in-transit, raised or unverifiable write
    oldest_in_transit: int | None
    pending: int
    in_transit: int
    raised: int
    counters: Counters
    feeds: list[FeedStatus]
    holes: list[Hole]
    delays_ms: list[tuple[int, int]] = msgspec.field(default_factory=list)  # propagation: (upper bound or -1, count)
    delivery_unknown: bool = False
    last_hour: Closed | None = None  # closed within it; None: a version that did not say so
    state_format: int = 0  # of the state that its writer stores; 0: a version that did not say so
