"""What a replay is asked: a range of times or of records, and how it is to be judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from gapwatch.core.gaps import rfc3339, time_of
from gapwatch.errors import UsageError
from gapwatch.kafka.options import Partition

EVENTS, RAW = "events", "raw"
OWN: Final = ""  # of a place that names no topic: gapwatch.events, or the source's only raw topic
_PLACE: Final = r"(?:[A-Za-z0-9._-]{1,249}/)?[0-9]{1,9}:[0-9]{1,18}"
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)  # that can be said in any zone
OFFSETS: Final = re.compile(f"{_PLACE}(,{_PLACE})*", re.ASCII)

Place = tuple[str, int]  # topic, partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to read again, and how to judge it.

    ``time_from``/``time_to``: milliseconds, by event time. ``offsets_from``/``offsets_to``: instead of them, records of these
    partitions. ``of``: events | raw. ``grace_ms`` and ``tolerances`` are a what-if. ``keys_max``: as :class:`Replay`.
    """

    time_from: int = 0
    time_to: int = 0
    offsets_from: Mapping[Place, int] = field(default_factory=dict)
    offsets_to: Mapping[Place, int] = field(default_factory=dict)
    of: str = EVENTS
    grace_ms: int | None = None
    tolerances: Mapping[str, Decimal] = field(default_factory=dict)
    keys_max: int = 0

    @property
    def by_offsets(self) -> bool:
        return bool(self.offsets_from or self.offsets_to)


def question_of(from_text: str, to_text: str, of: str = EVENTS) -> Question:
    """Read a range as a person writes it: two times in RFC 3339, or two lists of offsets, ``[TOPIC/]PARTITION:OFFSET,…``.

    Raises UsageError where it is neither.
    """
    by_offsets = [OFFSETS.fullmatch(text) is not None for text in (from_text, to_text)]
    if all(by_offsets):
        return Question(offsets_from=_offsets(from_text), offsets_to=_offsets(to_text), of=of)
    if any(by_offsets):
        raise UsageError("One end of the range is a time, the other offsets.", remedy="Give two times, or offsets for both.")
    return Question(time_from=_time(from_text, "--from"), time_to=_time(to_text, "--to"), of=of)


def _offsets(text: str) -> dict[Place, int]:
    pairs = [part.rsplit(":", 1) for part in text.split(",")]
    found: dict[Place, int] = {}
    for place, offset in pairs:
        topic, _, number = place.rpartition("/")
        found[topic, int(number)] = int(offset)
    if len(found) < len(pairs):
        raise UsageError(f"{text!r} names a partition twice.", remedy="Give one offset for each partition.")
    return found


def _time(text: str, option: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or not EARLIEST <= time <= LATEST:
        raise UsageError(
            f"{option} must be a time in RFC 3339 with its zone, or offsets, and not {text!r}.",
            remedy="Write 2026-11-24T10:00:00Z, or PARTITION:OFFSET,PARTITION:OFFSET.",
        )
    return round(time.timestamp() * 1000)


def check(question: Question, now_ms: int) -> None:
    """Raise UsageError where a question has no answer, whatever the topics hold."""
    if question.of not in (EVENTS, RAW):
        raise UsageError(f"{question.of!r} cannot be replayed.", remedy=f"Use --of {EVENTS} or --of {RAW}.")
    if question.grace_ms is not None and question.grace_ms <= 0:
        raise UsageError("A grace of zero makes every write late.", remedy="Write it like 30s.")
    if question.by_offsets:
        _check_offsets(question)
        return
    begin, end, now = (rfc3339(time_of(time)) for time in (question.time_from, question.time_to, now_ms))
    _check_order(question.time_from, question.time_to, begin, end)
    if question.time_to > now_ms:
        raise UsageError(f"--to ({end}) lies in the future: it is {now}.", remedy="Ask for what has been written.")


def _check_offsets(question: Question) -> None:
    named = sorted({topic for topic, _ in (*question.offsets_from, *question.offsets_to)} - {OWN})
    if question.of == EVENTS and named:
        raise UsageError(
            f"Records of the events topic are chosen without a topic's name, and not of {named[0]}.",
            remedy="Leave it out; or read the feed's own topic: --of raw.",
        )
    if question.offsets_from.keys() != question.offsets_to.keys():
        raise UsageError("--from and --to name different partitions.", remedy="Give both offsets of each partition.")
    for place, start in question.offsets_from.items():
        end = question.offsets_to[place]
        _check_order(start, end, f"{place_text(*place)}:{start}", f"{place_text(*place)}:{end}")


def chosen_by(question: Question, pipeline: str, sources: Sequence[str], topics: Sequence[str]) -> dict[Partition, range]:
    """Return the raw records that a question chooses. ``sources``: the source's topics, ``topics``: all that the pipeline reads.

    Raises UsageError where it names a topic that is none of them, or names none where there are several.
    """
    found: dict[Partition, range] = {}
    for (topic, number), start in question.offsets_from.items():
        if topic == OWN and len(sources) > 1:
            raise UsageError(
                f"The source of {pipeline} has {len(sources)} topics, and {number}:{start} names none of them.",
                remedy=f"Write {place_text(sources[0], number)}:{start}.",
            )
        if topic != OWN and topic not in topics:
            raise UsageError(f"{topic} is no feed of {pipeline}.", remedy=f"Its feeds: {', '.join(topics)}.")
        at = Partition(topic or sources[0], number)
        if at in found:
            raise UsageError(f"{place_text(*at)} is named twice.", remedy="Give one offset for each partition.")
        found[at] = range(start, question.offsets_to[topic, number])
    return found


def place_text(topic: str, number: int) -> str:
    """Return a partition as a question names it."""
    return f"{topic}/{number}" if topic else str(number)


def _check_order(start: int, end: int, start_text: str, end_text: str) -> None:
    if start > end:
        raise UsageError(f"--from ({start_text}) lies after --to ({end_text}).", remedy="Give the earlier one first.")
    if start == end:
        raise UsageError(f"The range is empty: --from and --to are both {start_text}.", remedy="--to is not a part of it.")
