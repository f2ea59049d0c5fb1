"""Matching for the keys of one partition of ``gapwatch.events``: sections, times and verdicts come in, suspects come out.

Pure and deterministic: what it says depends only on the records applied, in their order. It asks no clock; a write is late when
the *streams* have passed its due time, and that is looked at after each control record, never in between. ``design.md`` 3 and 4
say why each rule is as it is.

Conservation, always: ``expected = settled + superseded + gap + cleared + Σ unverifiable + open writes``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from gapwatch.core.batches import NO_VERSION
from gapwatch.core.buckets import DELAY_BOUNDS_MS, RECORD_BYTES_MAX, BucketStore, Cell, Limits
from gapwatch.core.duetimes import SLOT_BITS
from gapwatch.core.keyrules import Effect
from gapwatch.core.keystate import (
    BLANK,
    DEAD,
    EVENT_TIME_AT,
    EXTRA,
    HEAD_BYTES,
    UNKNOWN_MAPPING,
    KeyState,
    Write,
    compact_pending,
    compact_settled,
    due_of,
    event_time_of,
    pack_head,
    pending_state,
    seen_of,
    settled_state,
    times_of,
    token_of,
    with_tail,
)
from gapwatch.core.pipelinestate import PipelineState
from gapwatch.core.watermarks import NEVER, FeedTimes, Span, chosen
from gapwatch.errors import ProtocolError
from gapwatch.model.pipeline import Match, PipelineSpec
from gapwatch.model.stream import NO_DELIVERY, Batch, Control, FeedState, Operation, Outcome, Section, Side, VerdictSection
from gapwatch.model.suspect import Hole, PartitionStatus, Suspect

STATE_FORMAT: Final = 2
STALE_ENTRIES_MAX: Final = 100_000  # due times of settled keys, beside twice the open keys, before they are swept out
OVERFLOW_MS: Final = 10_000  # stretches that overflow gives up are rounded up to this, so that one hole stands for many keys
LAST_PLAIN: Final = int(Operation.DELETE)  # UPSERT and DELETE take the fast path
WAITING: Final = "waiting"

Said = list[Suspect | Hole]
Columns = tuple[bytes, int, int, int, int, int, int, bytes]  # key, operation, offset, major, minor, event, append, identity

_hash = xxhash.xxh3_64_intdigest
_encode = msgspec.msgpack.Encoder().encode


class KeyMatcher:
    """The matcher of one partition, for all pipelines. ``applied``: the offset of the last applied record, -1: none.

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
        self._buckets = buckets
        names = [name for name in sorted(pipelines) if name in fingerprints]
        self._times = FeedTimes()
        self._store = BucketStore(buckets, {name: _limits(pipelines[name], partitions * buckets) for name in names})
        self._pipelines = {
            name: PipelineState(pipelines[name], fingerprints[name], self._store.cells(name), self._times) for name in names
        }
        self._asleep: set[int] = set()  # buckets that a torn checkpoint left ahead of the marker
        self._restored: Said = []
        self._waiting = (0, 0, 0)  # slot, parts and stamp of the records that hold what waits
        self._append_time = 0
        self.applied = -1

    # what comes in

    def apply(self, record: Batch | Control | None, offset: int, append_time: int) -> Said:
        """Apply one record of ``gapwatch.events``; return what follows from it.

        Args:
            record: The record; None: it cannot be read.
            offset: Its offset; records come in order, each once. Offsets that are passed over are gone from the topic.
            append_time: Its Kafka timestamp, in milliseconds.
        """
        said: Said = []
        missed = record is None or offset > self.applied + 1
        self.applied, self._append_time = offset, append_time
        if missed:
            self._miss(said)
        if isinstance(record, Control):
            self._apply_control(record, said)
        elif record is not None:
            for section in record.sections:
                self._admit(section, said)
            for verdicts in record.verdicts:
                self._apply_verdicts(verdicts)
        if self._asleep:
            self._wake()
        return said

    def advance(self) -> Said:
        """Return what is to be said besides what :meth:`apply` returned: after a restore, every raised key once more."""
        said, self._restored = self._restored, []
        return said

    def acknowledgeable(self) -> int:
        """Return the offset below which records may be acknowledged once the state is durable: what waits is part of it."""
        return self.applied + 1

    def _miss(self, said: Said) -> None:
        """Records of this partition are gone: any feed may have had writes in them, which a later range would pass over."""
        for (name, side, feed, number), known in self._times.feeds.items():
            pipeline = self._pipelines.get(name)
            if pipeline is not None:
                span = Span(known.watermark, max(known.watermark, self._append_time), "ingest_hole")
                said.append(pipeline.hole(side, feed, number, span, self._partition))

    def _apply_control(self, record: Control, said: Said) -> None:
        for times in record.pipelines:
            pipeline = self._pipelines.get(times.pipeline)
            if pipeline is not None:
                pipeline.skew, pipeline.grace = max(0, times.skew), times.grace
        touched: dict[str, PipelineState] = {}
        for state in record.feeds:
            pipeline = self._pipelines.get(state.pipeline)
            if pipeline is not None:
                touched[state.pipeline] = pipeline
                self._admit(state, said)
        for pipeline in touched.values():
            self._judge(pipeline, said)

    def _admit(self, item: Section | FeedState, said: Said) -> None:
        pipeline = self._pipelines.get(item.pipeline)
        if pipeline is None:
            return
        side, feed, number = item.side, item.feed, item.feed_partition
        key = (item.pipeline, side, feed, number)
        admitted = self._times.admit(key, item, self._append_time, pipeline.stall_after)
        said += [pipeline.hole(side, feed, number, span, self._partition) for span in admitted.holes]
        for ready in admitted.items:
            if isinstance(ready, Section):
                self._apply_section(pipeline, ready, said)
        if side == Side.EXPECTED and pipeline.delivery_known:
            pipeline.moved[feed, number] = self._times.of(key)

    def _apply_section(self, pipeline: PipelineState, section: Section, said: Said) -> None:
        if not section.keys:
            return
        known = self._times.of((section.pipeline, section.side, section.feed, section.feed_partition)).watermark
        if known and min(section.event_times) < known:
            pipeline.late += sum(
                time < known and operation != Operation.SNAPSHOT
                for time, operation in zip(section.event_times, section.operations, strict=True)
            )
        feed, mapping = pipeline.numbers_of(section)
        if self._asleep:
            section = chosen(section, [at for at, key in enumerate(section.keys) if self._bucket(key) not in self._asleep])
        if _has_tails(pipeline, section):
            self._apply_tailed(pipeline, section, feed, mapping, said)
        elif section.side == Side.EXPECTED:
            self._expect_all(pipeline, section, feed, mapping, said)
        else:
            self._observe_all(pipeline, section, feed, mapping, said)
        due = pipeline.due
        if due.entries > STALE_ENTRIES_MAX and due.entries > 2 * sum(len(cell.pending) for cell in pipeline.cells):
            due.clear()
            pipeline.schedule_all([cell for number, cell in enumerate(pipeline.cells) if number not in self._asleep])

    def _bucket(self, key: bytes) -> int:
        return _hash(key) // self._partitions % self._buckets

    # the hot loops: no object per event; a key that is in its first write, or in the answer to it, touches one dict entry

    def _expect_all(self, pipeline: PipelineState, section: Section, feed: int, mapping: int, said: Said) -> None:
        cells, partitions, buckets, due_times = pipeline.cells, self._partitions, self._buckets, pipeline.due
        number, epoch, hold, low = section.feed_partition, section.epoch, pipeline.hold, pipeline.survey.low
        last = -1
        slot: list[bytes] = []
        for key, operation, offset, major, minor, event_time, append_time, identity in _columns(section):
            cell = cells[_hash(key) // partitions % buckets]
            due = (event_time if event_time > append_time else append_time) + hold
            write = (
                pack_head(operation, 0, mapping, feed, len(identity) >> 4, number, epoch, major, minor, offset, event_time, due)
                + identity
            )
            pending = cell.pending
            if operation > LAST_PLAIN or key in pending or key in cell.settled or len(pending) >= cell.limits.pending:
                self._expect(pipeline, cell, key, write, said)
                continue
            pending[key] = write
            cell.changed.add(key)
            cell.counters.expected += 1
            if due >> SLOT_BITS != last:
                last = due >> SLOT_BITS
                slot = due_times.slot(due)
            slot.append(key)
            due_times.entries += 1
            if event_time < low:
                low = event_time
        pipeline.survey.low = min(low, pipeline.survey.low)

    def _observe_all(self, pipeline: PipelineState, section: Section, feed: int, mapping: int, said: Said) -> None:
        cells, partitions, buckets = pipeline.cells, self._partitions, self._buckets
        number, epoch, hold = section.feed_partition, section.epoch, pipeline.hold
        plain = pipeline.rules.comparison.by_identity and mapping != UNKNOWN_MAPPING
        for key, operation, offset, major, minor, event_time, append_time, identity in _columns(section):
            cell = cells[_hash(key) // partitions % buckets]
            due = (event_time if event_time > append_time else append_time) + hold
            head = pack_head(
                operation, 0, mapping, feed, len(identity) >> 4, number, epoch, major, minor, offset, event_time, due
            )
            held = cell.pending.get(key)
            if (
                plain
                and held.__class__ is bytes
                and held[0] == operation
                and operation <= LAST_PLAIN
                and held[2] == mapping
                and held[HEAD_BYTES:] == identity
                and (len(identity) <= 16 or BLANK not in identity)
            ):
                del cell.pending[key]
                cell.settle(key, held + head)
                counters = cell.counters
                counters.observed += 1
                counters.settled += 1
                written = int.from_bytes(held[EVENT_TIME_AT : EVENT_TIME_AT + 8], "little")
                cell.delays[bisect_left(DELAY_BOUNDS_MS, event_time - written)] += 1
                continue
            self._observe(pipeline, cell, key, head + identity, said)

    def _apply_tailed(self, pipeline: PipelineState, section: Section, feed: int, mapping: int, said: Said) -> None:
        """Take a section with toleranced values or versions, event by event."""
        take = self._expect if section.side == Side.EXPECTED else self._observe
        for at, columns in enumerate(_columns(section)):
            key, operation, offset, major, minor, event_time, append_time, identity = columns
            values = section.values[at] if section.values is not None else None
            version = section.versions[at] if section.versions is not None else NO_VERSION
            due = max(event_time, append_time) + pipeline.hold
            head = pack_head(
                operation,
                EXTRA,
                mapping,
                feed,
                len(identity) >> 4,
                section.feed_partition,
                section.epoch,
                major,
                minor,
                offset,
                event_time,
                due,
            )
            tail = with_tail(values or None, None if version == NO_VERSION else version)
            take(pipeline, pipeline.cells[self._bucket(key)], key, head + identity + tail, said)

    # one key

    def _expect(self, pipeline: PipelineState, cell: Cell, key: bytes, write: Write, said: Said) -> None:
        state = _state(cell, key)
        self._file(pipeline, cell, key, state, pipeline.rules.expect(state, write, cell), said)

    def _observe(self, pipeline: PipelineState, cell: Cell, key: bytes, write: Write, said: Said) -> None:
        state = _state(cell, key)
        self._file(pipeline, cell, key, state, pipeline.rules.observe(state, write, cell), said)

    def _file(self, pipeline: PipelineState, cell: Cell, key: bytes, state: KeyState, effect: Effect, said: Said) -> None:
        """Put a key's state where it belongs now."""
        cell.touched = True
        if effect is Effect.NONE:
            return
        if effect is Effect.GONE:
            cell.drop(key)
            return
        if not state.open:
            cell.pending.pop(key, None)
            cell.raised.discard(key)
            cell.settle(key, compact_settled(state))
            return
        if key not in cell.pending and len(cell.pending) >= cell.limits.pending:
            self._let_go(pipeline, cell, key, state, said)
            return
        cell.settled.pop(key, None)
        cell.pending[key] = compact_pending(state)
        cell.changed.add(key)
        (cell.raised.add if state.raised else cell.raised.discard)(key)
        pipeline.survey.low = min(pipeline.survey.low, state.oldest_time)
        if effect is Effect.OPENED:
            pipeline.due.add(key, state.due)

    def _let_go(self, pipeline: PipelineState, cell: Cell, key: bytes, state: KeyState, said: Said) -> None:
        """A limit is reached: the key becomes part of a hole, which a sweep covers."""
        counters = cell.counters
        if state.writes:
            counters.unverifiable["overflow"] = counters.unverifiable.get("overflow", 0) + len(state.writes)
        else:
            counters.forgotten += 1
        opening, time = state.opening, state.oldest_time
        cell.drop(key)
        known = cell.hole
        if known is not None and known.time_from <= time and self._append_time <= known.time_to:
            return
        bucket = pipeline.cells.index(cell)
        end = (self._append_time // OVERFLOW_MS + 1) * OVERFLOW_MS
        side = int(Side.EXPECTED if state.writes else Side.OBSERVED)
        identity = f"{pipeline.id}\0{self._partition}\0{bucket}\0overflow\0{end}\0{time}".encode()
        said.append(
            Hole(
                id="hole_" + xxhash.xxh3_128_hexdigest(identity),
                pipeline=pipeline.id,
                side=side,
                feed=pipeline.feeds[opening[3]],
                feed_partition=0,
                time_from=time,
                time_to=max(end, time),
                reason="ingest_hole",
            )
        )
        latest = said[-1]
        assert isinstance(latest, Hole)
        cell.hole = latest if known is None else msgspec.structs.replace(latest, time_from=min(known.time_from, time))

    # when something is due

    def _judge(self, pipeline: PipelineState, said: Said) -> None:
        """Raise what the streams' times have made late: the target's watermark passed it, and the source was read beyond it."""
        times = self._times
        target = times.watermark(*pipeline.target)
        if not pipeline.start:
            pipeline.start = times.start(*pipeline.source)
        for (feed, number), state in pipeline.moved.items():
            position = NEVER if state.delivery == NO_DELIVERY or state.gone_below == state.epoch else state.position
            for key in list(
                pipeline.due.delivered((pipeline.feeds.index(feed) if feed in pipeline.feeds else -1, number), position)
            ):
                self._reschedule(pipeline, key)
        pipeline.moved.clear()
        now = min(target - 1, times.caught_up(*pipeline.source))
        if now <= 0 or not pipeline.start:
            return
        for key in pipeline.due.due(now):
            self._look(pipeline, key, now, target, said)
        for at, key in list(pipeline.due.again(target)):
            cell = pipeline.cells[self._bucket(key)]
            held = cell.pending.get(key)
            if isinstance(held, KeyState) and held.raised and held.raised + pipeline.confirm_again == at:
                said.append(self._raise(pipeline, cell, key, held, target, held.due, again=True))

    def _reschedule(self, pipeline: PipelineState, key: bytes) -> None:
        held = pipeline.cells[self._bucket(key)].pending.get(key)
        if held is not None:
            pipeline.due.add(key, due_of(held) if isinstance(held, bytes) else held.due)

    def _look(self, pipeline: PipelineState, key: bytes, now: int, target: int, said: Said) -> None:
        cell = pipeline.cells[self._bucket(key)]
        held = cell.pending.get(key)
        if held is None or (isinstance(held, KeyState) and held.raised):
            return
        opening, due = (held, due_of(held)) if isinstance(held, bytes) else (held.opening, held.due)
        expected = isinstance(held, bytes) or bool(held.writes)
        # What the target shows is not odd for good while the sink still has the newest expected write to deliver.
        awaited = opening if isinstance(held, bytes) or expected else held.expected
        if awaited is not None and not awaited[1] & DEAD:
            clock = pipeline.passed(awaited)
            if clock is None:
                pipeline.due.wait_for_delivery((awaited[3], awaited[6] | awaited[7] << 8), times_of(awaited)[0], key)
                return
            due = max(due, clock + pipeline.skew)
        if due > now:
            pipeline.due.add(key, due)
            return
        state = pending_state(held)
        if not expected and state.expected is None and event_time_of(opening) < pipeline.start:
            state.odd = False  # the baseline's
            self._file(pipeline, cell, key, state, Effect.CHANGED, said)
        elif len(cell.raised) >= cell.limits.raised:
            cell.touched = True
            self._let_go(pipeline, cell, key, state, said)
        else:
            cell.counters.raised += 1
            said.append(self._raise(pipeline, cell, key, state, target, due, again=False))

    def _raise(
        self, pipeline: PipelineState, cell: Cell, key: bytes, state: KeyState, target: int, due: int, *, again: bool
    ) -> Suspect:
        state.raised = target
        if not again:  # a verdict may rest on reads that only the first raise asked for
            state.raised_on = token_of(state.observed) if state.observed is not None else None
        cell.pending[key] = state
        cell.raised.add(key)
        cell.changed.add(key)
        pipeline.due.raise_again(key, target + pipeline.confirm_again)
        return self._suspect(pipeline, key, state, due, again=again)

    def _suspect(self, pipeline: PipelineState, key: bytes, state: KeyState, due: int, *, again: bool) -> Suspect:
        def seen(write: Write, side: Side) -> Any:
            return seen_of(write, int(side), pipeline.feeds, comparable=pipeline.comparable(write))

        side = Side.EXPECTED if state.writes else Side.OBSERVED
        opening = state.opening
        epoch, major, minor = token_of(opening)
        identity = f"{pipeline.id}\0{int(side)}\0{epoch}\0{major}\0{minor}\0".encode() + key
        return Suspect(
            id="sus_" + xxhash.xxh3_128_hexdigest(identity),
            pipeline=pipeline.id,
            partition=self._partition,
            key=key,
            reason=pipeline.rules.reason(state),
            opening=seen(opening, side),
            newest_expected=seen(state.expected, Side.EXPECTED) if state.expected is not None else None,
            newest_observed=seen(state.observed, Side.OBSERVED) if state.observed is not None else None,
            older=list(state.older),
            due=due,
            source_watermark=self._times.watermark(*pipeline.source),
            target_watermark=self._times.watermark(*pipeline.target),
            since=state.floor if 0 < state.floor < event_time_of(opening) else 0,
            raised_again=again,
        )

    # verdicts

    def _apply_verdicts(self, section: VerdictSection) -> None:
        pipeline = self._pipelines.get(section.pipeline)
        if pipeline is None:
            return
        said: Said = []
        for key, side, token, outcome in zip(section.keys, section.sides, section.tokens, section.outcomes, strict=True):
            number = self._bucket(key)
            cell = pipeline.cells[number]
            held = cell.pending.get(key)
            if held is None or number in self._asleep:
                continue
            state = pending_state(held)
            effect = pipeline.rules.close(state, side == Side.EXPECTED, (token[0], token[1], token[2]), Outcome(outcome), cell)
            self._file(pipeline, cell, key, state, effect, said)
        assert not said, "a verdict opens no key"

    # what is shown

    def status(self, worker: str, now_ms: int) -> list[PartitionStatus]:
        """Return one record per pipeline."""
        return [
            pipeline.status(self._partition, self._partitions, worker, self.applied, now_ms)
            for pipeline in self._pipelines.values()
        ]

    def open_writes(self, pipeline: str) -> int:
        """Return how many expected writes are in no class yet."""
        return self._pipelines[pipeline].open_writes()

    # state

    def bucket_records(self) -> list[tuple[str, bytes | None]]:
        """Return the state's records that changed since the last call, by name. To be followed by :meth:`marker`."""
        names = {name: pipeline.names for name, pipeline in self._pipelines.items()}
        records = self._store.records(self.applied, names)
        if self._times.waiting_changed:
            self._times.waiting_changed = False
            payload = _encode(self._times.pack_waiting())
            slot = 1 - self._waiting[0]
            chunks = [payload[at : at + RECORD_BYTES_MAX] for at in range(0, len(payload), RECORD_BYTES_MAX)]
            self._waiting = (slot, len(chunks), xxhash.xxh3_64_intdigest(payload))
            records += [(f"{WAITING}/{slot}/part{number}", chunk) for number, chunk in enumerate(chunks)]
        return records

    def marker(self) -> bytes:
        """Return the commit marker's payload: everything that is not in a bucket."""
        return _encode(
            {
                "format": STATE_FORMAT,
                "buckets": self._buckets,
                "applied": self.applied,
                "append_time": self._append_time,
                "feeds": self._times.pack(),
                "waiting": self._waiting,
                "pipelines": {name: pipeline.pack() for name, pipeline in self._pipelines.items()},
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
        """Return the matcher as the marker left it. A bucket that is ahead of it sleeps until the records have come so far.

        Every raised key is raised again by the next :meth:`advance`. Raises ProtocolError when the records contradict themselves.
        """
        matcher = cls(partition, partitions, pipelines, fingerprints=fingerprints, buckets=buckets)
        body = msgspec.msgpack.decode(marker)
        if body.get("format") != STATE_FORMAT:
            raise ProtocolError(
                f"The state of partition {partition} has format {body.get('format')}, not {STATE_FORMAT}.",
                remedy="Delete the changelog topic of match; a sweep then covers what was open.",
            )
        if body.get("buckets", buckets) != buckets:  # every key would be looked for in another bucket
            raise ProtocolError(
                f"The state of partition {partition} was cut into {body['buckets']} buckets, not {buckets}.",
                remedy="Delete the changelog topic of match; a sweep then covers what was open.",
            )
        matcher.applied, matcher._append_time = body["applied"], body["append_time"]
        matcher._times.unpack(body["feeds"])
        for name, packed in body["pipelines"].items():
            if name in matcher._pipelines:
                matcher._pipelines[name].unpack(packed)
        matcher._restore_waiting(records, body["waiting"])
        matcher._restore_buckets({name: value for name, value in records.items() if not name.startswith(WAITING)})
        return matcher

    def _restore_waiting(self, records: Mapping[str, bytes], written: Sequence[int]) -> None:
        slot, parts, stamp = written
        self._waiting = (slot, parts, stamp)
        if not parts:
            return
        payload = b"".join(records.get(f"{WAITING}/{slot}/part{number}", b"") for number in range(parts))
        if xxhash.xxh3_64_intdigest(payload) != stamp:
            raise ProtocolError(f"The records of partition {self._partition} that wait for others are not those of its marker.")
        self._times.unpack_waiting(msgspec.msgpack.decode(payload))

    def _restore_buckets(self, records: Mapping[str, bytes]) -> None:
        for names in self._store.load(records):
            for name, known in names.items():
                if name in self._pipelines:
                    self._pipelines[name].learn(known)
        self._asleep = {number for number, bucket in enumerate(self._store.buckets) if bucket.applied > self.applied}
        for pipeline in self._pipelines.values():
            pipeline.schedule_all([cell for number, cell in enumerate(pipeline.cells) if number not in self._asleep])
            for cell in pipeline.cells:
                for key in sorted(cell.raised):
                    state = pending_state(cell.pending[key])
                    self._restored.append(self._suspect(pipeline, key, state, state.due, again=True))

    def _wake(self) -> None:
        for number in [number for number in self._asleep if self._store.buckets[number].applied <= self.applied]:
            self._asleep.discard(number)
            for pipeline in self._pipelines.values():
                pipeline.schedule_all([pipeline.cells[number]])


def _limits(spec: PipelineSpec, shares: int) -> Limits:
    return Limits(pending=spec.pending_keys_max, raised=spec.suspects_max, settled=spec.settled_keys_max, shares=shares)


def _state(cell: Cell, key: bytes) -> KeyState:
    held = cell.pending.get(key)
    if held is not None:
        return pending_state(held)
    held = cell.settled.get(key)
    return settled_state(held) if held is not None else KeyState()


def _has_tails(pipeline: PipelineState, section: Section) -> bool:
    if pipeline.spec.match is Match.VERSION:
        return section.versions is not None
    return not pipeline.rules.comparison.by_identity and section.values is not None


def _columns(section: Section) -> zip[Columns]:
    """Return the section's events as tuples; the masks are part of the identity, zeros where the event does not carry a field."""
    identities = section.digests
    if section.masks is not None:
        identities = [
            digest + b"".join([mask or BLANK for mask in masks]) if digest else digest
            for digest, masks in zip(section.digests, section.masks, strict=True)
        ]
    return zip(
        section.keys,
        section.operations,
        section.offsets,
        section.majors,
        section.minors,
        section.event_times,
        section.append_times,
        identities,
        strict=True,
    )
