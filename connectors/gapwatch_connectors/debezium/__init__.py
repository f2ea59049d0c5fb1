"""Kafka Connect's word on the connectors: life, never time."""

from gapwatch_connectors.debezium.client import ConnectRest as ConnectRest
from gapwatch_connectors.debezium.preflight import SHARED_SECONDS as SHARED_SECONDS
from gapwatch_connectors.debezium.preflight import ConnectorPreflight as ConnectorPreflight
from gapwatch_connectors.debezium.signals import signal_topic as signal_topic
from gapwatch_connectors.debezium.signals import snapshot_signal as snapshot_signal
