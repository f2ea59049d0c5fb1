"""A function's source, line by line, with the constants that it refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Code:
    """Collects lines at the current depth. Values are never written into source: they become named constants."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._constants: dict[str, Any] = {}
        self._depth = 0

    def line(self, *lines: str) -> None:
        for line in lines:
            self._lines.append("    " * self._depth + line)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Write `head` and indent what follows."""
        self.line(head)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def constant(self, value: Any) -> str:
        """Return the name under which the function sees `value`."""
        name = f"_{len(self._constants)}"
        self._constants[name] = value
        return name

    @property
    def source(self) -> str:
        """Everything written; in a head that ends in ``CONSTANTS):`` the constants are parameters, whose look-up is cheapest."""
        constants = ", ".join(f"{name}={name}" for name in self._constants)
        return "\n".join(self._lines).replace("CONSTANTS):", f"{constants}):") + "\n"

    def function(self, name: str) -> Callable[..., Any]:
        """Compile everything and return the function of that name."""
        namespace = dict(self._constants)
        exec(compile(self.source, f"<gapwatch {name}>", "exec"), namespace)  # noqa: S102 - holds names and literals of ours only
        made: Callable[..., Any] = namespace[name]
        return made
