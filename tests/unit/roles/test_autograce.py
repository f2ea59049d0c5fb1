"""A measured grace, from the matcher's own delays over status records and ledger back into the stream."""

from __future__ import annotations

import heapq
import random

import msgspec

from gapwatch.config import parse, render
from gapwatch.ledger import SqlLedger
from gapwatch.model.pipeline import PipelineSpec, Settings, TopicsSpec
from gapwatch.model.stream import FORMAT, Control, Outcome, PipelineTimes, Side
from gapwatch.roles.board import Board, Facts, grace_ms
from gapwatch.roles.repair.autograce import AutoGrace
from tests.simulation.bench import Bench
from tests.simulation.stores import VirtualClock, _NoStatus
from tests.simulation.world import PIPELINE, pipeline
from tests.unit.config.test_load import GOOD, problems

LEAST_SECONDS, MOST_SECONDS = 2.0, 120.0
SPEC = pipeline(grace_seconds=MOST_SECONDS, grace_least_seconds=LEAST_SECONDS)


class Measured:
    """A matcher whose control records carry the grace that role repair derives from its status."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.clock = VirtualClock()
        settings = Settings(
            bootstrap_servers="", topics=TopicsSpec(partitions=1), database="", stores={}, pipelines={PIPELINE: SPEC}
        )
        self.board = Board(settings, ledger, _NoStatus(), self.clock)
        self.auto = AutoGrace({PIPELINE: SPEC}, 1, ledger, self.board, self.clock, "here")
        self.bench = Bench(SPEC)
        self.ledger = ledger
        self.graces: list[int] = []

    def second(self, at: int) -> None:
        """A second later: what was measured becomes the grace of the next control record; suspects are late arrivals."""
        self.clock._ms += 1_000
        status = msgspec.structs.replace(self.bench.status, input_offset=at)
        self.board.take(msgspec.json.encode(status))
        grace = self.auto.step(SPEC)
        self.graces.append(grace)
        bench = self.bench
        states = [bench.state(Side.EXPECTED, at), bench.state(Side.OBSERVED, at)]
        bench.apply(Control(FORMAT, "one", bench._append, states, [PipelineTimes(PIPELINE, 0, grace)]))

    def run(self, delays: list[int], *, every_ms: int, start: int = 0) -> int:
        """Write a key every so often, whose delay is as said; return how many suspects were raised without need."""
        before, end = len(self.bench.suspects), start + len(delays) * every_ms
        answers: list[tuple[int, int]] = []
        for now in range(start, end + max(delays) + 200_000, 1_000):
            for at in range(now, min(now + 1_000, end), every_ms):
                number = (at - start) // every_ms
                self.bench.expect(number, at, key=b"%d/%d" % (start, number))
                heapq.heappush(answers, (at + delays[number], number))
            while answers and answers[0][0] < now + 1_000:
                shown, number = heapq.heappop(answers)
                self.bench.observe(number, shown, key=b"%d/%d" % (start, number))
            raised = len(self.bench.suspects)
            self.second(now + 1_000)
            for suspect in self.bench.suspects[raised:]:  # both stores are read a little later, and agree by then
                self.auto.cleared(PIPELINE, "late_arrival")
                self.bench.verdict(suspect, Outcome.CLEARED)
        return len(self.bench.suspects) - before


def delays_of(count: int, *, slow_ms: int) -> list[int]:
    """Return delays of which 99.9 % are below `slow_ms`, and the rest up to twice that."""
    chance = random.Random(9)
    slow = count // 1_000 - 1  # the first reading of a window is not in it: a few of the others are missing
    made = [chance.randrange(20, slow_ms) for _ in range(count - slow)]
    made += [chance.randrange(slow_ms, 2 * slow_ms) for _ in range(slow)]
    chance.shuffle(made)
    assert sorted(made)[count * 999 // 1_000 - 1] <= slow_ms
    return made


def test_m9_with_a_p999_of_three_seconds_grace_settles_and_hardly_a_suspect_is_false(ledger: SqlLedger) -> None:
    measured = Measured(ledger)
    delays = delays_of(6_000, slow_ms=3_000)
    false = measured.run(delays, every_ms=200)
    assert measured.graces[0] == MOST_SECONDS * 1_000, "nothing is known yet"
    assert all(LEAST_SECONDS * 1_000 <= grace <= MOST_SECONDS * 1_000 for grace in measured.graces)
    assert set(measured.graces[-60:]) == {15_000}, "three times the bound of the bucket that 3 s lie in"
    assert false / len(delays) <= 0.001
    assert false == 0, "the slowest of all took 6 s"


def test_m9_a_target_that_becomes_slower_makes_it_grow_although_late_delays_are_not_measured(ledger: SqlLedger) -> None:
    measured = Measured(ledger)
    measured.run(delays_of(4_000, slow_ms=400), every_ms=300)
    settled_at = measured.graces[-1]
    assert settled_at == LEAST_SECONDS * 1_000
    slower = delays_of(4_000, slow_ms=20_000)
    measured.run(slower, every_ms=100, start=3_000_000)
    assert measured.graces[-1] > 40_000, "twice the slowest, at least"


def test_m9_it_is_kept_over_a_restart_and_the_largest_before_there_is_any(ledger: SqlLedger) -> None:
    assert grace_ms(ledger, SPEC) == MOST_SECONDS * 1_000
    ledger.set_fact(Facts.grace(PIPELINE), {"ms": 15_000, "at": "x"})
    assert Measured(ledger).auto.step(SPEC) == 15_000
    for stored, held in ((1, LEAST_SECONDS), (10**9, MOST_SECONDS)):
        ledger.set_fact(Facts.grace(PIPELINE), {"ms": stored, "at": "x"})
        assert grace_ms(ledger, SPEC) == held * 1_000, "bounds may have changed meanwhile"
    assert grace_ms(ledger, pipeline(grace_seconds=7.0)) == 7_000


def test_m9_a_write_keeps_the_due_time_that_it_was_given(ledger: SqlLedger) -> None:
    bench = Bench(SPEC)

    def streams(at: int, grace: int) -> int:
        before = len(bench.suspects)
        states = [bench.state(Side.EXPECTED, at), bench.state(Side.OBSERVED, at)]
        bench.apply(Control(FORMAT, "one", bench._append, states, [PipelineTimes(PIPELINE, 0, grace)]))
        return len(bench.suspects) - before

    streams(0, 60_000)
    bench.expect(1, 1_000, key=b"old")
    streams(2_000, 5_000)
    bench.expect(2, 3_000, key=b"new")
    bench.restart()
    assert streams(9_000, 5_000) == 1
    assert bench.suspects[-1].key == b"new"
    assert streams(60_900, 5_000) == 0, "60 s were promised to the older one"
    assert streams(61_500, 5_000) == 1
    assert bench.suspects[-1].key == b"old"


def spec_of(text: str) -> PipelineSpec:
    return parse(GOOD.replace("grace: 5s", text), {}).pipelines["orders"]


def test_m9_it_is_asked_for_by_name_and_bounded() -> None:
    assert (spec_of("grace: auto").grace_least_seconds, spec_of("grace: auto").grace_seconds) == (5.0, 300.0)
    found = parse(GOOD.replace("grace: 5s", "grace: auto\n    grace_min: 2s\n    grace_max: 1m"), {})
    orders = found.pipelines["orders"]
    assert (orders.grace_least_seconds, orders.grace_seconds, orders.lag_limit) == (2.0, 60.0, 120.0)
    assert parse(render(found), {}).pipelines["orders"] == orders
    for wrong, said in (
        ("grace: auto\n    grace_min: 2m\n    grace_max: 1m", "above grace_max"),
        ("grace: 5s\n    grace_max: 1m", "declared, not measured"),
        ("grace: auto\n    grace_min: 0s", "greater than 0"),
    ):
        assert any(said in problem for problem in problems(GOOD.replace("grace: 5s", wrong)))
