"""How often the source is read before a key is judged, and what would be invented if it were read less."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gapwatch.core.confirm import Difference
from gapwatch.ledger import SqlLedger
from gapwatch.roles.repair.judging import Decided, KeyJudge
from tests.unit.core.samples import unsatisfied
from tests.unit.roles.test_autorepairer import Story

GRACE_MS = 1_000
SOURCE, TARGET = "fetch EXPECTED", "fetch OBSERVED"


class Judged(Story):
    """One row that was copied right, and whoever judges it. ``read``: which stores were read, in their order."""

    def __init__(self, ledger: SqlLedger) -> None:
        super().__init__(ledger, rows=1)
        self.read: list[str] = []
        self.rig.between = self.read.append
        self.before: Callable[[], None] = lambda: None  # called before the source is read last

        async def stores() -> Any:
            return self.rig.stores

        self.judge = KeyJudge(stores, grace_ms=lambda: GRACE_MS, delivered=lambda: self.delivered, clock=self.clock)

    @property
    def key(self) -> bytes:
        return self.rig.key(0)

    def row_is(self, version: int) -> None:
        """Write the row once more, with this content."""
        self.rig.source_writes(0, total=version, note=f"version {version}")

    def copied(self) -> None:
        while self.rig.sink.get(0):
            self.rig.sink_delivers(0)

    def look(self) -> list[Decided]:
        """Read the stores once, and judge; ``read`` is of that look alone."""
        self.read.clear()

        def between(what: str) -> None:
            self.read.append(what)
            if what == SOURCE and TARGET in self.read:
                self.before()

        self.rig.between = between
        return list(asyncio.run(self.judge.step()))


def differences(decided: list[Decided]) -> list[Decided]:
    return [item for item in decided if isinstance(item.judgement, Difference)]


def test_a_first_look_and_one_after_a_row_with_a_revision_read_each_store_once(ledger: SqlLedger) -> None:
    story = Judged(ledger)
    story.rig.stranger_writes(0, None)
    story.judge.add(story.key)
    assert (story.look(), story.read) == ([], [TARGET, SOURCE])
    story.wait(GRACE_MS / 1000)
    assert len(differences(story.look())) == 1
    assert story.read == [TARGET, SOURCE]


def test_a_row_that_was_absent_is_read_before_the_target_too(ledger: SqlLedger) -> None:
    story = Judged(ledger)
    story.rig.source_deletes(0)
    story.judge.add(story.key)
    assert (story.look(), story.read) == ([], [TARGET, SOURCE])
    story.wait(GRACE_MS / 1000)
    assert len(differences(story.look())) == 1
    assert story.read == [SOURCE, TARGET, SOURCE], "nothing tells one absence from another"


@pytest.mark.parametrize("has_revision", [True, False])
def test_a_row_that_is_again_as_the_wait_began_has_not_stood_still(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, has_revision: bool
) -> None:
    """The target shows the younger write, as it should; then the row is as before, and that is on its way."""
    story = Judged(ledger)
    if not has_revision:
        monkeypatch.setattr(type(story.rig), "revision", lambda rig, number: None)
    story.row_is(100)
    story.judge.add(story.key)
    assert story.look() == []
    story.wait(GRACE_MS / 1000)
    story.row_is(200)
    story.copied()
    story.before = lambda: story.row_is(100)
    assert differences(story.look()) == []
    assert story.read == ([TARGET, SOURCE] if has_revision else [SOURCE, TARGET, SOURCE])


def test_a_suspect_may_be_a_difference_at_once_so_its_row_is_read_before_the_target_too(ledger: SqlLedger) -> None:
    """What the target shows is a younger write's; the row was set back just now."""
    story = Judged(ledger)
    story.row_is(100)
    digest = story.rig.mapping.canonical_source(story.rig.source[0]).identity
    suspect = unsatisfied(story.key, digest=digest, event_time=story.clock.now_ms(), pipeline=story.spec.id)
    story.row_is(200)
    story.copied()
    story.judge.add(story.key, suspect)
    story.before = lambda: story.row_is(100)
    assert differences(story.look()) == []
    assert story.read == [SOURCE, TARGET, SOURCE]
    story.before = lambda: None
    story.copied()
    story.rig.stranger_writes(0, None)
    story.judge.drop(story.key)
    story.judge.add(story.key, suspect)
    assert len(differences(story.look())) == 1, "where it stood still, no wait is needed"
