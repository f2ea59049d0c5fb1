"""Who takes part, how each is started, and what it says of its own state."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.peers import environment
from gapwatch.embedded.cache import Say

# The compiled hot path, where one is built, and the variable that chooses between both.
NATIVE_MODULE = "gapwatch_native"
NATIVE_SWITCH = "GAPWATCH_NATIVE"


class Kind(Enum):
    LIMIT = "limit"
    GAPWATCH = "gapwatch"
    PEER = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """`prepare` returns the command without its arguments, and installs what that needs. Raises GapwatchError."""

    name: str
    title: str
    kind: Kind
    state: str  # as it is declared; the trial shows what came of it
    prepare: Callable[[Say], list[str]]


def _own(module: str) -> Callable[[Say], list[str]]:
    return lambda _: [sys.executable, "-m", module]


def _peer(name: str) -> Callable[[Say], list[str]]:
    return lambda say: [str(environment.python(say)), "-m", f"benchmarks.peers.programs.{name}"]


def _java(name: str, group: str) -> Callable[[Say], list[str]]:
    return lambda say: environment.java(name, group, say)


CONTESTANTS = (
    Contestant(name="C", title="limit C: consume only", kind=Kind.LIMIT, state="", prepare=_own("benchmarks.limits")),
    Contestant(name="R", title="limit R: consume, typed decode", kind=Kind.LIMIT, state="", prepare=_own("benchmarks.limits")),
    Contestant(
        name="by-hand",
        title="hand-written, msgspec and dict",
        kind=Kind.PEER,
        state="none",
        prepare=_own("benchmarks.peers.programs.by_hand"),
    ),
    Contestant(
        name="gapwatch",
        title="**Gapwatch**, pure Python",
        kind=Kind.GAPWATCH,
        state="changelog",
        prepare=_own("benchmarks.contestants"),
    ),
    Contestant(
        name="gapwatch-native",
        title="**Gapwatch**, native hot path",
        kind=Kind.GAPWATCH,
        state="changelog",
        prepare=_own("benchmarks.contestants"),
    ),
    Contestant(
        name="kafka-streams",
        title="Kafka Streams, KTable outer join, RocksDB and changelog",
        kind=Kind.PEER,
        state="changelog, local store",
        prepare=_java("KStreamsJoin", "kstreams"),
    ),
    Contestant(
        name="quixstreams",
        title="quixstreams, state store",
        kind=Kind.PEER,
        state="changelog, local store",
        prepare=_peer("quix_state"),
    ),
    Contestant(
        name="flink",
        title="Flink SQL, streaming full outer join",
        kind=Kind.PEER,
        state="checkpoints",
        prepare=_java("FlinkJoin", "flink"),
    ),
    Contestant(
        name="bytewax",
        title="bytewax join",
        kind=Kind.PEER,
        state="none (recovery is an option)",
        prepare=_peer("bytewax_join"),
    ),
    Contestant(
        name="faust",
        title="plain Faust, two tables, textbook style",
        kind=Kind.PEER,
        state="changelog",
        prepare=_peer("faust_tables"),
    ),
)


def native_is_built() -> bool:
    return importlib.util.find_spec(NATIVE_MODULE) is not None


def versions(say: Say) -> dict[str, str]:
    """Return the versions of the peers that are there."""
    packages = ["faust-streaming", "quixstreams", "bytewax"]
    found = environment.python_versions(Path(environment.python(say)), packages)
    return {
        **found,
        "kafka-streams": environment.jar_version("org.apache.kafka:kafka-streams"),
        "flink": environment.jar_version("org.apache.flink:flink-streaming-java"),
    }
