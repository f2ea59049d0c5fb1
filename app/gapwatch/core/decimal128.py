"""The bits of a Decimal128 whose digits are a binary number, as BSON has it: read and made without the driver's contexts.

Its 16 bytes are little-endian: 113 bits of digits, 14 of the exponent, the sign.
https://github.com/mongodb/specifications/blob/master/source/bson-decimal128/decimal128.md
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

DIGITS_MAX: Final = 34
BIAS: Final = 6_176
_EXPONENT_AT: Final = 113
_SIGN_AT: Final = 127
_BELOW_EXPONENT: Final = (1 << _EXPONENT_AT) - 1
_GREATEST: Final = 10**DIGITS_MAX - 1


def decimal_of(bid: bytes) -> Decimal | None:
    """Return the number of 16 bytes, as the driver makes it digit by digit; None where it is named, or not canonical."""
    bits = int.from_bytes(bid, "little")
    digits = bits & _BELOW_EXPONENT
    if bits >> 125 & 3 == 3 or digits > _GREATEST:
        return None
    sign = "-" if bits >> _SIGN_AT else ""
    return Decimal(f"{sign}{digits}E{(bits >> _EXPONENT_AT & 0x3FFF) - BIAS}")


def bytes_of(digits: int, places: int, *, negative: bool) -> bytes:
    """Return the 16 bytes of a number of up to ``DIGITS_MAX`` digits, of which so many stand behind the point."""
    return (digits | (BIAS - places) << _EXPONENT_AT | negative << _SIGN_AT).to_bytes(16, "little")
