"""Which part of a plan a backfill has in hand: keys under judgement, and gaps from when they are taken until they are closed.

A plan may be of a hundred thousand keys, and a gap with its evidence weighs 2 KB. So gaps are set to ``repairing`` and read as
the turn of their keys comes: more of them whenever the judge has less than one batch that it could read now. What waits, for a
grace or for deliveries, holds up no other key: all of a plan may wait together, as bare keys, whose gaps are read again when
they are judged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

from msgspec.structs import replace

from gapwatch.core.gaps import proof_of
from gapwatch.model.gap import Gap, Run
from gapwatch.ports import Key, Ledger
from gapwatch.roles.repair.holding import AT_ONCE, Holding
from gapwatch.roles.repair.judging import KeyJudge

GAPS_MAX: Final = 2 * AT_ONCE  # that are held with their evidence while their keys wait


class InHand:
    """The gaps of one run's plan, a part at a time. ``gaps``: those that are held; they change with every call.

    Nothing is taken any more after the block's end: what it left is set down then.
    """

    def __init__(self, holding: Holding, ledger: Ledger, run: Run, keys: Iterable[Key]) -> None:
        self.gaps: dict[Key, Gap] = {}
        self._holding = holding
        self._ledger = ledger
        self._run = run
        self._left = deque(keys)
        self._set_aside: dict[Key, tuple[str, int]] = {}  # id and revision of gaps that were taken, and whose keys wait
        self._part: Sequence[Key] = ()  # that is taken beside
        self._taking: asyncio.Task[Mapping[Key, Gap]] | None = None

    def __len__(self) -> int:
        """How many keys of the plan were not put under judgement yet."""
        return len(self._part) + len(self._left)

    @property
    def left(self) -> Sequence[Key]:
        """The keys that were not put under judgement yet."""
        return [*self._part, *self._left]

    def begin_taking(self) -> None:
        """Take the next ones beside what the caller does: a write, above all."""
        if self._taking is None and self._left:
            self._part = [self._left.popleft() for _ in range(min(AT_ONCE, len(self._left)))]
            self._taking = asyncio.create_task(self._holding.take(self._run, self._part))

    async def take_more(self, judge: KeyJudge) -> None:
        """Put more keys under judgement if the judge could read more than it has."""
        if not self or judge.is_busy:
            return
        if len(self.gaps) > GAPS_MAX:
            self._set_waiting_aside(judge)
        self.begin_taking()
        assert self._taking is not None, "there are some left"
        taken, keys = await self._taking, self._part
        self._taking, self._part = None, ()
        self.gaps.update(taken)
        for key in keys:
            gap = taken.get(key)
            judge.add(key, proof=proof_of(gap) if gap is not None else None)

    def _set_waiting_aside(self, judge: KeyJudge) -> None:
        for key in judge.cases:
            if (gap := self.gaps.pop(key, None)) is not None:
                self._set_aside[key] = gap.id, gap.revision

    async def judged(self, keys: Iterable[Key]) -> None:
        """Hold the gaps of keys that were judged, under the revision they were taken with: no later change is closed over."""
        if not (wanted := [key for key in keys if key in self._set_aside]):
            return
        found = await asyncio.to_thread(self._ledger.open_gaps_for, self._run.pipeline, wanted)
        for key in wanted:
            gap_id, revision = self._set_aside.pop(key)
            if key in found and found[key].id == gap_id:
                self.gaps[key] = replace(found[key], revision=revision)

    def held(self, keys: Iterable[Key]) -> Mapping[Key, Gap]:
        """Return the gaps of these keys that are held now, for whoever needs them after they were let go."""
        return {key: self.gaps[key] for key in keys if key in self.gaps}

    def let_go(self, keys: Iterable[Key]) -> None:
        """Hold nothing more of keys whose fate is decided."""
        for key in keys:
            self.gaps.pop(key, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left.clear()
        if self._taking is not None:  # what ended the block is told, not that this failed as well
            await asyncio.gather(self._taking, return_exceptions=True)
            self._taking = None
