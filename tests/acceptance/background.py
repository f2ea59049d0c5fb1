"""What goes on beside a test in a thread of its own: sinks, writers, observers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

READY_SECONDS = 120
END_SECONDS = 90


@dataclass
class Background(ABC):
    """Runs `_run` in a thread until it is stopped; `stop` raises what it failed with. ``announces``: it says when it is ready."""

    announces: ClassVar[bool] = False
    error: BaseException | None = field(default=None, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _ready: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._guarded, name=type(self).__name__.lower(), daemon=True)
        self._thread.start()
        if self.announces:
            assert self._ready.wait(READY_SECONDS), f"{self._thread.name} is not ready: {self.error!r}"

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
        if self.error is not None:
            raise self.error

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    @abstractmethod
    def _run(self) -> None:
        """Do the work, and return soon after `_stop` is set."""
