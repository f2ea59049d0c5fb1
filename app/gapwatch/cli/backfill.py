"""``gapwatch backfill``: plan what would be repaired, then apply the plan."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gapwatch.cli import runs
from gapwatch.cli.client import connect
from gapwatch.cli.options import Output, OutputOption, UrlOption, WaitOption, config_of
from gapwatch.cli.output import emit, note
from gapwatch.errors import UsageError

app = typer.Typer(help="Repair open gaps: plan first, then apply.", no_args_is_help=True)


@app.command()
def plan(
    context: typer.Context,
    pipeline: str,
    kinds: Annotated[str, typer.Option(help="Gap kinds, comma-separated.")] = "missing,stale,mismatch",
    mode: Annotated[str, typer.Option(help="direct: guarded writes to the target.")] = "direct",
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what an apply would write. Writes nothing to the target."""
    if mode != "direct":
        raise UsageError(f"The mode {mode!r} is not supported yet.", remedy="Use --mode direct.")
    with connect(url, config_of(context)) as api:
        run = api.post("/api/v1/backfills", {"pipeline": pipeline, "kinds": kinds.split(",")})
    emit([run], runs.COLUMNS, output)
    note(f"{run['counts']['planned']} documents would be repaired. Apply it with: gapwatch backfill apply {run['id']}")


@app.command()
def apply(
    context: typer.Context,
    plan_id: Annotated[str, typer.Argument(metavar="PLAN", help="The id that `plan` printed.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: WaitOption = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 3_600,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Write what was planned, each document guarded, read back and audited."""
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Write to the target what {plan_id} lists?")):
        raise UsageError("Nothing was written: applying a plan needs a yes.", remedy="Add --yes, or answer on a terminal.")
    with connect(url, config_of(context)) as api:
        run: dict[str, Any] | None = api.post("/api/v1/backfills", {"plan": plan_id, "dry_run": False})
        assert run is not None
        if wait:
            run = runs.wait(api, "/api/v1/backfills", run, timeout)
    if run is not None:
        emit([run], runs.COLUMNS, output)
    else:
        note(f"The backfill had not ended after {timeout:.0f} s; it goes on.")
    if wait:
        raise typer.Exit(runs.exit_code(run))
