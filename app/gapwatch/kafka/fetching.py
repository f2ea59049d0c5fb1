"""Fetching with the compiled module: what a consumer has, without an object for each message.

The consumer stays confluent_kafka's own: it joins the group, seeks, pauses and commits. The module takes over the queues of its
partitions (``native/src/fetch.rs``). Group and client speak through the consumer itself, so that it is polled beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException

from gapwatch.errors import GapwatchError
from gapwatch.kafka.faults import gapwatch_error
from gapwatch.kafka.options import Partition

log = structlog.get_logger(__name__)

PLUGINS: Final = "plugin.library.paths"
GROUP_SECONDS: Final = 0.1  # how long the group may wait to be heard while nothing arrives

At = tuple[str, int]


class NativeFetcher(Protocol):
    """``Fetcher`` of the module."""

    @property
    def consumer(self) -> Consumer: ...

    def forward(self, partitions: list[At], /) -> bool:
        """Have these partitions' messages arrive here. False: librdkafka does not know one of them."""

    def fetch(
        self, limit: int, seconds: float, /
    ) -> tuple[list[tuple[str, int, Sequence[Any]]], list[tuple[str, int, int]], list[tuple[At | None, int, str]]]:
        """Return what arrived: runs by partition, ends of partitions, and errors by code and text."""

    def close(self) -> None:
        """Give everything back to librdkafka; before the consumer is closed."""


@dataclass(slots=True, kw_only=True)
class Fetched:
    """What one call brought: ``others`` through the consumer itself, the rest past it, as ``clients.Polled`` has it."""

    others: Sequence[Any] = ()
    runs: Mapping[Partition, Sequence[Any]] = field(default_factory=dict)
    ends: Mapping[Partition, int] = field(default_factory=dict)
    faults: list[tuple[Partition | None, GapwatchError]] = field(default_factory=list)


class Fetching:
    """Fetches for one consumer, in the thread that serves it."""

    def __init__(self, fetcher: NativeFetcher) -> None:
        self._fetcher = fetcher

    def forward(self, partitions: Iterable[Partition]) -> None:
        """Have what will be assigned arrive here. Where that fails it arrives at the consumer, and is read from there."""
        wanted = [(at.topic, at.partition) for at in partitions]
        if not self._fetcher.forward(wanted):
            log.warning("partitions_not_forwarded", partitions=[f"{topic}[{number}]" for topic, number in wanted])

    def fetch(self, limit: int, seconds: float) -> Fetched:
        """Wait for up to `limit` messages, at most so long."""
        left = seconds
        while True:
            others = self._fetcher.consumer.consume(limit, timeout=0)  # the group is heard, and speaks
            wait = 0.0 if others else min(left, GROUP_SECONDS)
            runs, ends, faults = self._fetcher.fetch(limit, wait)
            left -= wait
            if runs or ends or faults or others or left <= 0:
                break
        return Fetched(
            others=others,
            runs={Partition(topic, number): run for topic, number, run in runs},
            ends={Partition(topic, number): end for topic, number, end in ends},
            faults=[_fault(at, code, text) for at, code, text in faults],
        )

    def close(self) -> None:
        self._fetcher.close()


def fetching_for(
    module: Any, options: Mapping[str, Any], make: Callable[[dict[str, Any]], Consumer]
) -> tuple[Consumer, Fetching | None]:
    """Return a consumer of these options, and what fetches for it; None where the module cannot."""
    if module is None or PLUGINS in options or not module.Fetcher.available():
        return make(dict(options)), None
    library = getattr(module, module.__name__, module).__file__  # in the package of its name, as maturin makes it
    try:
        fetcher: NativeFetcher = module.Fetcher(lambda: make({**options, PLUGINS: library}))
    except (RuntimeError, KafkaException) as error:
        log.warning("native_fetch_unavailable", reason=str(error))
        return make(dict(options)), None
    return fetcher.consumer, Fetching(fetcher)


def _fault(at: At | None, code: int, text: str) -> tuple[Partition | None, GapwatchError]:
    where = Partition(*at) if at is not None and at[1] >= 0 else None
    doing = f"read {where.topic}[{where.partition}]" if where else "read"
    return where, gapwatch_error(KafkaError(code, text), doing)
