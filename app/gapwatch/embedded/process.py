"""Child processes that end with their parent, however it dies.

A watchdog process holds the read end of a pipe whose write end only the parent has; when the pipe closes or the parent is gone,
it kills what carries the stack's mark and removes the directory. No signal of the terminal reaches it. (PR_SET_PDEATHSIG would
not do: it goes by the thread that started the child, and a change of user clears it.)
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from gapwatch.embedded.watchdog import MARK, descendants
from gapwatch.errors import EnvironmentLacks, GapwatchError

STOP_SECONDS = 20.0
CLEAN_SECONDS = 120.0  # removing a gigabyte of data takes its time on a busy disk
# What holds a library that the servers need and a small system may lack, by the names of Debian and Ubuntu.
_PACKAGES = {"libcurl.so.4": "libcurl4", "libssl.so.3": "libssl3", "libcrypto.so.3": "libssl3", "liblzma.so.5": "liblzma5"}
_LACKS_LIBRARY = re.compile(r"error while loading shared libraries: ([^\s:]+)")


class Account(TypedDict, total=False):
    """Arguments of ``subprocess`` that run a program as another user."""

    user: str
    group: int
    extra_groups: list[int]


def account(user: str | None) -> Account:
    """Return what runs a program as `user`; nothing special for ``None``. Raises EnvironmentLacks without that account."""
    if user is None:
        return {}
    try:
        return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    except KeyError as error:
        raise EnvironmentLacks(
            f"This machine has no account {user!r}, as which Postgres would run: it refuses to run as root.",
            remedy="Make that account, or run this as another user than root.",
        ) from error


class Watchdog:
    """Ends every process that carries its mark when this process is gone, and removes `directory` where one is given."""

    def __init__(self, directory: Path | None) -> None:
        self.mark = secrets.token_hex(16)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-S", "-E", str(Path(__file__).with_name("watchdog.py"))),
                *(str(os.getpid()), self.mark, str(directory or "")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Let the watchdog end; it kills what still carries the mark."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"goodbye\n")
            self._process.stdin.close()
        except BrokenPipeError:  # somebody killed it
            pass
        self._process.wait(CLEAN_SECONDS)

    def environment(self) -> dict[str, str]:
        """Return the environment of a child: without what would change a server's behaviour, with the mark."""
        dropped = re.compile(r"CLASSPATH|KAFKA_.*|_?JAVA_(TOOL_)?OPTIONS|JDK_JAVA_OPTIONS|PG[A-Z]+|LC_.*|LANG")
        kept = {name: value for name, value in os.environ.items() if not dropped.fullmatch(name)}
        return kept | {"LC_ALL": "C", MARK: self.mark}


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
                cwd=cwd,
                env=watchdog.environment(),
                **account(user),
            )
        self._frozen: list[int] = []
        self._lock = threading.Lock()

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

    def kill(self) -> None:
        """End the process and its descendants at once."""
        if self._process.poll() is not None:
            return  # its id may be somebody else's by now
        pids = [self.pid, *descendants(self.pid)]
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        until = time.monotonic() + STOP_SECONDS
        while any(Path(f"/proc/{pid}").exists() for pid in pids[1:]) and time.monotonic() < until:
            time.sleep(0.02)
        self._frozen = []

    def pause(self) -> None:
        """Freeze the process and its descendants (SIGSTOP)."""
        with self._lock:
            self._frozen = [self.pid, *descendants(self.pid)] if self.alive else []
            for pid in self._frozen:
                _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        with self._lock:
            for pid in self._frozen:
                _signal(pid, signal.SIGCONT)
            self._frozen = []


def run_once(command: Sequence[str], watchdog: Watchdog, *, user: str | None = None, cwd: Path) -> str:
    """Run a program to its end; return what it printed. Raises GapwatchError with that when it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=cwd,
        env=watchdog.environment(),
        **account(user),
    )
    if done.returncode:
        _refuse_lacking_library(Path(command[0]).name, done.stdout)
        raise GapwatchError(f"{Path(command[0]).name} failed:\n{done.stdout.strip()}")
    return done.stdout


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def wait_until(ready: Callable[[], bool], what: str, child: Child, log: Path, *, seconds: float) -> None:
    """Call ``ready()`` until it is true. Raises GapwatchError, with the end of the log, when the process ends or is slow."""
    until = time.monotonic() + seconds
    while True:
        answered = ready()
        if not child.alive:  # asked after ready(): what answered may have been somebody else on that port
            said = tail(log)
            _refuse_lacking_library(what, said)
            raise GapwatchError(f"{what} ended at its start:\n{said}", remedy=f"Its log is {log}.")
        if answered:
            return
        if time.monotonic() > until:
            raise GapwatchError(f"{what} was not ready after {seconds:.0f} s:\n{tail(log)}", remedy=f"Its log is {log}.")
        time.sleep(0.05)


def _refuse_lacking_library(what: str, said: str) -> None:
    if found := _LACKS_LIBRARY.search(said):
        package = _PACKAGES.get(found.group(1))
        how = f"On Debian and Ubuntu: apt-get install {package}." if package else "Install it with the system's package manager."
        raise EnvironmentLacks(f"{what} needs the system library {found.group(1)}, which this machine lacks.", remedy=how)


def tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
