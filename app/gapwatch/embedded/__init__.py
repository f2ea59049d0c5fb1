"""Real parts started from packages, without Docker: Kafka, Kafka Connect with Debezium, Postgres, MongoDB, OpenSearch, Apicurio.

For the demo and the tests. Everything listens on loopback, on free ports, in a throw-away directory, and ends with its parent.
"""

from __future__ import annotations

from gapwatch.embedded.connect import (
    ConnectClient,
    debezium_mongodb_sink_config,
    mongo_sink_config,
    mongodb_source_config,
    postgres_source_config,
)
from gapwatch.embedded.opensearch import OpenSearchPart
from gapwatch.embedded.parts import ConnectPart, KafkaPart, MongoPart, Part, PostgresPart
from gapwatch.embedded.schema_registry import SchemaRegistryPart
from gapwatch.embedded.stack import EmbeddedStack

__all__ = [
    "ConnectClient",
    "ConnectPart",
    "EmbeddedStack",
    "KafkaPart",
    "MongoPart",
    "OpenSearchPart",
    "Part",
    "PostgresPart",
    "SchemaRegistryPart",
    "debezium_mongodb_sink_config",
    "mongo_sink_config",
    "mongodb_source_config",
    "postgres_source_config",
]
