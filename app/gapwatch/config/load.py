"""Read and check the configuration: all problems at once, each with its line and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gapwatch.config import forms
from gapwatch.config.build import build
from gapwatch.config.source import Document, Place, dotted, read
from gapwatch.errors import ConfigError, ConfigProblem
from gapwatch.model.pipeline import Settings

DEFAULT_FILE = Path("gapwatch.yaml")
PRUNINGS_MAX = 8  # a wrong leaf, the form that needs it, and so on upwards
_NOTHING = object()
_MISSING = "missing"
_PHRASES = {
    "string_type": "It should be text.",
    "int_type": "It should be a whole number.",
    "float_type": "It should be a number.",
    "finite_number": "It should be a number.",
    "bool_type": "It should be true or false.",
    "list_type": "It should be a list.",
    "model_type": "It should be a mapping.",
    "dict_type": "It should be a mapping.",
    "string_too_short": "It is empty.",
    "too_short": "It has no entry.",
}


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings of `path` (else ``GAPWATCH_CONFIG``, else ``gapwatch.yaml`` here) and the environment.

    Raises:
        ConfigError: with every problem found.
    """
    file = path or Path(environ.get("GAPWATCH_CONFIG") or DEFAULT_FILE)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        problem = ConfigProblem("the file", f"It cannot be read: {error.strerror}.", remedy="Name another one with --config.")
        raise ConfigError([problem], file=str(file)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            [ConfigProblem("the file", "It is not UTF-8 text.", remedy="Save it as UTF-8.")], file=str(file)
        ) from error
    return parse(text, environ, file=str(file))


def parse(text: str, environ: Mapping[str, str], *, file: str = "gapwatch.yaml") -> Settings:
    """Return the settings of a YAML text; raises ConfigError with every problem found."""
    document = read(text, environ)
    form = _validated(document) if document.parsed else None
    settings = None
    if form is not None:
        first = list(document.problems)
        settings = build(form, document, file)
        wrong = [problem.place for problem in first]
        later = document.problems[len(first) :]
        document.problems = first + [problem for problem in later if not _about_one_of(problem.place, wrong)]
    if document.problems or settings is None:
        raise ConfigError(sorted(document.problems, key=lambda problem: problem.line or 0), file=file)
    return settings


def _about_one_of(place: str, wrong: Iterable[str]) -> bool:
    """Say whether a place is, holds or lies in one that is wrong already: what is said of it would be a consequence."""
    return any(f"{place}.".startswith(f"{other}.") or f"{other}.".startswith(f"{place}.") for other in wrong)


def _validated(document: Document) -> forms.File | None:
    """Return the form; where parts of it are wrong, the rest of it, so that the rest is checked too."""
    tree = document.tree
    for _ in range(PRUNINGS_MAX):
        try:
            return forms.File.model_validate(tree)
        except ValidationError as error:
            found = _errors(error, tree)
            if tree is document.tree:
                _report(found, document)
                tree = deepcopy(tree)
            for place, kind, _message in found:
                _prune(tree, place, kind)
    return None


def _errors(error: ValidationError, tree: Any) -> list[tuple[Place, str, str]]:
    """Return place, kind and message of each problem. Of a union, only the member of the value's shape says something useful."""
    found = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        kind = detail["type"]
        place: Place = ()
        at, member, kept = tree, False, True
        for number, part in enumerate(detail["loc"]):
            below = _entry(at, part)
            if below is not _NOTHING:
                place, at = (*place, part), below
            elif number == len(detail["loc"]) - 1 and kind == _MISSING:
                place = (*place, part)
            else:  # the name of a union's member
                scalar = str(part) == "str" or str(part).startswith("literal[")
                member = member or scalar
                kept = kept and scalar != isinstance(at, Mapping)
        if kept:
            found.append((place, "none" if at is None and kind != _MISSING else kind, detail["msg"] + " or a mapping" * member))
    return found


def _report(found: Iterable[tuple[Place, str, str]], document: Document) -> None:
    wrong = [problem.place for problem in document.problems]
    for place, kind, text in found:
        if dotted(place) not in wrong:
            document.problem(place, *_explain(kind, text, place))


def _prune(tree: Any, place: Place, kind: str) -> None:
    """Take what is wrong out of `tree`: the value itself, or the form that lacks one."""
    if place[:1] == ("kafka",):  # nothing else hangs on it, but there must be one
        tree["kafka"] = {"bootstrap_servers": "-"}
        return
    place = place[:-1] if kind == _MISSING and len(place) > 1 else place
    for part in place[:-1]:
        tree = _entry(tree, part)
    if isinstance(tree, dict):
        tree.pop(place[-1], None)
    elif isinstance(tree, list):
        tree.clear()


def _entry(tree: Any, part: str | int) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(part, _NOTHING)
    return tree[part] if isinstance(tree, list) and isinstance(part, int) and part < len(tree) else _NOTHING


def _explain(kind: str, message: str, place: Place) -> tuple[str, str]:
    if kind == "extra_forbidden":
        known = known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        return "There is no such key.", f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(known)}."
    if kind == _MISSING:
        return "It is missing.", "Add it."
    if kind == "none":
        return "It is empty.", "Write a value, or remove the key."
    if kind in _PHRASES:
        return _PHRASES[kind].replace("text.", "text or a mapping.") if message.endswith("a mapping") else _PHRASES[kind], ""
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return f"It should be {text}." if message.startswith("Input should be ") else f"{text[:1].upper()}{text[1:]}.", ""


def known_keys(place: Place) -> list[str]:
    """Return the keys that the form knows at `place`."""
    model: Any = forms.File
    for part in place:
        model = _below(model, part)
        if model is None:
            return []
    if isinstance(model, type) and issubclass(model, BaseModel):
        return sorted(field.alias or name for name, field in model.model_fields.items())
    return []


def _below(model: Any, part: str | int) -> Any:
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                return field.annotation if _is_form(field.annotation) else _member(field.annotation)
        return None
    arguments: tuple[Any, ...] = getattr(model, "__args__", ())
    return next((argument for argument in arguments if _is_form(argument)), None) or (
        _member(arguments[1]) if len(arguments) == 2 else None
    )


def _is_form(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _member(annotation: Any) -> Any:
    """Return the form inside a union, or the mapping whose values are forms."""
    if getattr(annotation, "__origin__", None) is dict:
        return annotation
    return next((argument for argument in getattr(annotation, "__args__", ()) if _is_form(argument)), None)
