"""JSON with exact numbers: whole ones of any size, all others as ``Decimal``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from gapwatch.core.values import Other


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """Return the value of JSON text; a number beyond all decimals, which JSON may hold, is an ``Other``, with `strict` an error.

    Raises ValueError where it is no JSON; because of a RecursionError where it is nested too deep for the reader.
    """
    try:
        try:
            return _EXACT.decode(text)
        except InvalidOperation as error:
            if strict:
                raise ValueError("A number is beyond all decimals.") from error
            return _BEYOND.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _number(text: str) -> Decimal | Other:
    try:
        return Decimal(text)
    except InvalidOperation:
        return Other("number", text)


_EXACT: Final = msgspec.json.Decoder(float_hook=Decimal)
_BEYOND: Final = msgspec.json.Decoder(float_hook=_number)
