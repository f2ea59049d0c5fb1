"""Sweeps, backfills and replays: long work answers 202 with its address; one run at a time per pipeline and kind."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from gapwatch.core.reports import rfc3339, run_record
from gapwatch.errors import NotFoundError
from gapwatch.http.api.pipelines import Nothing
from gapwatch.http.auth import ACTOR
from gapwatch.http.deps import DEPS
from gapwatch.http.problems import Problem
from gapwatch.http.routing import (
    Answer,
    Param,
    Route,
    body_of,
    choice_param,
    choices_of,
    json_response,
    limit_param,
    number_of,
    text_of,
)
from gapwatch.model.gap import Run, RunKind, RunState

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 1_000


class Sweep(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, rename={"from_": "from"}):
    """What to sweep. ``content`` left out: as the pipeline matches.

    ``range``: full; range, ``from`` a key (with it) ``to`` a key (without it), one of which may be left out; keys, with ``keys``;
    lookback, what changed within ``lookback_seconds`` (left out: as configured, else 48 hours). ``within``: seconds that it may
    take, to be easy on the stores (left out: as quick as ``sweep.load`` allows).
    """

    pipeline: str
    content: bool | msgspec.UnsetType = msgspec.UNSET
    range: str = "full"
    keys: list[str] | msgspec.UnsetType = msgspec.UNSET
    from_: str | msgspec.UnsetType = msgspec.UNSET
    to: str | msgspec.UnsetType = msgspec.UNSET
    lookback_seconds: float | msgspec.UnsetType = msgspec.UNSET
    within: float | msgspec.UnsetType = msgspec.UNSET


class Backfill(msgspec.Struct, forbid_unknown_fields=True):
    """A new plan for ``pipeline``, or the application of ``plan``, which has to be asked for with ``dry_run`` false.

    ``mode``: direct, debezium or republish; empty: the pipeline's usual one.
    """

    pipeline: str = ""
    kinds: list[str] = []
    mode: str = ""
    plan: str = ""
    dry_run: bool = True


class Replay(msgspec.Struct, forbid_unknown_fields=True, rename={"time_from": "from", "time_to": "to"}):
    """What to reconcile: writes between two times (RFC 3339), or records between two lists of ``PARTITION:OFFSET``.

    ``of``: events (the topic of canonical sections), or raw (the feeds' own topics).
    """

    pipeline: str
    time_from: str
    time_to: str
    of: str = "events"


async def start_sweep(request: web.Request) -> web.StreamResponse:
    body = body_of(request, Sweep)
    given: dict[str, Any] = {
        "content": body.content,
        "keys": body.keys,
        "from": body.from_,
        "to": body.to,
        "lookback_seconds": body.lookback_seconds,
        "within": body.within,
    }
    asked = {"range": body.range} | {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if body.range != "keys" and body.keys:
        raise Problem(400, "keys are given, but the range is not keys.")
    return accepted(await request.app[DEPS].operations.start_sweep(body.pipeline, asked, actor=request[ACTOR]))


async def start_backfill(request: web.Request) -> web.StreamResponse:
    body = body_of(request, Backfill)
    operations = request.app[DEPS].operations
    if bool(body.plan) == bool(body.pipeline):
        raise Problem(400, "Give either a pipeline to plan for, or a plan to apply.")
    if body.plan:
        if body.dry_run:
            raise Problem(400, "Applying a plan writes to the target: ask for it with dry_run false.")
        if body.kinds or body.mode:
            raise Problem(400, "A plan has its kinds and its mode; give none when it is applied.")
        return accepted(await operations.apply_backfill(body.plan, actor=request[ACTOR]))
    planned = await operations.plan_backfill(body.pipeline, body.kinds, actor=request[ACTOR], mode=body.mode)
    if body.dry_run:
        return accepted(planned)
    return accepted(await operations.apply_backfill(planned.id, actor=request[ACTOR]))


async def start_replay(request: web.Request) -> web.StreamResponse:
    body = body_of(request, Replay)
    operations = request.app[DEPS].operations
    return accepted(await operations.start_replay(body.pipeline, body.time_from, body.time_to, body.of, actor=request[ACTOR]))


async def apply_backfill(request: web.Request) -> web.StreamResponse:
    return accepted(await request.app[DEPS].operations.apply_backfill(request.match_info["id"], actor=request[ACTOR]))


def accepted(run: Run) -> web.Response:
    """Return the answer to a run that was queued or planned: 202, with its address."""
    return json_response(run_record(run), status=202, headers={"Location": f"/api/v1/{run.kind.value}s/{run.id}"})


class _Runs:
    """The endpoints that sweeps, backfills and replays have alike."""

    def __init__(self, kind: RunKind) -> None:
        self._kind = kind
        self._noun = f"{kind.value}s"

    async def index(self, request: web.Request) -> web.StreamResponse:
        deps = request.app[DEPS]
        pipeline = text_of(request, "pipeline")
        if pipeline is not None:
            deps.operations.pipeline(pipeline)
        states = choices_of(request, "state", RunState)
        limit = number_of(request, "limit", default=LIMIT_DEFAULT, most=LIMIT_MAX)
        runs = await asyncio.to_thread(lambda: deps.ledger.runs(pipeline=pipeline, kind=self._kind, states=states, limit=limit))
        return json_response(
            {self._noun: [run_record(run, deps.clock.now()) for run in runs], "read_at": rfc3339(deps.clock.now())}
        )

    async def show(self, request: web.Request) -> web.StreamResponse:
        return json_response(run_record(await self._find(request), request.app[DEPS].clock.now()))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        run = await self._find(request)
        return json_response(run_record(await request.app[DEPS].operations.cancel(run.id, actor=request[ACTOR])))

    async def _find(self, request: web.Request) -> Run:
        run_id = request.match_info["id"]
        run = await asyncio.to_thread(request.app[DEPS].ledger.run, run_id)
        if run is None or run.kind is not self._kind:
            raise NotFoundError(f"There is no {self._kind.value} {run_id!r}.")
        return run

    def routes(self, scope: str) -> tuple[Route, ...]:
        noun, kind = self._noun, self._kind.value
        query = (
            Param(name="pipeline", description="Only this pipeline"),
            choice_param("state", RunState, "Only these states"),
            limit_param(LIMIT_MAX, LIMIT_DEFAULT),
        )
        return (
            Route(
                method="GET",
                path=f"/api/v1/{noun}",
                handler=self.index,
                summary=f"{noun.capitalize()}, newest first",
                tag=noun,
                scope="read",
                query=query,
                answers={200: Answer(description=f"The {noun}", schema=noun.capitalize())},
                errors=(404, 503),
            ),
            Route(
                method="GET",
                path=f"/api/v1/{noun}/{{id}}",
                handler=self.show,
                summary=f"One {kind}",
                tag=noun,
                scope="read",
                answers={200: Answer(description=f"The {kind}", schema="Run")},
                errors=(404, 503),
            ),
            Route(
                method="POST",
                path=f"/api/v1/{noun}/{{id}}/cancel",
                handler=self.cancel,
                summary=f"End a queued {kind}, ask a running one to stop",
                tag=noun,
                scope=scope,
                body=Nothing,
                answers={200: Answer(description=f"The {kind} as it is now", schema="Run")},
                errors=(404, 503),
            ),
        )


def _started(description: str) -> dict[int, Answer]:
    return {202: Answer(description=description, schema="Run", headers={"Location": "Where to ask how it goes"})}


ROUTES: Final = (
    *_Runs(RunKind.SWEEP).routes("operate"),
    Route(
        method="POST",
        path="/api/v1/sweeps",
        handler=start_sweep,
        summary="Queue a sweep",
        tag="sweeps",
        scope="operate",
        body=Sweep,
        answers=_started("Queued"),
        errors=(404, 409, 503),
    ),
    *_Runs(RunKind.BACKFILL).routes("repair"),
    Route(
        method="POST",
        path="/api/v1/backfills",
        handler=start_backfill,
        summary="Plan a backfill (the default: a dry run that writes nothing), or apply a plan with dry_run false",
        tag="backfills",
        scope="repair",
        body=Backfill,
        answers=_started("Planned, or queued"),
        errors=(404, 409, 503),
    ),
    *_Runs(RunKind.REPLAY).routes("repair"),
    Route(
        method="POST",
        path="/api/v1/replays",
        handler=start_replay,
        summary="Queue a reconciliation: the keys written in a range are read in both stores; gaps and a plan come of it",
        tag="replays",
        scope="repair",
        body=Replay,
        answers=_started("Queued"),
        errors=(404, 409, 503),
    ),
    Route(
        method="POST",
        path="/api/v1/backfills/{id}/apply",
        handler=apply_backfill,
        summary="Queue the application of a plan",
        tag="backfills",
        scope="repair",
        body=Nothing,
        answers=_started("Queued"),
        errors=(404, 409, 503),
    ),
)
