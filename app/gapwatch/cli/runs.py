"""Waiting for sweeps, backfills and replays, and what their end means for the exit code."""

from __future__ import annotations

import time
from typing import Any

from gapwatch.api_client import Api
from gapwatch.cli.exits import DIFFERENCES, TIMED_OUT, UNDECIDED
from gapwatch.cli.output import Progress

COLUMNS = (
    "id",
    "pipeline",
    "kind",
    "state",
    "requested_at",
    "started_at",
    "ended_at",
    "progress",
    "rate",
    "eta",
    "counts",
    "error",
)
ENDED = ("succeeded", "inconclusive", "failed", "cancelled", "aborted")
POLL_SECONDS = 0.3


def wait(api: Api, path: str, run: dict[str, Any], timeout: float) -> dict[str, Any] | None:
    """Poll a run until it has ended; None when `timeout` seconds passed first."""
    until = time.monotonic() + timeout  # noqa: TID251 - a person waits here, by the machine's clock
    with Progress(f"{run['kind']} {run['pipeline']}") as progress:
        while run["state"] not in ENDED:
            if time.monotonic() > until:  # noqa: TID251
                return None
            time.sleep(POLL_SECONDS)
            run = api.get(f"{path}/{run['id']}")
            progress.show(run["progress"], run["counts"])
    return run


def exit_code(run: dict[str, Any] | None) -> int:
    """Return 0 for a success without differences left, 1 for differences, 3 where it could not be decided, 4 for a time-out.

    A backfill that failed or stopped leaves the differences that it was to repair. A sweep or replay that failed decided nothing.
    """
    if run is None:
        return TIMED_OUT
    if run["state"] in ("inconclusive", "cancelled"):
        return UNDECIDED
    counts = run["counts"]
    if run["state"] != "succeeded":
        return DIFFERENCES if run["kind"] == "backfill" or counts.get("differences") else UNDECIDED
    return DIFFERENCES if counts.get("differences") or counts.get("open_gaps_left") else 0
