"""``gapwatch sweep``: compare both stores now, completely or in part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gapwatch.api_client import segment
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
    range_text: Annotated[
        str, typer.Option("--range", help="full; lookback=48h; keys=FILE with one key a line.", metavar="RANGE")
    ] = "full",
    keys: Annotated[list[str] | None, typer.Option("--keys", help="Only this key; may be given again.", metavar="KEY")] = None,
    lower: Annotated[str, typer.Option("--from", help="From this key on.", metavar="KEY")] = "",
    upper: Annotated[str, typer.Option("--to", help="Up to this key, without it.", metavar="KEY")] = "",
    within: Annotated[
        str,
        typer.Option(
            help="It may take so long, to be easy on the stores.", metavar="DURATION", show_default="as sweep.load says"
        ),
    ] = "",
    wait: WaitOption = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 3_600,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Queue a sweep; a running service carries it out."""
    request: dict[str, Any] = {"pipeline": pipeline, "content": content, **_range(range_text, keys or [], lower, upper)}
    if within:
        request["within"] = _seconds(within)
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
        record = api.post(f"/api/v1/sweeps/{segment(run)}/cancel")
    note(f"{record['id']}: {record['state']}, asked to stop.")


def _range(text: str, keys: list[str], lower: str, upper: str) -> dict[str, Any]:
    ends = {name: end for name, end in (("from", lower), ("to", upper)) if end}
    if sum((text != "full", bool(keys), bool(ends))) > 1:
        raise UsageError("A sweep has one range.", remedy="Give one of --range, --keys, or --from and --to.")
    if keys:
        return {"range": "keys", "keys": keys}
    if ends:
        return {"range": "range", **ends}
    if text == "full":
        return {"range": "full"}
    kind, _, value = text.partition("=")
    if kind == "lookback":
        return {"range": "lookback", **({"lookback_seconds": _seconds(value)} if value else {})}
    if kind == "keys" and value:
        file = Path(value)
        try:
            return {
                "range": "keys",
                "keys": [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()],
            }
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"The file {file} cannot be read: {reason}.", remedy="Write one key a line, in UTF-8.") from error
    raise UsageError(
        f"The range {text!r} is not known.", remedy="Use --range full, lookback=48h or keys=FILE; or --keys, --from and --to."
    )


def _seconds(text: str) -> float:
    from gapwatch.config.forms import seconds

    try:
        return float(seconds(text))
    except ValueError as error:
        raise UsageError(f"{text!r} is no duration.", remedy="Write it like 48h, 30m or 2d.") from error
