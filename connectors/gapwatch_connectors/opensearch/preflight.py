"""What of an OpenSearch target would lose data or not work."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gapwatch.check_ports import Advice
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.seqno import Position
from gapwatch.errors import HistoryLost, KeyMisfit, StoreRefused
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch_connectors.opensearch.connection import Json, Search, path
from gapwatch_connectors.opensearch.index import Dataset, Index
from gapwatch_connectors.opensearch.keys import DocumentIds
from gapwatch_connectors.opensearch.reader import VERSION, has_external_version

LEAST_MAJOR: Final = 2
SAMPLE: Final = 10


class OpenSearchPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's target."""

    def __init__(self, pipeline: PipelineSpec, url: str, position: bytes | None = None) -> None:
        self._position = position
        self._pipeline = pipeline
        self._target = pipeline.target
        self._url = url
        self._search = Search(pipeline.target.store, url)
        self._dataset = Dataset(self._search, pipeline.target.collection)
        self._ids = DocumentIds(pipeline.target.key)

    @property
    def name(self) -> str:
        return "opensearch.target"

    async def check(self) -> Sequence[Advice]:
        advice: list[Advice] = []
        try:
            advice += await self._server()
            index = await self._dataset.resolve()
            [mapping] = (await self._search.request("GET", path(index.name, "_mapping"))).values()
            advice += self._mapping(mapping["mappings"])
            advice += self._settings(index)
            advice += self._resumption(index)
            advice += await self._routing(index, mapping["mappings"])
            advice += await self._documents(index)
        except StoreRefused as error:
            return [*advice, self._advice("error", error.message, error.remedy)]
        return advice or [self._advice("ok", f"{self._target.collection} can be read.")]

    async def watch(self) -> Sequence[Advice]:
        return []  # what is lost of an index, its tail and its readers notice

    async def close(self) -> None:
        await self._search.close()

    def _advice(self, level: str, message: str, remedy: str = "") -> Advice:
        return Advice(level=level, subject=f"{self._pipeline.id}.target", message=message, remedy=remedy)

    async def _server(self) -> list[Advice]:
        said = (await self._search.request("GET", "/"))["version"]
        if said.get("distribution") != "opensearch" or int(said["number"].partition(".")[0]) < LEAST_MAJOR:
            what = f"{said.get('distribution', 'another server')} {said['number']}"
            return [
                self._advice("error", f"Store {self._target.store} is {what}.", f"OpenSearch {LEAST_MAJOR} or newer is needed.")
            ]
        if any(_is_plain(url) for url in SearchAddress.parse(self._url).urls):
            message = f"Store {self._target.store} is spoken to without TLS: everybody on the way may read along."
            return [self._advice("warning", message, "Write its hosts with https://.")]
        return []

    def _mapping(self, mapping: Json) -> Iterator[Advice]:
        name = self._target.collection
        if mapping.get("_source", {}).get("enabled") is False:
            yield self._advice("error", f"{name} does not keep _source: nothing can be compared.", "Keep _source.")
        elif mapping.get("_source", {}).get("includes") or mapping.get("_source", {}).get("excludes"):
            yield self._advice(
                "warning", f"{name} keeps a part of _source: fields that it leaves out look absent.", "Keep all of it."
            )
        if str(mapping.get("dynamic", "true")).startswith("strict"):
            lacking = [spec.target for spec in self._pipeline.fields if not _has(mapping, spec.target.split("."))]
            if lacking:
                message = f"The mapping of {name} is strict and lacks {', '.join(lacking)}: such documents are refused."
                yield self._advice("error", message, "Add the fields to the index's mapping, or take them out of the pipeline.")

    def _settings(self, index: Index) -> Iterator[Advice]:
        blocks = [name for name, value in index.settings.items() if name.startswith("blocks.") and value == "true"]
        if blocks:
            yield self._advice(
                "warning", f"{index.name} is blocked ({', '.join(blocks)}).", "Take the block off before a backfill."
            )
        if self._target.feed.kind is FeedKind.SEQ_NO and index.settings.get("refresh_interval") == "-1":
            message = f"{index.name} is never refreshed by itself; the tail does it, as often as it reads."
            yield self._advice("warning", message, "Use feed: none while it is loaded, or accept the refreshes.")
        if self._target.feed.kind is FeedKind.SEQ_NO and str(index.settings.get("translog.durability")).lower() == "async":
            message = f"{index.name} reports what is on disk seconds after it was written: the tail shows it that late."
            yield self._advice("warning", message, "Use translog.durability: request, or a grace above translog.sync_interval.")

    def _resumption(self, index: Index) -> Iterator[Advice]:
        """Say whether the tail can go on where it stopped."""
        if self._position is None or self._target.feed.kind is not FeedKind.SEQ_NO:
            return
        try:
            Position.decode(self._position).must_be(index.uuid, self._target.collection)
        except HistoryLost as error:
            yield self._advice("error", f"The tail cannot go on: {error.message}", error.remedy)

    async def _routing(self, index: Index, mapping: Json) -> list[Advice]:
        if self._target.routing:
            return []
        required = bool(mapping.get("_routing", {}).get("required"))
        if not required and not await self._count_routed(index):
            return []
        message = f"Documents of {self._target.collection} are routed: a look-up by _id alone does not find them."
        return [self._advice("error", message, "Name the mapped field that routes them: target.routing.")]

    async def _count_routed(self, index: Index) -> int:
        """Ask without a refresh: this is looked at again and again."""
        body = {"query": {"exists": {"field": "_routing"}}}
        return int((await self._search.request("POST", path(index.name, "_count"), body=body))["count"])

    async def _documents(self, index: Index) -> list[Advice]:
        """Look at a few documents: their ids must fit the key, and versions from outside be declared."""
        body = {"size": SAMPLE, "_source": False, "version": True, "seq_no_primary_term": True}
        hits = (await self._search.request("POST", path(index.name, "_search"), body=body))["hits"]["hits"]
        for hit in hits:
            try:
                self._ids.of(hit["_id"])
            except KeyMisfit as error:
                remedy = "Correct the type of the target's key, or the ids: keys are never coerced."
                return [self._advice("error", f"{self._target.collection} cannot be swept: {error.message}", remedy)]
        outside = any(has_external_version(hit[VERSION], hit["_seq_no"]) for hit in hits)
        if self._target.version == VERSION or not outside:
            return []
        message = f"Documents of {self._target.collection} carry versions from outside; a repair keeps them as they are."
        remedy = "Where they are a column of the source: source.version, and target.version: _version."
        return [self._advice("warning", message, remedy)]


def _has(mapping: Mapping[str, Any], steps: Sequence[str]) -> bool:
    """Whether a mapping knows a field; inside an object that is not strict itself, or not opened up, every name will do."""
    if not steps:
        return True
    if "properties" not in mapping:
        return mapping.get("type") in ("flat_object", "object", "nested") and not str(mapping.get("dynamic", "")).startswith(
            "strict"
        )
    below = mapping["properties"].get(steps[0])
    return below is not None and (len(steps) == 1 or _has(below, steps[1:]))


def _is_plain(url: str) -> bool:
    scheme, _, host = url.partition("://")
    name = host.rpartition(":")[0].strip("[]")
    if scheme == "https" or name == "localhost":
        return False
    try:
        return not ipaddress.ip_address(name).is_loopback
    except ValueError:
        return True
