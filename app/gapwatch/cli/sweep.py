"""``gapwatch sweep``: compare both stores completely, now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gapwatch.cli import runs
from gapwatch.cli.client import connect
from gapwatch.cli.options import Output, OutputOption, UrlOption, WaitOption, config_of
from gapwatch.cli.output import emit, note
from gapwatch.errors import UsageError

app = typer.Typer(help="Compare both stores completely.", no_args_is_help=True)


@app.command()
def start(
    context: typer.Context,
    pipeline: str,
    content: Annotated[bool, typer.Option("--content/--ids", help="Compare fields too, or ids only.")] = True,
    range_text: Annotated[str, typer.Option("--range", help="full, or keys=FILE with one key a line.")] = "full",
    wait: WaitOption = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 3_600,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Queue a sweep; a running service carries it out."""
    request: dict[str, Any] = {"pipeline": pipeline, "content": content, **_range(range_text)}
    with connect(url, config_of(context)) as api:
        run: dict[str, Any] | None = api.post("/api/v1/sweeps", request)
        assert run is not None
        if wait:
            run = runs.wait(api, "/api/v1/sweeps", run, timeout)
    if run is not None:
        emit([run], runs.COLUMNS, output)
    else:
        note(f"The sweep had not ended after {timeout:.0f} s; it goes on. See `gapwatch sweep status`.")
    if wait:
        raise typer.Exit(runs.exit_code(run))


@app.command()
def status(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Only this pipeline.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List sweeps, the newest first."""
    with connect(url, config_of(context)) as api:
        found = api.get("/api/v1/sweeps", pipeline=pipeline, limit=limit)["sweeps"]
    emit(found, runs.COLUMNS, output)


@app.command()
def cancel(context: typer.Context, run: str, url: UrlOption = "") -> None:
    """Ask a sweep to stop."""
    with connect(url, config_of(context)) as api:
        record = api.post(f"/api/v1/sweeps/{run}/cancel")
    note(f"{record['id']}: {record['state']}, asked to stop.")


def _range(text: str) -> dict[str, Any]:
    if text == "full":
        return {"range": "full"}
    if text.startswith("keys="):
        file = Path(text.removeprefix("keys="))
        try:
            keys = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        except OSError as error:
            raise UsageError(f"The file {file} cannot be read: {error.strerror}.") from error
        return {"range": "keys", "keys": keys}
    raise UsageError(f"The range {text!r} is not supported.", remedy="Use --range full or --range keys=FILE.")
