"""Match's side of time: per feed partition what was read without gaps, and how far time has come (``design.md`` 2 and 3).

A range of a feed partition is applied only when everything before it was: what begins above ``reached`` waits in a bounded
buffer, what lies below is a repetition. Watermarks come in control records that belong to ranges, so they wait in that buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec

from gapwatch.model.stream import NO_DELIVERY, NO_TOPIC, UNKNOWN_DELIVERY, FeedState, Section

REORDER_EVENTS_MAX: Final = 10_000  # events of one feed partition that wait for what comes before them

T = TypeVar("T")
FeedKey = tuple[str, int, str, int]  # pipeline, side, feed, feed partition
SideKey = tuple[str, int]  # pipeline, side


class Span(NamedTuple):
    """A stretch that nobody can judge: store times between, in milliseconds."""

    time_from: int
    time_to: int
    reason: str


class Waiting(NamedTuple):
    """A section or a feed's state that waits for what comes before it; ``since`` is its append time in ``gapwatch.events``."""

    offset_from: int
    number: int
    since: int
    item: Section | FeedState


@dataclass(slots=True)
class FeedPartition:
    """What is known of one partition of one feed. Times are milliseconds, 0: not known."""

    epoch: int = -1
    reached: int = -1  # nothing was read of it yet
    watermark: int = 0
    caught_up: int = 0
    delivery: int = UNKNOWN_DELIVERY
    delivery_clock: int = 0
    partitions: int = 0  # of the feed, as its ingester last said; 0 with a watermark: a feed without a topic yet
    spoke: int = 0  # append time of the last control record that spoke of it
    waiting: list[Waiting] = field(default_factory=list)

    @property
    def waiting_events(self) -> int:
        return sum(len(entry.item.offsets) for entry in self.waiting if isinstance(entry.item, Section))


class Admitted(NamedTuple):
    """What may be applied now, in order, and the spans that had to be given up."""

    items: list[Section | FeedState]
    holes: list[Span]


class FeedTimes:
    """All feed partitions that one partition of ``gapwatch.events`` has heard of."""

    def __init__(self, stall_after_ms: int = 30_000) -> None:
        self.feeds: dict[FeedKey, FeedPartition] = {}
        self._number = 0
        self._stall_after_ms = stall_after_ms

    def of(self, key: FeedKey) -> FeedPartition:
        found = self.feeds.get(key)
        if found is None:
            found = self.feeds[key] = FeedPartition()
        return found

    def side(self, pipeline: str, side: int) -> Iterator[tuple[FeedKey, FeedPartition]]:
        return ((key, feed) for key, feed in self.feeds.items() if key[0] == pipeline and key[1] == side)

    def admit(self, key: FeedKey, item: Section | FeedState, append_time: int) -> Admitted:
        """Take a section or a feed's state; return what is in turn now.

        Args:
            key: The feed partition that it speaks of.
            item: It, with its range ``[offset_from, offset_to)``.
            append_time: Kafka's timestamp of the record of ``gapwatch.events`` that holds it.
        """
        feed = self.of(key)
        admitted = Admitted([], [])
        if item.epoch < feed.epoch:
            return admitted  # of a log that is no more: a repetition
        if item.epoch > feed.epoch:
            self._begin_epoch(feed, item, append_time, admitted, was_empty=self._was_without_topic(key, item))
        if isinstance(item, FeedState):
            feed.spoke = max(feed.spoke, append_time)
        if item.offset_from > feed.reached:
            self._number += 1
            feed.waiting.append(Waiting(item.offset_from, self._number, append_time, item))
            feed.waiting.sort()
            self._give_up(feed, append_time, admitted)
        else:
            self._take(feed, item, admitted)
        self._release(feed, admitted)
        return admitted

    def _was_without_topic(self, key: FeedKey, item: Section | FeedState) -> bool:
        """Whether the feed had no topic when it was first heard of, and this is the beginning of its log: nothing was before."""
        pipeline, side, feed, number = key
        before = self.feeds.get((pipeline, side, feed, NO_TOPIC))
        return number != NO_TOPIC and item.offset_from == 0 and before is not None and before.spoke > 0

    def _begin_epoch(
        self, feed: FeedPartition, item: Section | FeedState, append_time: int, admitted: Admitted, *, was_empty: bool
    ) -> None:
        """A first start or a new log: what was before nobody can judge, unless nothing was."""
        if feed.epoch >= 0 or not was_empty:
            reason = "ingest_hole" if feed.epoch < 0 else "topic_recreated"
            admitted.holes.append(Span(feed.watermark, append_time, reason))
        feed.epoch, feed.reached = item.epoch, item.offset_from
        feed.delivery, feed.delivery_clock = UNKNOWN_DELIVERY, 0
        feed.waiting.clear()

    def _take(self, feed: FeedPartition, item: Section | FeedState, admitted: Admitted) -> None:
        if isinstance(item, FeedState):
            admitted.items.append(item)
            self._apply_state(feed, item, admitted)
            feed.reached = max(feed.reached, item.offset_to)
        elif item.offset_to > feed.reached:
            admitted.items.append(_above(item, feed.reached))
            feed.reached = item.offset_to

    def _apply_state(self, feed: FeedPartition, state: FeedState, admitted: Admitted) -> None:
        for lost in state.lost:
            if lost.offset_to > feed.reached:
                admitted.holes.append(Span(lost.time_from or feed.watermark, max(lost.time_to, lost.time_from), lost.reason))
        feed.watermark = max(feed.watermark, state.watermark)
        feed.caught_up = max(feed.caught_up, state.caught_up)
        feed.partitions = state.partitions
        if state.delivery in (NO_DELIVERY, UNKNOWN_DELIVERY):
            feed.delivery = state.delivery
        elif state.delivery_clock >= feed.delivery_clock:
            feed.delivery, feed.delivery_clock = state.delivery, state.delivery_clock

    def _release(self, feed: FeedPartition, admitted: Admitted) -> None:
        while feed.waiting and feed.waiting[0].offset_from <= feed.reached:
            self._take(feed, feed.waiting.pop(0).item, admitted)

    def _give_up(self, feed: FeedPartition, now: int, admitted: Admitted) -> None:
        """Jump over what does not come: the buffer is full, or its feed went on for too long without it."""
        while feed.waiting and feed.waiting[0].offset_from > feed.reached:
            stalled = now - feed.waiting[0].since > self._stall_after_ms
            if not stalled and feed.waiting_events <= REORDER_EVENTS_MAX:
                return
            first = feed.waiting[0]
            admitted.holes.append(Span(feed.watermark, _begins(first.item, first.since), "ingest_hole"))
            feed.reached = first.offset_from
            self._release(feed, admitted)

    def watermark(self, pipeline: str, side: int) -> int:
        """Return the side's watermark: the least of all partitions; 0 until each of them has spoken."""
        return self._least(pipeline, side, "watermark")

    def caught_up(self, pipeline: str, side: int) -> int:
        return self._least(pipeline, side, "caught_up")

    def _least(self, pipeline: str, side: int, name: str) -> int:
        by_feed: dict[str, dict[int, FeedPartition]] = {}
        for key, feed in self.side(pipeline, side):
            if feed.spoke:
                by_feed.setdefault(key[2], {})[key[3]] = feed
        values = [_least_of(feeds, name) for feeds in by_feed.values()]
        return min(values, default=0)


def _least_of(feeds: Mapping[int, FeedPartition], name: str) -> int:
    """Return the least over a feed's partitions, 0 until each has spoken; NO_TOPIC speaks for a feed without a topic."""
    real = [feed for number, feed in feeds.items() if number != NO_TOPIC]
    if not real:
        return int(getattr(feeds[NO_TOPIC], name))
    if len(real) < max(feed.partitions for feed in real):
        return 0
    return min(int(getattr(feed, name)) for feed in real)


def _begins(item: Section | FeedState, since: int) -> int:
    times = item.event_times if isinstance(item, Section) else ()
    return max(times, default=since)


def _above(section: Section, reached: int) -> Section:
    """Return the section without the events that lie below `reached`."""
    if section.offset_from >= reached:
        return section
    kept = [number for number, offset in enumerate(section.offsets) if offset >= reached]
    if len(kept) == len(section.offsets):
        return section
    return msgspec.structs.replace(
        section,
        offset_from=reached,
        keys=[section.keys[number] for number in kept],
        operations=bytes(section.operations[number] for number in kept),
        offsets=[section.offsets[number] for number in kept],
        majors=[section.majors[number] for number in kept],
        minors=[section.minors[number] for number in kept],
        event_times=[section.event_times[number] for number in kept],
        append_times=[section.append_times[number] for number in kept],
        digests=[section.digests[number] for number in kept],
        masks=_chosen(section.masks, kept),
        values=_chosen(section.values, kept),
        versions=_chosen(section.versions, kept),
        target_ids=_chosen(section.target_ids, kept),
    )


def _chosen(column: Sequence[T] | None, kept: Sequence[int]) -> list[T] | None:
    return [column[number] for number in kept] if column is not None else None
