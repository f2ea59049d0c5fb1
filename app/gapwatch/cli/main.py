"""The command ``gapwatch``: loads a noun's module only when it is asked for, and turns errors into sentences and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from gapwatch import __version__
from gapwatch.cli.exits import INTERRUPTED

NOUNS = {
    "run": ("gapwatch.cli.run", "Run the service, whole or one role of it."),
    "demo": ("gapwatch.cli.demo", "The main job on real parts, with a connector that loses writes."),
    "doctor": ("gapwatch.cli.doctor", "Check stores, connectors and topics before a start."),
    "pipelines": ("gapwatch.cli.pipelines", "How every pipeline stands; pause and resume."),
    "gaps": ("gapwatch.cli.gaps", "List, show, acknowledge, snooze and resolve gaps."),
    "key": ("gapwatch.cli.key", "All that is known about one key."),
    "sweep": ("gapwatch.cli.sweep", "Compare both stores completely: start, status, cancel."),
    "backfill": ("gapwatch.cli.backfill", "Repair open gaps: plan, then apply."),
    "config": ("gapwatch.cli.config", "Check, print and describe the configuration."),
    "topics": ("gapwatch.cli.topics", "Gapwatch's own topics."),
}


def _version_of(chosen: bool) -> None:
    if chosen:
        print(f"gapwatch {__version__}")
        raise typer.Exit


def application(arguments: Sequence[str]) -> typer.Typer:
    """Return the application with the one noun loaded that `arguments` name; the others are known by name and help only."""
    app = typer.Typer(
        name="gapwatch",
        help="Did every write committed at the source arrive at the target, correctly? Continuously, and with evidence.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    chosen = next((argument for argument in arguments if argument in NOUNS), None)
    for name, (module, text) in NOUNS.items():
        if name == chosen:
            app.add_typer(import_module(module).app, name=name, help=text)
        else:
            app.command(name, help=text)(_not_loaded)
    return app


def _not_loaded() -> None:
    raise AssertionError("a noun that is called has been loaded")


def _root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Default: GAPWATCH_CONFIG, else gapwatch.yaml.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_version_of)
    ] = False,
) -> None:
    context.obj = config


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with one of the exit codes of ``exits``."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors are one sentence on standard error, never a traceback."""
    from gapwatch.errors import ConfigError, GapwatchError

    try:
        code = application(arguments)(arguments, prog_name="gapwatch", standalone_mode=False)
    except typer.Exit as ended:
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except typer.TyperException as error:
        error.show(sys.stderr)  # type: ignore[attr-defined] # every exception of the parser has it; Typer's base does not say so
        return error.exit_code
    except GapwatchError as error:
        if os.environ.get("GAPWATCH_DEBUG") == "1":
            raise
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy and not isinstance(error, ConfigError):
            print(f"  {error.remedy}", file=sys.stderr)
        return error.exit_code
    return code if isinstance(code, int) else 0
