"""Makes durable what the held partitions say and are, in the order that ``core/checkpoint`` prescribes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog

from gapwatch.arenas import give_back
from gapwatch.errors import ProtocolError
from gapwatch.kafka.faust_safety import StateTable
from gapwatch.model.suspect import PartitionStatus, Said
from gapwatch.ports import Clock
from gapwatch.roles.match.held import Held
from gapwatch.roles.match.outlet import Outlet

log = structlog.get_logger(__name__)

UNDER_WAY_BYTES_MAX: Final = 8 * 1024 * 1024  # of the state's records that are not acknowledged
GIVE_BACK_BYTES: Final = 1024 * 1024  # of the state's records, after which what they took is given back to the system …
GIVE_BACK_SECONDS: Final = 10.0  # … so often at most while there are more of them, and once there are not
MARK_SECONDS: Final = 10.0  # how old a marker may become where nothing came but control records, which are read again in no time


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One partition at one instant: all of it belongs together, whatever is applied while it becomes durable."""

    held: Held
    applied: int
    said: Sequence[Said]
    statuses: Sequence[PartitionStatus]
    records: deque[tuple[str, bytes]]
    useless: Sequence[str]
    marker: bytes
    events: Sequence[Any]


class Checkpointer:
    """Once a second, and before partitions are given up:

    1. suspects and holes are acknowledged by the brokers,
    2. status records are,
    3. the records of the state are,
    4. the commit marker is,
    5. the input records are acknowledged to Faust, in offset order.

    A crash in between repeats what was said (ids are deterministic) and never loses any. So suspects need not wait for their
    checkpoint: :meth:`say` raises them as soon as they are known. And where nothing came but control records, of which nothing
    followed, it ends with the status: state, marker and acknowledgements are left to one of the next.
    """

    def __init__(
        self,
        held: Mapping[int, Held],
        table: StateTable,
        outlet: Outlet,
        clock: Clock,
        *,
        worker: str,
        topic_id: Callable[[], str],
        owns: Callable[[], bool],
    ) -> None:
        self._held = held
        self._table = table
        self._outlet = outlet
        self._clock = clock
        self._worker = worker
        self._topic_id = topic_id
        self._owns = owns
        self._lock = asyncio.Lock()
        self._gave_back = clock.monotonic()
        self._is_owing = False  # records were written since

    async def run(self, *, everything: bool = False) -> bool:
        """Make everything applied so far durable. False: not now, because the group did not answer this worker lately.

        Control records without consequence may be left to a later call, unless it is to be everything. Raises what kept a record
        from being acknowledged; nothing is known of the partitions then, and the worker must end.
        """
        async with self._lock:
            if not self._owns():
                log.warning("match_checkpoint_postponed", worker=self._worker)
                return False
            with self._in_hand() as mine:
                await self._make_durable(mine, everything=everything)
            return True

    async def say(self) -> bool:
        """Raise what was said since the last checkpoint. False: not now; the next checkpoint will.

        Until then nothing is acknowledged for it: a successor applies the same records and says the same once more.
        """
        async with self._lock:
            if not self._owns():
                return False
            with self._in_hand() as mine:
                said = [one for held in mine for one in held.said]
                for held in mine:
                    held.said = []
                await self._outlet.raise_suspects(said)
            return True

    @contextmanager
    def _in_hand(self) -> Iterator[Sequence[Held]]:
        """Give out what is held; interrupted, none of it may be used again: what was taken from it is nowhere any more."""
        mine = list(self._held.values())
        if torn := [held.partition for held in mine if held.in_hand]:
            raise ProtocolError(
                f"A checkpoint of partitions {torn} was interrupted, and this worker would have gone on.",
                remedy="It ends, and the next reads their records again. If this comes back, report it with the log.",
            )
        for held in mine:
            held.in_hand = True
        yield mine
        for held in mine:
            held.in_hand = False

    async def _make_durable(self, mine: Sequence[Held], *, everything: bool) -> None:
        now, at = self._clock.now_ms(), self._clock.monotonic()
        cuts, shown = list[Cut](), list[PartitionStatus]()
        for held in mine:
            if everything or held.stirred or (held.events and at - held.marked_at >= MARK_SECONDS):
                cuts.append(self._cut(held, now))
            else:
                shown += self._status(held, now)
        await self._outlet.raise_suspects([said for cut in cuts for said in cut.said])
        await self._outlet.show_status([*shown, *(status for cut in cuts for status in cut.statuses)])
        changed = [cut for cut in cuts if cut.events or cut.records or cut.useless]
        written = await self._write_state(changed)
        await self._write_markers(changed)
        for cut in changed:
            for event in cut.events:
                event.ack()
            cut.held.marked_at = at
        self._give_back(written)

    def _give_back(self, written: int) -> None:
        """Give free memory back after large checkpoints: not after each, as the next one would have to ask for it again."""
        is_large, now = written > GIVE_BACK_BYTES, self._clock.monotonic()
        if (now - self._gave_back >= GIVE_BACK_SECONDS) if is_large else self._is_owing:
            give_back()
            self._gave_back, self._is_owing = now, False
        elif is_large:
            self._is_owing = True

    def _status(self, held: Held, now: int) -> Sequence[PartitionStatus]:
        held.shown = held.applied
        return held.matcher.status(self._worker, now)

    def _cut(self, held: Held, now: int) -> Cut:
        statuses, records = self._status(held, now), held.matcher.state_records()
        cut = Cut(
            held=held,
            applied=held.applied,
            said=held.said,
            statuses=statuses,
            records=deque((name, payload) for name, payload in records if payload is not None),
            useless=[name for name, payload in records if payload is None],
            marker=held.matcher.marker(),
            events=held.events,
        )
        held.said, held.events, held.stirred = [], [], False
        return cut

    async def _write_state(self, cuts: Sequence[Cut]) -> int:
        """Write the records, and let each go as it is sent; of what is under way there are copies. Return how many bytes."""
        written = under_way = 0
        for cut in cuts:
            journal = cut.held.journal
            while cut.records:
                name, payload = cut.records.popleft()
                written, under_way = written + len(payload), under_way + len(payload)
                await self._table.put(journal.partition, *journal.record(name, cut.applied, payload))
                if under_way > UNDER_WAY_BYTES_MAX:
                    await self._table.barrier()
                    under_way = 0
        await self._table.barrier()
        return written

    async def _write_markers(self, cuts: Sequence[Cut]) -> None:
        """Write the markers; what they list no more is removed behind them. A crash in between leaves it to be removed later."""
        removed = []
        for cut in cuts:
            journal = cut.held.journal
            removed += [(journal.partition, journal.removal(name)) for name in cut.useless]
            await self._table.put(journal.partition, *journal.marker(cut.applied, cut.marker, topic_id=self._topic_id()))
        await self._table.barrier()
        for partition, key in removed:
            await self._table.put(partition, key, None)
