"""Resume tokens, as far as they are needed: a key string that begins with the cluster time.

Layout (the server's ``ResumeToken``): timestamp (0x82, eight bytes), version, kind of token, operation within the transaction,
then what tells events of one operation apart. Whole numbers are 0x29 for 0, else 0x2B … 0x32 by their number of bytes, big
endian, shifted left by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

TIMESTAMP: Final = 0x82
ZERO: Final = 0x29
ONE_BYTE: Final = 0x2B


def cluster_time(token: Mapping[str, Any]) -> int:
    """Return the cluster time that the token stands at, seconds << 32 | increment; 0 where it says none."""
    raw = _raw(token)
    return int.from_bytes(raw[1:9], "big") if len(raw) >= 9 and raw[0] == TIMESTAMP else 0


def operation_index(token: Mapping[str, Any]) -> int | None:
    """Return which operation of its transaction an event's token stands at, None where the layout is not the known one."""
    raw = _raw(token)
    if len(raw) < 9 or raw[0] != TIMESTAMP:
        return None
    at, number = 9, 0
    for _ in range(3):  # version, kind, operation
        if at >= len(raw):
            return None
        size = 0 if raw[at] == ZERO else raw[at] - ONE_BYTE + 1
        if not 0 <= size <= 8 or at + 1 + size > len(raw):
            return None
        number = int.from_bytes(raw[at + 1 : at + 1 + size], "big") >> 1
        at += 1 + size
    return number


def _raw(token: Mapping[str, Any]) -> bytes:
    data = token.get("_data")
    try:
        return bytes.fromhex(data) if isinstance(data, str) else b""
    except ValueError:
        return b""
