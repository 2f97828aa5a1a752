"""Shelve and unshelve: keep an instance as an image, free its node, and bring it back on any node."""

import contextlib
from dataclasses import replace
from datetime import timedelta

from leeward.agent.types import GuestState
from leeward.errors import NodeGone
from leeward_controller.domain.instance import Instance, InstanceState, Shelf
from leeward_controller.domain.operation import OperationType, ShelveArguments, UnshelveArguments
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import spec_at_target
from leeward_controller.operations.images import ensure_image
from leeward_controller.operations.migrate import LONGEST_GRACE_S
from leeward_controller.operations.placing import choose_place, release_target, reservation_of
from leeward_controller.operations.running import bring_up, forget_on, halt, leave_target, start_again
from leeward_controller.operations.snapshot import LONGEST_COPY_S, copy, image_of
from leeward_controller.operations.step import Advance, Definition, Step


def _arguments(context: StepContext) -> ShelveArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, ShelveArguments)
    return arguments


async def stop(context: StepContext) -> Advance:
    """Stop a guest that runs. One that is paused writes nothing, and keeps its memory until the image is made."""
    if context.instance.wanted_guest is GuestState.RUNNING:
        await halt(context, grace_period_s=_arguments(context).grace_period_s)
    return Advance()


async def start_stopped(context: StepContext) -> Advance:
    """Undo of the stop."""
    return await start_again(context) if context.instance.wanted_guest is GuestState.RUNNING else Advance()


async def put_away(context: StepContext) -> Advance:
    """End what is left of the guest, and record the image; the disk stays in its place until the node is freed."""
    instance, arguments = context.instance, _arguments(context)
    await halt(context, grace_period_s=0.0)
    if instance.state is InstanceState.SUSPENDED:
        await context.agent(instance.node).discard_memory(context.caller, spec=instance.guest_spec())
    image = image_of(context, name=arguments.image, properties={"shelved_instance": instance.name})
    delay_s = arguments.offload_delay_s
    offload_time = context.surroundings.clock.now() + timedelta(seconds=delay_s) if delay_s else None
    shelf = Shelf(image.name, image.digest, image.format, offload_time)
    return Advance(
        instance=lambda instance: replace(instance, state=InstanceState.SHELVED, shelf=shelf),
        put_image=image,
        skip_rest=delay_s > 0,
    )


async def free_node(context: StepContext) -> Advance:
    """Delete the disk and give the place back: the image is all there is now, and its disk will be based on it."""
    instance = context.instance
    node, shelf = instance.node, instance.shelf
    assert shelf is not None, "the step before, or the table, sees to it"
    await forget_on(context, node)
    with contextlib.suppress(NodeGone):
        # A pool that was lost with its node took the disk along.
        agent = context.agent_with_pool(instance.pool_id, preferred=node)
        await agent.delete_disk(context.caller, spec=instance.guest_spec())
    return Advance(instance=_offloaded, release_from=(node,) if node else ())


def _offloaded(instance: Instance) -> Instance:
    shelf = instance.shelf
    assert shelf is not None
    return replace(
        instance,
        state=InstanceState.SHELVED_OFFLOADED,
        node="",
        pool_id="",
        image_digest=shelf.digest,
        image_format=shelf.format,
        shelf=replace(shelf, offload_time=None),
    )


async def place(context: StepContext) -> Advance:
    """The node it is on still; for one that is on none, a new one."""
    instance, arguments = context.instance, context.operation.arguments
    assert isinstance(arguments, UnshelveArguments)
    work = replace(context.operation.work, source_node=instance.node, run_epoch=instance.run_epoch + 1)
    if instance.node:
        return Advance(work=replace(work, target_node=instance.node, target_pool_id=instance.pool_id))
    chosen = choose_place(context, named=arguments.node)
    return Advance(
        work=replace(work, target_node=chosen.node, target_pool_id=chosen.pool_id),
        reserve_on=chosen.node,
        reservation=reservation_of(instance),
    )


async def unplace(context: StepContext) -> Advance:
    """Give a new place back; one that it had it keeps."""
    return Advance() if context.instance.node else await release_target(context)


async def create_disk(context: StepContext) -> Advance:
    """Make a disk over the image, for one whose disk is not there any more."""
    work, instance = context.operation.work, context.instance
    if instance.node:
        return Advance()
    await ensure_image(
        context,
        node=work.target_node,
        pool_id=work.target_pool_id,
        digest=instance.image_digest,
        format=instance.image_format,
    )
    await context.agent(work.target_node).create_disk(context.caller, spec=spec_at_target(context))
    return Advance()


async def delete_disk(context: StepContext) -> Advance:
    """Undo: the image is still there."""
    work = context.operation.work
    if not context.instance.node:
        agent = context.agent_with_pool(work.target_pool_id, preferred=work.target_node)
        await agent.delete_disk(context.caller, spec=spec_at_target(context))
    return Advance()


async def start(context: StepContext) -> Advance:
    """Start it; the image's record goes, and its file as soon as no disk is based on it."""
    work, shelf = context.operation.work, context.instance.shelf
    assert shelf is not None
    await bring_up(context, node=work.target_node, spec=spec_at_target(context), wanted=GuestState.RUNNING)
    now = context.surroundings.clock.now()
    return Advance(
        instance=lambda instance: replace(
            instance,
            state=InstanceState.ACTIVE,
            node=work.target_node,
            pool_id=work.target_pool_id,
            run_epoch=work.run_epoch,
            shelf=None,
            last_boot_time=now,
        ),
        drop_image=shelf.image,
    )


SHELVE = Definition(
    type=OperationType.SHELVE,
    steps=(
        Step("stop", stop, undo=start_stopped, deadline_s=LONGEST_GRACE_S + 60.0),
        Step("copy", copy, deadline_s=LONGEST_COPY_S),
        Step("put_away", put_away, commits=True),
        Step("free_node", free_node, deadline_s=120.0),
    ),
)
OFFLOAD = Definition(type=OperationType.OFFLOAD, steps=(Step("free_node", free_node, deadline_s=120.0),))
UNSHELVE = Definition(
    type=OperationType.UNSHELVE,
    steps=(
        Step("place", place, undo=unplace, deadline_s=30.0),
        Step("create_disk", create_disk, undo=delete_disk, deadline_s=LONGEST_COPY_S),
        Step("start", start, undo=leave_target, deadline_s=120.0),
    ),
    attempts=3,
)
