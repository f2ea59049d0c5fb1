"""The file as it stands: YAML with the line of every key, ``${…}`` filled in, environment variables laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gapwatch.errors import ConfigProblem

Place = tuple[str | int, ...]
ENVIRONMENT_PREFIX = "GAPWATCH_"
# Variables with a meaning of their own, which are no part of the configuration file.
OTHER_VARIABLES = frozenset({"CONFIG", "URL", "TOKEN", "CACHE", "DEBUG", "PARENT"})
_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(slots=True)
class Document:
    """The merged tree, where each of its places is written, and what was wrong so far."""

    tree: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)

    def line_of(self, place: Place) -> int | None:
        """Return the line of `place`, or of the nearest place above it that the file holds."""
        while place:
            if place in self.lines:
                return self.lines[place]
            place = place[:-1]
        return None

    def problem(self, place: Place, message: str, remedy: str = "") -> None:
        self.problems.append(ConfigProblem(dotted(place), message, remedy=remedy, line=self.line_of(place)))


def dotted(place: Place) -> str:
    return ".".join(str(part) for part in place) or "the file"


def read(text: str, environ: Mapping[str, str]) -> Document:
    """Return the document of a YAML text with references and overrides applied; malformed YAML is its only problem then."""
    document = Document(tree={})
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        column = f", column {mark.column + 1}" if mark else ""
        what = error.problem or error.context or "it cannot be parsed"
        document.problems.append(
            ConfigProblem(f"the YAML{column}", f"Not valid YAML: {what}.", remedy="Mend the syntax there.", line=line)
        )
        return document
    if node is not None:
        loader = yaml.SafeLoader("")
        tree = _walk(loader, node, (), document)
        if isinstance(tree, dict):
            document.tree = tree
        else:
            document.problem((), "The file must be a mapping.", "Begin with `kafka:`, `stores:` and `pipelines:`.")
    document.tree = _filled(document.tree, (), document, environ)
    _override(document, environ)
    return document


def _walk(loader: yaml.SafeLoader, node: yaml.Node, place: Place, document: Document) -> Any:
    if place and place not in document.lines:
        document.lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                document.problem(place, "A key must be plain text.")
                continue
            here = (*place, key)
            if key in tree:
                document.lines[here] = key_node.start_mark.line + 1
                document.problem(here, "The key stands here a second time.", "Keep one of them.")
                continue
            document.lines[here] = key_node.start_mark.line + 1
            tree[key] = _walk(loader, value_node, here, document)
        return tree
    if isinstance(node, yaml.SequenceNode):
        return [_walk(loader, item, (*place, number), document) for number, item in enumerate(node.value)]
    return loader.construct_object(node)


def _filled(value: Any, place: Place, document: Document, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, (*place, key), document, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, (*place, number), document, environ) for number, item in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        return "$" if match.group() == "$$" else _reference(match.group(1), place, document, environ)

    return _REFERENCE.sub(replace, value)


def _reference(text: str, place: Place, document: Document, environ: Mapping[str, str]) -> str:
    if text.startswith("file:"):
        path = Path(text.removeprefix("file:"))
        try:
            return path.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            document.problem(place, f"The file {path} cannot be read: {reason}.", "Correct the path, or its rights.")
            return ""
    name, separator, default = text.partition(":-")
    if not _NAME.fullmatch(name):
        document.problem(
            place, f"${{{text}}} is no reference.", "Write ${NAME}, ${NAME:-default} or ${file:/path}; $$ for a dollar."
        )
        return ""
    if name in environ:
        return environ[name]
    if separator:
        return default
    document.problem(place, f"The environment variable {name} is not set.", f"Set it, or write ${{{name}:-default}}.")
    return ""


def _override(document: Document, environ: Mapping[str, str]) -> None:
    """Lay ``GAPWATCH_A__B=value`` over ``a.b``; values are read as YAML, so that numbers and lists can be given."""
    for variable in sorted(environ):
        rest = variable.removeprefix(ENVIRONMENT_PREFIX)
        if rest == variable or rest.split("__")[0] in OTHER_VARIABLES:
            continue
        names = rest.split("__")
        tree = document.tree
        place: list[str] = []
        for name in names[:-1]:
            place.append(_existing(tree, name))
            below = tree.setdefault(place[-1], {})
            if not isinstance(below, dict):
                document.problem(
                    (*place,), f"{variable} reaches below a value that is no mapping.", "Correct the variable's name."
                )
                return
            tree = below
        key = _existing(tree, names[-1])
        try:
            tree[key] = yaml.safe_load(environ[variable])
        except yaml.YAMLError:
            tree[key] = environ[variable]


def _existing(tree: Mapping[str, Any], name: str) -> str:
    """Return the key of `tree` that an upper-case variable part means: pipelines may have dashes and capitals."""
    for key in tree:
        if key.upper().replace("-", "_") == name.upper():
            return key
    return name.lower()
