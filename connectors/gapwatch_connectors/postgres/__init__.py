"""Postgres as a source: reads, heartbeat messages, preflight."""

from gapwatch_connectors.postgres.heartbeat import PostgresHeartbeat as PostgresHeartbeat
from gapwatch_connectors.postgres.preflight import PostgresPreflight as PostgresPreflight
from gapwatch_connectors.postgres.reader import PostgresReader as PostgresReader
