"""Stream findings with their holes, and the keys that nobody could verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, delete, func, literal, or_, select, union_all, update

from gapwatch.ledger.part import PIPELINES_AT_ONCE, STATEMENTS_KEPT, LedgerPart, chunks
from gapwatch.ledger.tables import findings, unverifiable
from gapwatch.ledger.types import key_hash
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.ports import Key


class FindingQueries(LedgerPart):
    """Implements the methods of :class:`gapwatch.ports.Ledger` about findings, holes and unverifiable keys."""

    def raise_finding(self, record: FindingRecord) -> bool:
        """Insert, or bring the same open (pipeline, finding, side, feed, id) up to date; True when it is new.

        An open one keeps its first time, takes the later last time, the newest words, and the union of both time ranges.
        A cleared one opens again, except a hole that tells nothing beyond the range which a sweep has covered.
        """
        return self._db.write(lambda connection: self._raise(connection, record))

    def _raise(self, connection: Connection, record: FindingRecord) -> bool:
        same = (
            findings.c.pipeline == record.pipeline,
            findings.c.finding == record.finding.value,
            findings.c.side == record.side,
            findings.c.feed == record.feed,
            findings.c.id == record.id,
        )
        if record.is_hole and record.time_to is not None:
            covered = select(func.max(findings.c.time_to)).where(*same, findings.c.covered_by.is_not(None))
            through = connection.execute(covered).scalar_one()
            if through is not None and record.time_to <= through:
                return False
        insert = self._db.insert(findings).values(_columns(record)).on_conflict_do_nothing().returning(findings.c.number)
        if connection.execute(insert).first() is not None:
            return True
        row = connection.execute(select(findings).where(*same, findings.c.cleared_at.is_(None)).with_for_update()).one_or_none()
        if row is not None:  # else it was cleared this very moment; it will be raised again if it still holds
            connection.execute(update(findings).where(findings.c.number == row.number).values(_merged(row, record)))
        return False

    def clear_finding(
        self, finding_id: str, *, at: datetime, covered_by: str | None = None, through: datetime | None = None
    ) -> None:
        """Clear the open finding of this id; an unknown or cleared one stays as it is.

        ``through``: a hole that has grown beyond that time meanwhile stays, too.
        """
        grown = () if through is None else (or_(findings.c.time_to.is_(None), findings.c.time_to <= through),)
        statement = (
            update(findings)
            .where(findings.c.id == finding_id, findings.c.cleared_at.is_(None), *grown)
            .values(cleared_at=at, covered_by=covered_by)
        )
        self._db.write(lambda connection: connection.execute(statement))

    def findings(self, pipeline: str | None = None, *, open_only: bool = True) -> Sequence[FindingRecord]:
        """Return findings, oldest first; with `open_only` False also cleared ones."""
        query = select(findings).order_by(findings.c.first_seen, findings.c.number)
        if pipeline is not None:
            query = query.where(findings.c.pipeline == pipeline)
        if open_only:
            query = query.where(findings.c.cleared_at.is_(None))
        return [_record(row) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def add_unverifiable(self, pipeline: str, key: Key, event_time: datetime, reason: str) -> None:
        """Remember the key from its oldest unverified write on; its newest one says which sweep may forget it."""
        statement = self._db.insert(unverifiable).values(
            pipeline=pipeline, key_hash=key_hash(key), key=key, oldest=event_time, newest=event_time, reason=reason
        )
        least, greatest = (func.min, func.max) if self._db.is_sqlite else (func.least, func.greatest)
        statement = statement.on_conflict_do_update(
            index_elements=[unverifiable.c.pipeline, unverifiable.c.key_hash],
            set_={
                "oldest": least(unverifiable.c.oldest, statement.excluded.oldest),
                "newest": greatest(unverifiable.c.newest, statement.excluded.newest),
                "reason": statement.excluded.reason,
            },
        )
        self._db.write(lambda connection: connection.execute(statement))

    def unverifiable_oldest(self, pipeline: str) -> datetime | None:
        return self.oldest_unverifiable([pipeline]).get(pipeline)

    def oldest_unverifiable(self, pipelines: Sequence[str]) -> Mapping[str, datetime]:
        def read(connection: Connection) -> dict[str, datetime]:
            parts = chunks(tuple(pipelines), PIPELINES_AT_ONCE)
            return {row.pipeline: row.oldest for part in parts for row in connection.execute(_oldest(part)) if row.oldest}

        return self._db.read(read)

    def clear_unverifiable(self, pipeline: str, *, before: datetime) -> int:
        """Forget the keys whose newest unverified write came before `before` (a sweep's start); return how many."""
        statement = delete(unverifiable).where(unverifiable.c.pipeline == pipeline, unverifiable.c.newest < before)
        return int(self._db.write(lambda connection: connection.execute(statement).rowcount))


@lru_cache(maxsize=STATEMENTS_KEPT)
def _oldest(pipelines: Sequence[str]) -> Any:
    """Return one statement for the oldest key of each that nobody could verify: an index leads to each of them."""
    name, oldest = unverifiable.c.pipeline, func.min(unverifiable.c.oldest)
    return union_all(*[select(literal(one).label("pipeline"), oldest.label("oldest")).where(name == one) for one in pipelines])


def _merged(row: Row[Any], record: FindingRecord) -> dict[str, Any]:
    return {
        "last_seen": max(row.last_seen, record.last_seen),
        "time_from": _pick(min, row.time_from, record.time_from),
        "time_to": _pick(max, row.time_to, record.time_to),
        "is_hole": row.is_hole or record.is_hole,
        "message": record.message or row.message,
        "remedy": record.remedy or row.remedy,
        "details": {**row.details, **record.details},
    }


def _pick(choose: Any, *times: datetime | None) -> datetime | None:
    known = [time for time in times if time is not None]
    return choose(known) if known else None


def _columns(record: FindingRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "pipeline": record.pipeline,
        "finding": record.finding.value,
        "side": record.side,
        "feed": record.feed,
        "first_seen": record.first_seen,
        "last_seen": record.last_seen,
        "cleared_at": record.cleared_at,
        "message": record.message,
        "remedy": record.remedy,
        "time_from": record.time_from,
        "time_to": record.time_to,
        "is_hole": record.is_hole,
        "covered_by": record.covered_by,
        "details": record.details,
    }


def _record(row: Row[Any]) -> FindingRecord:
    return FindingRecord(
        id=row.id,
        pipeline=row.pipeline,
        finding=Finding(row.finding),
        side=row.side,
        feed=row.feed,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        cleared_at=row.cleared_at,
        message=row.message,
        remedy=row.remedy,
        time_from=row.time_from,
        time_to=row.time_to,
        is_hole=row.is_hole,
        covered_by=row.covered_by,
        details=row.details,
    )
