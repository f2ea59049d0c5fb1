"""The state ``repairing``: which gaps a backfill has in hand, and what becomes of those that it did not resolve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from gapwatch.core.autorepair import DONE, next_attempt
from gapwatch.core.backfill import OVERRUN, ItemOutcome
from gapwatch.core.gaps import repairing, set_down
from gapwatch.model.gap import Gap, RepairRecord, Run, State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, GapChange, Key, Ledger

AT_ONCE = 2_000  # keys
TRIES = 3  # at a gap that somebody else changes at the same moment
REFUSED_FOR_GOOD = frozenset({ItemOutcome.FAILED, ItemOutcome.REFUSED})

Outcomes = Mapping[Key, tuple[ItemOutcome, str]]


class Holding:
    """Gaps of one ledger that are under repair."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def take(self, run: Run, keys: Sequence[Key]) -> Mapping[Key, Gap]:
        """Set the open gaps of up to ``AT_ONCE`` keys to ``repairing``; return all that are not resolved.

        Acknowledged ones stay so.
        """
        return await self._change(run.pipeline, keys, _taken)

    async def set_down(self, pipeline: str, keys: Iterable[Key], outcomes: Outcomes) -> frozenset[Key]:
        """Set what is ``repairing`` back to ``open``, with the reason where its repair was refused.

        Returns the keys whose gaps are not resolved. They are read a part at a time: it may be all of them.
        """

        def change(gap: Gap) -> GapChange | None:
            if gap.state is not State.REPAIRING:
                return None
            outcome, reason = outcomes.get(gap.key, (ItemOutcome.PLANNED, ""))
            refused = outcome in REFUSED_FOR_GOOD
            changed = set_down(gap, reason if refused else "")
            event = "repair_refused" if refused else "updated"
            return GapChange(gap=changed, against=gap.revision, event=event, state_only=True)

        left: set[Key] = set()
        for part in _parts(keys):
            left |= (await self._change(pipeline, part, change)).keys()
        return frozenset(left)

    async def remember(self, run: Run, spec: PipelineSpec, outcomes: Outcomes, *, again: bool) -> None:
        """Keep what failed and is still open, with the time of its next attempt; forget what came off.

        Args:
            run: The run that tried.
            spec: The pipeline.
            outcomes: What became of each key that it came to.
            again: Whether anybody tries again by himself.
        """
        for part in _parts(outcomes):
            await self._remember(run, spec, part, outcomes, again=again)

    async def _remember(self, run: Run, spec: PipelineSpec, keys: Sequence[Key], outcomes: Outcomes, *, again: bool) -> None:
        gaps = await asyncio.to_thread(self._ledger.open_gaps_for, spec.id, keys)
        ids = [gap.id for gap in gaps.values()]
        records = await asyncio.to_thread(lambda: self._ledger.repairs(spec.id, gap_ids=ids, limit=AT_ONCE)) if ids else ()
        known = {record.gap_id: record for record in records}
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

    async def _change(self, pipeline: str, keys: Sequence[Key], change: Callable[[Gap], GapChange | None]) -> dict[Key, Gap]:
        """Change open gaps; return them as they are then."""
        left = keys
        found: dict[Key, Gap] = {}
        for _ in range(TRIES):
            known = await asyncio.to_thread(self._ledger.open_gaps_for, pipeline, left)
            found.update(known)
            changes = [made for gap in known.values() if (made := change(gap)) is not None]
            stood = await asyncio.to_thread(self._ledger.store_gaps, changes) if changes else ()
            again: list[Key] = []
            for made, stands in zip(changes, stood, strict=True):
                if stands:
                    found[made.gap.key] = made.gap
                else:
                    del found[made.gap.key]
                    again.append(made.gap.key)
            if not again:
                return found
            left = again
        return found | await asyncio.to_thread(lambda: dict(self._ledger.open_gaps_for(pipeline, left)))


def _parts(keys: Iterable[Key]) -> Iterator[Sequence[Key]]:
    left = iter(keys)
    while part := list(islice(left, AT_ONCE)):
        yield part


def _taken(gap: Gap) -> GapChange | None:
    if gap.state is not State.OPEN:
        return None
    return GapChange(gap=repairing(gap), against=gap.revision, event="repairing", state_only=True)
