"""Resize: give an instance another flavor, on its node or another, and keep all that it had until that is confirmed."""

from dataclasses import replace
from datetime import timedelta

from leeward.agent.types import GuestSpec
from leeward.errors import NodeUnfit, NoNodeFits
from leeward_controller.domain.instance import Instance, InstanceState, Resize, Resources
from leeward_controller.domain.operation import OperationType, ResizeArguments
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import drop_pulled_disks, pull_disks, spec_at_target
from leeward_controller.operations.migrate import LONGEST_COPY_S, LONGEST_GRACE_S
from leeward_controller.operations.placing import Place, choose_place, larger, release_target, reservation_of
from leeward_controller.operations.running import bring_up, forget_on, halt, leave_target, start_again
from leeward_controller.operations.step import Advance, Definition, Step

_GRACE_S = 60.0


def _arguments(context: StepContext) -> ResizeArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, ResizeArguments)
    return arguments


async def place(context: StepContext) -> Advance:
    """Choose the node, its own before others, and reserve there.

    On its own node it holds the larger of both sizes, so that neither keeping nor going back can fail for want of room.
    """
    instance, arguments = context.instance, _arguments(context)
    chosen = _choose(context)
    wanted = reservation_of(replace(instance, resources=arguments.resources))
    if chosen.node == instance.node:
        wanted = larger(wanted, reservation_of(instance))
    work = replace(
        context.operation.work,
        source_node=instance.node,
        target_node=chosen.node,
        target_pool_id=chosen.pool_id,
        source_pool_id=instance.pool_id,
        run_epoch=instance.run_epoch + 1,
    )
    return Advance(work=work, reserve_on=chosen.node, reservation=wanted)


def _choose(context: StepContext) -> Place:
    instance, arguments = context.instance, _arguments(context)
    if not arguments.node and instance.node not in context.operation.work.excluded_nodes:
        try:
            return choose_place(context, named=instance.node, resources=arguments.resources)
        except (NodeUnfit, NoNodeFits):
            pass  # Its own node has no room for it: any other one will do.
    return choose_place(context, named=arguments.node, resources=arguments.resources)


async def unplace(context: StepContext) -> Advance:
    """Hold no more than before."""
    work, instance = context.operation.work, context.instance
    if work.target_node and work.target_node == instance.node:
        freed = replace(work, target_node="", excluded_nodes=(*work.excluded_nodes, instance.node))
        return Advance(work=freed, reserve_on=instance.node, reservation=reservation_of(instance))
    return await release_target(context)


async def stop(context: StepContext) -> Advance:
    """Stop the guest where it is."""
    await halt(context, grace_period_s=_GRACE_S)
    return Advance()


async def grow_disk(context: StepContext) -> Advance:
    """Go on with a larger copy of the disk; the one before is kept beside it."""
    agent = context.agent(context.operation.work.target_node)
    await agent.resize_disk(context.caller, spec=_new_spec(context))
    return Advance()


async def put_disk_back(context: StepContext) -> Advance:
    """Undo of the larger copy."""
    agent = context.agent_with_pool(context.operation.work.target_pool_id, preferred=context.operation.work.target_node)
    await agent.revert_disk(context.caller, spec=_new_spec(context))
    return Advance()


def _new_spec(context: StepContext) -> GuestSpec:
    resources = _arguments(context).resources
    return replace(
        spec_at_target(context),
        vcpus=resources.vcpus,
        memory_mib=resources.memory_mib,
        disk_gib=resources.disk_gib,
    )


async def start_there(context: StepContext) -> Advance:
    """Start it with its new size, if it is meant to run; what it had before is recorded with that."""
    work, arguments, before = context.operation.work, _arguments(context), context.instance
    await bring_up(context, node=work.target_node, spec=_new_spec(context), wanted=before.wanted_guest)
    now = context.surroundings.clock.now()
    confirm_after_s = arguments.auto_confirm_after_s
    kept = Resize(
        flavor=before.flavor,
        resources=before.resources,
        node=before.node,
        pool_id=before.pool_id,
        state_before=before.state,
        confirm_time=now + timedelta(seconds=confirm_after_s) if confirm_after_s else None,
    )
    return Advance(instance=lambda instance: _resized(instance, kept, arguments.flavor, arguments.resources, context))


def _resized(instance: Instance, kept: Resize, flavor: str, resources: Resources, context: StepContext) -> Instance:
    work = context.operation.work
    return replace(
        instance,
        state=InstanceState.RESIZED,
        resize=kept,
        flavor=flavor,
        resources=resources,
        node=work.target_node,
        pool_id=work.target_pool_id,
        run_epoch=work.run_epoch,
    )


async def forget_source(context: StepContext) -> Advance:
    """Nothing stays defined on the node that it left; its disk there is kept until the resize is confirmed."""
    work = context.operation.work
    if work.source_node != work.target_node:
        await forget_on(context, work.source_node)
    return Advance()


RESIZE = Definition(
    type=OperationType.RESIZE,
    steps=(
        Step("place", place, undo=unplace, deadline_s=30.0),
        Step("stop", stop, undo=start_again, deadline_s=LONGEST_GRACE_S),
        Step("move_disks", pull_disks, undo=drop_pulled_disks, deadline_s=LONGEST_COPY_S),
        Step("grow_disk", grow_disk, undo=put_disk_back, deadline_s=LONGEST_COPY_S),
        Step("start_there", start_there, undo=leave_target, deadline_s=120.0, commits=True),
        Step("forget_source", forget_source),
    ),
    attempts=3,
)
