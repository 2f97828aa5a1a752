"""Waits until an instance that was restarted is ready, so that what needs it is not begun before it."""

from leeward.agent.types import GuestState
from leeward.errors import AgentIndefinite, AgentUnavailable, HypervisorError, NodeGone
from leeward_controller.domain.instance import Instance
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance

AWAIT_READY = "await_ready"
"""The step's name, by which failover's records find how long it took."""

MOST_AWAITED_S = 900.0
"""Longer than anybody may ask to wait."""

_LOOK_EVERY_S = 1.0


def is_awaited(instance: Instance) -> bool:
    """Whether there is anything to wait for: a guest that is meant to run, and a way to ask it."""
    return instance.readiness is not None and instance.wanted_guest is GuestState.RUNNING


async def await_ready(context: StepContext) -> Advance:
    """Probe the guest until it answers, its time is up, its node is lost again, or somebody interrupts.

    Whatever comes of it, the instance is where it was restarted; a guest that is not ready in time is no failure. Who
    takes over begins anew.
    """
    readiness, target = context.instance.readiness, context.operation.work.target_node
    if readiness is None:
        return Advance()
    clock = context.surroundings.clock
    give_up_s = clock.monotonic_s() + readiness.timeout_s
    while True:
        try:
            silence = await context.agent(target).probe_guest(uid=context.instance.uid, probe=readiness.probe)
        except NodeGone as error:
            return Advance(outcome=f"not awaited any more: {error.message}")
        except (AgentUnavailable, AgentIndefinite, HypervisorError) as error:
            silence = error.message
        if not silence:
            return Advance()
        if context.cancelled.is_set():
            return Advance(outcome=f"not awaited any more: {silence}")
        if clock.monotonic_s() + _LOOK_EVERY_S > give_up_s:
            return Advance(outcome=f"not ready within {readiness.timeout_s:g} s: {silence}")
        await clock.sleep(_LOOK_EVERY_S)
