"""Suspend and resume: write a guest's memory beside its disk and end its process, and bring it back.

The memory lies in the pool, so a suspended instance outlives its node on shared storage and resumes on another one.
"""

from dataclasses import replace

from leeward.errors import NotFound
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step

_LONGEST_SAVE_S = 1800.0


async def suspend(context: StepContext) -> Advance:
    """Write the memory and end the process."""
    agent = context.agent(context.instance.node)
    await agent.suspend_guest(context.caller, spec=context.instance.guest_spec())
    return Advance(instance=lambda instance: replace(instance, state=InstanceState.SUSPENDED))


async def wake_again(context: StepContext) -> Advance:
    """Undo of a suspend: bring it back if it had been written already; else it never stopped.

    Of one whose node is fenced there is nothing to bring back: it is started anew from its disk, there or elsewhere,
    and what was written of its memory must not be in the way.
    """
    instance = context.instance
    if context.is_fenced(instance.node):
        agent = context.agent_with_pool(instance.pool_id, preferred=instance.node)
        await agent.discard_memory(context.caller, spec=instance.guest_spec())
        return Advance()
    try:
        await _wake(context)
    except NotFound:
        # Without a memory file it either runs on, which starting it confirms, or has ended by itself meanwhile.
        agent = context.agent_to_start(context.instance.node)
        await agent.start_guest(context.caller, spec=context.instance.guest_spec())
    return Advance()


async def resume(context: StepContext) -> Advance:
    """Bring it back from its memory, on the node where it has its place now."""
    await _wake(context)
    return Advance(instance=lambda instance: replace(instance, state=InstanceState.ACTIVE))


async def suspend_again(context: StepContext) -> Advance:
    """Undo of a resume: one that runs already is written once more; else it stays as it is."""
    agent = context.agent_to_end(context.instance.node)
    await agent.suspend_guest(context.caller, spec=context.instance.guest_spec())
    return Advance()


async def _wake(context: StepContext) -> None:
    agent = context.agent_to_start(context.instance.node)
    spec = context.instance.guest_spec()
    await agent.claim_run_epoch(context.caller, spec=spec)
    await agent.wake_guest(context.caller, spec=spec)


SUSPEND = Definition(
    type=OperationType.SUSPEND,
    steps=(Step("suspend", suspend, undo=wake_again, deadline_s=_LONGEST_SAVE_S),),
)
RESUME = Definition(
    type=OperationType.RESUME,
    steps=(Step("resume", resume, undo=suspend_again, deadline_s=_LONGEST_SAVE_S),),
)
