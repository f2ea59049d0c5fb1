"""The OpenAPI 3.1 document, made of the same declarations as the routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from gapwatch.http import problems
from gapwatch.http.deps import DEPS
from gapwatch.http.routing import JSON, NDJSON, Answer, Param, Route, json_response
from gapwatch.http.schemas import ref, schemas

ROUTES_KEY: web.AppKey[Sequence[Route]] = web.AppKey("routes", Sequence)
ALWAYS: Final = (400, 500, 504)  # what every endpoint may answer: an unknown parameter, our fault, too slow


async def serve(request: web.Request) -> web.StreamResponse:
    return json_response(document(request.app[ROUTES_KEY], request.app[DEPS].version))


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Return the document for `routes`."""
    paths: dict[str, dict[str, Any]] = {}
    bodies: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.documented_path, {})[route.method.lower()] = _operation(route)
        if route.body is not None:
            bodies |= _body_schema(route.body)[1]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gapwatch",
            "version": version,
            "summary": "Did every write that was committed at the source arrive at the target, correctly?",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": {**schemas(), **bodies},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token made by `gapwatch token create`. Scopes, each including those before it:"
                    " read, operate, repair, admin. Without any token the API listens on loopback only and asks for none.",
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *(_parameter(param) for param in route.query)],
        "responses": {str(status): _answer(answer) for status, answer in route.answers.items()},
    }
    errors = {*ALWAYS, *route.errors}
    if route.scope is None:
        operation["security"] = []
        errors -= {400} if not route.query else set()
    else:
        operation["description"] = f"Needs the scope `{route.scope}`."
        errors |= {401, 403}
    if route.body is not None:
        operation["requestBody"] = {"content": {JSON: {"schema": _body_schema(route.body)[0]}}, "required": False}
        errors |= {413, 415}
    for status in sorted(errors - set(route.answers)):
        operation["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {problems.MEDIA_TYPE: {"schema": ref("Problem")}},
        }
    return operation


def _operation_id(route: Route) -> str:
    words = re.sub(r"[{}]", "", route.documented_path.removeprefix("/api/v1"))
    return route.method.lower() + "".join(word.capitalize() for word in re.split(r"[^a-zA-Z0-9]+", words) if word)


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.documented_path)
    ]


def _parameter(param: Param) -> dict[str, Any]:
    shown = {"name": param.name, "in": "query", "description": param.description, "schema": dict(param.schema)}
    return {**shown, "style": "form", "explode": False} if param.many else shown


def _answer(answer: Answer) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": answer.description}
    if answer.media:
        shown["content"] = {media: {"schema": _media_schema(answer, media)} for media in answer.media}
    if answer.headers:
        shown["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()}
    return shown


def _media_schema(answer: Answer, media: str) -> dict[str, Any]:
    if media == NDJSON:
        return {"type": "string", "description": "One Gap a line"}
    return ref(answer.schema) if answer.schema else {"type": "object" if media == JSON else "string"}


def _body_schema(kind: type[msgspec.Struct]) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), components = msgspec.json.schema_components([kind], ref_template="#/components/schemas/Body{name}")
    return schema, {f"Body{name}": component for name, component in components.items()}
