"""Rescue and unrescue: boot another image with the instance's own disk beside it, and go back."""

from dataclasses import replace

from leeward.agent.types import GuestState
from leeward_controller.domain.instance import Instance, InstanceState, Rescue
from leeward_controller.domain.operation import OperationType, RescueArguments
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.images import ensure_image
from leeward_controller.operations.migrate import LONGEST_GRACE_S
from leeward_controller.operations.running import bring_up, halt, start_again
from leeward_controller.operations.step import Advance, Definition, Step

_GRACE_S = 60.0


def _arguments(context: StepContext) -> RescueArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, RescueArguments)
    return arguments


def _in_rescue(context: StepContext) -> Instance:
    """The instance as it will be."""
    instance, arguments = context.instance, _arguments(context)
    rescue = Rescue(arguments.image, arguments.digest, arguments.format, instance.state)
    return replace(instance, rescue=rescue)


async def stop(context: StepContext) -> Advance:
    """Stop the guest, if it has a process."""
    await halt(context, grace_period_s=_arguments(context).grace_period_s)
    return Advance()


async def make_rescue_disk(context: StepContext) -> Advance:
    """Make the disk that it boots from; its own is not touched."""
    instance, arguments = _in_rescue(context), _arguments(context)
    await ensure_image(
        context, node=instance.node, pool_id=instance.pool_id, digest=arguments.digest, format=arguments.format
    )
    await context.agent(instance.node).create_disk(context.caller, spec=instance.guest_spec())
    return Advance()


async def drop_rescue_disk(context: StepContext) -> Advance:
    """Undo: delete the rescue disk."""
    agent = context.agent_with_pool(context.instance.pool_id, preferred=context.instance.node)
    await agent.drop_rescue_disk(context.caller, spec=_in_rescue(context).guest_spec())
    return Advance()


async def boot_rescue(context: StepContext) -> Advance:
    """Boot it."""
    instance, now = _in_rescue(context), context.surroundings.clock.now()
    await bring_up(context, node=instance.node, spec=instance.guest_spec(), wanted=GuestState.RUNNING)
    return Advance(
        instance=lambda current: replace(
            current, state=InstanceState.RESCUED, rescue=instance.rescue, last_boot_time=now
        )
    )


async def end_rescue_guest(context: StepContext) -> Advance:
    """Undo of the boot: end it, so that its disks can be let go."""
    await halt(context, grace_period_s=0.0)
    return Advance()


async def stop_rescue(context: StepContext) -> Advance:
    """Shut the rescue system down."""
    await halt(context, grace_period_s=_GRACE_S)
    return Advance()


async def boot_own_disk(context: StepContext) -> Advance:
    """Start it from its own disk if it was running, and let the rescue disk go."""
    rescued = context.instance
    rescue = rescued.rescue
    assert rescue is not None, "the table lets only a RESCUED instance come here"
    before = replace(rescued, state=rescue.state_before, rescue=None)
    agent = context.agent(rescued.node)
    await bring_up(context, node=rescued.node, spec=before.guest_spec(), wanted=before.wanted_guest)
    await agent.drop_rescue_disk(context.caller, spec=rescued.guest_spec())
    return Advance(instance=lambda instance: replace(instance, state=rescue.state_before, rescue=None))


RESCUE = Definition(
    type=OperationType.RESCUE,
    steps=(
        Step("stop", stop, undo=start_again, deadline_s=LONGEST_GRACE_S + 60.0),
        Step("make_rescue_disk", make_rescue_disk, undo=drop_rescue_disk, deadline_s=3600.0),
        Step("boot_rescue", boot_rescue, undo=end_rescue_guest, deadline_s=120.0),
    ),
)
UNRESCUE = Definition(
    type=OperationType.UNRESCUE,
    steps=(
        Step("stop_rescue", stop_rescue, undo=start_again, deadline_s=LONGEST_GRACE_S, commits=True),
        Step("boot_own_disk", boot_own_disk, deadline_s=120.0),
    ),
)
