"""A backfill's keys take turns: what waits for its turn is read again, and what another run proved is not taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Run, RunState, State
from gapwatch.model.stream import Side
from tests.unit.roles.test_autorepairer import Story
from tests.unit.roles.test_old_reads import Slow


def missing(ledger: SqlLedger, *numbers: int) -> Story:
    """A pipeline whose target misses some documents; their repair is planned."""
    story = Story(ledger)
    for number in numbers:
        story.rig.stranger_writes(number, None)
    story.sweep()
    assert story.step() is not None
    return story


def one_by_one(story: Story, change: Callable[[], object]) -> Run:
    """Carry the repair out in batches of one document; while the first is written, row 3 changes, and the sink delivers that."""
    batch = replace(story.spec.sweep.batch, bytes=1)
    story.rig.spec = replace(story.spec, sweep=replace(story.spec.sweep, batch=batch))

    def between(what: str) -> None:
        if what == "write" and not story.rig.writes:
            change()
            story.rig.sink_delivers(3)

    story.rig.between = between
    return story.carry_out()


def test_a_key_whose_batch_was_full_is_read_again_after_the_pause(ledger: SqlLedger) -> None:
    """Batches of one document each; while the first is written, the last row goes, and the sink applies its delete."""
    story = missing(ledger, 1, 2, 3)
    run = one_by_one(story, lambda: story.rig.source_deletes(3))
    assert [story.rig.number(item.key) for item in story.rig.writes] == [1, 2], "the row was gone long before its turn"
    assert (run.counts["written"], run.counts["batches"]) == (2, 2)
    assert 3 not in story.rig.target


def test_d7_what_the_sink_wrote_while_a_key_waited_for_its_turn_is_already_newer(ledger: SqlLedger) -> None:
    story = missing(ledger, 1, 2, 3)
    run = one_by_one(story, lambda: story.rig.source_writes(3))
    counts = {name: run.counts[name] for name in ("written", "already_newer", "already_right", "failed")}
    assert counts == {"written": 2, "already_newer": 1, "already_right": 0, "failed": 0}
    assert story.rig.agrees(3)
    assert story.gaps(State.OPEN) == []


def test_a_batch_is_filled_while_more_keys_are_judged_however_slow_the_stores_are(ledger: SqlLedger) -> None:
    story = Slow(ledger, range(6))  # one more key is due every 0.8 s …
    assert story.step() is not None

    def between(what: str) -> None:
        if what == "fetch OBSERVED":
            story.clock._ms += 900  # … and to read some takes longer

    async def nothing() -> None: ...

    story.rig.between = between
    run = story.carry_out_with(nothing)
    assert (run.counts["written"], run.counts["batches"]) == (6, 1)


def test_what_is_not_read_again_is_not_called_changed(ledger: SqlLedger) -> None:
    story = missing(ledger, 7)
    reads = {"of the target": 0}

    def between(what: str) -> None:
        if what != "fetch OBSERVED":
            return
        story.clock._ms += 300  # a slow read: it is too old for a write
        reads["of the target"] += 1
        if reads["of the target"] % 2:
            story.rig.away.discard(Side.OBSERVED)
        else:
            story.rig.away.add(Side.OBSERVED)

    story.rig.between = between
    run = story.carry_out()
    assert (run.state, run.counts.get("unread"), run.counts.get("moved_on")) == (RunState.INCONCLUSIVE, 1, None)
    assert story.rig.writes == []


def test_an_insert_that_was_read_back_right_is_not_taken_back_against_the_policy(ledger: SqlLedger) -> None:
    """Inserted and proved; later the row changes and goes, and the sink loses both: a document too much is reported here."""
    story = missing(ledger, 7)
    story.carry_out()
    assert story.rig.agrees(7)
    story.rig.source_writes(7)
    story.rig.sink_loses(7)
    story.sweep()
    assert story.step() is not None, "the old document is to be replaced"
    story.rig.source_deletes(7)
    story.rig.sink_loses(7)
    story.carry_out()
    assert 7 in story.rig.target, "the policy says that extra documents are reported, and this one was deleted"
