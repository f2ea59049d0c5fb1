"""``gapwatch doctor`` and ``config validate --against-live``: what is asked, and of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from gapwatch.check_ports import Advice, Preflight
from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.kafka.fenced import examine_transactions
from gapwatch.kafka.topics import TopicAdmin, captures
from gapwatch.ledger import is_new, open_ledger
from gapwatch.model.pipeline import Settings
from gapwatch.roles.board import Facts
from gapwatch.roles.examiner import compare_live, examine_pipelines
from gapwatch.roles.repair.clocks import StoreClocks
from gapwatch.roles.stores import PipelineStores
from gapwatch.wiring.stores import Stores, preflights

Opened = Callable[[], Awaitable[PipelineStores]]


def examine(settings: Settings) -> Sequence[Advice]:
    """Return all advice of all preflights, and of our own topics; what could not be asked has the level ``unknown``."""
    return asyncio.run(_with_stores(settings, _examine))


async def _with_stores(
    settings: Settings, ask: Callable[[Settings, Mapping[str, Opened]], Awaitable[Sequence[Advice]]]
) -> Sequence[Advice]:
    """Ask something with every pipeline's stores at hand, which are opened when they are needed; nothing is stored of it."""
    ledger = open_ledger("sqlite:///:memory:")
    stores = Stores(settings, ledger)
    opened = {name: partial(stores.stores, name) for name, spec in settings.pipelines.items() if spec.enabled}
    try:
        return await ask(settings, opened)
    finally:
        await stores.close()
        ledger.close()


async def _examine(settings: Settings, opened: Mapping[str, Opened]) -> Sequence[Advice]:
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
        clocks = {name: StoreClocks(settings.pipelines[name], stores) for name, stores in opened.items()}
        advice += await examine_pipelines(settings, checks, clocks, TopicAdmin(settings))
        if captures(settings):
            advice += await examine_transactions(settings)
        return advice
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

    async def ask(settings: Settings, opened: Mapping[str, Opened]) -> Sequence[Advice]:
        return [*await _examine(settings, opened), *await compare_live(opened)]

    return asyncio.run(_with_stores(settings, ask))
