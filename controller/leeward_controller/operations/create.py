"""Launch: find a place, have the image there, make the disk, take the right to run, start."""

from dataclasses import replace

from leeward.errors import NodeGone
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import CreateArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.images import LONGEST_FETCH_S, ensure_image
from leeward_controller.operations.placing import choose_place, release_target, reservation_of
from leeward_controller.operations.step import Advance, Definition, Step


async def place(context: StepContext) -> Advance:
    """Choose node and pool and reserve there; the new run epoch is recorded with the choice."""
    arguments = context.operation.arguments
    assert isinstance(arguments, CreateArguments)
    chosen = choose_place(context, named=arguments.node)
    epoch = context.instance.run_epoch + 1
    work = replace(context.operation.work, target_node=chosen.node, target_pool_id=chosen.pool_id, run_epoch=epoch)
    return Advance(
        work=work,
        instance=lambda instance: replace(instance, node=chosen.node, pool_id=chosen.pool_id, run_epoch=epoch),
        reserve_on=chosen.node,
        reservation=reservation_of(context.instance),
    )


async def unplace(context: StepContext) -> Advance:
    """Give the place back. The next one may have another pool."""
    released = await release_target(context)
    return replace(released, instance=lambda instance: replace(instance, node="", pool_id=""))


async def fetch_image(context: StepContext) -> Advance:
    """Have the image in the pool that was chosen. What was fetched in vain stays for the next one, or is swept."""
    instance, work = context.instance, context.operation.work
    await ensure_image(
        context,
        node=work.target_node,
        pool_id=instance.pool_id,
        digest=instance.image_digest,
        format=instance.image_format,
    )
    return Advance()


async def create_disk(context: StepContext) -> Advance:
    """Make the copy-on-write root disk over the image."""
    await context.agent(context.operation.work.target_node).create_disk(
        context.caller, spec=context.instance.guest_spec()
    )
    return Advance()


async def delete_disk(context: StepContext) -> Advance:
    """Remove the disk again, through any node that has the pool."""
    agent = context.agent_with_pool(context.instance.pool_id, preferred=context.operation.work.target_node)
    await agent.delete_disk(context.caller, spec=context.instance.guest_spec())
    return Advance()


async def start(context: StepContext) -> Advance:
    """Take the right to run, and start the guest."""
    agent = context.agent_to_start(context.operation.work.target_node)
    spec = context.instance.guest_spec()
    await agent.claim_run_epoch(context.caller, spec=spec)
    await agent.start_guest(context.caller, spec=spec)
    now = context.surroundings.clock.now()
    return Advance(
        instance=lambda instance: replace(instance, state=InstanceState.ACTIVE, fault="", last_boot_time=now)
    )


async def remove_guest(context: StepContext) -> Advance:
    """Stop and forget the guest; on a fenced node there is nothing to stop."""
    try:
        agent = context.agent_to_end(context.operation.work.target_node)
    except NodeGone:
        return Advance()
    await agent.remove_guest(context.caller, uid=context.instance.uid)
    return Advance()


CREATE = Definition(
    type=OperationType.CREATE,
    steps=(
        Step("place", place, undo=unplace, deadline_s=30.0),
        Step("fetch_image", fetch_image, deadline_s=LONGEST_FETCH_S),
        Step("create_disk", create_disk, undo=delete_disk, deadline_s=120.0),
        Step("start", start, undo=remove_guest, deadline_s=120.0),
    ),
    state_after_failure=InstanceState.ERROR,
    attempts=3,
)
