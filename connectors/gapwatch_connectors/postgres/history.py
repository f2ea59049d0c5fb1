"""What changed about a source since it was looked at last: its server, its replication slot, the storage of its tables.

A slot has no identity but its name. What tells that it is another one, or was moved (decision 0040), are positions and counters.
What cannot be told from a loss is a hole, from the last time that was proven before on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from gapwatch.check_ports import Advice, Memory
from gapwatch.model.gap import Finding
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch_connectors.postgres.catalogue import Server, Slot
from gapwatch_connectors.postgres.looks import Looks, Question
from gapwatch_connectors.postgres.preflight import ConnectorConfig

FORMAT: Final = 1  # of what is remembered
SHOWN_SECONDS: Final = 7 * 86_400  # how long a change is shown: the ledger takes it once
REMEMBER_SECONDS: Final = 30.0  # how old what a restart finds again may be
REMEDY: Final = "A sweep covers what it may have lost; it starts by itself."
TRUNCATED_REMEDY: Final = (
    "A TRUNCATE and a rewrite (VACUUM FULL, CLUSTER, some ALTER TABLE) look the same; a sweep covers it, by itself."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen at one time. ``files``: by table, of each of its relations the file (both by their numbers, as text).

    ``proven_ms``: everything before it was read from the feed by then, 0: not known.
    ``slot``: the name of the connector's slot, of the one before until there is one of a new name; "": not known.
    """

    server: Server
    slots: Mapping[str, Slot]
    files: Mapping[str, Mapping[str, str]]
    proven_ms: int
    slot: str = ""


def moved(before: Look, now: Look) -> str:
    """Return why the stream may have lost writes between two looks, "" where nothing says so."""
    was, server = before.server, now.server
    if server.system != was.system:
        return "The source is another Postgres cluster than before"
    if server.timeline != was.timeline:
        return f"The timeline of the source went from {was.timeline} to {server.timeline}: another server took over"
    if server.written < was.written:
        return "The source's log ends before where it ended already: the server was restored"
    if before.slot in before.slots and now.slot != before.slot:
        return f"The connector reads replication slot {now.slot} instead of {before.slot}"
    for name, slot in now.slots.items():
        known = before.slots.get(name)
        said = _another(known, slot, was, server) if known is not None else ""
        if said:
            return said
    return ""


def _another(known: Slot, slot: Slot, was: Server, server: Server) -> str:
    name = f"Replication slot {slot.name}"
    if slot.active_pid is not None and slot.active_pid == known.active_pid and server.started == was.started:
        return ""  # nobody drops or moves a slot that is being read
    counted = slot.transactions is not None and known.transactions is not None
    if slot.restart_lsn is None or slot.restart_lsn < was.written:
        # A slot begins where the log ends: this one was there before the last look. It may have been moved, though.
        unread = slot.active_pid is None and known.active_pid is None and counted and slot.transactions == known.transactions
        passed = (slot.confirmed_flush_lsn or 0) > (known.confirmed_flush_lsn or 0)
        return f"{name} was moved on while nobody read it" if unread and passed and not server.standby else ""
    begun_anew = server.counted_since != was.counted_since or slot.counted_since != known.counted_since
    if counted and not begun_anew and (slot.transactions or 0) < (known.transactions or 0):
        return f"{name} was dropped and made again"
    return f"{name} cannot be told from one that was dropped and made again"


def replaced(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a table, or a partition of it, lost its rows or was rewritten; a partition that was added is neither."""
    return any(now.get(relation) != file for relation, file in before.items())


class PostgresHistory:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's source; what was seen last is remembered durably.

    Args:
        pipeline: With its types.
        url: The store's dsn.
        connector: Returns the Debezium connector's configuration; without it all slots of the database count.
        memory: Where it remembers.
        side: ``source``, or ``target`` where the pipeline is :func:`~gapwatch_connectors.postgres.target.as_source` of a target.
    """

    def __init__(
        self,
        pipeline: PipelineSpec,
        url: str,
        connector: ConnectorConfig | None,
        memory: Memory,
        *,
        side: str = "source",
    ) -> None:
        self.name = f"the {side}'s slot and storage"
        self._pipeline = pipeline
        self._looks = Looks(pipeline.source.store, url)
        self._connector = connector
        self._memory = memory
        self._side = side
        self._name = f"looked/{pipeline.id}/{side}"
        self._slot_name = ""  # as the connector's configuration said last
        self._last: Look | None = None
        self._last_ms = 0  # when that was
        self._kept: Mapping[str, Any] | None = None  # what was remembered when that was asked for last
        self._kept_ms = 0  # when a look was remembered

    async def check(self) -> Sequence[Advice]:
        return await self.watch()

    async def watch(self) -> Sequence[Advice]:
        if self._pipeline.source.feed.kind is not FeedKind.DEBEZIUM:
            return []
        memory = self._memory
        kept = self._kept if self._kept is not None else await self._recall()
        before = self._last or _look_of(kept)
        look, looked_ms = await self._look(before), memory.now_ms()
        found = self._compared(before, look, looked_ms) if before is not None else {}
        if found or looked_ms - self._kept_ms >= REMEMBER_SECONDS * 1000:
            kept = await self._recall()  # another process may have looked: what it saw is not written over
        changes: dict[str, dict[str, Any]] = dict(kept.get("changes", {}))
        for name, change in found.items():
            if changes.get(name, {}).get("at", 0) <= self._last_ms or not self._last_ms:  # else another process saw it first
                changes[name] = change
        if found or looked_ms - self._kept_ms >= REMEMBER_SECONDS * 1000:
            self._kept = {"format": FORMAT, "look": asdict(look), "changes": changes}
            await asyncio.to_thread(memory.remember, self._name, self._kept)
            self._kept_ms = looked_ms
        self._last, self._last_ms = look, looked_ms
        shown = {name: one for name, one in changes.items() if looked_ms - int(one["at"]) < SHOWN_SECONDS * 1000}
        return [self._advice(name, change) for name, change in shown.items()]

    async def _recall(self) -> Mapping[str, Any]:
        self._kept = await asyncio.to_thread(self._memory.recall, self._name) or {}
        return self._kept

    async def close(self) -> None:
        await self._looks.close()

    async def _look(self, before: Look | None) -> Look:
        proven = self._memory.proven_ms()  # first: what is proven by now was read before
        if self._connector is not None:
            config = await self._connector()
            if config is not None:
                self._slot_name = config.get("slot.name", "debezium")
        answer = await self._looks.together(Question(server=True, slots=True, files=frozenset(self._tables)))
        assert answer.server is not None  # it was asked for
        server, files = answer.server, {table: answer.files[table] for table in self._tables}
        slots: Mapping[str, Slot] = {slot.name: slot for slot in answer.slots}
        slot = self._slot_name if self._slot_name in slots or before is None else before.slot or self._slot_name
        slots = {
            **(before.slots if before else {}),
            **slots,
        }  # one that is gone is remembered until there is one of its name again
        if slot:
            slots = {name: one for name, one in slots.items() if name == slot}
        proven = proven or (before.proven_ms if before else 0)
        return Look(server=server, slots=slots, files=files, proven_ms=proven, slot=slot)

    @property
    def _tables(self) -> Sequence[str]:
        return [one.source.table for one in self._pipeline.by_table()]

    def _compared(self, before: Look, look: Look, now_ms: int) -> dict[str, dict[str, Any]]:
        """Return what changed: by finding and table, in words, with the stretch of the stream that may lack something."""
        stretch = {"from": before.proven_ms, "at": now_ms}
        found = {}
        said = moved(before, look)
        if said:
            found[f"{Finding.SLOT_JUMPED.value}/"] = stretch | {"message": f"{said}: writes may never have been sent."}
        for table, files in look.files.items():
            if table in before.files and replaced(before.files[table], files):
                message = f"The storage of {table} was replaced: it was emptied, or rewritten."
                found[f"{Finding.TRUNCATED.value}/{table}"] = stretch | {"message": message}
        return found

    def _advice(self, name: str, change: Mapping[str, Any]) -> Advice:
        finding, _, table = name.partition("/")
        return Advice(
            level="warning",
            subject=f"{self._pipeline.id}.{self._side}",
            message=change["message"],
            remedy=TRUNCATED_REMEDY if table else REMEDY,
            finding=finding,
            hole_from_ms=int(change["from"]),
            hole_to_ms=int(change["at"]),
            table=table,
        )


def _look_of(remembered: Mapping[str, Any]) -> Look | None:
    if remembered.get("format") != FORMAT:  # nothing, or what another version saw
        return None
    kept = remembered["look"]
    slots = {name: Slot(**slot) for name, slot in kept["slots"].items()}
    server, slot = Server(**kept["server"]), kept.get("slot", "")
    return Look(server=server, slots=slots, files=kept["files"], proven_ms=int(kept["proven_ms"]), slot=slot)
