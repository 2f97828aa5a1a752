"""Runs a mutant, or a story or a seed without one, in a process of its own, and tells by what it was noticed."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_BOUND_S = 1800.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a process of its own said: by what it was noticed (empty: by nothing), and how."""

    by: str
    said: str
    seconds: float


def without(verdict: Verdict) -> Verdict:
    """The same seed or story, with nothing sabotaged."""
    kind, _, which = verdict.by.partition(" ")
    if kind == "seed":
        return run("--first", which, "--seeds", "1")
    return run("--story", which)


def run(*arguments: str) -> Verdict:
    """What the worker says that is started with these arguments."""
    command: Sequence[str] = (sys.executable, "-m", "tests.simulation.mutants.worker", *arguments)
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_BOUND_S, check=False)
    except subprocess.TimeoutExpired:
        return Verdict("", f"not done within {_BOUND_S:g} s", _BOUND_S)
    if done.returncode:
        return Verdict("", (done.stderr.strip().splitlines() or ["it failed and said nothing"])[-1], 0.0)
    return Verdict(**json.loads(done.stdout.splitlines()[-1]))
