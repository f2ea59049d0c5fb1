"""``gapwatch run``: the service, whole or one role of it."""

from __future__ import annotations

from typing import Annotated

import click
import typer

from gapwatch.cli.options import config_of

app = typer.Typer(help="Run the service.", invoke_without_command=True)
ROLES = ["all", "capture", "ingest", "match", "repair", "api"]


@app.callback()
def run(
    context: typer.Context,
    role: Annotated[
        str, typer.Option(help="Which role; all: every one, on this machine.", click_type=click.Choice(ROLES))
    ] = "all",
) -> None:
    """Watch the configured pipelines until SIGTERM or Ctrl-C."""
    from gapwatch.wiring import serve

    raise typer.Exit(serve(config_of(context), role))
