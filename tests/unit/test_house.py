"""The house rules that a linter does not know: size of functions and modules, what may stand in a commit."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "app", ROOT / "connectors")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 750

# Paths of one machine, and host names of package registries: they have no place in a file that others use.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home/\w+|Users/\w+|work|root)/")
REGISTRY_HOST = re.compile(r"files\.pythonhosted|registry\.npmjs|repo1?\.maven|proxy\.golang|static\.crates", re.IGNORECASE)


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from package.rglob("*.py")


def committed() -> Iterator[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    return (ROOT / name for name in names if name and (ROOT / name).is_file())


def test_functions_are_short() -> None:
    long = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_modules_say_what_they_hold_and_are_not_huge() -> None:
    wrong = []
    for path in modules():
        text = path.read_text()
        if len(text.splitlines()) > MODULE_LINES_MAX:
            wrong.append(f"{path.relative_to(ROOT)} is longer than {MODULE_LINES_MAX} lines")
        if text.strip() and ast.get_docstring(ast.parse(text)) is None:
            wrong.append(f"{path.relative_to(ROOT)} has no docstring")
    assert wrong == []


def test_no_machine_paths_and_no_registry_hosts() -> None:
    found = []
    for path in committed():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for pattern in (MACHINE_PATH, REGISTRY_HOST):
            found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_no_process_is_started_with_python_code_between_fork_and_exec() -> None:
    """``preexec_fn`` may wait for ever for a lock that another thread held at the fork: seen, with the whole service hanging."""
    assert [path.name for path in sorted((ROOT / "app").rglob("*.py")) if "preexec_fn=" in path.read_text()] == []


def test_lesson_47_what_runs_needs_only_what_is_installed_to_run() -> None:
    """A dependency that only developers had was missing where it ran."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in needed}
    from_where = packages_distributions()
    wanted: dict[str, str] = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wanted |= {name.partition(".")[0]: f"{path.relative_to(ROOT)}:{node.lineno}" for name in names}
    missing = {}
    for name, where in wanted.items():
        owners = {one.lower().replace("_", "-") for one in from_where.get(name, ())}
        if name not in sys.stdlib_module_names and not name.startswith("gapwatch") and not owners & declared:
            missing[name] = where
    assert missing == {}
