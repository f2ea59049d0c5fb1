"""``gapwatch run``: the service, whole or one role of it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
    raise typer.Exit(_serve()(config_of(context), role))


def _serve() -> Callable[[Path | None, str], int]:
    """Import the service, in as little time as that takes: it is most of what a start costs."""
    gc.disable()  # imports make no garbage, and looking for it took a sixth of their time
    without: dict[str, Any] = {} if "rich" in sys.modules else {"rich": None}
    sys.modules.update(without)  # structlog would import it for tracebacks in colours, which no log line has
    try:
        from gapwatch.wiring.service import serve
    finally:
        for name in without:
            del sys.modules[name]
        gc.enable()
    return serve
