"""MongoDB: reads, guarded writes, its change stream, preflight; a collection may be either side of a pipeline."""

from gapwatch_connectors.mongodb.feed import MongoChangeStream as MongoChangeStream
from gapwatch_connectors.mongodb.heartbeat import MongoHeartbeat as MongoHeartbeat
from gapwatch_connectors.mongodb.preflight import MongoPreflight as MongoPreflight
from gapwatch_connectors.mongodb.reader import MongoReader as MongoReader
from gapwatch_connectors.mongodb.source import as_target as as_target
from gapwatch_connectors.mongodb.writer import MongoWriter as MongoWriter
