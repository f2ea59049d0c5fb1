"""What one sweep needs from around it, and what it may be asked to judge instead of what it would find."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gapwatch.model.gap import Detector, Run
from gapwatch.model.suspect import Suspect
from gapwatch.ports import Clock, Key, Ledger
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.trials import MappingTrials


@dataclass(frozen=True, slots=True, kw_only=True)
class SweeperDependencies:
    ledger: Ledger
    book: Book
    trials: MappingTrials
    clock: Clock
    holder: str
    grace_ms: Callable[[str], int]
    delivered: Callable[[str], Delivered]
    on_compared: Callable[[str, str, int], None]  # pipeline, side, keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Keys that somebody else found, to be judged instead of a scan.

    ``keys``: with what a stream says of each, where that may serve as a proof. ``share``: of the whole work that was done to find
    them. ``conclude``: called before the run ends, with its counts; returns what is to be stored.
    """

    keys: Mapping[Key, Suspect | None]
    detector: Detector
    share: float
    conclude: Callable[[Run], Awaitable[Run]]
