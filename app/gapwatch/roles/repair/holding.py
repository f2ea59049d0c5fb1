"""The state ``repairing``: which gaps a backfill has in hand, and what becomes of those that it did not resolve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from gapwatch.core.autorepair import DONE, next_attempt
from gapwatch.core.backfill import OVERRUN, ItemOutcome
from gapwatch.core.gaps import repairing, set_down
from gapwatch.model.gap import Gap, RepairRecord, Run, State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, GapChange, Key, Ledger

AT_ONCE = 2_000
TRIES = 3  # at a gap that somebody else changes at the same moment
REFUSED_FOR_GOOD = frozenset({ItemOutcome.FAILED, ItemOutcome.REFUSED})

Outcomes = Mapping[Key, tuple[ItemOutcome, str]]


class Holding:
    """Gaps of one ledger that are under repair."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def take(self, run: Run, keys: Collection[Key]) -> Mapping[Key, Gap]:
        """Set the open gaps of these keys to ``repairing``; return all that are not resolved. Acknowledged ones stay so."""
        texts: dict[str, str] = {}  # of a hundred thousand gaps, a third of what they weigh says the same
        return await self._change(run.pipeline, keys, lambda gap: _taken(_lean(gap, texts)))

    async def set_down(self, pipeline: str, keys: Collection[Key], outcomes: Outcomes) -> None:
        """Set what is ``repairing`` back to ``open``, with the reason where its repair was refused."""

        def change(gap: Gap) -> GapChange | None:
            if gap.state is not State.REPAIRING:
                return None
            outcome, reason = outcomes.get(gap.key, (ItemOutcome.PLANNED, ""))
            refused = outcome in REFUSED_FOR_GOOD
            changed = set_down(gap, reason if refused else "")
            event = "repair_refused" if refused else "updated"
            return GapChange(gap=changed, against=gap.revision, event=event, state_only=True)

        await self._change(pipeline, keys, change)

    async def remember(self, run: Run, spec: PipelineSpec, outcomes: Outcomes, *, again: bool) -> None:
        """Keep what failed and is still open, with the time of its next attempt; forget what came off.

        Args:
            run: The run that tried.
            spec: The pipeline.
            outcomes: What became of each key that it came to.
            again: Whether anybody tries again by himself.
        """
        gaps = await asyncio.to_thread(self._ledger.open_gaps_for, spec.id, list(outcomes))
        known = {record.gap_id: record for record in await self._records(spec.id, [gap.id for gap in gaps.values()])}
        kept: list[RepairRecord] = []
        done: list[str] = []
        for key, gap in gaps.items():
            outcome, reason = outcomes[key]
            if outcome in DONE:
                done.append(gap.id)
            elif again or outcome in REFUSED_FOR_GOOD:
                kept.append(self._record(run, spec, gap, known.get(gap.id), outcome, reason, again=again))
        await asyncio.to_thread(self._ledger.store_repairs, kept)
        await asyncio.to_thread(self._ledger.forget_repairs, done)

    async def _records(self, pipeline: str, gap_ids: list[str]) -> list[RepairRecord]:
        found: list[RepairRecord] = []
        for start in range(0, len(gap_ids), AT_ONCE):
            part = gap_ids[start : start + AT_ONCE]
            found += await asyncio.to_thread(lambda part=part: self._ledger.repairs(pipeline, gap_ids=part, limit=AT_ONCE))  # type: ignore[misc]
        return found

    def _record(
        self,
        run: Run,
        spec: PipelineSpec,
        gap: Gap,
        before: RepairRecord | None,
        outcome: ItemOutcome,
        reason: str,
        *,
        again: bool,
    ) -> RepairRecord:
        now = self._clock.now()
        attempts = (before.attempts if before else 0) + (outcome in REFUSED_FOR_GOOD or reason == OVERRUN)
        tries = (before.tries if before else 0) + 1
        due = next_attempt(spec.repair, gap_id=gap.id, attempts=attempts, tries=tries, at=now) if again else None
        return RepairRecord(
            gap_id=gap.id,
            pipeline=spec.id,
            attempts=attempts,
            tries=tries,
            outcome=outcome.value,
            reason=reason,
            first_at=before.first_at if before else now,
            last_at=now,
            next_at=due,
            run_id=run.id,
        )

    async def _change(self, pipeline: str, keys: Collection[Key], change: Callable[[Gap], GapChange | None]) -> dict[Key, Gap]:
        """Change open gaps; return them as they are then."""
        left = list(keys)
        found: dict[Key, Gap] = {}
        for _ in range(TRIES):
            again: list[Key] = []
            for start in range(0, len(left), AT_ONCE):
                part = left[start : start + AT_ONCE]
                known = await asyncio.to_thread(self._ledger.open_gaps_for, pipeline, part)
                found.update(known)
                changes = [made for gap in known.values() if (made := change(gap)) is not None]
                stood = await asyncio.to_thread(self._ledger.store_gaps, changes) if changes else ()
                for made, stands in zip(changes, stood, strict=True):
                    if stands:
                        found[made.gap.key] = made.gap
                    else:
                        del found[made.gap.key]
                        again.append(made.gap.key)
            left = again
            if not left:
                return found
        return found | await asyncio.to_thread(lambda: dict(self._ledger.open_gaps_for(pipeline, left)))


def _lean(gap: Gap, texts: dict[str, str]) -> Gap:
    """Let a gap's evidence share texts with that of others."""
    for row in gap.evidence:
        for name, value in row.items():
            if type(value) is str and name != "position":
                row[name] = texts.setdefault(value, value)
    return gap


def _taken(gap: Gap) -> GapChange | None:
    if gap.state is not State.OPEN:
        return None
    return GapChange(gap=repairing(gap), against=gap.revision, event="repairing", state_only=True)
