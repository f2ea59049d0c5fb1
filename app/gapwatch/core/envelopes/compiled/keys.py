"""The lines that turn a record's decoded key into canonical bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.readings import UNUSUAL, Odd, Whole
from gapwatch.core.keys import KeyCodec
from gapwatch.model.pipeline import KeyType

# Of a number of so many bits: how long its key is, and what is added so that the length byte stands in front.
_BITS: Final = range(65)
_SIZES: Final = tuple((bits + 7) // 8 + 1 for bits in _BITS)
_LENGTHS: Final = tuple((0x80 + size - 1) << 8 * (size - 1) for size in _SIZES)

ANNOTATIONS: Final[Mapping[KeyType, Any]] = {KeyType.INT: int, KeyType.TEXT: str, KeyType.UUID: str, KeyType.OBJECTID: str}


class ObjectId(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    hex: str = msgspec.field(name="$oid")


MEMBERS: Final[Mapping[KeyType, Any]] = {KeyType.INT: int | Whole, KeyType.TEXT: str, KeyType.OBJECTID: ObjectId}


def struct(name: str, members: Mapping[str, Any], *, absent: bool = False, never: str = "") -> type[msgspec.Struct]:
    """Make the struct that takes just these members out of an object: ``c0``, ``c1`` … by name, in their order.

    Without `absent` an object that lacks one does not decode; with it the value is UNSET. One that has the member `never` does
    not decode either.
    """
    fields: list[Any] = [
        (f"c{at}", annotation, msgspec.UNSET) if absent else (f"c{at}", annotation)
        for at, annotation in enumerate(members.values())
    ]
    rename = {f"c{at}": member for at, member in enumerate(members)}
    if never:
        fields.append(("never", msgspec.UnsetType, msgspec.UNSET))
        rename["never"] = never
    return msgspec.defstruct(name, fields, gc=False, rename=rename)


def row_key_lines(code: Code, codec: KeyCodec, readers: Sequence[Callable[[Any], Any]] | None, source: str) -> None:
    """Write the lines that leave the key of the struct named `source` in ``key``; `readers`: only where values are encoded."""
    if readers is not None:
        values = ", ".join(f"{code.constant(reader)}({source}.c{at})" for at, reader in enumerate(readers))
        with code.block(f"if {' or '.join(f'{source}.c{at} is None' for at in range(len(readers)))}:"):
            code.line(f"raise {code.constant(Odd)}")
        code.line(f"key = {code.constant(codec.encode)}(({values},))")
        return
    for at, column in enumerate(codec.columns):
        code.line(f"v = {source}.c{at}")
        _column(code, codec, at, column.type, "key" if not at else "x")
        if at:
            code.line("key += x")


def member_key_lines(code: Code, codec: KeyCodec, source: str) -> None:
    """Write the lines that leave the key of a document's ``_id``, the expression `source`, in ``key``."""
    kind = codec.columns[0].type
    code.line(f"v = {source}")
    if kind is KeyType.INT:
        with code.block("if v.__class__ is not int:"):
            code.line("x = v.i", "y = v.l")
            with code.block("if x is not None and y is not None:"):
                code.line(f"raise {code.constant(Odd)}")
            code.line("v = int(y if x is None else x)")
    elif kind is KeyType.OBJECTID:
        code.line("v = v.hex")
    _column(code, codec, 0, kind, "key")


def column_lines(code: Code, codec: KeyCodec, whole: bool, each: Callable[[], None]) -> None:
    """Write the lines that leave the keys of ``all_named`` in ``keys``; `each` writes those of one, ``named``.

    `whole`: each ``named`` is the value of one column of integers, as a rule.
    """
    if whole:
        with code.block("try:"):
            encode, lengths, sizes = (code.constant(one) for one in (codec.encoder(0), _LENGTHS, _SIZES))
            key = f"(v + {lengths}[x := v.bit_length()]).to_bytes({sizes}[x], 'big') if v >= 0 else {encode}(v)"
            code.line(f"keys = [{key} for v in whole_keys]")
        with code.block(f"except {code.constant(UNUSUAL)}:"):
            code.line("keys = None")
    else:
        code.line("keys = None")
    with code.block("if keys is None:"):
        code.line("keys = []")
        with code.block("for named in all_named:"):
            each()
            code.line("keys.append(key)")


def _column(code: Code, codec: KeyCodec, at: int, kind: KeyType, key: str) -> None:
    encode = code.constant(codec.encoder(at))
    if kind is KeyType.INT:
        with code.block("if v >= 0:"):
            code.line("x = v.bit_length()")
            code.line(f"{key} = (v + {code.constant(_LENGTHS)}[x]).to_bytes({code.constant(_SIZES)}[x], 'big')")
        with code.block("else:"):
            code.line(f"{key} = {encode}(v)")
    elif kind is KeyType.TEXT:
        with code.block("if '\\0' in v:"):
            code.line(f"{key} = {encode}(v)")
        with code.block("else:"):
            code.line(f"{key} = f'{{v}}\\0\\1'.encode()")
    else:
        code.line(f"{key} = {encode}(v)")
