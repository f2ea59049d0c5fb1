"""``doctor`` and ``config validate --against-live``: asks everything before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.model.pipeline import FeedKind, Settings
from gapwatch.ports import Advice, Preflight, StoredRecord
from gapwatch.roles.stores import PipelineStores

KEYS_COMPARED = 100
MISMATCH_SHARE = 0.2  # of the compared keys, in one field: then the mapping is suspect, not the data
SECONDS_MAX = 20.0


async def examine_pipelines(settings: Settings, checks: Mapping[str, Sequence[Preflight]], topics: TopicAdmin) -> list[Advice]:
    """Return the advice of every check; what could not be asked has the level ``unknown``."""
    advice: list[Advice] = []
    try:
        advice += await topics.inspect()
        advice += await _raw_topics(settings, topics)
    except GapwatchError as error:
        level = "error" if isinstance(error, StoreRefused) else "unknown"
        advice.append(Advice(level=level, subject="kafka", message=error.message, remedy=error.remedy))
    for name, of_pipeline in checks.items():
        for check in of_pipeline:
            try:
                async with asyncio.timeout(SECONDS_MAX):
                    advice += await check.check()
            except (GapwatchError, TimeoutError) as error:
                message = getattr(error, "message", "") or "It did not answer in time."
                advice.append(Advice(level="unknown", subject=name, message=message, remedy=getattr(error, "remedy", "")))
    return advice


async def _raw_topics(settings: Settings, topics: TopicAdmin) -> list[Advice]:
    advice = []
    for spec in settings.pipelines.values():
        if spec.source.feed.kind is not FeedKind.DEBEZIUM:
            continue
        topic = spec.source.feed.topic
        if not await topics.describe([topic]):
            message = f"There is no topic {topic}."
            remedy = "Correct the feed, or start its connector; a table without writes has no topic yet."
            advice.append(Advice(level="warning", subject=f"{spec.id}.source", message=message, remedy=remedy))
    return advice


async def compare_live(pipelines: Mapping[str, Callable[[], Awaitable[PipelineStores]]]) -> list[Advice]:
    """Read some keys on both sides and compare them under the mapping; a field that differs too often is the mapping's fault."""
    advice: list[Advice] = []
    for name, opened in pipelines.items():
        try:
            advice += await _compare(name, await opened())
        except GapwatchError as error:
            level = "error" if isinstance(error, StoreRefused) or error.exit_code == 2 else "unknown"
            advice.append(Advice(level=level, subject=name, message=error.message, remedy=error.remedy))
    return advice


async def _compare(name: str, stores: PipelineStores) -> list[Advice]:
    rows: list[StoredRecord] = []
    async for chunk in stores.source.scan(content=True, chunk=KEYS_COMPARED):
        rows = list(chunk.records)[:KEYS_COMPARED]
        break
    if not rows:
        return [
            Advice(level="warning", subject=name, message="The source holds no row to compare.", remedy="Compare again later.")
        ]
    found = await stores.target.fetch([row.key for row in rows])
    differing: dict[str, int] = {}
    example: dict[str, str] = {}
    compared = 0
    for row in rows:
        document = found[row.key]
        if not isinstance(document, StoredRecord):
            continue
        compared += 1
        source, target = stores.mapping.canonical_source(row.fields), stores.mapping.canonical_target(document.fields)
        for field in stores.mapping.differing(source, target):
            differing[field] = differing.get(field, 0) + 1
            shown = (
                stores.mapping.shown_source(row.fields, [field])[field],
                stores.mapping.shown_target(document.fields, [field])[field],
            )
            example.setdefault(field, f"source {shown[0]!r}, target {shown[1]!r}")
    if not compared:
        message = f"None of {len(rows)} source keys was found at the target."
        return [
            Advice(level="error", subject=name, message=message, remedy="Correct the target's key.", finding="mapping_suspect")
        ]
    suspect = [field for field, count in differing.items() if count > MISMATCH_SHARE * compared]
    if suspect:
        text = "; ".join(f"{field} differs in {differing[field]} of {compared} ({example[field]})" for field in suspect)
        remedy = "Correct the field's source column, type, scale or rounding."
        return [
            Advice(
                level="error", subject=name, message=f"The mapping looks wrong: {text}.", remedy=remedy, finding="mapping_suspect"
            )
        ]
    agreed = compared - max(differing.values(), default=0)
    message = f"{compared} of {len(rows)} keys read on both sides; at least {agreed} agree in every field."
    return [Advice(level="ok", subject=name, message=message)]
