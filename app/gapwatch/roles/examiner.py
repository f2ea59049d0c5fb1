"""``doctor`` and ``config validate --against-live``: asks everything before anything is started."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gapwatch.check_ports import Advice, Preflight
from gapwatch.core.trial import SHARE, sentence
from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.model.pipeline import FeedKind, Settings
from gapwatch.ports import StoredRecord
from gapwatch.roles.stores import PipelineStores

KEYS_COMPARED = 100
SUSPECT = "mapping_suspect"
WRONG_FIELD = "Correct the field's source column, type, scale or rounding."
SECONDS_MAX = 20.0

Pair = tuple[StoredRecord, StoredRecord]


async def examine_pipelines(
    settings: Settings, checks: Mapping[str, Sequence[Preflight]], then: Mapping[str, Preflight], topics: TopicAdmin
) -> list[Advice]:
    """Return the advice of every check; what could not be asked has the level ``unknown``.

    ``then``: by pipeline, what is asked only where nothing worse was found.
    """
    advice: list[Advice] = []
    try:
        advice += await topics.inspect()
        advice += await _raw_topics(settings, topics)
    except GapwatchError as error:
        level = "error" if isinstance(error, StoreRefused) else "unknown"
        advice.append(Advice(level=level, subject="kafka", message=error.message, remedy=error.remedy))
    for name, of_pipeline in checks.items():
        found = [one for check in of_pipeline for one in await _ask(name, check)]
        if name in then and all(one.level in ("ok", "warning") for one in found):
            found += await _ask(name, then[name])
        advice += found
    return advice


async def _ask(name: str, check: Preflight) -> Sequence[Advice]:
    try:
        async with asyncio.timeout(SECONDS_MAX):
            return await check.check()
    except (GapwatchError, TimeoutError) as error:
        message = getattr(error, "message", "") or "It did not answer in time."
        return [Advice(level="unknown", subject=name, message=message, remedy=getattr(error, "remedy", ""))]


async def _raw_topics(settings: Settings, topics: TopicAdmin) -> list[Advice]:
    advice = []
    for spec in settings.pipelines.values():
        if spec.source.feed.kind not in (FeedKind.DEBEZIUM, FeedKind.TOPIC):
            continue
        for topic in (feed.topic for feed in spec.source.feeds):
            if not await topics.describe([topic]):
                message = f"There is no topic {topic}."
                remedy = "Correct the feed, or start its connector; a table without writes has no topic yet."
                if spec.source.feed.kind is FeedKind.TOPIC:
                    remedy = "Correct the feed, or make the topic: nothing is known of it before it is there."
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
    pairs = [(row, document) for row in rows if isinstance(document := found[row.key], StoredRecord)]
    if not pairs:
        message = f"None of {len(rows)} source keys was found at the target."
        return [Advice(level="error", subject=name, message=message, remedy="Correct the target's key.", finding=SUSPECT)]
    return [*_verdict(name, stores, pairs, len(rows)), *_side_by_side(name, stores, pairs)]


def _verdict(name: str, stores: PipelineStores, pairs: Sequence[Pair], read: int) -> list[Advice]:
    """Say whether the mapping looks right: one piece of advice, however many fields are wrong."""
    counts, agreed = Counter[str](), 0
    for row, document in pairs:
        fields = _differing(stores, row, document)
        counts.update(fields)
        agreed += not fields
    suspect = [field for field in stores.mapping.names if counts[field] > SHARE * len(pairs)]
    if suspect:
        message = sentence(counts, suspect, len(pairs), {})
        return [Advice(level="error", subject=name, message=message, remedy=WRONG_FIELD, finding=SUSPECT)]
    message = f"{len(pairs)} of {read} keys were read on both sides; {agreed} agree in every field."
    return [Advice(level="ok", subject=name, message=message)]


def _side_by_side(name: str, stores: PipelineStores, pairs: Sequence[Pair]) -> list[Advice]:
    """Show, per field, the canonical forms of one key: one that differs, where there is one."""
    shown = []
    for field in stores.mapping.names:
        differing = [pair for pair in pairs if field in _differing(stores, *pair)]
        row, document = (differing or pairs)[0]
        key = ", ".join(str(value) for value in stores.codec.fields(row.key).values())
        left = stores.mapping.shown_source(row.fields, [field])[field]
        right = stores.mapping.shown_target(document.fields, [field])[field]
        verdict = f"differ in {len(differing)} of {len(pairs)} keys" if differing else f"agree in {len(pairs)} keys"
        message = f"{verdict}; key {key}: source {left!r}, target {right!r}."
        shown.append(Advice(level="warning" if differing else "ok", subject=f"{name}.fields.{field}", message=message))
    return shown


def _differing(stores: PipelineStores, row: StoredRecord, document: StoredRecord) -> tuple[str, ...]:
    mapping = stores.mapping
    return mapping.differing(mapping.canonical_source(row.fields), mapping.canonical_target(document.fields))
