"""Repairs that did not come off: what waits for another attempt, what was given up; queuing them again, resuming."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Final

import msgspec
from aiohttp import web

from gapwatch.core.reports import repair_record, rfc3339
from gapwatch.http.api.runs import accepted
from gapwatch.http.auth import ACTOR
from gapwatch.http.deps import DEPS
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

TAG: Final = "repairs"
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 10_000


class RepairState(StrEnum):
    WAITING = "waiting"
    GIVEN_UP = "given_up"


class Requeue(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``pipeline``, the gaps of these keys; without keys, all that were given up."""

    pipeline: str
    keys: list[str] = []


class Resume(msgspec.Struct, forbid_unknown_fields=True):
    pipeline: str


async def index(request: web.Request) -> web.StreamResponse:
    deps = request.app[DEPS]
    pipeline = text_of(request, "pipeline")
    if pipeline is not None:
        deps.operations.pipeline(pipeline)
    states = set(choices_of(request, "state", RepairState))
    given_up = None if len(states) != 1 else RepairState.GIVEN_UP in states
    limit = number_of(request, "limit", default=LIMIT_DEFAULT, most=LIMIT_MAX)
    records = await asyncio.to_thread(lambda: deps.ledger.repairs(pipeline, given_up=given_up, limit=limit))
    return json_response({"repairs": [repair_record(record) for record in records], "read_at": rfc3339(deps.clock.now())})


async def requeue(request: web.Request) -> web.StreamResponse:
    body = body_of(request, Requeue)
    return accepted(await request.app[DEPS].operations.requeue_repairs(body.pipeline, body.keys, actor=request[ACTOR]))


async def resume(request: web.Request) -> web.StreamResponse:
    deps, body = request.app[DEPS], body_of(request, Resume)
    await deps.operations.resume_repair(body.pipeline, actor=request[ACTOR])
    return json_response({"pipeline": body.pipeline, "automatic_repair": "resumed"})


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/repairs",
        handler=index,
        summary="Open gaps whose repair did not come off, the newest failure first",
        tag=TAG,
        scope="read",
        query=(
            Param(name="pipeline", description="Only this pipeline"),
            choice_param("state", RepairState, "waiting: tried again by itself; given_up: not"),
            limit_param(LIMIT_MAX, LIMIT_DEFAULT),
        ),
        answers={200: Answer(description="The failed repairs", schema="Repairs")},
        errors=(404, 503),
    ),
    Route(
        method="POST",
        path="/api/v1/repairs/requeue",
        handler=requeue,
        summary="Queue a backfill of failed repairs: of these keys, or of all that were given up; it writes to the target",
        tag=TAG,
        scope="repair",
        body=Requeue,
        answers={202: Answer(description="Queued", schema="Run", headers={"Location": "Where to ask how it goes"})},
        errors=(404, 409, 503),
    ),
    Route(
        method="POST",
        path="/api/v1/repairs/resume",
        handler=resume,
        summary="Let automatic repair go on after it has stopped",
        tag=TAG,
        scope="repair",
        body=Resume,
        answers={200: Answer(description="It goes on", schema="RepairResumed")},
        errors=(404, 503),
    ),
)
