"""What of the connectors would lose data or not work."""

from __future__ import annotations

from collections.abc import Sequence

from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.ports import Advice
from gapwatch_connectors.debezium.client import Connector, ConnectRest

RUNNING = "RUNNING"


class ConnectorPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for the connectors of one pipeline."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._pipeline = pipeline
        self._rest = ConnectRest(url)

    async def check(self) -> Sequence[Advice]:
        advice: list[Advice] = []
        pipeline = self._pipeline
        if pipeline.source.feed.kind is FeedKind.DEBEZIUM:
            source = await self._rest.source_of(pipeline.source.feed.topic)
            if source is None:
                message = f"No connector on Kafka Connect writes {pipeline.source.feed.topic}."
                advice.append(self._advice("source", "warning", message, "Register one (see debezium/), or correct the topic."))
            else:
                advice += self._state("source", source) + self._source(source)
        if pipeline.delivery.group.startswith("connect-"):
            sink = await self._rest.sink_of(pipeline.delivery.group)
            if sink is None:
                message = f"No connector is behind the delivery group {pipeline.delivery.group}."
                advice.append(self._advice("target", "warning", message, "Correct delivery.group, or register the sink."))
            else:
                advice += self._state("target", sink)
        return advice or [self._advice("source", "ok", "Its connectors run.")]

    async def close(self) -> None:
        return None

    def _advice(self, side: str, level: str, message: str, remedy: str = "", finding: str = "") -> Advice:
        return Advice(level=level, subject=f"{self._pipeline.id}.{side}", message=message, remedy=remedy, finding=finding)

    def _state(self, side: str, connector: Connector) -> list[Advice]:
        bad = [state for state in (connector.state, *connector.task_states) if state == "FAILED"]
        if not bad and connector.task_states:
            return []
        reason = connector.trace or f"state {connector.state}, tasks {', '.join(connector.task_states) or 'none'}"
        message = f"Connector {connector.name} does not run: {reason}."
        level = "error" if bad else "warning"
        return [self._advice(side, level, message, "Look at its trace, mend it, restart it.", "connector_failed" if bad else "")]

    def _source(self, connector: Connector) -> list[Advice]:
        config, advice = connector.config, []
        if config.get("decimal.handling.mode") == "double":
            message = f"Connector {connector.name} sends decimals as doubles: digits are lost before anyone can compare them."
            advice.append(self._advice("source", "error", message, "Set decimal.handling.mode to precise or string."))
        if config.get("skipped.operations", "t") not in ("none", ""):
            message = (
                f"Connector {connector.name} skips operations ({config.get('skipped.operations', 't')}): a TRUNCATE goes unseen."
            )
            advice.append(self._advice("source", "warning", message, "Set skipped.operations to none."))
        return advice
