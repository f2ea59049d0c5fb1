"""What one sweep needs from around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gapwatch.ports import Clock, Ledger
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
