"""Retention by age and count. Nothing open, active or unpublished is ever deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, delete, func, select

from gapwatch.ledger.database import ROWS_PER_TRANSACTION_MAX
from gapwatch.ledger.part import LedgerPart
from gapwatch.ledger.runs import ACTIVE
from gapwatch.ledger.tables import RESOLVED, audit, findings, gaps, runs
from gapwatch.ledger.types import UtcTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Keep what is younger than ``age`` and among the newest ``count`` of its pipeline. None: no limit of that kind."""

    age: timedelta | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what has ended is kept: resolved gaps with their life, cleared findings, ended runs, audit rows."""

    gaps: Limit = Limit(age=timedelta(days=90), count=1_000_000)
    findings: Limit = Limit(age=timedelta(days=90), count=10_000)
    runs: Limit = Limit(age=timedelta(days=90), count=1_000)
    audit: Limit = Limit(age=timedelta(days=365))


class RetentionQueries(LedgerPart):
    def prune(self, retention: Retention, *, now: datetime) -> Mapping[str, int]:
        """Delete what has ended and lies beyond the limits, at most 500 rows a transaction; return the numbers by table.

        Args:
            retention: The limits. A changed one applies to what is there already.
            now: The clock that ages are measured by.
        """
        resolved_at: Any = gaps.c.resolved_at
        ended = runs.c.state.not_in([state.value for state in ACTIVE])
        ended_at: Any = func.coalesce(runs.c.ended_at, runs.c.requested_at, type_=UtcTime())
        return {
            "gaps": self._prune(gaps, gaps.c.id, gaps.c.state == RESOLVED, resolved_at, retention.gaps, now),
            "findings": self._prune(
                findings, findings.c.number, findings.c.cleared_at.is_not(None), findings.c.cleared_at, retention.findings, now
            ),
            "runs": self._prune(runs, runs.c.id, ended, ended_at, retention.runs, now),
            "audit": self._prune(audit, audit.c.number, audit.c.id.is_not(None), audit.c.at, retention.audit, now),
        }

    def _prune(
        self, table: Table, key: ColumnElement[Any], ended: ColumnElement[bool], at: Any, limit: Limit, now: datetime
    ) -> int:
        deleted = 0
        if limit.age is not None:
            deleted += self._delete(table, key, select(key).where(ended, at < now - limit.age))
        if limit.count is not None:
            newest_first = func.row_number().over(partition_by=table.c.pipeline, order_by=[at.desc(), key.desc()])
            ranked = select(key.label("key"), newest_first.label("place")).where(ended).subquery()
            deleted += self._delete(table, key, select(ranked.c.key).where(ranked.c.place > limit.count))
        return deleted

    def _delete(self, table: Table, key: ColumnElement[Any], beyond: Select[Any]) -> int:
        """Delete what `beyond` selects, a transaction at a time, so that nobody waits long for us."""
        deleted = 0
        while True:
            statement = delete(table).where(key.in_(beyond.limit(ROWS_PER_TRANSACTION_MAX)))
            number = int(self._db.write(lambda connection, statement=statement: connection.execute(statement).rowcount))  # type: ignore[misc]
            deleted += number
            if number == 0:
                return deleted
