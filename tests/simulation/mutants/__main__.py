"""`python -m tests.simulation.mutants`: sabotage the product line by line, and see each sabotage noticed.

Each mutant runs in a process of its own, two at a time. What a mutant is noticed by is run once more without it, since
a seed that fails by itself has noticed nothing. Exits with 1 when a mutant is not noticed, or does not fit any more.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.simulation.mutants.catalogue import MUTANTS
from tests.simulation.mutants.judge import run, without
from tests.simulation.mutants.mutant import Mutant


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
    verdict = run("--mutant", mutant.name)
    told, good = "caught" if verdict.by else "NOT CAUGHT", bool(verdict.by)
    if mutant.harmless:
        told, good = ("NOT HARMLESS" if verdict.by else "harmless"), not verdict.by
    elif verdict.by and (sound := without(verdict)).by:
        told, good = f"NOT SOUND ({sound.said} without it)", False
    by = f" by {verdict.by}" if verdict.by else ""
    print(f"{told}: {mutant.name}{by}: {verdict.said} ({verdict.seconds:.0f} s)", flush=True)
    return good


if __name__ == "__main__":
    main()
