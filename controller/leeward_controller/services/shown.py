"""An operation as it is shown to clients: with what it led to, and how far it is."""

from dataclasses import dataclass

from leeward import keys
from leeward.agent.types import MigrationPhase, MigrationProgress
from leeward.errors import NotFound
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation, OperationPhase, OperationType
from leeward_controller.operations.definitions import DEFINITIONS
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.records import INSTANCES, OPERATIONS, Records, Stored


@dataclass(frozen=True, slots=True)
class ShownOperation:
    """An operation, its instance as it is now (None when it is gone), and what a migration is doing.

    `operation.id` is empty for one that was only checked and never begun (`validate_only`).
    """

    operation: Operation
    revision: int = 0
    instance: Stored[Instance] | None = None
    progress: MigrationProgress | None = None

    @property
    def percent(self) -> int:
        """How much is done, 0 to 100; 100 only when it has succeeded."""
        if self.operation.phase is OperationPhase.SUCCEEDED:
            return 100
        definition = DEFINITIONS[self.operation.type]
        begun = definition.index_of(self.operation.step)
        share = _share_of_migration(self.progress) if self.operation.step == "migrate" else 0.0
        return min(99, int(100 * (begun + share) / len(definition.steps)))


def _share_of_migration(progress: MigrationProgress | None) -> float:
    if progress is None or progress.memory_total_bytes <= 0:
        return 0.0
    if progress.phase in (MigrationPhase.SWITCHING, MigrationPhase.COMPLETED):
        return 1.0
    return max(0.0, min(1.0, 1 - progress.memory_remaining_bytes / progress.memory_total_bytes))


class Presenter:
    """Gathers what belongs to an operation."""

    def __init__(self, *, records: Records, runner: OperationRunner) -> None:
        self._records = records
        self._runner = runner

    async def get(self, operation_id: str) -> ShownOperation:
        """An operation as it is now. Raises NotFound."""
        stored = await self._records.get(OPERATIONS, keys.operation(operation_id))
        if stored is None:
            raise NotFound.named(f"operations/{operation_id}")
        return await self.show(stored.value, stored.revision)

    async def show(self, operation: Operation, revision: int = 0) -> ShownOperation:
        """The same with its instance, where that is what it answers, and its progress."""
        instance = None
        if operation.phase is OperationPhase.SUCCEEDED and operation.type is not OperationType.DELETE:
            instance = await self._records.get(INSTANCES, keys.instance(operation.instance))
            if instance is not None and instance.value.uid != operation.instance_uid:
                instance = None
        return ShownOperation(operation, revision, instance, self._runner.progress.get(operation.id))
