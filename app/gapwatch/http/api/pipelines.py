"""Pipelines: how they stand, one key of one, pause and resume."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from gapwatch.core.reports import pipeline_record, plain, rfc3339
from gapwatch.http.auth import ACTOR
from gapwatch.http.deps import DEPS
from gapwatch.http.routing import Answer, Route, body_of, json_response

TAG: Final = "pipelines"


class Pause(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


async def index(request: web.Request) -> web.StreamResponse:
    deps = request.app[DEPS]
    views = await deps.operations.views()
    return json_response({"pipelines": [pipeline_record(view) for view in views], "read_at": rfc3339(deps.clock.now())})


async def show(request: web.Request) -> web.StreamResponse:
    return json_response(pipeline_record(await request.app[DEPS].operations.view(request.match_info["id"])))


async def pause(request: web.Request) -> web.StreamResponse:
    operations, name = request.app[DEPS].operations, request.match_info["id"]
    await operations.pause(name, actor=request[ACTOR], reason=body_of(request, Pause).reason)
    return json_response(pipeline_record(await operations.view(name)))


async def resume(request: web.Request) -> web.StreamResponse:
    operations, name = request.app[DEPS].operations, request.match_info["id"]
    await operations.resume(name, actor=request[ACTOR])
    return json_response(pipeline_record(await operations.view(name)))


async def key(request: web.Request) -> web.StreamResponse:
    story = await request.app[DEPS].operations.key_story(request.match_info["id"], request.match_info["key"])
    return json_response(plain(story))


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/pipelines",
        handler=index,
        summary="How every pipeline stands",
        tag=TAG,
        scope="read",
        answers={200: Answer(description="All configured pipelines", schema="Pipelines")},
        errors=(503,),
    ),
    Route(
        method="GET",
        path="/api/v1/pipelines/{id}",
        handler=show,
        summary="How one pipeline stands",
        tag=TAG,
        scope="read",
        answers={200: Answer(description="The pipeline", schema="Pipeline")},
        errors=(404, 503),
    ),
    Route(
        method="POST",
        path="/api/v1/pipelines/{id}/pause",
        handler=pause,
        summary="Leave a pipeline alone: SKIPPED, nothing opens or is repaired; the streams are read on",
        tag=TAG,
        scope="operate",
        body=Pause,
        answers={200: Answer(description="The pipeline as it stands now", schema="Pipeline")},
        errors=(404, 503),
    ),
    Route(
        method="POST",
        path="/api/v1/pipelines/{id}/resume",
        handler=resume,
        summary="Resume a paused pipeline",
        tag=TAG,
        scope="operate",
        body=Nothing,
        answers={200: Answer(description="The pipeline as it stands now", schema="Pipeline")},
        errors=(404, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/pipelines/{id}/keys/{key:.+}",
        handler=key,
        summary="All that is known about one key, and why it is or is not a gap",
        tag=TAG,
        scope="read",
        answers={200: Answer(description="The key's story; the parts of a composite key have commas between", schema="KeyStory")},
        errors=(404, 503),
    ),
)
