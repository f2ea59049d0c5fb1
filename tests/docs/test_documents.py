"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_links_inside_the_documents_lead_somewhere() -> None:
    broken = []
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text())
        broken += [f"{document.relative_to(ROOT)} → {target}" for target in targets if not (document.parent / target).exists()]
    assert broken == []


def test_every_target_of_the_makefile_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    documented = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(phony.group(1).split()) == documented
