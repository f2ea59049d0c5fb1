"""Run as a script by :mod:`gapwatch.embedded.process`: ends what a process started when that process is gone.

What belongs to it carries a mark in its environment, so a process id that was handed out anew is never taken for one of ours,
and a process that was being started when the parent died is found too.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "GAPWATCH_EMBEDDED"
POLL_SECONDS = 1.0
QUIET_SECONDS = 0.3  # a child between fork and exec does not carry the mark yet
GIVE_UP_SECONDS = 15.0


def descendants(pid: int) -> list[int]:
    """Return the process ids below `pid` (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in _processes():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def marked(mark: str) -> list[int]:
    """Return the ids of all processes that carry `mark`."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in _processes():
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def end_all(mark: str, *, quiet_seconds: float) -> None:
    """Kill what carries `mark`, with its descendants, until nothing shows up for `quiet_seconds`."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    quiet_since = time.monotonic()
    while time.monotonic() < give_up:
        mine = marked(mark)
        # Postgres' backends overwrite their environment, and leave their group: only their parent tells whose they are.
        for pid in {*mine, *(below for top in mine for below in descendants(top))}:
            _kill(pid)
        if mine:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since >= quiet_seconds:
            return
        time.sleep(0.02)


def _processes() -> list[Path]:
    return [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _wait(parent: int) -> bool:
    """Return when the parent closed the pipe or is gone; whether it said goodbye."""
    goodbye = False
    while os.getppid() == parent:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            said = os.read(0, 64)
            if not said:
                break
            goodbye = True
    return goodbye


def main() -> None:
    """Arguments: the parent's process id, the mark, the directory to remove (empty: none)."""
    parent, mark, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    goodbye = _wait(parent)
    end_all(mark, quiet_seconds=0.0 if goodbye else QUIET_SECONDS)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
