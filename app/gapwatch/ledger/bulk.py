"""Many rows by statements that are compiled once: what a sweep and a backfill store of a hundred thousand keys.

Measured: with a dictionary a row, SQLAlchemy takes longer to make parameters of it than SQLite to store it. So rows are tuples
here, in the order of their table's columns, made by hand into what ``types`` makes of each value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import BigInteger, Connection, Table, Text, bindparam, insert, select, type_coerce, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.types import NullType

from gapwatch.ledger.database import Database
from gapwatch.ledger.tables import RESOLVED, audit, gap_life, gaps, outbox
from gapwatch.ledger.types import Place, from_us, key_hash, place_of, to_us, words
from gapwatch.model.gap import AuditRow, Cause, Detector, Gap, GapName, Kind, Resolution, State
from gapwatch.ports import GapChange

Row = tuple[Any, ...]

# Rows that one transaction appends or changes by these statements: some 0.1 s, for which other writers wait.
ROWS_AT_ONCE_MAX: Final = 6_000

FOUND_AT_ONCE: Final = 500  # look-ups in one query
ROWS_AT_STEP: Final = 200  # that SQLite is given in one statement: other threads wait for nothing meanwhile

_GUARD: Final = ("guard_id", "guard_revision")
_GAP: Final = tuple(column.name for column in gaps.c)
_LIFE: Final = tuple(column.name for column in gap_life.c if column.name != "id")
_TOLD: Final = tuple(column.name for column in outbox.c if column.name != "id")
_AUDIT: Final = tuple(column.name for column in audit.c if column.name != "number")
_STATE: Final = ("state", "resolved_at", "resolution", "note", "revision")  # what a change of state alone may touch
_OPEN: Final = ("state", "note", "revision")  # … and of one that is not resolved then: an index less
_TOLD_AS_IT_IS: Final = ("revision", "kind", "cause", "state", "resolution", "note")  # of a gap, in its life

# The columns of a gap as the driver reads them, for gap_of_columns: SQLAlchemy's own conversion costs more than the query.
AS_READ: Final = tuple(type_coerce(column, NullType()).label(column.name) for column in gaps.c)
NAMED_AS_READ: Final = tuple(  # name_of_columns; the page's cursor needs the last one
    type_coerce(gaps.c[name], NullType()).label(name) for name in ("id", "key", "key_fields", "kind", "first_seen")
)
AUDIT_AS_READ: Final = tuple(type_coerce(audit.c[name], NullType()).label(name) for name in _AUDIT)  # audited_of_columns

# By name: an enum takes a microsecond for each look at it, and a row has four of them.
_KINDS = {one.value: one for one in Kind}
_CAUSES = {one.value: one for one in Cause}
_STATES = {one.value: one for one in State}
_DETECTORS = {one.value: one for one in Detector}
_RESOLUTIONS = {one.value: one for one in Resolution}
_name = str.__str__  # of a StrEnum: its value


class Insert(NamedTuple):
    """A statement for one row, and one for ``ROWS_AT_STEP`` of them (Postgres' driver sends many of the first one at once)."""

    one: str
    many: str | None


_Psycopg: Any = psycopg.dialect  # its constructor has no types
_json = msgspec.json.Encoder(enc_hook=str).encode


class Bulk:
    """The statements, for one kind of database. Each method returns how many rows it stored or changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open = self._insert(gaps, _GAP, once=True)
        self._life = self._insert(gap_life, _LIFE)
        self._outbox = self._insert(outbox, _TOLD)
        self._audit = self._insert(audit, _AUDIT, once=True)
        self._change = self._update(_GAP[1:])
        many: list[Any] = [bindparam(f"wanted_{number}") for number in range(FOUND_AT_ONCE)]
        self._change_state = {is_resolved: self._update(_STATE if is_resolved else _OPEN, many) for is_resolved in (True, False)}
        self._live = self._lives(many)
        wanted, open_ones = [one.key for one in many], gaps.c.state != RESOLVED
        self._by_id = self._compiled(select(gaps).where(gaps.c.id.in_(many)), wanted)
        mine = gaps.c.pipeline == bindparam("mine")
        by_key = self._compiled(select(gaps).where(mine, Place().in_(many), open_ones), ("mine", *wanted))
        if database.is_sqlite:  # it would take the one that holds resolved gaps as well
            by_key = by_key.replace("FROM gaps", "FROM gaps INDEXED BY uq_gaps_open_key")
        self._open_by_key = by_key

    def by_id(self, connection: Connection, ids: Sequence[str]) -> list[Gap]:
        """Return those of up to ``FOUND_AT_ONCE`` gaps that there are."""
        return [gap_of_columns(row) for row in connection.exec_driver_sql(self._by_id, _padded(ids))] if ids else []

    def open_by_key(self, connection: Connection, pipeline: str, keys: Sequence[bytes]) -> list[Gap]:
        """Return the open gaps of up to ``FOUND_AT_ONCE`` keys."""
        wanted = (pipeline, *_padded([place_of(key) for key in keys])) if keys else ()
        return [gap_of_columns(row) for row in connection.exec_driver_sql(self._open_by_key, wanted)] if keys else []

    def open(self, connection: Connection, opened: Sequence[Gap]) -> int:
        """Insert gaps; not one whose id is known, or whose key has another open gap."""
        return _insert(connection, self._open, [_gap(gap) for gap in opened])

    def change(self, connection: Connection, changes: Sequence[GapChange]) -> int:
        """Update gaps that are not resolved, and have the revision that was read."""
        return _run(connection, self._change, [(*_gap(one.gap)[1:], one.gap.id, one.against) for one in changes])

    def change_state(self, connection: Connection, changes: Sequence[GapChange]) -> int:
        """Do as :meth:`change` where nothing else may have changed: most indexes, and the evidence, are left alone."""
        alike: dict[Row, list[str]] = {}
        for one in changes:
            is_resolved = one.gap.state is State.RESOLVED
            alike.setdefault((is_resolved, *_state(one.gap, is_resolved), one.against), []).append(one.gap.id)
        number = 0
        for (is_resolved, *values, against), ids in alike.items():
            for some in _parts(ids):
                number += connection.exec_driver_sql(self._change_state[is_resolved], (*values, *some, against)).rowcount
        return number

    def tell(self, connection: Connection, changes: Sequence[GapChange], payloads: Sequence[bytes], at: datetime) -> None:
        """Insert the life rows and the outbox rows of changes that stand, and that the gaps' rows show."""
        now = to_us(at)
        alike, ids = {(change.event, change.actor) for change in changes}, {change.gap.id: None for change in changes}
        if len(alike) == 1 and len(ids) == len(changes):
            [(event, actor)] = alike
            for some in _parts(list(ids)):
                connection.exec_driver_sql(self._live, (now, event, words(actor), *some))
        else:  # of a gap that was changed twice at once, its row shows the second change alone
            _insert(connection, self._life, [_life(change, now) for change in changes])
        _insert(connection, self._outbox, [(one.gap.id, payload) for one, payload in zip(changes, payloads, strict=True)])

    def audit(self, connection: Connection, rows: Sequence[AuditRow]) -> int:
        """Insert audit rows; not one whose id is known."""
        return _insert(connection, self._audit, [_audited(row) for row in rows])

    def _insert(self, table: Table, names: Sequence[str], *, once: bool = False) -> Insert:
        statement = self._database.insert(table).values({name: bindparam(name) for name in names}).inline()
        one = self._compiled(statement.on_conflict_do_nothing() if once else statement, names)
        if not self._database.is_sqlite:
            return Insert(one, None)
        row = f"({', '.join('?' for _ in names)})"
        assert one.count(row) == 1, "a row's values stand in one place"
        return Insert(one, one.replace(row, ", ".join([row] * ROWS_AT_STEP)))

    def _update(self, names: Sequence[str], ids: Sequence[Any] = ()) -> str:
        """Return an update of one gap, or of those with these ids; of each only while it has the revision that was read."""
        guard: tuple[Any, Any] = bindparam(_GUARD[0]), bindparam(_GUARD[1])
        which = gaps.c.id.in_(ids) if ids else gaps.c.id == guard[0]
        statement = update(gaps).where(which, gaps.c.revision == guard[1], gaps.c.state != RESOLVED)
        last = (*[one.key for one in ids], _GUARD[1]) if ids else _GUARD
        return self._compiled(statement.values({name: bindparam(name) for name in names}), (*names, *last))

    def _lives(self, ids: Sequence[Any]) -> str:
        """Return an insert of the life rows that say what these gaps are by now."""
        said: list[Any] = [
            bindparam("at", type_=BigInteger()),
            bindparam("event", type_=Text()),
            bindparam("actor", type_=Text()),
        ]
        shown = [gaps.c[name] for name in _TOLD_AS_IT_IS]
        chosen = select(gaps.c.id, *said, *shown).where(gaps.c.id.in_(ids))
        names = ("gap_id", "at", "event", "actor", *_TOLD_AS_IT_IS)
        return self._compiled(insert(gap_life).from_select(names, chosen), ("at", "event", "actor", *[one.key for one in ids]))

    def _compiled(self, statement: Any, names: Sequence[str]) -> str:
        positional: Any = sqlite.dialect(paramstyle="qmark") if self._database.is_sqlite else _Psycopg(paramstyle="format")
        compiled = statement.compile(dialect=positional)
        assert tuple(compiled.positiontup) == tuple(names), "the tuples are in the order of the statement"
        return str(compiled)


def _run(connection: Connection, statement: str, rows: list[Row]) -> int:
    return connection.exec_driver_sql(statement, rows).rowcount if rows else 0


def _insert(connection: Connection, statement: Insert, rows: list[Row]) -> int:
    number, rest = 0, 0
    if statement.many is not None:
        rest = len(rows) - len(rows) % ROWS_AT_STEP
        for start in range(0, rest, ROWS_AT_STEP):
            values = tuple(chain.from_iterable(rows[start : start + ROWS_AT_STEP]))
            number += connection.exec_driver_sql(statement.many, values).rowcount
    return number + _run(connection, statement.one, rows[rest:])


def _parts(ids: Sequence[str]) -> Iterator[Row]:
    for start in range(0, len(ids), FOUND_AT_ONCE):
        yield _padded(ids[start : start + FOUND_AT_ONCE])


def _padded(wanted: Sequence[Any]) -> Row:
    """Repeat the last one, so that the statement is the same however many there are."""
    return (*wanted, *[wanted[-1]] * (FOUND_AT_ONCE - len(wanted)))


def gap_of_columns(row: Sequence[Any]) -> Gap:
    """Return the gap of a row as the driver reads it, with all columns of its table in their order."""
    opened_by = _read(row[19])
    return Gap(
        id=row[0],
        pipeline=row[1],
        key=bytes(row[2]),
        key_fields=_read(row[4]),
        target_id=row[5],
        kind=_KINDS[row[6]],
        cause=_CAUSES[row[7]],
        state=_STATES[row[8]],
        detector=_DETECTORS[row[9]],
        event_time=_instant(row[10]),
        first_seen=from_us(row[11]),
        confirmed_at=from_us(row[12]),
        resolved_at=_instant(row[13]),
        resolution=_RESOLUTIONS[row[14]] if row[14] else None,
        fields=tuple(_read(row[15])),
        occurrences=row[16],
        evidence=tuple(_read(row[17])),
        note=row[18],
        opened_by=tuple(opened_by) if opened_by is not None else None,
        revision=row[20],
        held_since=_instant(row[21]),
    )


def name_of_columns(row: Sequence[Any]) -> GapName:
    return GapName(row[0], bytes(row[1]), _read(row[2]), _KINDS[row[3]])


def audited_of_columns(row: Sequence[Any]) -> AuditRow:
    identifier, at, actor, action, pipeline, key, _, key_fields, run_id, gap_id, outcome, before, after, reason = row
    return AuditRow(
        id=identifier,
        at=from_us(at),
        actor=actor,
        action=action,
        pipeline=pipeline,
        key=None if key is None else bytes(key),
        key_fields=_read(key_fields),
        run_id=run_id,
        gap_id=gap_id,
        outcome=outcome,
        before=before,
        after=after,
        reason=reason,
    )


def _read(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)


def _gap(gap: Gap) -> Row:
    return (
        gap.id,
        gap.pipeline,
        gap.key,
        key_hash(gap.key),
        _json(gap.key_fields).decode(),
        words(gap.target_id),
        _name(gap.kind),
        _name(gap.cause),
        _name(gap.state),
        _name(gap.detector),
        _time(gap.event_time),
        to_us(gap.first_seen),
        to_us(gap.confirmed_at),
        _time(gap.resolved_at),
        _name(gap.resolution) if gap.resolution is not None else None,
        _json(gap.fields).decode(),
        gap.occurrences,
        _json(gap.evidence).decode(),
        words(gap.note),
        _json(gap.opened_by).decode() if gap.opened_by else None,
        gap.revision,
        _time(gap.held_since),
    )


def _state(gap: Gap, is_resolved: bool) -> Row:
    state, note = _name(gap.state), words(gap.note)
    if not is_resolved:
        return state, note, gap.revision
    return state, _time(gap.resolved_at), _name(gap.resolution) if gap.resolution is not None else None, note, gap.revision


def _life(change: GapChange, at: int) -> Row:
    gap = change.gap
    return (
        gap.id,
        at,
        change.event,
        words(change.actor),
        gap.revision,
        _name(gap.kind),
        _name(gap.cause),
        _name(gap.state),
        _name(gap.resolution) if gap.resolution is not None else None,
        words(gap.note),
    )


def _audited(row: AuditRow) -> Row:
    return (
        row.id,
        to_us(row.at),
        words(row.actor),
        row.action,
        row.pipeline,
        row.key,
        None if row.key is None else key_hash(row.key),
        None if row.key_fields is None else _json(row.key_fields).decode(),
        row.run_id,
        row.gap_id,
        row.outcome,
        words(row.before),
        words(row.after),
        words(row.reason),
    )


def _time(time: datetime | None) -> int | None:
    return None if time is None else to_us(time)
