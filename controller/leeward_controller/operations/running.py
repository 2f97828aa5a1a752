"""What many operations do with a guest: end its process, take the right to run, have it as it is meant to be."""

import contextlib
from dataclasses import replace

from leeward.agent.types import GuestSpec, GuestState
from leeward.errors import AgentIndefinite, AgentUnavailable, NodeGone
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance


async def halt(context: StepContext, *, grace_period_s: float) -> None:
    """End the guest's process on its node: by ACPI first, at once when the time is up. The definition stays."""
    agent = context.agent_to_end(context.instance.node)
    await agent.stop_guest(context.caller, uid=context.instance.uid, grace_period_s=grace_period_s)


async def bring_up(context: StepContext, *, node: str, spec: GuestSpec, wanted: GuestState) -> None:
    """Take the right to run on `node`, and have the guest there as wanted. Raises what `agent_to_start` raises."""
    agent = context.agent_to_start(node)
    await agent.claim_run_epoch(context.caller, spec=spec)
    if wanted in (GuestState.RUNNING, GuestState.PAUSED):
        await agent.start_guest(context.caller, spec=spec, paused=wanted is GuestState.PAUSED)


async def start_again(context: StepContext) -> Advance:
    """Undo of a stop: a guest that is meant to run is started where it was."""
    instance = context.instance
    if instance.wanted_guest is not GuestState.STOPPED:
        await bring_up(context, node=instance.node, spec=instance.guest_spec(), wanted=instance.wanted_guest)
    return Advance()


async def leave_target(context: StepContext) -> Advance:
    """Undo of a start elsewhere: remove what may have been started, and let the epoch rise past the one claimed there.

    The instance stays recorded where it was, and may be started there: that takes an epoch of its own. Of a fenced
    target there is nothing to remove.
    """
    work, uid = context.operation.work, context.instance.uid
    with contextlib.suppress(NodeGone):
        await context.agent_to_end(work.target_node).remove_guest(context.caller, uid=uid)
    epoch = work.run_epoch + 1
    return Advance(instance=lambda instance: replace(instance, run_epoch=max(instance.run_epoch, epoch)))


async def forget_on(context: StepContext, node: str) -> None:
    """Have nothing of the guest left defined on a node that it has left.

    One that cannot be reached finds by itself that the right to run has moved.
    """
    with contextlib.suppress(NodeGone, AgentUnavailable, AgentIndefinite):
        await context.agent(node).remove_guest(context.caller, uid=context.instance.uid)
