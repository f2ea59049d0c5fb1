"""``gapwatch replay``: what the streams say of a range, once more; and what both stores say of it now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer

from gapwatch.cli import runs
from gapwatch.cli.client import connect
from gapwatch.cli.exits import CONSISTENT, DIFFERENCES, UNDECIDED
from gapwatch.cli.options import Output, OutputOption, UrlOption, WaitOption, config_of
from gapwatch.cli.output import Progress, emit, note
from gapwatch.errors import UsageError

app = typer.Typer(help="Read a range of the topics again.", no_args_is_help=True)

COLUMNS = (
    "key_text",
    "verdict",
    "reason",
    "operation",
    "event_time",
    "due",
    "shown_at",
    "confirmed",
    "topic",
    "partition",
    "offset",
)

FromOption = Annotated[str, typer.Option("--from", metavar="TIME", help="RFC 3339, or [TOPIC/]PARTITION:OFFSET,…")]
ToOption = Annotated[str, typer.Option("--to", metavar="TIME", help="The same; not a part of the range.")]
OfOption = Annotated[str, typer.Option("--of", help="events (canonical sections), or raw (the feeds' own topics).")]


@app.command()
def verdicts(
    context: typer.Context,
    pipeline: str,
    from_text: FromOption,
    to_text: ToOption,
    of: OfOption = "events",
    grace: Annotated[str, typer.Option(help="What would have been said with this grace (30s, 5m).")] = "",
    tolerance: Annotated[list[str] | None, typer.Option(metavar="FIELD=NUMBER", help="… with this tolerance of a field.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Name the writes of a range that were late, by the streams alone. Reads Kafka itself; changes nothing anywhere."""
    from gapwatch.config import load
    from gapwatch.wiring.replaying import replay_verdicts

    settings = load(config_of(context), os.environ)
    with Progress(f"replay {pipeline}") as progress:
        found = replay_verdicts(
            settings,
            pipeline,
            time_from=from_text,
            time_to=to_text,
            of=of,
            grace_seconds=_seconds(grace),
            tolerances=_tolerances(tolerance or ()),
            on_progress=progress.show,
        )
    single = output is Output.JSON
    emit([found] if single else found["named"], COLUMNS, output, single=single)
    note(summary(found))
    raise typer.Exit(exit_code(found))


@app.command()
def reconcile(
    context: typer.Context,
    pipeline: str,
    from_text: FromOption,
    to_text: ToOption,
    of: OfOption = "events",
    wait: WaitOption = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 3_600,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Read the keys of a range in both stores: gaps, and a plan for them. A running service carries it out."""
    request = {"pipeline": pipeline, "from": from_text, "to": to_text, "of": of}
    with connect(url, config_of(context)) as api:
        run: dict[str, Any] | None = api.post("/api/v1/replays", request)
        assert run is not None
        if wait:
            run = runs.wait(api, "/api/v1/replays", run, timeout)
    if run is None:
        note(f"The replay had not ended after {timeout:.0f} s; it goes on.")
    else:
        emit([run], runs.COLUMNS, output)
        if run["error"]:
            note(run["error"])
        if run["request"].get("plan"):
            planned = run["counts"]["planned"]
            note(f"{planned} documents would be repaired. Apply it with: gapwatch backfill apply {run['request']['plan']}")
    if wait:
        raise typer.Exit(runs.exit_code(run))


def summary(found: Mapping[str, Any]) -> str:
    """Say in one sentence or two what was found, and what could not be."""
    counts, read = found["verdicts"], found["read"]
    text = (
        f"{counts['open']} open, {counts['late']} late, {counts['unknown']} unknown;"
        f" read {read['expected']} writes of the source and {read['observed']} of the target."
    )
    if found["holes"]:
        text += f" {len(found['holes'])} stretches of the streams are missing: nobody can judge their writes."
    if found["undecided"]:
        text += f" {found['undecided']} keys could not be judged yet."
    if not found["complete"]:
        text += " The logs end before the range was read through."
    return text


def exit_code(found: Mapping[str, Any]) -> int:
    """Return 1 where a write was late, 3 where something was not decided, 0 where everything arrived in time."""
    if found["verdicts"]["open"] or found["verdicts"]["late"]:
        return DIFFERENCES
    unsure = found["verdicts"]["unknown"] or found["holes"] or found["undecided"] or not found["complete"]
    return UNDECIDED if unsure else CONSISTENT


def _seconds(text: str) -> float | None:
    from gapwatch.config.forms import seconds

    if not text:
        return None
    try:
        return float(seconds(text))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{text!r} is not a length of time.", remedy="Write it like 30s, 500ms or 5m.") from error


def _tolerances(texts: Sequence[str]) -> dict[str, Decimal]:
    pairs = [_tolerance(text) for text in texts]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UsageError("A field is given two tolerances.", remedy="Give one for each field.")
    return found


def _tolerance(text: str) -> tuple[str, Decimal]:
    name, _, number = text.partition("=")
    try:
        value = Decimal(number)
    except InvalidOperation:
        value = Decimal(-1)
    if not name or not value.is_finite() or value < 0:
        raise UsageError(f"{text!r} is not a tolerance.", remedy="Write it like total=0.01.")
    return name, value
