"""Which index a name means now, and the requests that concern it as a whole: refresh, count, a routing for each shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch_connectors.opensearch.connection import Search, path

PROBES_PER_SHARD_MAX: Final = 64  # routings tried for each shard, on average, before giving up
PRIMARY: Final = "_primary"
IN_ORDER: Final = [{"_seq_no": {"order": "asc", "unmapped_type": "long"}}]  # an index that never held a document maps nothing
WANTED: Final = "*.settings,*.aliases"  # mappings may be large


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A concrete index. ``settings`` are those below ``index``, flat. ``uuid`` is another one when it was created anew."""

    name: str
    uuid: str
    shards: int
    settings: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """What is another one when the index was created anew, or a snapshot was restored over it: that leaves its uuid."""
        restored = self.settings.get("history.uuid")
        return self.uuid if restored is None else f"{self.uuid}/{restored}"


class Dataset:
    """The index of a pipeline: its name, or the name of an alias of exactly one index."""

    def __init__(self, search: Search, name: str) -> None:
        self.search = search
        self.name = name
        self._probes: tuple[str, list[str]] = ("", [])

    async def resolve(self) -> Index:
        """Return what the name means now. Raises StoreRefused where that is not exactly one whole index."""
        answer = await self.search.request("GET", path(self.name), params={"flat_settings": True, "filter_path": WANTED})
        if len(answer) != 1:
            raise self._refused(
                f"{self.name} means {len(answer)} indices: a document cannot be looked up by its id.", "Name one index."
            )
        [(name, found)] = answer.items()
        settings = {key.removeprefix("index."): value for key, value in found["settings"].items()}
        alias = found.get("aliases", {}).get(self.name, {}) if name != self.name else {}
        if alias.get("filter"):
            raise self._refused(f"{self.name} is an alias with a filter: it hides documents.", f"Name the index {name} itself.")
        if int(settings.get("routing_partition_size", 1)) > 1:
            raise self._refused(
                f"{name} spreads each routing over several shards (routing_partition_size).", "Such an index is not supported."
            )
        return Index(name=name, uuid=settings["uuid"], shards=int(settings["number_of_shards"]), settings=settings)

    async def refresh(self, index: Index, *, copies: int = 0) -> None:
        """Make what was written before this call visible to searches. Raises StoreUnreachable where a shard failed to.

        ``copies``: how many copies of shards, replicas too, are known to be there; one of each shard are in any case.
        """
        answer = await self.search.request("POST", path(index.name, "_refresh"))
        shards = answer["_shards"]
        if shards["failed"] or shards["successful"] < max(index.shards, copies):  # a primary that is away is no failure to it
            raise self._away("not every shard could be refreshed")

    async def count(self, index: Index) -> int:
        """Return how many documents there are; every primary has answered, and the index is still the same one."""
        await self.refresh(index)
        answer = await self.search.request("POST", path(index.name, "_count"), params={"preference": PRIMARY})
        shards = answer["_shards"]
        if shards["failed"] or shards["successful"] != index.shards or shards["total"] != index.shards:
            raise self._away(f"{shards['successful']} of {index.shards} shards answered")
        if (await self.resolve()).identity != index.identity:
            raise self._refused(f"{self.name} was created anew while it was counted.", "Ask again.")
        return int(answer["count"])

    async def probes(self, index: Index) -> list[str]:
        """Return one routing for each shard, in order: with it a look-up by id asks just that shard.

        The server itself says where a routing leads, so nothing here depends on how it hashes.
        """
        if self._probes[0] != index.uuid:
            found: dict[int, str] = {}
            for number in range(index.shards * PROBES_PER_SHARD_MAX):
                if len(found) == index.shards:
                    break
                routing = f"p{number}"
                answer = await self.search.request("GET", path(index.name, "_search_shards"), params={"routing": routing})
                [copies] = answer["shards"]
                found.setdefault(int(copies[0]["shard"]), routing)
            if len(found) != index.shards:
                raise self._refused(f"No routing was found for every shard of {index.name}.", "Report this.")
            self._probes = (index.uuid, [found[shard] for shard in range(index.shards)])
        return self._probes[1]

    def _refused(self, message: str, remedy: str) -> StoreRefused:
        return StoreRefused(message, store=self.search.store, remedy=remedy)

    def _away(self, reason: str) -> StoreUnreachable:
        message = f"OpenSearch store {self.search.store} did not answer whole for {self.name}: {reason}."
        return StoreUnreachable(message, store=self.search.store, remedy="Wait for its shards.")
