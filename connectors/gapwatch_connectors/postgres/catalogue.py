"""What Postgres' catalogue says of a table, and of the replication slots of its database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gapwatch.errors import StoreRefused
from gapwatch_connectors.postgres.connection import Connection

_TABLE = """
SELECT c.oid, c.relkind::text AS kind, c.relreplident::text AS identity,
       CASE WHEN c.relkind = 'p' THEN
         (SELECT md5(coalesce(string_agg(concat(p.relid::oid, ':', pg_relation_filenode(p.relid)), ',' ORDER BY p.relid::oid),
                              ''))
            FROM pg_partition_tree(c.oid) p)
       ELSE pg_relation_filenode(c.oid)::text END AS storage,
       (SELECT array_agg(DISTINCT leaf.relreplident::text)
          FROM pg_partition_tree(c.oid) p JOIN pg_class leaf ON leaf.oid = p.relid WHERE p.isleaf) AS partitions
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
# Columns of a domain are shown as what the domain is of.
_COLUMNS = """
WITH RECURSIVE base (number, type, modifier) AS (
    SELECT a.attnum, a.atttypid, a.atttypmod FROM pg_attribute a
     WHERE a.attrelid = %(table)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.number, t.typbasetype, CASE WHEN b.modifier = -1 THEN t.typtypmod ELSE b.modifier END
      FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd')
SELECT a.attname AS name, format_type(b.type, b.modifier) AS type_name, format_type(b.type, -1) AS bare, t.typname AS internal,
       a.attstorage::text AS storage, a.attnotnull AS required, a.attgenerated <> '' AS generated,
       CASE WHEN b.type = 'numeric'::regtype AND b.modifier > 4 THEN ((b.modifier - 4) >> 16) & 65535 END AS precision,
       CASE WHEN b.type = 'numeric'::regtype AND b.modifier > 4 THEN (((b.modifier - 4) & 2047) # 1024) - 1024 END AS scale
  FROM pg_attribute a JOIN base b ON b.number = a.attnum JOIN pg_type t ON t.oid = b.type
 WHERE a.attrelid = %(table)s AND t.typtype <> 'd' ORDER BY a.attnum
"""
_INDEXES = """
SELECT i.indisprimary AS primary, i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AS exact,
       i.indisreplident AS identity,
       (SELECT array_agg(a.attname ORDER BY k.place) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (number, place)
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number WHERE k.place <= i.indnkeyatts) AS columns
  FROM pg_index i WHERE i.indrelid = %s AND i.indisvalid
"""
_SLOTS = """
SELECT slot_name, plugin, active, coalesce(wal_status, '') AS wal_status, confirmed_flush_lsn - '0/0' AS confirmed,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() - restart_lsn END AS retained
  FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database() ORDER BY slot_name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. ``bare`` is its type without length or scale, ``internal`` the catalogue's name of it (``int8``)."""

    name: str
    type_name: str
    bare: str
    internal: str
    storage: str
    required: bool
    generated: bool
    precision: int | None
    scale: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table. ``identity`` changes when it is created anew, truncated or rewritten; ``unique`` holds its unique keys."""

    oid: int
    identity: str
    replica_identity: str  # the worst of its partitions' where it has some
    identity_columns: tuple[str, ...]  # what a delete carries, where that is not the whole row
    columns: dict[str, Column]
    primary_key: tuple[str, ...]
    unique: tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A logical replication slot. ``confirmed_flush_lsn`` as a number of bytes; ``retained_bytes`` of log are kept for it."""

    name: str
    plugin: str
    active: bool
    wal_status: str
    confirmed_flush_lsn: int | None
    retained_bytes: int | None

    @property
    def lost(self) -> bool:
        return self.wal_status == "lost"


async def read_table(connection: Connection, store: str, name: str) -> Table:
    """Return what the catalogue says; raises StoreRefused when there is no such table."""
    schema, _, table = name.partition(".")
    found = await (await connection.execute(_TABLE, (schema, table))).fetchone()
    if found is None:
        raise StoreRefused(
            f"There is no table {name}.",
            store=store,
            remedy="Create it, correct its name in the pipeline, or grant USAGE on its schema.",
        )
    rows = await (await connection.execute(_COLUMNS, {"table": found["oid"]})).fetchall()
    indexes = await (await connection.execute(_INDEXES, (found["oid"],))).fetchall()
    primary = next((tuple(index["columns"]) for index in indexes if index["primary"]), ())
    replica = next((tuple(index["columns"]) for index in indexes if index["identity"]), ())
    identity = _worst(found["identity"], found["partitions"] if found["kind"] == "p" else None)
    return Table(
        oid=found["oid"],
        identity=_identity(found),
        replica_identity=identity,
        identity_columns=replica if identity == "i" else primary,
        columns={row["name"]: Column(**row) for row in rows},
        primary_key=primary,
        unique=tuple(frozenset(index["columns"]) for index in indexes if index["exact"] and index["columns"]),
    )


async def read_identity(connection: Connection, name: str) -> str:
    """Return the table's identity alone, ``""`` where there is no such table."""
    schema, _, table = name.partition(".")
    found = await (await connection.execute(_TABLE, (schema, table))).fetchone()
    return _identity(found) if found is not None else ""


def _identity(found: dict[str, Any]) -> str:
    return f"{found['oid']}/{found['storage']}"


def _worst(own: str, partitions: list[str] | None) -> str:
    """Return the identity that says least: partitions do not inherit their parent's, and it is theirs that counts."""
    kinds = [own] if partitions is None else partitions
    return next((kind for kind in "ndif" if kind in kinds), own)


async def read_slots(connection: Connection) -> tuple[Slot, ...]:
    """Return the logical replication slots of this database."""
    rows = await (await connection.execute(_SLOTS)).fetchall()
    return tuple(
        Slot(
            name=row["slot_name"],
            plugin=row["plugin"] or "",
            active=bool(row["active"]),
            wal_status=row["wal_status"],
            confirmed_flush_lsn=int(row["confirmed"]) if row["confirmed"] is not None else None,
            retained_bytes=int(row["retained"]) if row["retained"] is not None else None,
        )
        for row in rows
    )
