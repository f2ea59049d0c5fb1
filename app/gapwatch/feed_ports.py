"""What role ``capture`` asks of a store: its own change stream, and heartbeat rows in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

NO_KEY: Final = b"{}"  # of a change whose key nobody can write down: ingest cannot read it, which is a hole of one record


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One change of a stream, for the feed topic. ``value`` empty: no document. ``token`` is the resume token after it."""

    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]
    event_time: int
    token: bytes

    def touched(self) -> ChangeEvent:
        """Return the change without its content: it says that the key was written, and reading both stores tells the rest."""
        headers = [(name, b"update_touched" if name == "gapwatch-op" else said) for name, said in self.headers]
        return replace(self, value=b"", headers=headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBatch:
    """Changes in order, the resume token after them all, and the watermark that the reader's markers prove (0: none yet).

    ``requests``: how many the store was asked since the batch before.
    """

    events: Sequence[ChangeEvent]
    token: bytes
    watermark: int
    requests: int = 1


class FeedReader(Protocol):
    """Reads a store's own change stream. Called by role ``capture``, one owner at a time."""

    def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        """Yield batches (also empty ones, at least every pulse, so that the watermark moves). From ``token``, else from now.

        Raises HistoryLost when the token lies outside the store's history, StoreRefused when a right is missing.
        """

    async def close(self) -> None: ...


@runtime_checkable
class RestingReader(Protocol):
    """What a reader may have besides: it rests for longer while nothing happens, as somebody wakes it."""

    def wake(self) -> None:
        """Rest no longer: something happens on the other side of the pipeline."""

    def may_rest(self) -> None:
        """Take note that somebody calls :meth:`wake` from now on."""


class HeartbeatWriter(Protocol):
    """Writes our numbered heartbeat rows into a source store."""

    async def beat(self, number: int) -> None: ...

    async def close(self) -> None: ...
