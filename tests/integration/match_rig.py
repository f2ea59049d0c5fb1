"""Runs match workers as processes against a real broker, and reads what they said."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from confluent_kafka.admin import AdminClient

from gapwatch.clock import SystemClock
from gapwatch.core.batches import pack
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import ensure_topics, match_app_id
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import Batch, Control
from gapwatch.model.suspect import PartitionStatus, Said
from gapwatch.parent import tied_to_us
from gapwatch.roles.match.settings import MatchTuning
from tests.integration.broker import until
from tests.integration.match_story import MAPPING, PIPELINE, Told

ROOT = Path(__file__).parents[2]
TUNING = MatchTuning(session_seconds=4.0, stop_seconds=10.0)


class Rig:
    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self._directory = directory
        self._file = directory / "settings.pickle"
        self._numbers = itertools.count(1)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.offsets = OffsetReader(settings, SystemClock())

    def start_worker(self) -> str:
        name = f"w{next(self._numbers)}"
        command = [sys.executable, "-m", "tests.integration.match_process", str(self._file), name]
        with (self._directory / f"{name}.log").open("wb") as output:
            self.workers[name] = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **tied_to_us()}
            )
        return name

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    async def terminate(self, name: str) -> int:
        """SIGTERM, and return the exit code once the worker has drained."""
        process = self.workers.pop(name)
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, 90)

    def freeze(self, name: str) -> None:
        """Stop the process where it stands; the group gives its partitions away."""
        self.workers[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.workers[name].send_signal(signal.SIGCONT)

    def resident_max(self, name: str) -> int:
        """Return the most memory, in bytes, that a running worker ever held at once."""
        lines = Path(f"/proc/{self.workers[name].pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    async def forget(self, *topics: str) -> None:
        """Make these topics anew, and delete what match has acknowledged; no worker may be running."""
        client = AdminClient({"bootstrap.servers": self.settings.bootstrap_servers})
        gone = [
            *client.delete_consumer_groups([match_app_id(self.settings)]).values(),
            *client.delete_topics(list(topics)).values(),
        ]
        for future in gone:
            await asyncio.wrap_future(future)

        async def made_anew() -> bool:
            try:
                await ensure_topics(self.settings)
            except StoreRefused:
                return False
            return True

        await until(made_anew)

    def has_worked(self, name: str) -> bool:
        return "match_partitions_taken" in self.log(name)

    async def working(self, count: int) -> None:
        """Return once so many workers have taken over partitions."""

        async def enough() -> bool:
            return sum(self.has_worked(name) for name in self.workers) >= count

        await until(enough, 60)

    @property
    def partitions(self) -> list[Partition]:
        return [Partition(self.settings.topics.events, number) for number in range(self.settings.topics.partitions)]

    async def produce(
        self,
        records: Sequence[tuple[int, Batch | Control]],
        *,
        seconds: float = 0.0,
        between: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Send records in order, spread over ``seconds``; return when all are acknowledged. ``between`` gets the count so far."""
        producer = AckedProducer(self.settings, client_id="story")
        await producer.start()
        clock = SystemClock()
        began = clock.monotonic()
        try:
            for count, (number, record) in enumerate(records, 1):
                await producer.send(self.settings.topics.events, None, pack(record), partition=number)
                between(count)
                if count % 20 == 0:
                    await asyncio.sleep(max(0.0, began + seconds * count / len(records) - clock.monotonic()))
            await producer.flush()
        finally:
            await producer.close()

    async def caught_up(self) -> bool:
        """Say whether everything in `events` was matched, made durable and acknowledged."""
        try:
            ends = (await self.offsets.log_ends(self.partitions)).ends
            positions = (await self.offsets.delivery(match_app_id(self.settings), self.partitions)).positions
        except StoreUnreachable:
            return False
        return all((positions[at] or 0) == end for at, end in ends.items())

    async def wait_caught_up(self, seconds: float = 60.0) -> None:
        try:
            await until(self.caught_up, seconds)
        except TimeoutError:
            for process in self.workers.values():
                process.send_signal(signal.SIGUSR2)
            await asyncio.sleep(2)
            logs = "\n".join(f"--- {path.name}\n{path.read_text()[-6_000:]}" for path in sorted(self._directory.glob("*.log")))
            ends = (await self.offsets.log_ends(self.partitions)).ends
            positions = (await self.offsets.delivery(match_app_id(self.settings), self.partitions)).positions
            shown = {number: status.input_offset for number, status in (await self.told()).statuses.items()}
            raise AssertionError(f"Match did not catch up in {seconds:g} s: {ends=} {positions=} {shown=}:\n{logs}") from None

    async def read_all(self, topic: str) -> dict[int, list[tuple[int, int, bytes]]]:
        """Return ``partition → (offset, append time, value)`` of a topic as it is now."""
        consumer = RawConsumer(self.settings, client_id="judge")
        try:
            ranges = {
                Partition(topic, n): await consumer.log_range(Partition(topic, n)) for n in await consumer.partitions(topic)
            }
            found: dict[int, list[tuple[int, int, bytes]]] = {at.partition: [] for at in ranges}
            await consumer.assign({at: start for at, (start, _) in ranges.items()})
            open_ends = {at: end for at, (start, end) in ranges.items() if end > start}

            async def read() -> bool:
                polled = await consumer.consume(5_000)
                assert not polled.faults, polled.faults
                for message in polled.messages:
                    number, offset = message.partition() or 0, message.offset() or 0
                    found[number].append((offset, message.timestamp()[1], message.value() or b""))
                    if offset + 1 >= open_ends.get(Partition(topic, number), offset + 2):
                        del open_ends[Partition(topic, number)]
                return not open_ends

            if open_ends:
                await until(read)
            return found
        finally:
            await consumer.close()

    async def told(self) -> Told:
        """Return what the workers said, as repair would understand it: repetitions change nothing."""
        told = Told()
        for rows in (await self.read_all(self.settings.topics.suspects)).values():
            for _, _, value in rows:
                told.add(msgspec.json.decode(value, type=Said))
        for rows in (await self.read_all(self.settings.topics.status)).values():
            for _, _, value in rows:
                status = msgspec.json.decode(value, type=PartitionStatus)
                known = told.statuses.get(status.partition)
                if known is None or status.input_offset >= known.input_offset:
                    told.statuses[status.partition] = status
        return told


@asynccontextmanager
async def match_rig(settings: Settings, directory: Path, tuning: MatchTuning = TUNING) -> AsyncIterator[Rig]:
    rig = Rig(settings, directory)
    (directory / "settings.pickle").write_bytes(pickle.dumps((settings, {PIPELINE: MAPPING}, tuning)))
    await ensure_topics(settings)
    try:
        yield rig
    finally:
        for name in list(rig.workers):
            rig.kill(name)
