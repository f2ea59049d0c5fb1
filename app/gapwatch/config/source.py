"""The file as it stands: YAML with the line of every key, ``${…}`` filled in, environment variables laid over it.

YAML guesses types (`no` a boolean, `010` eight); here the form decides. Every plain scalar, filled-in text and variable is
a :class:`Given` text, and becomes a number or a switch only where one is meant. What is quoted is text for good.
"""

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
OTHER_VARIABLES = frozenset({"CONFIG", "URL", "TOKEN", "CACHE", "DEBUG", "EMBEDDED", "NATIVE"})
# What Kubernetes puts into every container for a service called gapwatch or gapwatch-something.
_SERVICE_LINK = re.compile(r".*(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")
_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS = {
    yaml.ScalarNode: "tag:yaml.org,2002:str",
    yaml.MappingNode: "tag:yaml.org,2002:map",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
}
SECRET_FILE_BYTES_MAX = 1024 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Given(str):
    """A text whose type the form decides."""

    __slots__ = ()


@dataclass(slots=True)
class Document:
    """The merged tree, where each of its places is written, and what was wrong so far. ``parsed``: the YAML could be read."""

    tree: dict[str, Any]
    parsed: bool = True
    lines: dict[Place, int] = field(default_factory=dict)
    variables: dict[Place, str] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)

    def line_of(self, place: Place) -> int | None:
        """Return the line of `place`, or of the nearest place above it that the file holds."""
        while place:
            if place in self.lines:
                return self.lines[place]
            place = place[:-1]
        return None

    def problem(self, place: Place, message: str, remedy: str = "") -> None:
        """Add a problem, under the name of the variable where the value came from one."""
        above = [place[:length] for length in range(len(place), 0, -1)]
        variable = next((self.variables[laid] for laid in above if laid in self.variables), None)
        shown, line = (dotted(place), self.line_of(place)) if variable is None else (f"{variable}: {dotted(place)}", None)
        self.problems.append(ConfigProblem(shown, message, remedy=remedy, line=line))

    def add(self, place: Place, problem: tuple[str, str] | None) -> None:
        """Add a problem that a check returned as message and remedy, if it did."""
        if problem is not None:
            self.problem(place, *problem)


def dotted(place: Place) -> str:
    return ".".join(str(part) for part in place) or "the file"


def read(text: str, environ: Mapping[str, str]) -> Document:
    """Return the document of a YAML text with references and overrides applied; malformed YAML is its only problem then."""
    document = Document(tree={})
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        tree = {} if node is None else _walk(node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", column {mark.column + 1}" if mark else ""
        what = error.problem or error.context or "it cannot be parsed"
        return _unreadable(f"Not valid YAML: {what}.", where, mark.line + 1 if mark else None)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _unreadable(f"Not valid YAML: the character #x{error.character:04x} is not allowed.", "", line)
    except RecursionError:
        return _unreadable("It is nested too deeply, or within itself.", "", None)
    if isinstance(tree, dict):
        document.tree = _filled(tree, (), document, environ)
    else:
        document.parsed = False
        document.problem((), "The file must be a mapping.", "Begin with `kafka:`, `stores:` and `pipelines:`.")
    _override(document, environ)
    return document


def _unreadable(message: str, where: str, line: int | None) -> Document:
    problem = ConfigProblem(f"the YAML{where}", message, remedy="Mend the syntax there.", line=line)
    return Document(tree={}, parsed=False, problems=[problem])


def _walk(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines.setdefault(place, node.start_mark.line + 1)
    if node.tag != _TAGS[type(node)]:
        document.problem(place, f"The tag {node.tag} is not known.", "Write the value without a tag.")
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document)
    if isinstance(node, yaml.SequenceNode):
        return [_walk(item, (*place, number), document) for number, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:
        return str(node.value)
    return None if node.value in _NULLS else Given(node.value)


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.problem(place, "A key must be plain text.", "Write `key: value`.")
            continue
        key = str(key_node.value)
        here = (*place, key)
        document.lines[here] = key_node.start_mark.line + 1
        if key in tree:
            document.problem(here, "The key stands here a second time.", "Keep one of them.")
            continue
        tree[key] = _walk(value_node, here, document)
    return tree


def _filled(value: Any, place: Place, document: Document, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, (*place, key), document, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, (*place, number), document, environ) for number, item in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        if not match.group(2):
            document.problem(place, "A reference is not closed.", "Write ${NAME}; $$ for a dollar.")
            return ""
        return _reference(match.group(1), place, document, environ)

    return Given(_REFERENCE.sub(replace, value))


def _reference(text: str, place: Place, document: Document, environ: Mapping[str, str]) -> str:
    if text.startswith("file:"):
        path = Path(text.removeprefix("file:"))
        try:
            with path.open("rb") as file:
                return file.read(SECRET_FILE_BYTES_MAX).decode().rstrip("\r\n")
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
    """Lay ``GAPWATCH_A__B=value`` over ``a.b``. A value is text, to be typed by the form; `[…]` and `{…}` are read as YAML."""
    for variable in sorted(environ):
        rest = variable.removeprefix(ENVIRONMENT_PREFIX)
        if rest == variable or rest in OTHER_VARIABLES or ("__" not in rest and _SERVICE_LINK.fullmatch(rest)):
            continue
        tree = document.tree
        place: Place = ()
        *above, last = rest.split("__")
        for name in above:
            key = _existing(tree, name, place)
            place = (*place, key)
            if not isinstance(tree.get(key), dict):
                tree[key] = {}  # `feed: none` becomes `feed: { debezium: … }`
                document.variables[place] = variable
            tree = tree[key]
        key = _existing(tree, last, place)
        document.variables[(*place, key)] = variable
        tree[key] = _value(environ[variable])


def _value(text: str) -> Any:
    if text.strip().startswith(("[", "{")):
        try:
            node = yaml.compose(text, Loader=yaml.BaseLoader)
            return Given(text) if node is None else _walk(node, (), Document(tree={}))
        except (yaml.YAMLError, RecursionError):
            pass  # then it is a text that begins like that
    return Given(text)


def _existing(tree: Mapping[str, Any], name: str, place: Place) -> str:
    """Return the key that an upper-case variable part means: one that is there, whatever its case and marks, or a new one."""
    for key in tree:
        if re.sub(r"[-.]", "_", key).upper() == name.upper():
            return key
    return name.lower().replace("_", ".") if place == ("kafka", "options") else name.lower()
