"""A history: all that happens in one simulation, drawn from one seed; then calm, in which everything must come to its end."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import structlog

from gapwatch.core import segments
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.topics import state_topic
from gapwatch.model.stream import Side
from tests.simulation import epochs
from tests.simulation.cluster import Cluster
from tests.simulation.ledger import ModelLedger
from tests.simulation.loop import Loop, Time
from tests.simulation.processes import Ingester, Matcher, Process, Repairer, Surroundings
from tests.simulation.shop import BEATS, PARTITIONS, RAW, SHOWN, START, Fates, Shop, settings_of, spec_of
from tests.simulation.watch import Violation, Watch

EVENTS_MAX = 300
CHAOS = 230  # events of them in which anything may happen
REST = 10
TRIES = 2 * CHAOS  # some of which find nobody to whom it could happen
STEP_MS = 600  # of calm
LOOK_EVERY = 8

Story = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a seed. ``digest`` stands for every record of every log, in their order; ``seen``: how often what happened."""

    seed: int
    events: int
    digest: str
    seen: Mapping[str, int]
    violation: str = ""


class Simulation:
    """One seed's world. ``tell`` is told what happens, line by line."""

    def __init__(self, seed: int, tell: Story | None = None) -> None:
        self.seed = seed
        self._tell = tell
        self.random = rng = random.Random(seed)
        self.time = Time(START)
        self.loop = Loop(self.time)
        spec = spec_of(delivery=rng.random() < 0.85)
        settings = settings_of(spec)
        topics = settings.topics
        self.cluster = Cluster(
            {RAW: PARTITIONS, SHOWN: PARTITIONS, BEATS: 1, topics.events: PARTITIONS, topics.dead_letters: 1}
            | {topics.suspects: 1, topics.status: 1, state_topic(settings): PARTITIONS},
            self.time,
            rng,
        )
        self.shop = Shop(self.cluster, rng, spec, _fates(rng), created=seed % 2 == 1)
        self.around = Surroundings(self.loop, self.cluster, self.shop, ModelLedger(), settings)
        self.processes: dict[str, Process] = {}
        self.watch = Watch(self.around, self.processes)
        self.around.on_said = self.watch.raised
        self.events = 0
        self._wanted: list[type[Process]] = [Ingester, Ingester, Matcher, Repairer]
        if rng.random() < 0.4:
            self._wanted.append(Matcher)
        self._chances = self._draw()

    def _draw(self) -> dict[Callable[[], str], float]:
        """Return what may happen, and how often; most kinds of trouble are absent from most histories."""
        rng = self.random

        def trouble(weight: float) -> float:
            return weight * rng.choice((0, 0, 1, 1, 3))

        return {
            self._write: rng.choice((6, 14, 24)),
            self._emit: 16,
            self._sink: 16,
            self._sink_commits: 8,
            self._capture: 14,
            self._deliver: 34,
            self._ingest: 36,
            self._match: 18,
            self._repair: 16,
            self._stranger: trouble(1.5),
            self.shop.mend: trouble(1.0),
            self.shop.emit_again: trouble(1.2),
            self.shop.sink_starts_again: trouble(0.8),
            self.shop.capture_again: trouble(0.8),
            self._fail: trouble(1.5),
            self._kill: trouble(1.5),
            self._freeze: trouble(1.5),
            self._thaw: 2.0,
            self._expel: trouble(1.5),
            self._rebalance: trouble(1.0),
            self._store: trouble(0.8),
            self._start: 10,
        }

    # the run

    def run(self) -> Outcome:
        """Run the history to its end, or to the first invariant that does not hold."""
        violation = ""
        with quiet(self.random):
            try:
                self._chaos()
                self._calm()
                self.watch.end()
            except Violation as found:
                violation = str(found)
            except Exception as error:
                violation = str(self.watch.violation or f"0: {type(error).__name__}: {error}")
            finally:
                self._end()
        return Outcome(self.seed, self.events, self.cluster.appended.hexdigest(), self.watch.seen, violation)

    def _chaos(self) -> None:
        actions, weights = list(self._chances), list(self._chances.values())
        if self.random.random() < 0.7:  # else its processes come one by one, some of them late
            for _ in range(self.random.randrange(1, 6)):
                self._round()
        for _ in range(TRIES):
            self._happens(self.random.choices(actions, weights)[0])
            if self.events == CHAOS // 2:
                self._rest()
            if self.events >= CHAOS:
                return

    def _rest(self) -> None:
        """In the middle everybody gets on for a while, so that there are gaps and verdicts for what comes then."""
        for _ in range(REST):
            self._round()

    def _happens(self, action: Callable[[], str]) -> None:
        rng = self.random
        self.time.now_ms += rng.randrange(1, 120) if rng.random() < 0.97 else rng.randrange(500, 4_000)
        self.shop.time_passes()
        said = action()
        self.events += bool(said)
        self._say(said)
        if self.watch.violation is not None:
            raise self.watch.violation
        if said and self.events % LOOK_EVERY == 0:
            self.watch.look()

    def _calm(self) -> None:
        """No more trouble: every part does all that it can, again and again, until everything has come to its end."""
        self.shop.fates = Fates()
        self.shop.away.clear()
        for process in self.processes.values():
            process.thaw()
        while self.events < EVENTS_MAX:
            self._round()
            if self.shop.idle and not list(self.watch.unfinished()):
                return

    def _round(self) -> None:
        shop = self.shop
        self.events += 1
        self.time.now_ms += STEP_MS
        shop.time_passes()
        shop.emit(len(shop.wal), calm=True)
        for at, records in shop.raw.items():
            shop.apply(at, len(records))
            shop.commit(at)
        shop.capture(len(shop.oplog))
        for kind in (Ingester, Matcher, Repairer):
            self._start_missing()
            for _ in range(2):
                for process in self._living(kind):
                    process.wake()
                for process in self._living(kind):
                    process.producer.wire.deliver(calm=True)
                self.time.now_ms += 30
                self.loop.turn()
        self._say(f"calm: {next(self.watch.unfinished(), 'everything has come to its end')}")
        if self.watch.violation is not None:
            raise self.watch.violation
        self.watch.look()

    def _end(self) -> None:
        self.watch.leave()
        for process in self.processes.values():
            if process.alive:
                process.kill()
        self.loop.close()

    def _say(self, text: str) -> None:
        if self._tell is not None and text:
            self._tell(f"{self.events:4} {self.time.now_ms - START:7} ms  {text}")

    # who lives

    def _living(self, kind: type[Process] = Process) -> list[Process]:
        return [process for process in self.processes.values() if isinstance(process, kind) and process.alive]

    def _pick(self, kind: type[Process] = Process, *, frozen: bool | None = None) -> Process | None:
        found = [one for one in self._living(kind) if frozen is None or one.frozen == frozen]
        return self.random.choice(found) if found else None

    def _missing(self) -> list[type[Process]]:
        missing = list(self._wanted)
        for process in self._living():
            if type(process) in missing:
                missing.remove(type(process))
        return missing

    def _start(self) -> str:
        missing = self._missing()
        return self._begin(self.random.choice(missing)) if missing else ""

    def _start_missing(self) -> None:
        for kind in self._missing():
            self._begin(kind)

    def _begin(self, kind: type[Process]) -> str:
        process = kind(self.around, len(self.processes) + 1)
        self.processes[process.name] = process
        return f"{process.name} starts"

    # what happens

    def _judged(self) -> int | None:
        """Return a row that is being judged at this moment, now and then: there a write does most harm."""
        judged = [self.shop.number(key) for one in self._living(Repairer) if isinstance(one, Repairer) for key in one.judge.cases]
        return self.random.choice(sorted(judged)) if judged and self.random.random() < 0.4 else None

    def _write(self) -> str:
        return self.shop.write(self._judged())

    def _emit(self) -> str:
        return self.shop.emit(self.random.randrange(1, 5))

    def _sink(self) -> str:
        return self.shop.apply(Partition(RAW, self.random.randrange(PARTITIONS)), self.random.randrange(1, 4))

    def _sink_commits(self) -> str:
        return self.shop.commit(Partition(RAW, self.random.randrange(PARTITIONS)))

    def _capture(self) -> str:
        return self.shop.capture(self.random.randrange(1, 5))

    def _deliver(self) -> str:
        busy = [process for process in self.processes.values() if process.producer.wire.busy]
        if not busy:
            return ""
        process = self.random.choice(busy)
        process.producer.wire.deliver()
        self.loop.turn()
        return f"the brokers take what {process.name} sent"

    def _wake(self, kind: type[Process]) -> str:
        process = self._pick(kind, frozen=False)
        if process is None:
            return ""
        process.wake()
        return f"{process.name} runs"

    def _ingest(self) -> str:
        return self._wake(Ingester)

    def _match(self) -> str:
        return self._wake(Matcher)

    def _repair(self) -> str:
        return self._wake(Repairer)

    def _stranger(self) -> str:
        return self.shop.stranger(self._judged()) if self.watch.begun else ""

    def _fail(self) -> str:
        process = self._pick(frozen=False) if self.watch.begun else None
        if process is None or not process.producer.wire.fail():
            return ""
        self.watch.seen["records that failed"] += 1
        self._count_torn(process)
        self.loop.turn()
        return f"a record of {process.name} is not delivered"

    def _count_torn(self, process: Process) -> None:
        if isinstance(process, Matcher) and process.writing:
            self.watch.seen["torn checkpoints"] += 1

    def _kill(self) -> str:
        process = self._pick()
        if process is None:
            return ""
        self.watch.seen["kills"] += 1
        self._count_torn(process)
        process.kill()
        return f"{process.name} is killed"

    def _freeze(self) -> str:
        process = self._pick(frozen=False)
        if process is None:
            return ""
        process.freeze()
        return f"{process.name} is frozen"

    def _thaw(self) -> str:
        process = self._pick(frozen=True)
        if process is None:
            return ""
        process.thaw()
        return f"{process.name} is thawed"

    def _expel(self) -> str:
        """A frozen process' sessions end; a frozen matcher's writes have failed by then, so it ends as well."""
        process = self._pick(frozen=True)
        if process is None:
            return ""
        if isinstance(process, Matcher):
            process.kill()
            return f"{process.name} was frozen for too long"
        process.expel()
        return f"the group goes on without {process.name}"

    def _rebalance(self) -> str:
        groups = sorted(self.cluster.groups)
        if not groups:
            return ""
        name = self.random.choice(groups)
        self.watch.seen["rebalances"] += 1
        self.cluster.groups[name].meet()
        return f"group {name} is rebalanced"

    def _store(self) -> str:
        side = self.random.choice(list(Side))
        self.watch.seen["outages"] += 1
        self.shop.away ^= {side}
        return f"the {side.name.lower()} store {'is away' if side in self.shop.away else 'answers'}"


def _fates(rng: random.Random) -> Fates:
    return replace(
        Fates(),
        lost=rng.choice((0, 0.05, 0.2)),
        falsified=rng.choice((0, 0, 0.1)),
        placeholder=rng.choice((0, 0, 0.3)),
        coalesced=rng.choice((0, 0.3)),
    )


@contextmanager
def quiet(rng: random.Random) -> Iterator[None]:
    """No logs, no randomness but the seed's, and limits of the changelog that small histories reach."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    small: dict[str, Any] = {"SLACK_KEYS": 4, "SEGMENTS_MIN": 6, "KEYS_A_SEGMENT": 4, "CLEANED_MIN": 4}
    secrets = SimpleNamespace(token_hex=lambda size: f"{rng.getrandbits(8 * size):0{2 * size}x}")
    try:
        with mock.patch("gapwatch.roles.match.held.secrets", secrets), mock.patch.multiple(segments, **small):
            yield
    finally:
        structlog.configure(**before)


def simulate(seed: int, tell: Story | None = None) -> Outcome:
    """Return what came of one seed: of its history, and of a topic that is made anew in a small world of the same seed."""
    outcome = Simulation(seed, tell).run()
    return outcome if outcome.violation else replace(outcome, violation=epochs.violation(seed))
