"""The part of a pipeline's configuration that says what is repaired, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gapwatch.config import forms
from gapwatch.config.source import Place
from gapwatch.model.pipeline import FeedKind, PipelineSpec, Policy, RepairMode, RepairSpec

Problem = tuple[Place, str, str]  # where, what, what to do


def repair_spec(form: forms.Repair) -> RepairSpec:
    return RepairSpec(
        missing=Policy(form.missing),
        stale=Policy(form.stale),
        mismatch=Policy(form.mismatch),
        extra=Policy(form.extra),
        undeleted=Policy(form.undeleted),
        modes=tuple(dict.fromkeys(RepairMode(name) for name in form.modes)),
        max_documents_per_run=form.max_documents_per_run,
        brake_ratio=form.brake_ratio,
        max_attempts=form.max_attempts,
        backoff_seconds=form.backoff,
        undo=form.undo or "",
    )


def repair_problems(pipeline: PipelineSpec, *, connect: bool) -> Iterator[Problem]:
    """Yield what cannot be repaired so. ``connect``: whether Kafka Connect's address is known."""
    spec, source = pipeline.repair, pipeline.source
    if spec.undo and pipeline.evidence != "values":
        message = f"It keeps whole documents, and evidence: {pipeline.evidence} says that values are not kept."
        yield ("undo",), message, "Write evidence: values, or remove it."
    for name in ("missing", "stale", "mismatch"):
        if getattr(spec, name) is Policy.DELETE:
            yield (name,), f"A {name} document cannot be deleted.", "Write report or auto."
    others = [mode for mode in spec.modes if mode is not RepairMode.DIRECT]
    if others and any(feed.kind is not FeedKind.DEBEZIUM for feed in source.feeds):
        yield ("modes",), f"Mode {others[0].value} needs a source that Debezium captures.", "Write modes: [direct]."
    elif RepairMode.DEBEZIUM in others and not connect:
        message = "Mode debezium asks a connector for a snapshot, and nobody says where Kafka Connect is."
        yield ("modes",), message, "Set connect.url."


def shared_target_problems(pipeline: PipelineSpec, others: Collection[PipelineSpec]) -> Iterator[Problem]:
    """Yield what would delete documents that belong to another pipeline: to this one they are extra, or were deleted."""
    target, spec = pipeline.target, pipeline.repair
    if target.deleted_when:
        return  # it can tell its own documents from others
    for other in others:
        same = (other.target.store, other.target.collection) == (target.store, target.collection)
        if other.id == pipeline.id or not same or _rows(other) == _rows(pipeline):
            continue
        for name in ("extra", "undeleted"):
            if getattr(spec, name) is not Policy.REPORT:
                message = f"Pipeline {other.id} writes other rows into {target.collection}: this would delete its documents."
                yield (name,), message, "Write report, or make one pipeline of both with source.tables."


def _rows(pipeline: PipelineSpec) -> tuple[str, str, str]:
    return pipeline.source.store, pipeline.source.name, pipeline.source.where
