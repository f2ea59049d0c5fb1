"""Each contestant runs in a process of its own and prints what it used: ``python -m benchmarks.contestants NAME …``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

from gapwatch.imports import quick_imports

with quick_imports():  # as `gapwatch run` does
    import msgspec
    from confluent_kafka import Consumer, TopicPartition

    from benchmarks import work
    from benchmarks.figures import report
    from gapwatch import native
    from gapwatch.clock import SystemClock
    from gapwatch.core.batches import unpack
    from gapwatch.core.mapping import CompiledMapping
    from gapwatch.model.pipeline import Settings
    from gapwatch.model.stream import Batch
    from gapwatch.model.suspect import PartitionStatus, Said, Suspect

NATIVE = "ingest, native"
MATCH_NATIVE = "match, native"
NATIVE_PREFIX = "gapwatch-native"  # beside what the pure one writes on the same broker


async def ingest(servers: str, keys: int, database: str, prefix: str = work.PREFIX, name: str = "bench") -> dict[str, float]:
    """Row 1: the real role, until every raw offset is committed; with the native module where ``GAPWATCH_NATIVE`` says so."""
    with quick_imports():
        from gapwatch.kafka.clients import Partition, RawConsumer
        from gapwatch.kafka.offsets import OffsetReader
        from gapwatch.kafka.producer import AckedProducer
        from gapwatch.kafka.topics import TopicAdmin, ensure_topics
        from gapwatch.ledger import open_ledger
        from gapwatch.roles.ingest.role import IngestDependencies, IngestRole

    settings, clock, group = work.settings(servers, database, prefix), SystemClock(), f"{prefix}.ingest"
    await ensure_topics(settings)
    ledger = open_ledger(database)

    async def no_skew(_: str) -> int:
        return 0

    module = native.find(os.environ).module
    role = IngestRole(
        IngestDependencies(
            settings=settings,
            pipelines=settings.pipelines,
            ledger=ledger,
            producer=AckedProducer(settings, client_id=name),
            consumer=RawConsumer(settings, client_id=name, group=group, options={"enable.partition.eof": True}, native=module),
            heartbeats=RawConsumer(settings, client_id=f"{name}-heartbeats"),
            offsets=OffsetReader(settings, clock),
            topics=TopicAdmin(settings),
            clock=clock,
            name=name,
            skew_ms=no_skew,
            on_unparsable=lambda reason: sys.exit(f"unparsable: {reason}"),
            on_finding=lambda pipeline, finding: sys.exit(f"finding: {finding}"),
            native=module,
        )
    )
    stop = asyncio.Event()
    running = asyncio.create_task(role.run(stop))
    offsets = OffsetReader(settings, clock)
    partitions = [Partition(topic, number) for topic in (work.SOURCE, work.TARGET) for number in range(work.PARTITIONS)]
    total = work.records(keys)
    while not running.done():
        committed = (await offsets.delivery(group, partitions)).positions
        if sum(offset or 0 for offset in committed.values()) >= total:
            break
        await asyncio.sleep(0.2)
    stop.set()
    await running
    ledger.close()
    return {"events": float(total)}


async def match(servers: str, keys: int, database: str, prefix: str = work.PREFIX) -> dict[str, float]:
    """Row 2: the real role with its Faust worker, until its status says that all of the events were applied."""
    with quick_imports():
        from gapwatch.roles.match.role import MatchRole

    settings, clock, module = work.settings(servers, database, prefix), SystemClock(), native.find(os.environ).module
    fingerprints = {name: CompiledMapping(spec).fingerprint for name, spec in settings.pipelines.items()}
    stop = asyncio.Event()
    running = asyncio.create_task(MatchRole(settings, fingerprints, clock, stop=stop, native=module).run())
    statuses = await applied(settings, ends_of(servers, settings.topics.events), running)
    stop.set()
    await running
    return {"events": float(work.records(keys)), "expected": float(sum(s.counters.expected for s in statuses.values()))}


def ends_of(servers: str, topic: str) -> dict[int, int]:
    """Return the end of each partition of an events topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-ends", "enable.auto.commit": False})
    parts = [TopicPartition(topic, number) for number in range(work.EVENTS_PARTITIONS)]
    ends = {part.partition: consumer.get_watermark_offsets(part)[1] for part in parts}
    consumer.close()
    return ends


async def applied(settings: Settings, ends: Mapping[int, int], running: asyncio.Task[None]) -> dict[int, PartitionStatus]:
    """Return the newest statuses once all partitions were applied to their ends; or what there is when the role has ended."""
    statuses: dict[int, PartitionStatus] = {}
    consumer = Consumer(
        {"bootstrap.servers": settings.bootstrap_servers, "group.id": "bench-status", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(settings.topics.status, 0, 0)])
    while not running.done():
        for message in await asyncio.to_thread(consumer.consume, 100, 0.2):
            value = message.value()
            if value is not None and message.error() is None:
                status = msgspec.json.decode(value, type=PartitionStatus)
                statuses[status.partition] = status
        if len(statuses) == len(ends) and all(status.input_offset >= ends[number] - 1 for number, status in statuses.items()):
            break
    consumer.close()
    return statuses


def found(servers: str, prefix: str = work.PREFIX) -> set[int]:
    """Return the keys of all suspects."""
    suspects = raised(servers, prefix)
    return {*suspects.missing, *suspects.wrong}


def raised(servers: str, prefix: str = work.PREFIX) -> work.Planted:
    """Return the keys of all suspects: those whose document never came, and those whose document differs."""
    settings = work.settings(servers, "", prefix)
    codec = CompiledMapping(settings.pipelines["orders"]).source.codec
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-suspects", "enable.auto.commit": False})
    parts = [TopicPartition(settings.topics.suspects, number, 0) for number in range(settings.topics.partitions)]
    total = sum(consumer.get_watermark_offsets(part)[1] for part in parts)
    consumer.assign(parts)
    missing: set[int] = set()
    wrong: set[int] = set()
    read = 0
    while read < total:
        for message in consumer.consume(500, timeout=0.2):
            read += 1
            record = msgspec.json.decode(message.value() or b"", type=Said)
            if isinstance(record, Suspect):
                (wrong if record.newest_observed else missing).add(int(codec.decode(record.key)[0]))
    consumer.close()
    return work.Planted(missing=frozenset(missing), wrong=frozenset(wrong))


def differing(servers: str, keys: int, prefix: str = work.PREFIX) -> set[int]:
    """Return the keys that the sections of both sides disagree on: the answer, without the matcher."""
    settings = work.settings(servers, "", prefix)
    codec = CompiledMapping(settings.pipelines["orders"]).source.codec
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-events", "enable.auto.commit": False})
    parts = [TopicPartition(settings.topics.events, number, 0) for number in range(settings.topics.partitions)]
    ends = [consumer.get_watermark_offsets(part)[1] for part in parts]
    consumer.assign(parts)
    digests: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
    read = 0
    while read < sum(ends):
        for message in consumer.consume(500, timeout=0.2):
            read += 1
            record = unpack(message.value() or b"")
            if isinstance(record, Batch):
                for section in record.sections:
                    digests[section.side].update(zip(section.keys, section.digests, strict=True))
    consumer.close()
    expected, observed = digests
    if len(expected) != keys:
        sys.exit(f"wrong answer: {len(expected)} of {keys} keys came through")
    return {int(codec.decode(key)[0]) for key, digest in expected.items() if observed.get(key) != digest}


def main() -> None:
    """Run one contestant and print its figures."""
    name, servers, keys, database = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    prefix = NATIVE_PREFIX if name in (NATIVE, MATCH_NATIVE) else work.PREFIX
    if name in ("match", MATCH_NATIVE):
        figures = asyncio.run(match(servers, keys, database, prefix))
    else:
        figures = asyncio.run(ingest(servers, keys, database, prefix))
    report(int(figures.pop("events")), **figures)


if __name__ == "__main__":
    main()
