"""Findings of the streams, and the audit trail."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from gapwatch.core.reports import audit_record, finding_record, rfc3339
from gapwatch.http.deps import DEPS
from gapwatch.http.routing import (
    Answer,
    Param,
    Route,
    flag_of,
    json_response,
    limit_param,
    number_of,
    text_of,
)

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000


async def findings(request: web.Request) -> web.StreamResponse:
    deps = request.app[DEPS]
    pipeline = text_of(request, "pipeline")
    if pipeline is not None:
        deps.operations.pipeline(pipeline)
    open_only = flag_of(request, "open", default=True)
    found = await asyncio.to_thread(lambda: deps.ledger.findings(pipeline, open_only=open_only))
    return json_response({"findings": [finding_record(record) for record in found], "read_at": rfc3339(deps.clock.now())})


async def audit(request: web.Request) -> web.StreamResponse:
    deps = request.app[DEPS]
    pipeline, run_id = text_of(request, "pipeline"), text_of(request, "run_id")
    if pipeline is not None:
        deps.operations.pipeline(pipeline)
    limit = number_of(request, "limit", default=LIMIT_DEFAULT, most=LIMIT_MAX)
    rows = await asyncio.to_thread(lambda: deps.ledger.audit_rows(pipeline=pipeline, run_id=run_id, limit=limit))
    return json_response({"audit": [audit_record(row) for row in rows], "read_at": rfc3339(deps.clock.now())})


PIPELINE: Final = Param(name="pipeline", description="Only this pipeline")

ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/findings",
        handler=findings,
        summary="What is wrong with the streams, oldest first",
        tag="findings",
        scope="read",
        query=(
            PIPELINE,
            Param(name="open", description="False: also what was cleared", schema={"type": "boolean", "default": True}),
        ),
        answers={200: Answer(description="The findings", schema="Findings")},
        errors=(404, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/audit",
        handler=audit,
        summary="Who did what, newest first",
        tag="audit",
        scope="read",
        query=(
            PIPELINE,
            Param(name="run_id", description="Only this run's"),
            limit_param(LIMIT_MAX, LIMIT_DEFAULT),
        ),
        answers={200: Answer(description="The audit rows", schema="Audit")},
        errors=(404, 503),
    ),
)
