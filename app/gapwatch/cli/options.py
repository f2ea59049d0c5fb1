"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click
import typer

UrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="Address of a running service; else GAPWATCH_URL, else the configuration's.")
]
OutputOption = Annotated[
    str,
    typer.Option(
        "--output", "-o", help="table, json, ndjson or csv.", click_type=click.Choice(["table", "json", "ndjson", "csv"])
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until it has ended; the exit code says how.")]


def config_of(context: typer.Context) -> Path | None:
    """Return the file that the global option ``--config`` names."""
    root: click.Context = context.find_root()
    chosen: Any = root.params.get("config")
    return Path(chosen) if chosen is not None else None
