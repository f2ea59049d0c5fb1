"""``gapwatch demo``: a pipeline that looks healthy and is wrong, found out and healed, on real parts."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapwatch.cli.output import note
from gapwatch.errors import UsageError

if TYPE_CHECKING:
    from gapwatch.demo.story import Ending, Scene, Story

app = typer.Typer(help="The main job on real parts, with a connector that loses writes.", invoke_without_command=True)

FRAMES_PER_SECOND = 4


@app.callback()
def demo(
    seconds: Annotated[float, typer.Option(min=5, help="Length of the write load.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object on stdout, and end.")] = False,
) -> None:
    """Start real parts, lose writes, find them, repair them, and compare independently.

    On a terminal everything stays up until Ctrl-C. The exit code is 0 when Gapwatch found exactly what was wrong and healed it.
    """
    try:
        from gapwatch.demo import story
    except ImportError as error:
        raise UsageError(
            f"The demo needs {error.name}, which is not installed.", remedy="Install gapwatch[embedded], or run `make demo`."
        ) from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us: the parts end in order
    terminal = sys.stdout.isatty() and not as_json
    steps = Steps()
    with story.Story(seconds=seconds, say=steps.say) as told:
        told.prepare()
        ending = _on_terminal(told, steps) if terminal else told.play(lambda scene: None)
        if terminal:
            note("Stopping")
    if as_json:
        print(json.dumps(ending.record))
    else:
        _summary(ending.record)
    raise typer.Exit(ending.exit_code)


def _on_terminal(told: Story, steps: Steps) -> Ending:
    """Play on one live screen, and stay there until Ctrl-C; before the end, that is an interruption."""
    with _screen() as show, steps.silent():
        ending = told.play(show)
        try:
            told.stay()
        except KeyboardInterrupt:
            return ending


@contextmanager
def _screen() -> Iterator[Callable[[Scene], None]]:
    from rich.live import Live

    from gapwatch.demo.screen import Screen

    with Live(refresh_per_second=FRAMES_PER_SECOND, vertical_overflow="crop") as display:
        yield lambda scene: display.update(Screen(scene))


class Steps:
    """The steps on standard error; nothing while a screen shows them."""

    def __init__(self) -> None:
        self._speaks = True

    def say(self, line: str) -> None:
        if self._speaks:
            note(line)

    @contextmanager
    def silent(self) -> Iterator[None]:
        self._speaks = False
        try:
            yield
        finally:
            self._speaks = True


def _summary(record: dict[str, Any]) -> None:
    says = record["pipeline_says"]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(record["by_kind"].items())) or "none"
    delay = record["detection_seconds"]
    print(
        f"The pipeline said: connector {says['connector_state']}, tasks {', '.join(says['task_states'])}, lag {says['lag']},"
        f" dead letters {says['dead_letter_records']}, {says['source_count']} rows and {says['target_count']} documents."
    )
    print(f"In truth {record['truth_total']} orders were wrong.")
    print(f"Gapwatch found {record['found_total']} ({kinds}): {record['missed']} missed, {record['invented']} invented.")
    if delay["p50"] is not None:
        print(f"From the write to the gap: median {delay['p50']} s, 99 % within {delay['p99']} s.")
    print(
        f"Repaired {record['repaired']}, verified {record['verified']};"
        f" now {record['status']}, consistent through {record['consistent_through']}."
    )
