"""Runs (sweeps, backfills, replays, checks) under leases, and the audit trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, or_, select, union_all, update

from gapwatch.errors import ConflictError, NotFoundError
from gapwatch.ledger.bulk import AUDIT_AS_READ, ROWS_AT_ONCE_MAX, audited_of_columns
from gapwatch.ledger.part import PIPELINES_AT_ONCE, STATEMENTS_KEPT, LedgerPart, chunks
from gapwatch.ledger.tables import audit, runs
from gapwatch.ledger.types import Place, from_us, place_of
from gapwatch.model.gap import AuditRow, Run, RunKind, RunState
from gapwatch.ports import Key

ACTIVE: Final = (RunState.QUEUED, RunState.RUNNING)
MICROSECONDS: Final = 1_000_000
KEYS_READ_AT_ONCE: Final = 5_000


class RunQueries(LedgerPart):
    """Implements the run and audit methods of :class:`gapwatch.ports.Ledger`."""

    def create_run(self, run: Run) -> Run:
        """Insert; ConflictError (with the running id) when one of the same pipeline and kind is queued or running."""

        def create(connection: Connection) -> None:
            statement = self._db.insert(runs).values(_columns(run)).on_conflict_do_nothing().returning(runs.c.id)
            if connection.execute(statement).first() is not None:
                return
            active = select(runs.c.id).where(
                runs.c.pipeline == run.pipeline,
                runs.c.kind == run.kind.value,
                runs.c.state.in_([state.value for state in ACTIVE]),
            )
            running = connection.execute(active).scalars().first()
            if running is None:
                raise ConflictError(f"There is a run {run.id} already, or one of {run.pipeline} ended this very moment.")
            raise ConflictError(
                f"A {run.kind.value} of {run.pipeline} is under way: {running}.",
                remedy="Wait for it, or cancel it.",
                running_id=running,
            )

        self._db.write(create)
        return run

    def run(self, run_id: str) -> Run | None:
        row = self._db.read(lambda connection: connection.execute(select(runs).where(runs.c.id == run_id)).first())
        return None if row is None else run_of(row)

    def runs(
        self,
        *,
        pipeline: str | None = None,
        kind: RunKind | None = None,
        states: Sequence[RunState] = (),
        limit: int = 50,
    ) -> Sequence[Run]:
        """Return runs, newest request first."""
        query = select(runs).order_by(runs.c.requested_at.desc(), runs.c.id.desc()).limit(limit)
        if pipeline is not None:
            query = query.where(runs.c.pipeline == pipeline)
        if kind is not None:
            query = query.where(runs.c.kind == kind.value)
        if states:
            query = query.where(runs.c.state.in_([state.value for state in states]))
        return [run_of(row) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def last_runs(self, kind: RunKind, pipelines: Sequence[str]) -> Mapping[str, Run]:
        """Return the newest run of a kind of each of these pipelines that has one."""

        def read(connection: Connection) -> list[Row[Any]]:
            return [
                row for part in chunks(pipelines, PIPELINES_AT_ONCE) for row in connection.execute(_newest(kind, tuple(part)))
            ]

        return {row.pipeline: run_of(row) for row in self._db.read(read)}

    def take_run(self, kind: RunKind, holder: str, *, seconds: float) -> Run | None:
        """Claim the oldest queued run (or one whose holder's lease expired) and return it as running.

        `holder` names one worker task: two tasks under one name could not be told apart.
        """

        def take(connection: Connection) -> Run | None:
            now = self._db.now_us(connection)
            free = or_(
                runs.c.state == RunState.QUEUED.value,
                and_(runs.c.state == RunState.RUNNING.value, runs.c.lease_until <= now),
            )
            query = (
                select(runs)
                .where(runs.c.kind == kind.value, free)
                .order_by(runs.c.requested_at, runs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = connection.execute(query).first()
            if row is None:
                return None
            claim = (
                update(runs)
                .where(runs.c.id == row.id)
                .values(
                    state=RunState.RUNNING.value,
                    started_at=row.started_at or from_us(now),
                    holder=holder,
                    lease_us=int(seconds * MICROSECONDS),
                    lease_until=now + int(seconds * MICROSECONDS),
                    fencing=runs.c.fencing + 1,
                )
                .returning(runs)
            )
            return run_of(connection.execute(claim).one())

        return self._db.write(take, counts=False)

    def update_run(self, run: Run, *, holder: str | None = None) -> None:
        """Store state, progress, counts, error, times and cursor; with `holder`, renew its lease by what it asked for.

        A cancellation that was asked for meanwhile is kept. Raises NotFoundError, ConflictError when the holder lost the run,
        or when the run has ended and would be changed to another state.
        """

        def store(connection: Connection) -> None:
            now = self._db.now_us(connection)
            row = connection.execute(select(runs).where(runs.c.id == run.id).with_for_update()).first()
            if row is None:
                raise NotFoundError(f"There is no run {run.id}.")
            lost = holder is not None and (row.holder != holder or row.fencing != run.fencing)
            if lost or (holder is not None and row.state != RunState.RUNNING.value):
                raise ConflictError(f"The run {run.id} is no longer held by {holder}: it is {row.state}.", running_id=run.id)
            if RunState(row.state) not in ACTIVE and row.state != run.state.value:
                raise ConflictError(f"The run {run.id} has ended: it is {row.state}.", running_id=run.id)
            values = _columns(run)
            del values["id"], values["cancel_requested"], values["requested_at"]
            if run.state is not RunState.RUNNING:
                values |= {"holder": None, "lease_us": None, "lease_until": None}
            elif holder is not None:
                values["lease_until"] = now + row.lease_us
            connection.execute(update(runs).where(runs.c.id == run.id).values(values))

        self._db.write(store)

    def cancel_run(self, run_id: str) -> Run:
        """End a queued run (and one whose holder is gone) as cancelled, ask a running one to stop; an ended one stays.

        Raises NotFoundError.
        """

        def cancel(connection: Connection) -> Run:
            now = self._db.now_us(connection)
            row = connection.execute(select(runs).where(runs.c.id == run_id).with_for_update()).first()
            if row is None:
                raise NotFoundError(f"There is no run {run_id}.")
            if RunState(row.state) not in ACTIVE:
                return run_of(row)
            values: dict[str, Any] = {"cancel_requested": True}
            if row.state == RunState.QUEUED.value or row.lease_until is None or row.lease_until <= now:
                values |= {"state": RunState.CANCELLED.value, "ended_at": from_us(now), "holder": None, "lease_until": None}
                values["fencing"] = row.fencing + 1  # a holder that is only frozen is refused as well
            statement = update(runs).where(runs.c.id == run_id).values(values).returning(runs)
            return run_of(connection.execute(statement).one())

        return self._db.write(cancel)

    def audit(self, rows: Sequence[AuditRow], *, by: Run | None = None) -> None:
        """Append; a row whose id is there already is the same row once more, and changes nothing.

        `by`: the run whose holder says so, as it was taken; ConflictError, and nothing is appended, once it was taken again.
        """

        def append(part: Sequence[AuditRow], connection: Connection) -> None:
            if by is not None:
                query = select(runs.c.fencing).where(runs.c.id == by.id).with_for_update(read=True)
                if connection.execute(query).scalar_one_or_none() != by.fencing:
                    raise ConflictError(f"The run {by.id} was taken by another holder since.", running_id=by.id)
            self._bulk.audit(connection, part)

        for part in chunks(rows, ROWS_AT_ONCE_MAX):
            self._db.write(partial(append, part), counts=False)

    def audit_rows(
        self, *, pipeline: str | None = None, run_id: str | None = None, key: Key | None = None, limit: int = 100
    ) -> Sequence[AuditRow]:
        """Return audit rows, newest first."""
        # A key has few rows: ordered as they were stored, its index is used, and not the one that has the order of times.
        order = (audit.c.at.desc(), audit.c.number.desc()) if key is None else (audit.c.number.desc(),)
        query = select(*AUDIT_AS_READ).order_by(*order).limit(limit)
        if pipeline is not None:
            query = query.where(audit.c.pipeline == pipeline)
        if run_id is not None:
            query = query.where(audit.c.run_id == run_id)
        if key is not None:
            query = query.where(Place() == place_of(key))
        return [audited_of_columns(row) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def audited_keys(
        self, run_id: str, *, action: str | None = None, outcome: str | None = None
    ) -> Sequence[tuple[Key, str | None, str]]:
        """Return key, gap and reason of a run's audit rows that name a key, the last stored first. All of them.

        Of a plan of a hundred thousand keys, whole rows were 100 MiB.
        """
        query = select(audit.c.key, audit.c.gap_id, audit.c.reason).where(audit.c.run_id == run_id, audit.c.key.is_not(None))
        if action is not None:
            query = query.where(audit.c.action == action)
        if outcome is not None:
            query = query.where(audit.c.outcome == outcome)
        query = query.order_by(audit.c.number.desc())
        reasons: dict[str, str] = {}  # that most rows share

        def read(connection: Connection) -> list[tuple[Key, str | None, str]]:
            found = connection.execute(query.execution_options(yield_per=KEYS_READ_AT_ONCE))
            return [(bytes(key), gap_id, reasons.setdefault(reason, reason)) for key, gap_id, reason in found]

        return self._db.read(read)


@lru_cache(maxsize=STATEMENTS_KEPT)
def _newest(kind: RunKind, pipelines: Sequence[str]) -> Any:
    """Return one statement for the newest run of each: an index leads to each of them."""
    order = (runs.c.requested_at.desc(), runs.c.id.desc())
    each = [
        select(runs).where(runs.c.pipeline == name, runs.c.kind == kind.value).order_by(*order).limit(1).subquery()
        for name in pipelines
    ]
    return union_all(*[select(one) for one in each])


def _columns(run: Run) -> dict[str, Any]:
    """Return what a run's own updates store; `fencing` is for :meth:`RunQueries.take_run` alone."""
    return {
        "id": run.id,
        "pipeline": run.pipeline,
        "kind": run.kind.value,
        "state": run.state.value,
        "requested_at": run.requested_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "progress": run.progress,
        "counts": run.counts,
        "error": run.error,
        "request": run.request,
        "requested_by": run.requested_by,
        "cursor": run.cursor,
        "cancel_requested": run.cancel_requested,
    }


def run_of(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        pipeline=row.pipeline,
        kind=RunKind(row.kind),
        state=RunState(row.state),
        requested_at=row.requested_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        progress=row.progress,
        counts=row.counts,
        error=row.error,
        request=row.request,
        requested_by=row.requested_by,
        cursor=row.cursor,
        cancel_requested=row.cancel_requested,
        fencing=row.fencing,
    )
