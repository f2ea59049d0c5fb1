"""One match worker as a process of its own: ``python -m tests.integration.match_process FILE NAME``."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

from gapwatch.clock import SystemClock
from gapwatch.parent import end_with_parent
from gapwatch.roles.match.role import MatchRole


def tell_tasks() -> None:
    """Print where every task waits, outermost frame first."""
    for task in asyncio.all_tasks():
        print(f"--- {task.get_name()}", file=sys.stderr)
        awaited: Any = task.get_coro()
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or getattr(awaited, "ag_frame", None)
            if frame is not None:
                print(f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}", file=sys.stderr)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    sys.stderr.flush()


async def main(given: bytes, name: str) -> None:
    settings, fingerprints, tuning = pickle.loads(given)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, tell_tasks)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await MatchRole(settings, fingerprints, SystemClock(), stop=stop, tuning=tuning, name=name).run()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2]))
