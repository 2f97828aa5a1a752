"""Every directory here with a `commands` file is a scenario; what happens must be what `expected.log` says."""

import difflib
import os
from pathlib import Path

import pytest

from tests.scenarios.runner import play

_HERE = Path(__file__).parent
_SCENARIOS = sorted(path.parent.name for path in _HERE.glob("*/commands"))


@pytest.mark.parametrize("name", _SCENARIOS)
def test_scenario(name: str) -> None:
    log = play(_HERE / name)
    expected = _HERE / name / "expected.log"
    if os.environ.get("UPDATE") == "1":
        expected.write_text(log)
    told, seen = expected.read_text().splitlines(), log.splitlines()
    if told != seen:
        difference = difflib.unified_diff(told, seen, f"{name}/expected.log", "what happened now", lineterm="", n=2)
        pytest.fail("\n".join([*difference, "UPDATE=1 pytest tests/scenarios keeps what happened now"]), pytrace=False)


@pytest.mark.parametrize("name", _SCENARIOS)
def test_scenario_is_told_to_people(name: str) -> None:
    lines = (_HERE / name / "README.md").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) < 10
