"""Replay on real parts: a sink bug in the past, named again from the topics, and put right."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from gapwatch.core.reports import rfc3339
from gapwatch.embedded import EmbeddedStack
from tests.acceptance.scenery import AMOUNT, FIELDS, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import at, create_database, falsify, gaps_of, late, lose, now, number
from tests.stack import BESIDE_SECONDS, until

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

GRACE = 2.0
SKEW = 2.0  # clock_skew_max
LATE = 5.0
LARGER = 7.0
SOURCES = ("events", "raw")


@dataclass(frozen=True, kw_only=True)
class Bug:
    """What the sink did wrong in a range of time, long enough ago to be read through."""

    scene: Scene
    time_from: str
    time_to: str
    lost: set[int]
    deleted: int  # and its document was left
    wrong: int
    bent: int  # by half of one, and a hundredth is tolerated
    delayed: int
    right: set[int]

    @property
    def range(self) -> list[str]:
        return ["--from", self.time_from, "--to", self.time_to]

    def verdicts(self, *more: str) -> tuple[int, dict[str, Any]]:
        code, record = self.scene.service.answer("replay", "verdicts", "orders", *self.range, *more)
        assert isinstance(record, dict), record
        return code, record


def named(record: dict[str, Any], verdict: str) -> set[int]:
    return {row["key"]["id"] for row in record["named"] if row["verdict"] == verdict}


@pytest.fixture(scope="module")
def bug(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bug]:
    database = create_database(stack, f"replay_{number()}")
    older = ["INSERT INTO public.orders (id, seq, v, amount) SELECT i, i, 'older', i FROM generate_series(1, 50) i"]
    fields = {**FIELDS, "amount": {**AMOUNT, "tolerance": 0.01}}
    with watched(stack, database, tmp_path_factory.mktemp("replay"), before=older, fields=fields) as scene:
        healthy = now()
        before, lost, right = number(), {number() for _ in range(4)}, {number() for _ in range(20)}
        wrong, bent, delayed, deleted = number(), number(), number(), number()
        scene.copier.rules[before] = lose
        for key in (before, deleted):
            scene.insert(key, key)
        wait_for(lambda: now() > healthy + timedelta(seconds=2 * GRACE + SKEW + 3), "the events to begin before the lead-in", 20)
        begin = now()
        scene.copier.rules |= dict.fromkeys(lost, lose) | {wrong: falsify(v="wrong"), delayed: late(LATE), ("d", deleted): lose}
        scene.copier.rules[bent] = falsify(amount=Decimal128("1.50"))
        for key in (*right, *lost, wrong, bent, delayed):
            scene.insert(key, key)
        scene.sql(f"DELETE FROM public.orders WHERE id = {deleted}", "UPDATE public.orders SET v = 'newer' WHERE id <= 5")
        time.sleep(1)
        end = now()
        scene.copier.rules.clear()
        after = number()
        scene.copier.rules[after] = lose
        scene.insert(after, after)
        everything = {before, *lost, wrong, bent, deleted, after}
        wait_for(lambda: len(gaps_of(scene.service, *everything)) == len(everything), "the gaps of the bug", 30)
        wait_for(lambda: not gaps_of(scene.service, delayed) and delayed in scene.documents(), "what is late to come", 30)
        until = end + timedelta(seconds=2 * LARGER + 1)
        wait_for(lambda: _read_through(scene, until), "the range to be read through, with the longest lead-out", 40)
        yield Bug(
            scene=scene,
            time_from=rfc3339(begin) or "",
            time_to=rfc3339(end) or "",
            lost=lost,
            deleted=deleted,
            wrong=wrong,
            bent=bent,
            delayed=delayed,
            right=right,
        )


def _read_through(scene: Scene, time: datetime) -> bool:
    """Whether both streams prove that time: what is written from now on comes after all that a replay reads."""
    view = scene.service.view()
    return all(view[name] and at(view[name]) > time for name in ("source_watermark", "target_watermark"))


def offsets(bug: Bug) -> dict[tuple[str, str, int], int]:
    """Return what every group of this pipeline has committed, by group, topic and partition."""
    admin = AdminClient({"bootstrap.servers": bug.scene.stack.kafka.bootstrap_servers})
    prefix = f"gw-{bug.scene.database}"
    groups = [group.group_id for group in admin.list_consumer_groups().result().valid if group.group_id.startswith(prefix)]
    found: dict[tuple[str, str, int], int] = {}
    for group in sorted(groups):
        answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
        found |= {(group, place.topic, place.partition): place.offset for place in answer.topic_partitions}
    return found


def ends_of(bug: Bug) -> dict[tuple[str, int], int]:
    """Return where the topics of this pipeline end, by topic and partition."""
    admin = AdminClient({"bootstrap.servers": bug.scene.stack.kafka.bootstrap_servers})
    topics = [topic for name, topic in admin.list_topics().topics.items() if bug.scene.database in name]
    places = {TopicPartition(topic.topic, number): OffsetSpec.latest() for topic in topics for number in topic.partitions}
    return {(place.topic, place.partition): end.result().offset for place, end in admin.list_offsets(places).items()}


def at_rest(bug: Bug) -> tuple[dict[tuple[str, str, int], int], dict[tuple[str, int], int]] | None:
    """Return what is committed, and where the topics end, once commits have come behind what was read a while ago."""
    before, ends = offsets(bug), ends_of(bug)
    time.sleep(1.5)
    after, now_ends = offsets(bug), ends_of(bug)
    still = [place for place in before if ends.get(place[1:]) == now_ends.get(place[1:])]
    return (after, now_ends) if all(after[place] == before[place] for place in still) else None


def trail(bug: Bug) -> list[dict[str, Any]]:
    """Return what was done, and what was asked for."""
    rows: list[dict[str, Any]] = bug.scene.service.api.get("/api/v1/audit", limit=1_000)["audit"]
    return rows


@pytest.mark.parametrize("of", SOURCES)
def test_j2_verdicts_name_exactly_what_the_sink_got_wrong_in_that_time(bug: Bug, of: str) -> None:
    service = bug.scene.service
    quiet, ends = wait_for(lambda: at_rest(bug), "what was read to be committed", 30)
    groups, gaps, audit = {group for group, _, _ in quiet}, service.gaps(state=""), trail(bug)
    code, record = bug.verdicts("--of", of)
    assert named(record, "open") == {*bug.lost, bug.wrong, bug.bent, bug.deleted}
    assert named(record, "late") == {bug.delayed}
    assert named(record, "unknown") == set()
    assert (code, record["complete"], record["undecided"], record["holes"]) == (1, True, 0, [])
    rows = {row["key"]["id"]: row for row in record["named"]}
    assert rows[bug.deleted]["operation"] == "delete"
    delay = at(rows[bug.delayed]["shown_at"]) - at(rows[bug.delayed]["event_time"])
    assert timedelta(seconds=LATE) <= delay <= timedelta(seconds=LATE + 3 + BESIDE_SECONDS)
    said_then = {row["confirmed"] for key, row in rows.items() if key not in (bug.delayed, bug.wrong, bug.bent)}
    assert said_then == ({"gap"} if of == "events" else {None})
    evidence = {gap["key"]["id"]: [row["offset"] for row in gap["evidence"] if row["side"] == "expected"] for gap in gaps}
    for key in bug.lost:
        assert rows[key]["offset"] in evidence[key]
    after = offsets(bug)
    assert {group for group, _, _ in after} == groups, "a group was made"
    same = [place for place in quiet if ends_of(bug).get(place[1:]) == ends.get(place[1:])]  # where nobody wrote meanwhile
    assert same
    assert all(after[place] >= offset for place, offset in quiet.items()), "an offset went back"
    assert {place: after[place] for place in same} == {place: quiet[place] for place in same}
    assert service.gaps(state="") == gaps
    assert trail(bug) == audit, "a repair was sent"


@pytest.mark.parametrize(("of", "output"), [("events", "json"), ("raw", "table")])
def test_m7_two_replays_are_byte_identical(bug: Bug, of: str, output: str, tmp_path: Path) -> None:
    files = []
    for name in ("one", "other"):
        with (tmp_path / name).open("wb") as file:
            files.append(file.name)
            arguments = ["replay", "verdicts", "orders", *bug.range, "--of", of, "--output", output]
            command = [sys.executable, "-m", "gapwatch", "--config", str(bug.scene.service.file), *arguments]
            done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, timeout=120, check=False)
            assert done.returncode == 1, done.stderr
    assert Path(files[0]).stat().st_size > 500
    assert subprocess.run(["cmp", *files], check=False).returncode == 0


@pytest.mark.parametrize("of", SOURCES)
def test_j3_with_a_larger_tolerance_what_is_within_it_was_right(bug: Bug, of: str) -> None:
    code, record = bug.verdicts("--of", of, "--tolerance", "amount=1")
    assert named(record, "open") == {*bug.lost, bug.wrong, bug.deleted}
    assert (code, record["complete"]) == (1, True)
    code, record = bug.verdicts("--of", of, "--tolerance", "amount=0.4")
    assert bug.bent in named(record, "open"), "and with one that it is beyond it was not"


@pytest.mark.parametrize("of", SOURCES)
def test_j3_with_a_larger_grace_what_was_late_was_in_time(bug: Bug, of: str) -> None:
    [late] = [row for row in bug.verdicts("--of", of)[1]["named"] if row["key"]["id"] == bug.delayed]
    took = (at(late["shown_at"]) - at(late["event_time"])).total_seconds()
    larger = max(LARGER, math.ceil(took) + 1)  # on a busy machine it came later than it was to
    wait_for(lambda: _read_through(bug.scene, at(bug.time_to) + timedelta(seconds=2 * larger + 1)), "the longest lead-out", 40)
    code, record = bug.verdicts("--of", of, "--grace", f"{larger:.0f}s")
    assert named(record, "open") == {*bug.lost, bug.wrong, bug.bent, bug.deleted}
    assert named(record, "late") == set()
    assert (code, record["complete"]) == (1, True)


def is_there(bug: Bug, key: int) -> bool:
    return key in bug.scene.documents()


def test_a_range_without_a_fault_ends_with_0_and_one_that_ends_now_with_3(bug: Bug) -> None:
    service = bug.scene.service
    for _ in range(10):  # the sink has to be in time for once
        begin = now()
        bug.scene.insert(key := number(), key)
        until(partial(is_there, bug, key), "the document")
        end = now()
        if end - begin < timedelta(seconds=GRACE - 0.5):
            break
    stretch = ("--from", rfc3339(begin) or "", "--to", rfc3339(end) or "")
    code, record = service.answer("replay", "verdicts", "orders", *stretch, "--grace", "60s")  # it ends now for any machine
    assert (code, record["complete"], record["named"]) == (3, False, [])
    wait_for(lambda: _read_through(bug.scene, end + timedelta(seconds=2 * GRACE + 2)), "the range to lie far enough back", 20)
    code, record = service.answer("replay", "verdicts", "orders", *stretch)
    assert (code, record["complete"], record["named"], record["undecided"]) == (0, True, [], 0)


def test_offsets_say_the_same_as_times(bug: Bug) -> None:
    admin = AdminClient({"bootstrap.servers": bug.scene.stack.kafka.bootstrap_servers})
    topic = f"gw-{bug.scene.database}.events"

    def ends(spec: OffsetSpec) -> str:
        answers = admin.list_offsets({TopicPartition(topic, partition): spec for partition in range(2)})
        return ",".join(f"{place.partition}:{future.result().offset}" for place, future in answers.items())

    begin, end = ends(OffsetSpec.earliest()), ends(OffsetSpec.latest())
    code, record = bug.scene.service.answer("replay", "verdicts", "orders", "--from", begin, "--to", end)
    assert code == 1
    assert named(record, "open") | named(record, "late") >= {*bug.lost, bug.wrong, bug.deleted, bug.delayed}
    assert {row["key"]["id"] for row in record["named"]}.isdisjoint(bug.right)


def test_offsets_of_raw_topics_choose_the_writes_that_evidence_names(bug: Bug) -> None:
    service = bug.scene.service
    rows = {row["key"]["id"]: row for row in bug.verdicts("--of", "raw")[1]["named"]}
    wanted = [rows[key] for key in (*sorted(bug.lost)[:2], bug.deleted)]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for row in wanted:
        place = f"{row['topic']}/{row['partition']}"
        first[place] = min(row["offset"], first.get(place, row["offset"]))
        last[place] = max(row["offset"] + 1, last.get(place, 0))
    begin, end = (",".join(f"{place}:{offset}" for place, offset in found.items()) for found in (first, last))
    within = {
        key
        for key, row in rows.items()
        if first.get(place := f"{row['topic']}/{row['partition']}", 1 << 62) <= row["offset"] < last.get(place, 0)
    }
    code, record = service.answer("replay", "verdicts", "orders", "--of", "raw", "--from", begin, "--to", end)
    assert isinstance(record, dict), record
    assert (code, {row["key"]["id"] for row in record["named"]}, record["complete"]) == (1, within, True)
    assert within >= {row["key"]["id"] for row in wanted}
    assert [row for row in record["named"] if row["key"]["id"] in rows] == [
        row for row in bug.verdicts("--of", "raw")[1]["named"] if row["key"]["id"] in within
    ]
    code, record = service.answer("replay", "verdicts", "orders", "--of", "raw", "--from", "99:0", "--to", "99:1")
    assert (code, "has no partition 99" in record) == (2, True)


def test_reconcile_opens_gaps_for_what_is_still_wrong_and_its_plan_repairs_it(bug: Bug) -> None:
    scene, service = bug.scene, bug.scene.service
    assert service.command("replay", "reconcile", "nope", *bug.range).returncode == 2
    mended = min(bug.lost)
    scene.sql(f"UPDATE public.orders SET v = 'once more' WHERE id = {mended}")  # the sink is right again, and delivers it
    wait_for(lambda: mended in scene.documents(), "the document")
    wait_for(lambda: gaps_of(service, mended, state="resolved"), "its gap to end", 20)
    others = {gap["key"]["id"] for gap in service.gaps()} - {*bug.lost, bug.wrong, bug.bent, bug.deleted}
    for gap in service.gaps():
        assert service.command("gaps", "resolve", gap["id"]).returncode == 0
    assert service.gaps() == []

    code, run = service.answer("replay", "reconcile", "orders", *bug.range, "--wait")
    assert (code, run[0]["state"], run[0]["kind"]) == (1, "succeeded", "replay")
    wrong = {*bug.lost, bug.wrong, bug.bent, bug.deleted} - {mended}
    gaps = {gap["key"]["id"]: gap for gap in service.gaps()}
    assert gaps.keys() == wrong
    assert others.isdisjoint(gaps)
    assert {gap["detector"] for gap in gaps.values()} == {"replay"}
    assert {key: gap["kind"] for key, gap in gaps.items()} == {
        **dict.fromkeys(bug.lost - {mended}, "missing"),
        bug.wrong: "mismatch",
        bug.bent: "mismatch",
        bug.deleted: "undeleted",
    }
    assert run[0]["counts"]["planned"] == len(wrong) - 1, "what is left over is reported"
    done = service.command("backfill", "apply", run[0]["request"]["plan"], "--yes", "--wait", "--output", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {gap["key"]["id"] for gap in service.gaps()} == {bug.deleted}
    rows, documents = scene.rows(), scene.documents()
    assert {key: documents[key]["v"] for key in wrong - {bug.deleted}} == {key: rows[key][2] for key in wrong - {bug.deleted}}
    caught_up_again = service.command("gaps", "resolve", gaps[bug.deleted]["id"], "--resolution", "accepted")
    assert caught_up_again.returncode == 0

    # Raw records name keys too; by now the stores agree on this one.
    sent = [row for row in bug.verdicts("--of", "raw")[1]["named"] if row["key"]["id"] in bug.lost]
    row = min(sent, key=lambda row: row["key"]["id"])
    begin, end = (f"{row['topic']}/{row['partition']}:{row['offset'] + more}" for more in (0, 1))
    code, run = service.answer("replay", "reconcile", "orders", "--of", "raw", "--from", begin, "--to", end, "--wait")
    assert (code, run[0]["state"], run[0]["counts"]["keys"]) == (0, "succeeded", 1), run


def test_a_range_that_is_no_longer_in_the_log_says_from_where_on_it_is(bug: Bug) -> None:
    admin = AdminClient({"bootstrap.servers": bug.scene.stack.kafka.bootstrap_servers})
    cut = at(bug.time_from) - timedelta(seconds=2 * GRACE + SKEW + 2)
    wanted = OffsetSpec.for_timestamp(int(cut.timestamp() * 1000))
    places = [TopicPartition(f"gw-{bug.scene.database}.events", partition) for partition in range(2)]
    for place, offset in admin.list_offsets(dict.fromkeys(places, wanted)).items():
        place.offset = offset.result().offset
        assert place.offset > 0
        admin.delete_records([place])[place].result()
    early = rfc3339(at(bug.time_from) - timedelta(minutes=1)) or ""
    code, said = bug.scene.service.answer("replay", "verdicts", "orders", "--from", early, "--to", bug.time_to)
    assert code == 3
    since = said.split("what it holds answers for writes from ")[1].split(" on.")[0]
    assert cut < at(since) < at(bug.time_from)
    _, record = bug.scene.service.answer("replay", "verdicts", "orders", "--from", since, "--to", bug.time_to)
    assert named(record, "open") >= {*bug.lost, bug.wrong, bug.deleted}
