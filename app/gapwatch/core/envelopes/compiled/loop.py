"""What every generated loop has in common: how it begins, what it appends, and what it leaves to the general decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final

import msgspec

from gapwatch.core.envelopes.columns import EventColumns, Shape
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.columnwise import Turns
from gapwatch.core.envelopes.compiled.content import Content
from gapwatch.core.envelopes.compiled.readings import UNUSUAL as UNUSUAL
from gapwatch.core.envelopes.records import Message

# messages, the columns to append to, and who takes a message that is not usual
Loop = Callable[[Sequence[Message], EventColumns, Callable[[Message], None]], None]

VALUES: Final = "[message.value() for message in messages]"
KEYS: Final = "[message.key() for message in messages]"
_COLUMNS: Final = ("keys", "operations", "offsets", "majors", "minors", "event_times", "append_times", "digests")


@contextmanager
def each_message(code: Code, content: Content, decoded: Mapping[str, str], *, at_once: bool = False) -> Iterator[None]:
    """Write the head of the loop; the body leaves ``key``, ``operation``, ``major``, ``minor``, ``event_time``, ``digest`` …

    Args:
        code: Where to write.
        content: What the body reads.
        decoded: By name of the body's variable, the expression of all its values: see :func:`decoding`. They are made before the
            loop, each in a small loop of its own, which is a tenth faster; the expression may name earlier ones as ``all_…``.
        at_once: Whether there is a function ``at_once``: see ``columnwise``. It takes the messages, the columns, what is decoded.
    """
    shape = content.shape
    with code.block("def loop(messages, out, unusual, CONSTANTS):"):
        code.line(*(f"{column} = out.{column}" for column in (*_COLUMNS, *_optional(shape))))
        code.line(*content.setup)
        code.line(*(f"all_{name} = {values}" for name, values in decoded.items()))
        names, values = ", ".join(decoded), ", ".join(f"all_{name}" for name in decoded)
        if at_once:
            turns = code.constant(Turns())
            with code.block(f"if {turns}.mine():"):
                with code.block("try:"):
                    code.line(f"at_once(messages, out, {values})", f"{turns}.succeeded()", "return")
                with code.block(f"except {code.constant(UNUSUAL)}:"):
                    code.line(f"{turns}.failed()")
        code.line("stamps = [message.timestamp() for message in messages]")
        with code.block(f"for message, stamp, {names} in zip(messages, stamps, {values}):"):
            with code.block("try:"):
                yield
            with code.block(f"except {code.constant(UNUSUAL)}:"):
                code.line("unusual(message)", "continue")
            code.line("keys.append(key)", "operations.append(operation)", "offsets.append(offset)", "majors.append(major)")
            code.line("minors.append(minor)", "event_times.append(event_time)", "append_times.append(stamp[1])")
            code.line("digests.append(digest)")
            code.line(*(f"{column}.append({_VARIABLES[column]})" for column in _optional(shape)))


def decoding(code: Code, kind: Any, items: str, *, exact: bool = False) -> str:
    """Return the expression of what JSON texts decode to: `items` is that of the texts, `exact` keeps fractions as Decimal."""
    decoder = msgspec.json.Decoder(kind, float_hook=Decimal) if exact else msgspec.json.Decoder(kind)
    return f"{code.constant(_decoded)}({code.constant(decoder.decode)}, {items})"


def _decoded(decode: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return what each item decodes to, None where there is nothing or it is refused: the body stumbles over that."""
    try:
        return [decode(item) if item else None for item in items]
    except UNUSUAL:
        return [_decoded_one(decode, item) for item in items]


def _decoded_one(decode: Callable[[Any], Any], item: Any) -> Any:
    try:
        return decode(item) if item else None
    except UNUSUAL:
        return None


def no_content(code: Code, content: Content) -> None:
    """Write the lines of an event whose content is not known."""
    code.line("digest = b''")
    code.line(*(_NOTHING[column] for column in _optional(content.shape) if column in _NOTHING))


def _optional(shape: Shape) -> list[str]:
    return [name for name in _VARIABLES if getattr(shape, name)]


_VARIABLES: Final = {"masks": "mask", "values": "fields", "versions": "version", "target_ids": "b''"}
_NOTHING: Final = {"masks": "mask = ()", "values": "fields = ()", "versions": "version = None"}
