"""Which pipelines read which raw topic, and what turns its records into events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gapwatch.core.envelopes import PLAIN, BatchDecoder, LetterDecoder, NativeModule, decoder_for, letter_decoders_for
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FeedKind, PipelineSpec, RepairMode
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


def bindings_of(pipelines: Mapping[str, PipelineSpec], native: NativeModule | None = None) -> dict[str, list[Binding]]:
    """Return all bindings by topic; pipelines are resolved. `native`: the compiled module, where there is one."""
    found: dict[str, list[Binding]] = {}
    for pipeline in pipelines.values():
        for table in pipeline.by_table():
            _bind(found, pipeline, Side.EXPECTED, table, native)
        _bind(found, pipeline, Side.OBSERVED, pipeline, native)
    return found


def _bind(
    found: dict[str, list[Binding]], pipeline: PipelineSpec, side: Side, table: PipelineSpec, native: NativeModule | None
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
            decoder=BatchDecoder(decoder_for(table, side, mapping, native), republished=_may_be_republished(table, side)),
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


def _may_be_republished(pipeline: PipelineSpec, side: Side) -> bool:
    return side is Side.EXPECTED and RepairMode.REPUBLISH in pipeline.repair.modes


def heartbeat_topics(pipelines: Mapping[str, PipelineSpec], configured: Mapping[str, str]) -> dict[str, str]:
    """Return, per raw topic of a Debezium feed, the topic in which its heartbeat rows arrive.

    Args:
        pipelines: Resolved pipelines.
        configured: Store name → topic of rows made elsewhere (``heartbeat: { topic: … }``).
    """
    topics: dict[str, str] = {}
    for pipeline in pipelines.values():
        for feed in pipeline.source.feeds:
            if feed.kind is FeedKind.DEBEZIUM:
                prefix = ".".join(feed.topic.split(".")[:-2])  # <prefix>.<schema>.<table>
                topics[feed.topic] = configured.get(pipeline.source.store) or f"{prefix}.message"
    return topics
