"""A reconciliation over two stores in memory: everything but the stores and the topics is the product."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from gapwatch.core.replay import Found, Named
from gapwatch.errors import ConflictError, FeedError
from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import Cause, Detector, Gap, Kind, Run, RunKind, RunState, State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Hole
from gapwatch.ports import GapFilter
from gapwatch.roles.repair.plans import PLAN_ACTION
from gapwatch.roles.repair.questions import Question
from gapwatch.roles.repair.replayer import Replayer, ReplayerDependencies, request_replay
from gapwatch.roles.repair.rereading import OnProgress
from tests.simulation.stores import Rig, VirtualClock, sweeper_of
from tests.unit.core.samples import unsatisfied

REQUEST = {"from": "2023-11-14T22:00:00Z", "to": "2023-11-14T22:10:00Z", "of": "events"}
OFFSETS = {"from": "0:1", "to": "0:100", "of": "events"}
SWEPT = datetime(2023, 11, 13, tzinfo=UTC)


def reconciled(
    rig: Rig, ledger: SqlLedger, found: Found, *, cancelled: bool = False, request: Mapping[str, str] = REQUEST
) -> Run:
    clock, run_id = VirtualClock(pace=100), f"replay{len(ledger.runs())}"
    request_replay(ledger, rig.spec.id, request, run_id=run_id, clock=clock, actor="me")
    taken = ledger.take_run(RunKind.REPLAY, "here", seconds=1e6)
    assert taken is not None
    asked: list[Question] = []

    async def answer(question: Question, spec: PipelineSpec, on_progress: OnProgress) -> Found:
        asked.append(question)
        on_progress(0.5, {"records": 7})
        if cancelled:
            ledger.cancel_run(run_id)
        return found

    sweeper = sweeper_of(rig, ledger, clock)
    dependencies = ReplayerDependencies(
        ledger=ledger, answer=answer, sweeper=sweeper, clock=clock, holder="here", new_id=lambda: f"plan-of-{run_id}"
    )
    run = asyncio.run(Replayer(dependencies).run(taken, rig.stores, last_full_started=SWEPT))
    assert [question.keys_max > 0 for question in asked] == [True]
    return run


def gaps(ledger: SqlLedger) -> dict[int, Gap]:
    return {gap.key_fields["id"]: gap for gap in ledger.gaps(GapFilter(), limit=500).gaps}


def planned(ledger: SqlLedger, plan_id: str) -> set[object]:
    rows = ledger.audit_rows(run_id=plan_id, limit=1_000)
    return {(row.key_fields or {})["id"] for row in rows if row.action == PLAN_ACTION}


def copied(count: int) -> Rig:
    rig = Rig()
    for number in range(count):
        rig.source_writes(number)
        rig.sink_delivers(number)
    return rig


def keys(rig: Rig, *numbers: int) -> Found:
    return Found(keys={rig.key(number) for number in numbers})


def proof(rig: Rig, number: int, content: Mapping[str, object]) -> Named:
    digest = rig.mapping.canonical_source(dict(content)).identity
    suspect = unsatisfied(
        rig.key(number),
        digest=digest,
        position=42,
        event_time=1_699_999_300_000,
        id=f"sus_{number}",
        pipeline=rig.spec.id,
        due=1_699_999_310_000,
        source_watermark=1_699_999_400_000,
        target_watermark=1_699_999_400_000,
    )
    return Named(suspect=suspect, unknown=False)


def test_only_what_is_still_wrong_is_a_gap_and_the_plan_holds_just_that(ledger: SqlLedger) -> None:
    rig = copied(10)
    for number in (2, 3, 8):
        rig.stranger_writes(number, None)
    rig.stranger_writes(5, {"_id": 5, "total": -1, "note": "wrong"})
    run = reconciled(rig, ledger, keys(rig, 1, 2, 3, 4, 5))
    assert run.state is RunState.SUCCEEDED
    found = gaps(ledger)
    assert {number: gap.kind for number, gap in found.items()} == {2: Kind.MISSING, 3: Kind.MISSING, 5: Kind.MISMATCH}
    assert {gap.detector for gap in found.values()} == {Detector.REPLAY}
    assert {gap.held_since and gap.held_since.isoformat() for gap in found.values()} == {"2023-11-14T22:00:00+00:00"}
    assert (run.counts["keys"], run.counts["differences"], run.counts["planned"], run.counts["open_gaps_left"]) == (5, 3, 3, 3)
    assert planned(ledger, run.request["plan"]) == {2, 3, 5}
    assert rig.writes == [], "nothing is written before somebody applies the plan"


def test_a_second_one_after_the_repair_resolves_and_plans_nothing(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(2, None)
    reconciled(rig, ledger, keys(rig, 1, 2))
    rig.stranger_writes(2, rig.document(rig.source[2]))
    run = reconciled(rig, ledger, keys(rig, 1, 2))
    assert gaps(ledger)[2].state is State.RESOLVED
    assert run.state is RunState.SUCCEEDED
    assert (run.counts["differences"], run.counts["planned"], run.request.get("plan")) == (0, 0, None)


def test_what_the_events_name_as_open_is_a_suspect_with_its_evidence(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(2, None)
    found = Found(keys={rig.key(2)}, named=[proof(rig, 2, rig.source[2])])
    run = reconciled(rig, ledger, found)
    gap = gaps(ledger)[2]
    assert (gap.kind, gap.cause, gap.detector) == (Kind.MISSING, Cause.NEVER_WRITTEN, Detector.REPLAY)
    assert [row["offset"] for row in gap.evidence if row["topic"]] == [42]
    assert run.counts["events_open"] == 1
    rig.stranger_writes(3, None)
    raw = Found(keys={rig.key(3)}, named=[proof(rig, 3, rig.source[3])])
    reconciled(rig, ledger, raw, request=REQUEST | {"of": "raw"})
    assert gaps(ledger)[3].cause is Cause.UNKNOWN, "raw topics do not say what is in transit"


def test_a_gap_of_offsets_may_have_been_there_since_the_last_sweep(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(2, None)
    reconciled(rig, ledger, keys(rig, 2), request=OFFSETS)
    assert gaps(ledger)[2].held_since == SWEPT


def test_an_extra_document_is_reported_and_needs_no_plan(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(77, {"_id": 77, "total": 1, "note": "nobody's"})
    run = reconciled(rig, ledger, keys(rig, 1, 77))
    assert gaps(ledger)[77].kind is Kind.EXTRA
    assert (run.request.get("plan"), run.counts["open_gaps_left"]) == (None, 1)


def test_a_range_that_was_not_read_through_opens_nothing(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(2, None)
    with pytest.raises(FeedError, match="The logs end before the range was read through"):
        reconciled(rig, ledger, dataclasses.replace(keys(rig, 2), complete=False))
    assert gaps(ledger) == {}


def test_a_cancelled_one_stops(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(2, None)
    with pytest.raises(ConflictError, match="cancelled"):
        reconciled(rig, ledger, keys(rig, 2), cancelled=True)
    assert gaps(ledger) == {}


def test_a_store_that_is_away_is_inconclusive(ledger: SqlLedger) -> None:
    rig = copied(5)
    rig.stranger_writes(2, None)
    rig.away.add(Side.OBSERVED)
    run = reconciled(rig, ledger, keys(rig, 2))
    assert run.state is RunState.INCONCLUSIVE
    assert gaps(ledger) == {}


@pytest.mark.parametrize("wrong", [True, False])
def test_where_a_stretch_of_the_streams_is_missing_not_every_key_was_looked_at(ledger: SqlLedger, *, wrong: bool) -> None:
    rig = copied(5)
    if wrong:
        rig.stranger_writes(2, None)
    hole = Hole(id="h", pipeline=rig.spec.id, side=0, feed="src", feed_partition=0, time_from=1, time_to=2, reason="ingest_hole")
    run = reconciled(rig, ledger, dataclasses.replace(keys(rig, 1, 2), holes=[hole]))
    assert run.state is RunState.INCONCLUSIVE
    assert run.error == "1 stretches of the streams are missing: a sweep finds what was written in them."
    assert run.counts["differences"] == int(wrong), "what was found is booked all the same"
    assert (planned(ledger, run.request["plan"]) if wrong else run.request.get("plan")) == ({2} if wrong else None)


def test_a_record_that_could_not_be_read_may_have_held_any_key(ledger: SqlLedger) -> None:
    rig = copied(5)
    run = reconciled(rig, ledger, dataclasses.replace(keys(rig, 1, 2), undecided=1, unread=1), request=OFFSETS)
    assert (run.state, run.counts["differences"]) == (RunState.INCONCLUSIVE, 0)
    undecided = reconciled(rig, ledger, dataclasses.replace(keys(rig, 1, 2), undecided=1), request=OFFSETS)
    assert undecided.state is RunState.SUCCEEDED, "what only waited is read in both stores"
