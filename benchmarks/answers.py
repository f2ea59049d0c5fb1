"""What rows have in common: the raw limits, and the check of an answer."""

from __future__ import annotations

import sys
from collections.abc import Collection

from benchmarks import work

LATE_MS = 3_000  # writes so close to the end are not due yet when the streams stop


def limit(name: str, servers: str, keys: int) -> list[str]:
    """Return the command of ``C`` or ``R``."""
    topics = [servers, str(work.records(keys)), work.SOURCE, work.TARGET, str(work.PARTITIONS)]
    return [sys.executable, "-m", "benchmarks.limits", name, *topics]


def fault(suspects: Collection[int], planted: work.Planted, keys: int) -> str:
    """Say what is wrong with an answer; nothing where exactly what was planted is suspected, but for what is not due yet."""
    found, wrong = frozenset(suspects), planted.missing | planted.wrong
    undue = {key for key in wrong if work.written_ms(key) > work.end_time(keys) - LATE_MS}
    if wrong - undue <= found <= wrong:
        return ""
    return f"{len(wrong - undue - found)} missed, {len(found - wrong)} invented"


def check(suspects: Collection[int], planted: work.Planted, keys: int) -> None:
    """The answer counts, not only the speed: end the run where it is wrong."""
    if said := fault(suspects, planted, keys):
        sys.exit(f"wrong answer: {said}")
