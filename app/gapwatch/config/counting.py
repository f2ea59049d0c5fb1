"""Which records count: `source.where`, `target.deleted_when` and `target.keep`, checked as far as the file alone can say."""

from __future__ import annotations

from collections.abc import Iterator

from gapwatch.config import forms
from gapwatch.config.checks import Problem
from gapwatch.core.conditions import FORM, Keeping, keeping, parse

_KEEP_FORM = "Write a duration and a mapped field, like 90d by placed."


def where_problems(form: forms.Source) -> Iterator[tuple[str, Problem]]:
    """Yield (option, problem) for the row filter of a source."""
    if form.where is not None and (problem := _condition_problem(form.where)) is not None:
        yield "where", problem
    if form.on_leave is not None and form.where is None:
        yield "on_leave", ("There is no `where` that a row could leave.", "Write `where`, or remove it.")


def target_rule_problems(form: forms.Pipeline) -> Iterator[tuple[str, Problem]]:
    """Yield (option, problem) for the soft delete of a target, and for how long it keeps documents."""
    target = form.target
    if target.deleted_when is not None and (problem := _condition_problem(target.deleted_when)) is not None:
        yield "deleted_when", problem
    if target.keep is None:
        return
    kept = kept_of(target)
    if kept is None:
        yield "keep", (f"{target.keep!r} does not say how long, and from when.", _KEEP_FORM)
        return
    if kept.path not in form.fields:
        yield "keep", (f"`{kept.path}` is no field of the pipeline.", f"Map it in `fields`. {_KEEP_FORM}")
    grace = form.grace_max or 300.0 if form.grace == forms.AUTO_GRACE else form.grace
    margin = grace + form.clock_skew_max
    if kept.seconds <= 2 * margin:
        said = f"Within {margin:g} s (grace and clock_skew_max) of a document's end nothing is judged: nothing would ever be."
        yield "keep", (said, f"Write more than {2 * margin:g}s, or a shorter grace.")


def kept_of(form: forms.Target) -> Keeping | None:
    """Return what `keep` says; None where it is not given, or says nothing."""
    try:
        return keeping(form.keep) if form.keep is not None else None
    except ValueError:
        return None


def _condition_problem(text: str) -> Problem | None:
    try:
        parse(text)
    except ValueError as error:
        return f"It is no condition: {error}.", FORM
    return None
