"""``gapwatch run``: one command plays every role, outlives Kafka, and starts anew what fails."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from gapwatch.api_client import Api
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import ConflictError
from gapwatch.ledger import open_ledger
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import ANSWER_SECONDS, EVERY_ROLE, Service, wait_for
from tests.acceptance.shared import at, clean, create_database, gaps_of, lose, number
from tests.stack import free_port

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = create_database(stack, f"one_{number()}")
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'older', 1 FROM generate_series(1, 100) i"]
    ledger = stack.postgres.dsn(create_database(stack, f"ledger_{database}"))
    with watched(stack, database, tmp_path_factory.mktemp("one"), before=before, ledger=ledger) as scene:
        yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    if not built.service.processes:  # a test that failed stopped it
        built.service.start()
    with clean(built) as scene:
        yield scene


def pid(scene: Scene) -> int:
    return scene.service.processes["all"].pid


def children(parent: int) -> dict[int, str]:
    """Return the processes that one started, with their command lines."""
    found = {}
    for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(OSError):  # it ends just now
            found[int(one)] = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def matcher(scene: Scene) -> int:
    return next((n for n, command in children(pid(scene)).items() if "--role match" in command), 0)


def failures(scene: Scene) -> dict[str, float]:
    return {role: scene.service.metric("gapwatch_role_failures_total", role=role) or 0.0 for role in EVERY_ROLE}


def ups(scene: Scene) -> dict[str, float | None]:
    return {role: scene.service.metric("gapwatch_up", role=role) for role in EVERY_ROLE}


def test_k2_one_command_plays_every_role(scene: Scene) -> None:
    """A loss is captured, ingested, matched, confirmed, swept, repaired and shown by one `gapwatch run`."""
    assert list(scene.service.processes) == ["all"]
    status, said = wait_for(lambda: found if (found := scene.service.ready())[0] == 200 else None, "200", 60)
    assert status == 200
    assert ups(scene) == dict.fromkeys(EVERY_ROLE, 1.0)
    assert {line for line in said.splitlines() if line.startswith("[")} == {f"[+]{role} ok" for role in (*EVERY_ROLE, "kafka")}
    lost, extra = number(), number()
    scene.copier.rules[lost] = lose
    scene.insert(lost, lost)
    client = scene.mongo()
    try:
        client[scene.database].orders.insert_one({"_id": extra, "seq": extra, "v": "nobody's"})
    finally:
        client.close()
    wait_for(lambda: len(gaps_of(scene.service, lost, extra)) == 2, "both gaps", 30)
    assert scene.service.command("pipelines").returncode == 1
    swept = scene.service.command("sweep", "start", "orders", "--wait", "--output", "json")
    assert '"state": "succeeded"' in swept.stdout.replace('":"', '": "'), swept.stdout + swept.stderr
    run = scene.service.api.post("/api/v1/backfills", {"pipeline": "orders", "dry_run": False})
    wait_for(lambda: [gap["key"]["id"] for gap in gaps_of(scene.service, lost, extra)] == [extra], f"backfill {run['id']}", 30)
    assert lost in scene.documents()


def test_f3_of_two_services_that_are_asked_at_once_one_sweeps_and_both_name_it(scene: Scene, tmp_path: Path) -> None:
    """Two processes of role repair and two APIs, over one ledger on Postgres."""
    service, port = scene.service, free_port()
    other = Service(tmp_path, {**service.config, "api": {"listen": f"127.0.0.1:{port}"}})
    other.api = Api(f"http://127.0.0.1:{port}")
    other.start(["repair", "api"])
    try:
        other.wait_healthy()
        both, asked = (service, other), {"pipeline": "orders", "within": 3_600.0}
        before = {run["id"] for run in service.api.get("/api/v1/sweeps", pipeline="orders")["sweeps"]}
        together = threading.Barrier(len(both))

        def ask(one: Service) -> tuple[int, str | None]:
            together.wait(30)
            try:
                return 202, one.api.post("/api/v1/sweeps", asked)["id"]
            except ConflictError as refused:
                return 409, refused.running_id

        with ThreadPoolExecutor(len(both)) as pool:
            answers = dict(pool.map(ask, both))
        assert answers.keys() == {202, 409}
        assert len(set(answers.values())) == 1, "the other one names the run"
        run = answers[202]
        for one in both:
            with pytest.raises(ConflictError) as refused:
                one.api.post("/api/v1/sweeps", {"pipeline": "orders"})  # in no time: the one that runs hurries
            assert refused.value.running_id == run
        for one in both:
            path = f"/api/v1/sweeps/{run}"
            wait_for(lambda one=one, path=path: one.api.get(path)["state"] == "succeeded", "the sweep", 40)  # type: ignore[misc]
            sweeps = one.api.get("/api/v1/sweeps", pipeline="orders")["sweeps"]
            assert {found["id"] for found in sweeps} - before == {run}

        def carried_out() -> int:
            ended = [line for one, role in ((service, "all"), (other, "repair")) for line in one.lines(role, "sweep_ended")]
            return [line["run"] for line in ended].count(run)

        wait_for(carried_out, "the line of who has carried it out", 20)  # it comes behind the record
        assert carried_out() == 1, "one of the two has carried it out"
    finally:
        other.stop()


def test_k4_kafka_down_while_it_runs(scene: Scene) -> None:
    service, before, lost = scene.service, pid(scene), number()
    scene.stack.kafka.kill()
    try:
        wait_for(lambda: "[-]kafka failed: Kafka: could not" in service.ready()[1], "Kafka to be named", 20)
        assert service.ready()[0] == 503
        scene.copier.rules[lost] = lose
        scene.insert(lost, lost)
    finally:
        scene.stack.kafka.start()
    wait_for(lambda: service.ready()[0] == 200, "200", 60)
    gaps = wait_for(lambda: gaps_of(service, lost), "the write that was lost meanwhile", 90)
    assert [gap["kind"] for gap in gaps] == ["missing"]
    assert pid(scene) == before, "work resumes without a restart"
    service.check_alive()


def test_k4_kafka_down_at_start_and_at_the_end(scene: Scene) -> None:
    service = scene.service
    scene.stack.kafka.kill()
    try:
        service.stop()  # which fails when it takes longer than twenty seconds
        service.start()
        wait_for(lambda: service.ready()[0] == 503, "503", 20)
        assert service.view()["status"] == "UNKNOWN"
        assert service.api.alive(ANSWER_SECONDS)
    finally:
        scene.stack.kafka.start()
    started = pid(scene)
    service.wait_healthy(seconds=120)
    wait_for(lambda: service.ready()[0] == 200, "200", 30)
    assert pid(scene) == started, "work resumes without a restart"


def test_k6_a_role_that_fails_is_started_anew_and_the_others_run_on(scene: Scene) -> None:
    service = scene.service
    service.stop()
    with socket.socket() as taken:  # what fails is the API: it cannot listen
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", service.port))
        taken.listen()
        ended = len(service.lines("all", "role_failed"))
        service.start()

        def failed() -> list[dict[str, str]]:
            lines = service.lines("all", "role_failed")[ended:]
            return lines if len(lines) >= 4 else []

        lines = wait_for(failed, "four failures", 40)
        seen = reported(scene)
        wait_for(lambda: reported(scene) > seen, "role repair to report again", 20)
        service.check_alive()
    assert {line["role"] for line in lines} == {"api"}
    assert all("cannot listen" in line["reason"] for line in lines)
    times = [at(line["timestamp"]) for line in lines]
    pauses = [after - before for before, after in pairwise(times)]
    for pause, seconds in zip(
        pauses, (0.5, 1.0, 2.0), strict=False
    ):  # each is twice the one before; attempts take their time, too
        assert pause >= timedelta(seconds=0.95 * seconds), pauses
    service.wait_healthy()
    counted = failures(scene)
    assert counted.pop("api") >= 4
    assert set(counted.values()) == {0.0}, "the others did not fail"


def test_k6_a_killed_matcher_is_started_anew_and_loses_nothing(scene: Scene) -> None:
    service, before = scene.service, failures(scene)
    first, lost = matcher(scene), number()
    assert first
    os.kill(first, signal.SIGKILL)
    scene.copier.rules[lost] = lose
    scene.insert(lost, lost)
    wait_for(lambda: matcher(scene) not in (0, first), "another matcher", 20)
    gaps = wait_for(lambda: gaps_of(service, lost), "the write that was lost meanwhile", 60)
    assert [gap["kind"] for gap in gaps] == ["missing"]
    after = failures(scene)
    assert {role: after[role] - before[role] for role in EVERY_ROLE} == {**dict.fromkeys(EVERY_ROLE, 0.0), "match": 1.0}
    assert ups(scene) == dict.fromkeys(EVERY_ROLE, 1.0)


def reported(scene: Scene) -> str:
    """Return when role repair last said what it could read: it does so only while it runs, and reads both stores for it."""
    ledger = open_ledger(scene.service.config["database"])
    try:
        return max((str(fact["at"]) for fact in ledger.facts("repair/orders/").values()), default="")
    finally:
        ledger.close()


def test_lesson_16_a_ledger_that_is_away_is_unknown_for_everybody_who_looks_and_loses_nothing(scene: Scene) -> None:
    """Without its store a job did not run, and a line in a log was the only sign."""
    service, before = scene.service, pid(scene)
    assert service.view()["consistent_through"] is not None
    url = service.config["database"]
    lost, right = number(), number()
    scene.copier.rules[lost] = lose
    unknown = partial(service.metric, "gapwatch_pipeline_status", pipeline="orders", status="UNKNOWN")
    wait_for(lambda: unknown() == 0.0, "the metrics to have heard that the test before is over", 30)
    with without(url):
        wait_for(lambda: unknown() == 1.0, "UNKNOWN", 30)
        assert service.metric("gapwatch_consistent_through_timestamp_seconds", pipeline="orders") is None
        assert service.metric("gapwatch_expected_events_total", pipeline="orders") is not None, "what was counted stays"
        scene.insert(lost, lost)
        scene.insert(right, right)
        shown = service.command("pipelines")
        assert shown.returncode == 3, shown.stdout + shown.stderr
        assert "ledger" in shown.stderr
        wait_for(lambda: service.ready()[0] == 503, "not to be ready", 30)
    assert pid(scene) == before
    wait_for(lambda: gaps_of(service, lost), "the gap of what was lost meanwhile", 60)
    wait_for(lambda: unknown() == 0.0, "to be known", 30)
    assert not gaps_of(service, right)


@contextmanager
def without(url: str) -> Iterator[None]:
    """Keep everybody out of a database, and throw out who is in it."""
    name = url.rpartition("/")[2].partition("?")[0]
    with psycopg.connect(url.replace(f"/{name}", "/postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
