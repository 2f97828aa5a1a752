"""Runs one mutant in a process of its own: what is loaded here is sabotaged for good.

Prints one line of JSON: what noticed it, and what it said; or that nothing did.
"""

import argparse
import importlib
import json
import time

from tests.simulation.mutants.catalogue import MUTANTS


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants.worker", description=__doc__)
    parser.add_argument("--mutant", metavar="NAME", help="sabotage this way; nothing without it")
    parser.add_argument("--first", type=int, default=0, metavar="K")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="instead of the mutant's own number")
    parser.add_argument("--story", default="", help="run this story; in place of the mutant's own")
    options = parser.parse_args()
    story, seeds = options.story, options.seeds
    if options.mutant:
        mutant = next(each for each in MUTANTS if each.name == options.mutant)
        mutant.install()
        story, seeds = story or mutant.story, seeds or mutant.seeds
    began_s = time.monotonic()
    by, said = _story(story) if story else _seeds(range(options.first, options.first + seeds))
    print(json.dumps({"by": by, "said": said, "seconds": round(time.monotonic() - began_s, 1)}))


def _seeds(seeds: range) -> tuple[str, str]:
    swarm = importlib.import_module("tests.simulation.swarm")
    swarm.quiet()
    for seed in seeds:
        outcome = swarm.run_seed(seed)
        if outcome.error is not None:
            return f"seed {seed}", _brief(outcome.error)
    return "", f"nothing noticed it in {len(seeds)} seeds"


def _story(name: str) -> tuple[str, str]:
    importlib.import_module("tests.simulation.swarm").quiet()
    stories = importlib.import_module("tests.simulation.mutants.stories")
    try:
        getattr(stories, name)()
    except Exception as error:  # noqa: BLE001  Whatever it raises, it has noticed.
        return f"story {name}", _brief(error)
    return "", f"story {name} did not notice it"


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:240]}"


if __name__ == "__main__":
    main()
