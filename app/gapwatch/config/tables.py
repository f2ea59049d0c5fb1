"""Several tables of one source: which they are, and in which topics their changes come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gapwatch.config import forms
from gapwatch.config.checks import Problem, topic_problem
from gapwatch.model.pipeline import FeedKind, FeedSpec, SourceTable, TopicsSpec

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
