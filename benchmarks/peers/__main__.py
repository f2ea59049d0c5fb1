"""``make bench-peers``: the work of reference on what somebody would otherwise use, interleaved, medians, answers checked.

A contestant that cannot run stands in the table with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import page, pinned, work
from benchmarks.__main__ import machine
from benchmarks.answers import LATE_MS
from benchmarks.contestants import raised
from benchmarks.peers import crash, roster
from benchmarks.peers.results import Result, Run, is_right, table
from benchmarks.peers.roster import Contestant, Kind
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import GapwatchError
from gapwatch.ledger import open_ledger

Commands = dict[str, list[str]]
TRIALS_AT_ONCE = 3


def main() -> int:
    """Measure, check, print a table or one JSON object, and write the section of the page; 1 when an answer is wrong."""
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="raw events of both sides together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of contestants, comma-separated; the page is not written then")
    parser.add_argument("--no-crash", action="store_true", help="without the trials with kill -9")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pinned.begin()
    keys = options.events // 2_000 * 1_000
    only = {name for name in options.only.split(",") if name}
    names = {contestant.name for contestant in roster.CONTESTANTS}
    if keys < 10_000 or options.rounds < 1 or only - names:
        parser.error(f"at least 20,000 events and one round; contestants: {', '.join(sorted(names))}")
    chosen = [contestant for contestant in roster.CONTESTANTS if not only or contestant.name in only]

    def written(results: list[Result]) -> dict[str, Any]:
        report = describe(results, keys)
        if not only and not options.no_crash:
            page.write("bench-peers", section(report, results))
        return report

    results = measure(chosen, keys, options.rounds, trials=not options.no_crash, after_round=written)
    report = written(results)
    print(json.dumps(report) if options.json else "\n".join(table(results)))
    return int(any(result.runs and not result.right for result in results))


def measure(
    contestants: Sequence[Contestant], keys: int, rounds: int, *, trials: bool, after_round: Callable[[list[Result]], object]
) -> list[Result]:
    """Try what each keeps; then run all of them in turn, round after round, each round on a broker of its own."""
    results = {contestant.name: Result(contestant=contestant) for contestant in contestants}
    commands: Commands = {}
    for contestant in contestants:
        if contestant.name == "gapwatch-native" and not roster.native_is_built():
            results[contestant.name].reason = "its native module is not built"
            continue
        try:
            commands[contestant.name] = contestant.prepare(_say)
        except GapwatchError as error:
            results[contestant.name].reason = error.message
    if trials:
        _try(results, commands)
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        # Both of Gapwatch's hot paths write the same topics, so the second one has a broker of its own.
        for group in ([n for n in commands if n != "gapwatch-native"], [n for n in commands if n == "gapwatch-native"]):
            if group:
                _round([results[name] for name in group], commands, keys)
        after_round(list(results.values()))
    return list(results.values())


def _try(results: Mapping[str, Result], commands: Commands) -> None:
    """Try some at a time: nothing is timed here."""
    tried = [results[name] for name in commands if results[name].contestant.kind is not Kind.LIMIT]
    with ThreadPoolExecutor(TRIALS_AT_ONCE) as pool:
        found = pool.map(lambda result: _trial(result.contestant, commands[result.contestant.name]), tried)
        for result, words in zip(tried, found, strict=True):
            result.trial = words
            _say(f"  {result.contestant.name:16} state after kill -9: {words}")


def _round(results: Sequence[Result], commands: Commands, keys: int) -> None:
    with EmbeddedStack(parts=("kafka",)) as stack, tempfile.TemporaryDirectory() as directory:
        servers = stack.kafka.bootstrap_servers
        planted = work.produce(servers, keys)
        for result in results:
            name = result.contestant.name
            try:
                run = _run(result.contestant, commands[name], servers, keys, Path(directory), planted)
            except pinned.CouldNotRunError as error:
                result.reason = str(error)
                _say(f"  {name:16} could not run: {error}")
                continue
            result.runs.append(run)
            _say(f"  {name:16} {run.events / run.cpu:>12,.0f} events per CPU second{'' if run.right else ', WRONG ANSWER'}")


def _run(contestant: Contestant, command: list[str], servers: str, keys: int, directory: Path, planted: work.Planted) -> Run:
    total = work.records(keys)
    if contestant.kind is Kind.LIMIT:
        figures = pinned.run([*command, contestant.name, servers, str(total), work.SOURCE, work.TARGET, str(work.PARTITIONS)])
        return Run.of([figures], right=figures["events"] == total)
    if contestant.kind is Kind.GAPWATCH:
        return _run_gapwatch(command, servers, keys, directory, planted, native=contestant.name == "gapwatch-native")
    own = directory / f"{contestant.name}-{uuid.uuid4().hex[:6]}"
    own.mkdir()
    figures = pinned.run([*command, servers, work.SOURCE, work.TARGET, str(total), str(own), own.name])
    answer = work.Planted(missing=frozenset(figures["missing"]), wrong=frozenset(figures["wrong"]))
    return Run.of([figures], right=answer == planted and not figures["extra"] and figures["events"] == total)


def _run_gapwatch(command: list[str], servers: str, keys: int, directory: Path, planted: work.Planted, *, native: bool) -> Run:
    """Run both roles one after the other: what an event costs is the sum."""
    database = f"sqlite:///{directory / f'bench-{native}.db'}"
    open_ledger(database).close()
    environment = {roster.NATIVE_SWITCH: "1" if native else "0"}
    parts = [pinned.run([*command, role, servers, str(keys), database], environment=environment) for role in ("ingest", "match")]
    due = work.end_time(keys) - LATE_MS
    undue = frozenset(key for key in planted.missing | planted.wrong if work.written_ms(key) > due)
    return Run.of(parts, right=is_right(raised(servers), planted, undue))


def _trial(contestant: Contestant, command: list[str]) -> str:
    try:
        if contestant.kind is Kind.GAPWATCH:
            return crash.of_gapwatch()
        return crash.of_program(command).words()
    except (pinned.CouldNotRunError, TimeoutError, GapwatchError) as error:
        return f"not shown: {error}"


def describe(results: Sequence[Result], keys: int) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "gapwatch": version("gapwatch")}
    if any(result.contestant.kind is Kind.PEER and result.runs for result in results):
        versions |= roster.versions(_say)
    return {
        "schema_version": 1,
        "machine": machine(),
        "versions": versions,
        "events": work.records(keys),
        "rounds": max(len(result.runs) for result in results),
        "contestants": [result.described(results) for result in results],
    }


def section(report: dict[str, Any], results: Sequence[Result]) -> str:
    """Return the section of ``docs/performance.md``."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    found = report["machine"]
    return "\n".join(
        [
            f"{found['cores']} cores, {found['system']}; {versions}; {report['events']:,} events, {report['rounds']} rounds;",
            f"load of the machine at the end: {found['load']:.1f}.",
            "",
            *table(results),
            "",
            f"Best peer that kept its state: {_best(results)}.",
        ]
    )


def _best(results: Sequence[Result]) -> str:
    peers = [r for r in results if r.contestant.kind is Kind.PEER and r.runs and r.right and r.trial.startswith("yes")]
    own = [r for r in results if r.contestant.kind is Kind.GAPWATCH and r.runs]
    if not peers or not own:
        return "none of this run"
    best = max(peers, key=lambda result: result.rate)
    return f"{best.contestant.title}; " + ", ".join(
        f"{r.contestant.title} does {r.rate / best.rate:.1f} × of it (goal: 5)" for r in own
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
