"""Rebuild: give an instance a new root disk from an image; its name, place, addresses and data disks stay."""

from dataclasses import replace

from leeward.agent.types import GuestState
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import OperationType, RebuildArguments
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.images import ensure_image
from leeward_controller.operations.running import bring_up, halt, start_again
from leeward_controller.operations.step import Advance, Definition, Step


def _arguments(context: StepContext) -> RebuildArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, RebuildArguments)
    return arguments


async def fetch_image(context: StepContext) -> Advance:
    """Have the image where the disk is, before the guest is disturbed."""
    instance, arguments = context.instance, _arguments(context)
    await ensure_image(
        context, node=instance.node, pool_id=instance.pool_id, digest=arguments.digest, format=arguments.format
    )
    return Advance()


async def stop(context: StepContext) -> Advance:
    """End the guest at once: its disk is going to be replaced."""
    await halt(context, grace_period_s=0.0)
    return Advance()


async def replace_disk(context: StepContext) -> Advance:
    """Make the new disk, which takes the place of the old one when it is whole."""
    rebuilt = _rebuilt(context.instance, _arguments(context))
    agent = context.agent(rebuilt.node)
    await agent.replace_disk(context.caller, spec=rebuilt.guest_spec())
    if context.instance.rescue is not None:
        await agent.drop_rescue_disk(context.caller, spec=context.instance.guest_spec())
    return Advance(instance=lambda instance: _rebuilt(instance, _arguments(context)))


def _rebuilt(instance: Instance, arguments: RebuildArguments) -> Instance:
    return replace(
        instance,
        image=arguments.image,
        image_digest=arguments.digest,
        image_format=arguments.format,
        state=InstanceState.STOPPED if instance.state is InstanceState.STOPPED else InstanceState.ACTIVE,
        fault="",
        rescue=None,
    )


async def start(context: StepContext) -> Advance:
    """Start it, unless it was stopped."""
    instance, now = context.instance, context.surroundings.clock.now()
    if instance.wanted_guest is not GuestState.RUNNING:
        return Advance()
    await bring_up(context, node=instance.node, spec=instance.guest_spec(), wanted=GuestState.RUNNING)
    return Advance(instance=lambda instance: replace(instance, last_boot_time=now))


REBUILD = Definition(
    type=OperationType.REBUILD,
    steps=(
        Step("fetch_image", fetch_image, deadline_s=3600.0),
        Step("stop", stop, undo=start_again, deadline_s=60.0),
        Step("replace_disk", replace_disk, deadline_s=300.0, commits=True),
        Step("start", start, deadline_s=120.0),
    ),
)
