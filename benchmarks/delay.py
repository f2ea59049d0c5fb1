"""Row 5: how long after a lost write its key is a suspect, and how long after it there is a gap, at 10,000 raw events a second.

Roles ingest, match and repair run as processes of their own; both stores hold what the events tell. A suspect's time is that
at which the broker appended it, a gap's the one in the record, which is its confirmation; gaps are published a little later.
``W`` is what has to pass before a write is late: the grace, the disorder and the measured skew of the clocks.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks import running, traffic
from benchmarks.figures import percentile, row
from gapwatch.config import parse
from gapwatch.core.batches import read
from gapwatch.core.keys import KeyCodec
from gapwatch.embedded import EmbeddedStack
from gapwatch.kafka.topics import TopicAdmin, TopicPlan, ensure_topics
from gapwatch.ledger import open_ledger
from gapwatch.model.gap import RunKind
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import Control
from gapwatch.model.suspect import Said, Suspect

RATE = 10_000
WARM_SECONDS, MEASURED_SECONDS, REST_SECONDS = 45.0, 60.0, 8.0  # the first start sweeps; the last ones are still to be found
GRACE_SECONDS, DISORDER_SECONDS = 1.0, 0.2
SUSPECT_SECONDS, GAP_SECONDS = 0.7, 1.5  # the goals, above W
ROLES = ("ingest", "match", "repair")

Place = tuple[int, int]  # pipeline and key


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds from each counted write to its suspect, its gap, and the gap's publication; W; the rate that was reached."""

    suspects: Sequence[float]
    gaps: Sequence[float]
    published: Sequence[float]
    wait: float
    rate: float
    resident_mib: float


def measure(seconds: float = MEASURED_SECONDS) -> Delays:
    """Produce for so long at the full rate, and a while before and after it; return what came of it."""
    plan = traffic.Plan(pipelines=1, rate=RATE, seconds=WARM_SECONDS + seconds + REST_SECONDS)
    with EmbeddedStack(parts=("kafka", "postgres", "mongodb")) as stack, tempfile.TemporaryDirectory() as directory:
        print("filling the stores", file=sys.stderr)
        traffic.fill(stack, plan)
        config = traffic.configuration(stack, plan, grace=f"{GRACE_SECONDS:g}s", disorder=f"{DISORDER_SECONDS * 1000:g}ms")
        service = running.Service(stack, Path(directory), config)
        settings = parse(service.file.read_text(), {})
        asyncio.run(_prepare(settings))
        service.start(ROLES)
        time.sleep(running.FIRST_SECONDS)
        try:
            produced = traffic.ended(traffic.start(stack, plan))
            time.sleep(1.0)
            resident = running.resident_mib(service.pids())
        finally:
            service.stop()
        begun = produced.begun + int(WARM_SECONDS * 1000)
        counted = {(pipeline, key): at for pipeline, key, at in produced.lost if begun <= at < begun + seconds * 1000}
        _tell_sweeps(service, begun)
        suspects, (confirmed, published) = _suspects(settings), _gaps(settings)
        _check(counted, produced, suspects, confirmed)
        return Delays(
            suspects=delays(counted, suspects),
            gaps=delays(counted, confirmed),
            published=delays(counted, published),
            wait=GRACE_SECONDS + DISORDER_SECONDS + _skew_ms(settings) / 1000,
            rate=produced.rate,
            resident_mib=resident,
        )


def _tell_sweeps(service: running.Service, since: int) -> None:
    """Say when a sweep fell into the measured time: the first start has one, which should have ended before."""
    ledger = open_ledger(service.database)
    for run in ledger.runs(kind=RunKind.SWEEP):
        if run.ended_at is None or run.ended_at.timestamp() * 1000 > since:
            print(
                f"  a sweep went on meanwhile: {run.requested_by}, {run.state}, {run.started_at} to {run.ended_at}",
                file=sys.stderr,
            )
    ledger.close()


async def _prepare(settings: Settings) -> None:
    """Create the service's topics, and have the broker stamp what is counted."""
    await ensure_topics(settings)
    admin = TopicAdmin(settings)
    for name in (settings.topics.suspects, settings.topics.gaps):
        await admin.apply_settings(TopicPlan(name=name, partitions=1, settings={"message.timestamp.type": "LogAppendTime"}))


def delays(written: Mapping[Place, int], found: Mapping[Place, int]) -> list[float]:
    """Return seconds from each write to what was found of it."""
    return [(found[place] - at) / 1000 for place, at in written.items()]


def _check(
    counted: Mapping[Place, int], produced: traffic.Produced, suspects: Mapping[Place, int], gaps: Mapping[Place, int]
) -> None:
    """Every counted write was found, and nothing is a gap that was not lost. A copy that was late may well be a suspect."""
    lost = {(pipeline, key) for pipeline, key, _ in produced.lost}
    missed, invented = counted.keys() - (suspects.keys() & gaps.keys()), gaps.keys() - lost
    if missed or invented:
        sys.exit(f"wrong answer: {len(missed)} of {len(counted)} missed, {len(invented)} invented")
    if late := suspects.keys() - lost:
        print(f"  {len(late)} copies came so late that their keys were suspects", file=sys.stderr)


def _suspects(settings: Settings) -> dict[Place, int]:
    """Return when each key's first suspect was appended."""
    numbers = {name: number for number, name in enumerate(settings.pipelines)}
    codecs = {name: KeyCodec(spec.source.key) for name, spec in settings.pipelines.items()}
    found: dict[Place, int] = {}
    for appended, value in records(settings, settings.topics.suspects):
        record = msgspec.json.decode(value, type=Said)
        if isinstance(record, Suspect):
            found.setdefault((numbers[record.pipeline], int(codecs[record.pipeline].decode(record.key)[0])), appended)
    return found


def _gaps(settings: Settings) -> tuple[dict[Place, int], dict[Place, int]]:
    """Return when each key's gap was confirmed, and when it was published."""
    numbers = {name: number for number, name in enumerate(settings.pipelines)}
    confirmed: dict[Place, int] = {}
    published: dict[Place, int] = {}
    for appended, value in records(settings, settings.topics.gaps):
        gap: dict[str, Any] = msgspec.json.decode(value)["data"]
        place = (numbers[gap["pipeline"]], int(gap["key"]["id"]))
        at = datetime.fromisoformat(gap["confirmed_at"])
        confirmed.setdefault(place, round(at.timestamp() * 1000))
        published.setdefault(place, appended)
    return confirmed, published


def _skew_ms(settings: Settings) -> int:
    """Return the largest skew that ingest sent on."""
    largest = 0
    for _, value in records(settings, settings.topics.events, partitions=(0,)):
        record = read(value)
        if isinstance(record, Control):
            largest = max([largest, *(times.skew for times in record.pipelines)])
    return largest


def records(settings: Settings, topic: str, partitions: Sequence[int] | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield append time and value of everything on a topic."""
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": "bench", "enable.auto.commit": False})
    parts = [TopicPartition(topic, n, 0) for n in (range(settings.topics.partitions) if partitions is None else partitions)]
    left = sum(consumer.get_watermark_offsets(part)[1] for part in parts)
    consumer.assign(parts)
    while left > 0:
        for message in consumer.consume(500, timeout=0.2):
            left -= 1
            yield message.timestamp()[1], message.value() or b""
    consumer.close()


def rows(found: Delays) -> list[dict[str, Any]]:
    """Return row 5 of the report."""
    at = f"at {found.rate:,.0f} raw events/s"
    described = []
    for title, values, limit in (
        ("write → suspect", found.suspects, SUSPECT_SECONDS),
        ("write → gap", found.gaps, GAP_SECONDS),
        ("write → gap on the topic of gaps", found.published, None),
    ):
        most = found.wait + (GAP_SECONDS if limit is None else limit)
        goal = "no goal" if limit is None else f"p99 ≤ W + {limit} s, W = {found.wait:.2f} s"
        met = {} if limit is None else {"most": 1.0}
        p99, p50 = percentile(values, 0.99), percentile(values, 0.5)
        described.append(row(5, f"{title}, p99 of {len(values)}, {at}", p99, "s", most, goal, **met, rss_mib=found.resident_mib))
        described.append(row(5, f"{title}, p50", p50, "s", most, "no goal", rss_mib=found.resident_mib))
    return described
