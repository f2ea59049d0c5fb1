"""Which records count, for look-ups, scans, whole sweeps and repairs, over two stores in memory and a real ledger."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gapwatch.core.confirm import Cleared, Presence, Progress, WaitAndReadAgain, judge, satisfied
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Kind, Resolution, RunState, State
from gapwatch.model.pipeline import FieldType, Match, PipelineSpec, Policy, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.ports import Absent, StoredRecord, Unread
from gapwatch.roles.repair.reads import KeyReads, read_batch
from gapwatch.roles.viewed import OUTSIDE, SOFT_DELETED
from tests.simulation.stores import Rig, VirtualClock
from tests.unit.core import samples
from tests.unit.roles.test_autorepairer import Story

DELETING = RepairSpec(missing=Policy.AUTO, extra=Policy.AUTO, undeleted=Policy.AUTO, brake_ratio=1.0)
DAY = timedelta(days=1)


def ruled(*, on_leave: str = "delete", keep_days: int = 0) -> PipelineSpec:
    spec = samples.pipeline(
        samples.field("total", FieldType.INT), samples.field("note"), samples.field("placed", FieldType.TIMESTAMP)
    )
    source = replace(spec.source, where="state = 'live'", where_fields=(samples.field("state"),), on_leave=on_leave)
    target = replace(spec.target, deleted_when="gone = true")
    if keep_days:
        target = replace(target, keep_seconds=keep_days * 86_400.0, keep_by="placed")
    return replace(spec, source=source, target=target, repair=DELETING)


class Ruled(Rig):
    """Rows have a state and a time; the sink writes a document of those that are live."""

    def row(self, number: int, state: str = "live", placed: datetime | None = None) -> None:
        self.source_writes(number, state=state, placed=placed)

    def copied(self, number: int, state: str = "live", placed: datetime | None = None) -> None:
        self.row(number, state, placed)
        self.sink_delivers(number)

    def document(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**super().document(row), "placed": row["placed"]}


def read(rig: Rig, number: int, clock: VirtualClock | None = None) -> KeyReads:
    key = rig.key(number)
    return asyncio.run(read_batch(rig.stores, [key], clock or VirtualClock())).by_key[key]


def scanned(rig: Rig, side: Side) -> list[int]:
    async def scan() -> list[int]:
        reader = rig.stores.source if side is Side.EXPECTED else rig.stores.target
        return [rig.number(key) async for chunk in reader.scan_keys() for key in chunk.keys]

    return asyncio.run(scan())


def story(ledger: SqlLedger, rig: Ruled) -> Story:
    made = Story(ledger, DELETING, rows=0)
    rig.clock = made.clock
    made.rig = rig
    made.spec = rig.spec
    return made


def kinds(made: Story) -> dict[int, Kind]:
    return {made.rig.number(gap.key): gap.kind for gap in made.gaps(State.OPEN)}


def test_m21_a_look_up_says_why_what_is_there_counts_as_absent() -> None:
    rig = Ruled(spec=ruled())
    rig.copied(1, "draft")
    rig.copied(2)
    rig.target[2]["gone"] = True
    outside, marked = read(rig, 1), read(rig, 2)
    assert outside.source is OUTSIDE
    assert (outside.reads.after.presence, outside.reads.target.presence) == (Presence.ABSENT, Presence.PRESENT)
    assert marked.target is SOFT_DELETED
    assert isinstance(marked.source, StoredRecord)
    assert (scanned(rig, Side.EXPECTED), scanned(rig, Side.OBSERVED)) == ([2], [1])


def test_m21_what_was_not_read_stays_unread_and_what_is_not_there_has_no_reason() -> None:
    rig = Ruled(spec=ruled())
    rig.unread.add(1)
    assert isinstance(read(rig, 1).source, Unread)
    found = read(rig, 2).source
    assert isinstance(found, Absent)
    assert found.why == ""


def test_m21_of_several_records_only_those_that_count_are_seen() -> None:
    rig = Ruled(spec=ruled())
    reader: Any = rig.stores.target
    live, marked = ({"_id": 1, "gone": gone} for gone in (False, True))
    one, other = (StoredRecord(key=rig.key(1), fields=fields) for fields in (live, marked))
    assert reader._seen((one, other)) is one
    assert reader._seen((other, other)) is SOFT_DELETED
    assert reader._seen((one, one)) == (one, one)


def test_m21_emptiness_is_proved_where_nothing_counts() -> None:
    rig = Ruled(spec=ruled())
    rig.row(1, "draft")
    assert asyncio.run(rig.stores.source.is_empty())
    rig.away.add(Side.EXPECTED)
    assert not asyncio.run(rig.stores.source.is_empty()), "what was not read proves nothing"
    rig.away.clear()
    rig.row(2)
    assert not asyncio.run(rig.stores.source.is_empty())


def test_m21_a_sweep_and_a_repair_follow_the_rules(ledger: SqlLedger) -> None:
    rig = Ruled(spec=ruled())
    for number in range(10):
        rig.copied(number)
    rig.row(10, "draft")
    rig.copied(11, "draft")  # a document of a row that never counted
    rig.row(12)  # lost
    rig.target[3]["gone"] = True  # a live row's document is marked
    rig.source_deletes(4)
    rig.target[4]["gone"] = True  # a row that is gone: so is its document
    made = story(ledger, rig)
    made.sweep()
    assert kinds(made) == {11: Kind.EXTRA, 12: Kind.MISSING, 3: Kind.MISSING}
    run = made.repaired()
    assert (run.state, run.counts["written"], run.counts["refused"]) == (RunState.SUCCEEDED, 2, 1)
    assert sorted(rig.target) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12]
    assert (rig.target[3]["gone"], rig.target[4]["gone"]) == (True, True)
    (gap,) = made.gaps(State.OPEN)
    said = {row["side"]: (row["read"], row.get("reason")) for row in gap.evidence}
    assert said == {"source": ("present", None), "target": ("absent", SOFT_DELETED.why)}
    assert gap.note == "repair refused: Not written over: its document is marked as deleted (target.deleted_when)."


def test_m21_a_row_that_leaves_the_filter_while_it_is_written_is_taken_back(ledger: SqlLedger) -> None:
    rig = Ruled(spec=ruled())
    rig.copied(1)
    rig.row(7)
    made = story(ledger, rig)
    made.sweep()
    assert kinds(made) == {7: Kind.MISSING}
    rig.on_write = lambda item: rig.row(7, "draft") if item.document is not None else None
    run = made.repaired()
    assert (run.counts["written"], run.counts["vanished"]) == (0, 1)
    assert sorted(rig.target) == [1]


def test_m21_a_row_whose_document_would_be_marked_is_not_written(ledger: SqlLedger) -> None:
    spec = ruled()
    rig = Ruled(spec=replace(spec, target=replace(spec.target, deleted_when="note = 'gone'")))
    rig.source_writes(7, state="live", placed=None, note="gone")
    made = story(ledger, rig)
    made.sweep()
    run = made.repaired()
    assert (run.counts["written"], run.counts["refused"]) == (0, 1)
    assert rig.writes == []


def test_m21_who_has_left_a_filter_that_ignores_leavers_may_stay_or_go(ledger: SqlLedger) -> None:
    rig = Ruled(spec=ruled(on_leave="ignore"))
    rig.copied(1)
    rig.copied(2, "draft")
    rig.row(3, "draft")
    reads = read(rig, 2).reads
    assert (reads.after.presence, satisfied(reads, Match.DIGEST)) == (Presence.EXEMPT, True)
    made = story(ledger, rig)
    made.sweep()
    assert kinds(made) == {}
    rig.source_deletes(2)
    made.sweep()
    assert kinds(made) == {2: Kind.EXTRA}


def test_m21_what_is_expired_is_neither_missing_nor_too_much_nor_repaired(ledger: SqlLedger) -> None:
    rig = Ruled(spec=ruled(keep_days=30))
    now = datetime.fromtimestamp(1_700_000_000, UTC)
    rig.copied(1, placed=now - DAY)
    rig.row(2, placed=now - DAY)  # lost
    rig.row(3, placed=now - 31 * DAY)  # expired, and gone
    rig.copied(4, placed=now - 31 * DAY)  # expired, and still there
    rig.target[4]["total"] = -1
    rig.row(5)  # has no time: it never expires
    rig.stranger_writes(6, {"_id": 6, "placed": now - 31 * DAY})  # without a row, and expired
    rig.stranger_writes(7, {"_id": 7, "placed": now - DAY})
    made = story(ledger, rig)
    assert (scanned(rig, Side.EXPECTED), scanned(rig, Side.OBSERVED)) == ([1, 2, 5], [1, 7])
    made.sweep()
    assert kinds(made) == {2: Kind.MISSING, 5: Kind.MISSING, 7: Kind.EXTRA}
    rig.clock._ms += 30 * 86_400_000  # type: ignore[attr-defined]
    made.repaired()
    assert sorted(rig.target) == [1, 4, 5, 6, 7], "only what has no time was written; what is too much expires by itself"
    ended = {rig.number(gap.key): gap.resolution for gap in made.gaps(State.RESOLVED)}
    assert ended == {2: Resolution.SUPERSEDED, 5: Resolution.BACKFILLED, 7: Resolution.SUPERSEDED}


@pytest.mark.parametrize("left_ms", [-31_999, -1, 0, 1, 31_999])
def test_m21_close_to_its_end_a_difference_is_neither_proved_nor_denied(left_ms: int) -> None:
    rig = Ruled(spec=ruled(keep_days=30))
    clock = VirtualClock()
    placed = datetime.fromtimestamp(clock.now_ms() / 1000, UTC) - 30 * DAY + timedelta(milliseconds=left_ms)
    rig.row(1, placed=placed)
    reads = read(rig, 1, clock).reads
    assert reads.closing
    said = judge(None, reads, Progress(baseline=reads.after, waiting_since_ms=1), Match.DIGEST, proven_by_wait=True)
    assert isinstance(said, WaitAndReadAgain)
    rig.sink_delivers(1)
    assert isinstance(judge(None, read(rig, 1, clock).reads, Progress(), Match.DIGEST), Cleared)


@pytest.mark.parametrize(("left_ms", "presence"), [(-32_000, Presence.EXEMPT), (32_000, Presence.PRESENT)])
def test_m21_beyond_grace_and_skew_of_its_end_a_row_is_judged(left_ms: int, presence: Presence) -> None:
    rig = Ruled(spec=ruled(keep_days=30))
    clock = VirtualClock()
    rig.row(1, placed=datetime.fromtimestamp(clock.now_ms() / 1000, UTC) - 30 * DAY + timedelta(milliseconds=left_ms))
    reads = read(rig, 1, clock).reads
    assert (reads.after.presence, reads.closing) == (presence, False)
