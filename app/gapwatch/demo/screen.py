"""The demo's terminal view: what the pipeline says beside what Gapwatch says."""

from __future__ import annotations

from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gapwatch.demo.story import Scene

COLOURS = {"HEALTHY": "green", "WARNING": "yellow", "UNKNOWN": "magenta", "ERROR": "red", "CRITICAL": "bold red"}
GAPS_SHOWN = 12


def render(scene: Scene) -> RenderableType:
    """Return one screen: two panels side by side, the gaps below, the step and the page's address at the foot."""
    panels = Columns(
        [Panel(_pipeline(scene), title="What the pipeline says"), Panel(_gapwatch(scene), title="What Gapwatch says")]
    )
    foot = Text(f"{scene.act}   page: {scene.page or '-'}   rows written: {scene.written}", style="dim")
    return Group(panels, _gaps(scene.gaps), foot)


def _pipeline(scene: Scene) -> RenderableType:
    says = scene.pipeline_says
    table = Table.grid(padding=(0, 2))
    rows = (
        ("connector", says.get("connector_state", "-")),
        ("tasks", ", ".join(says.get("task_states", [])) or "-"),
        ("consumer lag", says.get("lag", "-")),
        ("dead letters", says.get("dead_letter_records", "-")),
        ("rows in Postgres", says.get("source_count", "-")),
        ("documents in MongoDB", says.get("target_count", "-")),
    )
    for name, value in rows:
        table.add_row(name, Text(str(value), style="green" if value in ("RUNNING", 0) else ""))
    return table


def _gapwatch(scene: Scene) -> RenderableType:
    view = scene.pipeline
    status = str(view.get("status", "-"))
    table = Table.grid(padding=(0, 2))
    table.add_row("status", Text(status, style=COLOURS.get(status, "")))
    for reason in view.get("reasons", [])[:3]:
        table.add_row("", Text(reason, style="dim"))
    table.add_row("consistent through", view.get("consistent_through") or "undefined")
    table.add_row("pending / in transit", f"{view.get('pending_keys', '-')} / {view.get('in_transit_keys', '-')}")
    coverage = view.get("coverage")
    table.add_row("coverage", "-" if coverage is None else f"{coverage:.2%}")
    kinds = ", ".join(f"{kind} {count}" for kind, count in view.get("gaps_open", {}).items() if count)
    table.add_row("open gaps", Text(kinds or "none", style="red" if kinds else "green"))
    return table


def _gaps(gaps: list[dict[str, Any]]) -> RenderableType:
    table = Table("order", "kind", "cause", "written", "evidence", expand=True, title=f"{len(gaps)} open gaps")
    for gap in gaps[:GAPS_SHOWN]:
        table.add_row(gap["key_text"], gap["kind"], gap["cause"], (gap["event_time"] or "-")[11:23], evidence(gap))
    if len(gaps) > GAPS_SHOWN:
        table.add_row("…", f"{len(gaps) - GAPS_SHOWN} more", "", "", "")
    return table


def evidence(gap: dict[str, Any]) -> str:
    """Return the first stream record that anyone can read back, or what was read."""
    for row in gap["evidence"]:
        if row.get("topic"):
            return f"{row['topic']} [{row['partition']}] @ {row['offset']}"
    return ", ".join(f"{row['side']} {row.get('read', '')}" for row in gap["evidence"])
