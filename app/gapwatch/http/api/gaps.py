"""Gaps: list, export, show with evidence and history; acknowledge, snooze, resolve."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from gapwatch.core.reports import encode, gap_record, rfc3339
from gapwatch.errors import GapwatchError, NotFoundError
from gapwatch.http.auth import ACTOR
from gapwatch.http.deps import DEPS
from gapwatch.http.problems import DEADLINE
from gapwatch.http.routing import (
    JSON,
    NDJSON,
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
    time_of,
)
from gapwatch.model.gap import Cause, Gap, Kind, State
from gapwatch.ports import GapFilter

log = structlog.get_logger(__name__)

TAG: Final = "gaps"
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
EXPORT_PAGE: Final = 500


class Ack(msgspec.Struct, forbid_unknown_fields=True):
    note: str = ""


class Snooze(msgspec.Struct, forbid_unknown_fields=True):
    seconds: float = 3600.0
    note: str = ""


class Resolve(msgspec.Struct, forbid_unknown_fields=True):
    resolution: str = "manual"
    note: str = ""


async def index(request: web.Request) -> web.StreamResponse:
    deps = request.app[DEPS]
    where = _filter(request)
    if NDJSON in request.headers.get("Accept", ""):
        return await _export(request, where)
    limit = number_of(request, "limit", default=LIMIT_DEFAULT, most=LIMIT_MAX)
    page = await asyncio.to_thread(deps.ledger.gaps, where, limit=limit, cursor=text_of(request, "cursor"))
    total = await asyncio.to_thread(deps.ledger.count_gaps, where)
    headers = {}
    if page.next_cursor is not None:
        following = request.rel_url.update_query(cursor=page.next_cursor)
        headers["Link"] = f'<{following}>; rel="next"'
    return json_response(
        {
            "gaps": [gap_record(gap) for gap in page.gaps],
            "next_cursor": page.next_cursor,
            "total": total,
            "read_at": rfc3339(deps.clock.now()),
        },
        headers=headers,
    )


async def _export(request: web.Request, where: GapFilter) -> web.StreamResponse:
    """Stream every gap that the filter lets through, one JSON object a line; ``limit`` does not apply."""
    ledger = request.app[DEPS].ledger
    page = await asyncio.to_thread(ledger.gaps, where, limit=EXPORT_PAGE, cursor=text_of(request, "cursor"))
    response = web.StreamResponse(headers={"Content-Type": NDJSON})
    await response.prepare(request)
    request[DEADLINE].reschedule(None)  # an export takes as long as its reader
    try:
        while True:
            await response.write(b"".join(encode(gap_record(gap)) + b"\n" for gap in page.gaps))
            if page.next_cursor is None:
                break
            page = await asyncio.to_thread(ledger.gaps, where, limit=EXPORT_PAGE, cursor=page.next_cursor)
    except GapwatchError as error:
        # The status has been sent. Without its last chunk the answer is broken, and no client takes it for complete.
        log.error("export_failed", error=str(error))
        if request.transport is not None:
            request.transport.abort()
        return response
    except ConnectionError:
        return response  # the reader went away
    await response.write_eof()
    return response


def _filter(request: web.Request) -> GapFilter:
    pipeline = text_of(request, "pipeline")
    if pipeline is not None:
        request.app[DEPS].operations.pipeline(pipeline)  # an unknown one is an error, not a pipeline without gaps
    return GapFilter(
        pipeline=pipeline,
        kinds=choices_of(request, "kind", Kind),
        states=choices_of(request, "state", State),
        causes=choices_of(request, "cause", Cause),
        since=time_of(request, "since"),
    )


async def show(request: web.Request) -> web.StreamResponse:
    ledger, gap_id = request.app[DEPS].ledger, request.match_info["id"]
    gap = await asyncio.to_thread(ledger.gap, gap_id)
    if gap is None:
        raise NotFoundError(f"There is no gap {gap_id!r}.")
    return json_response(await _with_history(request, gap))


async def ack(request: web.Request) -> web.StreamResponse:
    return await _change(request, "ack", note=body_of(request, Ack).note)


async def snooze(request: web.Request) -> web.StreamResponse:
    body = body_of(request, Snooze)
    return await _change(request, "snooze", note=body.note, seconds=body.seconds)


async def resolve(request: web.Request) -> web.StreamResponse:
    body = body_of(request, Resolve)
    return await _change(request, "resolve", note=body.note, resolution=body.resolution)


async def _change(request: web.Request, action: str, **how: Any) -> web.StreamResponse:
    operations = request.app[DEPS].operations
    gap = await operations.change_gap(request.match_info["id"], action, actor=request[ACTOR], **how)
    return json_response(await _with_history(request, gap))


async def _with_history(request: web.Request, gap: Gap) -> dict[str, Any]:
    history = await asyncio.to_thread(request.app[DEPS].ledger.gap_history, gap.id)
    return {**gap_record(gap), "history": [dict(row) for row in history]}


FILTERS: Final = (
    Param(name="pipeline", description="Only this pipeline"),
    choice_param("kind", Kind, "Only these kinds"),
    choice_param("state", State, "Only these states"),
    choice_param("cause", Cause, "Only these causes"),
    Param(name="since", description="Only gaps confirmed since", schema={"type": "string", "format": "date-time"}),
    limit_param(LIMIT_MAX, LIMIT_DEFAULT, "Gaps in a page; an export holds all"),
    Param(name="cursor", description="next_cursor of the page before"),
)


def _action(name: str, handler: Any, summary: str, body: type[msgspec.Struct]) -> Route:
    return Route(
        method="POST",
        path=f"/api/v1/gaps/{{id}}/{name}",
        handler=handler,
        summary=summary,
        tag=TAG,
        scope="operate",
        body=body,
        answers={200: Answer(description="The gap as it is now", schema="GapWithHistory")},
        errors=(404, 409, 503),
    )


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/gaps",
        handler=index,
        summary="Gaps, newest first; with Accept: application/x-ndjson all of them, one a line",
        tag=TAG,
        scope="read",
        query=FILTERS,
        answers={200: Answer(description="A page of gaps", schema="Gaps", media=(JSON, NDJSON))},
        errors=(404, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/gaps/{id}",
        handler=show,
        summary="One gap with its evidence and its history",
        tag=TAG,
        scope="read",
        answers={200: Answer(description="The gap", schema="GapWithHistory")},
        errors=(404, 503),
    ),
    _action("ack", ack, "Acknowledge: known, alerts no more, still holds consistent-through", Ack),
    _action("snooze", snooze, "Silence for a while", Snooze),
    _action("resolve", resolve, "Resolve by hand, as manual or accepted", Resolve),
)
