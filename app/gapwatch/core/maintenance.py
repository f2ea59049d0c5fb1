"""Maintenance windows: times in which a pipeline is expected to be disturbed, and nobody is to be told. All times are UTC."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

_REPEATED: Final = re.compile(r"(?P<cron>\S+ \S+ \S+ \S+ \S+) for (?P<amount>\d+)(?P<unit>m|h|d)")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_LONGEST: Final = timedelta(days=31)
EXAMPLES: Final = '"0 2 * * sun for 2h" or "2027-01-05T18:00:00Z/2027-01-05T20:00:00Z"'


def _croniter() -> Any:
    from croniter import croniter  # 10 ms of a start, and only windows that repeat need it

    return croniter


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stretch of time, half-open."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceSpec:
    """As configured (``text``): either one ``window``, or ``cron`` (five fields, when one begins) and how long it ``lasts``."""

    text: str
    window: Window | None = None
    cron: str = ""
    lasts: timedelta = timedelta()

    @classmethod
    def parse(cls, text: str) -> MaintenanceSpec:
        """Read ``CRON for DURATION`` or ``START/END`` (RFC 3339). Raises ValueError with what is wrong."""
        written = text.strip()
        if found := _REPEATED.fullmatch(" ".join(written.split())):
            lasts = int(found["amount"]) * _UNITS[found["unit"]]
            if not _croniter().is_valid(found["cron"]):
                raise ValueError(f"{found['cron']!r} is no cron expression of five fields")
            if not timedelta() < lasts <= _LONGEST:
                raise ValueError("a window lasts from a minute to 31 days")
            return cls(text=written, cron=found["cron"], lasts=lasts)
        start, separator, end = written.partition("/")
        if not separator:
            raise ValueError("it is neither CRON for DURATION nor START/END")
        window = Window(start=_time(start), end=_time(end))
        if window.start >= window.end:
            raise ValueError("it ends before it begins")
        return cls(text=written, window=window)

    def at(self, now: datetime) -> Window | None:
        """Return the window that `now` lies in; of repeated ones that overlap, from the earliest that still lasts."""
        if self.window is not None:
            return self.window if self.window.start <= now < self.window.end else None
        begun = now + timedelta(microseconds=1)
        found: Window | None = None
        starts = _croniter()(self.cron, begun)
        while True:
            start = starts.get_prev(datetime)
            if start + self.lasts <= now if found is None else start + self.lasts < found.start:
                return found
            found = Window(start=start, end=found.end if found is not None else start + self.lasts)
            if now - found.start > _LONGEST:
                return found


@cache
def specs_of(texts: tuple[str, ...]) -> tuple[MaintenanceSpec, ...]:
    """Return a pipeline's windows, whose texts the configuration has checked."""
    return tuple(MaintenanceSpec.parse(text) for text in texts)


def window_at(specs: Sequence[MaintenanceSpec], now: datetime) -> tuple[MaintenanceSpec, Window] | None:
    """Return the configured window that `now` lies in, the one that began first; None outside of all."""
    inside = [(spec, window) for spec in specs if (window := spec.at(now)) is not None]
    return min(inside, key=lambda found: found[1].start, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Why nothing is opened or repaired now, and since when."""

    reason: str
    since: datetime


def quiet_at(maintenance: tuple[str, ...], paused: Mapping[str, Any] | None, now: datetime) -> Quiet | None:
    """Return whether a pipeline is to be left alone: because somebody paused it, or in one of its windows.

    Args:
        maintenance: Its windows, as configured.
        paused: What was stored when it was paused: ``reason``, and ``at`` in RFC 3339.
        now: An aware time.
    """
    found = window_at(specs_of(maintenance), now)
    since = [found[1].start] if found is not None else []
    if paused:
        return Quiet(reason=str(paused["reason"]), since=min([_time(str(paused["at"])), *since]))
    if found is None:
        return None
    return Quiet(reason=f"maintenance until {found[1].end:%Y-%m-%d %H:%M} UTC ({found[0].text})", since=since[0])


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no time like 2027-01-05T18:00:00Z") from None
    if found.tzinfo is None:
        raise ValueError(f"{text.strip()!r} names no offset: write Z for UTC")
    return found.astimezone(UTC)
