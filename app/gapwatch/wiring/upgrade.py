"""``gapwatch upgrade --check``: what is read, and where."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from gapwatch.check_ports import Advice
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.kafka.clients import RawConsumer
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.ledger import inspected, is_new, open_ledger
from gapwatch.model.pipeline import PipelineSpec, Settings
from gapwatch.model.suspect import PartitionStatus
from gapwatch.roles.status_feed import StatusTopic
from gapwatch.roles.upgrading import Stored, of_ledger, of_pipelines, of_state, opened
from gapwatch.wiring.stores import new_id, resolved_fact, resolved_pipeline

READ_SECONDS = 0.5


def check_upgrade(settings: Settings) -> Sequence[Advice]:
    """Return what the next start will do; changes nothing."""
    return asyncio.run(_check(settings))


async def _check(settings: Settings) -> Sequence[Advice]:
    advice: list[Advice] = []
    try:
        stored = await asyncio.to_thread(_stored, settings)
    except GapwatchError as error:
        return [_unread("database", error)]
    advice.append(of_ledger(stored))
    records: Sequence[PartitionStatus] = ()
    try:
        advice += [item for item in await TopicAdmin(settings).inspect() if item.level != "ok"]
        records = await _status(settings)
    except GapwatchError as error:
        advice.append(_unread("kafka", error))
    held = opened(records)
    advice += of_state(held)
    with_types = open_ledger("sqlite:///:memory:")
    try:
        enabled = {name: spec for name, spec in settings.pipelines.items() if spec.enabled}
        for name in enabled:
            types = stored.facts.get(resolved_fact(name))
            if types is not None:
                with_types.set_fact(resolved_fact(name), types)

        async def mapping(spec: PipelineSpec) -> CompiledMapping:
            return CompiledMapping(await resolved_pipeline(settings, with_types, spec))

        advice += await of_pipelines(stored, held, {name: partial(mapping, spec) for name, spec in enabled.items()})
    finally:
        with_types.close()
    return advice


def _unread(subject: str, error: GapwatchError) -> Advice:
    level = "error" if isinstance(error, StoreRefused) else "unknown"
    return Advice(level=level, subject=subject, message=error.message, remedy=error.remedy)


def _stored(settings: Settings) -> Stored:
    facts: dict[str, Any] = {}
    if is_new(settings.database):
        return Stored(revision=None, needed="", facts=facts)
    revision, needed, ledger = inspected(settings.database)
    try:
        if revision is not None:
            facts.update(ledger.facts())
    finally:
        ledger.close()
    return Stored(revision=revision, needed=needed, facts=facts)


async def _status(settings: Settings) -> list[PartitionStatus]:
    """Return what is on the status topic; nothing before the first start."""
    if not await TopicAdmin(settings).describe([settings.topics.status]):
        return []
    feed = StatusTopic(RawConsumer(settings, client_id=f"upgrade-{new_id()[:8]}"), settings.topics)
    try:
        await feed.start()
        values: list[bytes] = []
        while not feed.at_end:
            values += await feed.read(READ_SECONDS)
    finally:
        await feed.close()
    return [msgspec.json.decode(value, type=PartitionStatus) for value in values]
