"""Coverage adds up: every expected write is in exactly one class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec

from gapwatch.core.matching import KeyMatcher
from gapwatch.core.standing import from_ms, standing
from gapwatch.model.stream import FORMAT, Batch, Control, FeedState, Operation, Outcome, Side
from gapwatch.model.suspect import PartitionStatus, Suspect
from tests.property.test_hotpath import FIXED, Teller
from tests.simulation.world import MAPPING, PIPELINE, pipeline
from tests.unit.core.test_standing import FACTS

SPEC = pipeline(delivery=True, fields=(FIXED,))
WRITTEN_ONCE, WRITTEN_TWICE, CLEARED, GAPS, UNREAD, PENDING, IN_TRANSIT = 5_900, 700, 450, 350, 250, 900, 750
OUTCOMES = {Outcome.CLEARED: CLEARED, Outcome.GAP: GAPS, Outcome.UNVERIFIABLE: UNREAD}
SECTION = 500  # events
AHEAD_MS = 10_000  # so far beyond its clock does a Teller say that it has read


class Delivering(Teller):
    """Tells how far the sink has come, too."""

    delivered = 0

    def _state(self, side: Side) -> FeedState:
        state = super()._state(side)
        if side is Side.OBSERVED:
            return state
        return msgspec.structs.replace(state, delivery=self.delivered, delivery_clock=self.clock)


class Story:
    """One partition, and what its matcher said."""

    def __init__(self) -> None:
        self.teller = Delivering(0)
        self.suspects: dict[bytes, Suspect] = {}
        self.matcher = KeyMatcher(0, 1, {PIPELINE: SPEC}, fingerprints={PIPELINE: MAPPING}, life="one")
        self._offset = 0

    def tell(self, record: Batch | Control) -> None:
        said = self.matcher.apply(record, self._offset, self.teller.clock)
        self._offset += 1
        self.suspects.update({one.key: one for one in said if isinstance(one, Suspect)})

    def write(self, side: Side, keys: Iterable[int], value: int) -> None:
        events = [(key, Operation.UPSERT, 1, value, 3) for key in keys]
        for start in range(0, len(events), SECTION):
            self.tell(self.teller.record([(side, False, events[start : start + SECTION])]))
            self.tell(self.teller.record(SECTION))

    def wait(self) -> None:
        """Let the sink come as far as the source has, and everything so far become due."""
        self.teller.delivered = self.teller.offset[Side.EXPECTED]
        for _ in range(3):
            self.tell(self.teller.record(10_000))

    def answer(self) -> None:
        outcomes = [outcome for outcome, count in OUTCOMES.items() for _ in range(count)]
        assert len(self.suspects) == len(outcomes)
        for (key, suspect), outcome in zip(sorted(self.suspects.items()), outcomes, strict=True):
            self.teller.raised = {key: suspect}
            number = int(key.removeprefix(b"key"))
            self.tell(Batch(FORMAT, [], self.teller.record((number, outcome)).verdicts))  # type: ignore[union-attr]


def told() -> tuple[PartitionStatus, int]:
    """Return the status after a story of 10,000 writes whose classes are known, and when it was written."""
    story = Story()
    once = range(WRITTEN_ONCE)
    twice = range(10_000, 10_000 + WRITTEN_TWICE)
    lost = range(20_000, 20_000 + sum(OUTCOMES.values()))
    story.write(Side.EXPECTED, [*once, *twice, *lost], 1)
    story.write(Side.EXPECTED, twice, 2)
    story.write(Side.OBSERVED, once, 1)
    story.write(Side.OBSERVED, twice, 2)
    story.wait()
    story.answer()
    story.write(Side.EXPECTED, range(30_000, 30_000 + PENDING), 1)
    story.teller.delivered = story.teller.offset[Side.EXPECTED]
    story.write(Side.EXPECTED, range(40_000, 40_000 + IN_TRANSIT), 1)
    now_ms = story.teller.clock + AHEAD_MS
    (status,) = story.matcher.status("w", now_ms)
    return status, now_ms


def test_m6_ten_thousand_writes_of_known_classes_are_counted_exactly() -> None:
    status, now_ms = told()
    counters = status.counters
    assert counters.expected == 10_000
    assert (counters.settled, counters.superseded) == (WRITTEN_ONCE + WRITTEN_TWICE, WRITTEN_TWICE)
    assert (counters.cleared, counters.gap, counters.unverifiable) == (CLEARED, GAPS, {"not_read": UNREAD})
    assert (status.pending, status.in_transit, status.raised) == (PENDING, IN_TRANSIT, 0)
    closed = counters.settled + counters.superseded + counters.cleared + counters.gap + UNREAD
    assert closed + status.pending + status.in_transit == counters.expected

    proven = (closed - UNREAD) / closed
    assert stood(status, now_ms, proven) == ("HEALTHY", proven, ())
    assert stood(status, now_ms, 0.99) == ("WARNING", proven, (f"coverage {proven:.4f} is below 0.99",))


def stood(status: PartitionStatus, now_ms: int, target: float) -> tuple[str, float | None, tuple[str, ...]]:
    """Return status, coverage and reasons where everything was read and nothing is open."""
    now = from_ms(now_ms)
    spec = dataclasses.replace(SPEC, coverage_target=target, lag_limit_seconds=60.0)  # lag is not what is told apart here
    view = standing(spec, 1, [status], dataclasses.replace(FACTS, repair_seen=now), now)
    return view.status, view.coverage, tuple(view.reasons)
