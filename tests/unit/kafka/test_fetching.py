"""How a consumer is polled beside the module that fetches for it; the module is made up, `native/tests` has the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from gapwatch.errors import HistoryLost
from gapwatch.kafka.clients import RawConsumer
from gapwatch.kafka.fetching import GROUP_SECONDS, PLUGINS, Fetching, fetching_for
from gapwatch.kafka.options import Partition
from gapwatch.model.pipeline import Settings

NOTHING: tuple[list[Any], list[Any], list[Any]] = ([], [], [])


class Group:
    """A consumer that says what it is told to; notes how it was asked."""

    def __init__(self, *answers: Sequence[Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, float]] = []

    def consume(self, limit: int, timeout: float) -> Sequence[Any]:
        self.asked.append((limit, timeout))
        return self.answers.pop(0) if self.answers else []


class Fetcher:
    def __init__(self, consumer: Any, *answers: Any, known: bool = True) -> None:
        self.consumer = consumer
        self.answers = list(answers)
        self.asked: list[tuple[int, float]] = []
        self.forwarded: list[Any] = []
        self.closed = 0
        self._known = known

    def fetch(self, limit: int, seconds: float) -> Any:
        self.asked.append((limit, seconds))
        return self.answers.pop(0) if self.answers else NOTHING

    def forward(self, partitions: list[tuple[str, int]]) -> bool:
        self.forwarded += partitions
        return self._known

    def close(self) -> None:
        self.closed += 1


def test_what_is_fetched_is_told_by_partition() -> None:
    brought = [("t", 0, ["a", "b"]), ("t", 1, ["c"])], [("t", 1, 7)], [(("t", 2), KafkaError._AUTO_OFFSET_RESET, "gone")]
    fetched = Fetching(Fetcher(Group(), brought)).fetch(100, 5.0)
    assert (fetched.runs, fetched.ends) == ({Partition("t", 0): ["a", "b"], Partition("t", 1): ["c"]}, {Partition("t", 1): 7})
    ((where, fault),) = fetched.faults
    assert where == Partition("t", 2)
    assert isinstance(fault, HistoryLost)


def test_a_fault_of_no_partition_is_the_clients() -> None:
    faults = [(None, KafkaError._ALL_BROKERS_DOWN, "x"), (("t", -1), KafkaError._TRANSPORT, "y")]
    fetched = Fetching(Fetcher(Group(), ([], [], faults))).fetch(1, 1.0)
    assert [where for where, _ in fetched.faults] == [None, None]


def test_the_group_is_heard_again_and_again_while_nothing_arrives() -> None:
    group = Group()
    fetcher = Fetcher(group, NOTHING, NOTHING, ([("t", 0, ["a"])], [], []))
    assert Fetching(fetcher).fetch(1, 10.0).runs == {Partition("t", 0): ["a"]}
    assert group.asked == [(1, 0)] * 3
    assert fetcher.asked == [(1, GROUP_SECONDS)] * 3


def test_it_waits_no_longer_than_it_was_told() -> None:
    fetcher = Fetcher(Group())
    assert not Fetching(fetcher).fetch(1, 2.5 * GROUP_SECONDS).runs
    assert sum(seconds for _, seconds in fetcher.asked) == pytest.approx(2.5 * GROUP_SECONDS)
    assert len(fetcher.asked) == 3


def test_what_the_consumer_itself_brings_is_not_kept_waiting() -> None:
    fetcher = Fetcher(Group(["an error of the group"]))
    fetched = Fetching(fetcher).fetch(1, 10.0)
    assert fetched.others == ["an error of the group"]
    assert fetcher.asked == [(1, 0.0)]


def test_partitions_that_librdkafka_does_not_know_stay_with_the_consumer() -> None:
    fetcher = Fetcher(Group(), known=False)
    Fetching(fetcher).forward([Partition("t", 1)])
    assert fetcher.forwarded == [("t", 1)]


def module(fetcher: Callable[..., Any], *, available: bool = True) -> Any:
    made: Any = ModuleType("made_up")
    made.__file__ = "/made/up.so"

    class Making:
        def __new__(cls, make: Callable[[], Any]) -> Any:
            return fetcher(make)

        @staticmethod
        def available() -> bool:
            return available

    made.Fetcher = Making
    return made


def noting(made: list[dict[str, Any]]) -> Any:
    def make(options: dict[str, Any]) -> Any:
        made.append(options)
        return made

    return make


def through(make: Callable[[], Any]) -> Fetcher:
    return Fetcher(make())


def test_the_consumer_is_made_with_the_module_as_its_plugin() -> None:
    made: list[dict[str, Any]] = []
    consumer, fetching = fetching_for(module(through), {"a": 1}, noting(made))
    assert (consumer, made) == (made, [{"a": 1, PLUGINS: "/made/up.so"}])
    assert fetching is not None


@pytest.mark.parametrize(
    ("native", "options"),
    [(None, {}), (module(through, available=False), {}), (module(through), {PLUGINS: "theirs.so"})],
    ids=["no module", "no librdkafka", "plugins of the user's"],
)
def test_without_what_it_needs_the_consumer_fetches_itself(native: Any, options: dict[str, Any]) -> None:
    made: list[dict[str, Any]] = []
    _, fetching = fetching_for(native, options, noting(made))
    assert (fetching, made) == (None, [options])


@pytest.mark.parametrize("error", [RuntimeError("did not load"), KafkaException(KafkaError(KafkaError._INVALID_ARG))])
def test_a_plugin_that_does_not_load_is_done_without(error: Exception) -> None:
    def failing(make: Callable[[], Any]) -> Any:
        make()
        raise error

    made: list[dict[str, Any]] = []
    _, fetching = fetching_for(module(failing), {"a": 1}, noting(made))
    assert fetching is None
    assert made[-1] == {"a": 1}


async def test_a_member_fetches_through_the_module_and_closes_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Fetcher] = []

    def making(make: Callable[[], Consumer]) -> Fetcher:
        made.append(Fetcher(make(), ([("t", 0, ["message"])], [("t", 0, 1)], [])))
        return made[-1]

    def consumer(options: dict[str, Any]) -> Consumer:
        options.pop(PLUGINS)
        return Consumer(options)

    monkeypatch.setattr("gapwatch.kafka.clients.Consumer", consumer)
    settings = Settings(bootstrap_servers="127.0.0.1:1", pipelines={})
    raw = RawConsumer(settings, client_id="one", group="g", native=module(making))
    polled = await raw.consume(10, seconds=0.01)
    assert (polled.runs, polled.ends) == ({Partition("t", 0): ["message"]}, {Partition("t", 0): 1})
    await raw.close()
    assert made[0].closed == 1


async def test_a_consumer_of_no_group_needs_no_module() -> None:
    settings = Settings(bootstrap_servers="127.0.0.1:1", pipelines={})
    raw = RawConsumer(settings, client_id="one", native=module(lambda make: pytest.fail("asked")))
    assert raw._fetching is None
    await raw.close()
