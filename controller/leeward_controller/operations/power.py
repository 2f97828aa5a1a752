"""Start, stop and reboot: one step each, on the node where the instance is."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from leeward.agent.types import GuestState, RebootMode
from leeward.errors import FailedPrecondition
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import OperationType, RebootArguments, StopArguments
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step

_LONGEST_GRACE_S = 3600.0


async def start(context: StepContext) -> Advance:
    """Take the right to run once more, and start the guest."""
    await _boot(context)
    return Advance(instance=_booted(context.surroundings.clock.now()))


async def stop(context: StepContext) -> Advance:
    """Ask the guest to shut down; kill it when its time is up."""
    arguments = context.operation.arguments
    assert isinstance(arguments, StopArguments)
    agent = context.agent(_node(context))
    await agent.stop_guest(context.caller, uid=context.instance.uid, grace_period_s=arguments.grace_period_s)
    return Advance(instance=lambda instance: replace(instance, state=InstanceState.STOPPED, fault=""))


async def reboot(context: StepContext) -> Advance:
    """Restart the guest: softly if asked and it listens, else hard; one that does not run is started.

    The memory of a suspended one is let go: it boots from its disk.
    """
    arguments = context.operation.arguments
    assert isinstance(arguments, RebootArguments)
    agent = context.agent_to_start(_node(context))
    status = await agent.get_guest(uid=context.instance.uid)
    note = RebootMode.HARD.value
    if context.instance.state is InstanceState.SUSPENDED:
        await agent.discard_memory(context.caller, spec=context.instance.guest_spec())
    if status.state is GuestState.RUNNING:
        done = await agent.reboot_guest(
            context.caller, uid=context.instance.uid, mode=arguments.mode, timeout_s=arguments.timeout_s
        )
        note = done.value
        if done is not arguments.mode:
            note = f"{done} (the guest did not react to a soft reboot within {arguments.timeout_s:g} s)"
    else:
        await agent.stop_guest(context.caller, uid=context.instance.uid, grace_period_s=0.0)
        await _boot(context)
    return Advance(work=replace(context.operation.work, note=note), instance=_booted(context.surroundings.clock.now()))


async def stop_again(context: StepContext) -> Advance:
    """What may have been started is stopped, unless it was meant to run before."""
    if context.instance.node and context.instance.state is not InstanceState.ACTIVE:
        agent = context.agent_to_end(context.instance.node)
        await agent.stop_guest(context.caller, uid=context.instance.uid, grace_period_s=0.0)
    return Advance()


def _node(context: StepContext) -> str:
    """The instance's node. Raises FailedPrecondition when it has none."""
    instance = context.instance
    if not instance.node:
        why = f"{instance.name} is on no node: it never came to run ({instance.fault or 'no cause is recorded'})"
        raise FailedPrecondition(why, reason="NO_NODE", resource=instance.name)
    return instance.node


async def _boot(context: StepContext) -> None:
    agent = context.agent_to_start(_node(context))
    spec = context.instance.guest_spec()
    await agent.claim_run_epoch(context.caller, spec=spec)
    await agent.start_guest(context.caller, spec=spec)


def _booted(now: datetime) -> Callable[[Instance], Instance]:
    return lambda instance: replace(instance, state=InstanceState.ACTIVE, fault="", last_boot_time=now)


START = Definition(type=OperationType.START, steps=(Step("start", start, undo=stop_again, deadline_s=120.0),))
STOP = Definition(type=OperationType.STOP, steps=(Step("stop", stop, deadline_s=_LONGEST_GRACE_S + 60.0),))
REBOOT = Definition(
    type=OperationType.REBOOT,
    steps=(Step("reboot", reboot, undo=stop_again, deadline_s=_LONGEST_GRACE_S + 60.0),),
)
