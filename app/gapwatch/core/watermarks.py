"""Match's side of time: per feed partition what was read without gaps, and how far time has come (``design.md`` 2 and 3).

A range of a feed partition is applied only when everything before it was: what begins above ``reached`` waits in a bounded
buffer, what lies below is a repetition. Watermarks come in control records that belong to ranges, so they wait in that buffer.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from gapwatch.model.stream import NO_DELIVERY, NO_TOPIC, UNKNOWN_DELIVERY, FeedState, Lost, PackedSection
from gapwatch.model.suspect import Limit

REORDER_EVENTS_MAX: Final = 10_000  # events of one feed partition that wait for what comes before them
STEPS_MAX: Final = 128  # moves of the sink's position that are remembered with their time
NEVER: Final = 1 << 62

T = TypeVar("T")
Kept = npt.NDArray[np.bool_]
FeedKey = tuple[str, int, str, int]  # pipeline, side, feed, feed partition


class Span(NamedTuple):
    """A stretch that nobody can judge: store times between, in milliseconds; raw offsets where they are known."""

    time_from: int
    time_to: int
    reason: str
    epoch: int = 0
    offset_from: int = -1
    offset_to: int = -1
    local: bool = False  # only this partition of ``gapwatch.events`` misses it


class Waiting(NamedTuple):
    """A section or a feed's state that waits for what comes before it; ``since`` is its append time in ``gapwatch.events``."""

    offset_from: int
    number: int
    since: int
    item: PackedSection | FeedState


@dataclass(slots=True)
class FeedPartition:
    """What is known of one partition of one feed. Times are milliseconds, 0: not known.

    ``steps``: (position, clock) of the sink's moves, oldest first, so that the time at which it passed an offset is known.
    ``gone_below``: epochs below this one belong to a log that is no more; nothing of them is in transit since ``gone_clock``.
    """

    epoch: int = -1
    reached: int = -1  # nothing was read of it yet
    watermark: int = 0
    first: int = 0  # the first watermark that was not 0
    caught_up: int = 0
    delivery: int = UNKNOWN_DELIVERY  # as last said
    delivery_clock: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)
    gone_below: int = 0
    gone_clock: int = 0
    partitions: int = 0  # of the feed, as its ingester last said; 0 with a watermark: a feed without a topic yet
    spoke: int = 0  # append time of the last control record that was applied
    lost_to: int = -1  # up to where lost ranges of this epoch were said …
    lost_time: int = 0  # … and when the last of those began that hold no offset
    repeated: int = 0
    number: int = 0
    waiting: list[Waiting] = field(default_factory=list)

    @property
    def waiting_events(self) -> int:
        return sum(len(entry.item.keys) if isinstance(entry.item, PackedSection) else 1 for entry in self.waiting)

    @property
    def is_gone(self) -> bool:
        """Whether its topic was made anew with fewer partitions."""
        return 0 <= self.epoch < self.gone_below

    @property
    def position(self) -> int:
        """Return the last position of the sink that anybody knew; -1: none."""
        return self.steps[-1][0] if self.steps else -1

    def passed(self, epoch: int, offset: int) -> int | None:
        """Return the clock at which the sink's position had passed an offset (0: it needs none); None: it is in transit."""
        if self.delivery == NO_DELIVERY:
            return 0
        if epoch < self.gone_below:
            return self.gone_clock
        index = bisect_right(self.steps, (offset, NEVER))
        return self.steps[index][1] if index < len(self.steps) else None

    def move(self, position: int, clock: int) -> None:
        """The sink's position is `position`, read at `clock`; it may go back."""
        if clock < self.delivery_clock:
            return  # of an ingester that was overtaken
        self.delivery, self.delivery_clock = position, clock
        steps = self.steps
        index = bisect_right(steps, (position, NEVER))
        if index < len(steps):  # it went back: what lies below was passed when it first was
            steps[index:] = [(position, steps[index][1])] if not index or steps[index - 1][0] < position else []
        elif not steps or steps[-1][0] < position:
            steps.append((position, clock))
        if len(steps) > STEPS_MAX:  # the older half more coarsely, and never too early
            steps[: STEPS_MAX // 2] = steps[1 : STEPS_MAX // 2 : 2]


_PACKED: Final = tuple(one.name for one in fields(FeedPartition) if one.name != "waiting")


class Admitted(NamedTuple):
    """What may be applied now, in order, the spans that had to be given up, and partitions that are no more, with theirs."""

    items: list[PackedSection | FeedState]
    holes: list[Span]
    gone: list[tuple[int, Span]]


class FeedTimes:
    """All feed partitions that one partition of ``gapwatch.events`` has heard of."""

    def __init__(self) -> None:
        self.feeds: dict[FeedKey, FeedPartition] = {}
        self._sides: dict[tuple[str, int], dict[FeedKey, FeedPartition]] = {}  # the same, by pipeline and side
        self.waiting_changed = False

    def of(self, key: FeedKey) -> FeedPartition:
        found = self.feeds.get(key)
        return self._add(key, FeedPartition()) if found is None else found

    def _add(self, key: FeedKey, feed: FeedPartition) -> FeedPartition:
        self.feeds[key] = self._sides.setdefault(key[:2], {})[key] = feed
        return feed

    def side(self, pipeline: str, side: int) -> Iterator[tuple[FeedKey, FeedPartition]]:
        return iter(self._sides.get((pipeline, side), {}).items())

    def follow(self, key: FeedKey, section: PackedSection) -> bool:
        """Take a section that begins just where its feed partition was read to, as nearly all do; False: :meth:`admit` has to."""
        feed = self.feeds.get(key)
        if (
            feed is None
            or feed.waiting
            or section.epoch != feed.epoch
            or not feed.reached == section.offset_from < section.offset_to
        ):
            return False
        feed.reached = section.offset_to
        return True

    def admit(self, key: FeedKey, item: PackedSection | FeedState, append_time: int, stall_after_ms: int) -> Admitted:
        """Take a section or a feed's state; return what is in turn now.

        Args:
            key: The feed partition that it speaks of.
            item: It, with its range ``[offset_from, offset_to)``.
            append_time: Kafka's timestamp of the record of ``gapwatch.events`` that holds it.
            stall_after_ms: How much later the feed may go on before what is missing is given up.
        """
        feed = self.of(key)
        admitted = Admitted([], [], [])
        if item.epoch < feed.epoch:
            feed.repeated += len(item.keys) if isinstance(item, PackedSection) else 0
            return admitted  # of a log that is no more: a repetition
        if item.epoch > feed.epoch:
            self._begin_epoch(feed, item, append_time, admitted, was_empty=self._was_without_topic(key, item))
        if item.offset_from > feed.reached:
            feed.number += 1
            insort(feed.waiting, Waiting(item.offset_from, feed.number, append_time, item))
            self.waiting_changed = True
            self._give_up(feed, append_time, stall_after_ms, admitted)
        else:
            self._take(feed, item, append_time, admitted)
        self._release(feed, admitted)
        if feed.gone_below and isinstance(item, FeedState) and len(self._sides[key[:2]]) > item.partitions:
            self._let_go(key, item, append_time, stall_after_ms, admitted)
        return admitted

    def _let_go(self, key: FeedKey, state: FeedState, now: int, stall_after_ms: int, admitted: Admitted) -> None:
        """A topic that was made anew may have fewer partitions: those that fell silent beyond them hold no time any more.

        What they had after their watermark nobody can judge, and no sink will deliver what it had not yet of them.
        """
        pipeline, side, topic, _ = key
        for other, feed in self.side(pipeline, side):
            if other[2] == topic and other[3] >= state.partitions and feed.spoke and now - feed.spoke > stall_after_ms:
                admitted.gone.append((other[3], Span(feed.watermark, max(feed.watermark, now), "topic_recreated")))
                feed.gone_below, feed.gone_clock = feed.epoch + 1, now
                feed.spoke = feed.partitions = 0
                self.waiting_changed = self.waiting_changed or bool(feed.waiting)
                feed.waiting.clear()

    def _was_without_topic(self, key: FeedKey, item: PackedSection | FeedState) -> bool:
        """Whether the feed had no topic when it was first heard of, and this is the beginning of its log: nothing was before."""
        pipeline, side, feed, number = key
        before = self.feeds.get((pipeline, side, feed, NO_TOPIC))
        return number != NO_TOPIC and item.offset_from == 0 and before is not None and before.spoke > 0

    def _begin_epoch(
        self, feed: FeedPartition, item: PackedSection | FeedState, append_time: int, admitted: Admitted, *, was_empty: bool
    ) -> None:
        """A first start or a new log: what was before nobody can judge, unless nothing was."""
        if feed.epoch >= 0 or not was_empty:
            reason = "ingest_hole" if feed.epoch < 0 else "topic_recreated"
            admitted.holes.append(Span(feed.watermark, append_time, reason, item.epoch, -1, item.offset_from))
        if feed.epoch >= 0 and item.offset_from < feed.reached:  # another log, whose offsets begin anew
            feed.steps.clear()
            feed.delivery, feed.delivery_clock = UNKNOWN_DELIVERY, 0
            feed.gone_below, feed.gone_clock = item.epoch, append_time
            feed.partitions = 0  # it may have fewer
        feed.epoch, feed.reached, feed.lost_to, feed.lost_time = item.epoch, item.offset_from, -1, 0
        self.waiting_changed = self.waiting_changed or bool(feed.waiting)
        feed.waiting.clear()

    def _take(self, feed: FeedPartition, item: PackedSection | FeedState, since: int, admitted: Admitted) -> None:
        if isinstance(item, FeedState):
            admitted.items.append(item)
            self._apply_state(feed, item, since, admitted)
            feed.reached = max(feed.reached, item.offset_to)
        elif item.offset_to > feed.reached:
            section = _above(item, feed.reached)
            feed.repeated += len(item.keys) - len(section.keys)
            admitted.items.append(section)
            feed.reached = item.offset_to
        else:
            feed.repeated += len(item.keys)

    def _apply_state(self, feed: FeedPartition, state: FeedState, since: int, admitted: Admitted) -> None:
        for lost in sorted(state.lost, key=_end_of):  # said as they were found: of several pipelines, and when read or when sent
            between = lost.offset_from == lost.offset_to == feed.lost_to and lost.time_from > feed.lost_time
            if lost.offset_to > feed.lost_to or between:
                # It was appended after it was committed: what is known of its commit is that no watermark had passed it.
                time_from = min(lost.time_from or feed.watermark, feed.watermark or lost.time_from)
                time_to = max(time_from, lost.time_to or since)
                admitted.holes.append(Span(time_from, time_to, lost.reason, state.epoch, lost.offset_from, lost.offset_to))
                feed.lost_to = lost.offset_to
                feed.lost_time = lost.time_from if lost.offset_from == lost.offset_to else 0
        feed.spoke = max(feed.spoke, since, 1)
        feed.watermark = max(feed.watermark, state.watermark)
        feed.first = feed.first or state.watermark
        feed.caught_up = max(feed.caught_up, state.caught_up)
        feed.partitions = max(feed.partitions, state.partitions)
        if state.delivery >= 0:
            feed.move(state.delivery, state.delivery_clock)
        else:
            feed.delivery = state.delivery

    def _release(self, feed: FeedPartition, admitted: Admitted) -> None:
        while feed.waiting and feed.waiting[0].offset_from <= feed.reached:
            entry = feed.waiting.pop(0)
            self.waiting_changed = True
            self._take(feed, entry.item, entry.since, admitted)

    def _give_up(self, feed: FeedPartition, now: int, stall_after_ms: int, admitted: Admitted) -> None:
        """Jump over what does not come: the buffer is full, or its feed went on for too long without it."""
        while feed.waiting and feed.waiting[0].offset_from > feed.reached:
            stalled = now - min(entry.since for entry in feed.waiting) > stall_after_ms
            if not stalled and feed.waiting_events <= REORDER_EVENTS_MAX:
                return
            first = feed.waiting[0]
            reason = "ingest_hole" if stalled else Limit.REORDER.value
            span = Span(feed.watermark, max(feed.watermark, now), reason, feed.epoch, feed.reached, first.offset_from, local=True)
            admitted.holes.append(span)
            feed.reached = first.offset_from
            self._release(feed, admitted)

    def watermark(self, pipeline: str, side: int, topics: Sequence[str]) -> int:
        """Return the side's watermark: the least of all partitions; 0 until each of them, of all `topics`, has spoken.

        A feed that is not among them was left out of the configuration: nothing waits for it any more.
        """
        return self._least(pipeline, side, topics, "watermark")

    def caught_up(self, pipeline: str, side: int, topics: Sequence[str]) -> int:
        return self._least(pipeline, side, topics, "caught_up")

    def start(self, pipeline: str, side: int, topics: Sequence[str]) -> int:
        """Return the time from which on the side was read as a stream, in all of its partitions; 0: not known yet."""
        if not self.watermark(pipeline, side, topics):
            return 0
        return max((feed.first for key, feed in self.side(pipeline, side) if key[2] in topics or not any(topics)), default=0)

    def _least(self, pipeline: str, side: int, topics: Sequence[str], name: str) -> int:
        watched, found = any(topics), dict[str, list[int]]()  # by feed: how many spoke, of how many, the least, and NO_TOPIC's
        for (_, _, topic, number), feed in self._sides.get((pipeline, side), {}).items():
            if not feed.spoke or (watched and topic not in topics):
                continue
            value: int = getattr(feed, name)
            known = found.get(topic)
            if known is None:
                known = found[topic] = [0, 0, value, 0]
            if number == NO_TOPIC:
                known[3] = value
                continue
            known[2] = value if not known[0] or value < known[2] else known[2]
            known[0] += 1
            known[1] = max(known[1], feed.partitions)
        if watched and any(topic and topic not in found for topic in topics):
            return 0
        return min(map(_least_of, found.values()), default=0)

    def pack(self) -> list[Any]:
        """Return everything but what waits, for the commit marker."""
        return [(key, _fields(feed)) for key, feed in self.feeds.items()]

    def unpack(self, packed: Sequence[Any]) -> None:
        for (pipeline, side, name, number), values in packed:
            feed = FeedPartition(**values)
            feed.steps = [(position, clock) for position, clock in feed.steps]
            self._add((pipeline, side, name, number), feed)

    def pack_waiting(self) -> list[Any]:
        return [
            (key, [(entry.number, entry.since, isinstance(entry.item, PackedSection), entry.item) for entry in feed.waiting])
            for key, feed in self.feeds.items()
            if feed.waiting
        ]

    def unpack_waiting(self, packed: Sequence[Any]) -> None:
        for (pipeline, side, name, number), entries in packed:
            feed = self.of((pipeline, side, name, number))
            feed.waiting = []
            for order, since, is_section, values in entries:
                item = msgspec.convert(values, PackedSection) if is_section else msgspec.convert(values, FeedState)
                feed.waiting.append(Waiting(item.offset_from, order, since, item))
            feed.waiting.sort()


def _end_of(lost: Lost) -> tuple[int, int]:
    return lost.offset_to, lost.offset_from


def _fields(feed: FeedPartition) -> dict[str, Any]:
    return {name: getattr(feed, name) for name in _PACKED}


def _least_of(known: list[int]) -> int:
    """Return the least over a feed's partitions, 0 until each has spoken; NO_TOPIC speaks for a feed without a topic."""
    spoken, partitions, least, without_topic = known
    if not spoken:
        return without_topic
    return least if spoken >= partitions else 0


def _above(section: PackedSection, reached: int) -> PackedSection:
    """Return the section without the events that lie below `reached`."""
    if section.offset_from >= reached:
        return section
    kept = np.frombuffer(section.offsets, "<i8") >= reached
    return section if kept.all() else _chosen(section, kept)


def _chosen(section: PackedSection, kept: Kept) -> PackedSection:
    """Return the section with these events only; its range stays."""

    def column(values: bytes, width: int = 8) -> bytes:
        return np.frombuffer(values, f"V{width}")[kept].tobytes()

    return msgspec.structs.replace(
        section,
        keys=_listed(section.keys, kept),
        operations=column(section.operations, 1),
        offsets=column(section.offsets),
        majors=column(section.majors),
        minors=column(section.minors),
        event_times=column(section.event_times),
        append_times=column(section.append_times),
        contents=column(section.contents, 1),
        digests=column(section.digests, 16),
        masks=None if section.masks is None else _listed(section.masks, kept),
        values=None if section.values is None else _listed(section.values, kept),
        versions=None if section.versions is None else column(section.versions),
        target_ids=None if section.target_ids is None else _listed(section.target_ids, kept),
    )


def _listed(column: Sequence[T], kept: Kept) -> list[T]:
    return [column[number] for number in np.flatnonzero(kept).tolist()]
