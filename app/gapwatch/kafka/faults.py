"""librdkafka's errors as ours: what to wait for, what to tell a person, what must stop the process."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from gapwatch.errors import FeedError, GapwatchError, HistoryLost, ProtocolError, StoreRefused, StoreUnreachable

STORE: Final = "kafka"

_REFUSED: Final[dict[int, str]] = {
    KafkaError._AUTHENTICATION: "Check security.protocol, sasl.* and ssl.* in kafka.options.",
    KafkaError.SASL_AUTHENTICATION_FAILED: "Check sasl.username and sasl.password in kafka.options.",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "Check sasl.mechanisms in kafka.options.",
    KafkaError.ILLEGAL_SASL_STATE: "Check security.protocol in kafka.options.",
    KafkaError._SSL: "Check ssl.ca.location and the certificate in kafka.options.",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "Grant this user Read and Write on Gapwatch's topics, Read on the raw ones.",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "Grant this user Read on Gapwatch's consumer groups.",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "Grant this user IdempotentWrite and Create on the cluster.",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "Grant this user Write on Gapwatch's transactional ids.",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "Create it, or correct its name in the configuration.",
    KafkaError._UNKNOWN_TOPIC: "Create it, or correct its name in the configuration.",
    KafkaError._UNKNOWN_PARTITION: "It has fewer partitions than configured: see `gapwatch doctor`.",
    KafkaError.MSG_SIZE_TOO_LARGE: "Raise max.message.bytes of the topic (and message.max.bytes of the broker).",
    KafkaError.POLICY_VIOLATION: "The cluster's policy forbids these topic settings: create the topics yourself.",
    KafkaError.INVALID_REPLICATION_FACTOR: "Set kafka.replication to at most the number of brokers.",
    KafkaError._INVALID_ARG: "Check kafka.options: names and values are librdkafka's.",
}
_STOP: Final = frozenset(
    {
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._GAPLESS_GUARANTEE,
    }
)
_LOST: Final = frozenset({KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION})
_SILENT: Final = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.NOT_CONTROLLER,
        KafkaError.FENCED_LEADER_EPOCH,  # the leader changed, and our metadata is behind or ahead of it
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
    }
)
_MOVED: Final = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError._MAX_POLL_EXCEEDED,
    }
)


def is_membership_lost(error: KafkaError) -> bool:
    """Say whether the group went on without us: what we wanted to commit is another member's now."""
    return error.code() in _MOVED


def gapwatch_error(error: KafkaError | KafkaException, doing: str) -> GapwatchError:
    """Return our error for librdkafka's. ``doing`` completes "Kafka: could not …"."""
    fault = error.args[0] if isinstance(error, KafkaException) else error
    if not isinstance(fault, KafkaError):
        return FeedError(f"Kafka: could not {doing}: {fault}.")
    code, text = fault.code(), f"Kafka: could not {doing}: {fault.str()} ({fault.name()})."
    if fault.fatal() or code in _STOP:
        return ProtocolError(text, remedy="The process must restart: its identity or sequence was taken over.")
    if code in _LOST:
        return HistoryLost(text)
    if code in _REFUSED:
        return StoreRefused(text, store=STORE, remedy=_REFUSED[code])
    if code in _SILENT or fault.retriable():
        return StoreUnreachable(text, store=STORE, remedy="Check that the brokers in bootstrap_servers run and can be reached.")
    return FeedError(text)
