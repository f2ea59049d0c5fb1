"""What the compiled module does to rows of keys (``native/src/rows.rs``): the common cases of ``core/hotpath``, in one pass."""

from __future__ import annotations

from typing import Any, Protocol

from gapwatch.model.stream import PackedSection

Rest = list[tuple[bytes, bytes]]  # key and write of each event, in their order
Told = list[tuple[int, PackedSection]]  # a section, after the first word of its writes: mapping, feed, partition


class CompiledRows(Protocol):
    """The module's hold on the columns of one ``KeyRows``. What is left over goes to the general path."""

    def expect(
        self,
        sections: Told,
        at: dict[bytes, int],
        keys: list[bytes | None],
        hold: int,
        rules: tuple[int, bool, bool, int],
        clock: int,
        /,
    ) -> tuple[int, int, int, int, int, Rest]:
        """Return how many keys are new, updated and joined; the next place in line; the earliest time; what is left over."""

    def observe(
        self,
        sections: Told,
        at: dict[bytes, int],
        keys: list[bytes | None],
        hold: int,
        open_max: int,
        bounds: list[int],
        clock: int,
        /,
    ) -> tuple[int, int, int, int, list[int], Rest]:
        """Return how many keys are new and settled; the next place in line; the earliest time; delays; what is left over."""


class RowsModule(Protocol):
    """What ``native/`` builds for role match."""

    def Rows(self, parts: int, /, *columns: Any) -> CompiledRows: ...  # noqa: N802 - a class of the module

    def late(self, event_times: bytes, operations: bytes, before: int, /) -> int:
        """Return how many events, reads aside, are of a time before this one."""

    def planes(self, words: Any, width: int, steps: tuple[int, int], /) -> bytes:
        """Return words by byte plane, those of the columns in `steps` as what they rise by from row to row."""
