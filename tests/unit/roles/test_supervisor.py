"""A role that fails is started anew, later each time, and the others do not notice."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreUnreachable
from gapwatch.roles import supervisor
from gapwatch.roles.supervisor import Supervised, Supervisor, Task

FAILURES = 4
PAUSES = (0.02, 0.04, 0.08, 0.16)


@dataclass
class Seen:
    starts: dict[str, list[float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    up: dict[str, bool] = field(default_factory=dict)


def supervised(seen: Seen, **makes: Task) -> Supervisor:
    clock = SystemClock()

    def task(name: str, run: Task) -> Supervised:
        async def counted(stop: asyncio.Event) -> None:
            seen.starts.setdefault(name, []).append(clock.monotonic())
            await run(stop)

        return Supervised(name=name, make=lambda: counted)

    def failed(name: str) -> None:
        seen.failures[name] += 1

    return Supervisor(
        tasks=[task(name, run) for name, run in makes.items()],
        clock=clock,
        on_up=lambda name, up: seen.up.update({name: up}),
        on_failure=failed,
    )


async def forever(stop: asyncio.Event) -> None:
    await stop.wait()


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


async def stop_when(condition: Callable[[], bool], stop: asyncio.Event) -> None:
    await until(condition)
    stop.set()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", PAUSES[0])
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS_MAX", PAUSES[-1])
    monkeypatch.setattr(supervisor, "DRAIN_SECONDS", 0.2)


async def test_k6_a_task_that_raises_is_started_anew_with_growing_pauses_and_the_others_run_on() -> None:
    seen, stop = Seen(), asyncio.Event()

    async def broken(_: asyncio.Event) -> None:
        if len(seen.starts["broken"]) <= FAILURES:
            raise ValueError("a bug")
        await forever(stop)

    watched = supervised(seen, broken=broken, sound=forever)
    running = asyncio.create_task(watched.run(stop))
    while seen.failures["broken"] < FAILURES:
        assert watched.readiness().get("sound", "ok") == "ok"
        await asyncio.sleep(0.005)
    await stop_when(lambda: len(seen.starts["broken"]) == FAILURES + 1 and seen.up["broken"], stop)
    await running
    starts = seen.starts["broken"]
    for before, after, pause in zip(starts[:-1], starts[1:], PAUSES, strict=True):
        assert after - before >= pause * 0.9
    assert seen.failures == {"broken": FAILURES}
    assert len(seen.starts["sound"]) == 1
    assert seen.up == {"broken": False, "sound": False}
    assert watched.health["broken"].reason == "ValueError: a bug"


async def test_k6_readiness_names_the_failed_role_and_why() -> None:
    seen, stop = Seen(), asyncio.Event()

    async def away(_: asyncio.Event) -> None:
        raise ExceptionGroup("tasks", [StoreUnreachable("Kafka does not answer.", remedy="Start it.")])

    watched = supervised(seen, ingest=away, api=forever)
    running = asyncio.create_task(watched.run(stop))
    await stop_when(lambda: seen.failures["ingest"] == 1 and watched.health["ingest"].state == "failed", stop)
    assert watched.readiness() == {"ingest": "failed: Kafka does not answer. Start it.", "api": "ok"}
    await running


async def test_k6_a_cancellation_from_within_is_a_failure_like_any_other() -> None:
    seen, stop = Seen(), asyncio.Event()

    async def cancelled(_: asyncio.Event) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    running = asyncio.create_task(supervised(seen, repair=cancelled, api=forever).run(stop))
    await stop_when(lambda: seen.failures["repair"] == 2, stop)
    await running
    assert len(seen.starts["api"]) == 1


async def test_f7_a_role_that_cannot_drain_does_not_keep_the_process() -> None:
    seen, stop = Seen(), asyncio.Event()

    async def hangs(_: asyncio.Event) -> None:
        await asyncio.get_running_loop().create_future()

    running = asyncio.create_task(supervised(seen, ingest=hangs, api=forever).run(stop))
    await stop_when(lambda: "ingest" in seen.starts, stop)
    async with asyncio.timeout(60):
        await running
    assert seen.starts.keys() == {"ingest", "api"}, "it ended although one of them never does"


async def test_k6_a_role_is_ready_once_it_has_said_that_it_waits_for_nothing() -> None:
    """It ran, and a source that nobody had described did not answer: it was called ready, and read nothing."""
    stop, go_on, fails = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def ingest(stop: asyncio.Event) -> None:
        watched.waits_for("ingest", "the brokers")
        await go_on.wait()
        watched.waits_for("ingest", "")
        await fails.wait()
        go_on.clear()
        fails.clear()
        raise StoreUnreachable("Kafka does not answer.")

    watched = Supervisor(
        tasks=[
            Supervised(name="ingest", make=lambda: ingest, says=True),
            Supervised(name="mute", make=lambda: forever, says=True),
        ],
        clock=SystemClock(),
        on_up=lambda *_: None,
        on_failure=lambda _: None,
    )

    async def shown(what: str) -> None:
        await until(lambda: watched.readiness().get("ingest") == what)

    running = asyncio.create_task(watched.run(stop))
    await shown("waits for the brokers")
    assert watched.readiness()["mute"] == "waits for what it needs"
    go_on.set()
    await shown("ok")
    fails.set()
    await shown("waits for the brokers; it failed before: Kafka does not answer.")
    go_on.set()
    await shown("ok")
    watched.waits_for("nobody", "anything")
    assert watched.readiness().keys() == {"ingest", "mute"}
    stop.set()
    fails.set()
    await running


async def test_what_a_child_waits_for_is_heard_line_by_line() -> None:
    said: list[str] = []
    code = "from gapwatch.roles.supervisor import to_parent as say; say('the\\nbrokers'); say('')"
    with supervisor._heard(said.append) as pipe:
        environment = {**os.environ, supervisor.PIPE: str(pipe)}
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment, pass_fds=(pipe,))
        assert await child.wait() == 0
        await until(lambda: len(said) == 2)
    assert said == ["the brokers", ""]


def test_without_a_parent_that_listens_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor.to_parent("the brokers")
    ours, theirs = os.pipe()
    os.close(ours)
    monkeypatch.setenv(supervisor.PIPE, str(theirs))
    supervisor.to_parent("the brokers")
    os.close(theirs)
    assert capfd.readouterr() == ("", "")
