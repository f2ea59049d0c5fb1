"""``gapwatch run``: the service, whole or one role of it."""

from __future__ import annotations

import gc
from enum import StrEnum
from typing import Annotated

import typer

from gapwatch.cli.options import config_of

app = typer.Typer(help="Run the service.", invoke_without_command=True)


class Role(StrEnum):
    ALL = "all"
    CAPTURE = "capture"
    INGEST = "ingest"
    MATCH = "match"
    REPAIR = "repair"
    API = "api"


@app.callback()
def run(
    context: typer.Context,
    role: Annotated[Role, typer.Option(help="Which role; all: every one, on this machine.")] = Role.ALL,
) -> None:
    """Watch the configured pipelines until SIGTERM or Ctrl-C."""
    gc.disable()  # imports make no garbage, and looking for it took a sixth of their time
    from gapwatch.wiring.service import serve

    gc.enable()
    raise typer.Exit(serve(config_of(context), role))
