"""``upgrade --check``: what this version, and this configuration, will do with what earlier ones stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gapwatch.check_ports import Advice
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.pipelinestate import READABLE_FORMATS
from gapwatch.core.upgrade import changes, shortened
from gapwatch.errors import GapwatchError, StoreRefused
from gapwatch.model.suspect import PartitionStatus
from gapwatch.roles.board import Facts

NOT_STARTED: Final = "Nothing is stored of it: it begins with a baseline."


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the ledger holds: its schema's revision (None: there is no ledger), the one that is needed, and its facts."""

    revision: str | None
    needed: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What match holds of one pipeline: expected writes that are not settled, over all partitions, and its state's formats."""

    writes: int = 0
    formats: frozenset[int] = frozenset()


def opened(records: Sequence[PartitionStatus]) -> dict[str, Open]:
    """Return what the newest status record of each partition says, by pipeline; `records` are in the order of the topic."""
    newest = {(record.pipeline, record.partition): record for record in records}
    found: dict[str, Open] = {}
    for record in newest.values():
        known = found.get(record.pipeline, Open())
        writes = known.writes + record.pending + record.in_transit + record.raised
        found[record.pipeline] = Open(writes=writes, formats=known.formats | {record.state_format})
    return found


def of_ledger(stored: Stored) -> Advice:
    """Say what becomes of the ledger's schema."""
    if stored.revision is None:
        return Advice(level="ok", subject="database", message="There is no ledger yet; the first start makes it.")
    if stored.revision == stored.needed:
        return Advice(level="ok", subject="database", message=f"The ledger's schema is the one that is needed ({stored.needed}).")
    message = f"The ledger's schema is migrated from {stored.revision} to {stored.needed} by the first process that starts."
    return Advice(level="warning", subject="database", message=message, remedy="Back it up: the way back is the backup.")


def of_state(held: Mapping[str, Open]) -> list[Advice]:
    """Say whether match can read what it stored."""
    other = {format for one in held.values() for format in one.formats if format not in (0, *READABLE_FORMATS)}
    if not other:
        return []
    readable = " and ".join(map(str, READABLE_FORMATS))
    message = f"The state of match has format {min(other)}, and this version reads {readable} only."
    remedy = "Let it settle, stop, delete match's changelog topic, start: what was open becomes a hole, which a sweep covers."
    return [Advice(level="error", subject="match", message=message, remedy=remedy)]


async def of_pipelines(
    stored: Stored, held: Mapping[str, Open], mappings: Mapping[str, Callable[[], Awaitable[CompiledMapping]]]
) -> list[Advice]:
    """Say of every pipeline whether its mapping changes, and of those that are gone what becomes of them."""
    advice = []
    for name, mapping in mappings.items():
        try:
            advice.append(_of_mapping(name, stored.facts, await mapping(), held.get(name, Open())))
        except GapwatchError as error:
            level = "error" if isinstance(error, StoreRefused) or error.exit_code == 2 else "unknown"
            advice.append(Advice(level=level, subject=name, message=error.message, remedy=error.remedy))
    return advice + [_gone(name, one) for name, one in sorted(held.items()) if name not in mappings]


def _of_mapping(name: str, facts: Mapping[str, Any], mapping: CompiledMapping, held: Open) -> Advice:
    known: Mapping[str, Any] | None = facts.get(Facts.mapping(name))
    if known is None and Facts.baseline(name) in facts:
        message = "The version that ran last did not store its mapping: whether it changes cannot be said."
        return Advice(level="warning", subject=name, message=message, remedy="If it does, start a content sweep.")
    if known is None:
        return Advice(level="ok", subject=name, message=NOT_STARTED)
    if known["fingerprint"] == str(mapping.fingerprint):
        return Advice(level="ok", subject=name, message=f"Its mapping is the same; {held.writes} open writes go on as they are.")
    message = (
        f"Its mapping changes: {shortened(changes(known['layout'], mapping.layout))}. {held.writes} open writes were read by the"
        " old one: those that no newer write replaces are read again in both stores, and open no gap by themselves."
        " The finding mapping_changed stands until a content sweep, which starts by itself, has compared everything."
    )
    remedy = "See `config validate --against-live` for what the new mapping says of some keys."
    return Advice(level="warning", subject=name, message=message, remedy=remedy)


def _gone(name: str, held: Open) -> Advice:
    message = f"It is not in the configuration any more, or not enabled: its {held.writes} open writes are forgotten."
    return Advice(level="warning", subject=name, message=message, remedy="Its gaps stay in the ledger.")
