"""The lines that turn one decoded row or document into digest, mask digests, values and version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import xxhash

from gapwatch.core.canonical import ABSENT, NULL, VALUE, Form, plain_number
from gapwatch.core.digests import digest, framed, mask_digest
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.readings import LEADS, Odd, Reading
from gapwatch.core.mapping import MASKED_VALUE, CompiledMapping, value_text, whole_number
from gapwatch.model.pipeline import Match

_TAG: Final = f"\\x{VALUE.hex()}"  # in the source of a literal


SPELT: Final = frozenset("0123456789+-.:eETZ ")  # what numbers and times are written with
NAMED: Final = frozenset({"nan", "-nan", "inf", "-inf", "infinity", "-infinity"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One mapped field as the loop sees it: where its value is found, and how it is read."""

    attribute: str
    within: Callable[[Any], Any] | None = None  # finds the value in the whole row, where no attribute holds it
    form: Form  # for what `reading` does not read; of the very value that is decoded
    reading: Reading | None
    absent: bytes | None  # its part where it is not there at all; None: the decoder refuses such a record


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    attribute: str
    read: Callable[[Any], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Writes the lines of a pipeline's side.

    Args:
        mapping: The pipeline's.
        members: All fields in mapping order.
        version: Where the version is found, where the pipeline has one.
        masked: Tells Debezium's placeholder, where it means that the event does not carry the value; else None.
        texts: All its spellings as text.
        masks: Whether it leaves a maskable field unknown; else a record that has one is unusual.
        target_ids: Whether events have a column for the target's own ids, which these records never name.
    """

    mapping: CompiledMapping
    members: Sequence[Member]
    version: Version | None
    masked: Callable[[Any], bool] | None = None
    texts: frozenset[str] = frozenset()
    masks: bool = True
    target_ids: bool = False

    @property
    def shape(self) -> Shape:
        layout = self.mapping
        return Shape(
            masks=bool(layout.mask_at),
            values=bool(layout.value_at),
            versions=self.version is not None,
            target_ids=self.target_ids,
        )

    @property
    def _spell_a_value(self) -> bool:
        """Whether a placeholder could be read as a number or a time: then it has to be looked for first."""
        return any(SPELT.issuperset(text) or text.lower() in NAMED for text in self.texts)

    @property
    def setup(self) -> list[str]:
        return [line for member in self.members if member.reading is not None for line in member.reading.setup]

    def lines(self, code: Code, row: str) -> None:
        """Write the lines that leave ``digest``, ``mask``, ``fields`` (the values) and ``version`` of the object named `row`."""
        mapping = self.mapping
        for at, member in enumerate(self.members):
            found = f"{row}.{member.attribute}" if member.within is None else f"{code.constant(member.within)}({row})"
            code.line(f"v = {found}")
            self.field(code, at, str(at))
        self._digest(code)
        if mapping.mask_at:
            code.line(f"mask = ({', '.join(f'm{at}' for at in mapping.mask_at)},)")
        if mapping.value_at:
            code.line(f"fields = ({', '.join(f'n{at}' for at in mapping.value_at)},)")
        self.version_lines(code, row)

    def field(self, code: Code, at: int, suffix: str) -> None:
        """Write the lines that read a field's value ``v``: a mask into ``m…``, a value into ``n…``, else into ``p…``, ``t…``."""
        member = self.members[at]
        if at in self.mapping.mask_at:
            self._mask(code, member, f"m{suffix}")
        elif at in self.mapping.value_at:
            self._value(code, member, f"n{suffix}")
        elif self.as_text:
            self._text(code, member, f"p{suffix}", f"t{suffix}")
        else:
            self._part(code, member, f"p{suffix}")

    def version_lines(self, code: Code, row: str) -> None:
        """Write the lines that leave ``version`` of the object named `row`, where there is one."""
        if self.version is not None:
            self._version(code, self.version, row)
        elif self.mapping.pipeline.match is Match.VERSION:
            code.line(f"raise {code.constant(Odd)}")

    @property
    def as_text(self) -> bool:
        """Whether every field that is no mask and no value has a reading: then they are joined as text."""
        return all(self.members[at].reading is not None for at in self.mapping.fixed_at)

    @property
    def pieces(self) -> str:
        """Return the arguments of :func:`wide`."""
        return ", ".join(f"p{at}, t{at}" if at in self._free else f"'', t{at}" for at in self.mapping.fixed_at)

    @property
    def _free(self) -> set[int]:
        return {at for at in self.mapping.fixed_at if (reading := self.members[at].reading) is not None and reading.free}

    def looks_for_placeholder(self, member: Member) -> bool:
        """Whether a fixed field's value has to be compared with the placeholder's spellings, as nothing else refuses them."""
        reading = member.reading
        if self.masked is None or reading is None:
            return self.masked is not None
        return reading.texts and not (reading.refuses and not self._spell_a_value)

    def _digest(self, code: Code) -> None:
        fixed = self.mapping.fixed_at
        if not fixed:
            code.line(f"digest = {code.constant(digest(()))}")
            return
        if not self.as_text:
            code.line(f"digest = {code.constant(digest)}(({', '.join(f'p{at}' for at in fixed)},))")
            return
        joined = "".join(f"{{p{at}}}{{t{at}}}" if at in self._free else f"{{t{at}}}" for at in fixed)
        code.line(f"x = f'{joined}'")
        with code.block("if x.isascii():"):
            code.line(f"digest = {code.constant(xxhash.xxh3_128_digest)}(x.encode())")
        with code.block("else:"):
            code.line(f"digest = {code.constant(wide)}(({self.pieces},))")

    def _version(self, code: Code, version: Version, row: str) -> None:
        code.line(f"version = {row}.{version.attribute}")
        with code.block("if version.__class__ is not int:"):
            code.line(f"version = {code.constant(version.read)}(version)")
            if self.mapping.pipeline.match is Match.VERSION:
                with code.block("if version is None:"):
                    code.line(f"raise {code.constant(Odd)}")

    # ── one field, by what it becomes ─────────────────────────────────────────────────────────────────────────────────────────

    def _cases(self, code: Code, member: Member, written: Mapping[bytes, str], masked: str = "") -> str:
        """Write the cases of no value; return the head of the case of a value. A placeholder is Odd without `masked`."""
        masked = masked if self.masks else ""
        refused = not masked and member.reading is not None and member.reading.refuses and not self._spell_a_value
        masked = masked or f"raise {code.constant(Odd)}"
        with code.block("if v is None:"):
            code.line(written[NULL])
        if member.absent is not None:
            with code.block(f"elif v is {code.constant(msgspec.UNSET)}:"):
                code.line(written[member.absent])
        if self.masked is not None and (member.reading is None or (member.reading.texts and not refused)):
            # Hashing a text costs less than calling a function.
            test = f"v in {code.constant(self.texts)}" if member.reading is not None else f"{code.constant(self.masked)}(v)"
            with code.block(f"elif {test}:"):
                code.line(masked)
        return "else:"

    def _text(self, code: Code, member: Member, lead: str, text: str) -> None:
        """Leave a fixed field's framed part in `text`; of a free text its frame and tag in `lead`, its payload in `text`."""
        reading = member.reading
        assert reading is not None
        none = f"{lead} = ''; " if reading.free else ""
        written = {part: f"{none}{text} = {code.constant(framed(part).decode('ascii'))}" for part in (NULL, ABSENT)}
        head = self._cases(code, member, written)
        if reading.small:
            with code.block(f"elif v.__class__ is int and 0 <= v < {len(reading.small)}:"):
                pieces = tuple(framed(VALUE + small.encode()).decode("ascii") for small in reading.small)
                code.line(f"{text} = {code.constant(pieces)}[v]")
        with code.block(head):
            if reading.free:
                reading.lines(code, "v", text)
                code.line(f"{lead} = {code.constant(LEADS)}[len({text})]")
            elif reading.framed is not None:
                reading.framed(code, "v", text)
            else:
                reading.lines(code, "v", "x")
                code.line(f"{text} = {code.constant(LEADS)}[len(x)] + x")

    def _part(self, code: Code, member: Member, part: str) -> None:
        """Leave a fixed field's canonical bytes in `part`."""
        written = {known: f"{part} = {code.constant(known)}" for known in (NULL, ABSENT)}
        with code.block(self._cases(code, member, written)):
            self._bytes(code, member, part)

    def _mask(self, code: Code, member: Member, mask: str) -> None:
        """Leave a maskable field's digest in `mask`."""
        written = {known: f"{mask} = {code.constant(mask_digest(known))}" for known in (NULL, ABSENT)}
        with code.block(self._cases(code, member, written, f"{mask} = b''")):
            self._bytes(code, member, "x")
            code.line(f"{mask} = {code.constant(xxhash.xxh3_128_digest)}(x)")

    def _value(self, code: Code, member: Member, value: str) -> None:
        """Leave a toleranced field's text in `value`."""
        written = dict.fromkeys((NULL, ABSENT), f"{value} = None")
        with code.block(self._cases(code, member, written, f"{value} = {code.constant(MASKED_VALUE)}")):
            if member.reading is None:
                code.line(f"{value} = {code.constant(value_text)}({code.constant(member.form)}(v))")
            else:
                member.reading.lines(code, "v", "x")
                code.line(f"{value} = {code.constant(plain_number)}(x)")

    def _bytes(self, code: Code, member: Member, part: str) -> None:
        if member.reading is None:
            code.line(f"{part} = {code.constant(member.form)}(v)")
        else:
            member.reading.lines(code, "v", "x")
            code.line(f"{part} = f'{_TAG}{{x}}'.encode({'' if member.reading.free else repr('ascii')})")


def wide(pieces: Sequence[str]) -> bytes:
    """Return the digest of texts that are not all short and ASCII: pairs of lead and payload; no lead: framed already."""
    parts = []
    for lead, text in zip(pieces[::2], pieces[1::2], strict=True):
        parts.append(framed(VALUE + text.encode()) if lead else text.encode("ascii"))
    return xxhash.xxh3_128_digest(b"".join(parts))


def whole(value: Any) -> int | None:
    """Return a row's version; UNSET is none."""
    return None if value is msgspec.UNSET else whole_number(value)
