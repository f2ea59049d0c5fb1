"""The types that a process has just stored are taken by its child, which then needs no driver of a store."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from gapwatch.ledger import SqlLedger
from gapwatch.model.pipeline import FieldType, PipelineSpec, Settings, StoreSpec, StoreType
from gapwatch.wiring.stores import resolved_fact, stored_settings
from tests.unit.core.samples import field, pipeline


def settings_of(spec: PipelineSpec) -> Settings:
    kinds = {spec.source.store: StoreType.POSTGRES, spec.target.store: StoreType.MONGODB}
    stores = {name: StoreSpec(name=name, type=kind, url="") for name, kind in kinds.items()}
    return Settings(bootstrap_servers="", pipelines={spec.id: spec}, stores=stores)


def store(ledger: SqlLedger, spec: PipelineSpec) -> None:
    fact = {"fields": spec.fields, "feed": spec.source.feed, "tables": spec.source.tables, "target": spec.target, "where": []}
    ledger.set_fact(resolved_fact(spec.id), msgspec.to_builtins(fact))


async def test_what_was_stored_of_the_pipelines_that_are_named_is_taken(ledger: SqlLedger) -> None:
    resolved = pipeline(field("v"), field("w"))
    bare = replace(resolved, fields=tuple(replace(one, type=FieldType.INT) for one in resolved.fields))
    assert await stored_settings(settings_of(bare), ledger, [bare.id]) is None, "nothing was stored"
    store(ledger, resolved)
    found = await stored_settings(settings_of(bare), ledger, [bare.id])
    assert found is not None
    assert found.pipelines == {resolved.id: resolved}
    assert (await stored_settings(settings_of(bare), ledger, [])).pipelines == {}  # type: ignore[union-attr]


async def test_what_was_stored_of_another_configuration_is_not(ledger: SqlLedger) -> None:
    resolved = pipeline(field("v"))
    store(ledger, resolved)
    other = pipeline(field("another"))
    assert await stored_settings(settings_of(other), ledger, [other.id]) is None
    assert await stored_settings(settings_of(resolved), ledger, [resolved.id, "none"]) is None
