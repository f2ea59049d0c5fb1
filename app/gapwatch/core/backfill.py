"""What a backfill may write, and what came of it: decisions without I/O (``design.md`` 9).

``roles/repair/backfiller.py`` reads, writes and verifies; every key it touches has been judged like any suspect first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gapwatch.core.confirm import Cleared, Difference, Judgement, Superseded
from gapwatch.model.gap import Kind, RunState
from gapwatch.model.pipeline import BatchSpec, Policy, RepairSpec

WRITABLE = frozenset({Kind.MISSING, Kind.STALE, Kind.MISMATCH})
OVERWRITTEN = frozenset({Kind.STALE, Kind.MISMATCH})
DELETABLE = frozenset({Kind.EXTRA, Kind.UNDELETED})  # only where the pipeline's policy says `delete` or `auto`
WRITE_ACTION = "backfill_write"  # of audit rows: about to write, or to have it delivered again, and what came of it
ERROR_RATE_AFTER = 10  # items before the error rate may stop a run
OVERRUN = "changed after our write"  # why a document that we wrote is somebody else's by now


class ItemOutcome(StrEnum):
    """What came of one document. The values are those of the audit and of ``backfill_documents_total``."""

    PLANNED = "planned"
    WRITTEN = "written"
    ALREADY_RIGHT = "already_right"  # judged to agree before anything was written
    ALREADY_NEWER = "already_newer"  # the guard found somebody else's write
    VANISHED = "vanished"  # the source row is gone
    MOVED_ON = "moved_on"  # the source keeps changing: the stream's business
    UNREAD = "unread"
    REFUSED = "refused"  # not a kind that this run may write
    REQUESTED = "requested"  # the pipeline was asked to deliver it again
    FAILED = "failed"


class Step(StrEnum):
    WRITE = "write"
    DELETE = "delete"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    step: Step
    outcome: ItemOutcome
    reason: str = ""


def permitted(spec: RepairSpec) -> frozenset[Kind]:
    """Return the kinds that a backfill of the pipeline may touch: documents are deleted by explicit policy only."""
    policies = {Kind.EXTRA: spec.extra, Kind.UNDELETED: spec.undeleted}
    return WRITABLE | {kind for kind, policy in policies.items() if policy is not Policy.REPORT}


def decide(judgement: Judgement, kinds: frozenset[Kind], *, planned: Kind) -> Decision:
    """Say whether a judged key is written. A row that is gone at the source is never written, whatever the plan said.

    Args:
        judgement: What reading both sides proves now.
        kinds: The kinds of gaps that this run may write or delete.
        planned: The kind of this key's gap in the plan: only one that was planned as too much is deleted.
    """
    if isinstance(judgement, Cleared):
        return Decision(step=Step.LEAVE, outcome=ItemOutcome.ALREADY_RIGHT)
    if isinstance(judgement, Superseded):
        return Decision(step=Step.LEAVE, outcome=ItemOutcome.MOVED_ON, reason="the source row changed in every read")
    if not isinstance(judgement, Difference):
        return Decision(step=Step.LEAVE, outcome=ItemOutcome.UNREAD, reason=getattr(judgement, "reason", "not read"))
    if judgement.kind in DELETABLE:
        if planned in kinds & DELETABLE:
            return Decision(step=Step.DELETE, outcome=ItemOutcome.WRITTEN)
        return Decision(step=Step.LEAVE, outcome=ItemOutcome.VANISHED, reason="the source has no such row")
    if not _asked_for(judgement.kind, kinds, planned):
        return Decision(
            step=Step.LEAVE, outcome=ItemOutcome.REFUSED, reason=f"a gap of kind {judgement.kind.value} is not part of this run"
        )
    return Decision(step=Step.WRITE, outcome=ItemOutcome.WRITTEN)


def _asked_for(kind: Kind, kinds: frozenset[Kind], planned: Kind) -> bool:
    """Whether a key found in `kind` now may be written: reads without a stream cannot tell stale from mismatch.

    One that was planned as either may be found as the other; one that was planned as missing may not.
    """
    if kind in kinds & WRITABLE:
        return True
    return kind in OVERWRITTEN and planned in kinds & OVERWRITTEN


def fits(count: int, size: int, weight: int, limits: BatchSpec) -> bool:
    """Whether one more item of `weight` bytes may join a batch of `count` items and `size` bytes; a larger one goes alone."""
    return not count or (count < limits.documents and size + weight <= limits.bytes)


@dataclass(slots=True)
class Tally:
    """Counts of one run. ``verified`` documents were read back and agree with the source as read after the write."""

    planned: int
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    outcomes: dict[bytes, tuple[ItemOutcome, str]] = field(default_factory=dict)  # by key, with the reason
    _said: dict[tuple[ItemOutcome, str], tuple[ItemOutcome, str]] = field(default_factory=dict, repr=False)

    def add(self, outcome: ItemOutcome, reason: str = "", *, key: bytes) -> None:
        said = (outcome, reason)
        self.outcomes[key] = self._said.setdefault(said, said)  # of a hundred thousand, most say the same
        self.counts[outcome.value] = self.counts.get(outcome.value, 0) + 1
        if reason and outcome in (ItemOutcome.FAILED, ItemOutcome.REFUSED, ItemOutcome.UNREAD):
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def batch(self) -> None:
        self.counts["batches"] = self.counts.get("batches", 0) + 1

    def verified(self, count: int) -> None:
        self.counts["verified"] = self.counts.get("verified", 0) + count

    @property
    def handled(self) -> int:
        return sum(count for name, count in self.counts.items() if name not in ("verified", "batches"))

    def error_rate_exceeded(self, ratio: float) -> bool:
        failed = self.counts.get(ItemOutcome.FAILED.value, 0)
        return self.handled >= ERROR_RATE_AFTER and failed > ratio * self.handled

    def as_counts(self, *, open_gaps: int) -> dict[str, int]:
        """Return all counts; ``in_sync`` is 1 only when no item failed or stayed unread and no gap of the plan is open."""
        failed = self.counts.get(ItemOutcome.FAILED.value, 0) + self.counts.get(ItemOutcome.UNREAD.value, 0)
        names = ("written", "verified", "already_right", "already_newer", "vanished", "failed", "batches")
        return {
            "planned": self.planned,
            **dict.fromkeys(names, 0),
            **self.counts,
            "open_gaps_left": open_gaps,
            "in_sync": int(failed == 0 and open_gaps == 0),
        }

    def ended(self, *, stopped: bool) -> tuple[RunState, str | None]:
        """Return the run's state and its error, if it has one."""
        worst = max(self.reasons, key=lambda reason: self.reasons[reason], default="")
        failed = self.counts.get(ItemOutcome.FAILED.value, 0)
        if stopped:
            return RunState.ABORTED, f"Stopped: {failed} of the first {self.handled} documents failed. Most often: {worst}"
        if failed:
            return RunState.FAILED, f"{failed} documents failed. Most often: {worst}"
        unread = self.counts.get(ItemOutcome.UNREAD.value, 0)
        if unread:
            return RunState.INCONCLUSIVE, f"{unread} keys could not be read. Most often: {worst}"
        return RunState.SUCCEEDED, None


def plan_counts(kinds: Mapping[Kind, int], *, limit: int) -> dict[str, int]:
    """Return the counts of a plan: how many of each kind it would write, how many it leaves out and why."""
    writable = sum(kinds.values())
    return {
        "planned": min(writable, limit),
        "over_the_limit": max(0, writable - limit),
        **{kind.value: count for kind, count in kinds.items()},
    }
