"""A collection as a source: it is read, followed and examined like one that is a target."""

from __future__ import annotations

from dataclasses import replace

from gapwatch.core.counting import read_beside
from gapwatch.model.pipeline import PipelineSpec, TargetSpec
from gapwatch.model.stream import Side


def as_target(pipeline: PipelineSpec) -> PipelineSpec:
    """Return the pipeline with its source in the target's place as well, fields under their names at the source."""
    source = pipeline.source
    target = TargetSpec(
        store=source.store,
        collection=source.table,
        key=source.key,
        feed=source.feed,
        version=source.version,
        changed_at=source.changed_at,
        also_read=read_beside(pipeline, Side.EXPECTED),
    )
    fields = {field.source: replace(field, target=field.source) for field in pipeline.fields}  # two may come from one
    return replace(pipeline, target=target, fields=tuple(fields.values()))
