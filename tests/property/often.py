"""How many examples a property of many steps is tried with: the same ones each time, unless somebody asks for others."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def often(examples: int) -> settings:
    """Return the settings; ``GAPWATCH_EXAMPLES=N`` in the environment asks for that many, chosen anew."""
    asked = os.environ.get("GAPWATCH_EXAMPLES")
    return settings(
        max_examples=int(asked) if asked else examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        derandomize=asked is None,
    )
