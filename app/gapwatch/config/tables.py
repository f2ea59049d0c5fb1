"""Tables: several of one source, and in which topics their changes come; one as a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gapwatch.config import forms
from gapwatch.config.checks import Problem, topic_problem
from gapwatch.config.source import Place
from gapwatch.model.pipeline import FeedKind, FeedSpec, SourceTable, StoreType, TopicsSpec

TABLE = "{table}"


def table_problems(form: forms.Source, ours: TopicsSpec) -> Iterator[tuple[str, Problem]]:
    """Yield (option, problem) for a source with `tables`."""
    for other in ("table", "feed"):
        if getattr(form, other) is not None:
            yield other, (f"There are several tables: `{other}` means only one.", "Remove it.")
    tables = form.tables or []
    for table, count in Counter(tables).items():
        if table.count(".") != 1:
            yield "tables", (f"{table!r}: the table is needed with its schema.", "Write it like public.orders.")
        if count > 1:
            yield "tables", (f"{table!r} stands there twice.", "Remove one.")
    pattern = form.topic_pattern or ""
    if TABLE not in pattern:
        yield "topic_pattern", ("It does not say in which topic each table's changes come.", f"Write it like shop.{TABLE}.")
        return
    for table in tables:
        problem = topic_problem(topic_of(pattern, table), ours)
        if problem is not None:
            yield "topic_pattern", problem
            return


def topic_of(pattern: str, table: str) -> str:
    return pattern.replace(TABLE, table)


def source_tables(form: forms.Source) -> tuple[SourceTable, ...]:
    """Return the tables with their feeds."""
    pattern = form.topic_pattern or ""
    return tuple(
        SourceTable(table=table, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=topic_of(pattern, table)))
        for table in form.tables or ()
    )


def target_table_problems(form: forms.Target) -> Iterator[tuple[Place, str, str]]:
    """Yield (place below the target, message, remedy) of what is wrong with a table as a target."""
    for name in ("collection", "index", "routing"):
        if getattr(form, name) is not None:
            yield (name,), f"A postgres target has no `{name}`.", "Remove it." if name == "routing" else "Write `table` instead."
    if (form.table or "").count(".") != 1:
        yield ("table",), "The table is needed with its schema.", "Write table: public.orders."


def dataset_of(form: forms.Target, kind: StoreType | None) -> str:
    """Return the name of the target's table, index or collection."""
    names = {StoreType.POSTGRES: form.table, StoreType.OPENSEARCH: form.index}
    return (form.collection if kind is None else names.get(kind, form.collection)) or ""
