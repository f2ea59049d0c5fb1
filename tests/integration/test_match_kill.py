"""Workers are killed, stopped, frozen and started at random: what match says is what an undisturbed run says."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from pathlib import Path

import msgspec
import pytest

from gapwatch.kafka.topics import state_topic
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import FORMAT, Batch, Control, Outcome, Side, VerdictSection
from gapwatch.model.suspect import Suspect
from tests.integration.match_rig import Rig, match_rig
from tests.integration.match_story import LAG_STEPS, PIPELINE, Story, story_settings, undisturbed

pytestmark = pytest.mark.integration

PARTITIONS = 5


@pytest.fixture
def settings(kafka_bootstrap: str) -> Settings:
    return story_settings(kafka_bootstrap, f"m{uuid.uuid4().hex[:8]}", PARTITIONS)


async def assert_as_undisturbed(rig: Rig, story: Story) -> None:
    told = await rig.told()
    wanted = undisturbed(rig.settings, await rig.read_all(rig.settings.topics.events))
    assert set(wanted.keys) == story.lost | story.changed | story.strange  # the judge itself is right
    assert told.suspects.keys() == wanted.suspects.keys()
    assert told.holes.keys() == wanted.holes.keys()
    assert {number: status.input_offset for number, status in told.statuses.items()} == {
        number: status.input_offset for number, status in wanted.statuses.items()
    }
    for number, status in wanted.statuses.items():
        found = told.statuses[number]
        assert (found.pending, found.raised, found.oldest_unsettled) == (status.pending, status.raised, status.oldest_unsettled)
        # How often keys were raised is the one figure that a restart changes: it raises them again.
        assert msgspec.structs.replace(found.counters, raised=0) == msgspec.structs.replace(status.counters, raised=0)


class Trouble:
    """Kills -9, terminates, freezes and starts workers, by a seed, every so many records; five run most of the time."""

    def __init__(self, rig: Rig, every: int, times: int, seed: int) -> None:
        self._rig = rig
        self._random = random.Random(seed)
        self._marks = {every * number for number in range(1, times + 1)}
        self._frozen: list[str] = []
        self._ending: list[asyncio.Task[int]] = []
        self.done: list[str] = []

    def __call__(self, count: int) -> None:
        if count not in self._marks:
            return
        running = sorted(self._rig.workers)
        # Those that hold partitions, above all; while all of these are gone and the rest wait for theirs, any.
        victim = self._random.choice([name for name in running if self._rig.has_worked(name)] or running)
        for name in self._frozen:
            self._rig.thaw(name)
        fate = self._random.random()
        if victim in self._frozen or fate < 0.5:
            self._rig.kill(victim)
            self.done.append(f"kill {victim}")
        elif fate < 0.75:
            self._ending.append(asyncio.ensure_future(self._rig.terminate(victim)))
            self.done.append(f"terminate {victim}")
        else:
            self._rig.freeze(victim)
            self.done.append(f"freeze {victim}")
        self._frozen = [victim] if self.done[-1].startswith("freeze") else []
        self._rig.start_worker()

    async def end(self) -> list[int]:
        """Thaw what is frozen; return the exit codes of the terminated workers."""
        for name in self._frozen:
            self._rig.thaw(name)
        return await asyncio.gather(*self._ending)


@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=pytest.mark.long)])
async def test_l3_trap_39_five_workers_killed_at_random_say_what_an_undisturbed_run_says(
    settings: Settings, tmp_path: Path, seed: int
) -> None:
    story = Story(partitions=PARTITIONS, steps=500, keys_per_step=40, seed=seed)
    records = list(story.records())
    async with match_rig(settings, tmp_path) as rig:
        for _ in range(5):
            rig.start_worker()
        await rig.working(1)
        trouble = Trouble(rig, every=len(records) // 7, times=6, seed=seed)
        await rig.produce(records, seconds=20, between=trouble)
        assert set(await trouble.end()) <= {0}
        await rig.wait_caught_up()
        assert len(trouble.done) == 6
        await assert_as_undisturbed(rig, story)
        codes = [await rig.terminate(name) for name in sorted(rig.workers)]
        assert codes == [0] * len(codes)


@pytest.mark.parametrize("open_keys", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_b15_a_second_worker_takes_over_open_keys(settings: Settings, tmp_path: Path, open_keys: int) -> None:
    """Everything is still open when one of two workers dies; what comes then is judged as if nothing had happened."""
    story = Story(partitions=PARTITIONS, steps=LAG_STEPS, keys_per_step=open_keys // LAG_STEPS, shown_from=LAG_STEPS)
    records = list(story.records(end=False))
    async with match_rig(settings, tmp_path) as rig:
        first, second = rig.start_worker(), rig.start_worker()
        await rig.working(2)
        await rig.produce(records)
        await rig.wait_caught_up()
        before = await rig.told()
        assert before.suspects == {}
        assert sum(status.pending for status in before.statuses.values()) == open_keys
        rig.kill(first)
        await rig.produce(list(story.ending()))
        await rig.wait_caught_up()
        await assert_as_undisturbed(rig, story)
        assert await rig.terminate(second) == 0


def of_side(records: list[tuple[int, Batch | Control]], side: Side) -> list[tuple[int, Batch | Control]]:
    return [one for one in records if isinstance(one[1], Batch) and one[1].sections[0].side == side]


async def test_b12_both_sides_at_once_on_two_workers_are_one_match_each(settings: Settings, tmp_path: Path) -> None:
    """Two producers race each other with the two sides of 10,000 keys; a third sends what makes them due."""
    story = Story(partitions=PARTITIONS, steps=100, keys_per_step=100, shown_from=0)
    records = list(story.records())
    controls = [one for one in records if isinstance(one[1], Control)]
    async with match_rig(settings, tmp_path) as rig:
        names = [rig.start_worker(), rig.start_worker()]
        await rig.working(2)
        await asyncio.gather(*(rig.produce(of_side(records, side), seconds=3) for side in Side))
        await rig.produce(controls)
        await rig.wait_caught_up()
        told = await rig.told()
        assert told.settled == 10_000 - len(story.lost) - len(story.changed), "each item that is there is one match"
        assert sum(status.counters.repeated for status in told.statuses.values()) == 0
        assert {status.worker for status in told.statuses.values()} == set(names), "both had a share"
        await assert_as_undisturbed(rig, story)
        assert await rig.caught_up(), "what was acknowledged does not come again"
        assert (await rig.told()).settled == told.settled


def judged(suspects: list[Suspect], outcome: Outcome) -> list[tuple[int, Batch]]:
    """Return what repair would send of these keys."""
    sections = [
        VerdictSection(
            PIPELINE,
            [one.key],
            bytes([one.opening.side]),
            [(one.opening.epoch, one.opening.major, one.opening.minor)],
            bytes([outcome]),
        )
        for one in suspects
    ]
    return [(one.partition, Batch(FORMAT, [], [section])) for one, section in zip(suspects, sections, strict=True)]


async def test_j1_state_that_is_deleted_comes_again_from_the_topics_with_suspects_and_gaps(
    settings: Settings, tmp_path: Path
) -> None:
    story = Story(partitions=PARTITIONS, steps=60, keys_per_step=40)
    async with match_rig(settings, tmp_path) as rig:
        worker = rig.start_worker()
        await rig.working(1)
        await rig.produce(list(story.records()))
        await rig.wait_caught_up()
        suspects = sorted((await rig.told()).suspects.values(), key=lambda one: one.id)
        gaps, cleared = suspects[::3], suspects[1::3]
        await rig.produce([*judged(gaps, Outcome.GAP), *judged(cleared, Outcome.CLEARED)])
        await rig.wait_caught_up()
        assert await rig.terminate(worker) == 0
        before = await rig.told()

        await rig.forget(state_topic(settings), settings.topics.suspects, settings.topics.status)
        rig.start_worker()
        await rig.wait_caught_up()
        after = await rig.told()
    assert sorted(after.suspects.values(), key=lambda one: one.id) == suspects
    assert {number: status.counters for number, status in after.statuses.items()} == {
        number: status.counters for number, status in before.statuses.items()
    }
    closed = sum(one.opening.side == Side.EXPECTED for one in gaps)
    assert closed > 0
    assert sum(status.counters.gap for status in after.statuses.values()) == closed
    assert sum(status.raised for status in after.statuses.values()) == len(suspects) - len(gaps) - len(cleared)


WINDOW, KEPT, BYTES_A_KEY = 50_000, 50_000, 1_024
IN_HAND_BYTES = 160 << 20  # what is read ahead, and not yet written
GROWTH_BYTES = 32 << 20  # from one half million of keys to the next: what is let go leaves room for what comes


async def test_b17_a_million_keys_through_a_window_of_fifty_thousand_stay_under_the_stated_limit(
    settings: Settings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The limit of docs/operations.md, above what a worker holds at its start. Four windows' keys; a million with ``--soak``."""
    steps = 200 if request.config.getoption("--soak") else 40
    spec = dataclasses.replace(settings.pipelines[PIPELINE], settled_keys_max=KEPT)
    settings = dataclasses.replace(settings, pipelines={PIPELINE: spec})
    story = Story(partitions=PARTITIONS, steps=steps, keys_per_step=5_000, shown_from=5, faithful=True)
    records = list(story.records())
    half = len(records) // 2
    async with match_rig(settings, tmp_path) as rig:
        worker = rig.start_worker()
        await rig.working(1)
        empty = rig.resident_max(worker)
        await rig.produce(records[:half])
        await rig.wait_caught_up(120)
        before = rig.resident_max(worker)
        await rig.produce(records[half:])
        await rig.wait_caught_up(120)
        told = await rig.told()
        assert (told.settled, told.suspects) == (steps * 5_000, {})
        assert rig.resident_max(worker) - empty < IN_HAND_BYTES + (WINDOW + KEPT) * BYTES_A_KEY
        assert rig.resident_max(worker) - before < GROWTH_BYTES
