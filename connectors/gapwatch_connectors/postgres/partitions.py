"""The checks of a source's tables together: of each by itself, and whether partitions publish to the topics that are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gapwatch.check_ports import Advice
from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch_connectors.postgres.looks import Answer, Looks, Question
from gapwatch_connectors.postgres.preflight import ConnectorConfig, PostgresPreflight

FINDING: Final = "schema_changed"


class PostgresSourcePreflight:
    """Implements :class:`gapwatch.ports.Preflight` for all tables of a source; arguments as :class:`PostgresPreflight`."""

    def __init__(self, pipeline: PipelineSpec, url: str, connector: ConnectorConfig | None = None) -> None:
        self._pipeline = pipeline
        self._tables = {one.source.table: PostgresPreflight(one, url, connector) for one in pipeline.by_table()}
        self._looks = Looks(pipeline.source.store, url)

    @property
    def name(self) -> str:
        return "postgres.source"

    async def check(self) -> Sequence[Advice]:
        said = {table: await one.check() for table, one in self._tables.items()}
        return await self._joined(said, self._looks.alone, refused="error")

    async def watch(self) -> Sequence[Advice]:
        said = {table: await self._watch(one) for table, one in self._tables.items()}
        return await self._joined(said, self._looks.together, refused="unknown")

    async def _watch(self, one: PostgresPreflight) -> Sequence[Advice]:
        """A table that is refused to us hides nothing of the others."""
        try:
            return await one.watch()
        except StoreRefused as error:
            return [self._refused("unknown", error)]

    def _refused(self, level: str, error: StoreRefused) -> Advice:
        return Advice(level=level, subject=f"{self._pipeline.id}.source", message=error.message, remedy=error.remedy)

    async def _joined(
        self, said: Mapping[str, Sequence[Advice]], look: Callable[[Question], Awaitable[Answer]], *, refused: str
    ) -> Sequence[Advice]:
        found: dict[Advice, None] = {}
        for table, of_it in said.items():
            for advice in of_it:
                found[replace(advice, table=table) if table in advice.message else advice] = None
        if self._pipeline.source.feed.kind is FeedKind.DEBEZIUM:
            try:
                found |= dict.fromkeys(self._partitions(await look(Question(trees=frozenset(self._tables)))))
            except StoreRefused as error:
                if all(advice.level != refused or advice.finding for advice in found):  # else that was said already
                    found[self._refused(refused, error)] = None
        return list(found)

    async def close(self) -> None:
        for check in self._tables.values():
            await check.close()
        await self._looks.close()

    def _partitions(self, answer: Answer) -> list[Advice]:
        """A partition publishes under its own name or its root's, and each has a topic of its own."""
        advice = []
        for tree in answer.trees:
            if tree.asked.isdisjoint(self._tables):
                continue  # somebody else's
            root, unwatched = tree.name, [leaf for leaf in tree.leaves if leaf not in self._tables]
            if root not in self._tables and unwatched:
                message = f"Partition {unwatched[0]} of {root} is not watched, and others of it are."
                advice.append(self._advice(root, message, "Add it to the source's `tables`."))
            if root in self._tables and tree.leaves_published and not tree.published:
                message = f"The partitions of {root} publish each under its own name: their changes come in other topics."
                remedy = "ALTER PUBLICATION … SET (publish_via_partition_root = true), or list the partitions as `tables`."
                advice.append(self._advice(root, message, remedy))
        return advice

    def _advice(self, table: str, message: str, remedy: str) -> Advice:
        subject = f"{self._pipeline.id}.source"
        return Advice(level="error", subject=subject, message=message, remedy=remedy, finding=FINDING, table=table)
