"""``gapwatch doctor``: what would lose data, or not work, before anything is started."""

from __future__ import annotations

import os

import typer

from gapwatch.cli.config import report
from gapwatch.cli.options import config_of

app = typer.Typer(help="Check stores, connectors and topics before a start.", invoke_without_command=True)


@app.callback()
def doctor(context: typer.Context) -> None:
    """Ask every store, connector and topic; print what is wrong and what to do. Exit code 2 on errors, 3 if one was not read."""
    from gapwatch.config import load
    from gapwatch.wiring.examination import examine

    raise typer.Exit(report(examine(load(config_of(context), os.environ))))
