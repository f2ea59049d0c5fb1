"""A topic that was deleted comes back with fewer partitions: those that are no more hold nothing for ever, and hide nothing."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace as changed

from gapwatch.model.stream import FORMAT, Batch, Control, PipelineTimes, Side
from gapwatch.model.suspect import Hole, Suspect
from tests.simulation.bench import Bench
from tests.simulation.world import GRACE_MS, PIPELINE, START, pipeline

STALL_MS = 30_000


class Remade(Bench):
    """A source's topic of two partitions, the second of which is gone once it was made anew."""

    def __init__(self) -> None:
        self.parts = 2
        super().__init__(pipeline(delivery=True))

    def second(self, at: int) -> None:
        """A write of the second partition, which the sink has not reached."""
        section = changed(self.section(Side.EXPECTED, 1, at, key=b"other", offset=0), feed_partition=1)
        self.apply(Batch(FORMAT, [section], []))

    def speak(self, to: int, *numbers: int, epoch: int = 1, end: int = 5, parts: int | None = None) -> list[Any]:
        self._append = START + to
        states = [self.state(Side.OBSERVED, to)]
        for number in numbers:
            state = changed(
                self.state(Side.EXPECTED, to), feed_partition=number, epoch=epoch, delivery=0, delivery_clock=START + to
            )
            states.append(changed(state, partitions=parts or self.parts, offset_from=0, offset_to=end))
        return self.apply(Control(FORMAT, "one", START + to, states, [PipelineTimes(PIPELINE, 0, GRACE_MS)]))


def remade() -> Remade:
    bench = Remade()
    bench.speak(1_000, 0)
    bench.second(1_100)
    bench.speak(2_000, 0, 1)
    assert (bench.status.source_watermark, bench.status.in_transit) == (START + 2_000, 1)
    bench.parts = 1
    bench.speak(5_000, 0, epoch=2, end=1)
    return bench


def test_partitions_that_a_topic_made_anew_has_no_more_hold_no_time() -> None:
    bench = remade()
    assert bench.status.source_watermark == START + 2_000, "it may be about to speak"
    said = bench.speak(2_000 + STALL_MS + 100, 0, epoch=2, end=1)
    [hole] = [one for one in said if isinstance(one, Hole)]
    assert (hole.feed_partition, hole.time_from, hole.reason) == (1, START + 2_000, "topic_recreated")
    bench.speak(40_000, 0, epoch=2, end=1)
    assert bench.status.source_watermark == bench.status.source_caught_up == START + 40_000
    assert [feed.feed_partition for feed in bench.status.feeds if feed.side == Side.EXPECTED] == [0]
    assert len([one for one in bench.said if isinstance(one, Hole) and one.feed_partition == 1 and one.time_from]) == 1, (
        "said once"
    )


def test_what_was_in_transit_in_them_is_due() -> None:
    bench = remade()
    bench.speak(33_000, 0, epoch=2, end=1)
    bench.speak(40_000, 0, epoch=2, end=1)
    assert [one.key for one in bench.said if isinstance(one, Suspect)] == [b"other"]
    assert bench.status.oldest_in_transit is None
    assert bench.unsettled == 1_100


def test_a_partition_that_speaks_is_not_let_go_by_an_ingester_that_does_not_know_it_yet() -> None:
    bench = remade()
    bench.speak(33_000, 0, epoch=2, end=1)
    bench.speak(34_000, 1, epoch=2, end=1, parts=2)
    bench.speak(35_000, 0, epoch=2, end=1, parts=1)
    assert bench.status.source_watermark == START + 34_000
    assert {feed.feed_partition for feed in bench.status.feeds if feed.side == Side.EXPECTED} == {0, 1}


def test_a_partition_of_a_topic_that_was_not_made_anew_holds_time_however_silent() -> None:
    bench = Remade()
    bench.speak(1_000, 0, 1)
    bench.speak(90_000, 0, parts=1)
    assert bench.status.source_watermark == START + 1_000
