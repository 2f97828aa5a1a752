"""Many seeds of the swarm on all processors: `python -m tests.simulation.many --seeds 2000`."""

import argparse
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass

from tests.simulation.swarm import quiet, run_seed
from tests.simulation.tally import Tally, told

_TOLD_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a seed, as far as it leaves the process that ran it. `failure` and `story` are empty if well."""

    seed: int
    failure: str
    story: str
    simulated_s: float
    tally: Tally


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.many", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="run seeds 0 to N-1")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="begin at K")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time")
    options = parser.parse_args()
    failed = run(range(options.first, options.first + options.seeds), workers=options.workers)
    sys.exit(1 if failed else 0)


def run(seeds: range, *, workers: int) -> list[int]:
    """Run them all, tell how it goes and what they covered; returns the seeds that failed."""
    began_s = told_s = time.monotonic()
    tally, failed, done, simulated_s = Tally(), list[int](), 0, 0.0
    with multiprocessing.get_context("spawn").Pool(workers, initializer=quiet) as pool:
        for ran in pool.imap_unordered(_run_one, seeds):
            done += 1
            simulated_s += ran.simulated_s
            tally.update(ran.tally)
            if ran.failure:
                failed.append(ran.seed)
                print(ran.story if len(failed) == 1 else f"seed {ran.seed} failed: {ran.failure}", flush=True)
            if time.monotonic() - told_s >= _TOLD_EVERY_S:
                told_s = time.monotonic()
                print(f"{done} of {len(seeds)} seeds, {len(failed)} failed, {told_s - began_s:.0f} s", flush=True)
    print(*told(tally), sep="\n")
    took_s = time.monotonic() - began_s
    print(f"{done} seeds, {len(failed)} failed; {simulated_s / 3600:.1f} simulated hours in {took_s:.0f} s")
    if failed:
        print("replay with:", *(f"make simulation SEED={seed}" for seed in sorted(failed)), sep="\n  ")
    return failed


def _run_one(seed: int) -> Ran:
    outcome = run_seed(seed)
    if outcome.error is None:
        return Ran(seed, "", "", outcome.simulated_s, outcome.tally)
    failure = f"{type(outcome.error).__name__}: {str(outcome.error)[:300]}"
    return Ran(seed, failure, outcome.story(), outcome.simulated_s, outcome.tally)


if __name__ == "__main__":
    main()
