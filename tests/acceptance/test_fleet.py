"""Five matchers and two ingesters under load, killed, stopped, frozen and restarted, the broker itself killed twice.

What they say is what one matcher says that reads the same log in peace; what is open in the end is what differs in the stores.
The short form runs in CI; ``--soak`` makes ten minutes of it, and then thirty in which every process's memory has to stay flat.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from pymongo import MongoClient

from gapwatch.clock import SystemClock
from gapwatch.config.load import parse
from gapwatch.core.batches import read
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.matching import KeyMatcher
from gapwatch.embedded import EmbeddedStack
from gapwatch.ledger import open_ledger
from gapwatch.model.pipeline import Settings
from gapwatch.model.suspect import PartitionStatus, Said
from gapwatch.wiring.stores import resolved_settings
from tests.acceptance.copier import Change, Operation
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import falsify, lose, resident_mib
from tests.acceptance.workload import TABLE, Churn, churning

pytestmark = [pytest.mark.long, pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(3_600)]

PARTITIONS = 10
MATCHERS = tuple(f"match#{number}" for number in range(5))
INGESTERS = tuple(f"ingest#{number}" for number in range(2))
ROLES = ("api", "capture", "repair", *INGESTERS, *MATCHERS)
FROZEN_SECONDS = 15.0  # longer than a session: the partitions move, and the holder wakes up without them
DOWN_SECONDS = 6.0
LOST_EVERY, WRONG_EVERY = 53, 97  # of the numbered writes
SAMPLE_SECONDS = 10.0
FLAT_SHARE, FLAT_MIB = 0.10, 10.0  # what a process may have grown by, from the first third of the calm to the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Seconds of faults and of calm, writes a second, and when the broker is killed, as shares of the faults."""

    faults: float
    calm: float
    rate: float
    broker: tuple[float, ...]


SHORT = Length(faults=50, calm=0, rate=100, broker=(0.5,))
LONG = Length(faults=600, calm=1_800, rate=100, broker=(0.3, 0.7))


class Faults(dict[Any, Callable[[Change], list[tuple[float, Operation | None]]]]):
    """Every so many writes the sink loses one, or writes it wrongly."""

    def get(self, seq: Any, default: Any = None) -> Any:
        if not isinstance(seq, int) or not seq:
            return default
        if seq % LOST_EVERY == 0:
            return lose
        return _wrong if seq % WRONG_EVERY == 0 else default


def _wrong(change: Change) -> list[tuple[float, Operation | None]]:
    return falsify(v="wrong")(change) if change.after is not None else [(0, change.applied())]


@dataclass
class Fleet:
    """The service's processes; what ended by itself is started again, as a supervisor of the machine would."""

    service: Service
    restarts: int = 0
    frozen: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        now = time.monotonic()
        for name in [name for name, until in self.frozen.items() if until <= now]:
            del self.frozen[name]
            self.service.processes[name].send_signal(signal.SIGCONT)
        for name, process in list(self.service.processes.items()):
            if process.poll() is not None:
                self.restarts += 1
                self.service.start([name])

    def is_back(self) -> bool:
        self.look()
        return self.service.view()["status"] not in (None, "UNKNOWN")

    def freeze(self, name: str) -> None:
        self.service.processes[name].send_signal(signal.SIGSTOP)
        self.frozen[name] = time.monotonic() + FROZEN_SECONDS

    def thaw(self) -> None:
        for name in self.frozen:
            self.service.processes[name].send_signal(signal.SIGCONT)
        self.frozen.clear()


def disturb(stack: EmbeddedStack, fleet: Fleet, length: Length) -> None:
    """Kill, stop, freeze and restart one process after the other; kill the broker in between."""
    begun = time.monotonic()
    targets = cycle([*MATCHERS[:3], INGESTERS[0], *MATCHERS[3:], INGESTERS[1]])
    ways = cycle(["kill", "freeze", "stop"])
    broker = [begun + share * length.faults for share in length.broker]
    pause = max(5.0, min(20.0, length.faults / 8))
    next_step = begun + pause
    while (now := time.monotonic()) < begun + length.faults:
        fleet.look()
        if broker and now >= broker[0]:
            del broker[0]
            stack.kafka.kill()
            time.sleep(DOWN_SECONDS)
            stack.kafka.start()
        if now >= next_step:
            next_step = now + pause
            name, way = next(targets), next(ways)
            if name in fleet.frozen:
                continue
            if way == "freeze":
                fleet.freeze(name)
            else:
                fleet.service.restart(name, signal.SIGKILL if way == "kill" else signal.SIGTERM)
        time.sleep(0.2)
    fleet.thaw()
    assert not broker
    wait_for(fleet.is_back, "the fleet to be back", 120)


def memory(fleet: Fleet, seconds: float) -> Mapping[str, list[float]]:
    """Sample every process's resident memory while nothing is disturbed, in MiB."""
    taken: dict[str, list[float]] = {name: [] for name in fleet.service.processes}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, process in fleet.service.processes.items():
            assert process.poll() is None, f"{name} ended in peace:\n{fleet.service.tail(name)}"
            taken[name].append(resident_mib(process.pid))
        time.sleep(SAMPLE_SECONDS)
    return taken


def test_b15_l3_a_fleet_under_fire_says_what_one_matcher_says_in_peace(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    length = LONG if request.config.getoption("--soak") else SHORT
    with churning(
        stack,
        postgres_database,
        tmp_path,
        length.rate,
        ROLES,
        Faults(),
        grace="3s",
        partitions=PARTITIONS,
        settled_keys_max=5_000,
    ) as (churn, copier, service):
        service.wait_healthy(seconds=120)
        fleet = Fleet(service)
        churn.start()
        disturb(stack, fleet, length)
        grown = _grown(memory(fleet, length.calm)) if length.calm else {}
        churn.stop()
        wait_for(lambda: _settled(service) and not copier.delayed, "every write to be copied and judged", 180)
        differing = _agreed(stack, postgres_database, churn, service)
        assert differing, "nothing was lost: nothing was tested"
        assert service.view()["totals"]["expected"] >= churn.writes * 0.8
        assert all(last <= first * (1 + FLAT_SHARE) + FLAT_MIB for first, last in grown.values()), grown
        said = _said(service, PARTITIONS)
        in_peace = _in_peace(service)
        assert said == in_peace, f"{len(said ^ in_peace)} suspects depend on who read the log"


def _grown(taken: Mapping[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Return what each process held in the first third of the calm, and in the last, in MiB."""
    thirds = {name: len(samples) // 3 for name, samples in taken.items()}
    return {name: (median(samples[: thirds[name]]), median(samples[-thirds[name] :])) for name, samples in taken.items()}


def _agreed(stack: EmbeddedStack, database: str, churn: Churn, service: Service) -> dict[int, bool]:
    """Return the keys that differ in the stores (True: nothing is there) once just these are open."""
    differing: dict[int, bool] = {}

    def agree() -> bool:
        nonlocal differing
        differing = _differing(stack, database, churn)
        return _open(service) == differing and _settled(service)

    try:
        wait_for(agree, "just what differs to be open", 60)
    except AssertionError as error:
        raise AssertionError(f"{_told(service, differing)}\n{error}") from error
    return differing


def _differing(stack: EmbeddedStack, database: str, churn: Churn) -> dict[int, bool]:
    """Compare every mapped field: an insert that was lost leaves its unchanged TOAST column out for good."""
    with psycopg.connect(churn.dsn) as connection:
        columns = "id, seq, v, amount, flag, big"
        rows = {row[0]: row[1:] for row in connection.execute(f"SELECT {columns} FROM {TABLE}").fetchall()}
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        documents = {
            one["_id"]: (one["seq"], one["v"], one["amount"].to_decimal(), one["flag"], one.get("big"))
            for one in client[database].orders.find({})
        }
    finally:
        client.close()
    keys = rows.keys() | documents.keys()
    return {key: key not in documents for key in keys if rows.get(key) != documents.get(key)}


def _open(service: Service) -> dict[int, bool]:
    return {int(gap["key"]["id"]): gap["kind"] == "missing" for gap in service.gaps()}


def _told(service: Service, differing: dict[int, bool]) -> str:
    """Return which keys differ from what is open, and what each partition said last."""
    settings, found = _settings(service), _open(service)
    decode = msgspec.json.Decoder(PartitionStatus).decode
    last = {
        one.partition: one for one in (decode(value) for _, _, _, value in _records(settings, settings.topics.status) if value)
    }
    keys = differing.keys() | found.keys()
    wrong = {key: (differing.get(key), found.get(key)) for key in keys if differing.get(key) != found.get(key)}
    return f"(differs, open) of keys: {wrong}\n" + "\n".join(str(last[number]) for number in sorted(last))


def _settled(service: Service) -> bool:
    view = service.view()
    return view["status"] not in (None, "UNKNOWN") and view["pending_keys"] == 0 and view["in_transit_keys"] == 0


def _settings(service: Service) -> Settings:
    settings = parse(service.file.read_text(), {})
    ledger = open_ledger(settings.database)
    try:
        return asyncio.run(resolved_settings(settings, ledger, SystemClock()))
    finally:
        ledger.close()


def _records(settings: Settings, topic: str) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield partition, offset, time and value of everything on a topic, partition by partition."""
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": "fleet-test", "enable.auto.commit": False})
    try:
        for number in consumer.list_topics(topic, timeout=30).topics[topic].partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            consumer.assign([TopicPartition(topic, number, first)])
            position = first
            while position < end:
                for message in consumer.consume(500, timeout=1.0):
                    assert message.error() is None, message.error()
                    position = (message.offset() or 0) + 1
                    if position <= end:
                        yield number, position - 1, message.timestamp()[1], message.value() or b""
                [at] = consumer.position([TopicPartition(topic, number)])
                position = max(position, at.offset)
    finally:
        consumer.close()


def _said(service: Service, partitions: int) -> set[str]:
    """Return the ids of all suspects that the fleet raised."""
    settings = _settings(service)
    decode = msgspec.json.Decoder(Said).decode
    return {decode(value).id for _, _, _, value in _records(settings, settings.topics.suspects)}


def _in_peace(service: Service) -> set[str]:
    """Return the ids of the suspects that follow from the same log, read by one matcher without any disturbance."""
    settings = _settings(service)
    pipelines = dict(settings.pipelines)
    fingerprints = {name: CompiledMapping(spec).fingerprint for name, spec in pipelines.items()}
    matchers: dict[int, KeyMatcher] = {}
    said: set[str] = set()
    for number, offset, at, value in _records(settings, settings.topics.events):
        if number not in matchers:
            matchers[number] = KeyMatcher(number, PARTITIONS, pipelines, fingerprints=fingerprints, life="peace")
        said |= {one.id for one in matchers[number].apply(read(value), offset, at)}
    return said
