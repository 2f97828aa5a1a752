"""Crash dump: a non-maskable interrupt, by which the guest's kernel writes its dump."""

from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step


async def interrupt(context: StepContext) -> Advance:
    """Send the interrupt; what follows is the guest's own doing."""
    await context.agent(context.instance.node).inject_nmi(context.caller, uid=context.instance.uid)
    return Advance()


CRASH_DUMP = Definition(type=OperationType.CRASH_DUMP, steps=(Step("interrupt", interrupt),))
