"""The keys of a sweep that reads by key: those that were named, or those of records that changed lately, on both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gapwatch.core.sweep import Scope
from gapwatch.model.stream import Side
from gapwatch.ports import DatasetReader, Key
from gapwatch.roles.stores import PipelineStores

KEYS_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """Some keys, the position behind them (JSON: another worker goes on there), and of which side's scan they came."""

    keys: Sequence[Key]
    position: Mapping[str, Any]
    side: Side | None = None
    identity: str = ""
    complete: bool = True
    reason: str = ""


async def feed(stores: PipelineStores, request: Mapping[str, Any], position: Mapping[str, Any] | None) -> AsyncIterator[Fed]:
    """Yield the keys of a request, from a position on. Raises StoreError where a store cannot even be asked."""
    if request["range"] == Scope.KEYS:
        for one in _listed(request.get("keys", ()), int(position["at"]) if position else 0):
            yield one
        return
    since = datetime.fromisoformat(request["since"])
    begun = Side[position["side"].upper()] if position else Side.EXPECTED
    for side, reader in changing(stores):
        if side < begun:
            continue
        cursor = position["at"] if position and side is begun else None
        async for chunk in reader.scan_changed(since, cursor=cursor, chunk=KEYS_AT_ONCE):
            yield Fed(
                keys=[record.key for record in chunk.records],
                position={"side": side.name.lower(), "at": chunk.cursor},
                side=side,
                identity=chunk.identity,
                complete=chunk.complete,
                reason=chunk.reason,
            )


def changing(stores: PipelineStores) -> Sequence[tuple[Side, DatasetReader]]:
    """Return the sides that say when a record was written last: the source always, the target where its field is named."""
    sides: list[tuple[Side, DatasetReader]] = [(Side.EXPECTED, stores.source)]
    return [*sides, (Side.OBSERVED, stores.target)] if stores.spec.target.changed_at else sides


def _listed(keys: Sequence[str], start: int) -> Sequence[Fed]:
    fed = []
    for at in range(start, len(keys), KEYS_AT_ONCE):
        part = keys[at : at + KEYS_AT_ONCE]
        fed.append(Fed(keys=[bytes.fromhex(key) for key in part], position={"at": at + len(part)}))
    return fed
