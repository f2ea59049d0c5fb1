"""The part of a pipeline's configuration that says when it is swept, and how gently."""

from __future__ import annotations

from collections.abc import Iterator

from gapwatch.config import forms
from gapwatch.config.source import Place
from gapwatch.core.cron import EXAMPLE as CRON_EXAMPLE
from gapwatch.core.cron import is_cron
from gapwatch.model.pipeline import BatchSpec, SweepSpec

FULL_EVERY_SECONDS = 7 * 86_400.0  # where scheduled sweeps look back
EVERY_SECONDS_MIN = 10.0

Problem = tuple[Place, str, str]  # where, what, what to do


def sweep_spec(form: forms.Sweep) -> SweepSpec:
    return SweepSpec(
        every_seconds=form.every,
        cron=form.cron or "",
        lookback_seconds=form.lookback,
        full_every_seconds=form.full_every or (FULL_EVERY_SECONDS if form.lookback is not None else None),
        start_delay_seconds=form.start_delay,
        load=form.load,
        within_seconds=form.within,
        parts=form.parts,
        batch=BatchSpec(
            documents=form.batch.documents,
            bytes=form.batch.bytes,
            pause_seconds=form.batch.pause,
            adaptive=form.batch.pace == "adaptive",
        ),
    )


def sweep_problems(form: forms.Sweep, *, changed_at: bool) -> Iterator[Problem]:
    """Yield what no sweep can do. ``changed_at``: whether a column says when a row was written last."""
    if form.lookback is not None and not changed_at:
        remedy = "Name the column in source.changed_at, like changed_at: updated_at."
        yield ("lookback",), "Nobody says when a row was written last.", remedy
    if form.full_every is not None and form.lookback is None:
        yield ("full_every",), "Every sweep is a full one: there is no `lookback`.", "Write `every`."
    if form.every is not None and form.every < EVERY_SECONDS_MIN:
        yield ("every",), f"Sweeps may start every {EVERY_SECONDS_MIN:.0f} s at most.", "Write 30m."
    if form.cron is not None and form.every is not None:
        yield ("cron",), "There is an interval as well.", "Write either `every` or `cron`."
    elif form.cron is not None and not is_cron(form.cron):
        yield ("cron",), f"{form.cron!r} is no cron expression of five fields.", f"Write {CRON_EXAMPLE}."
    if form.within and form.every is None and form.cron is None:
        yield ("within",), "No sweep is scheduled, and only those take their time.", "Write `every` or `cron` as well."
    if form.within and form.every is not None and form.within > form.every:
        yield ("within",), "The next sweep would be due before this one ends.", "Write a time shorter than `every`."
