"""Plain topics: JSON documents that some producer writes, without any envelope (``feed: { topic: TOPIC, wrappers: […] }``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gapwatch.config import forms
from gapwatch.config.checks import Problem, topic_problem
from gapwatch.model.pipeline import FeedKind, FeedSpec, TopicsSpec


def plain_feed(form: forms.Feed) -> FeedSpec:
    return FeedSpec(
        kind=FeedKind.TOPIC, topic=form.topic or "", format=form.format or "json", wrappers=tuple(form.wrappers or ())
    )


def plain_problems(side: str, pipeline: forms.Pipeline, feed: forms.Feed, ours: TopicsSpec) -> Iterator[tuple[str, Problem]]:
    """Yield (option, problem) for a feed that is a plain topic."""
    problem = topic_problem(feed.topic or "", ours)
    if problem is not None:
        yield "topic", problem
    if feed.format not in (None, "json"):
        yield (
            "format",
            (f"A plain topic has no format {feed.format}.", "Write json, or { debezium: TOPIC } where Debezium writes it."),
        )
    for name, count in Counter(feed.wrappers or ()).items():
        if count > 1:
            yield "wrappers", (f"{name!r} stands there twice.", "Remove one.")
    clash = sorted(set(feed.wrappers or ()) & _members(side, pipeline))
    if clash:
        yield (
            "wrappers",
            (f"`{clash[0]}` is mapped as well: a record could mean either.", "Name only members that wrap documents."),
        )


def _members(side: str, pipeline: forms.Pipeline) -> set[str]:
    """Return the members of a document that are read."""
    if side == "source":
        paths = [form if isinstance(form, str) else form.from_ for form in pipeline.fields.values()]
        paths += [*pipeline.source.key, pipeline.source.version]
    else:
        paths = [*pipeline.fields, *pipeline.target.key, pipeline.target.version]
    return {part for path in paths if path for part in (path, path.split(".")[0])}
