"""An operation as it is shown to clients: with what it led to, and how far it is."""

from dataclasses import dataclass, replace

from leeward import keys
from leeward.clock import Clock
from leeward.errors import NotFound
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof
from leeward_controller.domain.node_operation import DrainProgress, FenceNodeArguments, RemoveNodeArguments
from leeward_controller.domain.operation import (
    Arguments,
    Operation,
    OperationPhase,
    OperationType,
    SnapshotArguments,
)
from leeward_controller.operations.context import Progress
from leeward_controller.operations.definitions import DEFINITIONS
from leeward_controller.operations.percent import percent_done
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.operations.subject import Subject, operation_on
from leeward_controller.records import IMAGES, INSTANCES, NODES, OPERATIONS, Records, Stored
from leeward_controller.services.shown_nodes import NodeReader, ShownNode


@dataclass(frozen=True, slots=True)
class ShownOperation:
    """An operation, what it led to as it is now (None when it is gone), and what a migration or a drain is doing.

    That is the image for a snapshot, the proof for a fencing, else the instance or the node.

    `operation.id` is empty for one that was only checked and never begun (`validate_only`).
    """

    operation: Operation
    revision: int = 0
    instance: Stored[Instance] | None = None
    progress: Progress | None = None
    image: Stored[Image] | None = None
    node: ShownNode | None = None
    proof: FenceProof | None = None

    @property
    def percent(self) -> int:
        """How much is done, 0 to 100; 100 only when it has succeeded."""
        return percent_done(self.operation, self.progress)


class Presenter:
    """Gathers what belongs to an operation."""

    def __init__(self, *, records: Records, runner: OperationRunner, nodes: NodeReader, clock: Clock) -> None:
        self._records = records
        self._nodes = nodes
        self._runner = runner
        self._clock = clock

    async def get(self, operation_id: str) -> ShownOperation:
        """An operation as it is now. Raises NotFound."""
        stored = await self._records.get(OPERATIONS, keys.operation(operation_id))
        if stored is None:
            raise NotFound.named(f"operations/{operation_id}")
        return await self.show(stored.value, stored.revision)

    async def show(self, operation: Operation, revision: int = 0) -> ShownOperation:
        """The same with what it answers, where it has something, and its progress."""
        shown = ShownOperation(operation, revision, progress=self.progress_of(operation))
        if operation.phase is not OperationPhase.SUCCEEDED or operation.type is OperationType.DELETE:
            return shown
        if operation.node:
            return await self._with_node(shown)
        if isinstance(operation.arguments, SnapshotArguments):
            image = await self._records.get(IMAGES, keys.image(operation.arguments.image))
            made_here = image is not None and image.value.uid == operation.id
            return replace(shown, image=image if made_here else None)
        instance = await self._records.get(INSTANCES, keys.instance(operation.instance))
        same = instance is not None and instance.value.uid == operation.instance_uid
        return replace(shown, instance=instance if same else None)

    def progress_of(self, operation: Operation) -> Progress | None:
        """What this replica tells of it; else what its record tells."""
        moves = operation.work.moves
        return self._runner.progress.get(operation.id) or (DrainProgress(moves) if moves else None)

    async def _with_node(self, shown: ShownOperation) -> ShownOperation:
        operation = shown.operation
        if isinstance(operation.arguments, FenceNodeArguments):
            return replace(shown, proof=await self._nodes.proof(operation.node, operation.arguments.boot_id))
        if isinstance(operation.arguments, RemoveNodeArguments):
            return shown
        stored = await self._records.get(NODES, keys.node(operation.node))
        if stored is None or stored.value.uid != operation.node_uid:
            return shown
        return replace(shown, node=await self._nodes.gathered(stored))

    def only_checked(
        self,
        subject: Subject,
        wanted: OperationType,
        arguments: Arguments,
        principal: str,
        warnings: tuple[str, ...] = (),
    ) -> ShownOperation:
        """What would begin, for one who only asked whether it can."""
        operation = operation_on(
            subject,
            wanted,
            arguments,
            operation_id="",
            step=DEFINITIONS[wanted].steps[0].name,
            requested_by=principal,
            now=self._clock.now(),
        )
        return ShownOperation(replace(operation, warnings=warnings))
