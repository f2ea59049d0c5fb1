"""Matching for the keys of one partition of ``gapwatch.events``: sections, times and verdicts come in, suspects come out.

Pure and deterministic: what it says depends only on the records applied, in their order. It asks no clock; a write is late when
the *streams* have passed its due time, and that is looked at after each control record, never in between. Of one record, the
expected writes are taken before the observed ones, so that a record's sections can be taken together.

Conservation, always: ``expected = settled + superseded + gap + cleared + Σ unverifiable + open writes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from gapwatch.core.batches import packed
from gapwatch.core.cells import Cell, Limits
from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.coverage import STEP_MS
from gapwatch.core.fewevents import are_few, begins_before, take_few
from gapwatch.core.hotpath import expect_all, ids_of, is_plain, numbers, observe_all, one_by_one
from gapwatch.core.judging import Judge, Said
from gapwatch.core.pipelinestate import READABLE_FORMATS, STATE_FORMAT, PipelineState
from gapwatch.core.segments import RECORD_BYTES_MAX
from gapwatch.core.watermarks import FeedTimes, Span
from gapwatch.errors import ProtocolError
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Batch, Control, FeedState, Letter, Operation, PackedBatch, PackedSection, Side, VerdictSection
from gapwatch.model.suspect import PartitionStatus

WAITING: Final = "waiting"

Records = list[tuple[str, bytes | None]]
Groups = dict[tuple[str, int], list[PackedSection]]

_encode = msgspec.msgpack.Encoder().encode


class StreamTimes(NamedTuple):
    """How far one pipeline's streams have come in one partition; milliseconds, 0: not known."""

    source: int
    target: int
    source_caught_up: int


class KeyMatcher:
    """The matcher of one partition, for all pipelines. ``applied``: the offset of the last applied record, -1: none.

    Args:
        partition: Its number.
        partitions: How many partitions ``gapwatch.events`` has.
        pipelines: Resolved pipelines by id.
        fingerprints: Fingerprint of each pipeline's mapping.
        life: Names this life of the matcher; part of its records' names, so that no other one writes them.
        start: The time (ms) before which what the target shows is the baseline's; 0: the source's first watermark.
        event_by_event: Take every event by itself: the reference for taking them together.
        native: The compiled module, where there is one: it takes sections together as the columns do.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        pipelines: Mapping[str, PipelineSpec],
        *,
        fingerprints: Mapping[str, int],
        life: str,
        start: int = 0,
        event_by_event: bool = False,
        native: RowsModule | None = None,
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._life = life
        self._event_by_event = event_by_event
        self._times = FeedTimes()
        self._pipelines: dict[str, PipelineState] = {}
        for name in sorted(pipelines):
            if name in fingerprints:
                spec = pipelines[name]
                cell = Cell(_limits(spec, partitions), parts=_parts(spec), prefix=f"{name}/{life}", native=native)
                self._pipelines[name] = PipelineState(spec, fingerprints[name], cell, self._times)
                self._pipelines[name].start = start
        self._judges = {name: Judge(pipeline, partition, self._times) for name, pipeline in self._pipelines.items()}
        self._restored: Said = []
        self._waiting: list[str] = []  # names of the records that hold what waits
        self._useless: list[str] = []  # names of restored records that no pipeline claims any more
        self._written = 0
        self._append_time = 0
        self.applied = -1

    # what comes in

    def apply(self, record: PackedBatch | Batch | Control | None, offset: int, append_time: int) -> Said:
        """Apply one record of ``gapwatch.events``; return what follows from it.

        Args:
            record: The record; None: it cannot be read.
            offset: Its offset; records come in order, each once. Offsets that are passed over are gone from the topic.
            append_time: Its Kafka timestamp, in milliseconds.
        """
        said: Said = []
        missed = record is None or offset > self.applied + 1
        self.applied, self._append_time = offset, append_time
        for judge in self._judges.values():
            judge.append_time = append_time
        for pipeline in self._pipelines.values():
            pipeline.hour.pass_to(append_time // STEP_MS, pipeline.closed)
        if missed:
            self._miss(said)
        if record is None:
            return said
        groups: Groups = {}
        if isinstance(record, Control):
            touched = self._apply_control(record, groups, said)
        else:
            touched = {}
            batch = packed(record) if isinstance(record, Batch) else record
            for section in batch.sections:
                self._admit(section, groups, said)
        for (name, side), sections in sorted(groups.items()):
            self._apply_sections(self._pipelines[name], side, sections, said)
        if not isinstance(record, Control):
            self._apply_letters(record.letters, said)
        for name in touched:
            self._judges[name].judge(said)
        if not isinstance(record, Control):
            self._apply_verdicts(record.verdicts)
        for name in touched or {name for name, _ in groups}:
            cell = self._pipelines[name].cell
            cell.counters.forgotten += cell.rows.make_room(cell.limits.settled)
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

    def _apply_control(self, record: Control, groups: Groups, said: Said) -> dict[str, None]:
        """Take the feeds' states; return the pipelines whose times may have moved."""
        for times in record.pipelines:
            pipeline = self._pipelines.get(times.pipeline)
            if pipeline is not None:
                pipeline.skew, pipeline.grace = max(0, times.skew), times.grace
        touched: dict[str, None] = {}
        for state in record.feeds:
            if state.pipeline in self._pipelines:
                touched[state.pipeline] = None
                self._admit(state, groups, said)
        return touched

    def _admit(self, item: PackedSection | FeedState, groups: Groups, said: Said) -> None:
        """Sort out what is in turn now."""
        pipeline = self._pipelines.get(item.pipeline)
        if pipeline is None:
            return
        side, feed, number = item.side, item.feed, item.feed_partition
        key = (item.pipeline, side, feed, number)
        if isinstance(item, PackedSection) and self._times.follow(key, item):
            if item.keys:
                groups.setdefault((item.pipeline, side), []).append(item)
            if side == Side.EXPECTED and pipeline.delivery_known:
                pipeline.moved[feed, number] = self._times.of(key)
            return
        admitted = self._times.admit(key, item, self._append_time, pipeline.stall_after)
        said += [pipeline.hole(side, feed, number, span, self._partition) for span in admitted.holes]
        for gone, span in admitted.gone:
            said.append(pipeline.hole(side, feed, gone, span, self._partition))
            pipeline.moved[feed, gone] = self._times.of((item.pipeline, side, feed, gone))
        for ready in admitted.items:
            if isinstance(ready, PackedSection) and ready.keys:
                groups.setdefault((item.pipeline, side), []).append(ready)
        if side == Side.EXPECTED and pipeline.delivery_known:
            pipeline.moved[feed, number] = self._times.of(key)

    def _apply_sections(self, pipeline: PipelineState, side: int, sections: Sequence[PackedSection], said: Said) -> None:
        for section in sections:
            self._count_late(pipeline, section)
            pipeline.numbers_of(section)
        judge = self._judges[pipeline.id]
        together = expect_all if side == Side.EXPECTED else observe_all
        start = 0
        while start < len(sections):
            plain = not self._event_by_event and is_plain(pipeline, sections[start])
            end = start + 1
            while end < len(sections) and plain == (not self._event_by_event and is_plain(pipeline, sections[end])):
                end += 1
            some = sections[start:end]
            named = side == Side.OBSERVED and any(section.target_ids is not None for section in some)
            if plain and pipeline.cell.rows.compiled is None and are_few(some):
                events = take_few(pipeline, side, some)
            else:
                events = (together if plain else one_by_one)(pipeline, some)
            judge.take(side, events, said, ids=ids_of(some) if named else None)
            start = end
        pipeline.leave_stale_behind()

    def _count_late(self, pipeline: PipelineState, section: PackedSection) -> None:
        known = self._times.of((section.pipeline, section.side, section.feed, section.feed_partition)).watermark
        native = pipeline.cell.rows.native
        if known and native is not None:
            pipeline.late += native.late(section.event_times, section.operations, known)
        elif known and begins_before(section, known):
            times = numbers(section.event_times)
            pipeline.late += sum(
                time < known and operation != Operation.SNAPSHOT
                for time, operation in zip(times.tolist(), section.operations, strict=True)
            )

    def _apply_letters(self, letters: Sequence[Letter], said: Said) -> None:
        for letter in letters:
            if letter.pipeline in self._judges:
                self._judges[letter.pipeline].hear(letter, said)

    def _apply_verdicts(self, sections: Sequence[VerdictSection]) -> None:
        for section in sections:
            if section.pipeline in self._judges:
                self._judges[section.pipeline].close(section)

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

    def buffered(self, pipeline: str) -> int:
        """Return how many events wait for ranges before them that did not come yet."""
        return sum(feed.waiting_events for key, feed in self._times.feeds.items() if key[0] == pipeline)

    def times(self, pipeline: str) -> StreamTimes:
        """Return how far the pipeline's streams have come."""
        times, state = self._times, self._pipelines[pipeline]
        return StreamTimes(times.watermark(*state.source), times.watermark(*state.target), times.caught_up(*state.source))

    def waiting(self, pipeline: str, time_from: int, time_to: int) -> int:
        """Return how many keys have an open write with an event time in ``[time_from, time_to)``."""
        return self._pipelines[pipeline].waiting(time_from, time_to)

    def shown_at(self, pipeline: str, key: bytes) -> int | None:
        """Return the event time of the target's newest write of a key, where it shows what was expected last; else None."""
        return self._pipelines[pipeline].shown_at(key)

    def knows(self, pipeline: str, key: bytes) -> bool:
        """Whether it is known what the source wrote last of a key: it did not make room for others."""
        return self._pipelines[pipeline].cell.state(key).expected is not None

    # state

    def state_records(self) -> Records:
        """Return the records of the state that changed since the last call, by name. To be followed by :meth:`marker`.

        None: a record that the marker needs no more. It may be removed once the marker is durable, and not before.
        """
        records: Records = [(name, None) for name in self._useless]
        self._useless = []
        for pipeline in self._pipelines.values():
            records += pipeline.cell.segments.cut()
        if self._times.waiting_changed:
            self._times.waiting_changed = False
            records += [(name, None) for name in self._waiting]
            payload = _encode(self._times.pack_waiting())
            chunks = [payload[at : at + RECORD_BYTES_MAX] for at in range(0, len(payload), RECORD_BYTES_MAX)]
            self._waiting = [f"{WAITING}/{self._life}/{self._written + number}" for number in range(len(chunks))]
            self._written += len(chunks)
            records += zip(self._waiting, chunks, strict=True)
        return records

    def marker(self) -> bytes:
        """Return the commit marker's payload: which records are the state, and everything that is in none of them."""
        return _encode(
            {
                "format": STATE_FORMAT,
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
        life: str,
        event_by_event: bool = False,
        native: RowsModule | None = None,
    ) -> KeyMatcher:
        """Return the matcher exactly as the marker left it.

        Every raised key is raised again by the next :meth:`advance`. Raises ProtocolError when the records contradict themselves.
        """
        how = partial(cls, event_by_event=event_by_event, native=native)
        matcher = how(partition, partitions, pipelines, fingerprints=fingerprints, life=life)
        body = msgspec.msgpack.decode(marker)
        if body.get("format") not in READABLE_FORMATS:
            raise ProtocolError(
                f"The state of partition {partition} has format {body.get('format')}, not {STATE_FORMAT}.",
                remedy="Delete the changelog topic of match; a sweep then covers what was open.",
            )
        matcher.applied, matcher._append_time = body["applied"], body["append_time"]
        # A pipeline that is left out loses its keys; where its feeds had come is forgotten as well, so it comes back with a hole.
        kept = matcher._pipelines.keys() & body["pipelines"].keys()
        matcher._times.unpack([one for one in body["feeds"] if one[0][0] in kept])
        for name, state in body["pipelines"].items():
            if name in matcher._pipelines:
                matcher._pipelines[name].unpack(state, records)
                matcher._restored += matcher._judges[name].raised_again()
        matcher._waiting = list(body["waiting"])
        if matcher._waiting:
            payload = b"".join([records[name] for name in matcher._waiting])
            matcher._times.unpack_waiting([one for one in msgspec.msgpack.decode(payload) if one[0][0] in kept])
        claimed = {name for pipeline in matcher._pipelines.values() for name, _, _ in pipeline.cell.segments.listed}
        matcher._useless = sorted(records.keys() - claimed - set(matcher._waiting))
        return matcher


def _limits(spec: PipelineSpec, shares: int) -> Limits:
    return Limits(pending=spec.pending_keys_max, raised=spec.suspects_max, settled=spec.settled_keys_max, shares=shares)


def _parts(spec: PipelineSpec) -> int:
    """Return how many digests a whole write of the pipeline has: one, and one per field that an event may leave out."""
    return 1 + sum(field.maskable and field.tolerance is None for field in spec.fields)
