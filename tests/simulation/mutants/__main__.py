"""`python -m tests.simulation.mutants`: sabotage the product line by line, and see each sabotage noticed.

Each mutant runs in a process of its own, two at a time. What a mutant is noticed by is run once more without it, since
a seed that fails by itself has noticed nothing. Exits with 1 when a mutant is not noticed, or does not fit any more.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.mutants.catalogue import MUTANTS
from tests.simulation.mutants.mutant import Mutant

_ROOT = Path(__file__).parents[3]
_BOUND_S = 1800.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a process of its own said: by what it was noticed (empty: by nothing), and how."""

    by: str
    said: str
    seconds: float


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="tell what each sabotages, and run nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}: {mutant.sabotages}" + (f" Harmless: {mutant.harmless}" if mutant.harmless else ""))
        return
    with ThreadPoolExecutor(2) as processes:
        good = list(processes.map(_judge, chosen))
    wanted = sum(1 for mutant in chosen if not mutant.harmless)
    print(f"{wanted} mutants and {len(chosen) - wanted} harmless ones: {len(good) - sum(good)} not as they should be")
    sys.exit(0 if all(good) else 1)


def _judge(mutant: Mutant) -> bool:
    """Run one, and tell what came of it; whether that is as it should be."""
    verdict = _run("--mutant", mutant.name)
    told, good = "caught" if verdict.by else "NOT CAUGHT", bool(verdict.by)
    if mutant.harmless:
        told, good = ("NOT HARMLESS" if verdict.by else "harmless"), not verdict.by
    elif verdict.by and (sound := _without(verdict)).by:
        told, good = f"NOT SOUND ({sound.said} without it)", False
    by = f" by {verdict.by}" if verdict.by else ""
    print(f"{told}: {mutant.name}{by}: {verdict.said} ({verdict.seconds:.0f} s)", flush=True)
    return good


def _without(verdict: Verdict) -> Verdict:
    """The same seed or story, with nothing sabotaged."""
    kind, _, which = verdict.by.partition(" ")
    if kind == "seed":
        return _run("--first", which, "--seeds", "1")
    return _run("--story", which)


def _run(*arguments: str) -> Verdict:
    command: Sequence[str] = (sys.executable, "-m", "tests.simulation.mutants.worker", *arguments)
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_BOUND_S, check=False)
    except subprocess.TimeoutExpired:
        return Verdict("", f"not done within {_BOUND_S:g} s", _BOUND_S)
    if done.returncode:
        return Verdict("", (done.stderr.strip().splitlines() or ["it failed and said nothing"])[-1], 0.0)
    return Verdict(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
