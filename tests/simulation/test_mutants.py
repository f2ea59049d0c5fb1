"""The simulation finds bugs: each mutant of ``app/`` still applies, and a seed notices it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutation import Caught, DoesNotApply, applied, hunt, known_seed, mutants

WANTED = 10
SEEDS_MAX = 200  # tried besides the known one, where that does not notice any more


@pytest.mark.parametrize("patch", mutants(), ids=lambda patch: patch.stem)
def test_a_mutant_is_caught(patch: Path) -> None:
    caught: Caught | None = hunt(patch, start=known_seed(patch), seeds=1) or hunt(patch, start=0, seeds=SEEDS_MAX)
    assert caught is not None, f"{SEEDS_MAX} seeds hold on {patch.stem}; make simulate ARGS=--mutants looks further"
    assert caught.violation


def test_the_mutants_that_were_asked_for_are_there() -> None:
    assert [patch.name[:2] for patch in mutants()][:WANTED] == [f"{number:02}" for number in range(1, WANTED + 1)]


def test_a_patch_that_does_not_fit_any_more_is_named(tmp_path: Path) -> None:
    whole = mutants()[0]
    (tmp_path / whole.name).write_text(whole.read_text().replace("raise_suspects", "raise_nothing"))
    with pytest.raises(DoesNotApply, match=whole.name), applied(tmp_path / whole.name):
        pass
