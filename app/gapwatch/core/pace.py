"""How large a backfill's batches are and how long it pauses between them: fixed, or by what the target can take. Pure.

Adaptive is additive increase, multiplicative decrease, as in congestion control: while documents are written about as fast as
they were at best, batches grow and pauses shrink; when they take more than twice as long, or the target refuses some, both fall
back at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from gapwatch.model.pipeline import BatchSpec

SPREAD: Final = 10  # batches become so many times as large or as small as they were set to, pauses so many times as long
SLOW: Final = 2.0  # times the best time a document took so far
FORGET: Final = 1.02  # what was best long ago counts for less
SHORTEST_SECONDS: Final = 0.01  # below it a pause is none
LONGEST_SECONDS: Final = 5.0


@dataclass(slots=True)
class Pace:
    """``limits``: what the next batch may hold, and the pause after it. ``best``: seconds a document took, at best."""

    spec: BatchSpec
    limits: BatchSpec
    best: float | None = None

    @classmethod
    def of(cls, spec: BatchSpec) -> Pace:
        return cls(spec=spec, limits=spec)

    def took(self, seconds: float, *, documents: int, failed: int) -> None:
        """Learn from a batch of so many documents, so many of which were refused or failed; fixed paces learn nothing."""
        if not self.spec.adaptive or not documents:
            return
        each = seconds / documents
        slow = self.best is not None and each > SLOW * self.best
        self.best = each if self.best is None else min(each, self.best * FORGET)
        if failed or slow:
            self._fall_back()
        else:
            self._go_on()

    def _fall_back(self) -> None:
        spec, now = self.spec, self.limits
        longest = max(spec.pause_seconds * SPREAD, LONGEST_SECONDS)
        pause = min(longest, 2 * max(now.pause_seconds, spec.pause_seconds, SHORTEST_SECONDS))
        self.limits = replace(now, documents=max(1, spec.documents // SPREAD, now.documents // 2), pause_seconds=pause)

    def _go_on(self) -> None:
        spec, now = self.spec, self.limits
        documents = min(spec.documents * SPREAD, now.documents + max(1, spec.documents // 2))
        pause = now.pause_seconds / 2 if now.pause_seconds / 2 >= SHORTEST_SECONDS else 0.0
        self.limits = replace(now, documents=documents, pause_seconds=pause)
