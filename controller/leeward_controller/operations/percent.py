"""How much of an operation is done."""

from leeward.agent.types import MigrationPhase
from leeward_controller.domain.node_operation import DrainProgress
from leeward_controller.domain.operation import Operation, OperationPhase
from leeward_controller.operations.context import Progress
from leeward_controller.operations.definitions import DEFINITIONS

_COPYING_STEP = "migrate"


def percent_done(operation: Operation, progress: Progress | None) -> int:
    """From 0 to 100; 100 only when it has succeeded."""
    if operation.phase is OperationPhase.SUCCEEDED:
        return 100
    definition = DEFINITIONS[operation.type]
    begun = definition.index_of(operation.step)
    return min(99, int(100 * (begun + _share_of_step(operation, progress)) / len(definition.steps)))


def _share_of_step(operation: Operation, progress: Progress | None) -> float:
    if isinstance(progress, DrainProgress):
        return progress.share
    if progress is None or operation.step != _COPYING_STEP or progress.memory_total_bytes <= 0:
        return 0.0
    if progress.phase in (MigrationPhase.SWITCHING, MigrationPhase.COMPLETED):
        return 1.0
    return max(0.0, min(1.0, 1 - progress.memory_remaining_bytes / progress.memory_total_bytes))
