"""Row 4: what two workers of one group do for a second of CPU, beside what one does: ingesters, and matchers.

Each worker is the real role in a process of its own, on a core of its own; the broker shares both. The work is that of rows 1 and
2, of two ingesters on the same raw topics, and of two matchers on the same records of the events topic, which one ingester made.

Workers have joined before the work begins, one as well as two, so that two share it evenly from its first record on:

- ingesters find their group held up by a member that does not answer a rebalance, and leaves when all others are there;
- matchers have joined on an empty topic, and the records are then copied to it, as they are.

The CPU is all that both processes used, so the start-up of Python, the imports, joining and waiting for the other are in it
twice: the same figure is shown without what was used before the work began, too.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from gapwatch.imports import quick_imports

with quick_imports():  # as `gapwatch run` does
    from confluent_kafka import Consumer, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic

    from benchmarks import contestants, pinned, work
    from benchmarks.figures import report
    from benchmarks.pending import Statuses
    from gapwatch.clock import SystemClock
    from gapwatch.core.mapping import CompiledMapping
    from gapwatch.kafka.topics import ensure_topics
    from gapwatch.model.suspect import PartitionStatus

INGESTERS, MATCHERS = "ingesters", "matchers"
ROLES = (INGESTERS, MATCHERS)
GOAL = 0.9
JOIN_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.1
DOOR = "bench.door"  # a topic without records: whoever holds up a group must subscribe to something


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """What the workers of one group did together. ``started``: the CPU seconds they had used when the work began."""

    events: float
    cpu: float
    started: float
    peak_rss_mib: float

    @classmethod
    def of(cls, figures: Sequence[Mapping[str, float]], started: Sequence[float], events: int) -> Team:
        return cls(
            events=float(events),
            cpu=sum(one["cpu"] for one in figures),
            started=sum(started),
            peak_rss_mib=sum(one["peak_rss_mib"] for one in figures),
        )

    @property
    def per_cpu_second(self) -> float:
        return self.events / self.cpu

    @property
    def per_cpu_second_at_work(self) -> float:
        """Without what was used before the work began."""
        return self.events / (self.cpu - self.started)


def prefix_of(role: str, count: int) -> str:
    """Return the prefix of a team's own topics and group; one ingester makes the events that all matchers get."""
    return work.PREFIX if (role, count) == (INGESTERS, 1) else f"{work.PREFIX}-{count}-{role}"


def run(role: str, count: int, servers: str, keys: int, database: str) -> Team:
    """Have so many workers do the work together. Raises CouldNotRunError, or TimeoutError where they do not join."""
    prefix, admin = prefix_of(role, count), AdminClient({"bootstrap.servers": servers})
    asyncio.run(ensure_topics(work.settings(servers, database, prefix)))
    with ExitStack() as running:
        door = running.enter_context(ExitStack())
        if role == INGESTERS:
            door.enter_context(_held_up(servers, admin, f"{prefix}.ingest"))
        workers = [
            running.enter_context(
                pinned.Running(
                    [sys.executable, "-m", "benchmarks.workers", role, servers, str(keys), database, prefix, f"bench-{number}"],
                    place=number,
                    environment={"GAPWATCH_NATIVE": "0"},
                )
            )
            for number in range(count)
        ]
        if role == INGESTERS:
            _wait(workers, lambda: _members(admin, f"{prefix}.ingest") == count + 1)
            started = [one.cpu_seconds() for one in workers]
            door.close()
        else:
            wait_for_matchers(workers, servers, prefix)
            started = [one.cpu_seconds() for one in workers]
            _copy(servers, work.settings(servers, "").topics.events, work.settings(servers, "", prefix).topics.events)
        figures = pinned.wait(workers)
    team = Team.of(figures, started, work.records(keys))
    shares = " + ".join(f"{one['cpu'] - before:.2f}" for one, before in zip(figures, started, strict=True))
    print(f"  {count} {role:14} {team.per_cpu_second:>10,.0f} events per CPU second", end="", file=sys.stderr)
    print(f"; at work {team.per_cpu_second_at_work:,.0f}, in {shares} s after {team.started:.2f} s", file=sys.stderr)
    return team


def _wait(workers: Sequence[pinned.Running], joined: Callable[[], bool]) -> None:
    until = time.monotonic() + JOIN_SECONDS
    while not joined():
        if not all(one.goes_on() for one in workers) or time.monotonic() > until:
            raise TimeoutError(f"{len(workers)} workers did not join within {JOIN_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)


@contextmanager
def _held_up(servers: str, admin: AdminClient, group: str) -> Iterator[None]:
    """Be a member of the group that leaves a rebalance unanswered, so that it lasts until the context is left."""
    if DOOR not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(DOOR, num_partitions=1, replication_factor=1)])[DOOR].result()
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "enable.auto.commit": False,
            "partition.assignment.strategy": "range",
            "heartbeat.interval.ms": 500,
        }
    )
    consumer.subscribe([DOOR], on_assign=lambda *_: None, on_revoke=lambda *_: None)  # with callbacks it waits for a poll
    try:
        until = time.monotonic() + JOIN_SECONDS
        while not consumer.assignment():
            if time.monotonic() > until:
                raise TimeoutError(f"nobody can join {group}")
            consumer.poll(LOOK_SECONDS)
        yield
    finally:
        consumer.close()


def _members(admin: AdminClient, group: str) -> int:
    return len(admin.describe_consumer_groups([group], request_timeout=10)[group].result().members)


def wait_for_matchers(workers: Sequence[pinned.Running], servers: str, prefix: str) -> None:
    statuses = Statuses(work.settings(servers, "", prefix))

    def joined() -> bool:
        statuses.look()
        return is_shared(statuses.newest, len(workers))

    try:
        _wait(workers, joined)
    finally:
        statuses.close()


def is_shared(newest: Mapping[int, PartitionStatus], count: int) -> bool:
    """Say whether so many workers hold the partitions, each as many as the others."""
    shares = Counter(status.worker for status in newest.values())
    return list(shares.values()) == [work.EVENTS_PARTITIONS // count] * count


def _copy(servers: str, source: str, target: str) -> None:
    """Copy a topic, record by record to the same offset."""
    ends = contestants.ends_of(servers, source)
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-copy", "enable.auto.commit": False})
    consumer.assign([TopicPartition(source, number, 0) for number in ends])
    producer = Producer({"bootstrap.servers": servers, "compression.type": "lz4", "linger.ms": 5, "enable.idempotence": True})
    left = sum(ends.values())
    while left:
        for message in consumer.consume(1_000, timeout=0.2):
            producer.produce(target, message.value(), key=message.key(), partition=message.partition() or 0)
            left -= 1
        producer.poll(0)
    producer.flush()
    consumer.close()
    if contestants.ends_of(servers, target) != ends:
        sys.exit(f"{target} is no copy of {source}")


Found = Mapping[tuple[str, int], Sequence[Team]]  # by role and number of workers: all rounds


def rows(found: Found) -> list[dict[str, Any]]:
    """Return row 4 of the report: of each role two figures of two workers, beside the same of one."""
    described = []
    for role in ROLES:
        one, two = found[role, 1], found[role, 2]
        peak = median(team.peak_rss_mib for team in two)
        value, reference = (median(team.per_cpu_second for team in teams) for teams in (two, one))
        described.append(_row(f"two {role}", value, reference, f"≥ {GOAL} of one", GOAL, peak))
        value, reference = (median(team.per_cpu_second_at_work for team in teams) for teams in (two, one))
        described.append(_row(f"two {role}, once both have joined", value, reference, "no goal", 0.0, peak))
    return described


def _row(name: str, value: float, reference: float, goal: str, least: float, peak: float) -> dict[str, Any]:
    return {
        "row": 4,
        "name": name,
        "value": value,
        "unit": "events per CPU second",
        "reference": reference,
        "ratio": value / reference,
        "goal": goal,
        "met": value / reference >= least,
        "peak_rss_mib": peak,
    }


async def _match(servers: str, keys: int, prefix: str, name: str) -> dict[str, float]:
    """One matcher of several: until all partitions were applied to the ends of what was copied."""
    with quick_imports():
        from gapwatch.roles.match.role import MatchRole

    settings = work.settings(servers, "", prefix)
    fingerprints = {pipeline: CompiledMapping(spec).fingerprint for pipeline, spec in settings.pipelines.items()}
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)  # a worker that is asked to leaves its group
    running = asyncio.create_task(MatchRole(settings, fingerprints, SystemClock(), stop=stop, name=name).run())
    ends = contestants.ends_of(servers, work.settings(servers, "").topics.events)
    await contestants.applied(settings, ends, running)
    stop.set()
    await running
    return {"events": float(work.records(keys))}


def main() -> None:
    """Be one worker, and print its figures; the events are those of all."""
    role, servers, keys, database, prefix, name = sys.argv[1:]
    if role == INGESTERS:
        figures = asyncio.run(contestants.ingest(servers, int(keys), database, prefix, name))
    else:
        figures = asyncio.run(_match(servers, int(keys), prefix, name))
    report(int(figures.pop("events")))


if __name__ == "__main__":
    main()
