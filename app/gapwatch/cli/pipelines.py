"""``gapwatch pipelines``: how every pipeline stands; pause and resume."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gapwatch.api_client import segment
from gapwatch.cli.client import connect
from gapwatch.cli.exits import DIFFERENCES, UNDECIDED
from gapwatch.cli.options import Output, OutputOption, UrlOption, config_of
from gapwatch.cli.output import emit, note

app = typer.Typer(help="How every pipeline stands.", no_args_is_help=False, invoke_without_command=True)

COLUMNS = ("id", "status", "consistent_through", "lag", "pending_keys", "in_transit_keys", "gaps", "coverage", "reason")


def row(view: dict[str, Any]) -> dict[str, Any]:
    """Return one line of the table: loss (gaps) and lag apart."""
    lags = [feed["lag"] for feed in view["feeds"] if feed["lag"] is not None]
    return {
        **view,
        "lag": sum(lags) if lags else None,
        "gaps": sum(view["gaps_open"].values()),
        "reason": view["reasons"][0] if view["reasons"] else None,
    }


def exit_code(views: list[dict[str, Any]]) -> int:
    """Return 0 only when every pipeline is proven consistent; 1 for differences, 3 where something was not read or is paused."""
    if any(sum(view["gaps_open"].values()) for view in views):
        return DIFFERENCES
    if any(view["status"] in ("UNKNOWN", "CRITICAL", "ERROR", "SKIPPED") or view["consistent_through"] is None for view in views):
        return UNDECIDED
    return 0


@app.callback()
def pipelines(context: typer.Context, url: UrlOption = "", output: OutputOption = Output.TABLE) -> None:
    """Show every pipeline with its status, consistent-through, lag and gaps."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, config_of(context)) as api:
        views = api.get("/api/v1/pipelines")["pipelines"]
    emit(views if output != "table" else [row(view) for view in views], COLUMNS, output)
    raise typer.Exit(exit_code(views))


@app.command()
def pause(
    context: typer.Context,
    pipeline: str,
    reason: Annotated[str, typer.Option(help="Why; shown beside the status.")] = "",
    url: UrlOption = "",
) -> None:
    """Leave a pipeline alone: SKIPPED, nothing opens or is repaired. Its streams are read on, and judged when it is resumed."""
    with connect(url, config_of(context)) as api:
        api.post(f"/api/v1/pipelines/{segment(pipeline)}/pause", {"reason": reason})
    note(f"{pipeline} is paused.")


@app.command()
def resume(context: typer.Context, pipeline: str, url: UrlOption = "") -> None:
    """Take a paused pipeline up again; a sweep looks at what changed meanwhile."""
    with connect(url, config_of(context)) as api:
        api.post(f"/api/v1/pipelines/{segment(pipeline)}/resume")
    note(f"{pipeline} is watched again.")
