"""The demo's terminal view: what the pipeline says beside what Gapwatch says, every gap below, what was concluded at the foot."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gapwatch.demo.service import GRACE_SECONDS
from gapwatch.demo.story import Scene

COLOURS = {"HEALTHY": "bold green", "WARNING": "yellow", "UNKNOWN": "magenta", "ERROR": "bold red", "CRITICAL": "bold red"}
HEAD_LINES = 10  # the act, the panels and a blank line
GAPS_LINES = 4  # the table's title, head and caption
GAPS_LEAST = 3
WIDE_COLUMNS = 100
LABEL_COLUMNS = 19  # of the longest: pending, in transit


class Screen:
    """One scene, cut to the terminal's height: the newest gaps first."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scene = self._scene
        height = options.size.height - HEAD_LINES - GAPS_LINES - len(scene.conclusions) - 1
        yield Group(
            _head(scene),
            _panels(scene),
            _gaps(scene, max(GAPS_LEAST, height), wide=options.size.width >= WIDE_COLUMNS),
            *(Text(f"• {line}", style="bold") for line in scene.conclusions),
        )


def _head(scene: Scene) -> RenderableType:
    row = Table.grid(expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    elapsed = int(time.monotonic() - scene.began)
    row.add_row(
        Text(f"{elapsed // 60}:{elapsed % 60:02}  {scene.act}", style="bold"), Text(f"page: {scene.page}", style="cyan underline")
    )
    return row


def _panels(scene: Scene) -> RenderableType:
    row = Table.grid(expand=True)
    row.add_column(ratio=2)
    row.add_column(ratio=3)
    row.add_row(
        Panel(_pipeline(scene), title="What the pipeline says", height=8),
        Panel(_gapwatch(scene), title="What Gapwatch says", height=8),
    )
    return row


def _pipeline(scene: Scene) -> RenderableType:
    says = scene.pipeline_says
    table = Table.grid(padding=(0, 2))
    rows = (
        ("connector", says.get("connector_state")),
        ("tasks", ", ".join(says.get("task_states", [])) or None),
        ("consumer lag", says.get("lag")),
        ("dead letters", says.get("dead_letter_records")),
        ("rows in Postgres", says.get("source_count")),
        ("documents", says.get("target_count")),
    )
    for name, value in rows:
        table.add_row(name, Text("-" if value is None else f"{value}", style="green" if value in ("RUNNING", 0) else ""))
    return table


def _gapwatch(scene: Scene) -> RenderableType:
    view = scene.pipeline
    status = str(view.get("status", "-"))
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, min_width=LABEL_COLUMNS)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_row("status", Text(status, style=COLOURS.get(status, "")))
    table.add_row("why", Text("; ".join(view.get("reasons", [])) or "-"))
    table.add_row("consistent through", _through(view.get("consistent_through")))
    kinds = ", ".join(f"{kind} {count}" for kind, count in view.get("gaps_open", {}).items() if count)
    table.add_row("open gaps", Text(kinds or "none", style="bold red" if kinds else "green"))
    table.add_row("pending, in transit", f"{view.get('pending_keys', '-')}, {view.get('in_transit_keys', '-')} (lag, not loss)")
    coverage = view.get("coverage")
    table.add_row("coverage", "-" if coverage is None else f"{coverage:.2%} of {scene.written} rows written")
    return table


def _through(text: str | None) -> str:
    if text is None:
        return "undefined"
    behind = (datetime.now(UTC) - datetime.fromisoformat(text.replace("Z", "+00:00"))).total_seconds()
    return f"{text[11:19]} UTC, {max(0, behind):.0f} s behind now"


def _gaps(scene: Scene, most: int, *, wide: bool) -> RenderableType:
    if not scene.gaps:
        return Text(f"\nNo order was found wrong yet. A write is judged {GRACE_SECONDS} s after it was made, its grace.\n")
    states = Counter(str(gap["resolution"] or gap["state"]) for gap in scene.gaps)
    title = f"Orders found wrong: {len(scene.gaps)} ({', '.join(f'{count} {state}' for state, count in states.items())})"
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style="bold")
    for name in ("order", "what", "cause", *(("written",) if wide else ()), "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("evidence", no_wrap=True, overflow="ellipsis", ratio=1)
    shown = sorted(scene.gaps, key=lambda gap: str(gap["confirmed_at"]), reverse=True)[:most]
    for gap in shown:
        done = gap["state"] == "resolved"
        state = Text(str(gap["resolution"] if done else gap["state"]), style="green" if done else "bold red")
        written = ((gap["event_time"] or "-")[11:23],) if wide else ()
        table.add_row(gap["key_text"], gap["kind"], gap["cause"], *written, state, evidence(gap), style="dim" if done else "")
    if len(scene.gaps) > len(shown):
        table.caption, table.caption_justify = f"and {len(scene.gaps) - len(shown)} more", "left"
    return table


def evidence(gap: dict[str, Any]) -> str:
    """Return the first stream record that anyone can read back, or what was read."""
    for row in gap["evidence"]:
        if row.get("topic"):
            return f"{row['topic']} [{row['partition']}] @ {row['offset']}"
    return ", ".join(f"{row['side']} {row.get('read', '')}" for row in gap["evidence"])
