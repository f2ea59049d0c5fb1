"""Every error that Gapwatch raises on purpose.

GapwatchError                 base: a sentence, and a remedy where there is one
├── ConfigError               the configuration is wrong; holds every problem found        exit code 2
├── UsageError                the command was used wrongly                                 exit code 2
│   └── EnvironmentLacks      this machine lacks something that the real parts need
├── NotFoundError             the named thing does not exist                               exit code 2
├── ConflictError             somebody else is doing it, or was faster                     exit code 2
├── StoreError                a store refused or failed                                    exit code 3
│   ├── StoreUnreachable      no answer: retriable, says nothing about the data
│   └── StoreRefused          an answer that waiting does not change: no right, no such table
├── FeedError                 a stream cannot be read on                                   exit code 3
│   └── HistoryLost           the position lies outside what the store still holds
├── RecordError               one record cannot be understood; it goes to the dead-letter topic
│   └── KeyMisfit         its key does not fit the codec
└── ProtocolError             our own state or records contradict themselves: the process must stop
"""

from __future__ import annotations

from typing import ClassVar


class GapwatchError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: One sentence that says what is wrong, without secrets.
        remedy: One sentence that says what to do about it, or ``""``.
    """

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class UsageError(GapwatchError):
    exit_code = 2


class EnvironmentLacks(UsageError):  # noqa: N818 - reads as a state of the machine
    """This machine lacks something that the embedded parts need: says what, and how to get it."""


class NotFoundError(GapwatchError):
    exit_code = 2


class ConflictError(GapwatchError):
    """Another run or writer was there first; ``running_id`` names it where known."""

    exit_code = 2

    def __init__(self, message: str, *, remedy: str = "", running_id: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.running_id = running_id


class StoreError(GapwatchError):
    """A store refused or failed. ``store`` is its configured name."""

    def __init__(self, message: str, *, store: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.store = store


class StoreUnreachable(StoreError):  # noqa: N818 - reads as a state of the store
    retriable = True


class StoreBusy(StoreUnreachable):
    """A store answers, and has too much to do for this request; the same one may be made again a little later."""


class StoreRefused(StoreError):  # noqa: N818
    pass


class FeedError(GapwatchError):
    pass


class HistoryLost(FeedError):  # noqa: N818
    """The stored position lies outside what the store or the topic still holds."""


class RecordError(GapwatchError):
    """One raw record cannot be understood. ``reason`` is a short stable label (metrics, dead-letter header)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KeyMisfit(RecordError):  # noqa: N818
    """A key does not fit its codec; it is never coerced."""

    def __init__(self, message: str) -> None:
        super().__init__("key_misfit", message)


class ProtocolError(GapwatchError):
    """Our own records or state contradict themselves. The process must stop; a supervisor restarts it."""


class ConfigProblem:
    """One thing wrong with the configuration: where, what, and what to do."""

    __slots__ = ("line", "message", "place", "remedy")

    def __init__(self, place: str, message: str, *, remedy: str = "", line: int | None = None) -> None:
        self.place = place
        self.message = message
        self.remedy = remedy
        self.line = line

    def __str__(self) -> str:
        where = f"line {self.line}, {self.place}" if self.line is not None else self.place
        return f"{where}: {self.message} {self.remedy}".rstrip()


class ConfigError(GapwatchError):
    """The configuration is wrong. ``problems`` holds all of them, not only the first."""

    exit_code = 2

    def __init__(self, problems: list[ConfigProblem], *, file: str = "gapwatch.yaml") -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{file} has {count}:\n{lines}")
        self.problems = problems
        self.file = file
