"""Every directory here with a `commands` file is a scenario; what happens must be what `expected.log` says."""

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
    assert log.splitlines() == expected.read_text().splitlines()


@pytest.mark.parametrize("name", _SCENARIOS)
def test_scenario_is_told_to_people(name: str) -> None:
    lines = (_HERE / name / "README.md").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) < 10
