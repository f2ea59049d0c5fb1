"""Notices that a pipeline's mapping is not the one it was: digests made before cannot be compared with those made now.

Matching needs no help: a key with digests of both waits for a newer event, or is confirmed. But what is settled was proved by the
old mapping, so that a content sweep is asked for, and the finding stands until one has succeeded.

Digests do not show what is compared and how strictly (the match mode, tolerances, the target's key): what that was is remembered
beside the mapping, and a change of it is a change of the mapping.

So it is with a pipeline that is given another source or target under its old name. Of those nothing was proved at all: the
baseline is forgotten, and the pipeline is UNKNOWN until there is another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import structlog

from gapwatch.core.gaps import gap_id
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.upgrade import changes, shortened
from gapwatch.errors import GapwatchError
from gapwatch.model.gap import Finding, FindingRecord, RunKind
from gapwatch.model.pipeline import Match, PipelineSpec
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Facts
from gapwatch.roles.repair.sweeps import ACTIVE
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import StoreProvider

log = structlog.get_logger(__name__)

AGAIN_SECONDS: Final = 2.0
PROOF: Final = "What was proved before was proved by the old one."
PROOF_OF_OTHERS: Final = "What was proved before says nothing of it."


class MappingWatch:
    def __init__(
        self, pipelines: Mapping[str, PipelineSpec], ledger: Ledger, stores: StoreProvider, clock: Clock, findings: FindingBook
    ) -> None:
        self._waiting = {name for name, spec in pipelines.items() if spec.enabled}
        self._ledger = ledger
        self._stores = stores
        self._clock = clock
        self._findings = findings

    async def run(self, stop: asyncio.Event) -> None:
        """Compare every pipeline's mapping once, as soon as its source can be described."""
        while self._waiting and not stop.is_set():
            for pipeline in sorted(self._waiting):
                try:
                    await self.compare(pipeline)
                except GapwatchError as error:
                    log.warning("mapping_not_compared", pipeline=pipeline, reason=str(error))
                    continue
                self._waiting.discard(pipeline)
            if self._waiting:
                await self._clock.sleep(AGAIN_SECONDS)

    async def compare(self, pipeline: str) -> None:
        """Raise the finding where the mapping changed, and only then remember the new one. The first one is none."""
        mapping = (await self._stores.stores(pipeline)).mapping
        datasets = _datasets(mapping.pipeline)
        rules = _rules(mapping.pipeline)
        now = {"fingerprint": str(mapping.fingerprint), "layout": mapping.layout, "of": datasets, "by": rules}
        before: Mapping[str, Any] | None = await asyncio.to_thread(self._ledger.fact, Facts.mapping(pipeline))
        others = _others(before.get("of", {}) if before is not None else {}, datasets)  # an earlier version stored none
        if others:
            await self._findings.raise_(_finding(pipeline, others, others, self._clock.now(), proof=PROOF_OF_OTHERS))
            await asyncio.to_thread(self._forget_proof, pipeline)
        stricter = _others(before.get("by", {}) if before is not None else {}, rules)
        if stricter:
            await self._findings.raise_(_finding(pipeline, stricter, stricter, self._clock.now()))
        if before is not None and before["fingerprint"] != now["fingerprint"]:
            said = shortened(changes(before["layout"], mapping.layout))
            await self._findings.raise_(
                _finding(pipeline, said, f"{before['fingerprint']}/{now['fingerprint']}", self._clock.now())
            )
        if before is None or any(before.get(name) != now[name] for name in ("fingerprint", "of", "by")):
            await asyncio.to_thread(self._ledger.set_fact, Facts.mapping(pipeline), now)

    def _forget_proof(self, pipeline: str) -> None:
        """End the sweep that began with the old ones, and forget what earlier ones proved of them."""
        for run in self._ledger.runs(pipeline=pipeline, kind=RunKind.SWEEP, states=ACTIVE):
            self._ledger.cancel_run(run.id)
        for name in (Facts.baseline(pipeline), Facts.swept(pipeline)):
            self._ledger.set_fact(name, None)
        log.warning("baseline_forgotten", pipeline=pipeline, reason="it was one of another source or target")


def is_in_force(ledger: Ledger, mapping: CompiledMapping) -> bool:
    """Whether the process that started last compares the same by the same mapping: else a sweep of ours proves nothing to it."""
    known: Mapping[str, Any] | None = ledger.fact(Facts.mapping(mapping.pipeline.id))
    if known is None:
        return True
    spec = mapping.pipeline
    others = _others(known.get("of", {}), _datasets(spec)) or _others(known.get("by", {}), _rules(spec))
    return known["fingerprint"] == str(mapping.fingerprint) and not others


def _datasets(spec: PipelineSpec) -> dict[str, str]:
    """Return what is compared, by side: the store by its name in the configuration, and what in it."""
    tables = sorted(one.table for one in spec.source.tables) or [spec.source.table]
    return {"source": f"{spec.source.store}/{', '.join(tables)}", "target": f"{spec.target.store}/{spec.target.collection}"}


def _rules(spec: PipelineSpec) -> dict[str, str]:
    """Return how it is compared, as far as the mapping's fingerprint does not say it."""
    rules = {"match mode": spec.match.value, "target's key": ", ".join(column.path for column in spec.target.key)}
    if spec.match is Match.VERSION:
        rules |= {"source's version": spec.source.version, "target's version": spec.target.version}
    tolerances = {f"tolerance of {one.target}": one.tolerance for one in spec.fields}
    return rules | {name: "none" if tolerance is None else f"{tolerance:f}" for name, tolerance in tolerances.items()}


def _others(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return what is another than before, as a part of a sentence; empty where nothing is, and where it was not known."""
    return "; ".join(f"the {side} ({before[side]} → {name})" for side, name in now.items() if before.get(side, name) != name)


def _finding(pipeline: str, said: str, identity: str, now: datetime, *, proof: str = PROOF) -> FindingRecord:
    return FindingRecord(
        id="changed_" + gap_id(pipeline, identity.encode(), Finding.MAPPING_CHANGED.value).removeprefix("gap_"),
        pipeline=pipeline,
        finding=Finding.MAPPING_CHANGED,
        side="expected",
        feed="",
        first_seen=now,
        last_seen=now,
        message=f"The mapping changed: {said}. {proof}",
        remedy="A content sweep compares everything by the new one; it starts by itself.",
    )
