"""What Kafka's answers mean for the one who writes a captured feed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from gapwatch.errors import ConflictError, GapwatchError, StoreRefused, StoreUnreachable
from gapwatch.kafka import fenced
from gapwatch.kafka.fenced import FencedProducer, Outgoing, examine_transactions
from gapwatch.model.pipeline import Settings, TopicsSpec

SETTINGS = Settings(bootstrap_servers="127.0.0.1:1", topics=TopicsSpec(prefix="g"))
RECORD = Outgoing("feed", 0, b"k", b"v")


class Client:
    """Stands for librdkafka's producer; each call answers what is laid ready for it, then None."""

    made: list[Client]
    ready: dict[str, list[Any]]

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.calls: list[str] = []
        self.made.append(self)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            self.calls.append(name)
            answers = self.ready.get(name, [])
            if answers and (answer := answers.pop(0)) is not None:
                raise answer

        return call


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    Client.made, Client.ready = [], {}
    monkeypatch.setattr(fenced, "Producer", Client)
    return Client


def said(code: int, *, fatal: bool = False, retriable: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "as the broker says", fatal, retriable))


def producer() -> FencedProducer:
    return FencedProducer(SETTINGS, transactional_id="g.capture.orders.target", client_id="test")


async def patiently() -> None: ...


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said(KafkaError._FENCED, fatal=True), ConflictError),
        (said(KafkaError.INVALID_PRODUCER_EPOCH), ConflictError),
        (said(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, fatal=True), StoreRefused),
        (said(KafkaError._MSG_TIMED_OUT), StoreUnreachable),
        (said(KafkaError.UNKNOWN_PRODUCER_ID, fatal=True), StoreUnreachable),
    ],
)
async def test_each_failure_ends_the_holding_and_none_the_process(
    client: type[Client], answer: KafkaException, error: type[GapwatchError]
) -> None:
    client.ready["commit_transaction"] = [answer]
    made = producer()
    await made.take_over(patiently)
    with pytest.raises(error) as raised:
        await made.write([RECORD], patiently)
    assert type(raised.value) is error
    await made.close()
    assert ("abort_transaction" in client.made[0].calls) == (error is not ConflictError), "only its own is undone"


async def test_while_kafka_is_silent_the_lease_is_kept_and_its_loss_ends_the_wait(client: type[Client]) -> None:
    client.ready["init_transactions"] = [said(KafkaError._TIMED_OUT, retriable=True), None]
    client.ready["produce"] = [BufferError(), None]
    client.ready["commit_transaction"] = [said(KafkaError._TIMED_OUT, retriable=True) for _ in range(3)]
    waits: list[str] = []

    async def waiting() -> None:
        waits.append("")
        if len(waits) == 3:
            raise ConflictError("The lease was lost.")

    made = producer()
    await made.take_over(waiting)
    assert len(waits) == 1
    with pytest.raises(ConflictError, match="lease"):
        await made.write([RECORD], waiting)
    await made.close()
    assert client.made[0].calls[-3:] == ["abort_transaction", "purge", "close"]


@pytest.mark.parametrize(
    ("answers", "level", "remedy"),
    [
        ([], "", ""),
        ([said(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, fatal=True)], "error", "transactional ids"),
        ([said(KafkaError._TIMED_OUT, retriable=True)] * 9, "unknown", "transaction.state.log.replication.factor"),
    ],
)
async def test_doctor_asks_for_transactions_by_an_id_that_no_feed_has(
    client: type[Client], answers: list[Any], level: str, remedy: str
) -> None:
    client.ready["init_transactions"] = list(answers)
    found = await examine_transactions(SETTINGS)
    assert [one.level for one in found] == ([level] if level else [])
    assert all(remedy in one.remedy for one in found)
    assert client.made[0].options["transactional.id"] == "g.capture.doctor"
    assert "begin_transaction" not in client.made[0].calls
    assert client.made[0].calls[-1] == "close"
