"""What every generated loop has in common: how it begins, what it appends, and what it leaves to the general decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from gapwatch.core.envelopes.columns import EventColumns, Shape
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.content import Content
from gapwatch.core.envelopes.compiled.readings import Odd
from gapwatch.core.envelopes.records import Message
from gapwatch.errors import RecordError

# messages, the columns to append to, and who takes a message that is not usual
Loop = Callable[[Sequence[Message], EventColumns, Callable[[Message], None]], None]

# Whatever reading an unusual record may raise. Which of these it is does not matter: the general decoder judges the record.
UNUSUAL: Final = (
    Odd,
    RecordError,
    msgspec.MsgspecError,
    ValueError,  # UnicodeError, binascii.Error and a key that does not fit are such
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
_COLUMNS: Final = ("keys", "operations", "offsets", "majors", "minors", "event_times", "append_times", "digests")


@contextmanager
def each_message(code: Code, content: Content) -> Iterator[None]:
    """Write the head of the loop; the body leaves ``key``, ``operation``, ``major``, ``minor``, ``event_time``, ``digest`` …"""
    shape = content.shape
    with code.block("def loop(messages, out, unusual, CONSTANTS):"):
        code.line(*(f"{column} = out.{column}" for column in (*_COLUMNS, *_optional(shape))))
        code.line(*content.setup)
        with code.block("for message in messages:"):
            with code.block("try:"):
                yield
            with code.block(f"except {code.constant(UNUSUAL)}:"):
                code.line("unusual(message)", "continue")
            code.line("keys.append(key)", "operations.append(operation)", "offsets.append(offset)", "majors.append(major)")
            code.line("minors.append(minor)", "event_times.append(event_time)", "append_times.append(message.timestamp()[1])")
            code.line("digests.append(digest)")
            code.line(*(f"{column}.append({_VARIABLES[column]})" for column in _optional(shape)))


def no_content(code: Code, content: Content) -> None:
    """Write the lines of an event whose content is not known."""
    code.line("digest = b''")
    code.line(*(_NOTHING[column] for column in _optional(content.shape) if column in _NOTHING))


def _optional(shape: Shape) -> list[str]:
    return [name for name in _VARIABLES if getattr(shape, name)]


_VARIABLES: Final = {"masks": "mask", "values": "fields", "versions": "version", "target_ids": "b''"}
_NOTHING: Final = {"masks": "mask = ()", "values": "fields = ()", "versions": "version = None"}
