"""A snooze is an end put to silence beforehand: whatever is snoozed opens again, and nothing is silent for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gapwatch.errors import UsageError
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Gap, State
from gapwatch.roles.board import Facts
from gapwatch.roles.desk import SNOOZE_SECONDS_MAX, Desk, DeskDependencies
from gapwatch.roles.repair.snoozes import SnoozeWatch
from tests.ledger_samples import gap, opening
from tests.simulation.stores import VirtualClock


class Silenced:
    """An open gap, a person who snoozes it, and what ends that."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self.clock = VirtualClock()
        self.paused: set[str] = set()
        nothing = cast(Any, None)
        self.desk = Desk(
            DeskDependencies(
                settings=nothing,
                ledger=ledger,
                board=nothing,
                stores=nothing,
                stream=nothing,
                clock=self.clock,
                new_id=lambda: f"id{ledger.writes()}",
            )
        )

        async def is_quiet(pipeline: str) -> bool:
            return pipeline in self.paused

        self.watch = SnoozeWatch({"orders": nothing}, ledger, self.clock, is_quiet)
        ledger.store_gaps([opening(gap())])

    def by_hand(self, action: str, seconds: float = 60.0) -> None:
        asyncio.run(self.desk.change_gap(gap().id, action, actor="me", seconds=seconds))

    def after(self, seconds: float) -> State:
        asyncio.run(self.clock.sleep(seconds))
        asyncio.run(self.watch.step())
        return self.now().state

    def now(self) -> Gap:
        found = self.ledger.gap(gap().id)
        assert found is not None
        return found

    def events(self) -> list[str]:
        return [row["event"] for row in self.ledger.gap_history(gap().id)]


def test_a_snoozed_gap_is_open_again_when_its_time_is_up(ledger: SqlLedger) -> None:
    story = Silenced(ledger)
    story.by_hand("snooze")
    assert (story.after(30), ledger.gap_summary("orders").alerting) == (State.SNOOZED, 0)
    assert (story.after(31), ledger.gap_summary("orders").alerting) == (State.OPEN, 1)
    assert story.events() == ["opened", "snoozed", "reopened"]
    assert story.now().confirmed_at == gap().confirmed_at, "its age counts from when it was found"
    story.after(1)
    assert ledger.facts(Facts.snoozed("")) == {}


def test_a_snooze_is_prolonged_and_what_is_acknowledged_stays_so(ledger: SqlLedger) -> None:
    story = Silenced(ledger)
    story.by_hand("snooze")
    assert story.after(50) is State.SNOOZED
    story.by_hand("snooze")
    assert story.after(50) is State.SNOOZED
    story.by_hand("ack")
    assert story.after(50) is State.ACKNOWLEDGED
    assert ledger.facts(Facts.snoozed("")) == {}


def test_m22_a_pause_outlasts_a_snooze(ledger: SqlLedger) -> None:
    story = Silenced(ledger)
    story.by_hand("snooze")
    story.paused = {"orders"}
    assert story.after(90) is State.SNOOZED
    story.paused = set()
    assert story.after(1) is State.OPEN


def test_a_snooze_without_an_end_is_none(ledger: SqlLedger) -> None:
    story = Silenced(ledger)
    story.by_hand("snooze")
    ledger.set_fact(Facts.snoozed(gap().id), None)
    assert story.after(0) is State.OPEN


@pytest.mark.parametrize("seconds", [0.0, -1.0, SNOOZE_SECONDS_MAX + 1, 1e300, float("inf"), float("nan")])
def test_a_snooze_that_is_no_while_is_refused_and_changes_nothing(ledger: SqlLedger, seconds: float) -> None:
    story = Silenced(ledger)
    with pytest.raises(UsageError, match="snoozed for"):
        story.by_hand("snooze", seconds)
    assert (story.now().state, story.events()) == (State.OPEN, ["opened"])
