"""Child processes that end with their parent, however it dies.

A watchdog process holds the read end of a pipe whose write end only the parent has. The parent says which processes live; when
the pipe closes, the watchdog kills what is left and removes the directory. No signal of the terminal reaches it.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from gapwatch.errors import GapwatchError

STOP_SECONDS = 20.0


class Watchdog:
    """Kills the registered processes when this process is gone."""

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(Path(__file__).with_name("watchdog.py")), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, pid: int) -> None:
        self._send(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        self._send(f"-{pid}\n")

    def close(self) -> None:
        """Let the watchdog end; it cleans up what is still registered."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(STOP_SECONDS)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class Child:
    """One process in a session of its own, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, watchdog: Watchdog, *, user: str | None = None, cwd: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                cwd=cwd,
                env=_environment(),
            )
        self._watchdog = watchdog
        self._stopped: list[int] = []
        watchdog.add(self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process with `how`, and with SIGKILL if that takes longer than 20 seconds."""
        self.resume()
        if self.alive:
            self._process.send_signal(how)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._watchdog.remove(self.pid)

    def kill(self) -> None:
        """End the process and its descendants at once."""
        pids = [self.pid, *descendants(self.pid)]
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        until = time.monotonic() + STOP_SECONDS
        while any(Path(f"/proc/{pid}").exists() for pid in pids[1:]) and time.monotonic() < until:
            time.sleep(0.02)
        self._watchdog.remove(self.pid)
        self._stopped = []

    def pause(self) -> None:
        """Freeze the process and its descendants (SIGSTOP)."""
        self._stopped = [self.pid, *descendants(self.pid)]
        for pid in self._stopped:
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._stopped:
            _signal(pid, signal.SIGCONT)
        self._stopped = []


def _environment() -> dict[str, str]:
    """Return the environment without what would change a server's behaviour."""
    dropped = (
        "JAVA_TOOL_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "CLASSPATH",
        "KAFKA_OPTS",
        "PGDATA",
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
    )
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"LC_ALL": "C"}


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def descendants(pid: int) -> list[int]:
    """Return the process ids below `pid` (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
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


def wait_until(ready: object, what: str, child: Child, log: Path, *, seconds: float) -> None:
    """Call ``ready()`` until it is true. Raises GapwatchError, with the end of the log, when the process ends or is slow."""
    assert callable(ready)
    until = time.monotonic() + seconds
    while not ready():
        if not child.alive:
            raise GapwatchError(f"{what} ended at its start:\n{tail(log)}", remedy=f"Its log is {log}.")
        if time.monotonic() > until:
            raise GapwatchError(f"{what} was not ready after {seconds:.0f} s:\n{tail(log)}", remedy=f"Its log is {log}.")
        time.sleep(0.05)


def tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
