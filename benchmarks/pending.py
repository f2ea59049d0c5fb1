"""Rows 6 and 7: what a million pending keys cost the real match role, and how fast it is back after ``kill -9``.

The source's writes are on ``gapwatch.events``, the target's are not yet, and nothing is due: every key is pending. One process
runs the role; what it holds and when it has applied what is read from its status records.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import work
from gapwatch.clock import SystemClock
from gapwatch.core.batches import pack
from gapwatch.core.keys import partition_of
from gapwatch.core.mapping import CompiledMapping
from gapwatch.kafka.topics import ensure_topics
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import FORMAT, NO_DELIVERY, Batch, Control, FeedState, Operation, PipelineTimes, Section, Side
from gapwatch.model.suspect import PartitionStatus
from gapwatch.roles.match.role import MatchRole
from gapwatch.roles.match.settings import MatchTuning

SESSION_SECONDS = 6.0
EVENTS_PER_RECORD = 1_000
WAIT_SECONDS = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingFigures:
    """``first_event_seconds``: from the start of a worker on nothing to its first status that has applied a record.
    ``recovery_seconds``: from ``kill -9`` with everything pending to a status that has applied a record written afterwards,
    without the session that the group waits for the dead one.
    """

    keys: int
    bytes_per_key: float
    resident_mib: float
    first_event_seconds: float
    recovery_seconds: float


class Events:
    """Writes what ingest would to the events topic, one feed partition on each side."""

    def __init__(self, settings: Settings, keys: int) -> None:
        self._settings = settings
        mapping = CompiledMapping(settings.pipelines["orders"])
        self._fingerprint = mapping.fingerprint
        partitions = settings.topics.partitions
        self._keys: list[list[tuple[int, bytes]]] = [[] for _ in range(partitions)]
        for number in range(keys):
            key = mapping.source.codec.encode((number,))
            self._keys[partition_of(key, partitions)].append((number, key))
        self._reached = dict.fromkeys(Side, 0)
        self._producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "compression.type": "lz4", "linger.ms": 5})

    def control(self) -> None:
        """Say how far both sides were read, to every partition: to the beginning, so that nothing is due."""
        states = [self._state(side, self._reached[side]) for side in Side]
        record = pack(Control(FORMAT, "bench", work.START_MS, states, [PipelineTimes("orders", 0, 1_000)]))
        for partition in range(len(self._keys)):
            self._send(partition, record)
        self._producer.flush()

    def write(self, side: Side, first: int, last: int) -> None:
        """Write the events of the keys in `[first, last)` of one side."""
        for partition, keys in enumerate(self._keys):
            rows = [row for row in keys if first <= row[0] < last]
            for start in range(0, len(rows), EVENTS_PER_RECORD):
                chunk = rows[start : start + EVENTS_PER_RECORD]
                after = rows[start + EVENTS_PER_RECORD][0] if start + EVENTS_PER_RECORD < len(rows) else last
                section = self._section(side, chunk, first if not start else chunk[0][0], after)
                self._send(partition, pack(Batch(FORMAT, [section], [])))
        self._reached[side] = last
        self._producer.flush()

    def _send(self, partition: int, record: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._settings.topics.events, value=record, partition=partition)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _section(self, side: Side, rows: list[tuple[int, bytes]], offset_from: int, offset_to: int) -> Section:
        numbers = [number for number, _ in rows]
        times = [work.START_MS + 60_000 + number // 10 for number in numbers]
        return Section(
            pipeline="orders",
            side=int(side),
            feed=_topic(side),
            feed_partition=0,
            epoch=1,
            mapping=self._fingerprint,
            offset_from=offset_from,
            offset_to=offset_to,
            keys=[key for _, key in rows],
            operations=bytes([Operation.UPSERT]) * len(rows),
            offsets=numbers,
            majors=numbers,
            minors=[0] * len(rows),
            event_times=times,
            append_times=times,
            digests=[xxhash.xxh3_128_digest(key) for _, key in rows],
        )

    def _state(self, side: Side, reached: int) -> FeedState:
        return FeedState(
            pipeline="orders",
            side=int(side),
            feed=_topic(side),
            feed_partition=0,
            partitions=1,
            epoch=1,
            offset_from=reached,
            offset_to=reached,
            watermark=work.START_MS,
            caught_up=work.START_MS,
            delivery=NO_DELIVERY,
            delivery_clock=0,
            lost=[],
        )


def _topic(side: Side) -> str:
    return work.SOURCE if side is Side.EXPECTED else work.TARGET


class Statuses:
    """The newest status of each partition."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": settings.bootstrap_servers, "group.id": "bench", "enable.auto.commit": False}
        )
        self._consumer.assign([TopicPartition(settings.topics.status, 0, 0)])
        self._partitions = settings.topics.partitions
        self.newest: dict[int, PartitionStatus] = {}

    def wait(self, reached: Callable[[list[PartitionStatus]], bool]) -> float:
        """Return when the newest statuses of all partitions are as wanted, by the monotonic clock."""
        until = time.monotonic() + WAIT_SECONDS
        while len(self.newest) < self._partitions or not reached(list(self.newest.values())):
            if time.monotonic() > until:
                raise TimeoutError(f"match did not come so far within {WAIT_SECONDS:g} s")
            self.look()
        return time.monotonic()

    def look(self) -> None:
        """Take up what was written since, for a moment."""
        for message in self._consumer.consume(100, timeout=0.05):
            value = message.value()
            if value is not None and message.error() is None:
                status = msgspec.json.decode(value, type=PartitionStatus)
                self.newest[status.partition] = status

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def _worker(servers: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pending", servers], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _resident_bytes(process: subprocess.Popen[bytes]) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError("match has ended")


def measure_pending(servers: str, keys: int) -> PendingFigures:
    """Fill a fresh broker with so many pending keys, and measure match on them."""
    settings = work.settings(servers, "")
    asyncio.run(ensure_topics(settings))
    events, statuses = Events(settings, keys), Statuses(settings)
    events.control()
    began = time.monotonic()
    with _worker(servers) as worker:
        first = statuses.wait(lambda found: all(status.input_offset >= 0 for status in found)) - began
        empty = _resident_bytes(worker)
        events.write(Side.EXPECTED, 0, keys)
        statuses.wait(lambda found: sum(status.pending for status in found) == keys)
        full = _resident_bytes(worker)
        worker.send_signal(signal.SIGKILL)
        killed = time.monotonic()
    events.write(Side.OBSERVED, 0, keys // 100)
    with _worker(servers):
        back = statuses.wait(lambda found: sum(status.counters.settled for status in found) == keys // 100) - killed
    statuses.close()
    return PendingFigures(
        keys=keys,
        bytes_per_key=(full - empty) / keys,
        resident_mib=full / 1024 / 1024,
        first_event_seconds=first,
        recovery_seconds=back - SESSION_SECONDS,
    )


def rows(found: PendingFigures) -> list[dict[str, object]]:
    """Return rows 6 and 7 of the report."""
    return [
        _row(6, "memory per pending key", found.bytes_per_key, "bytes", 400, found),
        _row(7, "recovery after kill -9", found.recovery_seconds, "seconds", 10, found),
        _row(7, "first event after start", found.first_event_seconds, "seconds", 3, found),
    ]


def _row(number: int, name: str, value: float, unit: str, limit: float, found: PendingFigures) -> dict[str, object]:
    return {
        "row": number,
        "name": name,
        "value": value,
        "unit": unit,
        "reference": limit,
        "ratio": value / limit,
        "goal": f"≤ {limit:g} {unit}",
        "met": value <= limit,
        "peak_rss_mib": found.resident_mib,
    }


async def _serve(servers: str) -> None:
    settings = work.settings(servers, "")
    fingerprints = {name: CompiledMapping(spec).fingerprint for name, spec in settings.pipelines.items()}
    tuning = MatchTuning(session_seconds=SESSION_SECONDS)
    await MatchRole(settings, fingerprints, SystemClock(), stop=asyncio.Event(), tuning=tuning).run()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(_serve(sys.argv[1]))
