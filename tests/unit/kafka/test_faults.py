"""Which of librdkafka's errors waiting cures, which a person must cure, and which end the process."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from gapwatch.errors import FeedError, GapwatchError, HistoryLost, ProtocolError, StoreRefused, StoreUnreachable
from gapwatch.kafka.faults import gapwatch_error, is_membership_lost


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._TRANSPORT, StoreUnreachable),
        (KafkaError._ALL_BROKERS_DOWN, StoreUnreachable),
        (KafkaError._MSG_TIMED_OUT, StoreUnreachable),
        (KafkaError.NOT_ENOUGH_REPLICAS, StoreUnreachable),
        (KafkaError.FENCED_LEADER_EPOCH, StoreUnreachable),
        (KafkaError._AUTHENTICATION, StoreRefused),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, StoreRefused),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, StoreRefused),
        (KafkaError.MSG_SIZE_TOO_LARGE, StoreRefused),
        (KafkaError.OFFSET_OUT_OF_RANGE, HistoryLost),
        (KafkaError._AUTO_OFFSET_RESET, HistoryLost),
        (KafkaError.PRODUCER_FENCED, ProtocolError),
        (KafkaError._BAD_MSG, FeedError),
    ],
)
def test_errors_are_told_apart_by_code(code: int, kind: type[GapwatchError]) -> None:
    for error in (KafkaError(code), KafkaException(KafkaError(code))):
        found = gapwatch_error(error, "do it")
        assert type(found) is kind
        assert "could not do it" in found.message
        assert found.retriable == (kind is StoreUnreachable)
        assert bool(found.remedy) == (kind not in (HistoryLost, FeedError))


def test_a_fatal_error_ends_the_process_whatever_its_code() -> None:
    assert type(gapwatch_error(KafkaError(KafkaError._TRANSPORT, "x", fatal=True), "go on")) is ProtocolError


def test_an_exception_without_an_error_of_kafka_keeps_its_text() -> None:
    assert "something else" in str(gapwatch_error(KafkaException("something else"), "go on"))


def test_a_group_that_went_on_is_no_failure() -> None:
    assert is_membership_lost(KafkaError(KafkaError.ILLEGAL_GENERATION))
    assert not is_membership_lost(KafkaError(KafkaError._TRANSPORT))
