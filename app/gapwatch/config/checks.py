"""Checks of single values: each returns what is wrong and what to do, or None. No value is repeated: it may be a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from zoneinfo import ZoneInfo

from gapwatch.config import forms
from gapwatch.model.pipeline import FieldSpec, KeyColumn, TopicsSpec

Problem = tuple[str, str]
TOPIC_CHARACTERS_MAX = 249
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
# What our clients set themselves, because a guarantee rests on it.
GUARDED_OPTIONS = {
    "bootstrap.servers": "Write kafka.bootstrap_servers.",
    "metadata.broker.list": "Write kafka.bootstrap_servers.",
    **dict.fromkeys(
        (
            "acks",
            "allow.auto.create.topics",
            "auto.offset.reset",
            "client.id",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "enable.idempotence",
            "enable.partition.eof",
            "group.id",
            "isolation.level",
            "message.timeout.ms",
            "queue.buffering.max.messages",
            "request.required.acks",
            "transactional.id",
        ),
        "Remove it.",
    ),
}
# Which options of a field mean something for which types; for a type that is not given, each may.
_OPTION_TYPES = {
    "tolerance": ("int", "decimal", "float"),
    "scale": ("decimal",),
    "digits": ("float",),
    "precision": ("timestamp", "time"),
    "rounding": ("decimal", "timestamp", "time"),
    "timezone": ("timestamp",),
    "multiset": ("array",),
    "nfc": ("text",),
}


def address_problem(url: str) -> Problem | None:
    """Say whether it can be told where the account in an address ends: else a password could not be hidden."""
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if url.count("@") > 1 or ("@" in url and "@" not in authority):
        return "Its user name or password holds a reserved character.", "Write %40 for @, %2F for /, %3F for ? and %23 for #."
    return None


def topic_problem(topic: str, ours: TopicsSpec | None = None) -> Problem | None:
    """Say whether Kafka takes the name, and whether the topic is not one that we write ourselves."""
    if not _TOPIC.fullmatch(topic) or topic in (".", "..") or len(topic) > TOPIC_CHARACTERS_MAX:
        return "It is no name of a topic.", f"Use letters, digits, `.`, `_` and `-`; at most {TOPIC_CHARACTERS_MAX}."
    if ours is not None and topic in (ours.events, ours.suspects, ours.status, ours.gaps, ours.dead_letters):
        return "This is one of Gapwatch's own topics.", "Name the topic that the connector writes."
    return None


def option_problem(name: str) -> Problem | None:
    remedy = GUARDED_OPTIONS.get(name)
    return None if remedy is None else ("Gapwatch sets this itself, because guarantees rest on it.", remedy)


def field_problems(form: forms.FieldForm) -> Iterator[tuple[str, Problem]]:
    """Yield (option, problem) for options that the field's type would ignore, and for values that nothing can use."""
    for option, types in _OPTION_TYPES.items():
        if option in form.model_fields_set and form.type is not None and form.type not in types:
            yield option, (f"A field of type {form.type} has no {option}.", f"Only {' and '.join(types)} have one.")
    if not _zone_exists(form.timezone):
        yield "timezone", ("There is no such time zone.", "Write one like UTC or Europe/Vienna.")


def _zone_exists(name: str) -> bool:
    try:
        return name in ("UTC", "Etc/UTC", "Z") or bool(ZoneInfo(name))
    except (KeyError, ValueError, OSError):  # unknown; an absolute path; a folder of zones
        return False


def path_problems(
    fields: Sequence[FieldSpec], source: Sequence[KeyColumn], target: Sequence[KeyColumn]
) -> Iterator[tuple[str, Problem]]:
    """Yield (target path, problem) where two mappings mean the same place of a document."""
    key_source = {there.path: here.path for here, there in zip(source, target, strict=False)}
    paths = [field.target for field in fields]
    for field in fields:
        path = field.target
        if not all(path.split(".")):
            yield path, ("It is no path: a part of it is empty.", "Write names with single dots between.")
            continue
        for other in (*paths, *key_source):
            if path.startswith(f"{other}."):
                yield path, (f"It lies within `{other}`, which is mapped too.", "Map one of the two.")
        if any(key.startswith(f"{path}.") for key in key_source):
            yield path, ("The key lies within it.", "Map its other members one by one.")
        if path in key_source and field.source != key_source[path]:
            yield path, (f"It is part of the key, which comes from `{key_source[path]}`.", "Map it from there, or not at all.")
