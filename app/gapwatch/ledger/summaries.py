"""What is asked of all pipelines' gaps again and again: statements are made once, which takes longer than to execute them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Row, Select, bindparam, case, func, select

from gapwatch.ledger.tables import RESOLVED, gaps
from gapwatch.model.gap import Cause, Detector, GapSummary, Resolution, State

ALERTING: Final = frozenset({State.OPEN, State.REPAIRING})


@cache
def summaries() -> Select[Any]:
    """Return what counts the open gaps of some `pipelines` by kind and state."""
    earlier = gaps.c.held_since < gaps.c.event_time  # NULL, and so not true, where one of them is
    held = case((earlier, gaps.c.held_since), else_=func.coalesce(gaps.c.event_time, gaps.c.held_since))
    counted = select(
        gaps.c.pipeline,
        gaps.c.kind,
        gaps.c.state,
        func.count().label("number"),
        func.min(gaps.c.confirmed_at).label("oldest"),
        func.min(held).label("held"),
        func.count(held).label("known"),
    )
    those = gaps.c.pipeline.in_(bindparam("pipelines", expanding=True))
    return counted.where(those, gaps.c.state != RESOLVED).group_by(gaps.c.pipeline, gaps.c.kind, gaps.c.state)


@cache
def accepted() -> Select[Any]:
    """Return what counts, by pipeline, the gaps that the stream found `since` then and somebody accepted."""
    those = gaps.c.pipeline.in_(bindparam("pipelines", expanding=True))
    found = (gaps.c.first_seen >= bindparam("since"), gaps.c.detector == Detector.STREAM.value)
    by_hand = (gaps.c.resolution == Resolution.ACCEPTED.value, gaps.c.cause != Cause.SKIPPED_BY_POLICY.value)
    return select(gaps.c.pipeline, func.count().label("number")).where(those, *found, *by_hand).group_by(gaps.c.pipeline)


def summary_of(rows: Sequence[Row[Any]]) -> GapSummary:
    """Return the summary of one pipeline, of its rows of :func:`summaries`."""
    by_kind: dict[str, int] = {}
    for row in rows:
        by_kind[row.kind] = by_kind.get(row.kind, 0) + row.number
    alerting = [row for row in rows if row.state in ALERTING]
    return GapSummary(
        open_by_kind=by_kind,
        alerting=sum(row.number for row in alerting),
        oldest_alerting=min((row.oldest for row in alerting), default=None),
        holding_since=min((row.held for row in rows if row.held is not None), default=None),
        holding_unknown=any(row.known < row.number for row in rows),
    )
