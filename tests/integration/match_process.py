"""One match worker as a process of its own: ``python -m tests.integration.match_process FILE NAME``."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from pathlib import Path

from gapwatch.clock import SystemClock
from gapwatch.roles.match.role import MatchRole


async def main(given: bytes, name: str) -> None:
    settings, fingerprints, tuning = pickle.loads(given)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await MatchRole(settings, fingerprints, SystemClock(), stop=stop, tuning=tuning, name=name).run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2]))
