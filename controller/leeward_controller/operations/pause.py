"""Pause and unpause: halt a guest's processors, and let them run on."""

from dataclasses import replace

from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step


async def pause(context: StepContext) -> Advance:
    """Halt the processors."""
    await context.agent(context.instance.node).pause_guest(context.caller, uid=context.instance.uid)
    return Advance(instance=lambda instance: replace(instance, state=InstanceState.PAUSED))


async def unpause(context: StepContext) -> Advance:
    """Let it run on."""
    agent = context.agent_to_start(context.instance.node)
    await agent.resume_guest(context.caller, uid=context.instance.uid)
    return Advance(instance=lambda instance: replace(instance, state=InstanceState.ACTIVE))


async def resume_again(context: StepContext) -> Advance:
    """Undo of a pause."""
    await context.agent_to_end(context.instance.node).resume_guest(context.caller, uid=context.instance.uid)
    return Advance()


async def pause_again(context: StepContext) -> Advance:
    """Undo of an unpause."""
    await context.agent_to_end(context.instance.node).pause_guest(context.caller, uid=context.instance.uid)
    return Advance()


PAUSE = Definition(type=OperationType.PAUSE, steps=(Step("pause", pause, undo=resume_again),))
UNPAUSE = Definition(type=OperationType.UNPAUSE, steps=(Step("unpause", unpause, undo=pause_again),))
