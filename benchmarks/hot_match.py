"""Where match's time goes, without a broker: ``python -m benchmarks.hot_match``. CPU time per event of each stage, medians.

The real matcher, its records and its checkpoints, fed from memory with the work of reference's shape: records of so many events,
both sides interleaved, the target 2,000 events behind, control records every 250 ms of event time, a checkpoint after so many
records. Only what the stage does is measured, not the making of its input.

``--updates N``: every key is written N times more, as soon as all have been written, each time with something else.
``--pipelines N``: what row 16 has instead, small sections: a record holds so many events of each side of each pipeline, in so
many sections. One clock for all, as reading it costs as much as a small section.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from statistics import median

import msgspec
import xxhash

from benchmarks import work
from gapwatch import native
from gapwatch.core.batches import pack, read
from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Operation,
    PackedBatch,
    PipelineTimes,
    Section,
    Side,
)
from gapwatch.model.suspect import Suspect
from gapwatch.roles.match.journal import Journal

LAG_EVENTS = 2_000
PULSE_MS = 250
MAPPING = 7
RECORDS_PER_CHECKPOINT = 100
RECORDS_PER_CONTROL = 4
STAGES = ("read", "expected", "observed", "judge", "status", "records", "marker")


def _key(number: int) -> bytes:
    return b"\x01" + number.to_bytes(6, "big")


def _section(side: Side, numbers: range, part: int, parts: int, cycle: int, pipeline: str = "orders") -> Section:
    later = 0 if side is Side.EXPECTED else 300
    topic = work.SOURCE if side is Side.EXPECTED else work.TARGET
    mine = [number for number in numbers if number % parts == part]
    kept = [number for number in mine if side is Side.EXPECTED or number % work.MISSING_EVERY != 500]
    wrong = {number for number in kept if side is Side.OBSERVED and number % work.WRONG_EVERY == 700}
    times = [work.START_MS + number * 1_000 // work.PER_SECOND + later for number in kept]
    return Section(
        pipeline=pipeline,
        side=int(side),
        feed=topic,
        feed_partition=part,
        epoch=1,
        mapping=MAPPING,
        offset_from=numbers.start,
        offset_to=numbers.stop,
        keys=[_key(number % cycle) for number in kept],
        operations=bytes([Operation.UPSERT]) * len(kept),
        offsets=kept,
        majors=[10_000_000 + number * 100 - 50 for number in kept],
        minors=[10_000_000 + number * 100 for number in kept],
        event_times=times,
        append_times=times,
        digests=[xxhash.xxh3_128_digest(b"%d" % (-number if number in wrong else number)) for number in kept],
    )


def _control(expected: int, observed: int, clock: int, parts: int, pipelines: Sequence[str] = ("orders",)) -> Control:
    states = [
        FeedState(
            pipeline=pipeline,
            side=int(side),
            feed=topic,
            feed_partition=part,
            partitions=parts,
            epoch=1,
            offset_from=reached,
            offset_to=reached,
            watermark=clock + (0 if side is Side.EXPECTED else 300),
            caught_up=clock + 60_000,
            delivery=NO_DELIVERY,
            delivery_clock=0,
            lost=[],
        )
        for side, topic, reached in ((Side.EXPECTED, work.SOURCE, expected), (Side.OBSERVED, work.TARGET, observed))
        for part in range(parts)
        for pipeline in pipelines
    ]
    return Control(FORMAT, "bench", clock, states, [PipelineTimes(pipeline, 0, 1_000) for pipeline in pipelines])


def records(keys: int, events: int, parts: int, updates: int = 0) -> Iterator[bytes]:
    """Yield the records of one partition of ``gapwatch.events``."""
    cycle, keys = keys, keys * (1 + updates)
    yield pack(_control(0, 0, work.START_MS, parts))
    spoke = work.START_MS
    for start in range(0, keys + LAG_EVENTS, events):
        for side, first in ((Side.EXPECTED, start), (Side.OBSERVED, start - LAG_EVENTS)):
            numbers = range(max(0, first), max(0, min(keys, first + events)))
            if numbers:
                yield pack(Batch(FORMAT, [_section(side, numbers, part, parts, cycle) for part in range(parts)], []))
        expected, observed = min(keys, start + events), max(0, min(keys, start + events - LAG_EVENTS))
        clock = work.START_MS + observed * 1_000 // work.PER_SECOND
        if clock - spoke >= PULSE_MS:
            spoke = clock
            yield pack(_control(expected, observed, clock, parts))
    yield pack(_control(keys, keys, work.end_time(keys) + 60_000, parts))


def small_records(keys: int, events: int, parts: int, updates: int, pipelines: Sequence[str]) -> Iterator[bytes]:
    """Yield records with `events` of each side of each pipeline."""
    cycle, keys = keys, keys * (1 + updates)
    yield pack(_control(0, 0, work.START_MS, parts, pipelines))
    lag = min(LAG_EVENTS, cycle // 2) // events * events
    for number, start in enumerate(range(0, keys + lag, events)):
        sections = [
            _section(side, numbers, part, parts, cycle, pipeline)
            for pipeline in pipelines
            for side, first in ((Side.EXPECTED, start), (Side.OBSERVED, start - lag))
            if (numbers := range(max(0, first), max(0, min(keys, first + events))))
            for part in range(parts)
        ]
        yield pack(Batch(FORMAT, sections, []))
        if number % RECORDS_PER_CONTROL == RECORDS_PER_CONTROL - 1:
            expected, observed = min(keys, start + events), max(0, min(keys, start + events - lag))
            yield pack(_control(expected, observed, work.START_MS + observed * 1_000 // work.PER_SECOND, parts, pipelines))
    yield pack(_control(keys, keys, work.end_time(keys) + 60_000, parts, pipelines))


def _matcher(native: RowsModule | None, pipelines: Sequence[str] = ("orders",)) -> KeyMatcher:
    spec = work.settings("", "").pipelines["orders"]
    specs = {name: dataclasses.replace(spec, id=name) for name in pipelines}
    return KeyMatcher(0, 1, specs, fingerprints=dict.fromkeys(specs, MAPPING), life="bench", native=native)


def run_small(log: list[bytes], pipelines: Sequence[str], native: RowsModule | None) -> tuple[float, int]:
    """Match everything; return CPU seconds, and how many suspects there were."""
    matcher, suspects = _matcher(native, pipelines), 0
    began = time.process_time()
    for offset, value in enumerate(log):
        said = matcher.apply(read(value), offset, work.START_MS)
        suspects += sum(isinstance(one, Suspect) for one in said)
    return time.process_time() - began, suspects


def run(log: list[bytes], every: int, native: RowsModule | None) -> tuple[dict[str, float], dict[str, int]]:
    """Match everything; return CPU seconds by stage, and counts."""
    matcher, journal, used = _matcher(native), Journal(0), dict.fromkeys(STAGES, 0.0)
    counts = {"suspects": 0, "bytes": 0, "records": 0}
    clock = time.process_time
    for offset, value in enumerate(log):
        began = clock()
        record = read(value)
        taken = clock()
        used["read"] += taken - began
        said = matcher.apply(record, offset, work.START_MS)
        stage = "judge"
        if isinstance(record, PackedBatch):
            stage = "expected" if record.sections[0].side == Side.EXPECTED else "observed"
        used[stage] += clock() - taken
        counts["suspects"] += sum(isinstance(one, Suspect) for one in said)
        if offset % every == every - 1 or offset == len(log) - 1:
            _checkpoint(matcher, journal, offset, used, counts)
    return used, counts


def _checkpoint(matcher: KeyMatcher, journal: Journal, offset: int, used: dict[str, float], counts: dict[str, int]) -> None:
    clock = time.process_time
    began = clock()
    msgspec.json.encode(matcher.status("bench", 0))
    shown = clock()
    used["status"] += shown - began
    for name, payload in matcher.state_records():
        if payload is None:
            journal.removal(name)
        else:
            counts["bytes"] += len(journal.record(name, offset, payload)[1])
            counts["records"] += 1
    cut = clock()
    used["records"] += cut - shown
    journal.marker(offset, matcher.marker(), topic_id="bench")
    used["marker"] += clock() - cut


def _native(options: argparse.Namespace) -> RowsModule | None:
    return native.find({native.SWITCH: "1"}).module if options.native else None


def small(options: argparse.Namespace) -> None:
    """Print what small sections cost."""
    pipelines = [f"orders{number}" for number in range(options.pipelines)]
    log = list(small_records(options.keys, options.events, options.sections, options.updates, pipelines))
    found = [read(value) for value in log]
    sections = [section for record in found if isinstance(record, PackedBatch) for section in record.sections]
    count = sum(len(section.keys) for section in sections)
    rounds = [run_small(log, pipelines, _native(options)) for _ in range(options.rounds)]
    total = median(seconds for seconds, _ in rounds)
    each = count / len(sections)
    print(f"{1e6 * total / count:.2f} µs per event, {1e6 * total / len(sections):.2f} µs per section of {each:.1f} events")
    print(f"{rounds[0][1]} suspects")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_match", description=__doc__)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=500, help="events in a record")
    parser.add_argument("--sections", type=int, default=1, help="sections in a record, each of a feed partition")
    parser.add_argument("--updates", type=int, default=0, help="writes of a key after its first")
    parser.add_argument(
        "--pipelines", type=int, default=0, help="of which every record holds small sections; 0: the stages of one"
    )
    parser.add_argument("--every", type=int, default=RECORDS_PER_CHECKPOINT, help="records between two checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--native", action="store_true", help="with the compiled module (make native)")
    options = parser.parse_args()
    if options.pipelines:
        small(options)
        return
    log = list(records(options.keys, options.events, options.sections, options.updates))
    count = work.records(options.keys * (1 + options.updates))
    rounds = [run(log, options.every, _native(options)) for _ in range(options.rounds)]
    for stage in STAGES:
        print(f"{stage:10} {1e6 * median(used[stage] for used, _ in rounds) / count:8.3f} µs per event")
    total = median(sum(used.values()) for used, _ in rounds)
    counts = rounds[0][1]
    print(f"{'all':10} {1e6 * total / count:8.3f} µs per event, {count / total:,.0f} events per CPU second")
    print(f"{counts['suspects']} suspects; {counts['records']} state records, {counts['bytes'] / options.keys:.0f} bytes a key")


if __name__ == "__main__":
    main()
