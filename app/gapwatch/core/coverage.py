"""Coverage: the share of closed expected writes that were proven either way."""

from __future__ import annotations


def ratio(*, settled: int, superseded: int, gap: int, unverifiable: int) -> float | None:
    """Return (settled + superseded + gap) / all closed writes; None when none is closed yet."""
    proven = settled + superseded + gap
    closed = proven + unverifiable
    return proven / closed if closed else None
