"""`python -m tests.simulation.sequences --examples 1000 --seed 7` runs many sequences and says what they covered.

The first that breaks something is made as short as can be, and printed with the end of its story.
"""

import argparse
import time

from tests.simulation.sequences.coverage import Coverage
from tests.simulation.sequences.running import run_sequences
from tests.simulation.swarm import quiet

_TOLD_EVERY = 50


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.sequences", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, metavar="N", help="how many sequences")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="how many rules each follows")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="what decides them all")
    parser.add_argument("--as-found", action="store_true", help="do not shorten a sequence that fails")
    options = parser.parse_args()
    quiet()
    began_s = time.monotonic()
    print(f"{options.examples} sequences from seed {options.seed}", flush=True)

    def progress(coverage: Coverage) -> None:
        if coverage.sequences % _TOLD_EVERY == 0:
            told = f"{coverage.sequences} sequences, {coverage.virtual_s / 3600:.1f} virtual hours"
            print(f"  {told}, {time.monotonic() - began_s:.0f} s", flush=True)

    coverage = run_sequences(
        examples=options.examples,
        steps=options.steps,
        seed=options.seed,
        shrink=not options.as_found,
        progress=progress,
    )
    print(coverage.table())
    if missing := coverage.missing():
        print(f"  never: {', '.join(missing)}")
    print(f"{coverage.summary()}; {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
