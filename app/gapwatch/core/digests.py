"""Digests of a record's mapped fields: one over all that an event can never lack, one per field that it may lack."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import xxhash

DIGEST_BYTES: Final = 16
BLANK: Final = bytes(DIGEST_BYTES)  # in an identity: masked in its event, says nothing

_LENGTH: Final = struct.Struct("<I").pack


def framed(part: bytes) -> bytes:
    """Return the part with its length in front."""
    return _LENGTH(len(part)) + part


def digest(parts: Iterable[bytes]) -> bytes:
    """Return xxh3_128 over the parts, each with its length in front, so that no two lists of parts read the same."""
    return xxhash.xxh3_128_digest(b"".join([_LENGTH(len(part)) + part for part in parts]))


def mask_digest(part: bytes) -> bytes:
    """Return the digest of one maskable field."""
    return xxhash.xxh3_128_digest(part)


def identity(record: bytes, masks: Sequence[bytes] | None) -> bytes:
    """Return digest and mask digests as one; zeros where a field was masked. b"" stays b"": nothing is known."""
    if not record or not masks:
        return record
    return record + b"".join([mask or BLANK for mask in masks])
