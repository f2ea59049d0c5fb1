"""``gapwatch replay verdicts``: reads with consumers of its own, and keeps what it needs in memory alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from gapwatch.clock import SystemClock
from gapwatch.core.keys import KeyCodec
from gapwatch.core.replay import found_record
from gapwatch.errors import NotFoundError
from gapwatch.kafka.clients import RawConsumer
from gapwatch.kafka.schema_registry import SchemaRegistry
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.ledger import SqlLedger, is_new, open_ledger
from gapwatch.logs import set_up_logs
from gapwatch.model.pipeline import Settings
from gapwatch.roles.repair.questions import check, question_of
from gapwatch.roles.repair.replaying import ReplayReader
from gapwatch.roles.repair.rereading import OnProgress
from gapwatch.wiring.stores import new_id, resolved_fact, resolved_pipeline


def replay_verdicts(
    settings: Settings,
    pipeline: str,
    *,
    time_from: str,
    time_to: str,
    of: str,
    grace_seconds: float | None,
    tolerances: Mapping[str, Decimal],
    on_progress: OnProgress,
) -> Mapping[str, Any]:
    """Say again what the streams say of a range; return it as one object. Changes nothing anywhere."""
    spec = settings.pipelines.get(pipeline)
    if spec is None:
        known = ", ".join(sorted(settings.pipelines)) or "none"
        raise NotFoundError(f"There is no pipeline {pipeline!r}.", remedy=f"Configured: {known}.")
    question = replace(
        question_of(time_from, time_to, of),
        grace_ms=None if grace_seconds is None else round(grace_seconds * 1000),
        tolerances=tolerances,
    )
    clock = SystemClock()
    check(question, clock.now_ms())

    async def run() -> Mapping[str, Any]:
        with_types = open_ledger("sqlite:///:memory:")
        try:
            await asyncio.to_thread(_take_types, settings, pipeline, with_types)
            resolved = await resolved_pipeline(settings, with_types, spec)
        finally:
            with_types.close()

        def consumer() -> RawConsumer:
            options = {"enable.partition.eof": True}
            return RawConsumer(settings, client_id=f"replay-{new_id()[:8]}", options=options, registry=registry)

        registry = SchemaRegistry(settings.schema_registry, clock) if settings.schema_registry else None
        try:
            found = await ReplayReader(settings, consumer, TopicAdmin(settings), clock).answer(question, resolved, on_progress)
        finally:
            if registry is not None:
                registry.close()
        asked = {
            "pipeline": pipeline,
            "of": of,
            "from": time_from,
            "to": time_to,
            "grace_seconds": grace_seconds,
            "tolerances": {name: str(tolerance) for name, tolerance in sorted(tolerances.items())},
        }
        return found_record(found, KeyCodec(resolved.source.key), asked)

    set_up_logs(logging.WARNING)
    return asyncio.run(run())


def _take_types(settings: Settings, pipeline: str, ledger: SqlLedger) -> None:
    """Take up what the service stored of the source's types, for when the source is away; the service's ledger is only read."""
    if is_new(settings.database):
        return
    stored = open_ledger(settings.database)
    try:
        fact = stored.fact(resolved_fact(pipeline))
    finally:
        stored.close()
    if fact is not None:
        ledger.set_fact(resolved_fact(pipeline), fact)
