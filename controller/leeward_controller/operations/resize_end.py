"""The two ends of a resize: keep the new size and free the old disk, or go back to all that was before."""

from dataclasses import replace

from leeward.agent.types import GuestSpec
from leeward.errors import AgentUnavailable, NodeGone, NodeUnfit, NoNodeFits
from leeward_controller.domain.instance import Instance, Resize
from leeward_controller.domain.operation import OperationType, Work
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import delete_disks_in
from leeward_controller.operations.migrate import LONGEST_GRACE_S
from leeward_controller.operations.placing import choose_place, release_target, reservation_of
from leeward_controller.operations.running import bring_up, forget_on, halt, start_again
from leeward_controller.operations.step import Advance, Definition, Step

_GRACE_S = 60.0


def _kept(context: StepContext) -> Resize:
    resize = context.instance.resize
    assert resize is not None, "the table lets only a RESIZED instance come here"
    return resize


async def confirm(context: StepContext) -> Advance:
    """Free the old disk and the old place."""
    instance, kept = context.instance, _kept(context)
    await context.agent(instance.node).confirm_disk(context.caller, spec=instance.guest_spec())
    await delete_disks_in(context, node=kept.node, pool_id=kept.pool_id)
    return Advance(
        instance=lambda now: replace(now, state=kept.state_before, resize=None),
        reserve_on=instance.node,
        reservation=reservation_of(instance),
        release_from=(kept.node,) if kept.node != instance.node else (),
    )


async def place_back(context: StepContext) -> Advance:
    """Go back to the node it was on; where that is gone, to another one that has its disk.

    The place on the old node is still held, and its disk lies there or in a shared pool.
    """
    instance, kept = context.instance, _kept(context)
    before = _as_before(instance)
    work = replace(
        context.operation.work,
        source_node=instance.node,
        source_pool_id=instance.pool_id,
        target_node=kept.node,
        target_pool_id=kept.pool_id,
        run_epoch=instance.run_epoch + 1,
    )
    if kept.node == instance.node:
        return Advance(work=work)
    try:
        chosen = choose_place(context, named=kept.node, resources=kept.resources)
    except (NodeUnfit, NoNodeFits):
        if kept.pool_id != instance.pool_id:
            raise
        chosen = choose_place(context, resources=kept.resources)
    work = replace(work, target_node=chosen.node, target_pool_id=chosen.pool_id)
    if chosen.node == instance.node:
        return Advance(work=work)
    return Advance(work=work, reserve_on=chosen.node, reservation=reservation_of(before))


async def unplace_back(context: StepContext) -> Advance:
    """Undo: what the old node holds belongs to the resize and stays; another one is given back."""
    if context.operation.work.target_node in (context.instance.node, _kept(context).node):
        return Advance(work=replace(context.operation.work, target_node=""))
    return await release_target(context)


async def stop(context: StepContext) -> Advance:
    """Stop the guest with its new size."""
    await halt(context, grace_period_s=_GRACE_S)
    return Advance()


async def put_disk_back(context: StepContext) -> Advance:
    """The old disk is the disk again; what the guest wrote since the resize is gone.

    The epoch rises in the record now that nothing runs, so what is claimed behind this is never claimed a second time.
    """
    instance, kept, epoch = context.instance, _kept(context), context.operation.work.run_epoch
    if kept.pool_id == instance.pool_id:
        agent = context.agent_with_pool(instance.pool_id, preferred=instance.node)
        await agent.revert_disk(context.caller, spec=instance.guest_spec())
    return Advance(instance=lambda now: replace(now, run_epoch=max(now.run_epoch, epoch)))


async def start_back(context: StepContext) -> Advance:
    """Start it with its old size, if it was running; its record is as before with that.

    Where the node to go back to has died meanwhile, another one that has the disk does: the disk is the old one
    already, so there is no other way than on. Raises NodeGone when the disk was lost with the node.
    """
    work, kept, before = context.operation.work, _kept(context), _as_before(context.instance)
    try:
        await bring_up(context, node=work.target_node, spec=_old_spec(context), wanted=before.wanted_guest)
    except NodeGone as gone:
        if kept.pool_id != context.instance.pool_id:
            raise
        await context.remember(_going_elsewhere(context, gone))
        raise AgentUnavailable(f"{gone.message}; it is started on another node") from gone
    left = {work.source_node, kept.node, *work.excluded_nodes} - {work.target_node}
    return Advance(
        instance=lambda instance: replace(
            _as_before(instance), node=work.target_node, pool_id=work.target_pool_id, run_epoch=work.run_epoch
        ),
        reserve_on=work.target_node,
        reservation=reservation_of(before),
        release_from=tuple(sorted(left)),
    )


def _going_elsewhere(context: StepContext, gone: NodeGone) -> Work:
    """Another target, the node that it was resized on before others. Raises AgentUnavailable as long as none fits."""
    work, kept = context.operation.work, _kept(context)
    try:
        chosen = choose_place(context, preferred=work.source_node, resources=kept.resources)
    except (NodeUnfit, NoNodeFits) as error:
        raise AgentUnavailable(f"{gone.message}, and for now {error.message}") from error
    return replace(
        work,
        target_node=chosen.node,
        target_pool_id=chosen.pool_id,
        run_epoch=work.run_epoch + 1,
        excluded_nodes=(*work.excluded_nodes, work.target_node),
    )


def _old_spec(context: StepContext) -> GuestSpec:
    work = context.operation.work
    spec = _as_before(context.instance).guest_spec(run_epoch=work.run_epoch)
    return replace(spec, pool_id=work.target_pool_id)


def _as_before(instance: Instance) -> Instance:
    kept = instance.resize
    if kept is None:
        return instance
    return replace(
        instance, state=kept.state_before, flavor=kept.flavor, resources=kept.resources, node=kept.node, resize=None
    )


async def clear_new_place(context: StepContext) -> Advance:
    """Nothing is left of the new size where it ran."""
    work = context.operation.work
    if work.source_node != work.target_node:
        await forget_on(context, work.source_node)
    await delete_disks_in(context, node=work.source_node, pool_id=work.source_pool_id)
    return Advance()


CONFIRM_RESIZE = Definition(type=OperationType.CONFIRM_RESIZE, steps=(Step("confirm", confirm, deadline_s=120.0),))
REVERT_RESIZE = Definition(
    type=OperationType.REVERT_RESIZE,
    steps=(
        Step("place_back", place_back, undo=unplace_back, deadline_s=30.0),
        Step("stop", stop, undo=start_again, deadline_s=LONGEST_GRACE_S),
        Step("put_disk_back", put_disk_back, deadline_s=120.0, commits=True),
        Step("start_back", start_back, deadline_s=120.0),
        Step("clear_new_place", clear_new_place),
    ),
)
