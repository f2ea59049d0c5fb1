"""``gapwatch gaps``: list, show, acknowledge, snooze and resolve gaps."""

from __future__ import annotations

from typing import Annotated

import typer

from gapwatch.api_client import segment
from gapwatch.cli.client import connect
from gapwatch.cli.exits import DIFFERENCES
from gapwatch.cli.options import Output, OutputOption, UrlOption, config_of
from gapwatch.cli.output import emit, note

app = typer.Typer(help="Confirmed differences, with their evidence.", no_args_is_help=True)

COLUMNS = ("id", "pipeline", "key_text", "kind", "cause", "state", "event_time", "confirmed_at", "occurrences")
OPEN_STATES = "open,acknowledged,snoozed,repairing"


@app.command("list")
def list_gaps(
    context: typer.Context,
    pipeline: Annotated[str, typer.Option(help="Only this pipeline.")] = "",
    kind: Annotated[str, typer.Option(help="Only these kinds (comma-separated).")] = "",
    state: Annotated[str, typer.Option(help="Only these states (comma-separated), or all.")] = OPEN_STATES,
    cause: Annotated[str, typer.Option(help="Only these causes (comma-separated).")] = "",
    since: Annotated[str, typer.Option(help="Only gaps confirmed since this time (RFC 3339).")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1_000,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List gaps, the oldest first. Exit code 1 when there is one."""
    states = "" if state == "all" else state
    with connect(url, config_of(context)) as api:
        found = api.pages("/api/v1/gaps", "gaps", limit, pipeline=pipeline, kind=kind, state=states, cause=cause, since=since)
    emit(found, COLUMNS, output)
    raise typer.Exit(DIFFERENCES if found else 0)


@app.command()
def show(context: typer.Context, gap: str, url: UrlOption = "", output: OutputOption = Output.JSON) -> None:
    """Show one gap with its evidence and its history."""
    with connect(url, config_of(context)) as api:
        record = api.get(f"/api/v1/gaps/{segment(gap)}")
    emit([record], COLUMNS, output, single=True)


@app.command()
def ack(
    context: typer.Context,
    gap: str,
    note_text: Annotated[str, typer.Option("--note", help="What the next person should know.")] = "",
    url: UrlOption = "",
) -> None:
    """Acknowledge a gap: it is known, and alerts no more."""
    _change(context, gap, "ack", {"note": note_text}, url)


@app.command()
def snooze(
    context: typer.Context,
    gap: str,
    seconds: Annotated[float, typer.Option("--for", min=1, max=365 * 86_400, help="How many seconds.")] = 3_600,
    url: UrlOption = "",
) -> None:
    """Silence a gap for a while."""
    _change(context, gap, "snooze", {"seconds": seconds}, url)


@app.command()
def resolve(
    context: typer.Context,
    gap: str,
    resolution: Annotated[str, typer.Option(help="accepted (it stays different, on purpose) or manual.")] = "manual",
    note_text: Annotated[str, typer.Option("--note", help="Why.")] = "",
    url: UrlOption = "",
) -> None:
    """Resolve a gap by hand."""
    _change(context, gap, "resolve", {"resolution": resolution, "note": note_text}, url)


def _change(context: typer.Context, gap: str, action: str, body: dict[str, object], url: str) -> None:
    with connect(url, config_of(context)) as api:
        record = api.post(f"/api/v1/gaps/{segment(gap)}/{action}", body)
    note(f"{record['id']} is {record['state']}.")
