"""How often Python looks for cycles in a process that holds or reads very many objects at once."""

from __future__ import annotations

import gc
from typing import Final

COLLECT_AFTER: Final = (50_000, 20, 100)  # objects, and younger collections


def collect_seldom() -> None:
    """Leave what was imported out of it, and look through the rest seldom: it often finds nothing.

    Measured: of a content sweep's CPU a fifth, of ingest's a twelfth, with the native hot path a sixth. A role that is started
    anew leaves out no more: that may be garbage by then.
    """
    if not gc.get_freeze_count():
        gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
