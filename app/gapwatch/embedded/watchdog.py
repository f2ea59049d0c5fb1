"""Run as a script by :mod:`gapwatch.embedded.process`: kills the processes it was told of when its standard input closes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time


def main() -> None:
    """Read ``+pid`` and ``-pid`` lines until the end, then kill what is left and remove the directory given."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    alive: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            alive.add(pid)
        else:
            alive.discard(pid)
    for pid in alive:
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGCONT)
                kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
    time.sleep(0.5 if alive else 0)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
