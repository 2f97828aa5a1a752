"""Remove a node: its record, what was reserved on it, and its proofs. One that comes back registers anew.

Its user in etcd is not touched: users and their rights are an administrator's, made and dropped by `leeward admin`.
"""

from leeward import keys
from leeward.errors import FailedPrecondition, Violation
from leeward_controller.domain.node import Node
from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step
from leeward_controller.records import ALLOCATIONS, INSTANCES, Records


async def remove(context: StepContext) -> Advance:
    """Remove it, if it still may be. Raises FailedPrecondition."""
    await check_removable(context.surroundings.records, context.node)
    return Advance(remove_node=True)


async def check_removable(records: Records, node: Node) -> None:
    """Raises FailedPrecondition while its heartbeat is there (reason NODE_ALIVE), or something is on it (NOT_EMPTY).

    One that is alive would register anew at once.
    """
    if await records.store.get(keys.lease(node.node)) is not None:
        raise FailedPrecondition(
            f"{node.name} is alive: drain it and stop its agent, else it would register anew at once",
            reason="NODE_ALIVE",
            violations=[Violation("HEARTBEAT", node.name, "its heartbeat must have ended")],
            resource=node.name,
        )
    allocation = await records.get(ALLOCATIONS, keys.allocation(node.node))
    held = {reservation.instance for reservation in allocation.value.reservations} if allocation else set()
    held |= {stored.value.name for stored in (await records.list(INSTANCES)).items if stored.value.node == node.node}
    if held:
        told = ", ".join(sorted(held)[:8])
        raise FailedPrecondition(
            f"{node.name} is not empty: {told}",
            reason="NOT_EMPTY",
            violations=[Violation("INSTANCE", name, f"is on {node.name}") for name in sorted(held)],
            resource=node.name,
        )


REMOVE_NODE = Definition(
    type=OperationType.REMOVE_NODE,
    steps=(Step("remove", remove, deadline_s=30.0),),
)
