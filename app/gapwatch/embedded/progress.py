"""Progress of downloads: a bar on a terminal, one line at the start elsewhere; always on standard error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType


class Progress:
    """Counts `total` steps of `what`."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self._what = what
        self._total = total
        self._say = say
        self._done = 0
        self._lock = threading.Lock()
        self._bar = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if not self._bar:
            self._say(f"Fetching {self._what}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            sys.stderr.write("\n")

    def advance(self) -> None:
        with self._lock:
            self._done += 1
            if self._bar:
                filled = 30 * self._done // self._total
                sys.stderr.write(f"\rFetching {self._what} [{'=' * filled}{' ' * (30 - filled)}] {self._done}/{self._total}")
                sys.stderr.flush()
