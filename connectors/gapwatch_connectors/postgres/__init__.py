"""Postgres as a source: reads, heartbeat messages, preflight."""

from gapwatch_connectors.postgres.heartbeat import PostgresHeartbeat as PostgresHeartbeat
from gapwatch_connectors.postgres.partitions import PostgresSourcePreflight as PostgresSourcePreflight
from gapwatch_connectors.postgres.preflight import PostgresPreflight as PostgresPreflight
from gapwatch_connectors.postgres.reader import PostgresReader as PostgresReader
from gapwatch_connectors.postgres.tables import PostgresTables as PostgresTables
