"""What the documentation names as a proof is there."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_TEST = re.compile(r"`([a-z_/]+/test_[a-z_]+\.py)::(test_[a-z0-9_]+)`")
_SCENARIOS = re.compile(r"scenarios? ((?:`[a-z_]+`(?:, )?)+)")
_PAGES = sorted([*_ROOT.glob("docs/**/*.md"), _ROOT / "README.md"])


@pytest.mark.parametrize("page", _PAGES, ids=[str(page.relative_to(_ROOT)) for page in _PAGES])
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name, function in _TEST.findall(text):
        file = _ROOT / "tests" / name
        assert file.exists(), name
        assert f"def {function}(" in file.read_text(), f"{name}::{function}"
    for names in _SCENARIOS.findall(text):
        for scenario in re.findall(r"`([a-z_]+)`", names):
            assert (_ROOT / "tests" / "scenarios" / scenario / "expected.log").exists(), scenario
