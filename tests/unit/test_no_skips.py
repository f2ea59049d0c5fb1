"""A run in which anything was skipped fails: a suite that needs real stores must not be green without them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSES = "def test_passes():\n    pass\n"

TESTS = {  # what a run of its own is given, in a directory of its own: nothing of this suite is skipped by it
    "nothing is skipped": PASSES,
    "marked": f"import pytest\n{PASSES}@pytest.mark.skip\ndef test_other():\n    pass\n",
    "in a test": f"import pytest\n{PASSES}def test_other():\n    pytest.skip('no store')\n",
    "expected to fail": f"import pytest\n{PASSES}@pytest.mark.xfail\ndef test_other():\n    assert False\n",
    "in a fixture": "import pytest\n@pytest.fixture\ndef store():\n    pytest.skip('')\ndef test_other(store):\n    pass\n",
    "a whole module": f"import pytest\npytest.importorskip('no_such_driver')\n{PASSES}",
}


@pytest.mark.parametrize(("name", "workers"), [*((name, 0) for name in TESTS), ("in a test", 1), ("a whole module", 1)])
def test_l1_lesson_48_a_run_in_which_anything_was_skipped_fails(tmp_path: Path, name: str, workers: int) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS[name])
    (tmp_path / "test_others.py").write_text(PASSES)
    options = [
        "-p",
        "tests.plugins.no_skips",
        "-p",
        "no:cacheprovider",
        *(["-p", "xdist", "-n", str(workers)] if workers else []),
    ]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = int(TESTS[name] != PASSES)
    assert done.returncode == expected, done.stdout + done.stderr
    assert ("SKIPPED, which counts as a failure here: test_some.py" in done.stdout) == bool(expected)


def test_l1_every_run_of_the_suite_is_held_to_that() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"].split()
    assert "tests.plugins.no_skips" in options
    assert not {"-k", "-m", "--deselect", "--ignore", "--ignore-glob"} & set(options)
