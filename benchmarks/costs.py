"""What an event costs the broker: bytes and records on the topics after a run of the work of reference."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from benchmarks import work
from gapwatch.kafka.topics import state_topic


def of_broker(servers: str, directory: Path, keys: int) -> dict[str, float]:
    """Return the costs of one raw event, from the logs in the broker's `directory` and their offsets."""
    settings, events = work.settings(servers, ""), work.records(keys)
    changelog = state_topic(settings)
    return {
        "events_per_record": events / max(_records(servers, settings.topics.events), 1),
        "raw_bytes": (_bytes(directory, work.SOURCE) + _bytes(directory, work.TARGET)) / events,
        "packed_bytes": _bytes(directory, settings.topics.events) / events,
        "changelog_bytes": _bytes(directory, changelog) / events,
        "changelog_records": _records(servers, changelog) / events,
    }


def _bytes(directory: Path, topic: str) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.log") if path.parent.name.rpartition("-")[0] == topic)


def _records(servers: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-costs", "enable.auto.commit": False})
    try:
        found = consumer.list_topics(topic, timeout=10).topics[topic]
        return sum(consumer.get_watermark_offsets(TopicPartition(topic, number))[1] for number in found.partitions)
    finally:
        consumer.close()
