"""Who rests, and is woken by what another role of the same process sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class Stirring:
    """Tells those who rest that something happens in their pipeline."""

    def __init__(self) -> None:
        self._woken: dict[str, list[Callable[[], None]]] = {}

    def waking(self, pipeline: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called whenever something happens; return what ends that."""
        woken = self._woken.setdefault(pipeline, [])
        woken.append(wake)
        return partial(woken.remove, wake)

    def stir(self, pipeline: str) -> None:
        """Say that an event of this pipeline has come."""
        for wake in self._woken.get(pipeline, ()):
            wake()
