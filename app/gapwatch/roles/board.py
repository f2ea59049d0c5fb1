"""The newest status record of every partition, and what the ledger says, folded into one view per pipeline.

Every process that answers questions has a board of its own; it is only a reader. Status is read before the ledger, so that a
verdict that moved from one to the other in between is never missed on both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec
import structlog

from gapwatch.core.maintenance import quiet_at
from gapwatch.core.standing import Baseline, LedgerFacts, standing
from gapwatch.errors import NotFoundError
from gapwatch.model.gap import FindingRecord, RunKind
from gapwatch.model.pipeline import PipelineSpec, Settings
from gapwatch.model.suspect import PartitionStatus
from gapwatch.model.view import FeedView, PipelineView
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.sweeps_left import SweepsLeft

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """How far deliveries have come. ``through_ms`` None: not known now; ``age_alone``: no delivery position exists by design."""

    through_ms: int | None
    age_alone: bool


class StatusFeed(Protocol):
    async def read(self, seconds: float) -> Sequence[bytes]:
        """Return the values of new records of ``gapwatch.status``, waiting at most `seconds` for the first."""

    @property
    def at_end(self) -> bool:
        """Whether everything that was there when the reader started has been read."""


class Facts:
    """The names of the small facts that roles leave for each other in the ledger."""

    @staticmethod
    def baseline(pipeline: str) -> str:
        return f"baseline/{pipeline}"

    @staticmethod
    def swept(pipeline: str) -> str:
        return f"swept/{pipeline}"

    @staticmethod
    def mapping(pipeline: str) -> str:
        """The mapping that was in force when role repair started last."""
        return f"mapped/{pipeline}"

    @staticmethod
    def transactions(topic: str) -> str:
        """Where the check of a transaction topic stands."""
        return f"transactions/{topic}"

    @staticmethod
    def transactions_unread(topic: str) -> str:
        """Why a transaction topic, or those of its tables, cannot be read; None while they are."""
        return f"unread/{topic}"

    @staticmethod
    def paused(pipeline: str) -> str:
        return f"paused/{pipeline}"

    @staticmethod
    def snoozed(gap_id: str) -> str:
        """Until when a snoozed gap is silent. Written before the gap is snoozed."""
        return f"snooze/{gap_id}"

    @staticmethod
    def quiet(pipeline: str) -> str:
        """Since when a pipeline was left alone: once that is over, a sweep looks at what changed meanwhile."""
        return f"quiet/{pipeline}"

    @staticmethod
    def hurry(pipeline: str) -> str:
        """The sweep of a pipeline that took its time, and that somebody waits for by now."""
        return f"hurry/{pipeline}"

    @staticmethod
    def grace(pipeline: str) -> str:
        """The grace in force of a pipeline with ``grace: auto``, in milliseconds."""
        return f"grace/{pipeline}"

    @staticmethod
    def late(pipeline: str, host: str = "") -> str:
        """How many suspects of the pipeline had merely arrived late, as one host counted them."""
        return f"late/{pipeline}/{host}"

    @staticmethod
    def resume(topic: str) -> str:
        """Where our change-stream reader stands in the stream that fills a feed topic."""
        return f"resume/{topic}"

    @staticmethod
    def repair_stopped(pipeline: str) -> str:
        """Why automatic repair stopped, and when; None while it goes on."""
        return f"repair_stopped/{pipeline}"

    @staticmethod
    def repair_resumed(pipeline: str) -> str:
        """When somebody said last that automatic repair may go on: its brakes count from there."""
        return f"repair_resumed/{pipeline}"

    @staticmethod
    def repair_waits(pipeline: str) -> str:
        """Since when automatic repair leaves gaps until the mapping has passed its trial; None where it leaves none."""
        return f"repair_waits/{pipeline}"

    @staticmethod
    def repair(pipeline: str, host: str = "") -> str:
        """What one process of role repair could not read, and when it said so: it expires like every status."""
        return f"repair/{pipeline}/{host}"


def grace_ms(ledger: Ledger, spec: PipelineSpec) -> int:
    """Return the grace in force, as the ledger has it."""
    return grace_in_force(spec, ledger.fact(Facts.grace(spec.id)) if spec.grace_least_seconds is not None else None)


def grace_in_force(spec: PipelineSpec, fact: Mapping[str, Any] | None) -> int:
    """Return the grace in force: the declared one, or what was measured, within its bounds; the largest before there is any."""
    most = int(spec.grace_seconds * 1000)
    if fact is None or spec.grace_least_seconds is None:
        return most
    return min(most, max(int(spec.grace_least_seconds * 1000), int(fact["ms"])))


class Board:
    """Reads ``gapwatch.status`` and answers how every pipeline stands."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        feed: StatusFeed,
        clock: Clock,
        *,
        lags: Callable[[], Mapping[tuple[str, str], int]] | None = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._feed = feed
        self._clock = clock
        self._lags = lags
        self._records: dict[tuple[str, int], PartitionStatus] = {}
        self._left = SweepsLeft(ledger)
        self.looked_at = clock.monotonic()  # when somebody asked for a view last, or the process began
        self._ended: frozenset[str] = frozenset()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            for value in await self._feed.read(0.5):
                self.take(value)

    @property
    def read_through(self) -> bool:
        return self._feed.at_end

    def take(self, value: bytes) -> None:
        """Take one record; an older one (a thawed matcher may write it) changes nothing."""
        record = msgspec.json.decode(value, type=PartitionStatus)
        known = self._records.get((record.pipeline, record.partition))
        if known is None or (record.input_offset, record.written_at) >= (known.input_offset, known.written_at):
            self._records[record.pipeline, record.partition] = record

    def feed_ended(self, pipeline: str, *, ended: bool) -> None:
        """Say whether a source's feed has ended (slot or history lost): nothing more arrives, and age alone decides."""
        self._ended = self._ended | {pipeline} if ended else self._ended - {pipeline}

    def records(self, pipeline: str) -> list[PartitionStatus]:
        return [record for (name, _), record in self._records.items() if name == pipeline]

    def proven_ms(self, pipeline: str, side: str) -> int:
        """Return a side's watermark (``expected``, ``observed``), ms since the epoch; 0: some partition does not know it."""
        records = self.records(pipeline)
        if len(records) < self._settings.topics.partitions:
            return 0
        return min(record.source_watermark if side == "expected" else record.target_watermark for record in records)

    def delivered(self, pipeline: str) -> Delivered:
        """Return how far the pipeline's deliveries have come; not known while a partition's record is missing or stale."""
        spec = self._settings.pipelines[pipeline]
        if not spec.delivery.known or pipeline in self._ended:
            return Delivered(through_ms=None, age_alone=True)
        records = self.records(pipeline)
        if len(records) < self._settings.topics.partitions:
            return Delivered(through_ms=None, age_alone=False)
        oldest = min(record.written_at for record in records)
        if self._clock.now_ms() - oldest > spec.stall_after_seconds * 1000:
            return Delivered(through_ms=None, age_alone=False)
        return Delivered(through_ms=min(record.delivered_through for record in records) or None, age_alone=False)

    async def view(self, pipeline: str) -> PipelineView:
        """Return one pipeline's view; raises NotFoundError for an unknown one, StoreError when the ledger does not answer."""
        spec = self._settings.pipelines.get(pipeline)
        if spec is None:
            known = ", ".join(sorted(self._settings.pipelines)) or "none"
            raise NotFoundError(f"There is no pipeline {pipeline!r}.", remedy=f"Configured: {known}.")
        self.looked_at = self._clock.monotonic()
        records = self.records(pipeline)
        [facts] = await asyncio.to_thread(self._facts, [spec])
        return self._view(spec, records, facts)

    async def views(self) -> list[PipelineView]:
        self.looked_at = self._clock.monotonic()
        return await self.measured()

    async def measured(self) -> list[PipelineView]:
        """Return all views for the metrics: nobody has asked for them yet."""
        specs = list(self._settings.pipelines.values())
        records = [self.records(spec.id) for spec in specs]
        facts = await asyncio.to_thread(self._facts, specs)
        return [self._view(*one) for one in zip(specs, records, facts, strict=True)]

    def _view(self, spec: PipelineSpec, records: list[PartitionStatus], facts: LedgerFacts) -> PipelineView:
        view = standing(spec, self._settings.topics.partitions, records, facts, self._clock.now())
        if self._lags is None:
            return view
        lags = self._lags()
        return replace(view, feeds=tuple(_with_lag(feed, lags.get((spec.id, feed.topic))) for feed in view.feeds))

    def _facts(self, specs: Sequence[PipelineSpec]) -> list[LedgerFacts]:
        """Read what the ledger says, in this order, so that nothing that moves meanwhile is missed on both sides.

        A baseline is stored after the holes that it covers; a hole, and a key that nobody could verify, are cleared after
        what was found there has become gaps.
        """
        ledger = self._ledger
        facts, findings = self._read(specs)
        pipelines = [spec.id for spec in specs]
        unverifiable = ledger.oldest_unverifiable(pipelines)
        repairs, now = ledger.repair_counts(), self._clock.now()
        sweeps = ledger.last_runs(RunKind.SWEEP, pipelines)
        summaries = ledger.gap_summaries(pipelines)
        accepted = ledger.accepted_gaps(pipelines, now - timedelta(hours=1))
        found = []
        for spec in specs:
            pipeline = spec.id
            reports = [fact for name, fact in facts.items() if name.startswith(Facts.repair(pipeline))]
            said = [fact for fact in reports if self._fresh(pipeline, fact)]
            swept: Mapping[str, Any] | None = facts.get(Facts.swept(pipeline))
            stopped: Mapping[str, Any] | None = facts.get(Facts.repair_stopped(pipeline))
            last = sweeps.get(pipeline)
            ahead = now + timedelta(seconds=spec.clock_skew_max_seconds)  # of a wrong clock, it would stay fresh
            one = LedgerFacts(
                summary=summaries[pipeline],
                findings=[record for record in findings if record.pipeline == pipeline],
                baseline=_baseline(facts.get(Facts.baseline(pipeline))),
                last_full_sweep_started=_time(swept["started_at"]) if swept else None,
                masked_swept=int(swept.get("masked", 0)) if swept else 0,
                last_sweep=last,
                unproven=self._left.of(pipeline, last),
                unverifiable_oldest=unverifiable.get(pipeline),
                undecided=sum(int(fact["undecided"]) for fact in said),
                quiet=quiet_at(spec.maintenance, facts.get(Facts.paused(pipeline)), now),
                unreadable_stores=tuple(sorted({store for fact in said for store in fact["unreadable"]})),
                unlooked=tuple(sorted({why for fact in said for why in fact.get("unlooked", ())})),
                accepted=accepted[pipeline],
                grace_ms=grace_in_force(spec, facts.get(Facts.grace(pipeline))),
                repair_stopped=str(stopped["reason"]) if stopped else "",
                repair_waits=bool(facts.get(Facts.repair_waits(pipeline))),
                given_up=repairs.get((pipeline, True), 0),
                repair_seen=max((at for fact in said if (at := _time(fact["at"])) <= ahead), default=None),
            )
            found.append(one)
        return found

    def _read(self, specs: Sequence[PipelineSpec]) -> tuple[Mapping[str, Any], Sequence[FindingRecord]]:
        """Return facts and findings of these pipelines, and perhaps of others; the baseline's fact is read first, or with all."""
        ledger = self._ledger
        if len(specs) > 1:
            return ledger.facts(), ledger.findings()
        pipeline = specs[0].id
        names = (Facts.baseline, Facts.swept, Facts.paused, Facts.repair_stopped, Facts.repair_waits, Facts.grace)
        facts = {name(pipeline): ledger.fact(name(pipeline)) for name in names}
        return {**facts, **ledger.facts(Facts.repair(pipeline))}, ledger.findings(pipeline)

    def _fresh(self, pipeline: str, fact: Mapping[str, Any]) -> bool:
        limit = timedelta(seconds=self._settings.pipelines[pipeline].stall_after_seconds)
        return self._clock.now() - _time(fact["at"]) <= limit


def _with_lag(feed: FeedView, lag: int | None) -> FeedView:
    return replace(feed, lag=lag)


def _baseline(fact: Mapping[str, Any] | None) -> Baseline | None:
    if not fact:
        return None
    return Baseline(started_at=_time(fact["started_at"]), ended_at=_time(fact["ended_at"]), sweep_id=fact.get("sweep_id"))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
