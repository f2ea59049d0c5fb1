"""Which pipelines read which raw topic, and what turns its records into events."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gapwatch.core.envelopes import (
    HEARTBEAT_COLLECTION,
    PLAIN,
    BatchDecoder,
    LetterDecoder,
    NativeModule,
    decoder_for,
    letter_decoders_for,
)
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FeedKind, PipelineSpec, RepairMode, StoreSpec
from gapwatch.model.stream import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One side of one pipeline, read from one topic."""

    pipeline: PipelineSpec
    side: Side
    topic: str
    decoder: BatchDecoder
    fingerprint: int
    kind: FeedKind

    @property
    def by_append(self) -> bool:
        """Whether records have no time but that of their append: a plain topic's."""
        feed = self.pipeline.target.feed if self.side is Side.OBSERVED else self.pipeline.source.feed
        return feed.kind is FeedKind.TOPIC and feed.format in PLAIN


def republished_topics(pipelines: Mapping[str, PipelineSpec]) -> frozenset[str]:
    """Return the topics to which backfills may send events once more; whoever reads them passes over those."""
    allowing = (pipeline for pipeline in pipelines.values() if RepairMode.REPUBLISH in pipeline.repair.modes)
    return frozenset(feed.topic for pipeline in allowing for feed in pipeline.source.feeds)


def bindings_of(
    pipelines: Mapping[str, PipelineSpec], native: NativeModule | None = None, *, republished: Collection[str] | None = None
) -> dict[str, list[Binding]]:
    """Return all bindings by topic; pipelines are resolved.

    `native`: the compiled module, where there is one. `republished`: see :func:`republished_topics`; None: by these pipelines.
    """
    passed_over = republished_topics(pipelines) if republished is None else republished
    found: dict[str, list[Binding]] = {}
    for pipeline in pipelines.values():
        for table in pipeline.by_table():
            _bind(found, pipeline, Side.EXPECTED, table, native, passed_over)
        _bind(found, pipeline, Side.OBSERVED, pipeline, native, passed_over)
    return found


def _bind(
    found: dict[str, list[Binding]],
    pipeline: PipelineSpec,
    side: Side,
    table: PipelineSpec,
    native: NativeModule | None,
    republished: Collection[str],
) -> None:
    """Add the binding of one feed; `table` is the pipeline as its records are encoded."""
    feed = table.source.feed if side is Side.EXPECTED else table.target.feed
    if feed.kind is FeedKind.NONE:
        return
    mapping = CompiledMapping(table)
    found.setdefault(feed.topic, []).append(
        Binding(
            pipeline=pipeline,
            side=side,
            topic=feed.topic,
            decoder=BatchDecoder(decoder_for(table, side, mapping, native), republished=feed.topic in republished),
            fingerprint=mapping.fingerprint,
            kind=feed.kind,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterBinding:
    """What one pipeline's sink says, read from one topic: evidence, which moves no time."""

    pipeline: PipelineSpec
    topic: str
    decoder: LetterDecoder


def letter_bindings_of(pipelines: Mapping[str, PipelineSpec]) -> dict[str, list[LetterBinding]]:
    """Return the bindings of sinks by topic; pipelines are resolved."""
    found: dict[str, list[LetterBinding]] = {}
    for pipeline in pipelines.values():
        for topic, decoder in letter_decoders_for(pipeline).items():
            found.setdefault(topic, []).append(LetterBinding(pipeline=pipeline, topic=topic, decoder=decoder))
    return found


def heartbeat_topics(pipelines: Mapping[str, PipelineSpec], stores: Mapping[str, StoreSpec]) -> dict[str, str]:
    """Return, per raw topic of a Debezium feed, the topic in which its heartbeat rows arrive; pipelines are resolved."""
    configured = {name: store.heartbeat.topic for name, store in stores.items()}  # rows that are made elsewhere
    topics: dict[str, str] = {}
    for pipeline in pipelines.values():
        for feed in pipeline.source.feeds:
            if feed.kind is FeedKind.DEBEZIUM:
                prefix = ".".join(feed.topic.split(".")[:-2])  # <prefix>.<schema>.<table>
                topics[feed.topic] = configured.get(pipeline.source.store) or f"{prefix}.message"
        target = pipeline.target
        if target.feed.kind is FeedKind.DEBEZIUM and target.wires:  # it is a table
            prefix = ".".join(target.feed.topic.split(".")[:-2])
            topics[target.feed.topic] = configured.get(target.store) or f"{prefix}.message"
        elif target.feed.kind is FeedKind.DEBEZIUM:
            ours = target.store in stores and stores[target.store].heartbeat.auto
            topic = configured.get(target.store) or (_beside(target.feed.topic, target.collection) if ours else "")
            topics |= {target.feed.topic: topic} if topic else {}
    return topics


def _beside(topic: str, collection: str) -> str:
    """Return the topic of our heartbeat documents beside a collection's, "" where that was renamed on its way."""
    database = collection.partition(".")[0]
    prefix = topic.removesuffix(collection)
    return f"{prefix}{database}.{HEARTBEAT_COLLECTION}" if prefix.endswith(".") else ""
