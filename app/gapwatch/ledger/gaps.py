"""Gaps, their life, their totals, and the outbox. One change is one transaction: gap row, life row, outbox row, totals."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    RowMapping,
    Select,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from gapwatch.core.reports import gap_event_bytes, rfc3339
from gapwatch.errors import UsageError
from gapwatch.ledger.bulk import AS_READ, FOUND_AT_ONCE, NAMED_AS_READ, ROWS_AT_ONCE_MAX, gap_of_columns, name_of_columns
from gapwatch.ledger.database import ROWS_PER_TRANSACTION_MAX
from gapwatch.ledger.part import PIPELINES_AT_ONCE, LedgerPart, chunks
from gapwatch.ledger.summaries import accepted, summaries, summary_of
from gapwatch.ledger.tables import RESOLVED, gap_life, gap_totals, gaps, outbox
from gapwatch.ledger.types import Place, UtcTime, from_us, key_hash, place_of
from gapwatch.model.gap import Cause, Detector, Gap, GapBurst, GapName, GapSummary, Kind, Resolution, State
from gapwatch.ports import GapChange, GapFilter, Key, OutboxRow, Page

ROWS_PER_CHANGE: Final = 3  # and a few for all of them: the totals'
CHANGES_AT_ONCE_MAX: Final = ROWS_AT_ONCE_MAX // ROWS_PER_CHANGE
CHANGES_MAX: Final = ROWS_PER_TRANSACTION_MAX // ROWS_PER_CHANGE - 10  # in one transaction, where each is looked at singly
VALUE_BYTES: Final = 32  # of one that is no text
BYTES_AT_ONCE_MAX: Final = 4 << 20  # of values in evidence, which may be shown
PAGE_MAX: Final = 1_000

Totals = dict[tuple[str, str, str, str], int]  # what, pipeline, label, detector


class GapQueries(LedgerPart):
    """Implements the gap and outbox methods of :class:`gapwatch.ports.Ledger`."""

    def store_gaps(self, changes: Sequence[GapChange]) -> Sequence[bool]:
        """Store each change with its life row and its outbox row in one transaction (a bounded number in each).

        Returns, per change and in order, whether it stands: False where the gap's revision was overtaken, where a new gap's id
        exists, or where the key has another open gap.
        """
        stood: list[bool] = []
        for part in _transactions(changes):
            stored = self._db.write(partial(self._store, part))
            if stored is not None:
                stood += stored
                continue
            for few in chunks(part, CHANGES_MAX):
                stored = self._db.write(partial(self._store, few))
                assert stored is not None, "so few are looked at singly"
                stood += stored
        return stood

    def _store(self, changes: Sequence[GapChange], connection: Connection) -> list[bool] | None:
        """Return which changes stand; None, and nothing is stored, where too many would have to be looked at singly."""
        at = from_us(self._db.now_us(connection))
        # In one order everywhere, so that two writers wait for each other instead of locking each other out.
        order = sorted(range(len(changes)), key=lambda index: _order(changes[index].gap))
        if self._at_once(connection, [changes[index] for index in order]):
            stood, totals = [True] * len(changes), _totals(changes)
        elif len(changes) > CHANGES_MAX:
            return None
        else:
            stood, totals = self._one_by_one(connection, changes, order)
        self._tell(connection, [change for change, stands in zip(changes, stood, strict=True) if stands], at)
        self._add_totals(connection, totals)
        return stood

    def _at_once(self, connection: Connection, changes: Sequence[GapChange]) -> bool:
        """Store changes of one sort by one statement; False, and nothing is stored, unless every single one stands."""
        if len({change.gap.id for change in changes}) < len(changes):
            return False
        sorts = {(change.against is None, change.state_only) for change in changes}
        if len(sorts) != 1:
            return False
        [(is_new, state_only)] = sorts
        assert is_new or all(one.gap.revision > (one.against or 0) for one in changes), "a change has a revision of its own"
        with connection.begin_nested() as savepoint:
            if is_new:
                number = self._bulk.open(connection, [change.gap for change in changes])
            else:
                number = (self._bulk.change_state if state_only else self._bulk.change)(connection, changes)
            if number != len(changes):
                savepoint.rollback()
        return number == len(changes)

    def _one_by_one(self, connection: Connection, changes: Sequence[GapChange], left: Sequence[int]) -> tuple[list[bool], Totals]:
        """Store what stands, in turns of one change a gap; return what does, and what is to be counted."""
        known = self._locked(connection, [change.gap.id for change in changes if change.against is not None])
        stood = [False] * len(changes)
        totals: Totals = {}
        while left:
            turn = _one_of_each(changes, left)
            left = [index for index in left if index not in turn]
            for index in self._take(connection, changes, turn, known):
                change = changes[index]
                before = known.get(change.gap.id)
                stood[index] = True
                known[change.gap.id] = (change.gap.revision, change.gap.state.value)
                _count(totals, change, before[1] if before else None)
        return stood, totals

    def _take(
        self,
        connection: Connection,
        changes: Sequence[GapChange],
        turn: Mapping[int, None],
        known: Mapping[str, tuple[int, str]],
    ) -> list[int]:
        """Store changes of different gaps, many at once; return which stand. What is known is locked, so it stays as it is."""
        fresh = [index for index in turn if changes[index].against is None]
        plain, again = list[int](), list[int]()
        for index in turn:
            change, before = changes[index], known.get(changes[index].gap.id)
            if change.against is not None and before is not None and before[0] == change.against:
                assert change.gap.revision > change.against, "a change has a revision of its own"
                (again if before[1] == State.RESOLVED else plain).append(index)
        if plain:
            connection.execute(_UPDATE, [_as_update(changes[index].gap) for index in plain])
        again = [index for index in again if self._reopened(connection, changes[index].gap)]
        if fresh:
            statement = self._db.insert(gaps).on_conflict_do_nothing().returning(gaps.c.id)
            made = set(connection.execute(statement, [_columns(changes[index].gap) for index in fresh]).scalars())
            fresh = [index for index in fresh if changes[index].gap.id in made]
        return [*plain, *again, *fresh]

    def _reopened(self, connection: Connection, gap: Gap) -> bool:
        try:
            with connection.begin_nested():  # so that the refusal costs this change only
                connection.execute(_UPDATE, _as_update(gap))
        except IntegrityError:
            return False  # the key has another open gap meanwhile
        return True

    def _locked(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Return revision and state of the gaps, locked until the transaction ends (SQLite locks the whole file anyway)."""
        query = (
            select(gaps.c.id, gaps.c.revision, gaps.c.state)
            .where(gaps.c.id.in_(ids))
            .order_by(gaps.c.pipeline, Place(), gaps.c.id)
            .with_for_update()
        )
        return {row.id: (row.revision, row.state) for row in connection.execute(query)} if ids else {}

    def _tell(self, connection: Connection, changes: Sequence[GapChange], at: datetime) -> None:
        """Write the life rows and the outbox rows of what stands, of each gap in the order of its changes."""
        if not changes:
            return
        self._bulk.tell(connection, changes, [gap_event_bytes(one.gap, one.event, at) for one in changes], at)

    def _add_totals(self, connection: Connection, totals: Totals) -> None:
        for (what, pipeline, label, detector), number in sorted(totals.items()):
            statement = self._db.insert(gap_totals).values(
                what=what, pipeline=pipeline, label=label, detector=detector, total=number
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=list(gap_totals.primary_key.columns), set_={"total": gap_totals.c.total + number}
                )
            )

    def gap(self, gap_id: str) -> Gap | None:
        row = self._db.read(lambda connection: connection.execute(select(gaps).where(gaps.c.id == gap_id)).mappings().first())
        return None if row is None else gap_of(row)

    def gaps_by_id(self, ids: Collection[str]) -> Mapping[str, Gap]:
        """Return those of the gaps that there are."""
        found: dict[str, Gap] = {}
        for part in chunks(list(ids), FOUND_AT_ONCE):
            rows = self._db.read(lambda connection, part=part: self._bulk.by_id(connection, part))  # type: ignore[misc]
            found.update((gap.id, gap) for gap in rows)
        return found

    def open_gaps_for(self, pipeline: str, keys: Collection[Key]) -> Mapping[Key, Gap]:
        found: dict[Key, Gap] = {}
        for part in chunks(list(keys), FOUND_AT_ONCE):
            rows = self._db.read(lambda connection, part=part: self._bulk.open_by_key(connection, pipeline, part))  # type: ignore[misc]
            found.update((gap.key, gap) for gap in rows)
        return found

    def gaps(self, where: GapFilter, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return a page, newest first seen first. A cursor keeps its place while gaps open, change and close around it.

        ``where.since`` compares with ``confirmed_at``. Raises UsageError for a cursor that was not ours or a limit below 1.
        """
        rows, next_cursor = self._page(AS_READ, where, limit, cursor)
        return Page(gaps=[gap_of_columns(row) for row in rows], next_cursor=next_cursor)

    def gap_names(self, where: GapFilter, *, limit: int = 100, cursor: str | None = None) -> tuple[Sequence[GapName], str | None]:
        """Return a page as :meth:`gaps` does, without what only a reader of the gaps needs, and the next one's cursor."""
        rows, next_cursor = self._page(NAMED_AS_READ, where, limit, cursor)
        return [name_of_columns(row) for row in rows], next_cursor

    def _page(
        self, columns: Sequence[Any], where: GapFilter, limit: int, cursor: str | None
    ) -> tuple[Sequence[Row[Any]], str | None]:
        if limit < 1:
            raise UsageError("A page holds at least one gap.", remedy=f"Give a limit between 1 and {PAGE_MAX}.")
        size = min(limit, PAGE_MAX)
        selected: Any = select(*columns)  # typed by as many columns as it has
        query = _filtered(selected, where)
        if cursor is not None:
            first_seen, gap_id = _read_cursor(cursor)
            query = query.where(tuple_(gaps.c.first_seen, gaps.c.id) < tuple_(literal(first_seen, UtcTime()), gap_id))
        # A key has few gaps: its index has to be used, and not the one that has the order.
        first_seen_of: Any = gaps.c.first_seen if where.key is None else gaps.c.first_seen.op("+")(literal_column("0"))
        query = query.order_by(first_seen_of.desc(), gaps.c.id.desc()).limit(size + 1)
        rows = self._db.read(lambda connection: connection.execute(query).all())
        more = len(rows) > size
        return rows[:size], _cursor(rows[size - 1]) if more else None

    def count_gaps(self, where: GapFilter) -> int:
        """Return how many gaps the filter lets through: all of them, whatever a page's limit."""
        query = _filtered(select(func.count()).select_from(gaps), where)
        return int(self._db.read(lambda connection: connection.execute(query).scalar_one()))

    def counts_by_state(self, pipeline: str) -> Mapping[State, int]:
        """Return how many gaps the ledger holds per state, 0 included."""
        query = select(gaps.c.state, func.count()).where(gaps.c.pipeline == pipeline).group_by(gaps.c.state)
        counts: dict[State, int] = dict.fromkeys(State, 0)
        for state, number in self._db.read(lambda connection: connection.execute(query).all()):
            counts[State(state)] = number
        return counts

    def gap_summary(self, pipeline: str) -> GapSummary:
        return self.gap_summaries([pipeline])[pipeline]

    def gap_summaries(self, pipelines: Sequence[str]) -> Mapping[str, GapSummary]:
        found: dict[str, list[Row[Any]]] = {name: [] for name in pipelines}
        for row in self._of_each(summaries(), pipelines):
            found[row.pipeline].append(row)
        return {name: summary_of(rows) for name, rows in found.items()}

    def accepted_gaps(self, pipelines: Sequence[str], since: datetime) -> Mapping[str, int]:
        rows = self._of_each(accepted(), pipelines, since=since)
        return dict.fromkeys(pipelines, 0) | {row.pipeline: row.number for row in rows}

    def _of_each(self, query: Select[Any], pipelines: Sequence[str], **more: Any) -> list[Row[Any]]:
        """Return a query's rows of these pipelines."""

        def read(connection: Connection) -> list[Row[Any]]:
            parts = chunks(pipelines, PIPELINES_AT_ONCE)
            return [row for part in parts for row in connection.execute(query, {"pipelines": list(part), **more})]

        return self._db.read(read)

    def gap_burst(self, pipeline: str, since: datetime, *, samples: int) -> GapBurst:
        """Return the open gaps that were first seen since then, with up to `samples` of them, the first ones."""
        those = (gaps.c.pipeline == pipeline, gaps.c.state != RESOLVED, gaps.c.first_seen >= since)
        counted = select(gaps.c.kind, func.count().label("number"), func.min(gaps.c.first_seen).label("first"))
        first = select(gaps.c.id, gaps.c.kind, gaps.c.key_fields).where(*those).order_by(gaps.c.first_seen, gaps.c.id)

        def read(connection: Connection) -> GapBurst:
            rows = connection.execute(counted.where(*those).group_by(gaps.c.kind)).all()
            shown = connection.execute(first.limit(samples)).all() if rows else ()
            return GapBurst(
                by_kind={row.kind: row.number for row in rows},
                since=min((row.first for row in rows), default=None),
                samples=tuple({"gap": row.id, "kind": row.kind, "key": row.key_fields} for row in shown),
            )

        return self._db.read(read)

    def gap_counts(self) -> Mapping[tuple[str, str, str], int]:
        """Return totals ever detected by (pipeline, kind, detector); a re-opened gap counts again, a pruned one still counts."""
        return {(row.pipeline, row.label, row.detector): row.total for row in self._totals("detected")}

    def resolution_counts(self) -> Mapping[tuple[str, str], int]:
        """Return totals ever resolved by (pipeline, resolution)."""
        return {(row.pipeline, row.label): row.total for row in self._totals("resolved")}

    def _totals(self, what: str) -> Sequence[Any]:
        query = select(gap_totals).where(gap_totals.c.what == what)
        return self._db.read(lambda connection: connection.execute(query).all())

    def gap_history(self, gap_id: str) -> Sequence[Mapping[str, Any]]:
        """Return the gap's life, oldest first: objects with at (RFC 3339), event, actor, revision, kind, cause, state, …"""
        query = select(gap_life).where(gap_life.c.gap_id == gap_id).order_by(gap_life.c.revision)
        return [
            {
                "at": rfc3339(row.at),
                "event": row.event,
                "actor": row.actor,
                "revision": row.revision,
                "kind": row.kind,
                "cause": row.cause,
                "state": row.state,
                "resolution": row.resolution,
                "note": row.note or None,
            }
            for row in self._db.read(lambda connection: connection.execute(query).all())
        ]

    def outbox(self, limit: int) -> Sequence[OutboxRow]:
        """Return the oldest unpublished rows; the changes of one gap come in their order."""
        query = select(outbox).order_by(outbox.c.id).limit(limit)
        rows = self._db.read(lambda connection: connection.execute(query).all())
        return [OutboxRow(id=row.id, key=row.key, payload=bytes(row.payload)) for row in rows]

    def outbox_done(self, ids: Sequence[int]) -> None:
        for part in chunks(ids, ROWS_PER_TRANSACTION_MAX):
            statement = delete(outbox).where(outbox.c.id.in_(part))
            self._db.write(lambda connection, statement=statement: connection.execute(statement), counts=False)  # type: ignore[misc]

    def outbox_size(self) -> int:
        return int(self._db.read(lambda connection: connection.execute(select(func.count()).select_from(outbox)).scalar_one()))


# Written once: making a statement anew for every row costs more than running it.
_UPDATE: Final = (
    update(gaps)
    .where(gaps.c.id == bindparam("gap_id"))
    .values({column.name: bindparam(column.name) for column in gaps.c if column.name != "id"})
)


def _as_update(gap: Gap) -> dict[str, Any]:
    columns = _columns(gap)
    return {"gap_id": columns.pop("id"), **columns}


def _one_of_each(changes: Sequence[GapChange], indexes: Sequence[int]) -> Mapping[int, None]:
    """Return the first change of every gap, in order: a second one rests on it."""
    found: dict[str, int] = {}
    for index in indexes:
        found.setdefault(changes[index].gap.id, index)
    return dict.fromkeys(found.values())


def _order(gap: Gap) -> tuple[str, bytes, str]:
    return gap.pipeline, place_of(gap.key), gap.id


def _transactions(changes: Sequence[GapChange]) -> Iterator[Sequence[GapChange]]:
    """Cut changes into what one transaction takes, by number and by what their evidence weighs."""
    start = weight = 0
    for place, change in enumerate(changes):
        more = _weight(change.gap)
        if place > start and (place - start >= CHANGES_AT_ONCE_MAX or weight + more > BYTES_AT_ONCE_MAX):
            yield changes[start:place]
            start, weight = place, 0
        weight += more
    if start < len(changes):
        yield changes[start:]


def _weight(gap: Gap) -> int:
    """Return about how many bytes of row data the evidence holds; the rest of a gap is short."""
    shown = (row["values"] for row in gap.evidence if "values" in row)
    return sum(len(value) if isinstance(value, str) else VALUE_BYTES for values in shown for value in values.values())


def _totals(changes: Sequence[GapChange]) -> Totals:
    """Count changes that all stand: of new gaps, and of gaps that were open."""
    totals: Totals = {}
    for change in changes:
        _count(totals, change, None if change.against is None else State.OPEN.value)
    return totals


def _count(totals: Totals, change: GapChange, state_before: str | None) -> None:
    gap = change.gap
    is_open, was_open = gap.state is not State.RESOLVED, state_before not in (None, State.RESOLVED)
    if is_open and not was_open:  # not what is on record only, and asks for nothing
        key = ("detected", gap.pipeline, gap.kind.value, gap.detector.value)
        totals[key] = totals.get(key, 0) + 1
    if not is_open and state_before != State.RESOLVED:
        key = ("resolved", gap.pipeline, gap.resolution.value if gap.resolution else "", "")
        totals[key] = totals.get(key, 0) + 1


def _filtered(query: Select[Any], where: GapFilter) -> Select[Any]:
    if where.pipeline is not None:
        query = query.where(gaps.c.pipeline == where.pipeline)
    if where.key is not None:
        query = query.where(Place() == place_of(where.key))
    if where.since is not None:
        query = query.where(gaps.c.confirmed_at >= where.since)
    for column, values in ((gaps.c.kind, where.kinds), (gaps.c.state, where.states), (gaps.c.cause, where.causes)):
        if values:
            query = query.where(column.in_([str(value) for value in values]))
    if where.states and State.RESOLVED not in [State(state) for state in where.states]:
        query = query.where(gaps.c.state != RESOLVED)  # as the index of open gaps says it
    return query


def _cursor(row: Row[Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([row.first_seen, row.id])).rstrip(b"=").decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        first_seen, gap_id = msgspec.json.decode(raw, type=tuple[int, str])
        return from_us(first_seen), gap_id
    except (binascii.Error, ValueError, msgspec.MsgspecError, OverflowError) as error:
        raise UsageError("The cursor is not one that Gapwatch gave out.", remedy="Start again without a cursor.") from error


def _columns(gap: Gap) -> dict[str, Any]:
    return {
        "id": gap.id,
        "pipeline": gap.pipeline,
        "key": gap.key,
        "key_hash": key_hash(gap.key),
        "key_fields": gap.key_fields,
        "target_id": gap.target_id,
        "kind": gap.kind.value,
        "cause": gap.cause.value,
        "state": gap.state.value,
        "detector": gap.detector.value,
        "event_time": gap.event_time,
        "first_seen": gap.first_seen,
        "confirmed_at": gap.confirmed_at,
        "resolved_at": gap.resolved_at,
        "resolution": gap.resolution.value if gap.resolution else None,
        "fields": list(gap.fields),
        "occurrences": gap.occurrences,
        "evidence": list(gap.evidence),
        "note": gap.note,
        "opened_by": list(gap.opened_by) if gap.opened_by else None,
        "revision": gap.revision,
        "held_since": gap.held_since,
    }


def gap_of(row: RowMapping) -> Gap:
    """Return the gap of a row that has all columns of its table."""
    return Gap(
        id=row["id"],
        pipeline=row["pipeline"],
        key=bytes(row["key"]),
        key_fields=row["key_fields"],
        target_id=row["target_id"],
        kind=Kind(row["kind"]),
        cause=Cause(row["cause"]),
        state=State(row["state"]),
        detector=Detector(row["detector"]),
        event_time=row["event_time"],
        first_seen=row["first_seen"],
        confirmed_at=row["confirmed_at"],
        resolved_at=row["resolved_at"],
        resolution=Resolution(row["resolution"]) if row["resolution"] else None,
        fields=tuple(row["fields"]),
        occurrences=row["occurrences"],
        evidence=tuple(row["evidence"]),
        note=row["note"],
        opened_by=_token(row["opened_by"]),
        revision=row["revision"],
        held_since=row["held_since"],
    )


def _token(parts: Sequence[int] | None) -> tuple[int, int, int, int] | None:
    if parts is None:
        return None
    side, epoch, major, minor = parts
    return side, epoch, major, minor
