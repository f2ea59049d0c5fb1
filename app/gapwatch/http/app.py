"""The aiohttp application, and the server that binds it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web

from gapwatch.http import auth, health, openapi, page, problems
from gapwatch.http.api import ROUTES as API_ROUTES
from gapwatch.http.deps import DEPS, PROBES, ApiDeps, ApiLedger, Operations, ProbeDeps, Token, Tokens
from gapwatch.http.routing import Answer, Param, Route, bind

__all__ = [
    "ROUTES",
    "ApiDeps",
    "ApiLedger",
    "ApiServer",
    "Operations",
    "ProbeDeps",
    "ProbeServer",
    "Token",
    "Tokens",
    "create_app",
]

BODY_BYTES_MAX: Final = 1024 * 1024
SHUTDOWN_SECONDS: Final = 5.0

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "Server": "gapwatch",  # no versions of libraries for whoever scans
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_PLAIN: Final = ("text/plain",)

PROBE_ROUTES: Final = (
    Route(
        method="GET",
        path="/livez",
        handler=health.livez,
        summary="Whether the process answers",
        tag="probes",
        scope=None,
        query=(Param(name="verbose", description="Taken for kinship with /readyz"),),
        answers={200: Answer(description="It does", media=_PLAIN)},
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=health.readyz,
        summary="Whether every part is ready",
        tag="probes",
        scope=None,
        query=(Param(name="verbose", description="Name all parts, not only those that are not ready"),),
        answers={
            200: Answer(description="All parts are ready", media=_PLAIN),
            503: Answer(description="The parts that are not, each with its reason", media=_PLAIN),
        },
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=health.metrics,
        summary="Metrics for Prometheus",
        tag="probes",
        scope=None,
        answers={200: Answer(description="The exposition, text format 0.0.4", media=_PLAIN)},
        errors=(503,),
    ),
)

OWN_ROUTES: Final = (
    *PROBE_ROUTES,
    Route(
        method="GET",
        path="/openapi.json",
        handler=openapi.serve,
        summary="This document",
        tag="documents",
        scope="read",
        answers={200: Answer(description="OpenAPI 3.1")},
        errors=(503,),
    ),
)

ROUTES: Final = (*OWN_ROUTES, *API_ROUTES, *page.ROUTES)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(deps: ApiDeps, *, open_on_loopback: bool = True) -> web.Application:
    """Return the application.

    Args:
        deps: What it works with.
        open_on_loopback: Whether requests from this machine need no token as long as there is none. False where the server
            listens on other addresses too: then every request needs one, even after the last token was revoked.
    """
    app = _application(ROUTES, deps.probes)
    app[DEPS] = deps
    app[auth.OPEN_ON_LOOPBACK] = open_on_loopback
    app[openapi.ROUTES_KEY] = ROUTES
    return app


def _application(routes: Sequence[Route], probes: ProbeDeps) -> web.Application:
    app = web.Application(middlewares=[problems.middleware], client_max_size=BODY_BYTES_MAX)
    app[PROBES] = probes
    # There is no catch-all route: what no route takes becomes a 404 in the middleware, so none can hide another.
    for route in routes:
        app.router.add_route(route.method, route.path, bind(route))
    app.on_response_prepare.append(_add_headers)
    return app


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")


class _Server:
    """Serves one application on one address until it is stopped."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None

    async def _serve(self, app: web.Application, host: str, port: int) -> tuple[str, int]:
        assert self._runner is None, "a server is started once"
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        site = web.TCPSite(runner, host or None, port)
        try:
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        bound = runner.addresses[0]
        return str(bound[0]), int(bound[1])

    async def stop(self) -> None:
        """Stop listening and let running requests end, for five seconds at most."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


class ApiServer(_Server):
    """The whole application: API, page, probes."""

    def __init__(self, deps: ApiDeps) -> None:
        super().__init__()
        self._deps = deps

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Bind and serve; return the address and the port (the one that was given, or a free one for 0).

        Raises:
            UsageError: The address is reachable from other machines and there is no token.
            OSError: The address cannot be bound.
        """
        has_tokens = await asyncio.to_thread(self._deps.tokens.has_tokens)
        auth.check_listen(host, has_tokens=has_tokens)
        return await self._serve(create_app(self._deps, open_on_loopback=auth.is_loopback(host)), host, port)


class ProbeServer(_Server):
    """Only what is open to everybody: a process of any role, as its orchestrator and Prometheus see it."""

    def __init__(self, deps: ProbeDeps) -> None:
        super().__init__()
        self._deps = deps

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Bind and serve, on whatever address; as :meth:`ApiServer.start`. Raises OSError."""
        return await self._serve(_application(PROBE_ROUTES, self._deps), host, port)
