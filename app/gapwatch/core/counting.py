"""Which records of a pipeline count (decision 0025): the row filter, soft delete and the time that the target keeps documents.

A row outside ``source.where``, and a document for which ``target.deleted_when`` holds, count as absent. No store judges either:
every event, look-up and scan passes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from gapwatch.core.canonical import VALUE, Form, compile_form
from gapwatch.core.conditions import Test, comparison, holds, parse, paths_of, type_problem
from gapwatch.core.keys import getter
from gapwatch.core.temporal import PER_SECOND
from gapwatch.errors import ConfigProblem
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec
from gapwatch.model.stream import Operation, Side

DAY_MS: Final = 86_400_000
DATED: Final = frozenset({FieldType.TIMESTAMP, FieldType.DATE})


class Age(Enum):
    """Where a record stands to the end of its time at the target."""

    LIVE = "live"
    CLOSE = "close"  # within grace and clock skew of its end: the target may or may not hold it
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of one side. ``specs`` are the fields of its comparisons, in their order; ``forms`` are for driver values."""

    paths: tuple[str, ...]
    specs: tuple[FieldSpec, ...]
    getters: tuple[Callable[[Mapping[str, Any]], Any], ...]
    forms: tuple[Form, ...]
    tests: tuple[Test, ...]

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Judge a whole row or document: nothing of it is masked."""
        return holds(self.tests, [form(get(record)) for form, get in zip(self.forms, self.getters, strict=True)]) is True


class Counting:
    """The rules of one pipeline. Without any, everything counts."""

    def __init__(self, pipeline: PipelineSpec) -> None:
        source, target = pipeline.source, pipeline.target
        self._conditions = {
            Side.EXPECTED: _condition(source.where, _source_specs(pipeline), json_text=False),
            Side.OBSERVED: _condition(target.deleted_when, _target_specs(pipeline), json_text=True),
        }
        self.ignores_leavers = bool(source.where) and source.on_leave == "ignore"
        self._keep = _Keep(pipeline) if target.keep_by else None

    def condition(self, side: Side) -> Condition | None:
        return self._conditions[side]

    def filters(self, side: Side) -> bool:
        """Whether there may be records of a side that do not count."""
        return self._conditions[side] is not None or self._keep is not None

    def counted(self, side: Side, verdict: bool | None) -> bool | None:
        """Say whether a record counts for which the side's condition holds, does not, or may (None)."""
        return verdict if verdict is None or side is Side.EXPECTED else not verdict

    def counts(self, side: Side, record: Mapping[str, Any]) -> bool:
        """Whether a row or document, as read, is there at all."""
        condition = self._conditions[side]
        return condition is None or self.counted(side, condition.holds(record)) is True

    def age(self, side: Side, record: Mapping[str, Any], now_ms: int) -> Age:
        return Age.LIVE if self._keep is None else self._keep.age(side, record, now_ms)

    def told(self, side: Side, operation: Operation, *, counted: bool | None, created: bool) -> Operation | None:
        """Return what an event says of its key; None: nothing.

        Args:
            side: Where it was written.
            operation: What was done to the record.
            counted: Whether the record counts after it; None where the event lacks the field that decides.
            created: Whether there was no such record before: one outside the filter then changes nothing.
        """
        if counted:
            return operation
        if operation is Operation.SNAPSHOT:
            return None  # it only refreshes what is known: of the key nothing is there to be known
        if counted is None or operation is Operation.LOOKED_UP:
            return Operation.TOUCHED  # masked, or the document of a later write: reading decides
        if side is Side.EXPECTED and (created or self.ignores_leavers):
            return Operation.UNCHANGED
        return Operation.DELETE


class _Keep:
    """How long the target keeps documents."""

    def __init__(self, pipeline: PipelineSpec) -> None:
        target = pipeline.target
        spec = next(field for field in pipeline.fields if field.target == target.keep_by)
        self._spec = spec
        self._keep_ms = round(target.keep_seconds * 1000)
        self._margin_ms = round((pipeline.grace_seconds + pipeline.clock_skew_max_seconds) * 1000)
        self._read = {
            Side.EXPECTED: (getter(spec.source), compile_form(spec)),
            Side.OBSERVED: (getter(spec.target), compile_form(spec, json_text=True)),
        }

    def age(self, side: Side, record: Mapping[str, Any], now_ms: int) -> Age:
        get, form = self._read[side]
        began = self._began_ms(form(get(record)))
        if began is None:
            return Age.LIVE
        left = began + self._keep_ms - now_ms
        if left <= -self._margin_ms:
            return Age.EXPIRED
        return Age.CLOSE if left < self._margin_ms else Age.LIVE

    def _began_ms(self, part: bytes) -> int | None:
        """Return the time in milliseconds; None where there is none, or one without an end."""
        text = part[1:].decode("utf-8", "replace") if part[:1] == VALUE else ""
        if self._spec.type not in DATED or not text.lstrip("-").isdigit():
            return None
        if self._spec.type is FieldType.DATE:
            return int(text) * DAY_MS
        return int(text) * 1_000 // PER_SECOND[self._spec.precision]


def read_beside(pipeline: PipelineSpec, side: Side) -> tuple[str, ...]:
    """Return the columns or paths that say whether a record counts: also a scan of keys alone reads them."""
    if side is Side.EXPECTED:
        kept = [field.source for field in pipeline.fields if field.target == pipeline.target.keep_by]
        return tuple(dict.fromkeys([*paths_of(pipeline.source.where), *kept]))
    kept = [pipeline.target.keep_by] if pipeline.target.keep_by else []
    return tuple(dict.fromkeys([*pipeline.target.also_read, *paths_of(pipeline.target.deleted_when), *kept]))


def problems(pipeline: PipelineSpec) -> Iterator[ConfigProblem]:
    """Yield what is wrong with the rules of a pipeline whose field types are resolved."""
    sides = (
        ("source.where", pipeline.source.where, _source_specs(pipeline), "Compare another column, or ask for null."),
        (
            "target.deleted_when",
            pipeline.target.deleted_when,
            _target_specs(pipeline),
            "Write a constant of its type, or map the field and declare its type.",
        ),
    )
    for place, text, specs, remedy in sides:
        for clause in parse(text) if text else ():
            said = type_problem(clause, specs[clause.path])
            if said:
                yield ConfigProblem(f"pipelines.{pipeline.id}.{place}", f"`{clause.path}`: {said}", remedy=remedy)
    kept = next((field for field in pipeline.fields if field.target == pipeline.target.keep_by), None)
    if kept is not None and kept.type not in DATED:
        yield ConfigProblem(
            f"pipelines.{pipeline.id}.target.keep",
            f"Field {kept.target} is of type {kept.type.value}: it holds no time that a document's age could be counted from.",
            remedy="Name a field of type timestamp or date, or declare its type.",
        )


def _source_specs(pipeline: PipelineSpec) -> Mapping[str, FieldSpec]:
    open_ones = {path: FieldSpec(target=path, source=path) for path in paths_of(pipeline.source.where)}
    return open_ones | {spec.source: spec for spec in pipeline.source.where_fields}


def _target_specs(pipeline: PipelineSpec) -> Mapping[str, FieldSpec]:
    open_ones = {path: FieldSpec(target=path, source=path) for path in paths_of(pipeline.target.deleted_when)}
    return open_ones | {spec.target: spec for spec in pipeline.fields if spec.target in open_ones}


def _condition(text: str, specs: Mapping[str, FieldSpec], *, json_text: bool) -> Condition | None:
    if not text:
        return None
    clauses = parse(text)
    found = tuple(specs[clause.path] for clause in clauses)
    return Condition(
        paths=tuple(clause.path for clause in clauses),
        specs=found,
        getters=tuple(getter(clause.path) for clause in clauses),
        forms=tuple(compile_form(spec, json_text=json_text) for spec in found),
        tests=tuple(comparison(clause, specs[clause.path]) for clause in clauses),
    )


def declared(pipeline: PipelineSpec) -> dict[str, str]:
    """Return the rules that there are, as they are declared: by another one, what was proved was proved of other records."""
    target = pipeline.target
    rules = {
        "where": pipeline.source.where,
        "on_leave": pipeline.source.on_leave if pipeline.source.where else "",
        "deleted_when": target.deleted_when,
        "keep": f"{target.keep_seconds:g}s by {target.keep_by}" if target.keep_by else "",
    }
    return {name: text for name, text in rules.items() if text}
