"""The part of a pipeline's configuration that says what is repaired, and how."""

from __future__ import annotations

from collections.abc import Iterator

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
