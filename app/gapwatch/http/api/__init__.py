"""The API under ``/api/v1``: one module per noun, one :class:`~gapwatch.http.routing.Route` per endpoint."""

from __future__ import annotations

from gapwatch.http.api import gaps, pipelines, records, repairs, runs
from gapwatch.http.routing import Route

ROUTES: tuple[Route, ...] = (*pipelines.ROUTES, *gaps.ROUTES, *runs.ROUTES, *repairs.ROUTES, *records.ROUTES)
