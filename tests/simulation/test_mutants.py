"""Every mutant still fits the product, and its story notices it; `make mutants` runs those for many seeds, too."""

import importlib.util
from pathlib import Path

import pytest

from tests.simulation.mutants.catalogue import MUTANTS
from tests.simulation.mutants.judge import run
from tests.simulation.mutants.mutant import Mutant

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_lines_are_there(mutant: Mutant) -> None:
    for edit in mutant.edits:
        spec = importlib.util.find_spec(edit.module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        assert edit.applied(source) != source
        compile(edit.applied(source), spec.origin, "exec")


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.story], ids=lambda mutant: mutant.name)
def test_its_story_notices_it(mutant: Mutant) -> None:
    assert (verdict := run("--mutant", mutant.name)).by, verdict.said


@pytest.mark.parametrize("story", sorted({each.story for each in MUTANTS} - {""}))
def test_a_story_ends_well_without_a_mutant(story: str) -> None:
    assert run("--story", story).said == f"story {story} did not notice it"
