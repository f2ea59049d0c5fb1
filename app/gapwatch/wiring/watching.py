"""Everything that the watcher asks of one pipeline while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gapwatch.check_ports import Memory, Preflight
from gapwatch.clock import SystemClock
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.preflight import TopicPreflight
from gapwatch.kafka.topics import SharedTopics, TopicAdmin
from gapwatch.ledger import SqlLedger
from gapwatch.model.pipeline import PipelineSpec, Settings
from gapwatch.roles.board import Board
from gapwatch.roles.repair.clocks import StoreClocks
from gapwatch.roles.repair.feed_checks import FeedChecks
from gapwatch.roles.repair.transactions_read import TransactionsRead
from gapwatch.roles.stores import StoreAnswers
from gapwatch.wiring.stores import Stores, connector_config, preflights
from gapwatch_connectors.registry import connector_of


class Watching:
    """Makes the checks of pipelines. What they ask of Kafka, and of the stores' clocks, they ask together."""

    def __init__(self, settings: Settings, ledger: SqlLedger, board: Board, stores: Stores, clock: SystemClock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._board = board
        self._stores = stores
        self._clock = clock
        self._topics = SharedTopics(TopicAdmin(settings), clock)
        self._offsets = OffsetReader(settings, clock)
        self._answers = StoreAnswers[int](clock)

    def checks(self, spec: PipelineSpec) -> list[Preflight]:
        """Return all checks of one pipeline, which is resolved."""
        ledger = self._ledger
        topics = TopicPreflight(spec, self._topics, self._offsets, self._clock, recall=ledger.fact, remember=ledger.set_fact)
        return [
            *preflights(self._settings, spec),
            *self._histories(spec),
            topics,
            TransactionsRead(spec, ledger.fact),
            StoreClocks(spec, partial(self._stores.stores, spec.id), answers=self._answers),
            FeedChecks(spec, self._board, ledger, self._clock),
        ]

    def _histories(self, spec: PipelineSpec) -> Iterator[Preflight]:
        sides = (("source", spec.source.store, spec.source.feeds[0]), ("target", spec.target.store, spec.target.feed))
        for side, name, feed in sides:
            store = self._settings.stores[name]
            memory = Memory(
                recall=self._ledger.fact,
                remember=self._ledger.set_fact,
                now_ms=self._clock.now_ms,
                proven_ms=partial(self._board.proven_ms, spec.id, "expected" if side == "source" else "observed"),
            )
            config = partial(connector_config, self._settings, feed)
            made = connector_of(store.type).history(spec, store.url, config, memory, side=side)
            if made is not None:
                yield made
