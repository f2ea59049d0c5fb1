"""What the tests under fire hold against each other: what came to a target, what Gapwatch's audit says of it, and its plans.

Nothing here asks Gapwatch: the audit is read from its file, what came to the target is what the target's log or a recorder says.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gapwatch.core.keys import KeyCodec
from gapwatch.model.pipeline import KeyColumn, KeyType

CODEC = KeyCodec((KeyColumn(path="id", type=KeyType.INT),))
PLANNED, WRITTEN, VANISHED, GUARD_FAILED = "planned", "written", "vanished", "already_newer"
LEFT_ALONE = "the source has no such row"  # a document that is `vanished` for this reason was not written

Writes = Mapping[int, Sequence[int]]  # by key, when each came to the target: microseconds since the epoch, ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A state that a document came to have (`seq` None: deleted), whether by a write of ours, and when that came to the store."""

    key: int
    seq: int | None
    is_ours: bool
    at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Documents that were deleted, and brought back by us as they had been before; how often others took one back."""

    came_back: frozenset[int]
    taken_back_by_others: int


def never_back(states: Iterable[Shown]) -> Judged:
    """Check that no write of ours took a document back. ``states``: every one that any document had, oldest first."""
    newest: dict[int, int] = {}
    gone: set[int] = set()
    came_back: set[int] = set()
    by_others = 0
    for one in states:
        key, seq, known = one.key, one.seq, newest.get(one.key, 0)
        if seq is None:
            gone.add(key)
            continue
        if seq < known and one.is_ours:
            assert key in gone, f"our write took document {key} back from {known} to {seq}"
            came_back.add(key)
        by_others += seq < known and not one.is_ours
        gone.discard(key)
        newest[key] = max(seq, known)
    return Judged(came_back=frozenset(came_back), taken_back_by_others=by_others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A row of the audit about one document."""

    run: str
    key: int
    at_us: int
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What backfills noted, as it was stored; ``plans``: by run, which keys its plan has, and since when."""

    notes: Sequence[Note]
    plans: Mapping[str, Mapping[int, int]]


def read_audit(ledger: Path) -> Audit:
    """Return what the ledger's file says of all backfills."""
    with sqlite3.connect(ledger) as connection:
        runs = connection.execute("SELECT id, request FROM runs WHERE kind = 'backfill'").fetchall()
        query = "SELECT run_id, key, at, outcome, reason FROM audit WHERE action = ? ORDER BY number"
        planned = connection.execute(query, ("backfill_plan",)).fetchall()
        written = connection.execute(query, ("backfill_write",)).fetchall()
    plans: dict[str, dict[int, int]] = defaultdict(dict)
    for run, key, at, _, _ in planned:
        plans[run][_number(key)] = at
    applied = {run: plans[asked["plan"]] for run, request in runs if not (asked := json.loads(request))["dry_run"]}
    notes = [Note(run=run, key=_number(key), at_us=at, outcome=said, reason=why) for run, key, at, said, why in written]
    return Audit(notes=notes, plans=applied)


def _number(key: bytes) -> int:
    (number,) = CODEC.decode(key)
    return int(number)


def within_plans(audit: Audit, sent: Writes, *, slack_us: int = 0) -> None:
    """Check that no run touched a key outside its plan, and that nothing came to the target which was in no plan by then.

    The arguments are those of :func:`accounted`.
    """
    for note in audit.notes:
        planned = audit.plans[note.run].get(note.key)
        assert planned is not None, f"run {note.run} touched document {note.key}, which its plan has not"
        assert planned <= note.at_us, f"run {note.run} touched document {note.key} before it was planned"
    first: dict[int, int] = {}
    for plan in audit.plans.values():
        for key, at_us in plan.items():
            first[key] = min(at_us, first.get(key, at_us))
    for key, times in sent.items():
        assert key in first, f"document {key} was written, and is in no plan"
        assert first[key] <= min(times) + slack_us, f"document {key} was written before it was planned"


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One write as the audit has it: announced, and what came of it, by the next row of its run and document, if there is one."""

    at_us: int
    said: Note | None = None

    @property
    def claimed_at(self) -> int | None:
        said = self.said
        if said is None or said.outcome not in (WRITTEN, VANISHED) or said.reason == LEFT_ALONE:
            return None
        return said.at_us

    @property
    def is_denied(self) -> bool:
        """Whether the target's guard is said to have kept it from being done."""
        return self.said is not None and self.said.outcome == GUARD_FAILED and bool(self.said.reason)


def _attempts(notes: Iterable[Note]) -> dict[int, list[_Attempt]]:
    found: dict[int, list[_Attempt]] = defaultdict(list)
    waiting: dict[tuple[str, int], _Attempt] = {}
    for note in notes:
        before = waiting.pop((note.run, note.key), None)
        if before is not None:
            before.said = note
        if note.outcome == PLANNED:
            waiting[note.run, note.key] = attempt = _Attempt(at_us=note.at_us)
            found[note.key].append(attempt)
    return found


def accounted(audit: Audit, *, sent: Writes, done: Writes, unsure: Writes | None = None, slack_us: int = 0) -> dict[str, int]:
    """Check that the audit tells of each write of ours, deletes among them, and of no other one; return counts.

    Each that came to the target was announced before, by an announcement of its own. Each that the audit claims was done between
    its announcement and the claim. Each that was done and is not claimed has an announcement before it which nobody denied.

    Args:
        audit: What Gapwatch's ledger says.
        sent: When our writes came to the target, by key, whatever became of them.
        done: Those of them that were done.
        unsure: Those of them of which nobody knows whether they were done.
        slack_us: By how much the times of `sent`, `done` and `unsure` may be too early.
    """
    attempts, claimed, silent = _attempts(audit.notes), 0, 0
    for key in sent.keys() | done.keys() | attempts.keys():
        mine, came = attempts.get(key, []), sent.get(key, ())
        announced = sorted(one.at_us for one in mine)
        assert len(announced) >= len(came), f"{key} was written {len(came)} times, and announced {len(announced)}"
        late = [at for before, at in zip(announced, sorted(came), strict=False) if before > at + slack_us]
        assert not late, f"{key} was written at {late}, and announced later"
        left = _claimed(key, mine, done.get(key, ()), (unsure or {}).get(key, ()), slack_us)
        claimed += sum(one.claimed_at is not None for one in mine)
        silent += len(left)
        open_since = sorted(one.at_us for one in mine if one.claimed_at is None and not one.is_denied)
        for at in left:
            before = bisect_right(open_since, at + slack_us)
            assert before, f"{key} was written at {at}, and no announcement before it was left open"
            del open_since[before - 1]
    announced_in_all = sum(map(len, attempts.values()))
    return {"writes": sum(map(len, done.values())), "announced": announced_in_all, "claimed": claimed, "silent": silent}


def _claimed(key: int, attempts: Sequence[_Attempt], done: Sequence[int], unsure: Sequence[int], slack_us: int) -> list[int]:
    """Give each claim one write that was done between its announcement and itself; return what was done and nobody claims."""
    claims = [(one.claimed_at, one.at_us) for one in attempts if one.claimed_at is not None]
    left: list[int] = []
    for at, is_sure in sorted([(at, True) for at in done] + [(at, False) for at in unsure]):
        fitting = [claim for claim in claims if claim[1] <= at + slack_us and at <= claim[0]]
        if fitting:
            claims.remove(min(fitting))
        elif is_sure:
            left.append(at)
    assert not claims, f"{key}: nothing was done of what the audit claims for {sorted(claims)} (claimed, announced)"
    return left
