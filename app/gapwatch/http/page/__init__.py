"""The page at ``/``: an empty shell and its files. It holds no data: its script asks the API, like everybody else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from aiohttp import web

from gapwatch.http.deps import DEPS
from gapwatch.http.problems import Problem
from gapwatch.http.routing import Answer, Route

FOLDER: Final = Path(__file__).parent
MEDIA: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".ico": "image/x-icon"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    content: bytes
    media: str
    tag: str


@cache
def assets() -> dict[str, Asset]:
    """Return the page's files by name: these and no others are served, whatever a request calls for."""
    found = {}
    for path in sorted((FOLDER / "assets").iterdir()):
        if path.suffix in MEDIA:
            content = path.read_bytes()
            tag = hashlib.sha256(content).hexdigest()[:16]
            found[path.name] = Asset(content=content, media=MEDIA[path.suffix], tag=tag)
    return found


@cache
def shell(version: str) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # of no use to a process that shows no page

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    tags = {name: asset.tag for name, asset in assets().items()}
    return environment.get_template("shell.html").render(version=version, tags=tags).encode()


async def index(request: web.Request) -> web.StreamResponse:
    return web.Response(body=shell(request.app[DEPS].version), content_type="text/html", charset="utf-8")


async def asset(request: web.Request) -> web.StreamResponse:
    return _serve(request, request.match_info["name"])


async def favicon(request: web.Request) -> web.StreamResponse:
    return _serve(request, "favicon.svg")


def _serve(request: web.Request, name: str) -> web.StreamResponse:
    found = assets().get(name)
    if found is None:
        raise Problem(404, "There is no such file of the page.")
    # Asked for again each time, but not sent again: after an upgrade nobody sees old script with a new API.
    headers = {"ETag": f'"{found.tag}"', "Cache-Control": "no-cache"}
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.content, headers={**headers, "Content-Type": f"{found.media}; charset=utf-8"})


_FILE: Final = {200: Answer(description="The file", media=("*/*",)), 304: Answer(description="The same as before", media=())}

ROUTES: Final = (
    Route(
        method="GET",
        path="/",
        handler=index,
        summary="The page",
        tag="page",
        scope=None,
        answers={200: Answer(description="Its shell, without data", media=("text/html",))},
    ),
    Route(
        method="GET",
        path="/assets/{name}",
        handler=asset,
        summary="A file of the page",
        tag="page",
        scope=None,
        answers=_FILE,
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/favicon.ico",
        handler=favicon,
        summary="The page's sign",
        tag="page",
        scope=None,
        answers=_FILE,
    ),
)
