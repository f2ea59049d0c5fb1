"""Probes and metrics: open to everybody, and never an id, a key or a secret in them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import web

from gapwatch.http.deps import PROBES, READY

# A thread of its own: those of asyncio, a few, may all wait for a ledger that is frozen, and just then metrics are wanted.
_SHOWING: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")


async def livez(request: web.Request) -> web.StreamResponse:
    """Answer as long as the process can: asks nobody else."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.StreamResponse:
    """Answer 200 when every part is ready, else 503 and the parts that are not; ``?verbose`` names them all."""
    parts = await _readiness(request)
    failing = {name: state for name, state in parts.items() if state != READY}
    ready = bool(parts) and not failing
    shown = parts if "verbose" in request.query else failing
    lines = [f"[+]{name} ok" if state == READY else f"[-]{name} {state}" for name, state in sorted(shown.items())]
    if not parts:
        lines.append("[-]readiness nothing was checked")
    lines.append("ok" if ready else "not ready")
    return web.Response(status=200 if ready else 503, text="\n".join(lines) + "\n")


async def _readiness(request: web.Request) -> Mapping[str, str]:
    answer = request.app[PROBES].readiness()
    return await answer if inspect.isawaitable(answer) else answer


async def metrics(request: web.Request) -> web.StreamResponse:
    exposition = await asyncio.get_running_loop().run_in_executor(_SHOWING, request.app[PROBES].metrics)
    return web.Response(body=exposition, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
