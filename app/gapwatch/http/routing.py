"""One declaration per endpoint: the server and the OpenAPI document are both made of it, so that they cannot differ."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from gapwatch.core.reports import encode
from gapwatch.http import auth
from gapwatch.http.problems import Problem

BODY: Final = web.RequestKey("body", object)
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
NUMBER_DIGITS_MAX: Final = 20

T = TypeVar("T", bound=msgspec.Struct)
E = TypeVar("E", bound=StrEnum)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A query parameter. ``schema`` is JSON Schema; ``many`` says that values are separated by commas."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    many: bool = False


def limit_param(most: int, default: int, description: str = "At most so many") -> Param:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Param(name="limit", description=description, schema=schema)


def choice_param(name: str, kind: type[StrEnum], description: str) -> Param:
    """Return a parameter that takes any number of an enumeration's values."""
    schema = {"type": "array", "items": {"type": "string", "enum": [member.value for member in kind]}}
    return Param(name=name, description=description, schema=schema, many=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a success looks like. ``schema`` names a component; ``media`` lists the media types."""

    description: str
    schema: str = ""
    media: Sequence[str] = (JSON,)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``scope`` None: open to everybody. ``body`` is the struct that a request is parsed into. ``errors`` are statuses."""

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    scope: str | None
    answers: Mapping[int, Answer]
    query: Sequence[Param] = ()
    body: type[msgspec.Struct] | None = None
    errors: Sequence[int] = ()

    @property
    def documented_path(self) -> str:
        return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", self.path)


def bind(route: Route) -> Handler:
    """Return the handler with what every endpoint has in common before it: scope, known parameters, a valid body."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if route.scope is not None:
            await auth.authorize(request, route.scope)
        _check_query(request, route)
        if route.body is not None:
            request[BODY] = await _parse_body(request, route.body)
        return await route.handler(request)

    return handle


def body_of(request: web.Request, kind: type[T]) -> T:
    body = request[BODY]
    assert isinstance(body, kind)
    return body


def json_response(
    record: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None, media: str = JSON
) -> web.Response:
    return web.Response(status=status, body=encode(record), content_type=media, charset="utf-8", headers=headers)


def text_of(request: web.Request, name: str) -> str | None:
    """Return a parameter's text; an empty one counts as left out."""
    return request.query.get(name) or None


def number_of(request: web.Request, name: str, *, default: int, most: int) -> int:
    text = text_of(request, name)
    if text is None:
        return default
    short = len(text) <= NUMBER_DIGITS_MAX  # Python refuses to read a number of thousands of digits
    if not short or not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= most:
        raise Problem(400, f"{name} must be a whole number between 1 and {most}, and not {text[:NUMBER_DIGITS_MAX]!r}.")
    return int(text)


def flag_of(request: web.Request, name: str, *, default: bool) -> bool:
    text = text_of(request, name)
    if text is None:
        return default
    if text not in ("true", "false"):
        raise Problem(400, f"{name} must be true or false, and not {text!r}.")
    return text == "true"


def time_of(request: web.Request, name: str) -> datetime | None:
    text = text_of(request, name)
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise Problem(400, f"{name} must be a time in RFC 3339 with its zone (2026-11-24T10:00:00Z), and not {text!r}.")
    return time


def choices_of(request: web.Request, name: str, kind: type[E]) -> tuple[E, ...]:
    """Return the values of a parameter that may be given several times, or as several values with commas between."""
    texts = [part.strip() for text in request.query.getall(name, []) for part in text.split(",") if part.strip()]
    allowed = [member.value for member in kind]
    for text in texts:
        if text not in allowed:
            raise Problem(400, f"There is no {name} {text!r}: there are {', '.join(allowed)}.")
    return tuple(kind(text) for text in texts)


def _check_query(request: web.Request, route: Route) -> None:
    """Refuse parameters that are not known: a misspelt filter would filter nothing, and nobody would notice."""
    known = {param.name for param in route.query}
    for name in request.query:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise Problem(400, f"There is no parameter {name!r} here; there are: {listed}.")


async def _parse_body(request: web.Request, kind: type[msgspec.Struct]) -> msgspec.Struct:
    try:
        raw = await request.read()
    except web.RequestPayloadError as error:  # compressed, and broken
        raise Problem(400, "The body cannot be read: it does not fit its Content-Encoding.") from error
    if raw and request.content_type != JSON:
        raise Problem(415, f"The body must be {JSON}, and not {request.content_type}.")
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Problem(400, f"The body does not fit: {error}.", members={"errors": [str(error)]}) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "The body is not JSON.", members={"errors": [str(error)]}) from error
