"""Runs the state machine so that a seed decides everything."""

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.sequences.coverage import Coverage
from tests.simulation.sequences.machine import Sequences

Progress = Callable[[Coverage], None]


def run_sequences(
    *, examples: int, steps: int, seed: int, shrink: bool = True, progress: Progress = lambda _: None
) -> Coverage:
    """Run so many sequences of so many rules each; what they covered. Raises what the first one that fails raises.

    Each has a seed of its own, counted on from `seed`: hypothesis likes to vary what it has tried before, which finds
    little here and costs as much. `progress` is told after each sequence.
    """
    coverage = Coverage()

    class Run(Sequences):
        pass

    Run.coverage = coverage
    for number in range(seed, seed + examples):
        Run.failed = staticmethod(_telling(number, shrink=shrink))
        try:
            run_state_machine_as_test(seeded(number)(Run), settings=_settings(steps, shrink=shrink))
        except BaseException as error:
            error.add_note(f"sequence {number} failed; to replay it: make sequences EXAMPLES=1 SEED={number}")
            raise
        progress(coverage)
    return coverage


def _telling(number: int, *, shrink: bool) -> Callable[[Exception], None]:
    """Says once that a sequence fails, for shortening it may take minutes."""
    told: list[Exception] = []

    def tell(error: Exception) -> None:
        if shrink and not told:
            print(f"sequence {number} fails, and is being shortened: {str(error)[:300]}", flush=True)
            told.append(error)

    return tell


def _settings(steps: int, *, shrink: bool) -> settings:
    return settings(
        max_examples=2,  # The first is the simplest one, which is none.
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
