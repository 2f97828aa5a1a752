"""Random sequences of every operation with failures leave nothing behind; `make sequences` runs thousands of them."""

from collections.abc import Iterator

import pytest
import structlog

from tests.simulation.sequences.running import run_sequences
from tests.simulation.swarm import quiet

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The parts' own logs take longer than what they tell of."""
    before = structlog.get_config()
    quiet()
    yield
    structlog.configure(**before)


def test_no_sequence_leaves_anything_behind() -> None:
    coverage = run_sequences(examples=50, steps=25, seed=1)
    print(coverage.table())
    print(coverage.summary())
    # So few reach nearly every operation and state; what they do not reach, `make sequences` does.
    assert len(coverage.missing()) <= 5, coverage.missing()
