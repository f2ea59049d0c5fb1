"""Data on standard output, as table, JSON, NDJSON or CSV; everything else on standard error."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any


def emit(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output: str, *, single: bool = False) -> None:
    """Print rows. JSON forms hold every field; a table and CSV hold `columns`. ``single``: JSON prints the one object."""
    if output == "json":
        print(json.dumps(rows[0] if single else list(rows), indent=2, ensure_ascii=False))
    elif output == "ndjson":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    elif output == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([_field(row.get(column)) for column in columns] for row in rows)
    else:
        _table(rows, columns)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=250)
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    console.print(table)


def _field(value: Any) -> str:
    """Return a value for CSV: whole and exact, null empty, what has members as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> str:
    """Return a value for people. Numbers stay whole (0.99999 is not 1); nothing in the data steers the terminal."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        text = " ".join(f"{name}={_cell(item)}" for name, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(_cell(item) for item in value)
    else:
        text = str(value)
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def note(text: str) -> None:
    """Say something to the person, beside the data."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar with rate and time left, on a terminal only."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=1.0, rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: float | None, counts: Mapping[str, int]) -> None:
        if self._bar is None:
            return
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
        elapsed = self._bar.tasks[0].elapsed
        rate = f"{max(counts.values()) / elapsed:,.0f}/s" if counts and elapsed else ""
        self._bar.update(self._task, completed=progress or 0.0, description=f"{self._what} {shown}", rate=rate)
