"""The command ``gapwatch``: loads a noun's module only when it is asked for, and turns errors into sentences and exit codes."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gapwatch import __version__
from gapwatch.cli.exits import CONSISTENT, INTERRUPTED, UNDECIDED, USAGE

NOUNS = {
    "run": ("gapwatch.cli.run", "Run the service, whole or one role of it."),
    "demo": ("gapwatch.cli.demo", "The main job on real parts, with a connector that loses writes."),
    "doctor": ("gapwatch.cli.doctor", "Check stores, connectors and topics before a start."),
    "pipelines": ("gapwatch.cli.pipelines", "How every pipeline stands; pause and resume."),
    "gaps": ("gapwatch.cli.gaps", "List, show, acknowledge, snooze and resolve gaps."),
    "key": ("gapwatch.cli.key", "All that is known about one key."),
    "sweep": ("gapwatch.cli.sweep", "Compare both stores completely: start, status, cancel."),
    "backfill": ("gapwatch.cli.backfill", "Repair open gaps: plan, then apply."),
    "replay": ("gapwatch.cli.replay", "Read a range of the topics again: verdicts, reconcile."),
    "config": ("gapwatch.cli.config", "Check, print and describe the configuration."),
    "token": ("gapwatch.cli.token", "Bearer tokens of the API: create, list, revoke."),
    "topics": ("gapwatch.cli.topics", "Gapwatch's own topics."),
    "openapi": ("gapwatch.cli.openapi", "Print the OpenAPI 3.1 document of the HTTP API."),
    "upgrade": ("gapwatch.cli.upgrade", "What the next start will do with what is stored."),
}


def _version_of(chosen: bool) -> None:
    if chosen:
        print(f"gapwatch {__version__}")
        raise typer.Exit


class NobodyReads(Exception):  # noqa: N818 - reads as a state of the output
    """Standard output was closed. (Typer would end with 1 for the operating system's own error.)"""


class Nouns(TyperGroup):
    """The commands of ``NOUNS``; a module is imported when its noun is called, and none for the list of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in NOUNS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in NOUNS.items()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise NobodyReads from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        near = difflib.get_close_matches(args[0], NOUNS, n=1)
        if args[0] not in NOUNS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


def _command(name: str) -> Any:
    """Return a noun's command. One without verbs is a plain command: its options may stand after its arguments."""
    module, text = NOUNS[name]
    app: typer.Typer = import_module(module).app
    holder = typer.Typer(rich_markup_mode=None, add_completion=False)
    if app.registered_commands or app.registered_groups:
        holder.add_typer(app, name=name, help=text)
        return typer.main.get_group(holder).commands[name]
    assert app.registered_callback is not None
    assert app.registered_callback.callback is not None
    holder.command(name, help=text)(app.registered_callback.callback)
    return typer.main.get_command(holder)


def application() -> typer.Typer:
    """Return the application; its commands are known by name and help only."""
    app = typer.Typer(
        cls=Nouns,
        name="gapwatch",
        help="Did every write committed at the source arrive at the target, correctly? Continuously, and with evidence.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    return app


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
    """Run one command; return its exit code. An error is a sentence on standard error, and a traceback only where we are wrong.

    1 means "differences found", so nothing else may end with it: not a bug, not a pipe that its reader closed.
    """
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (BrokenPipeError, NobodyReads):
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - no file, and what is still buffered goes there
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return UNDECIDED
    return code


def _run(arguments: list[str]) -> int:
    from gapwatch.errors import ConfigError, GapwatchError

    try:
        code = application()(_config_first(arguments), prog_name="gapwatch", standalone_mode=False)
    except typer.Exit as ended:
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except typer.TyperException as error:
        show = getattr(error, "show", None)  # every exception of the parser has it; Typer's base does not say so
        if show is not None:
            show(sys.stderr)
        else:
            print(f"error: {error.format_message()}", file=sys.stderr)
        return USAGE
    except GapwatchError as error:
        if os.environ.get("GAPWATCH_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy and not isinstance(error, ConfigError):
            print(f"  {error.remedy}", file=sys.stderr)
        return error.exit_code
    except (BrokenPipeError, NobodyReads):
        raise
    except Exception:  # noqa: BLE001 - Python's own exit code for it would say "differences found"
        traceback.print_exc()
        print("error: This is a fault in Gapwatch; nothing was decided.", file=sys.stderr)
        return UNDECIDED
    return code if isinstance(code, int) else CONSISTENT


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Put ``--config FILE`` first, wherever it stands: `gapwatch run --config FILE` is promised too."""
    chosen: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            rest += [argument, *waiting]
            break
        if argument == "--config" and waiting:
            chosen = [argument, waiting.pop(0)]
        elif argument.startswith("--config="):
            chosen = [argument]
        else:
            rest.append(argument)
    return chosen + rest
