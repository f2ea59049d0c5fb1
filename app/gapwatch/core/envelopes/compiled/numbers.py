"""Canonical text of numbers and times, straight from their usual spellings; None where only the general form can tell.

Equal to the payloads of ``core/canonical.py`` for whatever they do read: a property test compares the two.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from gapwatch.core.canonical import small_int

_PLAIN: Final = re.compile(r"-?[0-9]{1,300}(\.[0-9]{0,300})?", re.ASCII)
_SECOND: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}", re.ASCII)


def whole_text(value: int) -> str:
    """Return an int's canonical text."""
    return small_int(value).decode()


def decimal_of(text: str, scale: int | None) -> str | None:
    """Return a plain decimal's canonical text: digits without trailing zeros, then the power of ten."""
    if _PLAIN.fullmatch(text) is None:
        return None
    sign = "-" if text[0] == "-" else ""
    head, _, fraction = text.removeprefix("-").partition(".")
    if scale is not None and len(fraction) > scale:
        return None  # to be cut or rounded
    fraction = fraction.rstrip("0")
    digits = (head + fraction).lstrip("0")
    if not digits:
        return "0"
    if fraction:
        return f"{sign}{digits}e-{len(fraction)}"
    stripped = digits.rstrip("0")
    return f"{sign}{stripped}e{len(digits) - len(stripped)}" if len(stripped) < len(digits) else f"{sign}{digits}"


def fractions(places: int) -> dict[str, str]:
    """Return what follows a number's whole part, by its decimal places as written: ``50`` → ``5e-1``."""
    found = {}
    for width in range(1, places + 1):
        found["0" * width] = ""
        for number in range(1, 10**width):
            text = f"{number:0{width}d}"
            stripped = text.rstrip("0")
            found[text] = f"{stripped}e-{len(stripped)}"
    return found


def unscaled_text(number: int, scale: int) -> str:
    """Return the canonical text of ``number × 10^-scale``."""
    if not number:
        return "0"
    text = str(number)
    stripped = text.rstrip("0")
    exponent = len(text) - len(stripped) - scale
    return f"{stripped}e{exponent}" if exponent else stripped


def second_of(text: str) -> str | None:
    """Return the seconds since the epoch of ``2026-11-27T02:44:27``, a moment in UTC, as text; None before 1970."""
    if _SECOND.fullmatch(text) is None:
        return None
    try:
        seconds = int(datetime.fromisoformat(f"{text}+00:00").timestamp())
    except ValueError:
        return None
    return str(seconds) if seconds > 0 else None


def thousandths() -> dict[str, str]:
    """Return the digits after ``.441``-like beginnings of a second's fraction."""
    return {f".{number:03d}": f"{number:03d}" for number in range(1_000)}


def further_digits() -> dict[str, str]:
    """Return the fourth to sixth digit of a fraction that ends in Z, by how it goes on after the third: ``7Z`` → ``700``."""
    endings = [f"{number:0{width}d}" for width in range(1, 4) for number in range(10**width)]
    return {"Z": "000"} | {f"{ending}Z": ending.ljust(3, "0") for ending in endings}
