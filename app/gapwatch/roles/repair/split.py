"""A sweep of everything that several workers share: cut into ranges of keys, each swept by whoever is free.

The holder of the run cuts it, waits for its parts and ends it; workers take parts from the ledger. A part is a sweep of a range,
with a lease and a cursor of its own: whoever is killed, another one goes on. The run has succeeded when every part has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from gapwatch.core.sweep import PLACE, Scope, SweepOutcome, cut_into
from gapwatch.errors import StoreRefused
from gapwatch.model.gap import Run, RunState, SweepPart
from gapwatch.ports import Clock, DatasetReader, Ledger
from gapwatch.roles.repair.scanning import estimate_of, in_one_order
from gapwatch.roles.repair.sweeps import refuse_cancelled
from gapwatch.roles.repair.trials import MappingTrials
from gapwatch.roles.stores import PipelineStores
from gapwatch.scans import keys_sampled

log = structlog.get_logger(__name__)

MAPPING: Final = "mapping"  # in the cursor of the run: the fingerprint that all of its parts are compared by
LOOK_SECONDS: Final = 1.0
SAMPLED: Final = 40  # keys for each part
OVER: Final = (RunState.SUCCEEDED, RunState.INCONCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitDependencies:
    ledger: Ledger
    trials: MappingTrials
    clock: Clock
    holder: str


class SplitSweep:
    """The holder's side of such a sweep."""

    def __init__(self, dependencies: SplitDependencies) -> None:
        self._on = dependencies

    async def takes(self, run: Run, stores: PipelineStores) -> bool:
        """Whether the run is split, by an earlier holder or, where that can be, now.

        While the mapping is on trial nothing is split: the trial looks at the sweep as a whole. Raises StoreUnreachable,
        ConflictError.
        """
        ledger, holder = self._on.ledger, self._on.holder
        if await asyncio.to_thread(ledger.parts, run.id):
            return True
        wanted = stores.spec.sweep.parts
        if wanted < 2 or run.request.get("range", Scope.FULL) != Scope.FULL or PLACE in run.cursor:
            return False
        if not await in_one_order(stores):
            return False
        if run.request.get("content") and not await self._on.trials.is_over(stores):
            return False
        try:
            ranges = cut_into(wanted, await keys_sampled(stores.source, wanted * SAMPLED))
        except StoreRefused as error:  # it can be read, and not be sampled
            log.warning("sweep_not_split", pipeline=run.pipeline, run=run.id, reason=error.message)
            return False
        if len(ranges) < 2:
            return False
        parts = [SweepPart(run_id=run.id, number=at, lower=lower, upper=upper) for at, (lower, upper) in enumerate(ranges, 1)]
        # What was known before anything is read has to be on record before anybody may read.
        begun = replace(run, cursor={**run.cursor, MAPPING: stores.mapping.fingerprint})
        await asyncio.to_thread(ledger.update_run, begun, holder=holder)
        await asyncio.to_thread(ledger.split_run, run.id, parts, holder=holder)
        log.info("sweep_split", pipeline=run.pipeline, run=run.id, parts=len(parts))
        return True

    async def carry_out(self, run: Run, stores: PipelineStores) -> Run:
        """Wait for all parts; return the run as it ended (it is stored as well). Raises ConflictError when it was cancelled."""
        ledger, clock = self._on.ledger, self._on.clock
        stored = await asyncio.to_thread(ledger.run, run.id)
        run = run if stored is None else replace(stored, fencing=run.fencing)  # with what was put on record when it was split
        started = run.started_at or clock.now()
        estimate = await estimate_of(stores.source) + await estimate_of(stores.target)
        while True:
            parts = await asyncio.to_thread(ledger.parts, run.id)
            counts = _counts(parts)
            if all(part.state in OVER for part in parts):
                break
            await refuse_cancelled(ledger, run.id)
            run = replace(run, counts=counts, progress=_progress(counts, estimate))
            await asyncio.to_thread(ledger.update_run, run, holder=self._on.holder)
            await clock.sleep(LOOK_SECONDS)
        outcome = SweepOutcome(
            complete=True,  # as far as a part says nothing else
            undecided=0,
            emptiness_proved=await _is_proved(stores.source, counts["source_keys"])
            and await _is_proved(stores.target, counts["target_keys"]),
            identity_stable=_is_one(parts, "expected") and _is_one(parts, "observed"),
        )
        errors = [reason] if (reason := other_mapping(run, stores)) else []
        errors += [part.error or "A part of it is inconclusive." for part in parts if part.state is not RunState.SUCCEEDED]
        succeeded = outcome.conclusive and not errors
        ended = replace(
            run,
            state=RunState.SUCCEEDED if succeeded else RunState.INCONCLUSIVE,
            error=None if succeeded else " ".join([*errors[:1], outcome.reason()]).strip(),
            counts=counts,
            started_at=started,
            ended_at=clock.now(),
            progress=1.0 if succeeded else _progress(counts, estimate),
        )
        await asyncio.to_thread(ledger.update_run, ended, holder=self._on.holder)
        log.info("sweep_ended", pipeline=ended.pipeline, run=ended.id, state=ended.state.value, **counts)
        return ended


def other_mapping(run: Run, stores: PipelineStores) -> str:
    """Return why this process cannot take part in a sweep that was split: what it compares is not what the others do."""
    if run.cursor.get(MAPPING) == stores.mapping.fingerprint:
        return ""
    return "The mapping is another one than when the sweep began: a worker's configuration was changed meanwhile."


def _counts(parts: Sequence[SweepPart]) -> dict[str, int]:
    counts = Counter({"source_keys": 0, "target_keys": 0})
    for part in parts:
        counts.update(part.counts)
    return {**counts, "parts": len(parts), "parts_over": sum(part.state in OVER for part in parts)}


def _progress(counts: dict[str, int], estimate: int) -> float:
    """Return the share that is done: of the parts, or of what the stores say that they hold, whichever is more."""
    read = counts["source_keys"] + counts["target_keys"]
    return min(0.999, max(counts["parts_over"] / counts["parts"], read / max(estimate, read, 1) if estimate else 0.0))


async def _is_proved(reader: DatasetReader, keys: int) -> bool:
    """Whether what showed no keys at all is empty: a second query has to say so too."""
    return bool(keys) or await reader.is_empty()


def _is_one(parts: Sequence[SweepPart], side: str) -> bool:
    """Whether all parts read one and the same object."""
    return len({part.cursor.get("identities", {}).get(side) for part in parts} - {None}) <= 1
