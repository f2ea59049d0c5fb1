"""``gapwatch run``: the service, whole or one role of it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gapwatch.arenas import share_arenas
from gapwatch.cli.options import config_of
from gapwatch.imports import quick_imports

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
    raise typer.Exit(_serve()(config_of(context), role))


def _serve() -> Callable[[Path | None, str], int]:
    share_arenas()
    with quick_imports():
        from gapwatch.wiring.service import serve
    return serve
