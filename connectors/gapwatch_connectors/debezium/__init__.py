"""Kafka Connect's word on the connectors: life, never time."""

from gapwatch_connectors.debezium.client import ConnectRest as ConnectRest
from gapwatch_connectors.debezium.preflight import ConnectorPreflight as ConnectorPreflight
