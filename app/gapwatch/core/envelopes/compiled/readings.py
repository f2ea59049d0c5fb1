"""How one field's usual values become canonical text: the type they are decoded as, and the lines that read them.

``None`` instead of a reading: only the field's general form can read it.
"""

from __future__ import annotations

import binascii
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Final

import msgspec

from gapwatch.core.canonical import EPOCHS as EPOCHS
from gapwatch.core.canonical import VALUE, Form
from gapwatch.core.digests import framed
from gapwatch.core.envelopes import extjson
from gapwatch.core.envelopes.compiled import numbers
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.records import UNFORESEEN
from gapwatch.core.temporal import INFINITE_DAYS, INFINITE_FROM, INFINITE_TO, PER_SECOND
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType, Rounding

TIMES: Final = ("time_ms", "time_us", "time_ns")
UTC: Final = ("UTC", "Etc/UTC", "Z")
FRACTION_PLACES_MAX: Final = 3
SECONDS_KEPT: Final = 1_024
_ISO_LENGTH: Final = len("2026-11-27T02:44:27.441000Z")
SMALL: Final = tuple(numbers.whole_text(number) for number in range(1_000))


# The bytes before a payload, by the payload's length, as text: its frame and tag. They are ASCII below 127 bytes; any other
# length has a mark that is not, so that one look at the joined text shows whether it may be encoded as it stands.
_ASCII_MAX: Final = 126
_LENGTH_MAX: Final = 65_535
LEADS: Final = tuple(
    framed(VALUE + bytes(length))[:5].decode("ascii") if length <= _ASCII_MAX else "\u0100" for length in range(_LENGTH_MAX + 1)
)


class Odd(Exception):  # noqa: N818 - no error: the general decoder decides what the record means
    """A value that the compiled loop does not read."""


# Whatever reading an unusual record may raise. Which of these it is does not matter: the general decoder judges the record.
UNUSUAL: Final = (Odd, RecordError, *UNFORESEEN)


class Whole(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Extended JSON of an integer."""

    i: str | None = msgspec.field(default=None, name="$numberInt")
    l: str | None = msgspec.field(default=None, name="$numberLong")  # noqa: E741


class Number(Whole, gc=False, forbid_unknown_fields=True):
    """Extended JSON of any number."""

    f: str | None = msgspec.field(default=None, name="$numberDouble")
    d: str | None = msgspec.field(default=None, name="$numberDecimal")


class Long(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    l: str = msgspec.field(name="$numberLong")  # noqa: E741


class Date(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Extended JSON of a moment."""

    d: Long | int | str = msgspec.field(name="$date")


@dataclass(frozen=True, slots=True)
class Reading:
    """`lines` writes code that leaves the canonical text of the value ``v`` (neither null nor absent) in ``t``.

    `framed` does the same with the text's frame and tag in front; None: the loop puts them there. All texts but those of
    ``free`` readings are ASCII, or Odd.

    `column` writes code that does so for a whole list of values, and leaves the list of their framed texts; of a ``free`` reading
    the texts themselves. What it does not read raises, or yields a text that is not ASCII where it has to be.
    """

    annotation: Any
    lines: Callable[[Code, str, str], None]
    framed: Callable[[Code, str, str], None] | None = None
    column: Callable[[Code, str, str], None] | None = None
    free: bool = False  # any characters, any length
    texts: bool = False  # values may be str: where Debezium's placeholder may stand
    refuses: bool = False  # such a placeholder is Odd to `lines`
    small: tuple[str, ...] = ()  # the texts of the integers from 0, where those need not be computed
    setup: tuple[str, ...] = ()  # once, before the loop


def by_form(form: Form) -> Callable[[Any], str]:
    """Return the general form's payload as text; Odd where the type cannot read the value."""

    def read(value: Any) -> str:
        part = form(value)
        if part[:1] != VALUE:
            raise Odd
        return part[1:].decode("ascii")

    return read


def reading_of_column(spec: FieldSpec, form: Form, wire: str, wire_scale: int | None) -> Reading | None:
    """Return how a column of Debezium's rows is read, in its encoding."""
    match spec.type:
        case FieldType.TEXT if wire != "bits":
            return Reading(str, _text(spec), column=_texts(spec), free=True, texts=True)
        case FieldType.INT if wire in ("", "text") and (spec.scale is None or spec.scale >= 0):
            return Reading(int, _whole, column=_wholes, small=SMALL)
        case FieldType.DECIMAL if wire == "text":
            column = _column_spelt(spec, by_form(form))
            return Reading(str, _decimal(spec, form), _decimal(spec, form, lead=True), column, texts=True, refuses=True)
        case FieldType.DECIMAL if wire == "base64_unscaled" and (spec.scale is None or (wire_scale or 0) <= spec.scale):
            return Reading(str, _unscaled(wire_scale or 0), texts=True)  # a placeholder in hexadecimal is base64 as well
        case FieldType.TIMESTAMP if wire in EPOCHS and spec.timezone in UTC:
            return Reading(int, _epoch(spec, PER_SECOND[wire.removeprefix("epoch_")], form))
        case FieldType.TIMESTAMP if wire == "iso" and spec.precision in ("ms", "us") and spec.rounding is Rounding.TRUNCATE:
            return _iso(spec, form)
        case FieldType.DATE if wire == "epoch_days":
            return Reading(int, _days(form))
        case FieldType.TIME if wire in TIMES:
            return Reading(int, _scaled(PER_SECOND[wire.removeprefix("time_")], spec))
        case FieldType.BOOL:
            return Reading(bool, lambda code, v, t: code.line(f"{t} = 't' if {v} else 'f'"))
        case _:
            return None


def reading_of_member(spec: FieldSpec, form: Form) -> Reading | None:
    """Return how a member of a document is read from extended JSON, canonical or relaxed."""
    match spec.type:
        case FieldType.TEXT if spec.wire != "bits":
            return Reading(str, _text(spec), column=_texts(spec), free=True)
        case FieldType.INT if spec.scale is None or spec.scale >= 0:
            return Reading(int | Whole, _whole_member, column=_wholes, small=SMALL)
        case FieldType.DECIMAL:
            lines, framed_lines = _decimal_member(spec, form), _decimal_member(spec, form, lead=True)
            return Reading(Number | int | float | str, lines, framed_lines, _decimal_members(spec, form))
        case FieldType.TIMESTAMP:
            return Reading(Date | int | str, _date_member(spec, form), column=_dates(spec))
        case FieldType.BOOL:
            return Reading(bool, lambda code, v, t: code.line(f"{t} = 't' if {v} else 'f'"))
        case _:
            return None


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(spec: FieldSpec) -> Callable[[Code, str, str], None]:
    def lines(code: Code, v: str, t: str) -> None:
        code.line(f"{t} = {code.constant(unicodedata.normalize)}('NFC', {v})" if spec.nfc else f"{t} = {v}")

    return lines


def _texts(spec: FieldSpec) -> Callable[[Code, str, str], None]:
    def lines(code: Code, c: str, t: str) -> None:
        code.line(f"{t} = [{code.constant(unicodedata.normalize)}('NFC', v) for v in {c}]" if spec.nfc else f"{t} = {c}")

    return lines


def _wholes(code: Code, c: str, t: str) -> None:
    leads, whole_text = code.constant(LEADS), code.constant(numbers.whole_text)
    pieces = code.constant(tuple(framed(VALUE + small.encode()).decode("ascii") for small in SMALL))
    small = f"v.__class__ is int and 0 <= v < {len(SMALL)}"
    written = f"{leads}[len(x := (str(v) if v % 10 else {whole_text}(v)))] + x"
    code.line(f"{t} = [{pieces}[v] if {small} else {written} for v in {c}]")


def _whole(code: Code, v: str, t: str) -> None:
    code.line(f"{t} = f'{{{v}}}' if {v} % 10 else {code.constant(numbers.whole_text)}({v})")


def _whole_member(code: Code, v: str, t: str) -> None:
    with code.block(f"if {v}.__class__ is not int:"):
        code.line(f"x = {v}.i", f"y = {v}.l")
        with code.block("if x is not None and y is not None:"):
            code.line(f"raise {code.constant(Odd)}")
        code.line(f"{v} = int(y if x is None else x)")
    _whole(code, v, t)


def _decimal(spec: FieldSpec, form: Form, *, lead: bool = False) -> Callable[[Code, str, str], None]:
    return _spelt(spec, by_form(form), lead=lead)


def _spelt(spec: FieldSpec, general: Callable[[Any], str], *, lead: bool) -> Callable[[Code, str, str], None]:
    """A number as text: what follows its point is looked up, what stands before it is taken as it is."""
    table = _fractions(spec)

    def lines(code: Code, v: str, t: str) -> None:
        code.line(f"y, _, x = {v}.partition('.')", f"x = {code.constant(table.get)}(x)")
        # Digits of other scripts are decimal, too; in a framed text they are found with everything else that is not ASCII.
        ascii_only = "" if lead else " and y.isascii()"
        with code.block(f"if x is not None and y.isdecimal() and y[0] != '0' and (x or y[-1] != '0'){ascii_only}:"):
            code.line(f"{t} = f'{{{code.constant(LEADS)}[len(y) + len(x)]}}{{y}}{{x}}'" if lead else f"{t} = y + x")
        with code.block("else:"):
            code.line(f"{t} = {code.constant(numbers.decimal_of)}({v}, {spec.scale}) or {code.constant(general)}({v})")
            if lead:
                code.line(f"{t} = {code.constant(LEADS)}[len({t})] + {t}")

    return lines


def _fractions(spec: FieldSpec) -> dict[str, str]:
    return numbers.fractions(FRACTION_PLACES_MAX if spec.scale is None else min(spec.scale, FRACTION_PLACES_MAX))


def _column_spelt(spec: FieldSpec, general: Callable[[Any], str]) -> Callable[[Code, str, str], None]:
    """As :func:`_spelt` with leads."""
    table = _fractions(spec)

    def other(v: str) -> str:
        text = numbers.decimal_of(v, spec.scale) or general(v)
        return LEADS[len(text)] + text

    def lines(code: Code, c: str, t: str) -> None:
        leads, known = code.constant(LEADS), code.constant(table.get)
        usual = f"(y := {known}(b)) is not None and a.isdecimal() and a[0] != '0' and (y or a[-1] != '0')"
        written = f"f'{{{leads}[len(a) + len(y)]}}{{a}}{{y}}' if {usual} else {code.constant(other)}(v)"
        code.line(f"x = [v.partition('.') for v in {c}]", f"{t} = [{written} for v, (a, _, b) in zip({c}, x)]")

    return lines


def _unscaled(scale: int) -> Callable[[Code, str, str], None]:
    def lines(code: Code, v: str, t: str) -> None:
        decode, text = code.constant(binascii.a2b_base64), code.constant(numbers.unscaled_text)
        code.line(f"{t} = {text}(int.from_bytes({decode}({v}, strict_mode=True), 'big', signed=True), {scale})")

    return lines


def _decimal_member(spec: FieldSpec, form: Form, *, lead: bool = False) -> Callable[[Code, str, str], None]:
    general = by_form(form)
    wrapped = _spelt(spec, lambda text: general(Decimal(text)), lead=lead)  # not every spelling of a text is one of a Decimal128

    def lines(code: Code, v: str, t: str) -> None:
        with code.block(f"if {v}.__class__ is {code.constant(Number)}:"):
            with code.block(f"if {v}.i is not None or {v}.l is not None or {v}.f is not None:"):
                code.line(f"raise {code.constant(Odd)}")
            code.line(f"{v} = {v}.d")
            wrapped(code, v, t)
        with code.block("else:"):
            code.line(f"{t} = {code.constant(general)}({v})")
            if lead:
                code.line(f"{t} = {code.constant(LEADS)}[len({t})] + {t}")

    return lines


def _decimal_members(spec: FieldSpec, form: Form) -> Callable[[Code, str, str], None]:
    general = by_form(form)
    spelt = _column_spelt(spec, lambda text: general(Decimal(text)))

    def lines(code: Code, c: str, t: str) -> None:
        code.line(f"d = [v.d for v in {c} if v.i is None and v.l is None and v.f is None]")
        with code.block(f"if len(d) != len({c}):"):
            code.line(f"raise {code.constant(Odd)}")
        spelt(code, "d", t)

    return lines


def rescaled(v: str, per_second: int, spec: FieldSpec) -> str:
    """Return the expression that brings whole units to the precision of the pair, as ``temporal.rescale`` does."""
    wanted = PER_SECOND[spec.precision]
    if per_second == wanted:
        return v
    if per_second < wanted:
        return f"{v} * {wanted // per_second}"
    unit = per_second // wanted
    return f"{v} // {unit}" if spec.rounding is Rounding.TRUNCATE else f"(2 * {v} + {unit}) // {2 * unit}"


def _scaled(per_second: int, spec: FieldSpec) -> Callable[[Code, str, str], None]:
    return lambda code, v, t: code.line(f"{t} = f'{{{rescaled(v, per_second, spec)}}}'")


def _epoch(spec: FieldSpec, per_second: int, form: Form) -> Callable[[Code, str, str], None]:
    scaled = _scaled(per_second, spec)

    def lines(code: Code, v: str, t: str) -> None:
        with code.block(f"if {INFINITE_TO[per_second]} < {v} < {INFINITE_FROM[per_second]}:"):
            scaled(code, v, t)
        with code.block("else:"):
            code.line(f"{t} = {code.constant(by_form(form))}({v})")

    return lines


def _days(form: Form) -> Callable[[Code, str, str], None]:
    def lines(code: Code, v: str, t: str) -> None:
        with code.block(f"if {-INFINITE_DAYS} < {v} < {INFINITE_DAYS}:"):
            code.line(f"{t} = f'{{{v}}}'")
        with code.block("else:"):
            code.line(f"{t} = {code.constant(by_form(form))}({v})")

    return lines


def _iso(spec: FieldSpec, form: Form) -> Reading:
    """ISO text in UTC: neighbours mostly share their second, which is read once; the digits after it are looked up."""
    name = spec.target.encode().hex()
    last, second = f"last_{name}", f"second_{name}"
    in_ms = spec.precision == "ms"
    further = dict.fromkeys(numbers.further_digits(), "") if in_ms else numbers.further_digits()

    def read(text: str, *, lead: bool) -> str | None:
        known = numbers.second_of(text)
        return known if known is None or not lead else LEADS[len(known) + (3 if in_ms else 6)] + known

    def writer(*, lead: bool) -> Callable[[Code, str, str], None]:
        def lines(code: Code, v: str, t: str) -> None:
            code.line(f"x = {v}[:19]")
            with code.block(f"if x != {last}:"):
                code.line(f"{last} = x", f"{second} = {code.constant(partial(read, lead=lead))}(x)")
            with code.block("try:"):
                first, rest = code.constant(numbers.thousandths()), code.constant(further)
                code.line(f"{t} = {second} + {first}[{v}[19:23]] + {rest}[{v}[23:]]")
            with code.block("except (KeyError, TypeError):"):
                code.line(f"{t} = {code.constant(by_form(form))}({v})")
                if lead:
                    code.line(f"{t} = {code.constant(LEADS)}[len({t})] + {t}")

        return lines

    def column(code: Code, c: str, t: str) -> None:
        """All with six digits and ``Z``, as Debezium writes them: looked at together, place by place."""
        end = 23 if in_ms else 26
        code.line(f"x = ''.join({c})", f"y = len({c})")
        length = f"{{*map(len, {c})}} != {{{_ISO_LENGTH}}} or not x.isascii()"
        marks = f"x[19::{_ISO_LENGTH}] != '.' * y or x[26::{_ISO_LENGTH}] != 'Z' * y"
        digits = " + ".join(f"x[{place}::{_ISO_LENGTH}]" for place in range(20, 26))
        with code.block(f"if {length} or {marks} or not ({digits}).isdecimal():"):
            code.line(f"raise {code.constant(Odd)}")
        known = code.constant(lru_cache(SECONDS_KEPT)(partial(read, lead=True)))
        code.line(f"x = {c}[0][:19]", f"y = {known}(x)")
        code.line(f"{t} = [(y if v.startswith(x) else {known}(v[:19])) + v[20:{end}] for v in {c}]")

    setup = (f"{last} = {second} = None",)
    return Reading(str, writer(lead=False), writer(lead=True), column, texts=True, refuses=True, setup=setup)


def _date_member(spec: FieldSpec, form: Form) -> Callable[[Code, str, str], None]:
    def lines(code: Code, v: str, t: str) -> None:
        general = code.constant(by_form(form))
        with code.block(f"if {v}.__class__ is {code.constant(Date)}:"):
            code.line(f"x = {v}.d")
            with code.block(f"if x.__class__ is {code.constant(Long)}:"):
                code.line("x = int(x.l)")
            with code.block("if x.__class__ is int:"):
                _scaled(1_000, spec)(code, "x", t)
            with code.block("else:"):
                code.line(f"{t} = {general}({code.constant(_moment)}(x))")
        with code.block("else:"):
            code.line(f"{t} = {general}({v})")

    return lines


def _dates(spec: FieldSpec) -> Callable[[Code, str, str], None]:
    def lines(code: Code, c: str, t: str) -> None:
        code.line(f"x = [v.d for v in {c}]")
        with code.block("if {*map(type, x)} != {int}:"):
            code.line(f"raise {code.constant(Odd)}")
        text = f"str({rescaled('v', 1_000, spec)})"
        code.line(f"{t} = [{code.constant(LEADS)}[len(y := {text})] + y for v in x]")

    return lines


def _moment(text: str) -> Any:
    return extjson.unwrap({"$date": text})
