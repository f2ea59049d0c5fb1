"""``gapwatch upgrade --check``: what this version, and this configuration, will do with what is stored."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from gapwatch.cli.config import report
from gapwatch.cli.exits import DIFFERENCES
from gapwatch.cli.options import config_of
from gapwatch.errors import UsageError

app = typer.Typer(help="What the next start will do with what is stored.", invoke_without_command=True)


@app.callback()
def upgrade(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Say what will happen, and change nothing.")] = False,
) -> None:
    """Say what the next start will do. Exit code 0: nothing, 1: something, 2: it will not start, 3: something was not read."""
    from gapwatch.config import load
    from gapwatch.wiring.upgrade import check_upgrade

    if not check:
        raise UsageError("An upgrade happens by itself, at the next start.", remedy="Say --check to see what it will do.")
    advice = check_upgrade(load(config_of(context), os.environ))
    code = report(advice)
    raise typer.Exit(code or (DIFFERENCES if any(item.level == "warning" for item in advice) else 0))
