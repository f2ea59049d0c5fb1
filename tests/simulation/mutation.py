"""Mutants: patches of ``app/`` that break one rule each, and the hunt for a seed that notices.

A mutant is applied to a copy of ``app/`` in a temporary folder, which the simulation runs on in a process of its own. A patch
holds, before its first file, what it breaks and (``Seed:``) one seed that is known to catch it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "mutants"
SEEDS_MAX = 2_000  # that a hunt tries
CODE = "import gapwatch, sys; sys.exit(not gapwatch.__file__.startswith(sys.argv[1]))"


class DoesNotApply(Exception):  # noqa: N818 - reads as a state
    """The code that a patch was made for is not there any more: make it anew."""


class Caught(NamedTuple):
    seed: int
    tried: int
    violation: str


def mutants() -> Sequence[Path]:
    """Return the patches, in their order."""
    return sorted(FOLDER.glob("*.patch"))


def known_seed(patch: Path) -> int:
    """Return the seed that is known to catch a mutant."""
    found = re.search(r"^Seed: (\d+)$", patch.read_text(), re.MULTILINE)
    assert found is not None, f"{patch.name} has no line `Seed: <number>`"
    return int(found[1])


@contextmanager
def applied(patch: Path) -> Iterator[Path]:
    """Yield the folder that holds the mutated ``gapwatch``. Raises DoesNotApply where the patch does not fit."""
    with TemporaryDirectory(prefix="mutant-") as folder:
        shutil.copytree(ROOT / "app", Path(folder) / "app", ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", str(patch)],
            cwd=folder,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(Path(folder).parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DoesNotApply(f"{patch.name} does not apply to app/ any more: {done.stderr.strip()}")
        yield Path(folder) / "app"


def hunt(patch: Path, *, start: int, seeds: int) -> Caught | None:
    """Run seeds on a mutant until one fails; None when all of them hold."""
    with applied(patch) as app:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(app), str(ROOT / "connectors"), str(ROOT)])}
        subprocess.run([sys.executable, "-c", CODE, str(app)], cwd=ROOT, env=environment, check=True)
        asked = ["--start", str(start), "--seeds", str(seeds), "--jobs", "1", "--first", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", *asked],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"The simulation did not run on {patch.name}.")
        said = json.loads(done.stdout)
    if not said["failed"]:
        return None
    first = said["failed"][0]
    return Caught(first["seed"], said["seeds"], first["violation"])
