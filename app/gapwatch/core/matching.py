"""Matching for the keys of one partition of ``gapwatch.events``: sections, times and verdicts come in, suspects come out.

Pure and deterministic: what it says depends only on the records applied, in their order. It asks no clock; a write is late when
the *streams* have passed its due time. ``design.md`` 3 and 4 say why each rule is as it is.

Conservation, per bucket: ``expected = settled + superseded + gap + cleared + Σ unverifiable + pending``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from gapwatch.core.batches import NO_VERSION
from gapwatch.core.buckets import Bucket, BucketStore
from gapwatch.core.keystate import OLDER_WHEN_SETTLED, Comparison, KeyState, Token, Write, is_masked
from gapwatch.core.watermarks import FeedPartition, FeedTimes, Span
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.model.stream import (
    NO_DELIVERY,
    UNKNOWN_DELIVERY,
    Batch,
    Control,
    FeedState,
    Operation,
    Outcome,
    Section,
    Side,
    VerdictSection,
)
from gapwatch.model.suspect import Counters, FeedStatus, Hole, PartitionStatus, Reason, Suspect

HOLES_MAX: Final = 50  # of one pipeline in one partition; older ones are joined
DELAY_BOUNDS_MS: Final = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 3_600_000)
MINUTE_MS: Final = 60_000

Due = tuple[int, int, bytes, int, Token]  # time, number (order of arrival), key, side, token


class _Pipeline:
    """One pipeline's times and queues in this partition; everything here but holes and times can be rebuilt from the keys."""

    def __init__(self, index: int, spec: PipelineSpec, fingerprint: int) -> None:
        self.index = index
        self.spec = spec
        self.fingerprint = fingerprint
        self.comparison = Comparison(spec.match, [field.tolerance for field in spec.fields if field.tolerance is not None])
        self.grace = int(spec.grace_seconds * 1000)
        self.skew = 0
        self.source_start = 0  # the source side's first watermark: what was observed before it is the baseline's
        self.holes: list[Hole] = []
        self.due: list[Due] = []
        self.again: list[Due] = []
        self.transit: dict[tuple[str, int], list[tuple[int, int, bytes, Token]]] = {}  # per source feed partition, by offset
        self.observes = spec.target.feed.kind is not FeedKind.NONE


class KeyMatcher:
    """The matcher of one partition, for all pipelines.

    Args:
        partition: Its number.
        partitions: How many partitions ``gapwatch.events`` has.
        pipelines: Resolved pipelines by id.
        fingerprints: Fingerprint of each pipeline's mapping.
        buckets: Into how many records the state is cut.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        pipelines: Mapping[str, PipelineSpec],
        *,
        fingerprints: Mapping[str, int],
        buckets: int = 32,
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        names = sorted(pipelines)
        self._pipelines = {
            name: _Pipeline(number, pipelines[name], fingerprints[name])
            for number, name in enumerate(names)
            if name in fingerprints
        }
        stall = min((int(spec.stall_after_seconds * 1000) for spec in pipelines.values()), default=30_000)
        self._times = FeedTimes(stall)
        limits = {name: max(16, spec.settled_keys_max // (partitions * buckets)) for name, spec in pipelines.items()}
        self._store = BucketStore(partitions, buckets, limits)
        self._number = 0
        self.applied = -1

    # what comes in

    def apply(self, record: Batch | Control, offset: int, append_time: int) -> list[Suspect | Hole]:
        """Apply one record of ``gapwatch.events``; return what has to be said at once (holes).

        Args:
            record: The record.
            offset: Its offset; records come in order, each once, but for what :meth:`restore` repeats.
            append_time: Its Kafka timestamp, in milliseconds.
        """
        said: list[Suspect | Hole] = []
        self.applied = offset
        if isinstance(record, Control):
            for times in record.pipelines:
                pipeline = self._pipelines.get(times.pipeline)
                if pipeline is not None:
                    pipeline.skew, pipeline.grace = max(0, times.skew), times.grace
            for state in record.feeds:
                self._admit(state, state.feed_partition, append_time, said)
            return said
        for section in record.sections:
            self._admit(section, section.feed_partition, append_time, said)
        for verdicts in record.verdicts:
            self._apply_verdicts(verdicts)
        return said

    def _admit(self, item: Section | FeedState, number: int, append_time: int, said: list[Suspect | Hole]) -> None:
        pipeline = self._pipelines.get(item.pipeline)
        if pipeline is None:
            return
        key = (item.pipeline, item.side, item.feed, number)
        admitted = self._times.admit(key, item, append_time)
        said += [self._hole(pipeline, item.side, item.feed, number, span) for span in admitted.holes]
        for ready in admitted.items:
            if isinstance(ready, Section):
                self._apply_section(pipeline, ready, said)
            elif ready.side == Side.EXPECTED:
                self._deliver(pipeline, ready.feed, number)
        if not pipeline.source_start:
            pipeline.source_start = self._times.watermark(item.pipeline, Side.EXPECTED)

    def _apply_section(self, pipeline: _Pipeline, section: Section, said: list[Suspect | Hole]) -> None:
        store, applied = self._store, self.applied
        take = self._expect if section.side == Side.EXPECTED else self._observe
        late_below = self._times.watermark(section.pipeline, section.side)
        for number, key in enumerate(section.keys):
            bucket = store.bucket_of(key)
            if bucket.applied >= applied:
                continue  # the restored bucket holds this already
            write = _write_of(section, number)
            counters = bucket.counters_of(pipeline.spec.id)
            if write.event_time < late_below and write.operation != Operation.SNAPSHOT:
                counters.late += 1
            take(pipeline, bucket, counters, key, write, said)

    def _expect(
        self, pipeline: _Pipeline, bucket: Bucket, counters: Counters, key: bytes, write: Write, said: list[Suspect | Hole]
    ) -> None:
        """Take one write of the source."""
        if write.operation == Operation.DEAD_LETTERED:
            self._dead_lettered(pipeline, bucket, key)
            return
        state = bucket.find(pipeline.spec.id, key)
        newest = state.expected if state is not None else None
        if newest is not None and write.token <= newest.token:
            counters.repeated += 1
            return
        if write.operation == Operation.SNAPSHOT:
            counters.snapshot_reads["expected"] = counters.snapshot_reads.get("expected", 0) + 1
            if state is None or state.settled:
                state = state or KeyState()
                state.expected = write
                bucket.put(pipeline.spec.id, key, state)
            return
        state = state or KeyState()
        _carry_masks(write, newest)
        if newest is not None:
            state.remember(newest.identity, pipeline.spec.history)
        state.expected = write
        if write.operation == Operation.UNCHANGED:
            counters.unchanged += 1
            bucket.put(pipeline.spec.id, key, state)
            return
        counters.expected += 1
        if pipeline.comparison.satisfies(write, state.observed):
            self._settle(counters, state, len(state.pending), write, arrived=None)
            bucket.put(pipeline.spec.id, key, state)
            return
        if not state.pending and bucket.open_count(pipeline.spec.id) >= self._pending_limit(pipeline):
            counters.unverifiable["overflow"] = counters.unverifiable.get("overflow", 0) + 1
            said.append(self._overflow(pipeline, write))
            bucket.drop(pipeline.spec.id, key)
            return
        self._push(pipeline, counters, state, write)
        bucket.put(pipeline.spec.id, key, state)
        self._schedule(pipeline, key, write)

    def _pending_limit(self, pipeline: _Pipeline) -> int:
        return max(1, pipeline.spec.pending_keys_max // (self._partitions * len(self._store)))

    def _push(self, pipeline: _Pipeline, counters: Counters, state: KeyState, write: Write) -> None:
        state.pending.append(write)
        if len(state.pending) > pipeline.spec.history:
            del state.pending[1]  # the oldest keeps its due time, the newest ones stay
            state.overflowed = True
            counters.superseded += 1

    def _observe(
        self, pipeline: _Pipeline, bucket: Bucket, counters: Counters, key: bytes, write: Write, said: list[Suspect | Hole]
    ) -> None:
        """Take one write of the target."""
        name = pipeline.spec.id
        state = bucket.find(name, key)
        if state is not None and state.observed is not None and write.token <= state.observed.token:
            counters.repeated += 1
            return
        if write.operation == Operation.SNAPSHOT:
            counters.snapshot_reads["observed"] = counters.snapshot_reads.get("observed", 0) + 1
            if state is not None and state.settled:
                state.observed = write
                bucket.put(name, key, state)
            return
        counters.observed += 1
        state = state or KeyState()
        state.observed = write
        matched = next(
            (
                number
                for number in range(len(state.pending) - 1, -1, -1)
                if pipeline.comparison.satisfies(state.pending[number], write)
            ),
            None,
        )
        if matched is not None:
            self._settle(counters, state, matched, state.pending[matched], arrived=write)
            del state.pending[: matched + 1]
            self._moved_on(pipeline, key, state)
        elif state.expected is not None and pipeline.comparison.satisfies(state.expected, write):
            state.odd = None
            state.raised = 0 if not state.pending else state.raised
        elif state.pending and state.overflowed:
            state.pending[0].event_time = max(state.pending[0].event_time, write.event_time)  # progress: it gets its grace anew
            self._schedule(pipeline, key, state.pending[0])
        else:
            self._odd(pipeline, key, state, write)
        bucket.put(name, key, state)

    def _settle(self, counters: Counters, state: KeyState, superseded: int, write: Write, *, arrived: Write | None) -> None:
        """Count `write` as settled and the `superseded` pending ones before it; a newest one ends what was odd."""
        counters.settled += 1
        counters.masked += is_masked(write)
        counters.superseded += superseded
        if arrived is not None:
            self._store.delay(_delay_bound(arrived.event_time - write.event_time))
        if arrived is None:
            state.pending.clear()
        if state.expected is not None and write.token == state.expected.token:
            state.odd, state.raised, state.overflowed = None, 0, False
            del state.older[OLDER_WHEN_SETTLED:]

    def _moved_on(self, pipeline: _Pipeline, key: bytes, state: KeyState) -> None:
        """After an older version arrived: the oldest one that is left has its own due time."""
        state.raised = 0
        state.overflowed = state.overflowed and len(state.pending) > 1
        if state.pending:
            state.odd = None
            self._schedule(pipeline, key, state.pending[0])

    def _odd(self, pipeline: _Pipeline, key: bytes, state: KeyState, write: Write) -> None:
        """The target shows what no expected version that is not settled yet explains."""
        newest = state.expected
        if write.unknown:
            state.odd_reason = Reason.TOUCHED
        elif newest is not None and not newest.absent and not write.absent and newest.mapping != write.mapping:
            state.odd_reason = Reason.MAPPING
        elif newest is not None and (write.identity in state.older or newest.absent):
            state.odd_reason = Reason.REGRESSED
        else:
            state.odd_reason = Reason.UNEXPLAINED
        state.odd = write
        if not state.pending:
            state.raised = 0
            self._schedule(pipeline, key, write)

    def _dead_lettered(self, pipeline: _Pipeline, bucket: Bucket, key: bytes) -> None:
        state = bucket.find(pipeline.spec.id, key)
        if state is not None and state.pending:
            state.odd_reason = Reason.DEAD_LETTERED
            first = state.pending[0]
            heapq.heappush(pipeline.due, (0, self._next(), key, first.side, first.token))
            bucket.put(pipeline.spec.id, key, state)

    # when something is due

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _schedule(self, pipeline: _Pipeline, key: bytes, write: Write) -> None:
        """Queue a write: by its offset while the sink has not come to it, else by its due time."""
        clock = 0
        if write.side == Side.EXPECTED and pipeline.spec.delivery.known:
            feed = self._feed(pipeline, write)
            if _in_transit(feed, write):
                queue = pipeline.transit.setdefault((write.feed, write.partition), [])
                heapq.heappush(queue, (write.offset, self._next(), key, write.token))
                return
            clock = feed.delivery_clock
        due = max(write.event_time + pipeline.grace, write.append_time + pipeline.grace, clock) + pipeline.skew
        heapq.heappush(pipeline.due, (due, self._next(), key, write.side, write.token))

    def _feed(self, pipeline: _Pipeline, write: Write) -> FeedPartition:
        return self._times.of((pipeline.spec.id, write.side, write.feed, write.partition))

    def _deliver(self, pipeline: _Pipeline, feed_name: str, number: int) -> None:
        """The sink's position moved: what it has passed gets its due time."""
        queue = pipeline.transit.get((feed_name, number))
        if not queue:
            return
        feed = self._times.of((pipeline.spec.id, Side.EXPECTED, feed_name, number))
        while queue and (feed.delivery == NO_DELIVERY or (feed.delivery >= 0 and queue[0][0] < feed.delivery)):
            _, _, key, token = heapq.heappop(queue)
            write = self._pending(pipeline, key, token)
            if write is not None:
                self._schedule(pipeline, key, write)

    def _pending(self, pipeline: _Pipeline, key: bytes, token: Token) -> Write | None:
        state = self._store.bucket_of(key).find(pipeline.spec.id, key)
        if state is None:
            return None
        return next((write for write in state.pending if write.token == token), None)

    def advance(self) -> list[Suspect | Hole]:
        """Return the suspects that the streams' times make due; to be called after each record that was applied."""
        said: list[Suspect | Hole] = []
        for pipeline in self._pipelines.values():
            now = self._now(pipeline)
            target = self._target_watermark(pipeline)
            if not now:
                continue
            while pipeline.due and pipeline.due[0][0] <= now:
                suspect = self._raise(pipeline, heapq.heappop(pipeline.due), target)
                if suspect is not None:
                    said.append(suspect)
            while pipeline.again and pipeline.again[0][0] <= target:
                suspect = self._raise(pipeline, heapq.heappop(pipeline.again), target, again=True)
                if suspect is not None:
                    said.append(suspect)
        return said

    def _target_watermark(self, pipeline: _Pipeline) -> int:
        return self._times.watermark(pipeline.spec.id, Side.OBSERVED if pipeline.observes else Side.EXPECTED)

    def _now(self, pipeline: _Pipeline) -> int:
        """Return the time that the streams have passed: what is due by then is late. 0: nothing can be late yet."""
        target = self._target_watermark(pipeline)
        caught_up = self._times.caught_up(pipeline.spec.id, Side.EXPECTED)
        return min(target, caught_up)

    def _raise(self, pipeline: _Pipeline, due: Due, target: int, *, again: bool = False) -> Suspect | None:
        _, _, key, side, token = due
        bucket = self._store.bucket_of(key)
        state = bucket.find(pipeline.spec.id, key)
        if state is None or state.settled:
            return None
        opening = state.opening()
        if opening.token != token or opening.side != side:
            return None  # that write is settled, or waits behind an older one
        if state.raised and not again:
            return None
        if side == Side.EXPECTED and pipeline.spec.delivery.known and _in_transit(self._feed(pipeline, opening), opening):
            self._schedule(pipeline, key, opening)  # the sink went back
            return None
        if side == Side.OBSERVED and state.expected is None and self._before_start(pipeline, opening):
            bucket.drop(pipeline.spec.id, key)
            return None
        counters = bucket.counters_of(pipeline.spec.id)
        counters.raised += 0 if again or state.raised else 1
        state.raised = max(1, target)
        bucket.put(pipeline.spec.id, key, state)
        later = state.raised + int(pipeline.spec.confirm_again_seconds * 1000)
        heapq.heappush(pipeline.again, (later, self._next(), key, side, token))
        return self._suspect(pipeline, key, state, opening, due[0], again=again)

    def _before_start(self, pipeline: _Pipeline, write: Write) -> bool:
        return not pipeline.source_start or write.event_time < pipeline.source_start

    def _suspect(self, pipeline: _Pipeline, key: bytes, state: KeyState, opening: Write, due: int, *, again: bool) -> Suspect:
        if opening.side == Side.EXPECTED:
            reason = Reason.DEAD_LETTERED if state.odd_reason == Reason.DEAD_LETTERED else Reason.UNSATISFIED
            if opening.unknown:
                reason = Reason.TOUCHED
            elif state.observed is not None and not state.observed.absent and state.observed.mapping != opening.mapping:
                reason = Reason.MAPPING
        else:
            reason = state.odd_reason
        name = pipeline.spec.id
        return Suspect(
            id=_suspect_id(name, key, opening),
            pipeline=name,
            partition=self._partition,
            key=key,
            reason=reason,
            opening=opening.seen(),
            newest_expected=state.expected.seen() if state.expected else None,
            newest_observed=state.observed.seen() if state.observed else None,
            older=list(state.older),
            due=due,
            source_watermark=self._times.watermark(name, Side.EXPECTED),
            target_watermark=self._target_watermark(pipeline),
            raised_again=again,
        )

    # verdicts

    def _apply_verdicts(self, section: VerdictSection) -> None:
        pipeline = self._pipelines.get(section.pipeline)
        if pipeline is None:
            return
        for number, key in enumerate(section.keys):
            bucket = self._store.bucket_of(key)
            if bucket.applied >= self.applied:
                continue
            state = bucket.find(section.pipeline, key)
            if state is None:
                continue
            epoch, major, minor = section.tokens[number]
            self._close(
                pipeline, bucket, key, state, section.sides[number], (epoch, major, minor), Outcome(section.outcomes[number])
            )

    def _close(
        self, pipeline: _Pipeline, bucket: Bucket, key: bytes, state: KeyState, side: int, token: Token, outcome: Outcome
    ) -> None:
        """Close what the verdict's token names and everything older, nothing newer."""
        counters = bucket.counters_of(pipeline.spec.id)
        newer = state.expected is not None and state.expected.token > token
        if outcome is Outcome.SUPERSEDED and side == Side.EXPECTED and not newer:
            return  # nothing newer is known here: the key stays raised
        if side == Side.EXPECTED:
            closed = [write for write in state.pending if write.token <= token]
            if not closed:
                return
            _count(counters, outcome, len(closed))
            state.pending = [write for write in state.pending if write.token > token]
            state.overflowed = state.overflowed and len(state.pending) > 1
            if not state.pending and outcome is not Outcome.SUPERSEDED:
                state.odd = None
        elif state.odd is None or state.odd.token > token:
            return
        else:
            state.odd = None
        state.raised, state.odd_reason = 0, state.odd_reason if state.odd else ""
        if state.settled and (outcome is Outcome.GAP or state.expected is None):
            bucket.drop(pipeline.spec.id, key)  # the ledger holds the gap; of a key unknown to the source nothing is left to know
            return
        if state.settled and outcome is Outcome.CLEARED:
            state.observed = None  # a read proved agreement; what the stream showed last says nothing against it any more
        bucket.put(pipeline.spec.id, key, state)
        if not state.settled:
            self._schedule(pipeline, key, state.opening())

    # holes

    def _hole(self, pipeline: _Pipeline, side: int, feed: str, number: int, span: Span) -> Hole:
        parts = (pipeline.spec.id, str(side), feed, str(number), span.reason, str(span.time_from), str(span.time_to // MINUTE_MS))
        hole = Hole(
            id="hole_" + xxhash.xxh3_128_hexdigest("\0".join(parts).encode()),
            pipeline=pipeline.spec.id,
            side=side,
            feed=feed,
            feed_partition=number,
            time_from=span.time_from,
            time_to=span.time_to,
            reason=span.reason,
        )
        pipeline.holes = [known for known in pipeline.holes if known.id != hole.id] + [hole]
        if len(pipeline.holes) > HOLES_MAX:
            first, second, *rest = pipeline.holes
            joined = msgspec.structs.replace(
                second, time_from=min(first.time_from, second.time_from), time_to=max(first.time_to, second.time_to)
            )
            pipeline.holes = [joined, *rest]
        return hole

    def _overflow(self, pipeline: _Pipeline, write: Write) -> Hole:
        second = write.event_time // 1_000 * 1_000
        return self._hole(pipeline, write.side, write.feed, write.partition, Span(second, second + 1_000, "ingest_hole"))

    # what is shown

    def status(self, worker: str, now_ms: int) -> list[PartitionStatus]:
        """Return one record per pipeline."""
        return [self._status(pipeline, worker, now_ms) for pipeline in self._pipelines.values()]

    def _status(self, pipeline: _Pipeline, worker: str, now_ms: int) -> PartitionStatus:
        name = pipeline.spec.id
        pending = in_transit = raised = 0
        oldest: int | None = None
        oldest_transit: int | None = None
        known = pipeline.spec.delivery.known
        for state in self._store.open_states(name):
            time = state.oldest_time
            if state.odd is not None and not state.pending and state.expected is None and self._before_start(pipeline, state.odd):
                continue  # the baseline's
            oldest = time if oldest is None else min(oldest, time)
            first = state.pending[0] if state.pending else None
            if first is not None and known and _in_transit(self._feed(pipeline, first), first):
                in_transit += 1
                oldest_transit = first.event_time if oldest_transit is None else min(oldest_transit, first.event_time)
            elif state.raised:
                raised += 1
            else:
                pending += 1
        source = self._times.watermark(name, Side.EXPECTED)
        feeds = [
            FeedStatus(
                side=key[1],
                feed=key[2],
                feed_partition=key[3],
                partitions=feed.partitions,
                epoch=feed.epoch,
                reached=feed.reached,
                watermark=feed.watermark,
                caught_up=feed.caught_up,
                delivery=feed.delivery if key[1] == Side.EXPECTED else NO_DELIVERY,
            )
            for side in Side
            for key, feed in self._times.side(name, side)
        ]
        unknown = known and any(
            feed.delivery == UNKNOWN_DELIVERY and feed.reached > 0
            for feed in feeds
            if feed.side == Side.EXPECTED and feed.partitions
        )
        return PartitionStatus(
            pipeline=name,
            partition=self._partition,
            partitions=self._partitions,
            worker=worker,
            input_offset=self.applied,
            written_at=now_ms,
            source_watermark=source,
            target_watermark=self._target_watermark(pipeline),
            source_caught_up=self._times.caught_up(name, Side.EXPECTED),
            target_caught_up=self._times.caught_up(name, Side.OBSERVED if pipeline.observes else Side.EXPECTED),
            delivered_through=min(source, oldest_transit) if oldest_transit is not None else source,
            oldest_unsettled=oldest,
            oldest_in_transit=oldest_transit,
            pending=pending,
            in_transit=in_transit,
            raised=raised,
            counters=self._store.counters(name),
            feeds=feeds,
            holes=list(pipeline.holes),
            delays_ms=sorted(self._store.delays.items()),
            delivery_unknown=unknown,
        )

    # state

    def bucket_records(self) -> list[tuple[str, bytes | None]]:
        """Return the state's records that changed since the last call, by name; None: the record is to go."""
        return self._store.records(self.applied)

    def marker(self) -> bytes:
        """Return the commit marker's payload: everything that is not in a bucket."""
        return msgspec.msgpack.encode(
            {
                "applied": self.applied,
                "feeds": [(list(key), _packed_feed(feed)) for key, feed in self._times.feeds.items()],
                "pipelines": {
                    name: (item.grace, item.skew, item.source_start, item.holes) for name, item in self._pipelines.items()
                },
                "delays": list(self._store.delays.items()),
            }
        )

    @classmethod
    def restore(
        cls,
        partition: int,
        partitions: int,
        pipelines: Mapping[str, PipelineSpec],
        *,
        fingerprints: Mapping[str, int],
        records: Mapping[str, bytes],
        marker: bytes,
        buckets: int = 32,
    ) -> KeyMatcher:
        """Return the matcher as the marker left it. A bucket may be ahead of the marker: it skips what it holds already.

        Every raised key is raised again by the next :meth:`advance`.
        """
        matcher = cls(partition, partitions, pipelines, fingerprints=fingerprints, buckets=buckets)
        body = msgspec.msgpack.decode(marker)
        matcher.applied = body["applied"]
        for key, fields in body["feeds"]:
            pipeline, side, feed, number = key
            matcher._times.feeds[pipeline, side, feed, number] = _unpacked_feed(fields)
        for name, (grace, skew, start, holes) in body["pipelines"].items():
            item = matcher._pipelines.get(name)
            if item is not None:
                item.grace, item.skew, item.source_start = grace, skew, start
                item.holes = msgspec.convert(holes, list[Hole])
        matcher._store.load(records)
        matcher._store.delays.update(dict(body["delays"]))
        matcher._rebuild()
        return matcher

    def _rebuild(self) -> None:
        for name, pipeline in self._pipelines.items():
            for key, state in self._store.open_items(name):
                state.raised = 0
                for write in state.pending:
                    self._schedule(pipeline, key, write)
                if state.odd is not None:
                    self._schedule(pipeline, key, state.odd)


def _in_transit(feed: FeedPartition, write: Write) -> bool:
    """Whether the sink has not come to this write. A position that nobody knows has passed nothing."""
    if feed.delivery == NO_DELIVERY or write.epoch < feed.epoch:
        return False
    return feed.delivery < 0 or write.offset >= feed.delivery


def _count(counters: Counters, outcome: Outcome, closed: int) -> None:
    if outcome is Outcome.CLEARED:
        counters.cleared += closed
    elif outcome is Outcome.GAP:
        counters.gap += closed
    elif outcome is Outcome.SUPERSEDED:
        counters.superseded += closed
    else:
        counters.unverifiable["not_read"] = counters.unverifiable.get("not_read", 0) + closed


def _write_of(section: Section, number: int) -> Write:
    return Write(
        section.side,
        section.feed,
        section.feed_partition,
        section.offsets[number],
        section.epoch,
        section.majors[number],
        section.minors[number],
        section.operations[number],
        section.event_times[number],
        section.append_times[number],
        section.digests[number],
        tuple(section.masks[number]) if section.masks is not None else None,
        tuple(section.values[number]) if section.values is not None else None,
        _version(section, number),
        section.mapping,
    )


def _version(section: Section, number: int) -> int | None:
    if section.versions is None or section.versions[number] == NO_VERSION:
        return None
    return section.versions[number]


def _carry_masks(write: Write, newest: Write | None) -> None:
    """A source event leaves out what it did not change: the field's digest is the one of the version before."""
    if write.masks and newest is not None and newest.masks and newest.mapping == write.mapping and write.side == Side.EXPECTED:
        write.masks = tuple(mask or before for mask, before in zip(write.masks, newest.masks, strict=True))


def _delay_bound(delay_ms: int) -> int:
    """Return the histogram's upper bound for a delay; clocks of two stores may make it negative."""
    return next((bound for bound in DELAY_BOUNDS_MS if delay_ms <= bound), -1)


def _suspect_id(pipeline: str, key: bytes, opening: Write) -> str:
    text = f"{pipeline}\0{opening.side}\0{opening.epoch}\0{opening.major}\0{opening.minor}\0".encode()
    return "sus_" + xxhash.xxh3_128_hexdigest(text + key)


def _packed_feed(feed: FeedPartition) -> tuple[Any, ...]:
    waiting = [(entry.since, isinstance(entry.item, Section), entry.item) for entry in feed.waiting]
    return (
        feed.epoch,
        feed.reached,
        feed.watermark,
        feed.caught_up,
        feed.delivery,
        feed.delivery_clock,
        feed.partitions,
        feed.spoke,
        waiting,
    )


def _unpacked_feed(fields: Sequence[Any]) -> FeedPartition:
    feed = FeedPartition()
    (
        feed.epoch,
        feed.reached,
        feed.watermark,
        feed.caught_up,
        feed.delivery,
        feed.delivery_clock,
        feed.partitions,
        feed.spoke,
        waiting,
    ) = fields
    feed.waiting = list(_waiting(waiting))
    return feed


def _waiting(entries: Sequence[Any]) -> Iterator[Any]:
    from gapwatch.core.watermarks import Waiting

    for number, (since, is_section, item) in enumerate(entries):
        kind: type[Section] | type[FeedState] = Section if is_section else FeedState
        converted = msgspec.convert(item, kind)
        yield Waiting(converted.offset_from, -len(entries) + number, since, converted)
