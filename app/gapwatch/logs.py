"""Log lines: one JSON object each on standard error when it is no terminal, readable ones when it is. No row data, no secrets."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

QUIET_SECONDS = 60.0
MESSAGES_MAX = 1_000  # different ones that are counted


def set_up_logs(level: int = logging.INFO) -> None:
    """Configure structlog and the standard library's logging to write alike, to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Unfailing(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    handler.addFilter(Seldom())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class Unfailing:
    """A stream for log lines: one that cannot be written (a full disk, a reader that is gone) is lost, and stops nobody.

    Lines are written where failures are handled, and in clients' threads: an error there would end what keeps a role running.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class Seldom(logging.Filter):
    """Lets of each message of a library the first, the tenth, the hundredth … through: a client that waits for a broker repeats
    itself many times a second. After a quiet minute a message is new again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is shown; from the tenth on with how often it came."""
        if record.levelno >= logging.CRITICAL or record.exc_info:
            return True
        name = (record.name, str(record.msg))
        count, last = self._seen.get(name, (0, 0.0))
        count = 1 if record.created - last > QUIET_SECONDS else count + 1
        if name in self._seen or len(self._seen) < MESSAGES_MAX:
            self._seen[name] = (count, record.created)
        if str(count).strip("0") != "1":
            return False
        if count > 1:
            record.msg = f"{record.getMessage()} ({count} times)"
            record.args = ()
        return True
