from __future__ import annotations

from typing import NoReturn

import pytest

from gapwatch.core import fewevents
from gapwatch.core.keyrules import KeyRules
from gapwatch.model.stream import Operation, Side
from tests.property.test_hotpath import SPECS, Life, Teller
from tests.simulation.worker import shown
from tests.simulation.world import START, digest

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
    assert len(rows.long) == 1


@pytest.mark.parametrize("few", [0, fewevents.FEW])
def test_updates_and_their_answers_need_nothing_but_rows(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewevents, "FEW", few)

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("an event was taken by itself")

    monkeypatch.setattr(KeyRules, "expect", refuse)
    monkeypatch.setattr(KeyRules, "observe", refuse)
    teller, made = Teller(0), Life(SPECS["plain"], event_by_event=False)
    for value in range(8):
        for side in Side:
            events = [(key, UPSERT, 1, value, 3) for key in range(5)]
            made.matcher.apply(teller.record([(side, False, events)]), made.matcher.applied + 1, START)
        if value % 3 == 1:
            made.restart()
    rows = made.matcher._pipelines["orders"].cell.rows
    assert (rows.settled, rows.open, len(rows.long)) == (5, 0, 0)
    state = made.matcher._pipelines["orders"].cell.state(b"key1")
    assert state.older == [digest(value) for value in (6, 5, 4, 3)]
    assert shown(made.matcher).counters.settled == 40


def test_an_update_that_the_target_shows_already_is_settled_at_once() -> None:
    story = [(Side.EXPECTED, [0]), (Side.OBSERVED, [0]), (Side.OBSERVED, [1]), (Side.EXPECTED, [1])]
    teller, made = Teller(0), Life(SPECS["plain"], event_by_event=False)
    for offset, (side, values) in enumerate(story):
        made.matcher.apply(teller.record([(side, False, [(1, UPSERT, 1, value, 3) for value in values])]), offset, START)
    assert (shown(made.matcher).counters.settled, shown(made.matcher).pending) == (2, 0)


def test_an_older_write_of_the_target_does_not_answer_an_update() -> None:
    teller, made = Teller(0), Life(SPECS["plain"], event_by_event=False)
    first = [(1, UPSERT, 1, 0, 3)]
    for offset, section in enumerate([(Side.EXPECTED, False, first), (Side.OBSERVED, False, [*first, (1, UPSERT, 1, 0, 3)])]):
        made.matcher.apply(teller.record([section]), offset, START)
    made.matcher.apply(teller.record([(Side.EXPECTED, False, [(1, UPSERT, 1, 1, 3)])]), 2, START)
    made.matcher.apply(teller.record([(Side.OBSERVED, False, [(1, UPSERT, -2, 1, 3)])]), 3, START)  # before what it has shown
    assert (shown(made.matcher).counters.repeated, shown(made.matcher).counters.settled) == (1, 1)
