"""What a record that cannot be understood looks like on ``gapwatch.dlq``: itself, with Kafka Connect's header names."""

from __future__ import annotations

from gapwatch.core.envelopes import RawRecord
from gapwatch.errors import RecordError

PREFIX = "__connect.errors."


def dead_letter(
    record: RawRecord, error: RecordError, pipeline: str
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Return key, value and headers: the record as it was, where it lay, and why it was not understood."""
    said = {
        f"{PREFIX}topic": record.topic,
        f"{PREFIX}partition": str(record.partition),
        f"{PREFIX}offset": str(record.offset),
        f"{PREFIX}stage": "GAPWATCH_INGEST",
        f"{PREFIX}exception.class.name": type(error).__name__,
        f"{PREFIX}exception.message": error.message,
        "gapwatch-reason": error.reason,
        "gapwatch-pipeline": pipeline,
    }
    headers = [*record.headers, *((name, value.encode()) for name, value in said.items())]
    return record.key, record.value, headers
