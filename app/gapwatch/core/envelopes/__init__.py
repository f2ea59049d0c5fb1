"""What raw records say: decoders from Kafka records of each feed kind to canonical events.

Built once per pipeline and side with :func:`decoder_for`, and for whole batches with :class:`BatchDecoder`;
:func:`heartbeat_row` reads heartbeat topics, and :func:`letter_decoders_for` what the pipeline's own sink says.
"""

from collections.abc import Mapping
from typing import Final

from gapwatch.core.envelopes.batches import REPUBLISHED as REPUBLISHED
from gapwatch.core.envelopes.batches import BatchDecoder as BatchDecoder
from gapwatch.core.envelopes.batches import LoopDecoder as LoopDecoder
from gapwatch.core.envelopes.change_stream import ChangeStreamDecoder
from gapwatch.core.envelopes.columns import Columns as Columns
from gapwatch.core.envelopes.columns import EventColumns as EventColumns
from gapwatch.core.envelopes.columns import Refused as Refused
from gapwatch.core.envelopes.compiled.native import INTERFACE as INTERFACE
from gapwatch.core.envelopes.compiled.native import NativeModule as NativeModule
from gapwatch.core.envelopes.debezium import DebeziumDecoder
from gapwatch.core.envelopes.heartbeats import HEARTBEAT_COLLECTION as HEARTBEAT_COLLECTION
from gapwatch.core.envelopes.heartbeats import HEARTBEAT_ID as HEARTBEAT_ID
from gapwatch.core.envelopes.heartbeats import heartbeat_row as heartbeat_row
from gapwatch.core.envelopes.heartbeats import message_content as message_content
from gapwatch.core.envelopes.letters import DeadLetterDecoder, RejectedDecoder
from gapwatch.core.envelopes.letters import LetterDecoder as LetterDecoder
from gapwatch.core.envelopes.records import Decoder as Decoder
from gapwatch.core.envelopes.records import Event as Event
from gapwatch.core.envelopes.records import HeartbeatRow as HeartbeatRow
from gapwatch.core.envelopes.records import Marker as Marker
from gapwatch.core.envelopes.records import RawRecord as RawRecord
from gapwatch.core.envelopes.records import Truncate as Truncate
from gapwatch.core.envelopes.search import AcksDecoder, TailDecoder
from gapwatch.core.envelopes.topic import TopicDecoder
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import ConfigError, ConfigProblem
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.model.stream import Side

PLAIN: Final = ("", "json")  # formats of a topic whose records hold no position of their own


def decoder_for(pipeline: PipelineSpec, side: Side, mapping: CompiledMapping, native: NativeModule | None = None) -> LoopDecoder:
    """Return the decoder of one side's feed; `mapping` is compiled from the resolved `pipeline`, `native` the compiled module.

    Raises:
        ConfigError: There is no decoder for that kind of feed.
    """
    name, feed = ("source", pipeline.source.feed) if side is Side.EXPECTED else ("target", pipeline.target.feed)
    match feed.kind:
        case FeedKind.DEBEZIUM:
            return DebeziumDecoder(mapping, side, native)
        case FeedKind.CHANGE_STREAM:
            return ChangeStreamDecoder(mapping, side)
        case FeedKind.SEQ_NO:
            return TailDecoder(mapping, side)
        case FeedKind.ACKS:
            return AcksDecoder(mapping, side)
        case FeedKind.TOPIC if feed.format in PLAIN:
            return TopicDecoder(mapping, side)
        case FeedKind.TOPIC if feed.format == "debezium":
            return DebeziumDecoder(mapping, side, native)
    place = f"pipelines.{pipeline.id}.{name}.feed"
    described = f"{feed.kind.value} {feed.format}".strip()
    remedy = "Use debezium, change_stream, seq_no, acks, or topic with format json or debezium."
    raise ConfigError([ConfigProblem(place, f"A feed of kind {described} cannot be decoded.", remedy=remedy)])


def letter_decoders_for(pipeline: PipelineSpec) -> Mapping[str, LetterDecoder]:
    """Return, by topic, what reads the pipeline's own sink: its dead letters, and its acks of refused items."""
    found: dict[str, LetterDecoder] = {}
    tables = [table for table in pipeline.by_table() if table.source.feed.kind is not FeedKind.NONE]
    if pipeline.target.dead_letter_topic and tables:
        sources = {table.source.feed.topic: decoder_for(table, Side.EXPECTED, CompiledMapping(table)) for table in tables}
        plain = {feed.topic for feed in pipeline.source.feeds if feed.kind is FeedKind.TOPIC and feed.format in PLAIN}
        found[pipeline.target.dead_letter_topic] = DeadLetterDecoder(pipeline.id, sources, by_offset=frozenset(plain))
    if pipeline.target.feed.kind is FeedKind.ACKS:
        found[pipeline.target.feed.topic] = RejectedDecoder(CompiledMapping(pipeline))
    return found
