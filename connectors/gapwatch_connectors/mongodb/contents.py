"""Contents of a collection: documents as columns, with what the driver's own types are to the core."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from bson import Binary, Decimal128, Int64, ObjectId

from gapwatch.core.column_parts import THOUSANDTH_PLACES, UTC_NAMES, Driver, Payloads, split, thousandths
from gapwatch.core.envelopes.compiled.numbers import unscaled_text
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep_contents import Keys
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyType
from gapwatch_connectors.mongodb.connection import OPTIONS, Document
from gapwatch_connectors.mongodb.keys import DocumentKeys

# A document with two dates is decoded in a third of the time where they get no zone; they are read as UTC then, where the
# pipeline names no other zone.
ZONELESS: Final = OPTIONS.with_options(tz_aware=False)
COEFFICIENT_MAX: Final = 10**34 - 1  # a larger one stands for 0
COEFFICIENT_HIGH: Final = (1 << 49) - 1  # of the upper 64 bits
EXPONENT_MASK: Final = 0x3FFF
BIAS: Final = 6_176
LOW_MAX: Final = 10**12
TENS: Final = 10 ** np.arange(4)


def options(mapping: CompiledMapping) -> Any:
    """Return how documents are decoded of which nothing but contents are wanted."""
    return ZONELESS if all(spec.timezone in UTC_NAMES for spec in mapping.fields) else OPTIONS


def keys_in(keys: DocumentKeys, documents: Sequence[Document]) -> Keys:
    """Return the keys of documents. Raises KeyMisfit."""
    if keys.paths == ("_id",):
        kinds = {type(document["_id"]) for document in documents}
        kind = keys.columns[0].type
        if kind is KeyType.INT and kinds <= {int, Int64}:
            return np.array([document["_id"] for document in documents], dtype=np.int64)
        if kind is KeyType.OBJECTID and kinds <= {ObjectId}:
            return [document["_id"].binary for document in documents]
    return [keys.of(document) for document in documents]


def _decimals(spec: FieldSpec) -> Payloads | None:
    """Decimal128 by its bits: the driver builds a ``Decimal`` digit by digit."""
    scale = spec.scale
    if spec.type not in (FieldType.INT, FieldType.DECIMAL) or (scale is not None and scale < 0):
        return None

    def payload(low: int, high: int) -> bytes | None:
        coefficient = low | (high & COEFFICIENT_HIGH) << 64
        places = BIAS - (high >> 49 & EXPONENT_MASK)
        if high >> 61 & 3 == 3 or coefficient > COEFFICIENT_MAX or (scale is not None and places > scale):
            return None  # named, or not canonical, or to be cut
        return unscaled_text(-coefficient if high >> 63 else coefficient, places).encode()

    def one_by_one(values: Sequence[Decimal128]) -> list[bytes | None]:
        words = struct.iter_unpack("<QQ", b"".join([value.bid for value in values]))
        return [payload(low, high) for low, high in words]

    most = THOUSANDTH_PLACES if scale is None else min(scale, THOUSANDTH_PLACES)

    def payloads(values: Sequence[Decimal128]) -> list[bytes | None]:
        bits = np.frombuffer(b"".join([value.bid for value in values]), dtype="<u8")
        low, high = bits[::2], bits[1::2]
        places = BIAS - (high >> np.uint64(49)).astype(np.int64)  # out of range for any but plain positive numbers
        usual = (places >= 0) & (places <= most) & (low < LOW_MAX) & (high & np.uint64(COEFFICIENT_HIGH) == 0)
        scaled = low.astype(np.int64) * TENS[np.where(usual, THOUSANDTH_PLACES - places, 0)]
        usual &= scaled >= 10**THOUSANDTH_PLACES
        return split(values, usual, lambda inside: thousandths(scaled[inside]), one_by_one)

    return payloads


def _objectids(spec: FieldSpec) -> Payloads | None:
    if spec.type is FieldType.TEXT:
        return lambda values: [value.binary.hex().encode() for value in values]
    return (lambda values: [value.binary for value in values]) if spec.type is FieldType.OBJECTID else None


def _binaries(spec: FieldSpec) -> Payloads | None:
    if spec.type is FieldType.BYTES:
        return lambda values: [bytes(value) for value in values]
    if spec.type is FieldType.UUID:
        return lambda values: [bytes(value) if len(value) == 16 else None for value in values]
    return None


PAYLOADS: Final[dict[type, Callable[[FieldSpec], Payloads | None]]] = {
    Decimal128: _decimals,
    ObjectId: _objectids,
    Binary: _binaries,
}
DRIVER: Final = Driver(alike={Int64: int}, payloads=PAYLOADS)
