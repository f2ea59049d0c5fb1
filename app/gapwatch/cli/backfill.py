"""``gapwatch backfill``: plan what would be repaired, apply the plan, and see to what could not be repaired."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gapwatch.api_client import Api, segment
from gapwatch.cli import runs
from gapwatch.cli.client import connect
from gapwatch.cli.exits import DIFFERENCES
from gapwatch.cli.options import Output, OutputOption, UrlOption, WaitOption, config_of
from gapwatch.cli.output import emit, note
from gapwatch.errors import UsageError

FAILED = ("pipeline", "key_text", "kind", "state", "attempts", "outcome", "reason", "last_at", "next_at", "gap_id")

app = typer.Typer(help="Repair open gaps: plan first, then apply.", no_args_is_help=True)


@app.command()
def plan(
    context: typer.Context,
    pipeline: str,
    kinds: Annotated[str, typer.Option(help="Gap kinds, comma-separated.")] = "missing,stale,mismatch",
    mode: Annotated[
        str,
        typer.Option(
            help="direct: guarded writes to the target; debezium: a snapshot of just these rows; republish: the source's events "
            "once more. Without it, the first of the pipeline's repair.modes."
        ),
    ] = "",
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what an apply would write. Writes nothing to the target."""
    with connect(url, config_of(context)) as api:
        run = api.post(
            "/api/v1/backfills", {"pipeline": pipeline, "kinds": [kind.strip() for kind in kinds.split(",")], "mode": mode}
        )
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
    _confirm(yes, f"Write to the target what {plan_id} lists?")
    with connect(url, config_of(context)) as api:
        _follow(api, api.post("/api/v1/backfills", {"plan": plan_id, "dry_run": False}), wait, timeout, output)


@app.command()
def cancel(context: typer.Context, run: str, url: UrlOption = "") -> None:
    """Ask a backfill to stop after the batch that it is at."""
    with connect(url, config_of(context)) as api:
        record = api.post(f"/api/v1/backfills/{segment(run)}/cancel")
    note(f"{record['id']}: {record['state']}, asked to stop.")


@app.command()
def failed(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Only this pipeline.")] = "",
    state: Annotated[str, typer.Option(help="given_up, waiting (for another attempt), or both, comma-separated.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 1_000,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List open gaps whose repair did not come off, the newest failure first. Exit code 1 when one was given up."""
    with connect(url, config_of(context)) as api:
        found = api.get("/api/v1/repairs", pipeline=pipeline, state=state, limit=limit)["repairs"]
    emit(found, FAILED, output)
    raise typer.Exit(DIFFERENCES if any(record["state"] == "given_up" for record in found) else 0)


@app.command()
def requeue(
    context: typer.Context,
    pipeline: str,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Only these; else all that were given up.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: WaitOption = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 3_600,
    url: UrlOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Repair what failed once more, with its attempts counted anew."""
    _confirm(yes, f"Write to the target of {pipeline} once more?")
    with connect(url, config_of(context)) as api:
        run = api.post("/api/v1/repairs/requeue", {"pipeline": pipeline, "keys": keys or []})
        _follow(api, run, wait, timeout, output)


@app.command()
def resume(context: typer.Context, pipeline: str, url: UrlOption = "") -> None:
    """Let automatic repair go on after it has stopped; its brakes count from now."""
    with connect(url, config_of(context)) as api:
        api.post("/api/v1/repairs/resume", {"pipeline": pipeline})
    note(f"Automatic repair of {pipeline} goes on.")


def _confirm(yes: bool, question: str) -> None:
    if not yes and not (sys.stdin.isatty() and typer.confirm(question)):
        raise UsageError("Nothing was written: writing to the target needs a yes.", remedy="Add --yes, or answer on a terminal.")


def _follow(api: Api, run: dict[str, Any] | None, wait: bool, timeout: float, output: Output) -> None:
    assert run is not None
    if wait:
        run = runs.wait(api, "/api/v1/backfills", run, timeout)
    if run is not None:
        emit([run], runs.COLUMNS, output)
    else:
        note(f"The backfill had not ended after {timeout:.0f} s; it goes on.")
    if wait:
        raise typer.Exit(runs.exit_code(run))
