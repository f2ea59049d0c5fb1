"""What a record that cannot be understood looks like on ``gapwatch.dlq``: itself, with Kafka Connect's header names."""

from __future__ import annotations

from gapwatch.core.envelopes import RawRecord
from gapwatch.errors import RecordError
from gapwatch.kafka.producer import CONTENT_BYTES_MAX

PREFIX = "__connect.errors."


def dead_letter(
    record: RawRecord, error: RecordError, pipeline: str
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Return key, value and headers: the record as it was, where it lay, and why it was not understood.

    One that is larger than the topic takes is left out, with its headers: it still lies where they say.
    """
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
    told = [(name, value.encode()) for name, value in said.items()]
    size = sum(len(part or b"") for part in (record.key, record.value, *(value for _, value in record.headers)))
    if size > CONTENT_BYTES_MAX:
        return None, None, [*told, ("gapwatch-left-out", str(size).encode())]
    return record.key, record.value, [*record.headers, *told]
