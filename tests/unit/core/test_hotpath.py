from __future__ import annotations

from gapwatch.model.stream import Operation, Side
from tests.property.test_hotpath import SPECS, Life, Teller
from tests.simulation.worker import shown
from tests.simulation.world import START

UPSERT = Operation.UPSERT


def life(name: str, *sections: tuple[Side, bool, list[tuple[int, Operation, int, int, int]]]) -> Life:
    """Return a matcher that took the sections in one record. An event: key, operation, step, value, fields that it carries."""
    teller, made = Teller(sum(field.maskable for field in SPECS[name].fields)), Life(SPECS[name], event_by_event=False)
    made.matcher.apply(teller.record(list(sections)), 0, START)
    return made


def test_a_field_that_neither_side_carried_is_settled_but_not_proven() -> None:
    both = life("masks", (Side.EXPECTED, False, [(1, UPSERT, 1, 0, 1)]), (Side.OBSERVED, False, [(1, UPSERT, 1, 0, 1)]))
    assert (shown(both.matcher).counters.settled, shown(both.matcher).counters.masked) == (1, 1)


def test_whole_writes_are_settled_and_proven() -> None:
    both = life("masks", (Side.EXPECTED, False, [(1, UPSERT, 1, 0, 3)]), (Side.OBSERVED, False, [(1, UPSERT, 1, 0, 3)]))
    assert (shown(both.matcher).counters.settled, shown(both.matcher).counters.masked) == (1, 0)


def test_digests_of_two_mappings_settle_nothing() -> None:
    both = life("plain", (Side.EXPECTED, False, [(1, UPSERT, 1, 0, 3)]), (Side.OBSERVED, True, [(1, UPSERT, 1, 0, 3)]))
    assert shown(both.matcher).counters.settled == 0


def test_of_one_record_the_expected_writes_come_first() -> None:
    both = life("plain", (Side.OBSERVED, False, [(1, UPSERT, 1, 0, 3)]), (Side.EXPECTED, False, [(1, UPSERT, 1, 0, 3)]))
    rows = both.matcher._pipelines["orders"].cell.rows
    assert shown(both.matcher).counters.settled == 1
    assert not rows.long


def test_every_key_of_a_record_has_its_events_in_their_order() -> None:
    events = [(1, Operation.SNAPSHOT, 1, 0, 3), (1, UPSERT, 1, 1, 3), (2, UPSERT, 1, 0, 3), (2, Operation.DELETE, 1, 0, 3)]
    one = life("plain", (Side.EXPECTED, False, events))
    rows = one.matcher._pipelines["orders"].cell.rows
    assert shown(one.matcher).counters.expected == 3
    assert rows.open == 2
    assert len(rows.long) == 2
