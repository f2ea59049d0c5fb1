"""A backfill's keys take turns: what waits for its turn is read again, and what another run proved is not taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from gapwatch.core.backfill import WRITABLE
from gapwatch.errors import StoreUnreachable
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Resolution, Run, RunState, State
from gapwatch.model.pipeline import RepairMode, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.roles.repair.plans import plan, request_apply
from gapwatch.roles.repair.resending import ResendRequest
from tests.unit.roles.test_autorepairer import AUTO, Story
from tests.unit.roles.test_old_reads import Slow


def missing(ledger: SqlLedger, *numbers: int, repair: RepairSpec = AUTO) -> Story:
    """A pipeline whose target misses some documents; their repair is planned."""
    story = Story(ledger, repair)
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


class Delivering:
    """Implements :class:`gapwatch.roles.repair.resending.Resender`: the pipeline delivers at once what it is asked for."""

    def __init__(self, story: Story) -> None:
        self._rig = story.rig

    async def ask(self, requests: Sequence[ResendRequest], *, run_id: str) -> Sequence[str]:
        for request in requests:
            assert request.row is not None
            self._rig.stranger_writes(self._rig.number(request.key), self._rig.document(dict(request.row.fields)))
        return [""] * len(requests)

    async def close(self) -> None: ...


def redelivered(story: Story) -> Run:
    """Have the pipeline deliver again what is planned."""
    return story.carry_out(resender=lambda stores, mode: Delivering(story))


def test_what_was_delivered_again_closes_its_gap_however_slow_the_stores_are(ledger: SqlLedger) -> None:
    story = missing(ledger, 7, repair=replace(AUTO, modes=(RepairMode.REPUBLISH,)))

    def between(what: str) -> None:
        story.clock._ms += 700

    story.rig.between = between
    run = redelivered(story)
    assert (run.counts["written"], run.counts["verified"], run.counts["open_gaps_left"]) == (1, 1, 0)
    assert story.gaps()[0].resolution is Resolution.BACKFILLED


def test_what_the_pipeline_delivered_again_is_not_taken_back_as_an_insert_of_ours(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back right, and its gap left open as the ledger went away; later its row goes, and the sink loses that."""
    story = missing(ledger, 7, repair=replace(AUTO, modes=(RepairMode.REPUBLISH, RepairMode.DIRECT)))
    with monkeypatch.context() as patched:
        patched.setattr(story.book, "close", _away)
        assert redelivered(story).state is RunState.INCONCLUSIVE
    story.rig.spec = story.spec = replace(story.spec, repair=AUTO)
    story.rig.source_deletes(7)
    story.rig.sink_loses(7)
    plan(ledger, story.spec, WRITABLE, limit=10, run_id="again_plan", clock=story.clock)
    request_apply(ledger, "again_plan", run_id="again", clock=story.clock)
    run = story.carry_out()
    assert run.counts["vanished"] == 1
    assert 7 in story.rig.target, "the policy says that extra documents are reported, and this one was deleted"


async def _away(_: object, decided: Sequence[object], **__: object) -> set[bytes]:
    if decided:
        raise StoreUnreachable("The ledger does not answer.", store="ledger")
    return set()


def after_the_write(story: Story, then: Callable[[], object] = lambda: None) -> list[str]:
    """Carry the repair out; do `then` once the document was written, and return which sides were read after that, in order."""
    seen: list[str] = []

    def between(what: str) -> None:
        if story.rig.writes and not seen:
            then()
        if story.rig.writes:
            seen.append(what)

    story.rig.between = between
    story.carry_out()
    return seen


def test_a_row_whose_revision_is_the_judged_one_is_read_back_once(ledger: SqlLedger) -> None:
    story = missing(ledger, 7)
    assert after_the_write(story) == ["fetch OBSERVED", "fetch EXPECTED"], "it stood still since it was judged"
    assert story.gaps(State.OPEN, State.REPAIRING) == []


def test_a_row_that_moved_on_since_it_was_judged_is_read_before_the_target_too(ledger: SqlLedger) -> None:
    """The sink brings the newer row before it is read back: both agree, and nobody has shown yet that the row stood still."""
    story = missing(ledger, 7)

    def newer() -> None:
        story.rig.source_writes(7)
        story.rig.sink_delivers(7)

    sides = ["OBSERVED", "EXPECTED", "EXPECTED", "OBSERVED", "EXPECTED"]
    assert after_the_write(story, newer) == [f"fetch {side}" for side in sides]
    assert len(story.rig.writes) == 1, "there was nothing to correct"
    assert story.gaps(State.OPEN, State.REPAIRING) == []


def test_ids_of_audit_rows_come_in_the_order_of_their_times(ledger: SqlLedger) -> None:
    story = missing(ledger, 1, 2, 3)
    one_by_one(story, lambda: None)
    rows = [row for row in ledger.audit_rows(pipeline=story.spec.id) if row.id.startswith("aud_")]
    assert len({row.at for row in rows}) > 1
    assert [row.at for row in sorted(rows, key=lambda row: row.id)] == sorted(row.at for row in rows)
    assert {len(row.id) for row in rows} == {len("aud_") + 32}


class Silent:
    """Implements :class:`gapwatch.roles.repair.resending.Resender`: nothing is delivered, and the target goes away."""

    def __init__(self, story: Story) -> None:
        self._rig = story.rig

    async def ask(self, requests: Sequence[ResendRequest], *, run_id: str) -> Sequence[str]:
        self._rig.away.add(Side.OBSERVED)
        return [""] * len(requests)

    async def close(self) -> None: ...


def test_what_was_asked_for_and_not_read_since_is_neither_written_nor_resolved(ledger: SqlLedger) -> None:
    story = missing(ledger, 7, repair=replace(AUTO, modes=(RepairMode.REPUBLISH,)))
    run = story.carry_out(resender=lambda stores, mode: Silent(story))
    assert (run.counts["written"], run.counts["verified"], run.counts.get("unread")) == (0, 0, 1)
    assert (run.state, run.counts["open_gaps_left"]) == (RunState.INCONCLUSIVE, 1)
    assert [(gap.state, gap.resolution) for gap in story.gaps()] == [(State.OPEN, None)]
