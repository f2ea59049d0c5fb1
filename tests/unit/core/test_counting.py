"""Rules of what counts, from the configuration and the catalogue to a mapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gapwatch.core.counting import read_beside
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.resolve import joined, resolve
from gapwatch.core.upgrade import changes
from gapwatch.errors import ConfigError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, PipelineSpec, SourceTable
from gapwatch.model.stream import Side
from gapwatch.ports import DatasetInfo
from gapwatch_connectors.mongodb import as_target
from tests.unit.core.samples import field, pipeline
from tests.unit.core.test_resolve import table

COLUMNS = (("id", "bigint", "p"), ("f", "text", "x"), ("rank", "integer", "p"), ("body", "jsonb", "x"), ("span", "interval", "p"))


def ruled(where: str = "", deleted_when: str = "", keep_by: str = "", **fields: FieldType) -> PipelineSpec:
    spec = pipeline(field("f"), *(field(name, kind) for name, kind in fields.items()))
    target = replace(spec.target, deleted_when=deleted_when, keep_seconds=86_400.0 if keep_by else 0.0, keep_by=keep_by)
    return replace(spec, source=replace(spec.source, where=where), target=target)


def refused(spec: PipelineSpec, info: DatasetInfo) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(spec, info)
    return [str(problem) for problem in caught.value.problems]


def test_m21_columns_of_a_filter_are_typed_by_the_catalogue() -> None:
    spec = resolve(ruled("rank >= 2 and f = 'a' and body is not null and span is null"), table(*COLUMNS))
    assert [(one.source, one.type) for one in spec.source.where_fields] == [
        ("rank", FieldType.INT),
        ("f", FieldType.TEXT),
        ("body", FieldType.JSON),
        ("span", FieldType.INFERRED),
    ]
    mapping = CompiledMapping(spec)
    assert mapping.source_columns == ("id", "f", "rank", "body", "span")
    assert mapping.counting.counts(Side.EXPECTED, {"rank": 2, "f": "a", "body": {}, "span": None})
    assert not mapping.counting.counts(Side.EXPECTED, {"rank": 2, "f": "a", "body": None, "span": None})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ruled("nothing = 1"), "pipelines.orders.source.where: Column nothing is not in public.orders."),
        (ruled("rank = 'high'"), "pipelines.orders.source.where: `rank`: high is not of type int."),
        (ruled("span = '1 day'"), "pipelines.orders.source.where: Column span (interval) can only be asked for null."),
        (ruled("body = '{}'"), "pipelines.orders.source.where: `body`: A field of type json can only be asked for null."),
        (ruled(deleted_when="f = 1"), "pipelines.orders.target.deleted_when: `f`: 1 is not of type text."),
        (
            ruled(deleted_when="at < '2026-01-01'"),
            "pipelines.orders.target.deleted_when: `at`: A field of type inferred has no order",
        ),
        (ruled(keep_by="f"), "pipelines.orders.target.keep: Field f is of type text: it holds no time"),
    ],
)
def test_m21_what_cannot_be_judged_is_refused_with_its_place(spec: PipelineSpec, said: str) -> None:
    assert [problem for problem in refused(spec, table(*COLUMNS)) if problem.startswith(said)], said


def test_m21_in_documents_fields_have_the_type_that_the_mapping_declares() -> None:
    spec = ruled("placed >= '2026-01-01T00:00:00Z' and n = 1", placed=FieldType.TIMESTAMP)
    spec = resolve(spec, DatasetInfo(identity="1"))
    assert [one.type for one in spec.source.where_fields] == [FieldType.TIMESTAMP, FieldType.INFERRED]
    assert read_beside(as_target(spec), Side.OBSERVED) == ("placed", "n")
    assert CompiledMapping(as_target(spec)).target_paths == ("id", "f", "placed", "n")


def test_m21_a_scan_of_keys_reads_what_decides() -> None:
    spec = ruled("rank > 1", "gone = true", "at", at=FieldType.TIMESTAMP)
    assert read_beside(spec, Side.EXPECTED) == ("rank", "at")
    assert read_beside(spec, Side.OBSERVED) == ("gone", "at")
    assert CompiledMapping(spec).target_paths == ("_id", "f", "at", "gone")


def of_tables(spec: PipelineSpec, kinds: Sequence[str]) -> PipelineSpec:
    tables = tuple(SourceTable(table=name, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=name)) for name in ("eu", "us"))
    spec = replace(spec, source=replace(spec.source, table="", tables=tables))
    infos = [table(("id", "bigint", "p"), ("f", "text", "x"), ("rank", kind, "p")) for kind in kinds]
    return joined(spec, [resolve(one, info) for one, info in zip(spec.by_table(), infos, strict=True)])


def test_m21_several_tables_have_one_filter_of_one_type() -> None:
    spec = of_tables(ruled("rank > 1"), ["integer", "bigint"])
    for one in spec.by_table():
        assert [where.type for where in one.source.where_fields] == [FieldType.INT]
    with pytest.raises(ConfigError, match=r"orders\.source\.where: Column rank has not the same type in eu and us"):
        of_tables(ruled("rank > 1"), ["integer", "numeric(5,2)"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"where": "rank > 2"}, "where (rank > 1 → rank > 2)"),
        ({"on_leave": "ignore"}, "on_leave (delete → ignore)"),
        ({"where": ""}, "on_leave (delete → none); where (rank > 1 → none)"),
    ],
)
def test_m21_another_rule_is_another_mapping(change: dict[str, Any], said: str) -> None:
    spec = ruled("rank > 1")
    before, after = CompiledMapping(spec), CompiledMapping(replace(spec, source=replace(spec.source, **change)))
    assert before.fingerprint != after.fingerprint
    assert "; ".join(changes(before.layout, after.layout)) == said


def test_m21_without_rules_a_mapping_is_what_it_was() -> None:
    assert len(CompiledMapping(ruled()).layout) == 4
