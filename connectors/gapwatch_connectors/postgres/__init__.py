"""Postgres as a source and as a target: reads, guarded writes, heartbeat messages, preflight."""

from gapwatch_connectors.postgres.heartbeat import PostgresHeartbeat as PostgresHeartbeat
from gapwatch_connectors.postgres.history import PostgresHistory as PostgresHistory
from gapwatch_connectors.postgres.partitions import PostgresSourcePreflight as PostgresSourcePreflight
from gapwatch_connectors.postgres.preflight import PostgresPreflight as PostgresPreflight
from gapwatch_connectors.postgres.reader import PostgresReader as PostgresReader
from gapwatch_connectors.postgres.tables import PostgresTables as PostgresTables
from gapwatch_connectors.postgres.target import PostgresTargetPreflight as PostgresTargetPreflight
from gapwatch_connectors.postgres.target import PostgresTargetReader as PostgresTargetReader
from gapwatch_connectors.postgres.target import as_source as as_source
from gapwatch_connectors.postgres.writer import PostgresWriter as PostgresWriter
