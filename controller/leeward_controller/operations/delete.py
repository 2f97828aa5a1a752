"""Delete: stop whatever else is going on, then the guest, its disk, its place and its record."""

from leeward.errors import NodeGone
from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.predecessors import wait_for_predecessor
from leeward_controller.operations.step import Advance, Definition, Step


async def remove_guest(context: StepContext) -> Advance:
    """Kill the guest and forget it; on a fenced node it is dead already."""
    if not context.instance.node:
        return Advance()
    try:
        agent = context.agent(context.instance.node)
    except NodeGone:
        return Advance()
    await agent.remove_guest(context.caller, uid=context.instance.uid)
    return Advance()


async def delete_disk(context: StepContext) -> Advance:
    """Delete the disk through any node with the pool, and with it the place and the record.

    An instance without a run epoch never had a place, hence no disk.
    """
    if context.instance.run_epoch:
        agent = context.agent_with_pool(context.instance.pool_id, preferred=context.instance.node)
        await agent.delete_disk(context.caller, spec=context.instance.guest_spec())
    held = (context.instance.node,) if context.instance.node else ()
    return Advance(remove_instance=True, release_from=held)


DELETE = Definition(
    type=OperationType.DELETE,
    steps=(
        Step("wait_for_predecessor", wait_for_predecessor, deadline_s=120.0),
        Step("remove_guest", remove_guest, deadline_s=120.0, commits=True),
        Step("delete_disk", delete_disk, deadline_s=120.0),
    ),
)
