"""Epochs of feeds, small facts, and leases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, bindparam, case, delete, func, or_, select, tuple_, update

from gapwatch.errors import ConflictError, StoreUnreachable
from gapwatch.ledger.part import LedgerPart
from gapwatch.ledger.tables import epochs, facts, leases
from gapwatch.ledger.types import from_us
from gapwatch.ports import Lease

MICROSECONDS: Final = 1_000_000
EPOCH_ATTEMPTS_MAX: Final = 20


class FactQueries(LedgerPart):
    """Implements the epoch, fact and lease methods of :class:`gapwatch.ports.Ledger`."""

    def epoch(self, feed: str, partition: int, topic_id: str, offset: int, *, after: int = 0) -> int:
        """Return the number (1, 2, …) of the epoch that begins at (topic id, partition, offset).

        Insert-once: whoever asks first fixes the number, above `after`; everybody else gets the same one.
        """
        mine = (epochs.c.feed == feed, epochs.c.partition == partition)

        def number(connection: Connection) -> int | None:
            known = select(epochs.c.number).where(*mine, epochs.c.topic_id == topic_id, epochs.c.begins_at == offset)
            found = connection.execute(known).scalar_one_or_none()
            if found is not None:
                return int(found)
            last = connection.execute(select(func.max(epochs.c.number)).where(*mine)).scalar_one()
            statement = self._db.insert(epochs).values(
                feed=feed, partition=partition, topic_id=topic_id, begins_at=offset, number=max(last or 0, after) + 1
            )
            inserted = connection.execute(statement.on_conflict_do_nothing().returning(epochs.c.number)).scalar_one_or_none()
            return None if inserted is None else int(inserted)

        for _ in range(EPOCH_ATTEMPTS_MAX):  # None: somebody took the number at the same moment
            answer = self._db.write(number, counts=False)
            if answer is not None:
                return answer
        raise StoreUnreachable("Too many workers ask the ledger for an epoch of one feed at once.", store="ledger")

    def newest_epoch(self, feed: str, partition: int, topic_id: str) -> int:
        """Return the number of the last epoch that began in this topic; where none has, of the one that begins with its log."""
        mine = (epochs.c.feed == feed, epochs.c.partition == partition, epochs.c.topic_id == topic_id)
        query = select(func.max(epochs.c.number)).where(*mine)
        found = self._db.read(lambda connection: connection.execute(query).scalar_one())
        return int(found) if found is not None else self.epoch(feed, partition, topic_id, 0)

    def facts(self, *prefixes: str) -> Mapping[str, Any]:
        """Return all facts whose name begins with one of these, exactly as written (no wildcards, no folding of case)."""
        query = select(facts).order_by(facts.c.name)
        if prefixes:
            query = query.where(or_(*(func.substr(facts.c.name, 1, len(prefix)) == prefix for prefix in prefixes)))
        return {row.name: row.value for row in self._db.read(lambda connection: connection.execute(query).all())}

    def fact(self, name: str) -> Any | None:
        query = select(facts.c.value).where(facts.c.name == name)
        return self._db.read(lambda connection: connection.execute(query).scalar_one_or_none())

    def set_fact(self, name: str, value: Any, *, under: Lease | None = None) -> None:
        """Store a small JSON value by name; None forgets it.

        Under a lease: ConflictError once it was taken anew, by whomever; until then it is stored, even if the lease has expired.
        """
        statement = self._storing(name, value)

        def store(connection: Connection) -> None:
            if under is not None and not self._is_held(connection, under):
                raise ConflictError(f"The lease {under.name} was taken by another.")
            connection.execute(statement)

        self._db.write(store, counts=False)

    def set_facts_under(self, values: Sequence[tuple[str, Any, Lease]]) -> Sequence[bool]:
        """Store each value by name, unless its lease was taken anew: then False in its place.

        In Postgres one after the other: whoever holds several leases there, in another order than who renews them, may wait for
        him while he waits.
        """
        if not self._db.is_sqlite:
            return [stored for one in values for stored in self._store_under([one])]
        return self._store_under(values)

    def _store_under(self, values: Sequence[tuple[str, Any, Lease]]) -> Sequence[bool]:
        def store(connection: Connection) -> Sequence[bool]:
            said = {"held": [(lease.name, lease.holder, lease.fencing) for _, _, lease in values]}
            still = {tuple(row) for row in connection.execute(self._still_held, said)}
            held = [(lease.name, lease.holder, lease.fencing) in still for _, _, lease in values]
            kept = {name: value for (name, value, _), is_held in zip(values, held, strict=True) if is_held}
            if kept:
                connection.execute(self._storing_all(kept))
            return held

        return self._db.write(store, counts=False)

    def _storing(self, name: str, value: Any) -> Any:
        if value is None:
            return delete(facts).where(facts.c.name == name)
        insert = self._db.insert(facts).values(name=name, value=value)
        return insert.on_conflict_do_update(index_elements=[facts.c.name], set_={"value": insert.excluded.value})

    def _is_held(self, connection: Connection, lease: Lease) -> bool:
        """Whether the lease was not taken anew; then it is not before this transaction ends."""
        mine = (leases.c.name == lease.name, leases.c.holder == lease.holder, leases.c.fencing == lease.fencing)
        return connection.execute(select(leases.c.name).where(*mine).with_for_update(read=True)).first() is not None

    def set_facts(self, values: Mapping[str, Any]) -> None:
        """Store several small JSON values at once."""
        if values:
            statement = self._storing_all(values)
            self._db.write(lambda connection: connection.execute(statement), counts=False)

    def _storing_all(self, values: Mapping[str, Any]) -> Any:
        insert = self._db.insert(facts).values([{"name": name, "value": value} for name, value in values.items()])
        return insert.on_conflict_do_update(index_elements=[facts.c.name], set_={"value": insert.excluded.value})

    @cached_property
    def _still_held(self) -> Any:
        mine = tuple_(leases.c.name, leases.c.holder, leases.c.fencing)
        return select(*mine.clauses).where(mine.in_(bindparam("held", expanding=True))).with_for_update(read=True)

    def take_lease(self, name: str, holder: str, *, seconds: float) -> Lease | None:
        """Take a free or expired lease; None while somebody holds it (also when that is `holder`: it has `renew_lease`).

        The fencing number rises with every taking and never falls, so that what a frozen holder does late can be refused.
        """
        until = self._db.now() + int(seconds * MICROSECONDS)
        insert = self._db.insert(leases).values(name=name, holder=holder, fencing=1, expires_us=until)
        statement = insert.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": insert.excluded.holder, "fencing": leases.c.fencing + 1, "expires_us": insert.excluded.expires_us},
            where=leases.c.expires_us <= self._db.now(),
        ).returning(leases)
        row = self._db.write(lambda connection: connection.execute(statement).one_or_none(), counts=False)
        return None if row is None else _lease(row)

    def renew_lease(self, lease: Lease, *, seconds: float) -> Lease | None:
        """Prolong a lease that has not expired; None when it did, even if nobody took it: take it anew then."""
        statement = (
            update(leases)
            .where(
                leases.c.name == lease.name,
                leases.c.holder == lease.holder,
                leases.c.fencing == lease.fencing,
                leases.c.expires_us > self._db.now(),
            )
            .values(expires_us=self._db.now() + int(seconds * MICROSECONDS))
            .returning(leases)
        )
        row = self._db.write(lambda connection: connection.execute(statement).one_or_none(), counts=False)
        return None if row is None else _lease(row)

    def renew_leases(self, held: Sequence[Lease], *, seconds: float) -> Sequence[Lease]:
        """Renew several leases at once; return those that were still ours, as they are now."""
        said = {"held": [(one.name, one.holder, one.fencing) for one in held], "for_us": int(seconds * MICROSECONDS)}
        statement = self._renewal
        return [_lease(row) for row in self._db.write(lambda connection: connection.execute(statement, said).all(), counts=False)]

    @cached_property
    def _renewal(self) -> Any:
        mine = tuple_(leases.c.name, leases.c.holder, leases.c.fencing).in_(bindparam("held", expanding=True))
        later = self._db.now() + bindparam("for_us", type_=BigInteger())
        return update(leases).where(mine, leases.c.expires_us > self._db.now()).values(expires_us=later).returning(leases)

    def release_lease(self, lease: Lease) -> None:
        """Let go at once, where it still is ours; the fencing number stays remembered."""
        statement = (
            update(leases)
            .where(leases.c.name == lease.name, leases.c.holder == lease.holder, leases.c.fencing == lease.fencing)
            .values(expires_us=0)
        )
        self._db.write(lambda connection: connection.execute(statement), counts=False)

    def holds(self, lease: Lease) -> bool:
        """Whether the lease is still ours by the database's clock."""
        query = select(case((leases.c.expires_us > self._db.now(), 1), else_=0)).where(
            leases.c.name == lease.name, leases.c.holder == lease.holder, leases.c.fencing == lease.fencing
        )
        return self._db.read(lambda connection: connection.execute(query).scalar_one_or_none()) == 1


def _lease(row: Any) -> Lease:
    return Lease(name=row.name, holder=row.holder, fencing=row.fencing, expires_at=from_us(row.expires_us))
