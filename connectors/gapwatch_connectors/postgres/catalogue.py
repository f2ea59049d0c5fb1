"""What Postgres' catalogue says of tables, and of the replication slots of their database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gapwatch.errors import StoreRefused
from gapwatch_connectors.postgres.connection import Connection

# Tables are named by two arrays: schemas and names.
_TABLES = """
SELECT concat(a.schema, '.', a.name) AS name, c.oid, c.relkind::text AS kind, c.relreplident::text AS identity,
       CASE WHEN c.relkind = 'p' THEN
         (SELECT md5(coalesce(string_agg(concat(p.relid::oid, ':', pg_relation_filenode(p.relid)), ',' ORDER BY p.relid::oid),
                              ''))
            FROM pg_partition_tree(c.oid) p)
       ELSE pg_relation_filenode(c.oid)::text END AS storage,
       (SELECT array_agg(DISTINCT leaf.relreplident::text)
          FROM pg_partition_tree(c.oid) p JOIN pg_class leaf ON leaf.oid = p.relid WHERE p.isleaf) AS partitions
  FROM unnest(%(schemas)s::text[], %(names)s::text[]) a (schema, name) JOIN pg_namespace n ON n.nspname = a.schema
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = a.name AND c.relkind IN ('r', 'p')
"""
# Columns of a domain are shown as what the domain is of.
_COLUMNS = """
WITH RECURSIVE base (relation, number, type, modifier) AS (
    SELECT a.attrelid, a.attnum, a.atttypid, a.atttypmod FROM pg_attribute a
     WHERE a.attrelid = ANY(%(tables)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.relation, b.number, t.typbasetype, CASE WHEN b.modifier = -1 THEN t.typtypmod ELSE b.modifier END
      FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd')
SELECT b.relation, a.attname AS name, format_type(b.type, b.modifier) AS type_name, format_type(b.type, -1) AS bare,
       t.typname AS internal, a.attstorage::text AS storage, a.attnotnull AS required, a.attgenerated <> '' AS generated,
       CASE WHEN b.type = 'numeric'::regtype AND b.modifier > 4 THEN ((b.modifier - 4) >> 16) & 65535 END AS precision,
       CASE WHEN b.type = 'numeric'::regtype AND b.modifier > 4 THEN (((b.modifier - 4) & 2047) # 1024) - 1024 END AS scale
  FROM base b JOIN pg_attribute a ON a.attrelid = b.relation AND a.attnum = b.number JOIN pg_type t ON t.oid = b.type
 WHERE t.typtype <> 'd' ORDER BY a.attrelid, a.attnum
"""
_INDEXES = """
SELECT i.indrelid AS relation, i.indisprimary AS primary, i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AS exact,
       i.indisreplident AS identity,
       (SELECT array_agg(a.attname ORDER BY k.place) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (number, place)
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number WHERE k.place <= i.indnkeyatts) AS columns
  FROM pg_index i WHERE i.indrelid = ANY(%(tables)s::oid[]) AND i.indisvalid
"""
# What a slot has decoded is counted from Postgres 14 on.
_SLOTS = """
SELECT s.slot_name, s.plugin, s.active, s.active_pid, coalesce(s.wal_status, '') AS wal_status,
       s.confirmed_flush_lsn - '0/0' AS confirmed, s.restart_lsn - '0/0' AS restart,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() - s.restart_lsn END AS retained,
       {counted}
  FROM pg_replication_slots s {counts} WHERE s.slot_type = 'logical' AND s.database = current_database() ORDER BY s.slot_name
"""
_COUNTED = "c.total_txns AS transactions, c.stats_reset::text AS counted_since"
_UNCOUNTED = "NULL AS transactions, NULL AS counted_since"
_COUNTS = "LEFT JOIN pg_stat_replication_slots c ON c.slot_name = s.slot_name"
_COUNTS_SINCE = 140_000
# The timeline of the last checkpoint is that of a standby; a server that took over writes to its own at once.
_SERVER = """
SELECT pg_is_in_recovery() AS standby, {system} AS system,
       CASE WHEN pg_is_in_recovery() THEN {timeline}
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END AS timeline,
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END) - '0/0' AS written,
       pg_postmaster_start_time()::text AS started, {counted} AS counted_since
"""
# A hosted Postgres may keep these to itself: then a cluster and a standby's timeline are not told apart.
_MAY_ASK = """
SELECT has_function_privilege('pg_control_system()', 'EXECUTE') AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE')
    AS control
"""
_SYSTEM = "(SELECT system_identifier::text FROM pg_control_system())"
_TIMELINE = "(SELECT timeline_id FROM pg_control_checkpoint())"
_FILES = """
SELECT root.name, l.id::oid::text AS relation, pg_relation_filenode(l.id)::text AS file
  FROM (SELECT concat(a.schema, '.', a.name) AS name, c.oid AS id
          FROM unnest(%(schemas)s::text[], %(names)s::text[]) a (schema, name) JOIN pg_namespace n ON n.nspname = a.schema
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = a.name AND c.relkind IN ('r', 'p')) root,
       LATERAL (SELECT root.id UNION SELECT relid FROM pg_partition_tree(root.id)) l (id)
 WHERE pg_relation_filenode(l.id) IS NOT NULL
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
    """A logical replication slot. Positions as numbers of bytes; ``retained_bytes`` of log are kept for it.

    ``active_pid``: the session that reads it. ``transactions``: how many it has decoded (None: nobody counts), ``counted_since``
    somebody began to count anew (None: since the slot was made).
    """

    name: str
    plugin: str
    active: bool
    wal_status: str
    confirmed_flush_lsn: int | None
    retained_bytes: int | None
    restart_lsn: int | None = None
    active_pid: int | None = None
    transactions: int | None = None
    counted_since: str | None = None

    @property
    def lost(self) -> bool:
        return self.wal_status == "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Which server answers: ``system`` names its cluster, ``written`` is the end of its log in bytes (of a standby: replayed).

    ``started`` and ``counted_since`` (all its counters begin anew after a crash) are times as text, to be compared only.
    """

    standby: bool
    system: str
    timeline: int
    written: int
    started: str
    counted_since: str | None


async def read_server(connection: Connection) -> Server:
    counted = "(SELECT stats_reset::text FROM pg_stat_wal)" if _counts(connection) else "NULL"
    may = await (await connection.execute(_MAY_ASK)).fetchone()
    asked = {"system": _SYSTEM, "timeline": _TIMELINE} if may and may["control"] else {"system": "''", "timeline": "0"}
    row = await (await connection.execute(_SERVER.format(counted=counted, **asked))).fetchone()
    assert row is not None  # it has no FROM
    return Server(**{**row, "written": int(row["written"])})


async def read_files(connection: Connection, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Return, by table, the number of each relation of it (itself, its partitions) that has a file, and that of the file."""
    files: dict[str, dict[str, str]] = {name: {} for name in names}
    for row in await (await connection.execute(_FILES, _named(names))).fetchall():
        files[row["name"]][row["relation"]] = row["file"]
    return files


def _counts(connection: Connection) -> bool:
    return connection.info.server_version >= _COUNTS_SINCE


async def read_table(connection: Connection, store: str, name: str) -> Table:
    """Return what the catalogue says; raises StoreRefused when there is no such table."""
    return of_table(await read_tables(connection, [name]), store, name)


def of_table(tables: Mapping[str, Table], store: str, name: str) -> Table:
    """Return one of the tables that were found; raises StoreRefused when there is no such table."""
    if name not in tables:
        raise StoreRefused(
            f"There is no table {name}.",
            store=store,
            remedy="Create it, correct its name in the pipeline, or grant USAGE on its schema.",
        )
    return tables[name]


async def read_tables(connection: Connection, names: Collection[str]) -> dict[str, Table]:
    """Return what the catalogue says of those that are there."""
    found = await (await connection.execute(_TABLES, _named(names))).fetchall()
    if not found:
        return {}
    tables = {"tables": [row["oid"] for row in found]}
    columns = _by_relation(await (await connection.execute(_COLUMNS, tables)).fetchall())
    indexes = _by_relation(await (await connection.execute(_INDEXES, tables)).fetchall())
    return {row["name"]: _table(row, columns.get(row["oid"], []), indexes.get(row["oid"], [])) for row in found}


async def read_identity(connection: Connection, name: str) -> str:
    """Return the table's identity alone, ``""`` where there is no such table."""
    found = await (await connection.execute(_TABLES, _named([name]))).fetchone()
    return _identity(found) if found is not None else ""


def _table(found: Mapping[str, Any], columns: list[dict[str, Any]], indexes: list[dict[str, Any]]) -> Table:
    primary = next((tuple(index["columns"]) for index in indexes if index["primary"]), ())
    replica = next((tuple(index["columns"]) for index in indexes if index["identity"]), ())
    identity = _worst(found["identity"], found["partitions"] if found["kind"] == "p" else None)
    return Table(
        oid=found["oid"],
        identity=_identity(found),
        replica_identity=identity,
        identity_columns=replica if identity == "i" else primary,
        columns={row["name"]: Column(**row) for row in columns},
        primary_key=primary,
        unique=tuple(frozenset(index["columns"]) for index in indexes if index["exact"] and index["columns"]),
    )


def _named(names: Collection[str]) -> dict[str, list[str]]:
    parts = [name.partition(".") for name in names]
    return {"schemas": [schema for schema, _, _ in parts], "names": [table for _, _, table in parts]}


def _by_relation(rows: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.pop("relation"), []).append(row)
    return found


def _identity(found: Mapping[str, Any]) -> str:
    return f"{found['oid']}/{found['storage']}"


def _worst(own: str, partitions: list[str] | None) -> str:
    """Return the identity that says least: partitions do not inherit their parent's, and it is theirs that counts."""
    kinds = [own] if partitions is None else partitions
    return next((kind for kind in "ndif" if kind in kinds), own)


async def read_slots(connection: Connection) -> tuple[Slot, ...]:
    """Return the logical replication slots of this database."""
    counts = _counts(connection)
    statement = _SLOTS.format(counted=_COUNTED if counts else _UNCOUNTED, counts=_COUNTS if counts else "")
    rows = await (await connection.execute(statement)).fetchall()
    return tuple(
        Slot(
            name=row["slot_name"],
            plugin=row["plugin"] or "",
            active=bool(row["active"]),
            wal_status=row["wal_status"],
            confirmed_flush_lsn=int(row["confirmed"]) if row["confirmed"] is not None else None,
            retained_bytes=int(row["retained"]) if row["retained"] is not None else None,
            restart_lsn=int(row["restart"]) if row["restart"] is not None else None,
            active_pid=row["active_pid"],
            transactions=row["transactions"],
            counted_since=row["counted_since"],
        )
        for row in rows
    )
