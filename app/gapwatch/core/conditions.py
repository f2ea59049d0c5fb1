"""Conditions that say which records count: ``source.where`` and ``target.deleted_when``, and ``target.keep`` (decision 0025).

A condition is comparisons of single fields with constants, joined by ``and``. It is judged on canonical bytes and in one place
only, so that a row of an event, of a look-up and of a sweep are judged alike. Nothing of it is ever sent to a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from gapwatch.core.canonical import ABSENT, NULL, ODD, VALUE, compile_form
from gapwatch.model.pipeline import FieldSpec, FieldType

FORM: Final = "Write comparisons joined by `and`, like status in ('paid', 'sent') and cancelled_at is null."
RANGES: Final = frozenset({"<", "<=", ">", ">="})
COMPARED: Final = frozenset(FieldType) - {FieldType.BYTES, FieldType.JSON, FieldType.ARRAY}
ORDERED: Final = frozenset(
    {FieldType.INT, FieldType.DECIMAL, FieldType.FLOAT, FieldType.TIMESTAMP, FieldType.DATE, FieldType.TIME}
)
_TOKEN: Final = re.compile(
    r"""\s*(?:
        '(?P<text>(?:[^']|'')*)'
      | "(?P<quoted>(?:[^"]|"")+)"
      | (?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)(?![\w.])
      | (?P<sign><=|>=|<>|!=|=|<|>|\(|\)|,)
      | (?P<word>[^\W\d][\w.$-]*)
    )""",
    re.VERBOSE,
)
_KEEP: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s+by\s+(\S+)\s*")
_UNITS: Final = {"ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400"}

Constant = str | Decimal | bool
Test = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Clause:
    """One comparison. ``operator``: ``=`` and ``<>`` (also with several constants), those of `RANGES`, ``null``, ``not null``."""

    path: str
    operator: str
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long the target keeps a document, counted from the time in the mapped field ``path``."""

    seconds: float
    path: str


def parse(text: str) -> tuple[Clause, ...]:
    """Return the comparisons of a condition. Raises ValueError with what is wrong; :data:`FORM` says what to write."""
    tokens = _tokens(text)
    clauses = []
    while True:
        clauses.append(_clause(tokens))
        if not tokens:
            return tuple(clauses)
        kind, word = tokens.pop(0)
        if (kind, word.lower()) != ("word", "and"):
            said = (
                "there is no `or`: list the values with `in`" if word.lower() == "or" else f"{word!r} stands where `and` should"
            )
            raise ValueError(said)


def keeping(text: str) -> Keeping:
    """Return what ``target.keep`` says. Raises ValueError."""
    match = _KEEP.fullmatch(text)
    if match is None or not Decimal(match[1]):
        raise ValueError("it is no duration and field")
    return Keeping(float(Decimal(match[1]) * Decimal(_UNITS[match[2]])), match[3])


def paths_of(text: str) -> tuple[str, ...]:
    """Return the fields that a condition names, each once; none of no condition."""
    return tuple(dict.fromkeys(clause.path for clause in parse(text))) if text else ()


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:].strip()[:20]!r} cannot be read")
        kind = str(match.lastgroup)
        value = match[kind]
        tokens.append((kind, value.replace("''", "'") if kind == "text" else value.replace('""', '"')))
        at = match.end()
    return tokens


def _clause(tokens: list[tuple[str, str]]) -> Clause:
    kind, path = _next(tokens)
    if kind not in ("word", "quoted"):
        raise ValueError(f"{path!r} stands where a field should")
    kind, operator = _next(tokens)
    if kind == "sign" and operator in ("=", "<>", "!=", *RANGES):
        return Clause(path, "<>" if operator == "!=" else operator, (_constant(tokens),))
    word = operator.lower() if kind == "word" else ""
    if word == "is":
        negated = _take(tokens, "not")
        if not _take(tokens, "null"):
            raise ValueError("after `is` stands `null` or `not null`")
        return Clause(path, "not null" if negated else "null")
    negated = word == "not"
    if word == "in" or (negated and _take(tokens, "in")):
        return Clause(path, "<>" if negated else "=", _list(tokens))
    raise ValueError(f"{operator!r} is no comparison")


def _next(tokens: list[tuple[str, str]]) -> tuple[str, str]:
    if not tokens:
        raise ValueError("it ends too early")
    return tokens.pop(0)


def _take(tokens: list[tuple[str, str]], word: str) -> bool:
    if tokens and tokens[0][0] == "word" and tokens[0][1].lower() == word:
        del tokens[0]
        return True
    return False


def _constant(tokens: list[tuple[str, str]]) -> Constant:
    kind, value = _next(tokens)
    if kind == "text":
        return value
    if kind == "number":
        return Decimal(value)
    if kind == "word" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind == "word" and value.lower() == "null":
        raise ValueError("nothing is compared with null: write `is null` or `is not null`")
    raise ValueError(f"{value!r} is no constant: text stands in single quotes")


def _list(tokens: list[tuple[str, str]]) -> tuple[Constant, ...]:
    if _next(tokens) != ("sign", "("):
        raise ValueError("after `in` stands a list in parentheses")
    constants = [_constant(tokens)]
    while (token := _next(tokens)) == ("sign", ","):
        constants.append(_constant(tokens))
    if token != ("sign", ")"):
        raise ValueError(f"{token[1]!r} stands in a list where `,` or `)` should")
    return tuple(constants)


# ── judging ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def type_problem(clause: Clause, spec: FieldSpec) -> str:
    """Say why a field of this type cannot be compared so; empty where it can."""
    if clause.operator in ("null", "not null"):
        return ""
    if spec.type not in COMPARED:
        return f"A field of type {spec.type.value} can only be asked for null."
    if clause.operator in RANGES and not _is_ordered(clause, spec):
        return f"A field of type {spec.type.value} has no order here: `{clause.operator}` compares numbers and times."
    form = compile_form(spec)
    for constant in clause.constants:
        if form(constant)[:1] == ODD:
            return f"{constant!s} is not of type {spec.type.value}."
    return ""


def _is_ordered(clause: Clause, spec: FieldSpec) -> bool:
    if spec.type is FieldType.INFERRED:
        return all(isinstance(constant, Decimal) for constant in clause.constants)
    return spec.type in ORDERED


def comparison(clause: Clause, spec: FieldSpec) -> Test:
    """Return the test of a field's canonical bytes. Null, and what is not there, satisfies ``is null`` and nothing else."""
    nothing = (NULL, ABSENT)
    if clause.operator == "null":
        return lambda part: part in nothing
    if clause.operator == "not null":
        return lambda part: part not in nothing
    form = compile_form(spec)
    known = frozenset(form(constant) for constant in clause.constants)
    if clause.operator == "=":
        return lambda part: part in known
    if clause.operator == "<>":
        return lambda part: part not in known and part not in nothing
    return _range(clause.operator, form(clause.constants[0]), spec.type)


def _range(operator: str, end: bytes, kind: FieldType) -> Test:
    limit = _ordinal(end, kind)

    def test(part: bytes) -> bool:
        value = _ordinal(part, kind)
        if value is None or limit is None:
            return False
        if operator == "<":
            return value < limit
        if operator == "<=":
            return value <= limit
        return value > limit if operator == ">" else value >= limit

    return test


def _ordinal(part: bytes, kind: FieldType) -> Decimal | None:
    """Return a canonical number or time as a number that can be compared; None where it is neither."""
    if part[:1] != VALUE:
        return None
    payload = part[1:]
    if kind is FieldType.INFERRED:
        if payload[:1] != b"d" or payload[-1:] != b";":
            return None
        payload = payload[1:-1]
    number = Decimal(payload.decode())
    return None if number.is_nan() else number


def holds(tests: Sequence[Test], parts: Sequence[bytes | None]) -> bool | None:
    """Whether all tests hold; None where that depends on a field that is masked."""
    known = True
    for test, part in zip(tests, parts, strict=True):
        if part is None:
            known = False
        elif not test(part):
            return False
    return True if known else None
