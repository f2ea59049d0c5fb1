"""Where match's time goes, without a broker: ``python -m benchmarks.hot_match``. CPU time per event of each stage, medians.

The real matcher, its records and its checkpoints, fed from memory with the work of reference's shape: records of so many events,
both sides interleaved, the target 2,000 events behind, control records every 250 ms of event time, a checkpoint after so many
records. Only what the stage does is measured, not the making of its input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import median

import msgspec
import xxhash

from benchmarks import work
from gapwatch.core.batches import pack, read
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
STAGES = ("read", "expected", "observed", "judge", "status", "records", "marker")


def _key(number: int) -> bytes:
    return b"\x01" + number.to_bytes(6, "big")


def _section(side: Side, numbers: range) -> Section:
    later = 0 if side is Side.EXPECTED else 300
    topic = work.SOURCE if side is Side.EXPECTED else work.TARGET
    kept = [number for number in numbers if side is Side.EXPECTED or number % work.MISSING_EVERY != 500]
    wrong = {number for number in kept if side is Side.OBSERVED and number % work.WRONG_EVERY == 700}
    times = [work.START_MS + number * 1_000 // work.PER_SECOND + later for number in kept]
    return Section(
        pipeline="orders",
        side=int(side),
        feed=topic,
        feed_partition=0,
        epoch=1,
        mapping=MAPPING,
        offset_from=numbers.start,
        offset_to=numbers.stop,
        keys=[_key(number) for number in kept],
        operations=bytes([Operation.UPSERT]) * len(kept),
        offsets=kept,
        majors=[10_000_000 + number * 100 - 50 for number in kept],
        minors=[10_000_000 + number * 100 for number in kept],
        event_times=times,
        append_times=times,
        digests=[xxhash.xxh3_128_digest(b"%d" % (-number if number in wrong else number)) for number in kept],
    )


def _control(expected: int, observed: int, clock: int) -> Control:
    states = [
        FeedState(
            pipeline="orders",
            side=int(side),
            feed=topic,
            feed_partition=0,
            partitions=1,
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
    ]
    return Control(FORMAT, "bench", clock, states, [PipelineTimes("orders", 0, 1_000)])


def records(keys: int, events: int) -> Iterator[bytes]:
    """Yield the records of one partition of ``gapwatch.events``."""
    yield pack(_control(0, 0, work.START_MS))
    spoke = work.START_MS
    for start in range(0, keys + LAG_EVENTS, events):
        for side, first in ((Side.EXPECTED, start), (Side.OBSERVED, start - LAG_EVENTS)):
            numbers = range(max(0, first), max(0, min(keys, first + events)))
            if numbers:
                yield pack(Batch(FORMAT, [_section(side, numbers)], []))
        expected, observed = min(keys, start + events), max(0, min(keys, start + events - LAG_EVENTS))
        clock = work.START_MS + observed * 1_000 // work.PER_SECOND
        if clock - spoke >= PULSE_MS:
            spoke = clock
            yield pack(_control(expected, observed, clock))
    yield pack(_control(keys, keys, work.end_time(keys) + 60_000))


def _matcher() -> KeyMatcher:
    spec = work.settings("", "").pipelines["orders"]
    return KeyMatcher(0, 1, {"orders": spec}, fingerprints={"orders": MAPPING}, life="bench")


def run(log: list[bytes], every: int) -> tuple[dict[str, float], dict[str, int]]:
    """Match everything; return CPU seconds by stage, and counts."""
    matcher, journal, used = _matcher(), Journal(0), dict.fromkeys(STAGES, 0.0)
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_match", description=__doc__)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=500, help="events in a record")
    parser.add_argument("--every", type=int, default=RECORDS_PER_CHECKPOINT, help="records between two checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    log = list(records(options.keys, options.events))
    count = work.records(options.keys)
    rounds = [run(log, options.every) for _ in range(options.rounds)]
    for stage in STAGES:
        print(f"{stage:10} {1e6 * median(used[stage] for used, _ in rounds) / count:8.3f} µs per event")
    total = median(sum(used.values()) for used, _ in rounds)
    counts = rounds[0][1]
    print(f"{'all':10} {1e6 * total / count:8.3f} µs per event, {count / total:,.0f} events per CPU second")
    print(f"{counts['suspects']} suspects; {counts['records']} state records, {counts['bytes'] / options.keys:.0f} bytes a key")


if __name__ == "__main__":
    main()
