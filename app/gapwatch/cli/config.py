"""``gapwatch config``: check, print and describe the configuration."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from gapwatch.cli.exits import UNDECIDED, USAGE
from gapwatch.cli.options import config_of
from gapwatch.cli.output import note

app = typer.Typer(help="Check, print and describe the configuration.", no_args_is_help=True)


@app.command()
def validate(
    context: typer.Context,
    against_live: Annotated[bool, typer.Option("--against-live", help="Read keys on both sides and compare them too.")] = False,
) -> None:
    """Check the configuration; every problem is listed at once."""
    from gapwatch.config import load

    settings = load(config_of(context), os.environ)
    note(f"{settings.file}: {len(settings.pipelines)} pipelines, {len(settings.stores)} stores, no problem found.")
    if against_live:
        from gapwatch.wiring.examination import validate_live

        raise typer.Exit(report(validate_live(settings)))


def report(advice: object) -> int:
    """Print advice, worst first; return the exit code."""
    from gapwatch.check_ports import Advice

    assert isinstance(advice, list | tuple)
    order = {"error": 0, "unknown": 1, "warning": 2, "ok": 3}
    for item in sorted(advice, key=lambda item: order.get(item.level, 0)):
        assert isinstance(item, Advice)
        print(f"{item.level:8} {item.subject}: {item.message}" + (f" {item.remedy}" if item.remedy else ""))
    levels = {item.level for item in advice}
    if "error" in levels:
        return USAGE
    return 0 if levels <= {"warning", "ok"} else UNDECIDED


@app.command()
def render(context: typer.Context) -> None:
    """Print the effective configuration, with secrets masked."""
    from gapwatch.config import load
    from gapwatch.config import render as rendered

    print(rendered(load(config_of(context), os.environ)), end="")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the file."""
    from gapwatch.config import json_schema

    print(json.dumps(json_schema(), indent=2))
