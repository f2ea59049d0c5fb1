"""``gapwatch key PIPELINE KEY``: all that is known about one key."""

from __future__ import annotations

from typing import Annotated

import typer

from gapwatch.api_client import segment
from gapwatch.cli.client import connect
from gapwatch.cli.options import Output, OutputOption, UrlOption, config_of
from gapwatch.cli.output import emit, note

app = typer.Typer(help="All that is known about one key.", invoke_without_command=True, no_args_is_help=True)


@app.callback()
def key(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="The pipeline.")],
    key_text: Annotated[str, typer.Argument(metavar="KEY", help="The key; the parts of a composite one with commas between.")],
    url: UrlOption = "",
    output: OutputOption = Output.JSON,
) -> None:
    """Show both stores now, the last raw events with offsets, verdicts, gaps and audit of one key, and why it is (not) a gap."""
    with connect(url, config_of(context)) as api:
        story = api.get(f"/api/v1/pipelines/{segment(pipeline)}/keys/{segment(key_text)}")
    emit([story], ("pipeline", "key", "verdict"), output, single=True)
    note(story["verdict"])
