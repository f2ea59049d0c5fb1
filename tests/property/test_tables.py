"""Several tables: whatever they write, in whatever order their topics are read, every write is in exactly one class."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gapwatch.model.stream import Outcome
from gapwatch.model.suspect import Suspect
from tests.simulation.bench import KEY
from tests.simulation.world import GRACE_MS, PIPELINE
from tests.unit.core.test_tables import TABLES, Shards

write = st.tuples(st.just("write"), st.sampled_from(sorted(TABLES)), st.one_of(st.none(), st.integers(0, 2)), st.integers(1, 9))
shown = st.tuples(st.just("shown"), st.one_of(st.none(), st.integers(0, 2)))
verdict = st.tuples(st.just("verdict"), st.sampled_from(list(Outcome)), st.integers(0, 3))
step = st.one_of(write, write, shown, verdict, st.just(("streams",)), st.just(("restart",)), st.just(("epoch",)))


def classes(bench: Shards) -> int:
    counters = bench.status.counters
    closed = counters.settled + counters.superseded + counters.gap + counters.cleared + sum(counters.unverifiable.values())
    return closed + bench.matcher.open_writes(PIPELINE)


@settings(max_examples=300)
@given(st.lists(step, max_size=25))
def test_m24_nothing_is_forgotten_between_tables(steps: list[tuple[Any, ...]]) -> None:
    bench, now = Shards(), 100
    for kind, *arguments in steps:
        now += 100
        if kind == "write":
            table, value, place = arguments
            bench.write(table, value, now, place=place)
        elif kind == "shown":
            bench.observe(arguments[0], now)
        elif kind == "verdict" and bench.suspects:
            bench.verdict(bench.suspects[-1 - arguments[1] % len(bench.suspects)], arguments[0])
        elif kind == "streams":
            now += GRACE_MS
            bench.streams(now)
        elif kind == "restart":
            bench.restart()
        elif kind == "epoch":
            bench.epochs["us"] += 1
            bench.sent["us"] = bench.positions["us"]
        assert bench.status.counters.expected == classes(bench)


@given(st.permutations([("eu", 1), ("us", 2), ("asia", 3), ("eu", 4)]), st.integers(1, 9))
def test_the_last_row_that_came_is_never_taken_for_older(order: list[tuple[str, int]], place: int) -> None:
    """Live rows of several tables: whichever topic was read last, the key is due for the stores.

    (Unless that table writes it once more within grace: then its row is taken for moved.)
    """
    assume(order[-1][0] != order[-2][0])
    bench = Shards()
    for number, (table, at) in enumerate(order):
        bench.write(table, number, 100 + number, place=at * place)
        bench.observe(number, 110 + number)
    raised = [one for one in bench.streams(200 + GRACE_MS) if isinstance(one, Suspect)]
    assert [one.key for one in raised] == [KEY]
