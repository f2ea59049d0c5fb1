"""Parts of sweeps that several workers share: ranges of keys, each under a lease of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, or_, select, update

from gapwatch.errors import ConflictError
from gapwatch.ledger.part import LedgerPart
from gapwatch.ledger.runs import run_of
from gapwatch.ledger.tables import runs, sweep_parts
from gapwatch.model.gap import Run, RunState, SweepPart

MICROSECONDS: Final = 1_000_000


class SweepPartQueries(LedgerPart):
    """Implements the methods of :class:`gapwatch.ports.Ledger` for parts of sweeps."""

    def split_run(self, run_id: str, parts: Sequence[SweepPart], *, holder: str) -> None:
        """Store the parts of a run that has none. Raises ConflictError when the holder lost the run, or it is split already."""

        def split(connection: Connection) -> None:
            row = connection.execute(select(runs).where(runs.c.id == run_id).with_for_update()).first()
            if row is None or row.holder != holder or row.state != RunState.RUNNING.value:
                raise ConflictError(f"The run {run_id} is no longer held by {holder}.", running_id=run_id)
            if connection.execute(select(sweep_parts.c.number).where(sweep_parts.c.run_id == run_id).limit(1)).first():
                raise ConflictError(f"The run {run_id} is split already.", running_id=run_id)
            connection.execute(sweep_parts.insert(), [_columns(part) for part in parts])

        self._db.write(split)

    def parts(self, run_id: str) -> Sequence[SweepPart]:
        """Return a run's parts in the order of their keys; none where it was not split."""
        query = select(sweep_parts).where(sweep_parts.c.run_id == run_id).order_by(sweep_parts.c.number)
        return [_part(row) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def take_part(self, holder: str, pipelines: Collection[str], *, seconds: float) -> tuple[Run, SweepPart] | None:
        """Claim a queued part (or one whose holder's lease expired) of a sweep that runs and is not to be cancelled.

        `holder` names one worker task; `pipelines` are those that it knows.
        """

        def take(connection: Connection) -> tuple[Run, SweepPart] | None:
            now = self._db.now_us(connection)
            free = or_(
                sweep_parts.c.state == RunState.QUEUED.value,
                and_(sweep_parts.c.state == RunState.RUNNING.value, sweep_parts.c.lease_until <= now),
            )
            query = (
                select(sweep_parts.c.run_id, sweep_parts.c.number)
                .join(runs, runs.c.id == sweep_parts.c.run_id)
                .where(free, runs.c.state == RunState.RUNNING.value, runs.c.cancel_requested.is_(False))
                .where(runs.c.pipeline.in_(list(pipelines)))
                .order_by(runs.c.requested_at, runs.c.id, sweep_parts.c.number)
                .limit(1)
                .with_for_update(skip_locked=True, of=sweep_parts)
            )
            found = connection.execute(query).first()
            if found is None:
                return None
            lease = int(seconds * MICROSECONDS)
            claim = (
                update(sweep_parts)
                .where(sweep_parts.c.run_id == found.run_id, sweep_parts.c.number == found.number)
                .values(state=RunState.RUNNING.value, holder=holder, lease_us=lease, lease_until=now + lease)
                .values(fencing=sweep_parts.c.fencing + 1)
                .returning(sweep_parts)
            )
            part = _part(connection.execute(claim).one())
            return run_of(connection.execute(select(runs).where(runs.c.id == found.run_id)).one()), part

        return self._db.write(take, counts=False)

    def update_part(self, part: SweepPart, *, holder: str) -> None:
        """Store state, counts, error and cursor; renew the lease by what its holder asked for.

        Raises ConflictError when the holder lost the part, and when the sweep has ended or is to be cancelled.
        """
        mine = (sweep_parts.c.run_id == part.run_id, sweep_parts.c.number == part.number)

        def store(connection: Connection) -> None:
            now = self._db.now_us(connection)
            row = connection.execute(select(sweep_parts).where(*mine).with_for_update()).first()
            if row is None or (row.holder, row.fencing) != (holder, part.fencing) or row.state != RunState.RUNNING.value:
                raise ConflictError(f"Part {part.number} of {part.run_id} is no longer held by {holder}.", running_id=part.run_id)
            run = connection.execute(select(runs).where(runs.c.id == part.run_id)).one()
            if run.state != RunState.RUNNING.value or run.cancel_requested:
                raise ConflictError(f"The sweep {part.run_id} is over, or was cancelled.", running_id=part.run_id)
            values = _columns(part)
            if part.state is RunState.RUNNING:
                values["lease_until"] = now + row.lease_us
            else:
                values |= {"holder": None, "lease_us": None, "lease_until": None}
            connection.execute(update(sweep_parts).where(*mine).values(values))

        self._db.write(store)


def _columns(part: SweepPart) -> dict[str, Any]:
    return {
        "run_id": part.run_id,
        "number": part.number,
        "lower": part.lower,
        "upper": part.upper,
        "state": part.state.value,
        "counts": part.counts,
        "error": part.error,
        "cursor": part.cursor,
    }


def _part(row: Row[Any]) -> SweepPart:
    return SweepPart(
        run_id=row.run_id,
        number=row.number,
        lower=row.lower,
        upper=row.upper,
        state=RunState(row.state),
        counts=row.counts,
        error=row.error,
        cursor=row.cursor,
        fencing=row.fencing,
    )
