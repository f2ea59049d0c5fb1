"""Row 17: what a matcher's end costs the others: how long its partitions stand still, and when they have caught up.

Two matchers of one group share an events topic, to which records come at a steady rate, a part of what one matcher can do. Then
one of them is killed (SIGKILL), asked to leave (SIGTERM), or frozen for longer than a session (SIGSTOP, and SIGCONT later). What
was applied is told by the statuses, which are written with each checkpoint, once a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import contestants, pinned, work, workers
from benchmarks.figures import row
from benchmarks.pending import Statuses
from gapwatch.kafka.topics import ensure_topics
from gapwatch.roles.match.settings import MatchTuning

ROW: Final = 17
RECORDS_PER_SECOND: Final = 100.0  # some 57,000 events: a seventh of what a matcher does alone
BEFORE_SECONDS, FROZEN_SECONDS, AFTER_SECONDS = 8.0, 15.0, 45.0
CURRENT_SECONDS: Final = 2.0  # behind by no more than that, with statuses of every second, is not behind
FAULTS: Final = {
    "killed": signal.SIGKILL,
    "leaves": signal.SIGTERM,
    "frozen": signal.SIGSTOP,
}


@dataclass(slots=True)
class Partition:
    """What came, and what was applied of it: times by the monotonic clock, with the offsets that they are of."""

    came: list[tuple[float, int]] = field(default_factory=list)
    applied: list[tuple[float, int]] = field(default_factory=list)

    def behind(self, now: float) -> float:
        """Return the age of the oldest record that had come by then and was not applied; 0: there was none."""
        place = bisect_right(self.applied, (now, sys.maxsize)) - 1
        reached = self.applied[place][1] if place >= 0 else -1
        oldest = next((at for at, offset in self.came if offset > reached), now)
        return max(0.0, now - oldest)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Seconds. ``pause``: the longest time that a partition stood still. ``catch_up``: from the fault until none was behind."""

    pause: float
    catch_up: float


def judge(partitions: Sequence[Partition], fault: float, end: float) -> HandOver:
    """Return what the fault cost. Raises ValueError where some partition is behind to the end."""
    moments = [fault + tenth / 10 for tenth in range(int((end - fault) * 10) + 1)]
    late = [now for now in moments if any(one.behind(now) > CURRENT_SECONDS for one in partitions)]
    if late and late[-1] >= moments[-1] - 0.1:
        raise ValueError("a partition was behind to the end")
    caught_up = late[-1] + 0.1 if late else fault
    still = []
    for one in partitions:
        steps = [at for (at, offset), (_, before) in zip(one.applied[1:], one.applied, strict=False) if offset > before]
        still += [later - at for at, later in pairwise(steps) if later > fault]
    return HandOver(pause=max(still, default=0.0), catch_up=caught_up - fault)


def measure(what: str, servers: str, keys: int) -> HandOver:
    """Have two matchers share what comes, and one of them end; the records are those that one ingester has made."""
    prefix = f"{work.PREFIX}-{what}"
    settings = work.settings(servers, "", prefix)
    asyncio.run(ensure_topics(settings))
    partitions = {number: Partition() for number in range(work.EVENTS_PARTITIONS)}
    command = [sys.executable, "-m", "benchmarks.workers", workers.MATCHERS, servers, str(keys), "", prefix]
    with (
        pinned.Running([*command, "bench-0"], place=0) as stays,
        pinned.Running([*command, "bench-1"], place=1) as goes,
    ):
        workers.wait_for_matchers([stays, goes], servers, prefix)
        stop = threading.Event()
        feeding = threading.Thread(target=_feed, args=(servers, settings.topics.events, partitions, stop))
        feeding.start()
        statuses = Statuses(settings)
        try:
            _watch(statuses, partitions, BEFORE_SECONDS, stays)
            fault = time.monotonic()
            os.kill(goes.pid, FAULTS[what])
            if what == "frozen":
                _watch(statuses, partitions, FROZEN_SECONDS, stays)
                os.kill(goes.pid, signal.SIGCONT)
            _watch(statuses, partitions, AFTER_SECONDS, stays)
            end = time.monotonic()
        finally:
            stop.set()
            feeding.join()
            statuses.close()
    return judge(list(partitions.values()), fault, end)


def _watch(statuses: Statuses, partitions: Mapping[int, Partition], seconds: float, stays: pinned.Running) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stays.goes_on()
        statuses.look()
        now = time.monotonic()
        for number, status in statuses.newest.items():
            known = partitions[number].applied
            if not known or known[-1][1] != status.input_offset:
                known.append((now, status.input_offset))


def _feed(servers: str, topic: str, partitions: Mapping[int, Partition], stop: threading.Event) -> None:
    """Copy the ingester's records at a steady rate."""
    source = work.settings(servers, "").topics.events
    ends = contestants.ends_of(servers, source)
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-feed", "enable.auto.commit": False})
    consumer.assign([TopicPartition(source, number, 0) for number in ends])
    producer = Producer({"bootstrap.servers": servers, "compression.type": "lz4", "linger.ms": 5, "enable.idempotence": True})
    began, sent, sizes = time.monotonic(), 0, dict.fromkeys(ends, 0)
    while sent < sum(ends.values()) and not stop.is_set():
        for message in consumer.consume(10, timeout=0.1):
            while not stop.is_set() and sent > (time.monotonic() - began) * RECORDS_PER_SECOND:
                time.sleep(0.005)
            number = message.partition() or 0
            producer.produce(topic, message.value(), key=message.key(), partition=number)
            partitions[number].came.append((time.monotonic(), sizes[number]))
            sizes[number] += 1
            sent += 1
        producer.poll(0)
    producer.flush()
    consumer.close()


def rows(found: Mapping[str, Sequence[HandOver]]) -> list[dict[str, Any]]:
    """Return row 17 of the report: beside a session, which a member that does not answer costs anyway."""
    described = []
    for what, rounds in found.items():
        session = MatchTuning().session_seconds
        pause, caught_up = median(one.pause for one in rounds), median(one.catch_up for one in rounds)
        described.append(row(ROW, f"one of two matchers {what}: its partitions stand still for", pause, "s", session, "no goal"))
        described.append(row(ROW, f"one of two matchers {what}: none is behind after", caught_up, "s", session, "no goal"))
    return described
