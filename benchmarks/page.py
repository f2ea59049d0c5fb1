"""``docs/performance.md``: every command rewrites its own section and leaves the others as they are."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SECTIONS = ("bench", "bench-workers", "bench-sweeps", "bench-service", "bench-peers", "simulate-scale")


def write(section: str, text: str, path: Path = PAGE) -> None:
    """Put `text` into the place of the section, between its two markers. Raises ValueError where the page lacks them."""
    path.write_text(replaced(path.read_text(), section, text))


def replaced(page: str, section: str, text: str) -> str:
    """Return the page with the text between the section's markers replaced."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page has no section {section}")
    return f"{page[: page.index(begin)]}{begin}\n{text.strip()}\n{page[page.index(end) :]}"
