"""Decoding whole batches: the compiled loop where there is one for such records, the general decoder for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, Protocol

from gapwatch.core.envelopes.columns import Columns, EventColumns, Refused, Shape, fits, out_of_range
from gapwatch.core.envelopes.compiled.loop import UNUSUAL, Loop
from gapwatch.core.envelopes.compiled.native import NativeReading
from gapwatch.core.envelopes.records import UNFORESEEN, Decoder, Event, Message, RawRecord, refusal
from gapwatch.errors import RecordError

CHUNK: Final = 500  # messages that are decoded before the first of them is read: few enough to stay in the processor's cache
REPUBLISHED: Final = "gapwatch.republished"  # header of records that a backfill sent once more: the run's id
LOOKED_AT_MAX: Final = 10  # messages of a batch that are asked for their loop


def is_republished(message: Message) -> bool:
    return any(name == REPUBLISHED for name, _ in message.headers() or ())


class LoopDecoder(Decoder, Protocol):
    """A general decoder that knows the compiled loops of its feed."""

    @property
    def shape(self) -> Shape: ...

    def loop(self, record: RawRecord) -> Loop | NativeReading | None:
        """Return the loop over records like this one, made once; None where there is none. Raises what such a record makes it."""

    def looped(self) -> None:
        """Take note that a loop has read records since the last ``decode``."""


class BatchDecoder:
    """Turns batches of one feed's records into columns. One owner; records of a partition come in offset order.

    The loop in use is kept while most records suit it: a feed changes its form only when its connector is set up anew.
    """

    def __init__(self, decoder: LoopDecoder, *, republished: bool = False) -> None:
        """``republished``: the feed may hold records that a backfill sent once more; they say nothing new and are passed over."""
        self.shape = decoder.shape
        self._republished = republished
        self._decoder = decoder
        self._loop: Loop | NativeReading | None = None

    def decode(self, messages: Sequence[Message]) -> Columns:
        """Return all that the messages say; what cannot be understood is among ``others``."""
        if self._republished:
            messages = [message for message in messages if not is_republished(message)]
        if self._loop is None:
            self._loop = self._find(messages)
        loop: Callable[..., None] | None = self._loop
        columns: Columns = loop.columns() if isinstance(loop, NativeReading) else EventColumns(self.shape)
        unusual: list[Message] = []
        looped = 0

        def take(message: Message) -> None:
            nonlocal looped
            if len(columns) > looped:
                self._decoder.looped()
            unusual.append(message)
            self._one(RawRecord.of(message), columns)
            looped = len(columns)

        if loop is None:
            for message in messages:
                take(message)
            return columns
        for start in range(0, len(messages), CHUNK):
            loop(messages[start : start + CHUNK], columns, take)
        if isinstance(columns, EventColumns) and not columns.fit:
            columns = self._without_unfit(columns, messages)
        if len(columns) > looped:
            self._decoder.looped()
        if 2 * len(unusual) > len(messages):
            self._loop = None
        return columns

    def _find(self, messages: Sequence[Message]) -> Loop | NativeReading | None:
        for message in messages[:LOOKED_AT_MAX]:
            try:
                loop = self._decoder.loop(RawRecord.of(message))
            except UNUSUAL:
                continue  # the general decoder will say what is wrong with it
            if loop is not None:
                return loop
        return None

    def _one(self, record: RawRecord, columns: Columns) -> None:
        try:
            decoded = self._decoder.decode(record)
        except (RecordError, *UNFORESEEN) as error:
            columns.others.append((record.offset, Refused(record, refusal(error))))
            return
        if not all(map(fits, decoded)):
            columns.others.append((record.offset, Refused(record, out_of_range())))
            return
        for item in decoded:
            if isinstance(item, Event):
                columns.add(item, record.offset, record.timestamp)
            else:
                columns.others.append((record.offset, item))

    def _without_unfit(self, columns: EventColumns, messages: Sequence[Message]) -> EventColumns:
        """Return them with the records refused of which an event does not fit."""
        unfit = {offset for event, offset, _ in columns.events() if not fits(event)}
        kept = EventColumns(self.shape)
        for event, offset, append_time in columns.events():
            if offset not in unfit:
                kept.add(event, offset, append_time)
        records = [RawRecord.of(message) for message in messages if message.offset() in unfit]
        refused = [(record.offset, Refused(record, out_of_range())) for record in records]
        kept.others = sorted([*columns.others, *refused], key=itemgetter(0))
        return kept
