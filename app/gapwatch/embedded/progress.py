"""Progress of downloads on standard error: one line with a bar for each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from types import TracebackType

WIDTH = 20
_LOCK = threading.Lock()
_SHOWN: list[Progress] = []


class Progress:
    """Counts `total` steps of `what`. Several may run at once: they share the terminal's line."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self._what = what
        self._total = total
        self._say = say
        self._done = 0
        self._bar = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._bar:
            with _LOCK:
                _SHOWN.append(self)
                _draw()
        else:
            self._say(f"Fetching {self._what}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._bar:
            return
        with _LOCK:
            _SHOWN.remove(self)
            how = "Fetched" if error is None else "Could not fetch"
            sys.stderr.write(f"\r\x1b[2K{how} {self._what}\n")
            _draw()

    def advance(self) -> None:
        with _LOCK:
            self._done += 1
            if self._bar:
                _draw()

    def __str__(self) -> str:
        if self._total == 1:  # one package: its size is not known before
            return f"{self._what} …"
        filled = WIDTH * self._done // self._total
        return f"{self._what} [{'=' * filled}{' ' * (WIDTH - filled)}] {self._done}/{self._total}"


def _draw() -> None:
    """Write the line of all that is under way; called with the lock held."""
    if _SHOWN:
        line = "Fetching " + " · ".join(str(progress) for progress in _SHOWN)
        sys.stderr.write("\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1])
    sys.stderr.flush()
