"""``gapwatch demo``: a pipeline that looks healthy and is wrong, found out and healed, on real parts."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from gapwatch.errors import UsageError

app = typer.Typer(help="The main job on real parts, with a connector that loses writes.", invoke_without_command=True)


@app.callback()
def demo(
    seconds: Annotated[float, typer.Option(min=5, help="Length of the write load.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object on stdout, and end.")] = False,
) -> None:
    """Start real parts, lose writes, find them, repair them, and compare independently."""
    try:
        from gapwatch.demo import story
    except ImportError as error:
        raise UsageError(
            f"The demo needs {error.name}, which is not installed.", remedy="Install gapwatch[embedded], or run `make demo`."
        ) from error
    terminal = sys.stdout.isatty() and not as_json
    with _screen(terminal) as show, story.Story(seconds=seconds, show=show, say=_say if not terminal else _quiet) as told:
        ending = told.play()
        if terminal:
            try:
                told.stay()
            except KeyboardInterrupt:
                pass
    if as_json:
        print(json.dumps(ending.record))
    else:
        _summary(ending.record)
    raise typer.Exit(ending.exit_code)


def _screen(terminal: bool) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def live() -> Any:
        if not terminal:
            yield lambda scene: None
            return
        from rich.live import Live

        from gapwatch.demo.screen import render

        with Live(refresh_per_second=4, screen=False) as display:
            yield lambda scene: display.update(render(scene))

    return live()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet(_: str) -> None:
    return None


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
    print(f"From the write to the gap: median {delay['p50']} s, 99 % within {delay['p99']} s.")
    print(
        f"Repaired {record['repaired']}, verified {record['verified']};"
        f" now {record['status']}, consistent through {record['consistent_through']}."
    )
