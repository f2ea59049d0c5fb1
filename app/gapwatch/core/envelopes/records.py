"""What goes into a decoder and what comes out: one raw Kafka record, and what it says of keys.

Times are milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from gapwatch.errors import RecordError

# What reading a record may raise that nobody foresaw; a decoder's own refusals are RecordErrors.
UNFORESEEN: Final = (
    msgspec.MsgspecError,
    ValueError,  # UnicodeError, binascii.Error and a key that does not fit are such
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)


class Message(Protocol):
    """What a Kafka client delivers, without an error: the methods of ``confluent_kafka.Message`` that are read here."""

    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...


class RawRecord(NamedTuple):
    """One record as Kafka delivered it. ``timestamp`` is its append time."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]

    @classmethod
    def of(cls, message: Message) -> RawRecord:
        headers = [(name, value or b"") for name, value in message.headers() or ()]
        _, timestamp = message.timestamp()
        where = (message.topic() or "", message.partition() or 0, message.offset() or 0)
        return cls(*where, timestamp, message.key(), message.value(), headers)


class Event(NamedTuple):
    """One write of one key.

    ``operation`` is a :class:`~gapwatch.model.stream.Operation`. ``digest`` is b"" where no content is known (deletes, touches).
    ``masks`` holds one digest per maskable field in mapping order (b"": this event does not carry the field), None where the
    mapping has no maskable field or no content is known; ``values`` the canonical text of each toleranced field, likewise.
    ``target_id`` names the document where the key is not the target's own id.
    """

    key: bytes
    operation: int
    major: int
    minor: int
    event_time: int
    digest: bytes
    masks: tuple[bytes, ...] | None
    values: tuple[str | None, ...] | None
    version: int | None
    target_id: bytes | None


class Truncate(NamedTuple):
    """The whole table was emptied by one statement; no key is named."""

    event_time: int
    major: int
    minor: int


class Marker(NamedTuple):
    """A watermark record of our own change-stream reader: all that was committed before ``watermark`` lies before it."""

    watermark: int


class HeartbeatRow(NamedTuple):
    """A row or logical message that travelled through the store's log in commit order.

    ``number`` counts where the row is ours, ``sender`` tells several writers apart. ``lsn`` is Postgres', else None.
    """

    number: int | None
    sender: str
    event_time: int
    major: int
    minor: int
    lsn: int | None
    append_time: int


class Decoder(Protocol):
    """Turns raw records of one feed into events. Built once; one owner; records of a partition come in offset order."""

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        """Return what the record says, in order; empty for tombstones, Debezium heartbeats and transaction metadata.

        Raises:
            RecordError: It cannot be understood; ``reason`` is a short stable label. (KeyMisfit: its key does not fit.)
        """


def refusal(error: Exception) -> RecordError:
    """Return why a record is refused at which its reading stopped: one record must not end its reader again and again."""
    if isinstance(error, RecordError):
        return error
    return RecordError("undecodable", f"Reading the record raises {type(error).__name__}.")
