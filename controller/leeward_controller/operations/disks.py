"""Steps that bring an instance's disks to another node's pool, where the two nodes share none."""

import contextlib
from dataclasses import replace

from leeward.agent.types import GuestSpec, PoolSource
from leeward.errors import AgentUnavailable, NodeGone
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.images import ensure_image
from leeward_controller.operations.step import Advance


def moves_disks(context: StepContext) -> bool:
    """Whether the place that was chosen has another pool than the one that the disks are in."""
    return context.operation.work.target_pool_id != context.instance.pool_id


def spec_at_target(context: StepContext) -> GuestSpec:
    """The guest with the pool and run epoch that it gets at its new place."""
    work = context.operation.work
    return replace(context.instance.guest_spec(run_epoch=work.run_epoch), pool_id=work.target_pool_id)


async def pull_disks(context: StepContext) -> Advance:
    """Copy the disks of the stopped guest to the target's pool, unless both nodes have the same one."""
    if not moves_disks(context):
        return Advance()
    work, instance = context.operation.work, context.instance
    lease = context.view.leases.get(work.source_node)
    if lease is None:
        raise AgentUnavailable(f"nodes/{work.source_node} has no heartbeat, so its disks cannot be read")
    await ensure_image(
        context,
        node=work.target_node,
        pool_id=work.target_pool_id,
        digest=instance.image_digest,
        format=instance.image_format,
    )
    source = PoolSource(work.source_node, lease.report.address, instance.pool_id)
    agent = context.agent(work.target_node)
    await agent.pull_disk(context.caller, spec=spec_at_target(context), source=source)
    return Advance()


async def drop_pulled_disks(context: StepContext) -> Advance:
    """Undo of disks that were made at the target: those at the source are the guest's."""
    if moves_disks(context):
        with contextlib.suppress(NodeGone):
            agent = context.agent(context.operation.work.target_node)
            await agent.delete_disk(context.caller, spec=spec_at_target(context))
    return Advance()


async def delete_disks_in(context: StepContext, *, node: str, pool_id: str) -> None:
    """Delete the copy of the disks that was left in another pool than the instance's; what a lost node has stays."""
    if not node or pool_id == context.instance.pool_id:
        return
    with contextlib.suppress(NodeGone):
        spec = replace(context.instance.guest_spec(), pool_id=pool_id)
        await context.agent(node).delete_disk(context.caller, spec=spec)
