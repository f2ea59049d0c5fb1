"""What looks after a store or a feed, and what it says: once for ``doctor``, again and again while Gapwatch runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a check measured. ``of``: the pipeline or the store that the metric's only label names."""

    metric: str  # replication_slot_retained_bytes | oplog_window_seconds
    of: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What a preflight found. ``level``: error (data would be lost or nothing would work) | warning | ok | unknown.

    ``unknown``: it could not look, and ``message`` says why; at what ``finding`` names, or, where that is empty, at anything.
    ``hole_to_ms``: the finding is a stretch of the stream that nobody can judge, up to then (ms since the epoch); 0: it is none,
    or one up to now where the finding's kind means loss. ``hole_from_ms``: where it begins; 0: up to where the feed is read.
    """

    level: str
    subject: str  # e.g. "orders.source"
    message: str
    remedy: str = ""
    finding: str = ""
    hole_to_ms: int = 0
    hole_from_ms: int = 0
    table: str = ""  # which of several it is about
    measure: Measure | None = None  # what it rests on


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a check needs to see what changed since it looked last, also while nobody ran. Both calls block: the ledger answers.

    ``recall`` returns what was remembered under a name, None at first; ``proven_ms`` up to when the feed was read, 0: not known.
    """

    recall: Callable[[str], Mapping[str, Any] | None]
    remember: Callable[[str, Mapping[str, Any]], None]
    now_ms: Callable[[], int]
    proven_ms: Callable[[], int]


class Preflight(Protocol):
    @property
    def name(self) -> str:
        """What is looked at: another one for each check of a pipeline, and the same after every start."""

    async def check(self) -> Sequence[Advice]:
        """Return all advice. Raising means: could not check."""

    async def watch(self) -> Sequence[Advice]:
        """Return what names a finding or a measure, as a running service asks for it every few seconds.

        A finding that it had returned and returns no more is over. So where it cannot look it has to say so: it raises, or, where
        it could look at the rest, returns advice of the level ``unknown``; a refusal (a password, a right) is no look either.
        """

    async def close(self) -> None: ...
