"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


UrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="Address of a running service; else GAPWATCH_URL, else the configuration's.")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How data is printed.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until it has ended; the exit code says how.")]


def config_of(context: typer.Context) -> Path | None:
    """Return the file that the global option ``--config`` names."""
    chosen = context.find_root().obj
    return chosen if isinstance(chosen, Path) else None
