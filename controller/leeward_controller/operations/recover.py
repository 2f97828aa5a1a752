"""Recover: have a guest that was killed, or whose host was rebooted, again as it is meant to be, where it is.

What was in its memory is lost: one that was paused stands still before its first instruction, and one in rescue boots
its rescue image. An instance that is ACTIVE is rebooted instead, as an operator would do.
"""

from dataclasses import replace

from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.running import bring_up
from leeward_controller.operations.step import Advance, Definition, Step


async def recover(context: StepContext) -> Advance:
    """Start it as it is meant to be; the record's state stays."""
    instance, now = context.instance, context.surroundings.clock.now()
    await bring_up(context, node=instance.node, spec=instance.guest_spec(), wanted=instance.wanted_guest)
    return Advance(instance=lambda current: replace(current, last_boot_time=now))


RECOVER = Definition(type=OperationType.RECOVER, steps=(Step("recover", recover, deadline_s=120.0),))
