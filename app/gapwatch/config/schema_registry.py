"""The part of the configuration that says where schemas of Avro and JSON Schema lie."""

from __future__ import annotations

from collections.abc import Iterator

from gapwatch.config import forms
from gapwatch.config.checks import Problem, address_problem
from gapwatch.config.render import mask_url
from gapwatch.config.source import Place
from gapwatch.model.pipeline import SchemaRegistrySpec


def registry_spec(form: forms.SchemaRegistry) -> SchemaRegistrySpec | None:
    """Return the registry, None where none is named."""
    if not form.url:
        return None
    place = ", ".join(mask_url(url.strip()) for url in form.url.split(","))
    return SchemaRegistrySpec(url=form.url, place=place, options=form.options)


def registry_problems(form: forms.SchemaRegistry) -> Iterator[tuple[Place, Problem]]:
    """Yield what is wrong, with its place in the section."""
    for url in form.url.split(",") if form.url else ():
        if not url.strip().startswith(("http://", "https://")):
            remedy = "Write it like http://localhost:8081, or …/apis/ccompat/v7 for Apicurio's."
            yield ("url",), ("It is no HTTP address.", remedy)
        if (problem := address_problem(url.strip())) is not None:
            yield ("url",), problem
    if form.options and not form.url:
        yield (), ("It has options and no address.", "Name it with url, or remove the options.")
