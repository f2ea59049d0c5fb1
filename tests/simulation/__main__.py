"""``python -m tests.simulation``: runs seeds, tells the story of one, hunts mutants; ``make simulate ARGS="…"`` does the same."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.simulation.history import EVENTS_MAX, Outcome, simulate
from tests.simulation.mutation import SEEDS_MAX, hunt, mutants

SEEDS = 20_000
CHUNK = 25  # seeds that one call of a worker runs
TELL_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when every seed held and every mutant was caught, else 1."""
    asked = _parser().parse_args(arguments)
    if asked.seed is not None:
        return _story(asked.seed)
    held = True
    if asked.seeds is not None or not asked.mutants:
        seeds = range(asked.start, asked.start + (SEEDS if asked.seeds is None else asked.seeds))
        held = _run(seeds, asked.jobs, first=asked.first, as_json=asked.json)
    if asked.mutants:
        held = _hunt(asked.seeds or SEEDS_MAX) and held
    return 0 if held else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_count, help=f"how many (default {SEEDS:,}; with --mutants alone: none but theirs)")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="run this one alone and tell its story")
    parser.add_argument("--mutants", action="store_true", help="look from seed 0 on for one that catches each mutant")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--first", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing before")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


# ── one seed ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _story(seed: int) -> int:
    outcome = simulate(seed, print)
    print(f"seed {seed}: {outcome.violation or 'every invariant held'}; {outcome.events} events, digest {outcome.digest}")
    return 1 if outcome.violation else 0


# ── many ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(seeds: range, jobs: int, *, first: bool, as_json: bool) -> bool:
    begun, told, done = time.monotonic(), time.monotonic(), 0
    seen: Counter[str] = Counter()
    failed: list[Outcome] = []
    for outcome in _outcomes(seeds, jobs):
        done += 1
        seen.update(outcome.seen)
        if outcome.violation:
            failed.append(outcome)
            if not as_json:
                print(f"seed {outcome.seed} failed at event {outcome.events}: {outcome.violation}")
                print(f"  make simulate ARGS='--seed {outcome.seed}'", flush=True)
            if first:
                break
        if not as_json and time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            print(f"{done:,} of {len(seeds):,} seeds, {done / (told - begun):.0f} a second, {len(failed)} failed", flush=True)
    if as_json:
        print(json.dumps({"seeds": done, "failed": [{"seed": one.seed, "violation": one.violation} for one in failed]}))
    else:
        rate = done / max(0.001, time.monotonic() - begun)
        print(f"{done:,} seeds of at most {EVENTS_MAX} events, {rate:.0f} a second, {len(failed)} failed")
        print("in them: " + ", ".join(f"{count:,} {what}" for what, count in sorted(seen.items())))
    return not failed


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    """Yield what came of each seed; with several processes, chunk after chunk, in the order of the seeds."""
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    chunks = iter([seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)])
    with ProcessPoolExecutor(jobs) as pool:
        running = [pool.submit(_chunk, chunk) for chunk in islice(chunks, 2 * jobs)]
        try:
            while running:
                yield from running.pop(0).result()
                running += [pool.submit(_chunk, chunk) for chunk in islice(chunks, 1)]
        finally:
            for one in running:
                one.cancel()


def _chunk(seeds: Sequence[int]) -> list[Outcome]:
    return [simulate(seed) for seed in seeds]


# ── mutants ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _hunt(most: int) -> bool:
    caught_all = True
    for patch in mutants():
        begun = time.monotonic()
        caught = hunt(patch, start=0, seeds=most)
        seconds = time.monotonic() - begun
        if caught is None:
            caught_all = False
            print(f"{patch.stem}: NOT caught by {most:,} seeds ({seconds:.0f} s)", flush=True)
        else:
            print(
                f"{patch.stem}: caught by seed {caught.seed}, the {caught.tried}. ({seconds:.0f} s): {caught.violation}",
                flush=True,
            )
    return caught_all


if __name__ == "__main__":
    sys.exit(main())
