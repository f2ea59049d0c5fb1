"""Times as whole numbers: exact, for any year, with Postgres' infinities. Units are counted from 1970-01-01T00:00:00 UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from gapwatch.core.values import Instant
from gapwatch.model.pipeline import Rounding

INFINITY: Final = "infinity"
NEGATIVE_INFINITY: Final = "-infinity"
MICROS: Final = 1_000_000
DAY_SECONDS: Final = 86_400
PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": MICROS, "ns": 1_000_000_000}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
NAIVE_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - arithmetic on values without a zone
EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
MICROSECOND: Final = timedelta(microseconds=1)

# What Debezium sends for Postgres' infinities: the JDBC driver's constants, read as the unit at hand, or the ends of a long.
INFINITE_FROM: Final = {1: 9_223_372_036_825, 1_000: 9_223_372_036_825_200, MICROS: 9_223_372_036_825_200_000, 10**9: 2**63 - 1}
INFINITE_TO: Final = {1: -9_223_372_036_832, 1_000: -9_223_372_036_832_400, MICROS: -9_223_372_036_832_400_000, 10**9: -(2**63)}
INFINITE_YEAR: Final = 292_278_000  # +292278994 is Java's last moment; Postgres' years end with 294276
INFINITE_DAYS: Final = 2_147_400_000

_ISO: Final = re.compile(
    r"(?P<year>[+-]?\d{4,9})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,12}))?)?"
    r"\s?(?P<zone>Z|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)?)?",
    re.ASCII,
)
_TIME: Final = re.compile(
    r"(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,12}))?)?\s?(?P<zone>Z|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def days_from_civil(year: int, month: int, day: int) -> int:
    """Return days since 1970-01-01 in the proleptic Gregorian calendar, for any year (0 is 1 BC); ValueError for no such day."""
    if not 1 <= month <= 12 or not 1 <= day <= _days_in_month(year, month):
        raise ValueError(f"{year}-{month}-{day} is no day")
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + day_of_year - 719_468


def _days_in_month(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def civil_from_days(days: int) -> tuple[int, int, int]:
    """Return (year, month, day) of a day number; the inverse of :func:`days_from_civil`."""
    era, of_era = divmod(days + 719_468, 146_097)
    year_of_era = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    day_of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


def rescale(value: int, per_second: int, wanted: int, rounding: Rounding) -> int:
    """Convert between units: truncation drops further digits (floor), rounding goes to the nearest, half up."""
    if per_second <= wanted:
        return value * (wanted // per_second)
    unit = per_second // wanted
    return value // unit if rounding is Rounding.TRUNCATE else (2 * value + unit) // (2 * unit)


def moment_reader(timezone: str, *, ints_per_second: int, ints_zoneless: bool) -> Callable[[Any], Instant | str | None]:
    """Build a reader of timestamps: value → moment, INFINITY, NEGATIVE_INFINITY, or None where it is no timestamp.

    Args:
        timezone: Zone of values that carry none.
        ints_per_second: Unit of whole numbers.
        ints_zoneless: Whether whole numbers are wall-clock readings written as if they were UTC (Debezium's for
            ``timestamp without time zone``) rather than moments.
    """
    zone = _zone(timezone)

    def read(value: Any) -> Instant | str | None:
        if isinstance(value, datetime):
            return _from_datetime(value, zone)
        if isinstance(value, bool):
            return None
        if isinstance(value, int):
            return _from_int(int(value), ints_per_second, zone if ints_zoneless else None)
        if isinstance(value, str):
            return _from_text(value, zone)
        if isinstance(value, Instant):
            return value
        if type(value).__name__ == "DatetimeMS":  # bson's moment outside Python's years
            return Instant(int(value), 1_000)
        if isinstance(value, date):
            return _localised((value.toordinal() - EPOCH_ORDINAL) * DAY_SECONDS, 1, zone)
        return None

    return read


def midnight_reader(timezone: str, otherwise: Callable[[Any], Instant | str | None]) -> Callable[[Any], Instant | str | None]:
    """Build a reader of timestamps of which whole numbers are days: midnight in the zone, as `moment_reader` reads dates."""
    zone = _zone(timezone)

    def read(value: Any) -> Instant | str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return otherwise(value)
        days = read_days(value)
        return _localised(days * DAY_SECONDS, 1, zone) if isinstance(days, int) else days

    return read


def _zone(timezone: str) -> ZoneInfo | None:
    return None if timezone in ("UTC", "Etc/UTC", "Z") else ZoneInfo(timezone)


def _from_datetime(value: datetime, zone: ZoneInfo | None) -> Instant:
    if value.tzinfo is None:
        if zone is None:
            return Instant((value - NAIVE_EPOCH) // MICROSECOND, MICROS)
        value = value.replace(tzinfo=zone)
    return Instant((value - EPOCH) // MICROSECOND, MICROS)


def _from_int(value: int, per_second: int, zone: ZoneInfo | None) -> Instant | str:
    if value >= INFINITE_FROM[per_second]:
        return INFINITY
    if value <= INFINITE_TO[per_second]:
        return NEGATIVE_INFINITY
    return _localised(value, per_second, zone)


def _localised(value: int, per_second: int, zone: ZoneInfo | None) -> Instant:
    """Turn a wall-clock reading of `zone` into the moment; of the two readings of a repeated hour it is the first."""
    if zone is None:
        return Instant(value, per_second)
    seconds, rest = divmod(value, per_second)
    try:
        local = NAIVE_EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return Instant(value, per_second)  # outside Python's years no zone has rules
    moment = (local.replace(tzinfo=zone) - EPOCH) // timedelta(seconds=1)
    return Instant(moment * per_second + rest, per_second)


def _from_text(text: str, zone: ZoneInfo | None) -> Instant | str | None:
    found = _ISO.fullmatch(text)
    if found is None:
        return _infinite(text)
    year = int(found["year"])
    if abs(year) >= INFINITE_YEAR:
        return INFINITY if year > 0 else NEGATIVE_INFINITY
    try:
        seconds = days_from_civil(year, int(found["month"]), int(found["day"])) * DAY_SECONDS + _clock(found)
    except ValueError:
        return None
    fraction = found["fraction"] or ""
    per_second: int = 10 ** len(fraction)
    value = seconds * per_second + int(fraction or 0)
    if found["zone"] is None:
        return _nine_digits(_localised(value, per_second, zone))
    return _nine_digits(Instant(value - _offset_seconds(found["zone"]) * per_second, per_second))


def _nine_digits(moment: Instant) -> Instant:
    """Bring a decimal unit to one of s, ms, us, ns (or finer), so that units divide each other."""
    for per_second in (1, 1_000, MICROS, 10**9, 10**12):
        if moment.per_second <= per_second:
            return Instant(moment.value * (per_second // moment.per_second), per_second)
    raise ValueError(moment)


def _infinite(text: str) -> str | None:
    lowered = text.lower()
    if lowered in ("infinity", "+infinity", "positive_infinity"):
        return INFINITY
    return NEGATIVE_INFINITY if lowered in ("-infinity", "negative_infinity") else None


def _clock(found: re.Match[str]) -> int:
    hour, minute, second = int(found["hour"] or 0), int(found["minute"] or 0), int(found["second"] or 0)
    if minute > 59 or second > 60 or hour > 24 or (hour == 24 and (minute or second)):
        raise ValueError(found.group())
    return hour * 3_600 + minute * 60 + second


def _offset_seconds(zone: str) -> int:
    if zone == "Z":
        return 0
    digits = zone[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * 3_600 + int(digits[2:4]) * 60 + int(digits[4:6])
    return -seconds if zone[0] == "-" else seconds


def read_days(value: Any) -> int | str | None:
    """Return a date as days since 1970-01-01, INFINITY or NEGATIVE_INFINITY; None where it is no date.

    A timestamp counts as a date only at midnight UTC (how stores without a date type keep one). Whole numbers are days.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        if abs(value) >= INFINITE_DAYS:
            return INFINITY if value > 0 else NEGATIVE_INFINITY
        return int(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.toordinal() - EPOCH_ORDINAL
    moment = _from_datetime(value, None) if isinstance(value, datetime) else value
    if isinstance(value, str):
        moment = _from_text(value, None)
    elif type(value).__name__ == "DatetimeMS":  # bson's moment outside Python's years
        moment = Instant(int(value), 1_000)
    if isinstance(moment, str):
        return moment
    if not isinstance(moment, Instant):
        return None
    days, rest = divmod(moment.value, DAY_SECONDS * moment.per_second)
    return None if rest else days


def read_time(value: Any, ints_per_second: int) -> Instant | None:
    """Return a time of day as units since midnight (UTC where it carries an offset); None where it is none."""
    if isinstance(value, time):
        micros = ((value.hour * 60 + value.minute) * 60 + value.second) * MICROS + value.microsecond
        offset = value.utcoffset()
        return Instant(micros if offset is None else (micros - offset // MICROSECOND) % (DAY_SECONDS * MICROS), MICROS)
    if isinstance(value, timedelta):
        return Instant(value // MICROSECOND, MICROS)
    if isinstance(value, int) and not isinstance(value, bool):
        return Instant(int(value), ints_per_second)
    if not isinstance(value, str) or (found := _TIME.fullmatch(value)) is None:
        return None
    try:
        seconds = _clock(found)
    except ValueError:
        return None
    fraction = found["fraction"] or ""
    per_second: int = 10 ** len(fraction)
    units = seconds * per_second + int(fraction or 0)
    if found["zone"] is not None:
        units = (units - _offset_seconds(found["zone"]) * per_second) % (DAY_SECONDS * per_second)
    return _nine_digits(Instant(units, per_second))


def iso_date(days: int) -> str:
    year, month, day = civil_from_days(days)
    return f"{year:04d}-{month:02d}-{day:02d}"


def iso_time(value: int, per_second: int) -> str:
    seconds, rest = divmod(value, per_second)
    width = len(str(per_second)) - 1
    fraction = f".{rest:0{width}d}" if width else ""
    return f"{seconds // 3_600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"


def iso_moment(value: int, per_second: int) -> str:
    days, rest = divmod(value, DAY_SECONDS * per_second)
    return f"{iso_date(days)}T{iso_time(rest, per_second)}Z"
