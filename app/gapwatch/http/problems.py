"""Errors as ``application/problem+json`` (RFC 9457). A message names what is wrong and what to do, never a secret or a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web

from gapwatch.core.reports import encode
from gapwatch.errors import ConflictError, GapwatchError, NotFoundError, RecordError, StoreError, UsageError

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
REQUEST_SECONDS_MAX: Final = 30.0
RETRY_AFTER_SECONDS: Final = 5

DEADLINE: Final = web.RequestKey("deadline", asyncio.Timeout)  # for handlers that stream for as long as it takes

_STATUSES: Final = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (ConflictError, HTTPStatus.CONFLICT),
    (UsageError, HTTPStatus.BAD_REQUEST),
    (RecordError, HTTPStatus.BAD_REQUEST),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(Exception):  # noqa: N818 - the RFC's word
    """An answer that is not the one asked for. ``headers`` and ``members`` are added to the response and to its object."""

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, members: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})


def response(request: web.Request, problem: Problem) -> web.Response:
    status = HTTPStatus(problem.status)
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": problem.detail,
        "instance": request.path,
        **problem.members,
    }
    return web.Response(status=status.value, body=encode(body), content_type=MEDIA_TYPE, headers=problem.headers)


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as a problem; what nobody foresaw is logged and says nothing to the client."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS_MAX) as deadline:
            request[DEADLINE] = deadline
            return await handler(request)
    except Problem as problem:
        return response(request, problem)
    except GapwatchError as error:
        return response(request, of(error))
    except web.HTTPException as error:
        return response(request, _of_http(error))
    except TimeoutError:
        return response(request, Problem(504, f"The answer took longer than {REQUEST_SECONDS_MAX:.0f} s."))
    except Exception as error:  # the edge of the process: logged, answered, and the next request goes on
        log.error("request_failed", path=request.path, method=request.method, exc_info=error)
        return response(request, Problem(500, "Gapwatch failed at this request; its log says why."))


def of(error: GapwatchError) -> Problem:
    """Return one of our errors as a problem."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    members: dict[str, Any] = {"remedy": error.remedy or None}
    headers: dict[str, str] = {}
    if isinstance(error, ConflictError):
        members["running_id"] = error.running_id
    if error.retriable:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Problem(status, str(error), headers=headers, members=members)


def _of_http(error: web.HTTPException) -> Problem:
    details = {
        404: "There is nothing at this address; /openapi.json lists what there is.",
        405: "This address does not answer to that method.",
        413: "The request's body is larger than 1 MiB.",
    }
    headers = {name: value for name, value in error.headers.items() if name in ("Allow", "Location")}
    return Problem(error.status, details.get(error.status, error.reason or ""), headers=headers)
