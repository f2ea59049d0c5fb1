"""``gapwatch doctor`` and ``config validate --against-live``: what is asked, and of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.ledger import is_new, open_ledger
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Advice, Preflight
from gapwatch.roles.board import Facts
from gapwatch.roles.examiner import examine_pipelines
from gapwatch.roles.stores import PipelineStores
from gapwatch.wiring.stores import Stores, preflights


def examine(settings: Settings) -> Sequence[Advice]:
    """Return all advice of all preflights, and of our own topics; what could not be asked has the level ``unknown``."""
    return asyncio.run(_examine(settings))


async def _examine(settings: Settings) -> Sequence[Advice]:
    advice: list[Advice] = []
    positions: Mapping[str, Any] = {}
    try:
        positions = await asyncio.to_thread(_positions, settings.database)
    except GapwatchError as error:
        level = "error" if isinstance(error, StoreRefused) else "unknown"
        advice.append(Advice(level=level, subject="database", message=error.message, remedy=error.remedy))
    checks: dict[str, Sequence[Preflight]] = {}
    for name, spec in settings.pipelines.items():
        if spec.enabled:
            token = positions.get(Facts.resume(spec.target.feed.topic), {}).get("token")
            checks[name] = preflights(settings, spec, token.encode() if token else None)
    try:
        return [*advice, *await examine_pipelines(settings, checks, TopicAdmin(settings))]
    finally:
        for check in chain.from_iterable(checks.values()):
            await check.close()


def _positions(database: str) -> Mapping[str, Any]:
    """Return where every change stream was read to; before the first start there is nothing."""
    if is_new(database):
        return {}
    ledger = open_ledger(database)
    try:
        return ledger.facts(Facts.resume(""))
    finally:
        ledger.close()


def validate_live(settings: Settings) -> Sequence[Advice]:
    """Read up to 100 keys on both sides of every pipeline and compare them under the mapping (M23)."""
    from gapwatch.roles.examiner import compare_live

    async def run() -> Sequence[Advice]:
        ledger = open_ledger("sqlite:///:memory:")
        stores = Stores(settings, ledger)
        made: dict[str, Callable[[], Awaitable[PipelineStores]]] = {
            name: partial(stores.stores, name) for name, spec in settings.pipelines.items() if spec.enabled
        }
        try:
            return [*await _examine(settings), *await compare_live(made)]
        finally:
            await stores.close()
            ledger.close()

    return asyncio.run(run())
