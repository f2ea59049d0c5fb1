"""The same as a loop's body for a whole stretch of messages at once, column by column: a fifth cheaper than record by record.

``at_once`` either appends all records of a stretch or raises before it has appended any: one unusual record sends its stretch
through the loop. What is looked at together costs next to nothing: whether a column has a placeholder in it is one search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from gapwatch.core.digests import digest
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.content import Content, Member, wide
from gapwatch.core.envelopes.compiled.readings import LEADS, UNUSUAL, Odd

PASSED_OVER_MAX: Final = 64  # stretches


@dataclass(slots=True)
class Turns:
    """Whether trying is worth its cost: after each failure twice as many stretches are passed over as after the one before."""

    waits: int = 0
    left: int = 0

    def mine(self) -> bool:
        if self.left:
            self.left -= 1
            return False
        return True

    def succeeded(self) -> None:
        self.waits = 0

    def failed(self) -> None:
        self.waits = self.left = min(2 * self.waits or 1, PASSED_OVER_MAX)


def column_functions(code: Code, content: Content) -> None:
    """Write a function for each field that reads a column value by value, as the loop does."""
    for at, member in enumerate(content.members):
        names = _names(content, at)
        with code.block(f"def column{at}(values, CONSTANTS):"):
            code.line(*(f"all_{name} = []" for name in names))
            code.line(*(member.reading.setup if member.reading is not None else ()))
            with code.block("for v in values:"):
                content.field(code, at, "")
                code.line(*(f"all_{name}.append({name})" for name in names))
            code.line(f"return {', '.join(f'all_{name}' for name in names)}")


def content_lines(code: Code, content: Content, rows: str) -> None:
    """Write the lines that leave ``digests`` and, where there are such columns, ``masks``, ``values`` and ``versions``."""
    mapping = content.mapping
    for at, member in enumerate(content.members):
        found = f"row.{member.attribute}" if member.within is None else f"{code.constant(member.within)}(row)"
        code.line(f"c = [{found} for row in {rows}]")
        names = ", ".join(f"{name}{at}" for name in _names(content, at))
        if at in mapping.mask_at or at in mapping.value_at or not content.as_text or not _whole_column(content, member):
            code.line(f"{names} = column{at}(c)")
            continue
        with code.block("try:"):
            _column(code, content, member, at)
        with code.block(f"except {code.constant(UNUSUAL)}:"):
            code.line(f"{names} = column{at}(c)")
    _digests(code, content, rows)
    if mapping.mask_at:
        code.line(f"masks = list(zip({', '.join(f'm{at}' for at in mapping.mask_at)}))")
    if mapping.value_at:
        code.line(f"values = list(zip({', '.join(f'n{at}' for at in mapping.value_at)}))")
    if content.version is None:
        content.version_lines(code, "")
        return
    code.line("versions = []")
    with code.block(f"for row in {rows}:"):
        content.version_lines(code, "row")
        code.line("versions.append(version)")


def append_lines(code: Code, content: Content) -> None:
    """Write the lines that append all columns; nothing may raise from here on."""
    code.line("append_times = [message.timestamp()[1] for message in messages]")
    names = ["keys", "operations", "offsets", "majors", "minors", "event_times", "append_times", "digests"]
    names += [name for name in ("masks", "values", "versions") if getattr(content.shape, name)]
    code.line(*(f"out.{name} += {name}" for name in names))
    if content.shape.target_ids:
        code.line("out.target_ids += [b''] * len(messages)")


def _names(content: Content, at: int) -> Sequence[str]:
    """Return what a field leaves: a mask, a value, or text (of a free one with its frame and tag before it), or bytes."""
    if at in content.mapping.mask_at:
        return ("m",)
    if at in content.mapping.value_at:
        return ("n",)
    reading = content.members[at].reading
    if not content.as_text or reading is None:
        return ("p",)
    return ("p", "t") if reading.free else ("t",)


def _whole_column(content: Content, member: Member) -> bool:
    """Whether the column can be read at once: where a placeholder may stand, it is looked for, or refused by the reading."""
    reading = member.reading
    if reading is None or reading.column is None:
        return False
    return reading.free or not content.looks_for_placeholder(member)


def _column(code: Code, content: Content, member: Member, at: int) -> None:
    reading = member.reading
    assert reading is not None
    assert reading.column is not None
    if not reading.free:
        reading.column(code, "c", f"t{at}")
        return
    code.line("x = ''.join(c)")  # raises where one is null or absent
    if content.looks_for_placeholder(member):
        with code.block(f"if {' or '.join(f'{code.constant(text)} in x' for text in sorted(content.texts)) or 'False'}:"):
            code.line(f"raise {code.constant(Odd)}")
    reading.column(code, "c", f"t{at}")
    code.line(f"p{at} = [{code.constant(LEADS)}[len(v)] for v in t{at}]")


def _digests(code: Code, content: Content, rows: str) -> None:
    fixed = content.mapping.fixed_at
    if not fixed:
        code.line(f"digests = [{code.constant(digest(()))}] * len({rows})")
        return
    names = [f"{name}{at}" for at in fixed for name in _names(content, at)]
    each = f"{', '.join(names)}, "
    if not content.as_text:
        code.line(f"digests = [{code.constant(digest)}(({each})) for {each} in zip({each})]")
        return
    hashed = code.constant(xxhash.xxh3_128_digest)
    code.line(f"forms = [f'{''.join(f'{{{name}}}' for name in names)}' for {each} in zip({each})]")
    with code.block("if ''.join(forms).isascii():"):
        code.line(f"digests = [{hashed}(form.encode()) for form in forms]")
    with code.block("else:"):
        alone = f"{hashed}(form.encode()) if form.isascii() else {code.constant(wide)}(({content.pieces},))"
        code.line(f"digests = [{alone} for form, {each} in zip(forms, {each})]")
