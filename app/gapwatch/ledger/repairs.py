"""Gaps to repair, and those whose repair did not come off: what automatic repair chooses from, and what it remembers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select

from gapwatch.ledger.bulk import AS_READ, gap_of_columns
from gapwatch.ledger.database import ROWS_PER_TRANSACTION_MAX
from gapwatch.ledger.gaps import gap_of
from gapwatch.ledger.part import LedgerPart, chunks
from gapwatch.ledger.tables import RESOLVED, audit, gaps, repairs
from gapwatch.model.gap import Gap, Kind, RepairPressure, RepairRecord, State

TAKEN: Final = (State.OPEN.value, State.REPAIRING.value)  # acknowledged and snoozed gaps are a person's


class RepairQueries(LedgerPart):
    """Implements the repair methods of :class:`gapwatch.ports.Ledger`."""

    def repairable(self, pipeline: str, kinds: Collection[Kind], *, now: datetime, limit: int) -> Sequence[Gap]:
        """Return open gaps of these kinds, the oldest first, without those that wait for another attempt or are given up."""
        query = (
            select(*AS_READ)
            .outerjoin_from(gaps, repairs, repairs.c.gap_id == gaps.c.id)
            .where(*_open(pipeline, kinds), or_(repairs.c.gap_id.is_(None), repairs.c.next_at <= now))
            .order_by(gaps.c.first_seen, gaps.c.id)
            .limit(limit)
        )
        return [gap_of_columns(row) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def repair_pressure(
        self,
        pipeline: str,
        kinds: Collection[Kind],
        *,
        confirmed_since: datetime | None,
        done_since: datetime,
        action: str,
        actor: str,
    ) -> RepairPressure:
        """Return how many such gaps wait, and what `actor` did to documents in runs of `action`, as the audit has it.

        Args:
            pipeline: The pipeline.
            kinds: The kinds of gaps that count.
            confirmed_since: Only gaps confirmed then or later count as waiting or written; None: all.
            done_since: From when on the audit is read.
            action: The audit's action.
            actor: The audit's actor.
        """
        given_up = and_(repairs.c.gap_id.is_not(None), repairs.c.next_at.is_(None))
        waiting = select(func.count()).select_from(gaps.outerjoin(repairs, repairs.c.gap_id == gaps.c.id))
        waiting = waiting.where(*_open(pipeline, kinds), ~given_up)
        recent = [gaps.c.confirmed_at >= confirmed_since] if confirmed_since is not None else []
        waiting = waiting.where(*recent)
        mine = and_(audit.c.pipeline == pipeline, audit.c.at >= done_since, audit.c.action == action, audit.c.actor == actor)
        keys = func.count(func.distinct(audit.c.key_hash))

        def look(connection: Connection) -> RepairPressure:
            written = select(func.count(func.distinct(gaps.c.id))).join_from(audit, gaps, gaps.c.id == audit.c.gap_id)
            written = written.where(mine, audit.c.outcome == "written", gaps.c.state == RESOLVED, *recent)
            return RepairPressure(
                waiting=connection.execute(waiting).scalar_one(),
                handled=connection.execute(select(keys).where(mine)).scalar_one(),
                failed=connection.execute(select(keys).where(mine, audit.c.outcome == "failed")).scalar_one(),
                written=connection.execute(written).scalar_one(),
            )

        return self._db.read(look)

    def repairs(
        self,
        pipeline: str | None = None,
        *,
        given_up: bool | None = None,
        gap_ids: Collection[str] | None = None,
        limit: int = 100,
    ) -> Sequence[RepairRecord]:
        """Return records of gaps that are still open, with their gaps, the newest failure first."""
        query = select(gaps, *(column.label(f"repair_{column.name}") for column in repairs.columns))
        query = query.join(repairs, repairs.c.gap_id == gaps.c.id).where(gaps.c.state != RESOLVED)
        if pipeline is not None:
            query = query.where(repairs.c.pipeline == pipeline)
        if given_up is not None:
            query = query.where(repairs.c.next_at.is_(None) if given_up else repairs.c.next_at.is_not(None))
        if gap_ids is not None:
            query = query.where(repairs.c.gap_id.in_(list(gap_ids)))
        query = query.order_by(repairs.c.last_at.desc(), repairs.c.gap_id).limit(limit)
        return [_record(row) for row in self._db.read(lambda connection: connection.execute(query).mappings().all())]

    def repair_counts(self) -> Mapping[tuple[str, bool], int]:
        """Return how many open gaps wait for another attempt, and how many are given up, by (pipeline, given up)."""
        is_given_up = repairs.c.next_at.is_(None)
        query = (
            select(repairs.c.pipeline, is_given_up.label("given_up"), func.count().label("number"))
            .join(gaps, repairs.c.gap_id == gaps.c.id)
            .where(gaps.c.state != RESOLVED)
            .group_by(repairs.c.pipeline, is_given_up)
        )
        rows = self._db.read(lambda connection: connection.execute(query).all())
        return {(row.pipeline, bool(row.given_up)): row.number for row in rows}

    def store_repairs(self, records: Sequence[RepairRecord]) -> None:
        """Insert or replace; a gap has one record."""
        for part in chunks(records, ROWS_PER_TRANSACTION_MAX):
            statement = self._db.insert(repairs).values([_columns(record) for record in part])
            changed = {
                column.name: statement.excluded[column.name]
                for column in repairs.columns
                if column.name not in ("gap_id", "pipeline", "first_at")
            }
            statement = statement.on_conflict_do_update(index_elements=[repairs.c.gap_id], set_=changed)
            self._db.write(lambda connection, statement=statement: connection.execute(statement))  # type: ignore[misc]

    def forget_repairs(self, gap_ids: Collection[str]) -> None:
        for part in chunks(list(gap_ids), ROWS_PER_TRANSACTION_MAX):
            statement = delete(repairs).where(repairs.c.gap_id.in_(part))
            self._db.write(lambda connection, statement=statement: connection.execute(statement))  # type: ignore[misc]

    def forget_resolved_repairs(self, pipeline: str) -> None:
        """Drop the records of gaps that were resolved, by whomever: one that opens again begins anew."""
        over = select(gaps.c.id).where(gaps.c.id == repairs.c.gap_id, gaps.c.state == RESOLVED).exists()
        found = select(repairs.c.gap_id).where(repairs.c.pipeline == pipeline, over)
        ids = list(self._db.read(lambda connection: connection.execute(found).scalars().all()))
        if ids:
            self.forget_repairs(ids)


def _open(pipeline: str, kinds: Collection[Kind]) -> Sequence[ColumnElement[bool]]:
    return (
        gaps.c.pipeline == pipeline,
        gaps.c.state != RESOLVED,  # the literal condition of a partial index
        gaps.c.state.in_(TAKEN),
        gaps.c.kind.in_([kind.value for kind in kinds]),
    )


def _columns(record: RepairRecord) -> dict[str, Any]:
    return {
        "gap_id": record.gap_id,
        "pipeline": record.pipeline,
        "attempts": record.attempts,
        "tries": record.tries,
        "outcome": record.outcome,
        "reason": record.reason,
        "first_at": record.first_at,
        "last_at": record.last_at,
        "next_at": record.next_at,
        "run_id": record.run_id,
    }


def _record(row: Any) -> RepairRecord:
    return RepairRecord(
        gap_id=row["repair_gap_id"],
        pipeline=row["repair_pipeline"],
        attempts=row["repair_attempts"],
        tries=row["repair_tries"],
        outcome=row["repair_outcome"],
        reason=row["repair_reason"],
        first_at=row["repair_first_at"],
        last_at=row["repair_last_at"],
        next_at=row["repair_next_at"],
        run_id=row["repair_run_id"],
        gap=gap_of(row),
    )
