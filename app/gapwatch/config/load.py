"""Read and check the configuration: all problems at once, each with its line and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gapwatch.config import forms
from gapwatch.config.build import build
from gapwatch.config.source import Document, Place, dotted, read
from gapwatch.errors import ConfigError, ConfigProblem
from gapwatch.model.pipeline import Settings

DEFAULT_FILE = Path("gapwatch.yaml")


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings of `path` (else ``GAPWATCH_CONFIG``, else ``gapwatch.yaml`` here) and the environment.

    Raises:
        ConfigError: with every problem found.
    """
    file = path or Path(environ.get("GAPWATCH_CONFIG") or DEFAULT_FILE)
    try:
        text = file.read_text()
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
    form = None if any(problem.place.startswith("the YAML") for problem in document.problems) else _validated(document)
    settings = build(form, document, file) if form is not None else None
    if document.problems or settings is None:
        raise ConfigError(sorted(document.problems, key=lambda problem: problem.line or 0), file=file)
    return settings


def _validated(document: Document) -> forms.File | None:
    try:
        return forms.File.model_validate(document.tree)
    except ValidationError as error:
        seen = {problem.place for problem in document.problems}
        for detail in error.errors(include_url=False, include_input=False, include_context=False):
            place = _place(detail["loc"], document.tree)
            if dotted(place) in seen:
                continue  # a union reports once for each of its members
            seen.add(dotted(place))
            message, remedy = _explain(detail["type"], detail["msg"], place)
            document.problem(place, message, remedy)
        return None


def _place(location: tuple[str | int, ...], tree: Any) -> Place:
    """Drop what pydantic adds to a location for members of a union: keep what leads through the tree."""
    place: list[str | int] = []
    for number, part in enumerate(location):
        last = number == len(location) - 1
        below = _entry(tree, part)
        if below is not None:
            place.append(part)
            tree = below
        elif last and isinstance(tree, Mapping) and isinstance(part, str) and part.isidentifier() and part[0].islower():
            place.append(part)
    return tuple(place)


def _entry(tree: Any, part: str | int) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(part)
    return tree[part] if isinstance(tree, list) and isinstance(part, int) and part < len(tree) else None


def _explain(kind: str, message: str, place: Place) -> tuple[str, str]:
    if kind == "extra_forbidden":
        known = known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        guess = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(known)}."
        return "There is no such key.", guess
    if kind == "missing":
        return "It is missing.", "Add it."
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
